//! `{"tokens","tags"}`: a label for each word of a text.

use serde_json::Value;

use super::{Encoder, Example, Fields, Format, kind, list};
use crate::data::example::Learn;
use crate::data::{Words, labels};

pub(super) const FORMAT: Format = Format {
    name: "tag",
    task: "tag",
    shape: r#"{"tokens","tags"}"#,
    keys: &[&["tokens", "tags"]],
    build: Some(build),
};

/// Words side by side with a space between, the first piece of each labelled.
fn build(fields: &Fields, encoder: &Encoder<'_>) -> Result<Example, String> {
    let known = encoder.labels.as_deref().ok_or("there are no labels to learn: give --task tag")?;
    let (words, tags) = tokens_and_tags(fields)?;
    let words: Vec<&str> = words.iter().enumerate().map(word).collect::<Result<_, _>>()?;
    if words.is_empty() {
        return Err("`tokens` is an empty list, and a tag needs a word".into());
    }
    let Words { input, pieces } =
        Words::new(encoder.tokenizer, &words, encoder.max_length).map_err(|error| error.to_string())?;
    let mut labels = Vec::with_capacity(pieces.len());
    for (word, piece) in pieces {
        let name = labels::name(&tags[word]).map_err(|what| format!("tags[{word}] {what}"))?;
        labels.push((piece, labels::id(known, &name)?));
    }
    Ok(Example::labelled_input(input, Learn::Tags(labels)))
}

/// The words of a row and as many tags.
pub(in crate::data) fn tokens_and_tags(fields: &Fields) -> Result<(Vec<Value>, Vec<Value>), String> {
    let (words, tags) = (list(fields, "tokens")?, list(fields, "tags")?);
    if words.len() != tags.len() {
        return Err(format!("{} `tokens` and {} `tags`, expected one tag a token", words.len(), tags.len()));
    }
    Ok((words, tags))
}

fn word((at, value): (usize, &Value)) -> Result<&str, String> {
    match value {
        Value::String(word) if word.trim().is_empty() => Err(format!("tokens[{at}] is empty")),
        Value::String(word) => Ok(word),
        other => Err(format!("tokens[{at}] is {}, expected a text", kind(other))),
    }
}
