//! `{"text","label"}` and `{"text_a","text_b","label"}`: a label, or a number, of a text or of a pair.

use taper_base::Labels;

use super::{Encoder, Example, Fields, Format, text};
use crate::data::example::Learn;
use crate::data::labels;

pub(super) const FORMAT: Format = Format {
    name: "classify",
    task: "classify",
    shape: r#"{"text","label"} or {"text_a","text_b","label"}"#,
    keys: &[&["text", "label"], &["text_a", "text_b", "label"]],
    build: Some(build),
};

fn build(fields: &Fields, encoder: &Encoder<'_>) -> Result<Example, String> {
    let known = encoder.labels.as_deref().ok_or("there are no labels to learn: give --task classify")?;
    let label =
        labels::name(fields.get("label").unwrap_or_default()).map_err(|what| format!("`label` {what}"))?;
    let learn = match known {
        Labels::Number => Learn::Number(
            label
                .parse()
                .map_err(|_| format!("`label` is `{label}`, expected a number as in the other rows"))?,
        ),
        Labels::Names(_) => Learn::Class(labels::id(known, &label)?),
    };
    let (first, second) = texts(fields)?;
    let example = Example::labelled_input(encoder.input(first, second)?, learn);
    let texts = || std::iter::once(first).chain(second).map(str::to_owned).collect();
    Ok(Example { texts: if encoder.texts { texts() } else { Vec::new() }, ..example })
}

/// The text or the pair of a row.
fn texts(fields: &Fields) -> Result<(&str, Option<&str>), String> {
    let full = |key: &str| match text(fields, key)? {
        blank if blank.trim().is_empty() => Err(format!("`{key}` is empty, and a label needs a text")),
        full => Ok(full),
    };
    if fields.contains_key("text") {
        return Ok((full("text")?, None));
    }
    Ok((full("text_a")?, Some(full("text_b")?)))
}
