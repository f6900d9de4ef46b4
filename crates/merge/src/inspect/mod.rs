//! What a folder holds, and what is wrong with it.
//!
//! Broken folders are what this is for: whatever can be read is reported, and what cannot becomes a problem in words.

mod adapter;
mod keys;
mod model;
mod stats;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use taper_base::{Base, Checkpoint, gguf};

use crate::Error;

/// What kind of folder it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A PEFT adapter.
    Adapter,
    /// A whole model.
    Model,
}

/// A tensor of the folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorFacts {
    /// Its key.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its type, as safetensors calls it.
    pub dtype: String,
}

/// A weight file of the folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileFacts {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// The low-rank factors of one module.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModuleFacts {
    /// Path in the base.
    pub path: String,
    /// R, from the shapes.
    pub rank: usize,
    /// `α`, from the configuration.
    pub alpha: f64,
    /// `α/r`, or `α/√r` with `use_rslora`.
    pub scaling: f64,
    /// Frobenius norm of `A`.
    pub norm_a: f64,
    /// Frobenius norm of `B`: 0 where nothing was learned (an embedding starts with `A` 0 instead).
    pub norm_b: f64,
}

/// Facts of a whole model.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ModelFacts {
    /// `model_type`.
    pub model_type: String,
    /// `architectures`, joined.
    pub architecture: String,
    /// Values by type, as safetensors calls it.
    pub values_by_dtype: BTreeMap<String, u64>,
    /// Whether the head is the embedding's matrix.
    pub tied: bool,
    /// Whether there is a `tokenizer.json`.
    pub tokenizer: bool,
    /// Whether there is a chat template.
    pub chat_template: bool,
}

/// What a folder holds. Serialised, it is what `taper inspect --json` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// Adapter or model.
    pub kind: Kind,
    /// The folder as it was given.
    pub path: String,
    /// `adapter_config.json` or `config.json` as it stands; null if it cannot be read.
    pub config: Value,
    /// Every tensor, by name.
    pub tensors: Vec<TensorFacts>,
    /// Rank of every module with low-rank factors; empty for a model.
    pub rank_by_module: BTreeMap<String, usize>,
    /// Numbers of values: `total`, and for an adapter `low_rank`, `magnitude`, `bias`, `whole` (modules saved whole) and
    /// `base` (copies of frozen weights).
    pub parameters: BTreeMap<String, u64>,
    /// Every module with low-rank factors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<ModuleFacts>,
    /// Facts of a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelFacts>,
    /// Weight files.
    pub files: Vec<FileFacts>,
    /// What nothing is wrong with and others would stumble over, in words.
    pub notes: Vec<String>,
    /// What is wrong, in words; empty if nothing was found.
    pub problems: Vec<String>,
}

/// Reads the adapter's or model's folder `dir`, or the model in a GGUF file. With `base`, an adapter is also checked against it as strictly as loading
/// does; a model needs none.
///
/// # Errors
/// [`Error::File`] where the folder is neither.
pub fn inspect(dir: &Path, base: Option<&Base>) -> Result<Inspection, Error> {
    if gguf::is_file(dir) {
        return Ok(model::inspect_gguf(dir));
    }
    let has = |name: &str| dir.join(name).exists();
    if ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"].iter().any(|name| has(name))
    {
        return Ok(adapter::inspect(dir, base));
    }
    let weights = [
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ];
    if has("config.json") || weights.iter().any(|name| has(name)) {
        return Ok(model::inspect(dir));
    }
    if !dir.is_dir() {
        return Err(Error::file(dir, "is not a folder"));
    }
    Err(Error::file(dir, "holds neither an adapter (adapter_config.json) nor a model (config.json)"))
}

impl Inspection {
    fn new(kind: Kind, dir: &Path) -> Self {
        Self {
            kind,
            path: dir.display().to_string(),
            config: Value::Null,
            tensors: Vec::new(),
            rank_by_module: BTreeMap::new(),
            parameters: BTreeMap::new(),
            modules: Vec::new(),
            model: None,
            files: Vec::new(),
            notes: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn problem(&mut self, what: impl Into<String>) {
        let what = what.into();
        if !self.problems.contains(&what) {
            self.problems.push(what);
        }
    }

    /// Reads a JSON file into `config`; its text, or a problem.
    fn read_config(&mut self, path: &Path) -> Option<String> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                self.problem(format!("{name} is missing"));
                return None;
            }
            Err(source) => {
                self.problem(format!("{name}: {source}"));
                return None;
            }
        };
        match serde_json::from_str(&text) {
            Ok(value) => self.config = value,
            Err(source) => self.problem(format!("{name}: not JSON: {source}")),
        }
        Some(text)
    }

    /// Opens one weight file and lists its tensors; a problem if that cannot be done.
    fn open(&mut self, path: &Path) -> Option<Checkpoint> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = std::fs::metadata(path).map_or(0, |meta| meta.len());
        self.files.push(FileFacts { name, bytes });
        let opened = if gguf::is_file(path) {
            Checkpoint::open(path)
        } else {
            Checkpoint::open_files(&[path.to_owned()])
        };
        let checkpoint = match opened {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                self.problem(error.to_string());
                return None;
            }
        };
        for name in checkpoint.names() {
            if let Some(info) = checkpoint.info(name) {
                let (name, shape, dtype) = (name.to_owned(), info.shape.clone(), format!("{:?}", info.dtype));
                self.tensors.push(TensorFacts { name, shape, dtype });
            }
        }
        Some(checkpoint)
    }

    fn count(&mut self, what: &str, values: usize) {
        *self.parameters.entry(what.to_owned()).or_default() += values as u64;
    }
}

/// At most five of `names`, and how many more there are.
fn some<S: AsRef<str>>(names: &[S]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{}`", name.as_ref())).collect();
    let rest = names.len().saturating_sub(SHOWN);
    if rest == 0 { shown.join(", ") } else { format!("{} and {rest} more", shown.join(", ")) }
}
