//! Real tokenizers (skipped with a printed word where `../shared` is absent) and small ones made up here.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;

/// The folder of real data beside the checkout.
pub(crate) fn shared_folder(path: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path);
    if !folder.is_dir() {
        println!("skipped: {} is absent", folder.display());
        return None;
    }
    Some(folder)
}

/// A real tokenizer by the name of its folder.
pub(crate) fn shared(name: &str) -> Option<Tokenizer> {
    let path = shared_folder(&format!("data/tokenizers/{name}"))?;
    Some(Tokenizer::open(&ModelDir { path, name: name.to_string() }).unwrap())
}

/// A word-level tokenizer over a few words, with what `change` does to its file, beside the given other files.
fn made_up(change: impl FnOnce(&mut Value), others: &[(&str, Value)]) -> Result<Tokenizer, Error> {
    let mut file = json!({
        "version": "1.0",
        "truncation": {"max_length": 2, "stride": 0, "strategy": "LongestFirst", "direction": "Right"},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>",
            "pad_to_multiple_of": null},
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "<unk>",
            "vocab": {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "c": 6}}
    });
    change(&mut file);
    opened(&file, others)
}

/// The tokenizer of a folder with `file` and the given others.
pub(super) fn opened(file: &Value, others: &[(&str, Value)]) -> Result<Tokenizer, Error> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    for (name, value) in others {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    Tokenizer::open(&ModelDir { path: dir.path().to_path_buf(), name: "made-up".to_string() })
}

#[test]
fn a_pair_is_framed_typed_and_cut_like_in_transformers() {
    // AutoTokenizer.from_pretrained(folder)("Hello world", "again and again", truncation=True, max_length=…).input_ids of
    // transformers 5.23, and the token_type_ids of its BertTokenizerFast.
    let Some(bert) = shared("bert-base-uncased") else { return };
    let pair = |most| bert.input("Hello world", Some("again and again"), most).unwrap();
    let whole = pair(None);
    assert_eq!(whole.ids, [101, 7592, 2088, 102, 2153, 1998, 2153, 102]);
    assert_eq!(whole.types, [0, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!((whole.offsets[1].clone(), whole.offsets[3].clone()), (Some(0..5), None));
    let cut = pair(Some(6));
    assert_eq!((cut.ids, cut.cut), (vec![101, 7592, 102, 2153, 1998, 102], 2));
    for (most, expected) in [(7, &[101, 7592, 2088, 102, 2153, 1998, 102][..]), (4, &[101, 102, 2153, 102])] {
        assert_eq!(pair(Some(most)).ids, expected);
    }
    let longer = bert.input("Hello world again", Some("again and"), Some(6)).unwrap();
    assert_eq!(longer.ids, [101, 7592, 2088, 102, 2153, 102]);
    assert_eq!(bert.input("Hello world", None, Some(3)).unwrap().ids, [101, 7592, 102]);
}

const SAMPLE: &str = "Hello world, 中 😀!";

#[test]
fn real_tokenizers_give_the_ids_of_transformers() {
    // AutoTokenizer.from_pretrained(folder)(SAMPLE).input_ids of transformers 5.23, and the same without special tokens.
    let expected: [(&str, &[u32], &[u32]); 6] = [
        ("qwen2", &[], &[9707, 1879, 11, 72858, 90316, 0]),
        ("mistral-v1", &[], &[22557, 1526, 28725, 28705, 28991, 28705, 30575, 28808]),
        ("gpt2", &[], &[15496, 995, 11, 220, 40792, 30325, 222, 0]),
        ("gpt-neox-20b", &[], &[12092, 1533, 13, 209, 13609, 49042, 211, 2]),
        ("bert-base-uncased", &[101], &[7592, 2088, 1010, 1746, 100, 999]),
        ("t5", &[], &[8774, 296, 6, 3, 2, 3, 2, 55]),
    ];
    for (name, before, bare) in expected {
        let Some(tokenizer) = shared(name) else { continue };
        assert_eq!(tokenizer.encode_bare(SAMPLE).unwrap(), bare, "{name}");
        let whole = tokenizer.encode(SAMPLE).unwrap();
        assert_eq!(whole[..before.len()], *before, "{name}");
        assert_eq!(whole[before.len()..before.len() + bare.len()], *bare, "{name}");
    }
}

#[test]
fn offsets_are_bytes_of_the_text() {
    for name in ["qwen2", "mistral-v1"] {
        let Some(tokenizer) = shared(name) else { continue };
        let pairs = tokenizer.encode_with_offsets(SAMPLE).unwrap();
        let ids: Vec<u32> = pairs.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, tokenizer.encode_bare(SAMPLE).unwrap());
        let mut end = 0;
        for (id, range) in &pairs {
            assert!(SAMPLE.get(range.clone()).is_some(), "{name}: {range:?} cuts a character");
            assert!(range.start <= end && range.end >= end, "{name}: {id} leaves a gap before {range:?}");
            end = range.end;
        }
        assert_eq!(end, SAMPLE.len());
    }
}

#[test]
fn special_tokens_in_the_text_are_recognised_and_not_decoded() {
    let Some(tokenizer) = shared("qwen2") else { return };
    let ids = tokenizer.encode_bare("<|im_start|>Hi<|im_end|>").unwrap();
    assert_eq!(ids, [151_644, 13048, 151_645]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "Hi");
    assert!(tokenizer.is_special(151_644) && !tokenizer.is_special(13048));
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (None, Some(151_645), Some(151_643)));
    assert_eq!(tokenizer.token(151_645).as_deref(), Some("<|im_end|>"));
    assert_eq!(tokenizer.vocab_size(), 151_646);
    assert!(tokenizer.chat().is_some());
}

#[test]
fn models_put_one_bos_before_a_text() {
    for name in ["stories260K", "babyllama-tok105", "TinyStories-656K"] {
        let Some(path) = shared_folder(&format!("models/{name}")) else { continue };
        let tokenizer = Tokenizer::open(&ModelDir { path, name: name.to_string() }).unwrap();
        let ids = tokenizer.encode("Once upon a time").unwrap();
        assert_eq!(ids[0], tokenizer.bos().unwrap(), "{name}");
        assert!(!ids[1..].contains(&ids[0]), "{name}: {ids:?}");
        assert_eq!(tokenizer.encode_bare("Once upon a time").unwrap(), ids[1..], "{name}");
    }
}

/// Trap T4: a template that prints the BOS gets no second one, a plain text gets one.
#[test]
fn trap_t4_chat_text_has_the_bos_of_its_template_alone() {
    let config = json!({"bos_token": "<s>", "add_bos_token": true, "chat_template": "{{ bos_token }}{{ messages[0].content }}"});
    let tokenizer = made_up(|_| (), &[("tokenizer_config.json", config)]).unwrap();
    let rendered =
        tokenizer.chat().unwrap().render(&json!([{"role": "user", "content": "a b"}]), None, false).unwrap();
    assert_eq!(tokenizer.encode_bare(&rendered.text).unwrap(), [1, 4, 5]);
    assert_eq!(tokenizer.encode("a b").unwrap(), [1, 4, 5]);
}

/// tokenizers 0.23.3 of Python on the same file.
#[test]
fn t5_frames_with_its_eos_alone() {
    let Some(tokenizer) = shared("t5") else { return };
    for (text, ids) in [
        (
            "translate English to German: The house is wonderful.",
            &[13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5, 1][..],
        ),
        ("Das Haus ist wunderbar.", &[644, 4598, 229, 19250, 5, 1]),
        (
            "  two  spaces, naïve – 3.5%\n<extra_id_0>",
            &[192, 4856, 6, 3, 29, 9, 2, 162, 3, 104, 1877, 2712, 32099, 1],
        ),
        (" ", &[1]),
    ] {
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text}");
        assert_eq!(tokenizer.encode_bare(text).unwrap(), ids[..ids.len() - 1], "{text}");
    }
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (None, Some(1), Some(0)));
    assert_eq!(tokenizer.decode(&[644, 4598, 229, 19250, 5, 1]).unwrap(), "Das Haus ist wunderbar.");
}

#[test]
fn it_may_be_shared_between_threads() {
    fn shareable<T: Send + Sync>() {}
    shareable::<Tokenizer>();
    shareable::<ChatTemplate>();
}

#[test]
fn truncation_and_padding_of_the_file_are_off() {
    let tokenizer = made_up(|_| (), &[]).unwrap();
    assert_eq!(tokenizer.encode("a b c a").unwrap(), [4, 5, 6, 4]);
    assert_eq!(tokenizer.encode("a").unwrap(), [4]);
}

#[test]
fn a_file_without_a_model_type_loads() {
    let strip = |file: &mut Value| {
        file["model"].as_object_mut().unwrap().remove("type");
    };
    assert_eq!(made_up(strip, &[]).unwrap().encode("a b").unwrap(), [4, 5]);
}

#[test]
fn the_configuration_decides_about_bos_and_eos_where_it_speaks() {
    let processor = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}});
    let ids = |config: Value| {
        let file = ("tokenizer_config.json", config);
        made_up(|tokenizer| tokenizer["post_processor"] = processor.clone(), &[file])
            .unwrap()
            .encode("a")
            .unwrap()
    };
    let (bos, eos) = ("<s>", json!({"content": "</s>"}));
    assert_eq!(ids(json!({"bos_token": bos, "eos_token": eos})), [1, 4]);
    assert_eq!(ids(json!({"bos_token": bos, "eos_token": eos, "add_bos_token": false})), [4]);
    assert_eq!(
        ids(json!({"bos_token": bos, "eos_token": eos, "add_bos_token": true, "add_eos_token": true})),
        [1, 4, 2]
    );
    assert_eq!(ids(json!({"add_bos_token": true})), [4]);
}

#[test]
fn roles_come_from_either_file_and_become_special() {
    let config = (
        "tokenizer_config.json",
        json!({"eos_token": {"content": "</s>"}, "pad_token": null, "bos_token": "<none>"}),
    );
    let map = ("special_tokens_map.json", json!({"pad_token": "<pad>", "eos_token": "a"}));
    let tokenizer = made_up(|_| (), &[config, map]).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (None, Some(2), Some(0)));
    assert_eq!(tokenizer.encode("a</s>b").unwrap(), [4, 2, 5]);
    assert_eq!(tokenizer.decode(&[4, 2, 0, 5]).unwrap(), "a b");
    assert_eq!(tokenizer.vocab_size(), 7, "nothing is added to the vocabulary");
}

#[test]
fn the_template_file_wins_and_a_list_is_searched_by_name() {
    let messages = json!([{"role": "user", "content": "x"}]);
    let text = |others: &[(&str, Value)], tools: Option<&Value>| {
        let tokenizer = made_up(|_| (), others).unwrap();
        tokenizer.chat().map(|chat| chat.render(&messages, tools, false).unwrap().text)
    };
    let config =
        |template: Value| ("tokenizer_config.json", json!({"chat_template": template, "bos_token": "<s>"}));
    let list = json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ bos_token }}plain"}]);
    assert_eq!(text(&[], None), None);
    assert_eq!(text(&[config(json!("one"))], None).unwrap(), "one");
    assert_eq!(text(&[config(list.clone())], None).unwrap(), "<s>plain");
    assert_eq!(text(&[config(list)], Some(&json!([]))).unwrap(), "tools");
    assert_eq!(text(&[config(json!("one")), ("chat_template.jinja", json!("two"))], None).unwrap(), "two");
    assert!(made_up(|_| (), &[config(json!([{"name": "x", "template": "y"}]))]).is_err());
    assert!(made_up(|_| (), &[config(json!(3))]).is_err());
}

#[test]
fn what_is_missing_or_broken_is_said_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let model = ModelDir { path: dir.path().to_path_buf(), name: "x".to_string() };
    let message = |model: &ModelDir| Tokenizer::open(model).err().unwrap().to_string();
    assert!(message(&model).contains("no tokenizer.json"));
    std::fs::write(dir.path().join("tokenizer.model"), "").unwrap();
    assert!(message(&model).contains("save_pretrained"));
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(message(&model).contains("tokenizer.json"));
    let unknown = ("tokenizer_config.json", json!({"bos_token": "<none>", "add_bos_token": true}));
    assert!(made_up(|_| (), &[unknown]).err().unwrap().to_string().contains("<none>"));
}

#[test]
fn a_damaged_file_is_refused_without_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let model = ModelDir { path: dir.path().to_path_buf(), name: "x".to_string() };
    let check = |text: &[u8]| {
        std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
        let error = Tokenizer::open(&model).err().unwrap().to_string();
        assert!(error.contains("tokenizer.json: not a tokenizer that taper can read ("), "{error}");
    };
    let decoder = r#"{"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}"#;
    let file = |decoder: &str| {
        format!(
            r#"{{"decoder": {decoder}, "model": {{"type": "WordLevel", "unk_token": "a", "vocab": {{"a": 0}}}}}}"#
        )
    };
    let whole = file(decoder);
    for end in 0..whole.len() {
        check(&whole.as_bytes()[..end]);
    }
    for wrong in
        [r#"{"type": "New"}"#, r#"{"type": "Fuse", "x": "\ud800"}"#, r#"{"type": 1e999}"#, "[1]", "7"]
    {
        check(file(wrong).as_bytes());
    }
    check(b"{\"decoder\": \"\xff\"}");
    std::fs::write(dir.path().join("tokenizer.json"), whole).unwrap();
    assert_eq!(Tokenizer::open(&model).unwrap().vocab_size(), 1);
}

#[test]
fn an_eos_that_only_the_models_configuration_names_is_its_eos() {
    let config = ("config.json", json!({"eos_token_id": 2}));
    assert_eq!(made_up(|_| (), std::slice::from_ref(&config)).unwrap().eos(), Some(2));
    let generation = ("generation_config.json", json!({"eos_token_id": [6, 2]}));
    assert_eq!(made_up(|_| (), &[config.clone(), generation]).unwrap().eos(), Some(6));
    let named = ("tokenizer_config.json", json!({"eos_token": "<s>"}));
    assert_eq!(made_up(|_| (), &[config, named]).unwrap().eos(), Some(1));
    assert_eq!(made_up(|_| (), &[("config.json", json!({"eos_token_id": 99}))]).unwrap().eos(), None);
}
