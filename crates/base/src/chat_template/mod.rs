//! Chat templates: the Jinja text that turns messages into the prompt a model was trained on.
//!
//! The environment is that of `_compile_jinja_template` in transformers 5 (`utils/chat_template_utils.py`): trimmed blocks,
//! loop controls, `raise_exception`, `strftime_now`, a `tojson` that prints as Python's `json.dumps`, `generation` blocks,
//! the methods of Python's strings and dictionaries and `%` behind a literal. Turning the text into ids is the tokenizer's.

mod generation;
mod json;
mod python;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value};

use crate::Error;

/// Names under which a message may carry its reasoning; the first is what templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The name of the one template in its environment.
const NAME: &str = "chat";

/// A compiled chat template with the special tokens it may print.
pub struct ChatTemplate {
    source: String,
    plain: Compiled,
    tools: Option<Compiled>,
    special: BTreeMap<String, String>,
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text, special tokens spelt out.
    pub text: String,
    /// Byte ranges of `text` inside `{% generation %}` blocks, in order and none of them empty; `None` if the template has no
    /// such block.
    pub generated: Option<Vec<Range<usize>>>,
}

/// One template in its environment, or why it does not compile: only who renders it needs to hear of that.
struct Compiled {
    environment: Result<Environment<'static>, String>,
    has_generation: bool,
}

impl ChatTemplate {
    /// A template from its source, another one for conversations with tools if there is one, and the special tokens by role
    /// (`bos_token`, …) that both may print.
    pub fn new(source: &str, with_tools: Option<&str>, special: BTreeMap<String, String>) -> Self {
        Self {
            source: source.to_string(),
            plain: Compiled::new(source),
            tools: with_tools.map(Compiled::new),
            special,
        }
    }

    /// The Jinja text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders `messages` (a JSON array of `{role, content, …}`), with `tools` if there are any, as
    /// `apply_chat_template(tokenize=False)` in transformers does.
    pub fn render(
        &self,
        messages: &serde_json::Value,
        tools: Option<&serde_json::Value>,
        add_generation_prompt: bool,
    ) -> Result<Rendered, Error> {
        let template = self.tools.as_ref().filter(|_| tools.is_some()).unwrap_or(&self.plain);
        let environment =
            template.environment.as_ref().map_err(|what| Error::Template { what: what.clone() })?;
        if template.has_generation {
            generation::check_free_of_marks(messages, tools)?;
        }
        let special = self.special.iter().map(|(role, token)| (role.clone(), Value::from(token.as_str())));
        let context = special.chain([
            ("messages".to_string(), conversation(messages)?),
            ("tools".to_string(), tools.map_or(Value::from(()), value)),
            ("documents".to_string(), Value::from(())),
            ("add_generation_prompt".to_string(), Value::from(add_generation_prompt)),
        ]);
        let text = environment
            .get_template(NAME)
            .and_then(|template| template.render(Value::from_pairs(context)))
            .map_err(|error| Error::Template { what: explain(&error) })?;
        if template.has_generation {
            return generation::split(&text);
        }
        Ok(Rendered { text, generated: None })
    }
}

impl Compiled {
    fn new(source: &str) -> Self {
        let (source, has_generation) = generation::rewrite(source);
        let mut environment = environment();
        let added = environment.add_template_owned(NAME, python::rewrite(&source));
        Self { environment: added.map(|()| environment).map_err(|error| explain(&error)), has_generation }
    }
}

/// The environment of `_compile_jinja_template`.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    // So that an error about an undefined value names it.
    environment.set_debug(true);
    environment.set_unknown_method_callback(python::method);
    environment.add_filter(python::PERCENT, python::percent);
    environment.add_filter("wordcount", python::wordcount);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter(generation::FILTER, generation::mark);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment
}

/// In Python a string is a sequence, and so is whatever else has a length and can be indexed.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map)
}

/// In Python `None` cannot be iterated over; for the engine it is empty.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// What a template says about messages that it refuses.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(message)))
}

/// `datetime.now().strftime(format)`: local time.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(format)).map_err(|_| {
        minijinja::Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now cannot print the format {format:?}"),
        )
    })?;
    Ok(text)
}

/// The messages as the template sees them, reasoning under the name that it reads (`_alias_reasoning_fields`).
fn conversation(messages: &serde_json::Value) -> Result<Value, Error> {
    let refuse =
        |what: String| Error::Template { what: format!("messages must be a list of objects, found {what}") };
    let list = messages.as_array().ok_or_else(|| refuse(messages.to_string()))?;
    let message = |message: &serde_json::Value| {
        let object = message.as_object().ok_or_else(|| refuse(format!("{message} in it")))?;
        let reasoning = REASONING.iter().find_map(|name| object.get(*name).filter(|value| !value.is_null()));
        let Some(reasoning) = reasoning else { return Ok(value(message)) };
        let mut aliased = serde_json::Map::new();
        aliased.insert("thinking".to_string(), reasoning.clone());
        aliased.extend(object.iter().map(|(key, value)| (key.clone(), value.clone())));
        aliased.insert("reasoning_content".to_string(), reasoning.clone());
        Ok(value(&serde_json::Value::Object(aliased)))
    };
    list.iter().map(message).collect::<Result<Vec<_>, Error>>().map(Value::from)
}

/// JSON as a template value; objects keep the order of their keys.
fn value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(flag) => Value::from(*flag),
        serde_json::Value::Number(number) => number
            .as_i64()
            .map(Value::from)
            .or_else(|| number.as_u64().map(Value::from))
            .unwrap_or_else(|| Value::from(number.as_f64().unwrap_or(f64::NAN))),
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => Value::from(items.iter().map(value).collect::<Vec<_>>()),
        serde_json::Value::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(key, field)| (key.as_str(), value(field))))
        }
    }
}

/// An error with its line, and the variable, filter or function it is about.
fn explain(error: &minijinja::Error) -> String {
    if let Some(raised) = std::error::Error::source(error).and_then(|source| source.downcast_ref::<Raised>())
    {
        return format!("it refuses these messages: {raised}");
    }
    let line = error.line().map_or(String::new(), |line| format!("line {line}: "));
    let detail = error.detail().map_or(String::new(), |detail| format!(": {detail}"));
    format!("{line}{}{detail}", error.kind())
}
