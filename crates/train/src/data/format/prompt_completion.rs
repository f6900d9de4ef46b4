//! `{"prompt","completion"}`: the completion and its EOS are learned.

use super::{Encoder, Example, Fields, Format, text};

pub(super) const FORMAT: Format = Format {
    name: "prompt-completion",
    task: "causal-lm",
    shape: r#"{"prompt","completion"}"#,
    keys: &[&["prompt", "completion"]],
    build: Some(build),
};

fn build(fields: &Fields, encoder: &Encoder<'_>) -> Result<Example, String> {
    let (prompt, completion) = (text(fields, "prompt")?, text(fields, "completion")?);
    encoder.completion(prompt, completion)
}
