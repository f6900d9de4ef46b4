//! `{"text"}`: free text, all of it learned.

use super::{Encoder, Example, Fields, Format, text};

pub(super) const FORMAT: Format =
    Format { name: "text", task: "causal-lm", shape: r#"{"text"}"#, keys: &[&["text"]], build: Some(build) };

/// The tokenizer's own ids; every token but the first is a label.
fn build(fields: &Fields, encoder: &Encoder<'_>) -> Result<Example, String> {
    encoder.text(text(fields, "text")?)
}
