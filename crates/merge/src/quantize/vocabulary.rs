//! `tokenizer.json` to the metadata from which llama.cpp builds its tokenizer.

use std::collections::BTreeMap;

use serde_json::Value;
use taper_base::gguf::PreTokenizer;
use taper_base::{Base, Tokenizer};

use super::writer::{Entry, Metadata};
use crate::Error;

/// `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The tokenizer of `base`, as llama.cpp calls its parts.
pub(super) fn metadata(base: &Base) -> Result<Metadata, Error> {
    let json = base.dir.json("tokenizer.json")?;
    let refuse =
        |what: &str| Error::file(&base.dir.path, format!("its tokenizer {what}: GGUF cannot hold it"));
    let model = &json["model"];
    if model["type"].as_str().unwrap_or("BPE") != "BPE" || !model["vocab"].is_object() {
        return Err(refuse("is not BPE"));
    }
    let mut metadata = Metadata::new();
    let mut put = |key: &str, entry: Entry| metadata.push((format!("tokenizer.ggml.{key}"), entry));
    let merges = merges(model);
    let (tokens, types) = tokens(&json, base).map_err(|what| refuse(&what))?;
    if let Some(prefix) = space_prefix(&json) {
        put("model", Entry::Text("llama".into()));
        put("pre", Entry::Text("default".into()));
        put("add_space_prefix", Entry::Flag(prefix));
        put("scores", Entry::Floats(scores(&tokens, &merges)));
    } else {
        let pre = PreTokenizer::of(&json)
            .ok_or_else(|| refuse("cuts text in a way that llama.cpp has no name for that taper knows"))?;
        put("model", Entry::Text("gpt2".into()));
        put("pre", Entry::Text(pre.name.into()));
        put("merges", Entry::Texts(merges.iter().map(|[left, right]| format!("{left} {right}")).collect()));
    }
    put("tokens", Entry::Texts(tokens));
    put("token_type", Entry::Integers(types));
    roles(base, &mut put)?;
    if let Some(chat) = base.tokenizer.chat() {
        metadata.push(("tokenizer.chat_template".into(), Entry::Text(chat.source().into())));
    }
    Ok(metadata)
}

/// Ids of the special tokens, and which of them stand around every text.
fn roles(base: &Base, put: &mut impl FnMut(&str, Entry)) -> Result<(), Error> {
    let tokenizer: &Tokenizer = &base.tokenizer;
    let ids = [("bos", tokenizer.bos()), ("eos", tokenizer.eos()), ("padding", tokenizer.pad())];
    for (role, id) in ids {
        if let Some(id) = id {
            put(&format!("{role}_token_id"), Entry::U32(id));
        }
    }
    if let Some(&turn) = base.eos.iter().find(|id| Some(**id) != tokenizer.eos()) {
        put("eot_token_id", Entry::U32(turn));
    }
    let encoded = tokenizer.encode("a")?;
    let adds = |id: Option<u32>, at: Option<&u32>| id.is_some() && at.copied() == id;
    put("add_bos_token", Entry::Flag(adds(tokenizer.bos(), encoded.first())));
    put("add_eos_token", Entry::Flag(adds(tokenizer.eos(), encoded.last())));
    Ok(())
}

/// Tokens by id, and their types. Rows of the embedding without a token get one that nothing makes.
fn tokens(json: &Value, base: &Base) -> Result<(Vec<String>, Vec<i32>), String> {
    let rows = base.model.sizes().vocab_size;
    let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
    let mut types = vec![UNUSED; rows];
    let mut set = |id: Option<u64>, token: &str, kind: i32| {
        let id = id.and_then(|id| usize::try_from(id).ok()).filter(|id| *id < rows);
        let id = id.ok_or_else(|| format!("has a token `{token}` beyond the embedding's {rows} rows"))?;
        (tokens[id], types[id]) = (token.to_owned(), kind);
        Ok::<(), String>(())
    };
    let bytes = json["model"]["byte_fallback"] == true;
    let is_byte = |token: &str| bytes && token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
    for (token, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
        set(id.as_u64(), token, if is_byte(token) { BYTE } else { NORMAL })?;
    }
    let unknown = json["model"]["unk_token"].as_str();
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let token = added["content"].as_str().unwrap_or_default();
        let kind = match added["special"] == true {
            _ if Some(token) == unknown => UNKNOWN,
            true => CONTROL,
            false => USER_DEFINED,
        };
        set(added["id"].as_u64(), token, kind)?;
    }
    Ok((tokens, types))
}

/// Pairs, written as a list of two or as a text with a space between them.
fn merges(model: &Value) -> Vec<[String; 2]> {
    let pair = |merge: &Value| match merge {
        Value::String(text) => text.split_once(' ').map(|(left, right)| [left.to_owned(), right.to_owned()]),
        pair => Some([pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned()]),
    };
    model["merges"].as_array().into_iter().flatten().filter_map(pair).collect()
}

/// For a `SentencePiece` tokenizer, in which `▁` is a space: whether one is put before a text.
fn space_prefix(json: &Value) -> Option<bool> {
    let parts = |value: &Value, list: &str| match value[list].as_array() {
        Some(parts) => parts.clone(),
        None => vec![value.clone()],
    };
    let normalizers = parts(&json["normalizer"], "normalizers");
    let metaspace =
        parts(&json["pre_tokenizer"], "pretokenizers").into_iter().find(|p| p["type"] == "Metaspace");
    if let Some(metaspace) = metaspace {
        return Some(metaspace["prepend_scheme"] != "never" && metaspace["add_prefix_space"] != false);
    }
    let marks = normalizers.iter().any(|n| n["type"] == "Replace" && n["content"] == "▁");
    marks.then(|| normalizers.iter().any(|n| n["type"] == "Prepend" && n["prepend"] == "▁"))
}

/// A merge is as good as it is early; `SentencePiece` scores what it makes. Tokens that no merge makes come last.
fn scores(tokens: &[String], merges: &[[String; 2]]) -> Vec<f32> {
    let mut ranks = BTreeMap::new();
    for (rank, merge) in merges.iter().enumerate() {
        ranks.entry(merge.concat()).or_insert(rank);
    }
    let last = merges.len();
    tokens.iter().map(|token| -(ranks.get(token).copied().unwrap_or(last) as f32)).collect()
}
