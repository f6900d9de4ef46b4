//! What the keys of a row mean: the table of row formats, and which of them a row has.
//!
//! A format is a file beside this one with a [`Format`] constant, and a line in [`FORMATS`].

mod alpaca;
mod classify;
mod messages;
mod planned;
mod prompt_completion;
mod sharegpt;
mod tag;
mod text;

use serde_json::Value;

use super::example::Encoder;
use super::{Example, nearest};
use crate::Error;

pub use alpaca::alpaca_prompt;
pub(super) use tag::tokens_and_tags;

/// A row: a JSON object.
pub(super) type Fields = serde_json::Map<String, Value>;

/// Makes an example of a row, or says what is wrong with it.
pub(super) type Build = fn(&Fields, &Encoder<'_>) -> Result<Example, String>;

/// A way to write rows.
pub struct Format {
    /// What `--format` calls it.
    pub name: &'static str,
    /// The task that it is for, as `--task` calls it.
    pub task: &'static str,
    /// How a row looks.
    pub shape: &'static str,
    /// The keys that a row must have: all those of one of these lists.
    pub(super) keys: &'static [&'static [&'static str]],
    /// None while its task is not built.
    pub(super) build: Option<Build>,
}

/// Every format, those with more telling keys first: the first that a row has all keys of is the row's.
pub static FORMATS: &[Format] = &[
    planned::PREFERENCE,
    classify::FORMAT,
    tag::FORMAT,
    sharegpt::FORMAT,
    messages::FORMAT,
    alpaca::FORMAT,
    prompt_completion::FORMAT,
    text::FORMAT,
];

impl std::fmt::Debug for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Format({})", self.name)
    }
}

impl Format {
    /// Whether `fields` has the keys of a row of this format.
    pub(super) fn has_keys(&self, fields: &Fields) -> bool {
        self.keys.iter().any(|keys| keys.iter().all(|key| fields.contains_key(*key)))
    }

    /// An error text if rows of this format cannot be trained on yet.
    pub(super) fn usable(&self) -> Result<(), String> {
        if self.build.is_some() {
            return Ok(());
        }
        let learnable: Vec<_> =
            FORMATS.iter().filter(|format| format.build.is_some()).map(|f| f.name).collect();
        Err(format!(
            "rows are {} ({}), which come with --task {}; that task is not built yet. To read the same rows as \
             something else, name it: --format {}",
            self.name,
            self.shape,
            self.task,
            learnable.join(", ")
        ))
    }

    /// An error text if rows of this format are not one text and another that is written from it.
    pub(super) fn writable(&self) -> Result<(), String> {
        if ["prompt-completion", "alpaca"].contains(&self.name) {
            return Ok(());
        }
        Err(format!(
            "rows are {} ({}), but the model is an encoder-decoder, which writes one text from another: give rows with \
             `prompt` and `completion`",
            self.name, self.shape
        ))
    }

    /// The example of a row, not cut.
    pub(super) fn build(&self, fields: &Fields, encoder: &Encoder<'_>) -> Result<Example, String> {
        if !self.has_keys(fields) {
            return Err(nearest::missing(self, fields));
        }
        match self.build {
            Some(build) => build(fields, encoder),
            None => Err(self.usable().err().unwrap_or_default()),
        }
    }
}

/// The format that `--format` names.
pub(super) fn by_name(name: &str) -> Result<&'static Format, Error> {
    let wanted = name.trim().to_ascii_lowercase().replace('_', "-");
    FORMATS.iter().find(|format| format.name == wanted).ok_or_else(|| {
        let names: Vec<_> =
            FORMATS.iter().filter(|format| format.usable().is_ok()).map(|format| format.name).collect();
        let near = nearest::closest(&wanted, &names)
            .map(|near| format!(" (did you mean {near}?)"))
            .unwrap_or_default();
        Error::data(format!("--format {name} is not a row format{near}: there are {}", names.join(", ")))
    })
}

/// The format of a row by its keys, of a format for `task` if one is given.
pub(super) fn detect(fields: &Fields, task: Option<&str>) -> Option<&'static Format> {
    let suits = |format: &&Format| task.is_none_or(|task| format.task == task);
    FORMATS.iter().filter(suits).find(|format| format.has_keys(fields))
}

/// The text of `key`, which may be empty. A number or truth value, as a CSV reader would not tell from text, is not one.
pub(super) fn text<'a>(fields: &'a Fields, key: &str) -> Result<&'a str, String> {
    match fields.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("`{key}` is {}, expected a text", kind(other))),
        None => Err(format!("`{key}` is missing")),
    }
}

/// The list of `key`; a text is read as JSON, since a CSV cell can hold nothing else.
pub(super) fn list(fields: &Fields, key: &str) -> Result<Vec<Value>, String> {
    match fields.get(key) {
        Some(Value::Array(list)) => Ok(list.clone()),
        Some(Value::String(text)) => serde_json::from_str(text)
            .map_err(|error| format!("`{key}` is a text that is not a JSON list ({error}), expected a list")),
        Some(other) => Err(format!("`{key}` is {}, expected a list", kind(other))),
        None => Err(format!("`{key}` is missing")),
    }
}

/// The key of the object that stands for a number of a file that JSON has none for.
pub(super) const NOT_FINITE: &str = "not finite";

/// What a value is, with its article.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(fields) if fields.contains_key(NOT_FINITE) => "NaN or infinite",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::data::sample;

    fn build(name: &str, row: &Value) -> Result<Example, String> {
        let tokenizer = sample::chat(sample::CHATML);
        let encoder = Encoder::new(&tokenizer).unwrap();
        by_name(name).unwrap().build(row.as_object().unwrap(), &encoder)
    }

    fn error(name: &str, row: &Value) -> String {
        build(name, row).unwrap_err()
    }

    #[test]
    fn keys_tell_the_format() {
        let name = |row: Value| detect(row.as_object().unwrap(), None).map(|format| format.name);
        assert_eq!(name(json!({"text": 1, "id": 2})), Some("text"));
        assert_eq!(name(json!({"prompt": 1, "completion": 2, "references": 3})), Some("prompt-completion"));
        assert_eq!(name(json!({"messages": 1, "tools": 2})), Some("messages"));
        assert_eq!(name(json!({"instruction": 1, "output": 2})), Some("alpaca"));
        assert_eq!(name(json!({"conversations": 1, "system": 2})), Some("sharegpt"));
        assert_eq!(name(json!({"text": 1, "label": 2})), Some("classify"));
        assert_eq!(name(json!({"text_a": 1, "text_b": 2, "label": 3})), Some("classify"));
        assert_eq!(name(json!({"tokens": 1, "tags": 2})), Some("tag"));
        assert_eq!(name(json!({"prompt": 1, "chosen": 2, "rejected": 3})), Some("preference"));
        assert_eq!(name(json!({"question": 1, "answer": 2})), None);
    }

    #[test]
    fn names_are_forgiving_and_wrong_ones_meet_the_nearest() {
        assert_eq!(by_name("Prompt_Completion").unwrap().name, "prompt-completion");
        let error = by_name("sharegtp").unwrap_err().to_string();
        assert!(error.contains("did you mean sharegpt?") && error.contains("alpaca"), "{error}");
    }

    #[test]
    fn tasks_that_are_not_built_say_so() {
        let error = by_name("preference").unwrap().usable().unwrap_err();
        assert!(error.contains("--task preference") && error.contains("not built yet"), "{error}");
        assert!(
            error.contains("--format classify, tag, sharegpt, messages, alpaca, prompt-completion, text"),
            "{error}"
        );
    }

    #[test]
    fn alpaca_is_its_standard_prompt_and_then_the_output() {
        let row = json!({"instruction": "Add.", "input": "1 2", "output": "3"});
        let prompt = alpaca_prompt("Add.", "1 2");
        assert!(prompt.starts_with(
            "Below is an instruction that describes a task, paired with an input that provides"
        ));
        assert!(
            prompt.ends_with(" request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n")
        );
        let expected = build("prompt-completion", &json!({"prompt": prompt, "completion": "3"})).unwrap();
        assert_eq!(build("alpaca", &row).unwrap(), expected);
        let bare = json!({"instruction": "Add.", "output": "3"});
        assert_eq!(
            build("alpaca", &bare),
            build("alpaca", &json!({"instruction": "Add.", "input": "", "output": "3"}))
        );
        assert!(
            alpaca_prompt("Add.", "").ends_with(" request.\n\n### Instruction:\nAdd.\n\n### Response:\n")
        );
    }

    #[test]
    fn sharegpt_is_messages_by_other_names() {
        let shared = json!({"system": "s", "conversations": [
            {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"role": "user", "content": "c"}]});
        let messages = json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]});
        assert_eq!(build("sharegpt", &shared), build("messages", &messages));
        let unknown = error("sharegpt", &json!({"conversations": [{"from": "alien", "value": "a"}]}));
        assert!(unknown.contains("conversations[0] is from `alien`, expected human, gpt"), "{unknown}");
        let keys = error("sharegpt", &json!({"conversations": [{"speaker": "human", "value": "a"}]}));
        assert!(keys.contains("conversations[0] has the keys speaker, value"), "{keys}");
    }

    #[test]
    fn messages_may_stand_in_a_text_or_be_parts() {
        let list = json!([{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]);
        let plain = build("messages", &json!({"messages": list.clone()})).unwrap();
        assert_eq!(build("messages", &json!({"messages": list.to_string()})), Ok(plain.clone()));
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let parts = json!({"messages": [{"role": "user", "content": parts}, list[1]]});
        assert_eq!(build("messages", &parts), Ok(plain));
    }

    #[test]
    fn tools_and_the_arguments_of_calls_reach_the_template_as_objects() {
        let template = "{% for t in tools %}{{ t.name }};{% endfor %}{% for m in messages %}\
            {% for c in m.tool_calls %}{{ c.function.arguments.up }}{% endfor %}{% endfor %}";
        let tokenizer = sample::chat(template);
        let encoder = Encoder::new(&tokenizer).unwrap();
        let call = json!([{"function": {"name": "fly", "arguments": "{\"up\": 7}"}}]);
        let row = json!({"tools": [{"name": "fly"}], "messages": [
            {"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": call}]});
        let example = by_name("messages").unwrap().build(row.as_object().unwrap(), &encoder).unwrap();
        assert_eq!(tokenizer.decode(&example.tokens).unwrap(), "fly;7");
        assert_eq!(example.edges(), [(4, 5)]);
    }

    #[test]
    fn values_of_a_wrong_kind_are_named() {
        assert_eq!(error("text", &json!({"text": 3})), "`text` is a number, expected a text");
        assert!(
            error("prompt-completion", &json!({"prompt": [], "completion": ""}))
                .contains("`prompt` is a list")
        );
        assert!(
            error("alpaca", &json!({"instruction": "", "input": {}, "output": ""}))
                .contains("`input` is an object")
        );
        assert!(error("messages", &json!({"messages": {}})).contains("an object, expected a list"));
        assert!(error("messages", &json!({"messages": []})).contains("an empty list"));
        assert!(error("messages", &json!({"messages": "hi"})).contains("not a JSON list"));
        assert!(error("messages", &json!({"messages": ["hi"]})).contains("messages[0] is a text"));
        assert!(
            error("messages", &json!({"messages": [{"from": "user"}]})).contains("messages[0] has no `role`")
        );
        assert!(error("messages", &json!({"messages": [{"role": "user"}]})).contains("neither `content`"));
        let missing = error("prompt-completion", &json!({"prompt": "a", "answer": "b"}));
        assert!(
            missing.contains("`completion` is missing") && missing.contains("`answer` to `completion`"),
            "{missing}"
        );
    }
}
