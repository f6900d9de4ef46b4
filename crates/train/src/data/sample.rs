//! Small tokenizers for the tests: bytes as tokens, so that positions can be counted by hand.

use serde_json::{Value, json};
use taper_base::{ModelDir, Tokenizer};

/// Ids of the special tokens.
pub(crate) const BOS: u32 = 257;
pub(crate) const EOS: u32 = 258;

/// `ChatML` without generation blocks; one message renders the same whatever follows.
pub(crate) const CHATML: &str = "{% for m in messages %}<|bos|>{{ m['role'] }}\n{{ m['content'] }}<|eos|>\n{% endfor %}\
     {% if add_generation_prompt %}<|bos|>assistant\n{% endif %}";

/// The 256 characters of byte-level BPE by their code points: printable ones stand for themselves.
fn alphabet() -> Vec<char> {
    let printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut shifted = 256;
    let mut characters: Vec<u32> = (0..256)
        .map(|byte| {
            if printable(&byte) {
                return byte;
            }
            shifted += 1;
            shifted - 1
        })
        .collect();
    characters.sort_unstable();
    characters.into_iter().filter_map(char::from_u32).collect()
}

/// `tokenizer.json` of the byte tokenizer of `tests/oracle/shapes.py`, with the merge `\n` `\n`.
fn file(post_processor: &Value) -> Value {
    let mut vocab: serde_json::Map<String, Value> =
        alphabet().iter().enumerate().map(|(id, character)| (character.to_string(), id.into())).collect();
    vocab.insert("ĊĊ".to_owned(), 256.into());
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(BOS, "<|bos|>"), special(EOS, "<|eos|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": [["Ċ", "Ċ"]]}
    })
}

fn open(post_processor: &Value, config: &Value) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file(post_processor).to_string()).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let dir = ModelDir { path: folder.path().to_path_buf(), name: "sample".to_owned() };
    Tokenizer::open(&dir).unwrap()
}

/// Adds nothing to a text, has an EOS that is the padding token too, and no chat template.
pub(crate) fn plain() -> Tokenizer {
    open(&Value::Null, &json!({"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|eos|>"}))
}

/// As [`plain`], without an EOS.
pub(crate) fn endless() -> Tokenizer {
    open(&Value::Null, &json!({"bos_token": "<|bos|>"}))
}

/// As [`plain`], with a post-processor that writes BOS before and EOS after a text.
pub(crate) fn framed() -> Tokenizer {
    let piece = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let tokens = |id: u32, name: &str| json!({"id": name, "ids": [id], "tokens": [name]});
    let processor = json!({
        "type": "TemplateProcessing",
        "single": [piece("<|bos|>"), {"Sequence": {"id": "A", "type_id": 0}}, piece("<|eos|>")],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|bos|>": tokens(BOS, "<|bos|>"), "<|eos|>": tokens(EOS, "<|eos|>")}
    });
    open(&processor, &json!({"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|eos|>"}))
}

/// As [`plain`], with a chat template.
pub(crate) fn chat(template: &str) -> Tokenizer {
    open(&Value::Null, &json!({"bos_token": "<|bos|>", "eos_token": "<|eos|>", "chat_template": template}))
}
