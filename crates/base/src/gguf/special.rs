//! Metadata to what `tokenizer_config.json` says: roles of tokens, what is put around a text, the chat template.

use serde_json::{Value, json};

use super::{Gguf, tokenizer};
use crate::Error;

/// Roles, with llama.cpp's names of them.
const ROLES: [(&str, &str); 4] = [
    ("bos_token", "bos_token_id"),
    ("eos_token", "eos_token_id"),
    ("unk_token", "unknown_token_id"),
    ("pad_token", "padding_token_id"),
];

/// `tokenizer_config.json` of the model in a file.
pub(super) fn tokenizer_config(gguf: &Gguf) -> Result<Value, Error> {
    let tokens = gguf.texts(tokenizer::TOKENS)?.unwrap_or_default();
    let mut config = json!({
        "add_bos_token": gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos(gguf)?),
        "add_eos_token": gguf.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
    });
    for (role, key) in ROLES {
        let key = format!("tokenizer.ggml.{key}");
        let Some(id) = gguf.number(&key)? else { continue };
        let token = usize::try_from(id).ok().and_then(|id| tokens.get(id)).ok_or_else(|| {
            gguf.bad(format!("metadata `{key}` is {id}, the vocabulary has {} tokens", tokens.len()))
        })?;
        config[role] = json!(token);
    }
    if let Some(template) = gguf.text("tokenizer.chat_template")? {
        config["chat_template"] = json!(template);
    }
    Ok(config)
}

/// What llama.cpp does where the file does not say (`llama_vocab::impl::load`).
fn adds_bos(gguf: &Gguf) -> Result<bool, Error> {
    let model = gguf.text("tokenizer.ggml.model")?;
    Ok(model == Some("llama") || gguf.text("tokenizer.ggml.pre")? == Some("llama-bpe"))
}
