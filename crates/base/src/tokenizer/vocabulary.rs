//! What `tokenizer.json` would say in a folder from before there was one: BERT's `vocab.txt`, or of `gpt2` and `roberta`
//! `vocab.json` and `merges.txt`. The rest is the model type's own, as `BertConverter`, `GPT2Converter` and `RobertaConverter`
//! of transformers (`convert_slow_tokenizer.py`) have it.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::settings::Settings;
use crate::{Error, ModelDir};

const BERT: [(&str, &str); 5] = [
    ("unk_token", "[UNK]"),
    ("sep_token", "[SEP]"),
    ("pad_token", "[PAD]"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
];
const ROBERTA: [(&str, &str); 7] = [
    ("bos_token", "<s>"),
    ("eos_token", "</s>"),
    ("unk_token", "<unk>"),
    ("sep_token", "</s>"),
    ("pad_token", "<pad>"),
    ("cls_token", "<s>"),
    ("mask_token", "<mask>"),
];
const GPT2: [(&str, &str); 3] =
    [("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")];

/// The file with the vocabulary and the `tokenizer.json` that it stands for; none for model types that have neither. Roles
/// of special tokens that no file sets become their model type's own.
pub(super) fn tokenizer(dir: &ModelDir, settings: &mut Settings) -> Result<Option<(PathBuf, Value)>, Error> {
    let config = dir.json("config.json")?;
    let found = match config["model_type"].as_str() {
        Some("bert" | "distilbert") => dir.file("vocab.txt").map(|path| (path, &BERT[..])),
        Some("gpt2") => dir.file("vocab.json").map(|path| (path, &GPT2[..])),
        Some("roberta") => dir.file("vocab.json").map(|path| (path, &ROBERTA[..])),
        _ => None,
    };
    let Some((path, roles)) = found else { return Ok(None) };
    for (role, token) in roles {
        settings.special.entry(role).or_insert_with(|| (*token).to_owned());
    }
    let json = if path.extension().is_some_and(|extension| extension == "txt") {
        word_pieces(&path, settings)?
    } else {
        byte_level(dir, &path, settings, roles.len() == ROBERTA.len())?
    };
    Ok(Some((path, json)))
}

fn word_pieces(path: &Path, settings: &Settings) -> Result<Value, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let vocabulary: BTreeMap<&str, usize> = text.lines().enumerate().map(|(id, token)| (token, id)).collect();
    let id = |token: &str| vocabulary.get(token).copied();
    let (cls, sep) = (role(settings, "cls_token", path, id)?, role(settings, "sep_token", path, id)?);
    let special = |token: &str, side: usize| json!({"SpecialToken": {"id": token, "type_id": side}});
    let text = |name: &str, side: usize| json!({"Sequence": {"id": name, "type_id": side}});
    let single = [special(cls.0, 0), text("A", 0), special(sep.0, 0)];
    let pair = [&single[..], &[text("B", 1), special(sep.0, 1)]].concat();
    let of = |(token, id): (&str, usize)| json!({"id": token, "ids": [id], "tokens": [token]});
    Ok(json!({
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true,
            "lowercase": settings.switch("do_lower_case").unwrap_or(true),
            "handle_chinese_chars": settings.switch("tokenize_chinese_chars").unwrap_or(true),
            "strip_accents": settings.switch("strip_accents"),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing", "single": single, "pair": pair,
            "special_tokens": {cls.0: of(cls), sep.0: of(sep)},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece", "vocab": vocabulary, "unk_token": role(settings, "unk_token", path, id)?.0,
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        },
    }))
}

/// `framed`: `roberta`'s `<s>` and `</s>` stand around every text.
fn byte_level(dir: &ModelDir, path: &Path, settings: &Settings, framed: bool) -> Result<Value, Error> {
    let vocabulary = dir.json("vocab.json")?;
    let Some(file) = dir.file("merges.txt") else {
        return Err(Error::file(
            &dir.path,
            "has vocab.json but no merges.txt beside it: download it as well",
        ));
    };
    let text = std::fs::read_to_string(&file).map_err(Error::io(&file))?;
    let pair = |(at, line): (usize, &str)| {
        let pair = line.split_once(' ').filter(|(_, second)| !second.contains(' '));
        pair.map(|(first, second)| [first.to_owned(), second.to_owned()]).ok_or_else(|| {
            Error::file(&file, format!("line {}: `{line}` is no pair of tokens with a space between", at + 1))
        })
    };
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with("#version"));
    let merges = lines.map(pair).collect::<Result<Vec<_>, _>>()?;
    let id = |token: &str| vocabulary[token].as_u64().and_then(|id| usize::try_from(id).ok());
    let prefix = settings.switch("add_prefix_space").unwrap_or(false);
    let byte_level = |trims: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trims, "use_regex": true});
    let mut json = json!({
        "pre_tokenizer": byte_level(true),
        "post_processor": byte_level(false),
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "vocab": &vocabulary, "merges": merges, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": false,
        },
    });
    if framed {
        let token = |name| role(settings, name, path, id);
        json["post_processor"] = json!({
            "type": "RobertaProcessing", "sep": token("sep_token")?, "cls": token("cls_token")?, "trim_offsets": true,
            "add_prefix_space": prefix,
        });
    }
    Ok(json)
}

/// The token that has a role and its id, which the vocabulary must have.
fn role<'a>(
    settings: &'a Settings,
    role: &str,
    path: &Path,
    id: impl Fn(&str) -> Option<usize>,
) -> Result<(&'a str, usize), Error> {
    let token = settings.special.get(role).map_or("", String::as_str);
    let id = id(token).ok_or_else(|| {
        Error::file(
            path,
            format!("has no `{token}`, the {role} of this model: not its vocabulary, or damaged"),
        )
    })?;
    Ok((token, id))
}
