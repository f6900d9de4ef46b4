//! `{"conversations":[{"from","value"}…]}`: `ShareGPT`'s messages, with `system` and `tools` beside them if there are any.

use serde_json::{Value, json};

use super::messages::tools;
use super::{Encoder, Example, Fields, Format, kind, list};
use crate::data::chat::Chat;

pub(super) const FORMAT: Format = Format {
    name: "sharegpt",
    task: "causal-lm",
    shape: r#"{"conversations":[{"from","value"}…]}"#,
    keys: &[&["conversations"]],
    build: Some(build),
};

fn build(fields: &Fields, encoder: &Encoder<'_>) -> Result<Example, String> {
    let turns = list(fields, "conversations")?;
    if turns.is_empty() {
        return Err("`conversations` is an empty list".to_owned());
    }
    let system = fields.get("system").and_then(Value::as_str).filter(|system| !system.is_empty());
    let mut messages: Vec<Value> =
        system.map(|text| json!({"role": "system", "content": text})).into_iter().collect();
    for (at, turn) in turns.iter().enumerate() {
        messages.push(message(at, turn)?);
    }
    encoder.chat(&Chat { messages, tools: tools(fields)? })
}

fn message(at: usize, turn: &Value) -> Result<Value, String> {
    let one_of = |keys: [&str; 2]| keys.into_iter().find_map(|key| turn.get(key)).and_then(Value::as_str);
    let (Some(from), Some(value)) = (one_of(["from", "role"]), one_of(["value", "content"])) else {
        let found = match turn.as_object() {
            Some(turn) => {
                format!("has the keys {}", turn.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
            }
            None => format!("is {}", kind(turn)),
        };
        return Err(format!("conversations[{at}] {found}, expected the texts {{\"from\",\"value\"}}"));
    };
    let role = match from {
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatgpt" | "bot" | "model" => "assistant",
        "system" => "system",
        "tool" | "observation" | "function_response" => "tool",
        "function_call" => return call(at, value),
        other => {
            return Err(format!(
                "conversations[{at}] is from `{other}`, expected human, gpt, system, function_call or observation"
            ));
        }
    };
    Ok(json!({"role": role, "content": value}))
}

/// A `function_call` turn holds `{"name","arguments"}`, or a list of them, as JSON.
fn call(at: usize, value: &str) -> Result<Value, String> {
    let calls = match serde_json::from_str(value) {
        Ok(Value::Array(calls)) => calls,
        Ok(call @ Value::Object(_)) => vec![call],
        _ => {
            return Err(format!(
                "conversations[{at}] is a function_call, but its value is not JSON {{\"name\",\"arguments\"}}"
            ));
        }
    };
    let calls: Vec<_> = calls.into_iter().map(|call| json!({"type": "function", "function": call})).collect();
    Ok(json!({"role": "assistant", "content": "", "tool_calls": calls}))
}
