//! What stands around `tokenizer.json`: the special tokens by their role, the post-processor's switches, the chat template.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{ChatTemplate, Error, ModelDir};

/// The roles of special tokens, named as in `tokenizer_config.json` and as chat templates see them.
pub(super) const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// `tokenizer_config.json` with `special_tokens_map.json` behind it.
pub(super) struct Settings {
    config: Value,
    /// Token text by role, for the roles that are set.
    pub(super) special: BTreeMap<&'static str, String>,
}

impl Settings {
    /// Reads both files; either may be missing. What the first leaves unset, the second may set.
    pub(super) fn read(dir: &ModelDir) -> Result<Self, Error> {
        let config = dir.json("tokenizer_config.json")?;
        let map = dir.json("special_tokens_map.json")?;
        let text = |role: &str| token_text(&config[role]).or_else(|| token_text(&map[role]));
        let special = ROLES.iter().filter_map(|role| Some((*role, text(role)?))).collect();
        Ok(Self { config, special })
    }

    /// A switch of `tokenizer_config.json`; none where it is not set, or null.
    pub(super) fn switch(&self, name: &str) -> Option<bool> {
        self.config[name].as_bool()
    }

    /// BOS and EOS to put around every text, if the configuration decides it rather than `tokenizer.json`.
    ///
    /// As `TokenizersBackend.__init__` of transformers 5: naming either of `add_bos_token` and `add_eos_token` replaces the
    /// file's post-processor by one that adds exactly these; a token that is not set is not added.
    pub(super) fn wrapping(&self) -> Option<(Option<&String>, Option<&String>)> {
        let named = |name: &str| self.config.get(name).map(|value| value.as_bool().unwrap_or(false));
        let (bos, eos) = (named("add_bos_token"), named("add_eos_token"));
        if bos.is_none() && eos.is_none() {
            return None;
        }
        let token =
            |on: Option<bool>, role: &str| if on == Some(true) { self.special.get(role) } else { None };
        Some((token(bos, "bos_token"), token(eos, "eos_token")))
    }

    /// The chat template: `chat_template.jinja` before `chat_template` of the configuration, which is a text or a list of
    /// named ones.
    pub(super) fn chat_template(&self, dir: &ModelDir) -> Result<Option<ChatTemplate>, Error> {
        if let Some(path) = dir.file("chat_template.jinja") {
            let source = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
            return Ok(Some(self.template(&source, None)));
        }
        match &self.config["chat_template"] {
            Value::Null => Ok(None),
            Value::String(source) => Ok(Some(self.template(source, None))),
            Value::Array(list) => {
                let named = |name: &str| {
                    let entry = list.iter().find(|entry| entry["name"] == name)?;
                    entry["template"].as_str()
                };
                let tools = named("tool_use");
                let source = named("default").or(tools);
                source.map(|source| Some(self.template(source, tools))).ok_or_else(|| {
                    let what = "`chat_template` is a list without an entry named \"default\"";
                    Error::file(dir.path.join("tokenizer_config.json"), what)
                })
            }
            other => {
                let what =
                    format!("`chat_template` is {other}: expected a text or a list of {{name, template}}");
                Err(Error::file(dir.path.join("tokenizer_config.json"), what))
            }
        }
    }

    fn template(&self, source: &str, tools: Option<&str>) -> ChatTemplate {
        let special = self.special.iter().map(|(role, token)| ((*role).to_string(), token.clone())).collect();
        ChatTemplate::new(source, tools, special)
    }
}

/// A special token is written as its text or as `{"content": text, …}`.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_string)
}
