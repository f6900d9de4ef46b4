//! A base: everything that a model folder holds, opened.

use taper_kernels::Compute;

use crate::{Checkpoint, Error, ModelDir, ModelSource, Network, Task, Tokenizer, arch};

/// A frozen base model with its tokenizer. Immutable: share it by reference between any number of adapters and threads.
pub struct Base {
    /// Where it came from.
    pub dir: ModelDir,
    /// `config.json` as it stands.
    pub config: serde_json::Value,
    /// The mapped weight files.
    pub checkpoint: Checkpoint,
    /// What it was opened to do.
    pub task: Task,
    /// How its products are computed.
    pub compute: Compute,
    /// The network over those weights, with the head of that task.
    pub model: Box<dyn Network>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Ids that end a generated text: those of `generation_config.json`, `config.json` and the tokenizer.
    pub eos: Vec<u32>,
}

impl Base {
    /// Opens a model for the task that it was saved for: maps its weights, reads its configuration and its tokenizer. No
    /// weight is copied.
    pub fn open(source: &ModelSource, compute: Compute) -> Result<Self, Error> {
        Self::open_dir(ModelDir::resolve(source)?, compute)
    }

    /// Opens the model in a folder for the task that it was saved for.
    pub fn open_dir(dir: ModelDir, compute: Compute) -> Result<Self, Error> {
        let config = dir.json("config.json")?;
        let task = Task::read(&config).map_err(|error| placed(&dir, error))?;
        Self::build(dir, config, compute, task)
    }

    /// Opens the model in a folder for `task`. A head that the files lack, or have for other labels, is a fresh one
    /// ([`Network::fresh`]).
    pub fn open_for(dir: ModelDir, compute: Compute, task: Task) -> Result<Self, Error> {
        let config = dir.json("config.json")?;
        Self::build(dir, config, compute, task)
    }

    fn build(dir: ModelDir, config: serde_json::Value, compute: Compute, task: Task) -> Result<Self, Error> {
        let checkpoint = Checkpoint::open(&dir.path)?;
        let model = arch::build(&config, &checkpoint, compute, &task).map_err(|error| placed(&dir, error))?;
        let tokenizer = Tokenizer::open(&dir)?;
        let generation = dir.json("generation_config.json")?;
        let files = [("generation_config.json", &generation), ("config.json", &config)];
        let eos = eos_ids(&files, tokenizer.eos())?;
        Ok(Self { dir, config, checkpoint, task, compute, model, tokenizer, eos })
    }

    /// `model_type` of the configuration.
    pub fn model_type(&self) -> &str {
        self.config["model_type"].as_str().unwrap_or_default()
    }
}

/// An error about `config.json` with where that is: those who read its fields do not know.
fn placed(dir: &ModelDir, error: Error) -> Error {
    match error {
        Error::Unsupported { what } if what.starts_with("config.json") => {
            let path = dir.path.display();
            let between = if dir.is_gguf() { ": " } else { "/" };
            Error::Unsupported { what: format!("{path}{between}{what}") }
        }
        other => other,
    }
}

/// The first `eos_token_id` (a number or a list) that is set, with the tokenizer's own.
fn eos_ids(configs: &[(&str, &serde_json::Value)], tokenizer: Option<u32>) -> Result<Vec<u32>, Error> {
    let mut ids = Vec::new();
    for (file, config) in configs {
        if ids.is_empty() {
            ids = ids_of(file, &config["eos_token_id"])?;
        }
    }
    ids.extend(tokenizer);
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// The ids in `eos_token_id` of `file`; -1 and its like, which no token has, are none.
fn ids_of(file: &str, value: &serde_json::Value) -> Result<Vec<u32>, Error> {
    let list = match value {
        serde_json::Value::Null => return Ok(Vec::new()),
        serde_json::Value::Array(list) => list.as_slice(),
        id => std::slice::from_ref(id),
    };
    let ids: Option<Vec<i64>> = list.iter().map(serde_json::Value::as_i64).collect();
    let ids = ids.ok_or_else(|| Error::Unsupported {
        what: format!("{file}: `eos_token_id` is {value}, expected an id or a list of ids"),
    })?;
    Ok(ids.into_iter().filter_map(|id| u32::try_from(id).ok()).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_about_the_configuration_names_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let source = ModelSource::Folder(dir.path().to_path_buf());
        let path = dir.path().join("config.json");
        for config in [json!({"model_type": "llama"}), json!({"problem_type": 7}), json!({})] {
            std::fs::write(&path, config.to_string()).unwrap();
            let weights = std::collections::BTreeMap::<String, candle_core::Tensor>::new();
            safetensors::serialize_to_file(weights, None, &dir.path().join("model.safetensors")).unwrap();
            let error = Base::open(&source, Compute::F32).err().unwrap().to_string();
            assert!(error.starts_with(&format!("{}", path.display())), "{error}");
        }
    }

    #[test]
    fn the_first_file_that_names_an_end_wins_and_one_that_is_no_id_is_refused() {
        let ids = |generation: serde_json::Value| {
            let own = json!({"eos_token_id": 7});
            eos_ids(&[("generation_config.json", &generation), ("config.json", &own)], Some(3))
        };
        assert_eq!(ids(json!({})).unwrap(), [3, 7]);
        assert_eq!(ids(json!({"eos_token_id": -1})).unwrap(), [3, 7]);
        assert_eq!(ids(json!({"eos_token_id": [9, 8]})).unwrap(), [3, 8, 9]);
        for wrong in [json!("7"), json!([7, "8"]), json!({})] {
            let error = ids(json!({ "eos_token_id": wrong })).unwrap_err().to_string();
            assert!(error.starts_with("generation_config.json: `eos_token_id` is "), "{error}");
        }
    }
}
