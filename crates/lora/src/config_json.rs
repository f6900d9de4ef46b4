//! `adapter_config.json`, read and written.
//!
//! Reading takes every file that PEFT writes: a field that would change the result and is not honoured is refused by name,
//! one that PEFT does not know becomes a warning. Writing keeps to the classic fields and those that differ from their
//! default, so that older PEFT, vLLM and llama.cpp read the file too.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::{Error, Init, LoraConfig, Names};

/// File name in an adapter folder.
pub(crate) const CONFIG_FILE: &str = "adapter_config.json";

/// Fields that change what an adapter computes in a way that is not implemented, with the reason.
const REFUSED: [(&str, &str); 11] = [
    ("alora_invocation_tokens", "an activated adapter works on part of a text only"),
    ("arrow_config", "it routes tokens among several adapters"),
    ("kasa_config", "it truncates the base's weights"),
    ("layer_replication", "it stacks layers that the base does not have"),
    ("megatron_config", "it splits layers over processes"),
    ("monteclora_config", "it adds sampled noise to the factors"),
    ("target_parameters", "it adapts fused expert weights"),
    ("trainable_token_indices", "it trains single rows of the embedding"),
    ("use_bdlora", "its factors are block-diagonal"),
    ("use_qalora", "its factors are grouped for GPTQ"),
    ("velora_config", "it compresses activations in backward"),
];

/// Fields that PEFT writes and that change nothing here: how the adapter was started, or which library wrote it.
const IGNORED: [&str; 10] = [
    "auto_mapping",
    "corda_config",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
];

/// Initialisations that change the base's weights: the folder then holds the difference to another base.
const CHANGE_BASE: [&str; 5] = ["pissa", "olora", "loftq", "corda", "lora_ga"];

impl LoraConfig {
    /// Reads `adapter_config.json` in `dir`; with it, warnings about fields that PEFT does not know.
    ///
    /// # Errors
    /// [`Error::File`] where the file is not what PEFT writes, or holds something that cannot be honoured.
    pub fn read(dir: &Path) -> Result<(Self, Vec<String>), Error> {
        let path = dir.join(CONFIG_FILE);
        if dir.is_dir() && !path.exists() {
            return Err(Error::file(dir, format!("holds no {CONFIG_FILE}: not an adapter folder of PEFT's")));
        }
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        Self::from_json(&text).map_err(|error| Error::file(path, error.to_string()))
    }

    /// Reads the text of an `adapter_config.json`.
    ///
    /// # Errors
    /// [`Error::Config`] where it is not what PEFT writes, or holds something that cannot be honoured.
    pub fn from_json(text: &str) -> Result<(Self, Vec<String>), Error> {
        let value: Value =
            serde_json::from_str(text).map_err(|source| Error::config(format!("not JSON: {source}")))?;
        let Value::Object(fields) = value else {
            return Err(Error::config("not a JSON object"));
        };
        let mut fields = Fields(fields);
        fields.refuse()?;
        let config = fields.config()?;
        config.validate()?;
        let warnings =
            fields.0.keys().map(|key| format!("{CONFIG_FILE}: unknown field `{key}` is ignored")).collect();
        Ok((config, warnings))
    }

    /// The text of `adapter_config.json`: keys sorted, the classic ones and those that differ from their default.
    pub fn to_json(&self) -> String {
        let mut fields = BTreeMap::from([
            ("base_model_name_or_path", json!(self.base_model_name_or_path)),
            ("bias", json!(self.bias)),
            ("fan_in_fan_out", json!(self.fan_in_fan_out)),
            ("inference_mode", json!(true)),
            ("init_lora_weights", init_value(&self.init_lora_weights)),
            ("lora_alpha", number(self.lora_alpha)),
            ("lora_dropout", json!(self.lora_dropout)),
            ("modules_to_save", some_list(&self.modules_to_save)),
            ("peft_type", json!("LORA")),
            ("r", json!(self.r)),
            ("revision", json!(self.revision)),
            ("target_modules", names_value(self.target_modules.as_ref())),
            ("task_type", json!(self.task_type)),
        ]);
        for (key, value) in self.uncommon() {
            let default = match value {
                Value::Object(ref map) => map.is_empty(),
                ref value => *value == Value::Null || *value == Value::Bool(false),
            };
            if !default {
                fields.insert(key, value);
            }
        }
        let fields: Map<String, Value> =
            fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        format!("{:#}", Value::Object(fields))
    }

    /// The fields that are written only when set.
    fn uncommon(&self) -> [(&'static str, Value); 9] {
        let ranks: BTreeMap<_, _> = self.rank_pattern.iter().map(|(key, r)| (key, json!(r))).collect();
        let alphas: BTreeMap<_, _> =
            self.alpha_pattern.iter().map(|(key, alpha)| (key, number(*alpha))).collect();
        [
            ("alpha_pattern", json!(alphas)),
            ("ensure_weight_tying", json!(self.ensure_weight_tying)),
            ("exclude_modules", names_value(self.exclude_modules.as_ref())),
            ("layers_pattern", some_list(&self.layers_pattern)),
            ("layers_to_transform", json!(self.layers_to_transform)),
            ("lora_bias", json!(self.lora_bias)),
            ("rank_pattern", json!(ranks)),
            ("use_dora", json!(self.use_dora)),
            ("use_rslora", json!(self.use_rslora)),
        ]
    }
}

/// The fields of a file that are not read yet.
struct Fields(Map<String, Value>);

impl Fields {
    fn refuse(&mut self) -> Result<(), Error> {
        match self.0.shift_remove("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => {}
            Some(kind) => return Err(Error::config(format!("`peft_type` is {kind}; taper knows \"LORA\""))),
            None => return Err(Error::config("has no `peft_type`: not an adapter_config.json of PEFT's")),
        }
        for (key, reason) in REFUSED {
            if let Some(value) = self.0.shift_remove(key).filter(|value| !is_off(value)) {
                return Err(Error::config(format!(
                    "`{key}` is {value}, which taper does not honour: {reason}"
                )));
            }
        }
        for key in IGNORED {
            self.0.shift_remove(key);
        }
        Ok(())
    }

    fn config(&mut self) -> Result<LoraConfig, Error> {
        let (default, names) = (LoraConfig::default(), "a string or a list of strings");
        Ok(LoraConfig {
            task_type: self.take("task_type", "a string")?,
            base_model_name_or_path: self.take("base_model_name_or_path", "a string")?,
            revision: self.take("revision", "a string")?,
            r: self.take("r", "a positive integer")?.unwrap_or(default.r),
            lora_alpha: self.take("lora_alpha", "a number")?.unwrap_or(default.lora_alpha),
            lora_dropout: self.take("lora_dropout", "a number")?.unwrap_or(default.lora_dropout),
            target_modules: self.take("target_modules", names)?,
            exclude_modules: self
                .take("exclude_modules", names)?
                .filter(|names| *names != Names::List(Vec::new())),
            bias: self.take("bias", "none, all or lora_only")?.unwrap_or_default(),
            fan_in_fan_out: self.flag("fan_in_fan_out")?,
            use_rslora: self.flag("use_rslora")?,
            use_dora: self.flag("use_dora")?,
            lora_bias: self.flag("lora_bias")?,
            modules_to_save: self.take("modules_to_save", "a list of strings")?.unwrap_or_default(),
            init_lora_weights: self.init()?,
            rank_pattern: self.pattern("rank_pattern", "positive integers")?,
            alpha_pattern: self.pattern("alpha_pattern", "numbers")?,
            layers_to_transform: self.one_or_more("layers_to_transform")?.filter(|layers| !layers.is_empty()),
            layers_pattern: self.one_or_more("layers_pattern")?.unwrap_or_default(),
            ensure_weight_tying: self.flag("ensure_weight_tying")?,
        })
    }

    /// Takes the field `key` out; none if it is absent or null.
    fn take<T: DeserializeOwned>(&mut self, key: &str, expected: &str) -> Result<Option<T>, Error> {
        match self.0.shift_remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match serde_json::from_value(value.clone()) {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(Error::config(format!("`{key}` is {value}, expected {expected}"))),
            },
        }
    }

    fn flag(&mut self, key: &str) -> Result<bool, Error> {
        Ok(self.take(key, "true or false")?.unwrap_or_default())
    }

    /// A list, or the one value that stands for a list of it.
    fn one_or_more<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<Vec<T>>, Error> {
        match self.0.get(key) {
            Some(Value::Array(_)) => self.take(key, "a value or a list"),
            Some(Value::String(text)) if text.is_empty() => {
                self.take(key, "a value").map(|_: Option<Value>| None)
            }
            _ => Ok(self.take(key, "a value or a list")?.map(|value| vec![value])),
        }
    }

    fn pattern<T: DeserializeOwned>(&mut self, key: &str, expected: &str) -> Result<Vec<(String, T)>, Error> {
        let entries: Map<String, Value> = self.take(key, "an object")?.unwrap_or_default();
        let entry = |(name, value): (String, Value)| match serde_json::from_value(value.clone()) {
            Ok(parsed) => Ok((name, parsed)),
            Err(_) => Err(Error::config(format!("`{key}` of `{name}` is {value}, expected {expected}"))),
        };
        entries.into_iter().map(entry).collect()
    }

    fn init(&mut self) -> Result<Init, Error> {
        let key = "init_lora_weights";
        let name = match self.0.shift_remove(key) {
            None | Some(Value::Null | Value::Bool(true)) => return Ok(Init::Default),
            Some(Value::Bool(false)) => return Ok(Init::Random),
            Some(Value::String(name)) => name,
            Some(other) => {
                return Err(Error::config(format!("`{key}` is {other}, expected true, false or a name")));
            }
        };
        let changes_base = CHANGE_BASE.iter().any(|kind| name.starts_with(kind));
        match name.to_lowercase().as_str() {
            "gaussian" => Ok(Init::Gaussian),
            "eva" | "orthogonal" => Ok(Init::Other(name)),
            _ if changes_base => Err(Error::config(format!(
                "`{key}` is {name:?}, which changed the base's own weights when training began: convert the adapter with \
                 PEFT's `save_pretrained(…, path_initial_model_for_weight_conversion=…)`"
            ))),
            _ => Err(Error::config(format!("`{key}` is {name:?}, which taper does not honour"))),
        }
    }
}

/// Whether a value leaves its feature off.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn init_value(init: &Init) -> Value {
    match init {
        Init::Default => json!(true),
        Init::Random => json!(false),
        Init::Gaussian => json!("gaussian"),
        Init::Other(name) => json!(name),
    }
}

/// A list in a fixed order, or null for none.
fn names_value(names: Option<&Names>) -> Value {
    let mut names = names.cloned();
    if let Some(Names::List(list)) = &mut names {
        list.sort_unstable();
        list.dedup();
    }
    json!(names)
}

fn some_list(list: &[String]) -> Value {
    if list.is_empty() { Value::Null } else { json!(list) }
}

/// PEFT's `lora_alpha` is an integer unless it cannot be.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}
