//! Streams against whole decodes, with real tokenizers.

use super::*;
use crate::tokenizer::tests::shared;

const TEXTS: [&str; 4] = [
    "Hello world, how are you?  Two  spaces.\n\n\tTab",
    "emoji 😀😃👩‍👩‍👧‍👦 flags 🇩🇪, kanji 漢字かな, \u{1F9D1}\u{200D}\u{1F680}",
    "Ünïcödé ∑∫√ العربية עברית हिन्दी 한국어",
    "🜁🜂🜃🜄𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
];

fn assert_streams(tokenizer: &Tokenizer, prompt: &str, text: &str) {
    let prompt_ids = tokenizer.encode_bare(prompt).unwrap();
    let ids = tokenizer.encode_bare(&format!("{prompt}{text}")).unwrap();
    let cut = prompt_ids.len().min(ids.len());
    let (head, tail) =
        if ids.starts_with(&prompt_ids) { ids.split_at(cut) } else { ([].as_slice(), ids.as_slice()) };
    let mut stream = TextStream::new(tokenizer, head).unwrap();
    let mut printed = String::new();
    for id in tail {
        let piece = stream.push(*id).unwrap();
        assert!(!piece.contains(BROKEN), "cut: {piece:?} in {text:?}");
        assert!(stream.ids.len() < 2 * LONGEST_WAIT);
        printed.push_str(&piece);
    }
    printed.push_str(&stream.finish().unwrap());
    let whole = tokenizer.decode(&ids).unwrap();
    assert_eq!(printed, whole[tokenizer.decode(head).unwrap().len()..]);
}

#[test]
fn streams_equal_the_whole_text() {
    for name in ["qwen2", "mistral-v1", "gpt2", "t5"] {
        let Some(tokenizer) = shared(name) else { continue };
        for text in TEXTS {
            // T5 writes ⁇-like unknowns for what it lacks: only its own characters are asked of it.
            if name == "t5" && !text.starts_with("Hello") {
                continue;
            }
            assert_streams(&tokenizer, "", text);
            assert_streams(&tokenizer, "A prompt:", text);
        }
    }
}

#[test]
fn an_emoji_comes_whole_with_its_last_token() {
    let (Some(qwen), Some(mistral)) = (shared("qwen2"), shared("mistral-v1")) else { return };
    for (tokenizer, text) in [(&qwen, "🜁"), (&mistral, "🜁")] {
        let ids = tokenizer.encode_bare(text).unwrap();
        assert!(ids.len() > 2, "the emoji is split over tokens: {ids:?}");
        let mut stream = TextStream::new(tokenizer, &[]).unwrap();
        let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        assert!(pieces[..pieces.len() - 1].iter().all(String::is_empty), "{pieces:?}");
        assert_eq!(pieces.concat(), text);
    }
}

#[test]
fn the_space_between_prompt_and_answer_is_kept() {
    let Some(mistral) = shared("mistral-v1") else { return };
    let word = mistral.id("▁Hello").unwrap();
    let prompt = mistral.encode_bare("Say it").unwrap();
    assert_eq!(TextStream::new(&mistral, &prompt).unwrap().push(word).unwrap(), " Hello");
    assert_eq!(TextStream::new(&mistral, &[]).unwrap().push(word).unwrap(), "Hello");
    let ended: Vec<u32> = prompt.iter().copied().chain([mistral.eos().unwrap()]).collect();
    assert_eq!(TextStream::new(&mistral, &ended).unwrap().push(word).unwrap(), " Hello");
}

#[test]
fn special_tokens_print_nothing() {
    let Some(qwen) = shared("qwen2") else { return };
    let mut stream = TextStream::new(&qwen, &[]).unwrap();
    assert_eq!(stream.push(qwen.id("<|im_start|>").unwrap()).unwrap(), "");
    assert_eq!(stream.push(qwen.id("Hi").unwrap()).unwrap(), "Hi");
    assert_eq!(stream.finish().unwrap(), "");
}

#[test]
fn half_a_character_at_the_end_is_printed_as_broken_and_garbage_does_not_pile_up() {
    let Some(mistral) = shared("mistral-v1") else { return };
    let byte = |b: u8| mistral.id(&format!("<0x{b:02X}>")).unwrap();
    let mut stream = TextStream::new(&mistral, &[]).unwrap();
    assert_eq!(stream.push(byte(0xF0)).unwrap(), "");
    assert_eq!(stream.push(byte(0x9F)).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{FFFD}\u{FFFD}");

    let mut stream = TextStream::new(&mistral, &[]).unwrap();
    for b in [0xE4, 0xB8, 0xAD] {
        stream.push(byte(b)).unwrap();
    }
    let mut printed = String::new();
    for _ in 0..200 {
        printed.push_str(&stream.push(byte(0xFF)).unwrap());
        assert!(stream.ids.len() <= 2 * LONGEST_WAIT);
    }
    printed.push_str(&stream.push(mistral.id("▁Hello").unwrap()).unwrap());
    assert!(printed.ends_with(" Hello"), "{printed:?}");
    assert_eq!(printed.matches(BROKEN).count(), 200);
}
