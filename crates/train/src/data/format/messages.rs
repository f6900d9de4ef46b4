//! `{"messages":[{"role","content"}…]}` with `tools` if there are any: the assistant's messages are learned.

use serde_json::{Map, Value};

use super::{Encoder, Example, Fields, Format, kind, list};
use crate::data::chat::Chat;

pub(super) const FORMAT: Format = Format {
    name: "messages",
    task: "causal-lm",
    shape: r#"{"messages":[{"role","content"}…]}"#,
    keys: &[&["messages"]],
    build: Some(build),
};

fn build(fields: &Fields, encoder: &Encoder<'_>) -> Result<Example, String> {
    let messages = list(fields, "messages")?;
    if messages.is_empty() {
        return Err("`messages` is an empty list".to_owned());
    }
    let messages = messages
        .into_iter()
        .enumerate()
        .map(|(at, message)| checked(at, message))
        .collect::<Result<_, _>>()?;
    encoder.chat(&Chat { messages, tools: tools(fields)? })
}

/// The tool schemas of a row, which may stand in a text as JSON.
pub(super) fn tools(fields: &Fields) -> Result<Option<Value>, String> {
    match fields.get("tools") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(_) => {
            Ok(Some(Value::Array(list(fields, "tools")?)).filter(|tools| tools != &Value::Array(Vec::new())))
        }
    }
}

/// A message with a role, its content as one text, the arguments of its tool calls as objects.
fn checked(at: usize, message: Value) -> Result<Value, String> {
    let Value::Object(mut message) = message else {
        return Err(format!("messages[{at}] is {}, expected {{\"role\",\"content\"}}", kind(&message)));
    };
    if !matches!(message.get("role"), Some(Value::String(_))) {
        let keys: Vec<_> = message.keys().map(String::as_str).collect();
        return Err(format!("messages[{at}] has no `role` (its keys: {})", keys.join(", ")));
    }
    match message.get("content") {
        Some(Value::Array(parts)) => {
            let text = joined(at, parts)?;
            message.insert("content".to_owned(), Value::String(text));
        }
        None | Some(Value::Null) if !message.contains_key("tool_calls") => {
            return Err(format!("messages[{at}] has neither `content` nor `tool_calls`"));
        }
        None | Some(Value::String(_) | Value::Null) => {}
        Some(other) => {
            return Err(format!("messages[{at}].content is {}, expected a text", kind(other)));
        }
    }
    if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
        calls.iter_mut().for_each(open_arguments);
    }
    Ok(Value::Object(message))
}

/// The text of a content that is a list of parts.
fn joined(at: usize, parts: &[Value]) -> Result<String, String> {
    let text = |part: &Value| part.get("text").and_then(Value::as_str).map(str::to_owned);
    parts
        .iter()
        .map(|part| {
            text(part).ok_or_else(|| {
                format!("messages[{at}].content has a part that is no text; only text is learned")
            })
        })
        .collect()
}

/// OpenAI writes a call's arguments as a text that holds JSON; templates expect, as transformers documents, the object.
fn open_arguments(call: &mut Value) {
    let function: Option<&mut Map<String, Value>> = match call.get_mut("function") {
        Some(Value::Object(function)) => Some(function),
        _ => call.as_object_mut(),
    };
    let Some(arguments) = function.and_then(|function| function.get_mut("arguments")) else {
        return;
    };
    let object = arguments.as_str().and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
    if let Some(object) = object {
        *arguments = Value::Object(object);
    }
}
