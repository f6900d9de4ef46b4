//! Metadata to `tokenizer.json`: the two tokenizers that Llama-type models use, byte-level BPE (`gpt2`) and `SentencePiece`
//! BPE (`llama`).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Gguf;
use crate::Error;

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";

/// `tokenizer.ggml.token_type`.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How a text is cut before byte-level BPE: a name of `tokenizer.ggml.pre`.
#[derive(Clone, Copy, Debug)]
pub struct PreTokenizer {
    /// The name.
    pub name: &'static str,
    cut: Cut,
    /// Whether the text is normalised to NFC first.
    nfc: bool,
    /// Whether a whole word that is a token is taken at once.
    ignore_merges: bool,
}

#[derive(Clone, Copy, Debug)]
enum Cut {
    /// By a regular expression.
    Regex(&'static str),
    /// As GPT-2 does.
    Gpt2,
    /// As GPT-2 does, every digit by itself.
    Digits,
}

/// Those that taper knows.
const PRE_TOKENIZERS: [PreTokenizer; 4] = [
    PreTokenizer { name: "llama-bpe", cut: Cut::Regex(LLAMA3), nfc: false, ignore_merges: true },
    PreTokenizer { name: "qwen2", cut: Cut::Regex(QWEN2), nfc: true, ignore_merges: false },
    PreTokenizer { name: "gpt-2", cut: Cut::Gpt2, nfc: false, ignore_merges: false },
    PreTokenizer { name: "smollm", cut: Cut::Digits, nfc: false, ignore_merges: false },
];

impl PreTokenizer {
    /// The one that a `tokenizer.json` describes.
    pub fn of(json: &Value) -> Option<Self> {
        let pre = &json["pre_tokenizer"];
        let parts = pre["pretokenizers"].as_array().cloned().unwrap_or_else(|| vec![pre.clone()]);
        let bytes =
            parts.last().filter(|last| last["type"] == "ByteLevel" && last["add_prefix_space"] != true)?;
        let as_gpt2 = bytes["use_regex"] != false;
        let nfc = json["normalizer"]["type"] == "NFC";
        PRE_TOKENIZERS.into_iter().find(|known| {
            nfc == known.nfc
                && match (known.cut, &parts[..parts.len() - 1]) {
                    (Cut::Gpt2, []) => as_gpt2,
                    (Cut::Digits, [digits]) => as_gpt2 && digits["individual_digits"] == true,
                    (Cut::Regex(regex), [split]) => !as_gpt2 && split["pattern"]["Regex"] == regex,
                    _ => false,
                }
        })
    }

    /// `pre_tokenizer` of `tokenizer.json`.
    fn json(&self) -> Value {
        let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let both =
            |first: Value, regex: bool| json!({"type": "Sequence", "pretokenizers": [first, bytes(regex)]});
        match self.cut {
            Cut::Regex(regex) => {
                let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
                both(split, false)
            }
            Cut::Gpt2 => bytes(true),
            Cut::Digits => both(json!({"type": "Digits", "individual_digits": true}), true),
        }
    }
}

/// `tokenizer.json` of the model in a file.
pub(super) fn tokenizer(gguf: &Gguf) -> Result<Value, Error> {
    let tokens = gguf.need(TOKENS, gguf.texts(TOKENS)?)?;
    let types = gguf.integers("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![1; tokens.len()]);
    if types.len() != tokens.len() {
        let what =
            format!("the vocabulary has {} tokens and {} token types: damaged", tokens.len(), types.len());
        return Err(gguf.bad(what));
    }
    let vocabulary = Vocabulary { tokens, types };
    let model = gguf.need("tokenizer.ggml.model", gguf.text("tokenizer.ggml.model")?)?;
    let mut json = match model {
        "gpt2" => byte_level(gguf, &vocabulary)?,
        "llama" => sentence_piece(gguf, &vocabulary)?,
        other => {
            return Err(gguf.bad(format!("`tokenizer.ggml.model` is `{other}`: taper reads gpt2 and llama")));
        }
    };
    json["version"] = json!("1.0");
    json["added_tokens"] = vocabulary.added();
    Ok(json)
}

struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<i32>,
}

impl Vocabulary<'_> {
    fn each(&self) -> impl Iterator<Item = (usize, &str, i32)> {
        self.tokens.iter().zip(&self.types).enumerate().map(|(id, (token, kind))| (id, *token, *kind))
    }

    /// Ids by token; what fills the vocabulary up to a round number is left out.
    fn ids(&self) -> Map<String, Value> {
        let used = self.each().filter(|(.., kind)| *kind != UNUSED);
        used.map(|(id, token, _)| (token.to_owned(), json!(id))).collect()
    }

    fn added(&self) -> Value {
        let added = self.each().filter(|(.., kind)| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind));
        let added = added.map(|(id, token, kind)| {
            json!({
                "id": id, "content": token, "special": kind != USER_DEFINED, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false,
            })
        });
        Value::Array(added.collect())
    }
}

fn byte_level(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Value, Error> {
    let name = gguf.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let pre = PRE_TOKENIZERS.iter().find(|pre| pre.name == name).ok_or_else(|| {
        let known = PRE_TOKENIZERS.map(|pre| pre.name).join(", ");
        gguf.bad(format!("`tokenizer.ggml.pre` is `{name}`, which taper does not read: it knows {known}"))
    })?;
    let key = "tokenizer.ggml.merges";
    Ok(json!({
        "normalizer": if pre.nfc { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": pre.json(),
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "vocab": vocabulary.ids(), "merges": gguf.need(key, gguf.texts(key)?)?,
            "ignore_merges": pre.ignore_merges, "byte_fallback": false, "fuse_unk": false,
        },
    }))
}

fn sentence_piece(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Value, Error> {
    let key = "tokenizer.ggml.scores";
    let scores = gguf.need(key, gguf.floats(key)?)?;
    if scores.len() != vocabulary.tokens.len() {
        let what = format!("{} tokens and {} scores: damaged", vocabulary.tokens.len(), scores.len());
        return Err(gguf.bad(what));
    }
    let normal: Vec<(&str, f32)> = vocabulary
        .each()
        .filter(|(.., kind)| ![UNKNOWN, CONTROL, UNUSED, BYTE].contains(kind))
        .map(|(id, token, _)| (token, scores[id]))
        .collect();
    let unknown = vocabulary.each().find(|(.., kind)| *kind == UNKNOWN).map(|(_, token, _)| token);
    let prefix = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let to_mark = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let mut normalizers = vec![to_mark];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": Value::Null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "vocab": vocabulary.ids(), "merges": merges(&normal), "unk_token": unknown, "fuse_unk": true,
            "byte_fallback": vocabulary.types.contains(&BYTE),
        },
    }))
}

/// The merges that scored pieces stand for: every cut of a piece into two pieces, best score first; of one score, longer
/// first halves first (`generate_merges` of transformers 5, `convert_slow_tokenizer.py`).
pub(super) fn merges(pieces: &[(&str, f32)]) -> Vec<[String; 2]> {
    let known: BTreeMap<&str, f32> = pieces.iter().copied().collect();
    let mut merges: Vec<(f32, &str, &str)> = Vec::new();
    for &(piece, score) in pieces {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if known.contains_key(left) && known.contains_key(right) {
                merges.push((score, left, right));
            }
        }
    }
    let length = |text: &str| text.chars().count();
    merges.sort_by(|a, b| {
        b.0.total_cmp(&a.0).then(length(b.1).cmp(&length(a.1))).then(length(b.2).cmp(&length(a.2)))
    });
    merges.into_iter().map(|(_, left, right)| [left.to_owned(), right.to_owned()]).collect()
}
