//! Text to token ids and back, exactly as the model's own tokenizer files say. Which text to encode, and which tokens to
//! learn, is for others to decide.

mod charsmap;
mod inputs;
mod settings;
#[cfg(test)]
pub(crate) mod tests;
mod vocabulary;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::json;
use tokenizers::{AddedToken, PostProcessorWrapper};

use crate::{ChatTemplate, Error, ModelDir};
pub use inputs::Input;
use settings::Settings;

/// A model's tokenizer, with its special tokens and chat template.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: BTreeSet<u32>,
    chat: Option<ChatTemplate>,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unk: Option<u32>,
    mask: Option<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja` of a model folder,
    /// or a GGUF file's metadata. Folders of bert, distilbert, gpt2 and roberta may have `vocab.txt`, or `vocab.json` and
    /// `merges.txt`, in place of the first.
    /// The file's own truncation and padding settings are switched off.
    pub fn open(dir: &ModelDir) -> Result<Self, Error> {
        let mut settings = Settings::read(dir)?;
        let (path, bytes) = file(dir, &mut settings)?;
        let mut inner = read(&path, &bytes)?;
        make_special(&mut inner, &settings).map_err(|source| Error::file(&path, source.to_string()))?;
        if let Some((bos, eos)) = settings.wrapping() {
            let wrapping = wrap(&inner, bos, eos)?;
            inner.with_post_processor(Some(wrapping));
        }
        let id = |role: &str| settings.special.get(role).and_then(|token| inner.token_to_id(token));
        let (bos, pad, unk, mask) = (id("bos_token"), id("pad_token"), id("unk_token"), id("mask_token"));
        let eos = id("eos_token").or(configured_eos(dir)?.filter(|&id| inner.id_to_token(id).is_some()));
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        Ok(Self { special, chat: settings.chat_template(dir)?, bos, eos, pad, unk, mask, inner })
    }

    /// Ids of `text` with whatever the post-processor adds (a BOS, an EOS), as `tokenizer(text)` in transformers.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = self.inner.encode_fast(text, true).map_err(|source| failed(&*source))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of `text` with nothing added: for text that a chat template rendered, and for continuations. Special tokens that
    /// stand in the text are still recognised.
    pub fn encode_bare(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = self.inner.encode_fast(text, false).map_err(|source| failed(&*source))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As [`encode_bare`](Self::encode_bare), with the byte range of `text` that each id covers. Ids that share a character
    /// (the bytes of an emoji) cover all of it, each.
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>, Error> {
        let encoding = self.inner.encode(text, false).map_err(|source| failed(&*source))?;
        let ids = encoding.get_ids().iter().copied();
        Ok(ids.zip(encoding.get_offsets().iter().map(|(start, end)| *start..*end)).collect())
    }

    /// Text of `ids`, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        self.inner.decode(ids, true).map_err(|source| failed(&*source))
    }

    /// The token of an id as it is written in the vocabulary, special tokens included.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token of the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether `id` is a special token: one that [`decode`](Self::decode) leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The chat template, if the model has one.
    pub fn chat(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref()
    }

    /// Id of the beginning-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Id of the end-of-sequence token.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Id of the padding token.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// Id of the token that stands for what the vocabulary lacks.
    pub fn unk(&self) -> Option<u32> {
        self.unk
    }

    /// Id of the token that an encoder learned to fill in.
    pub fn mask(&self) -> Option<u32> {
        self.mask
    }
}

fn failed(source: &dyn std::error::Error) -> Error {
    Error::Tokenizer { what: source.to_string() }
}

/// `tokenizer.json`, or the file in its place and what it would say there.
fn file(dir: &ModelDir, settings: &mut Settings) -> Result<(PathBuf, Vec<u8>), Error> {
    if dir.is_gguf() {
        return Ok((dir.path.clone(), dir.json("tokenizer.json")?.to_string().into_bytes()));
    }
    if let Some(path) = dir.file("tokenizer.json") {
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        return Ok((path, bytes));
    }
    let (path, json) = vocabulary::tokenizer(dir, settings)?.ok_or_else(|| no_tokenizer(dir))?;
    Ok((path, json.to_string().into_bytes()))
}

/// The parts of `tokenizer.json` over which the crate panics where they are no JSON or, of the normalizer, damaged.
#[derive(serde::Deserialize)]
struct Fragile {
    #[serde(default)]
    normalizer: serde_json::Value,
    #[serde(default, rename = "decoder")]
    _decoder: serde_json::Value,
}

/// Loads `tokenizer.json`; files from before the model had a `type` are read as well (the crate guesses it).
fn read(path: &Path, bytes: &[u8]) -> Result<tokenizers::Tokenizer, Error> {
    let refused = |source: &dyn std::fmt::Display| {
        Error::file(
            path,
            format!("not a tokenizer that taper can read ({source}); download or convert it again"),
        )
    };
    let fragile: Fragile = serde_json::from_slice(bytes).map_err(|source| refused(&source))?;
    charsmap::check(&fragile.normalizer).map_err(|source| refused(&source))?;
    let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|source| refused(&source))?;
    inner.with_truncation(None).map_err(|source| Error::file(path, source.to_string()))?;
    inner.with_padding(None);
    Ok(inner)
}

/// Marks tokens with a role as special where `tokenizer.json` forgot to, as `TokenizersBackend._post_init` of transformers 5
/// does: they are then recognised inside a text and left out of decoded ones. A token outside the vocabulary has no row in
/// the embedding and stays out.
fn make_special(inner: &mut tokenizers::Tokenizer, settings: &Settings) -> tokenizers::Result<()> {
    let known: BTreeSet<String> = inner
        .get_added_tokens_decoder()
        .into_values()
        .filter(|token| token.special)
        .map(|token| token.content)
        .collect();
    let missing = settings.special.values().filter(|token| !known.contains(*token));
    let missing: Vec<AddedToken> = missing
        .filter(|token| inner.token_to_id(token).is_some())
        .map(|token| AddedToken::from(token.clone(), true))
        .collect();
    inner.add_special_tokens(missing).map(|_| ())
}

/// What the model's own configuration says ends a sequence, for folders whose tokenizer files name no special tokens: the
/// first `eos_token_id` of `generation_config.json`, else of `config.json`.
fn configured_eos(dir: &ModelDir) -> Result<Option<u32>, Error> {
    for file in ["generation_config.json", "config.json"] {
        let json = dir.json(file)?;
        let eos = &json["eos_token_id"];
        let first = eos.as_array().map_or(Some(eos), |list| list.first());
        if let Some(id) = first.and_then(serde_json::Value::as_u64) {
            return Ok(u32::try_from(id).ok());
        }
    }
    Ok(None)
}

/// A post-processor that puts `bos` before and `eos` after a text.
fn wrap(
    inner: &tokenizers::Tokenizer,
    bos: Option<&String>,
    eos: Option<&String>,
) -> Result<PostProcessorWrapper, Error> {
    let mut special = serde_json::Map::new();
    for token in [bos, eos].into_iter().flatten() {
        let Some(id) = inner.token_to_id(token) else {
            let what = format!(
                "tokenizer_config.json adds `{token}` to every text, but tokenizer.json has no such token"
            );
            return Err(Error::Tokenizer { what });
        };
        special.insert(token.clone(), json!({"id": token, "ids": [id], "tokens": [token]}));
    }
    let piece = |token: Option<&String>, side: u32| {
        token.map(|token| json!({"SpecialToken": {"id": token, "type_id": side}}))
    };
    let sequence = |name: &str, side: u32| {
        let text = json!({"Sequence": {"id": name, "type_id": side}});
        [piece(bos, side), Some(text), piece(eos, side)].into_iter().flatten().collect::<Vec<_>>()
    };
    let single = sequence("A", 0);
    let pair = [single.clone(), sequence("B", 1)].concat();
    let template =
        json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special});
    serde_json::from_value(template).map_err(|source| Error::Tokenizer { what: source.to_string() })
}

fn no_tokenizer(dir: &ModelDir) -> Error {
    let what = if dir.file("tokenizer.model").is_some() || dir.file("spiece.model").is_some() {
        "has a SentencePiece model but no tokenizer.json. Convert it once with transformers: \
         AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    } else if dir.file("vocab.json").is_some() || dir.file("vocab.txt").is_some() {
        "has a vocabulary but no tokenizer.json. Convert it once with transformers: \
         AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    } else {
        "has no tokenizer.json: copy the one of the model that these weights come from"
    };
    Error::file(&dir.path, what)
}
