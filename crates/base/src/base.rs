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
        let task = Task::of(&dir.json("config.json")?);
        Self::open_for(dir, compute, task)
    }

    /// Opens the model in a folder for `task`. A head that the files lack, or have for other labels, is a fresh one
    /// ([`Network::fresh`]).
    pub fn open_for(dir: ModelDir, compute: Compute, task: Task) -> Result<Self, Error> {
        let config = dir.json("config.json")?;
        let checkpoint = Checkpoint::open(&dir.path)?;
        let model = arch::build(&config, &checkpoint, compute, &task)?;
        let tokenizer = Tokenizer::open(&dir)?;
        let eos = eos_ids(&[&dir.json("generation_config.json")?, &config], &tokenizer);
        Ok(Self { dir, config, checkpoint, task, model, tokenizer, eos })
    }

    /// `model_type` of the configuration.
    pub fn model_type(&self) -> &str {
        self.config["model_type"].as_str().unwrap_or_default()
    }
}

/// The first `eos_token_id` (a number or a list) that is set, with the tokenizer's own.
fn eos_ids(configs: &[&serde_json::Value], tokenizer: &Tokenizer) -> Vec<u32> {
    let mut ids: Vec<u32> = configs
        .iter()
        .map(|config| match &config["eos_token_id"] {
            serde_json::Value::Array(ids) => ids.iter().filter_map(as_id).collect(),
            id => as_id(id).into_iter().collect::<Vec<_>>(),
        })
        .find(|ids| !ids.is_empty())
        .unwrap_or_default();
    ids.extend(tokenizer.eos());
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn as_id(value: &serde_json::Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}
