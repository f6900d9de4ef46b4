//! `{"instruction","input","output"}`: Stanford Alpaca's rows with its prompt text; the output and its EOS are learned.
//!
//! The prompt is Alpaca's also where the model has a chat template: rows that should go through the template are written
//! as messages.

use serde_json::Value;

use super::{Encoder, Example, Fields, Format, kind, text};

pub(super) const FORMAT: Format = Format {
    name: "alpaca",
    task: "causal-lm",
    shape: r#"{"instruction","input","output"}"#,
    keys: &[&["instruction", "output"]],
    build: Some(build),
};

/// The prompt of an Alpaca row, with the line break after `### Response:` that tloen/alpaca-lora and torchtune have. `input`
/// may be empty.
pub fn alpaca_prompt(instruction: &str, input: &str) -> String {
    if input.is_empty() {
        return format!(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.\
             \n\n### Instruction:\n{instruction}\n\n### Response:\n"
        );
    }
    format!(
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a \
         response that appropriately completes the request.\
         \n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    )
}

fn build(fields: &Fields, encoder: &Encoder<'_>) -> Result<Example, String> {
    let input = match fields.get("input") {
        None | Some(Value::Null) => "",
        Some(Value::String(input)) => input,
        Some(other) => {
            return Err(format!("`input` is {}, expected a text or nothing", kind(other)));
        }
    };
    let prompt = alpaca_prompt(text(fields, "instruction")?, input);
    encoder.completion(&prompt, text(fields, "output")?)
}
