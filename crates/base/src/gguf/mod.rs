//! GGUF files: a model in one file, as llama.cpp reads it (`docs/gguf.md` of ggml, versions 2 and 3).
//!
//! The file says what a model's folder says in other words. [`Gguf`] reads it strictly, and the files beside this translate:
//! metadata into `config.json`, `tokenizer.json` and `tokenizer_config.json`, names of tensors into those of the
//! checkpoint. So nothing else needs to know where a base came from, and adapters match by the same names. Weights stay in
//! the mapped file, quantised; multiplying with them is the kernels'.

mod config;
mod names;
mod parse;
mod special;
mod tokenizer;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use serde_json::{Value, json};
use taper_kernels::Stored;

use crate::Error;
use parse::Entry;

pub use config::{Architecture, rope_factors};
pub use names::{stored_name, tensor_name};
pub use parse::type_number;
pub use tokenizer::PreTokenizer;

/// Whether `path` is called a GGUF file.
pub fn is_named(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Whether `path` is a file that is called so.
pub fn is_file(path: &Path) -> bool {
    is_named(path) && path.is_file()
}

/// Files of a model's folder that [`Gguf::json`] makes up.
const COUNTERPARTS: [&str; 3] = ["config.json", "tokenizer.json", "tokenizer_config.json"];

/// A GGUF file, mapped, every size in it checked against the file's.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Arc<Mmap>,
    entries: BTreeMap<String, Entry>,
    tensors: BTreeMap<String, Tensor>,
}

/// A tensor of a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its shape, row-major: the file counts its sides the other way round.
    pub shape: Vec<usize>,
    /// How its values are stored.
    pub stored: Stored,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

impl Gguf {
    /// What the file of that name in a model's folder would say: of one that has no counterpart, without opening the model.
    pub fn json_of(path: &Path, file: &str) -> Result<Value, Error> {
        if COUNTERPARTS.contains(&file) { Self::open(path)?.json(file) } else { Ok(json!({})) }
    }

    /// Maps `path` and reads its header. Nothing is allocated by a size that the file merely claims.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = std::fs::File::open(path).map_err(Error::io(path))?;
        let map = taper_kernels::map(&file).map_err(Error::io(path))?;
        let (entries, tensors) = parse::header(path, &map)?;
        let file = Self { path: path.to_path_buf(), map: Arc::new(map), entries, tensors };
        let parts = file.number("split.count")?.unwrap_or(1);
        if parts > 1 {
            let what =
                format!("is one of {parts} parts of a model: join them first with llama-gguf-split --merge");
            return Err(file.bad(what));
        }
        Ok(file)
    }

    /// What the file of that name in a model's folder would say; an empty object of those that have no counterpart.
    pub fn json(&self, file: &str) -> Result<Value, Error> {
        match file {
            "config.json" => config::config(self),
            "tokenizer.json" => tokenizer::tokenizer(self),
            "tokenizer_config.json" => special::tokenizer_config(self),
            _ => Ok(json!({})),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its tensors, by their names in the file.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    pub(crate) fn map(&self) -> &Arc<Mmap> {
        &self.map
    }

    fn bad(&self, what: impl Into<String>) -> Error {
        Error::file(&self.path, what)
    }

    fn mistyped(&self, key: &str, expected: &str) -> Error {
        let found = self.entries.get(key).map_or("nothing", Entry::kind);
        self.bad(format!("metadata `{key}` is {found}, expected {expected}"))
    }

    /// The entry `key` read by `read`, which knows one kind.
    fn entry<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Entry) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(entry) = self.entries.get(key) else { return Ok(None) };
        read(entry).map(Some).ok_or_else(|| self.mistyped(key, expected))
    }

    /// A whole number from 0.
    pub fn number(&self, key: &str) -> Result<Option<u64>, Error> {
        self.entry(key, "a whole number from 0", Entry::number)
    }

    fn float(&self, key: &str) -> Result<Option<f64>, Error> {
        self.entry(key, "a number", Entry::float)
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        self.entry(key, "true or false", Entry::flag)
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        self.entry(key, "a text", |entry| entry.text(&self.map))
    }

    fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, Error> {
        self.entry(key, "a list of UTF-8 texts", |entry| entry.texts(&self.map))
    }

    fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, Error> {
        self.entry(key, "a list of f32 numbers", |entry| entry.floats(&self.map))
    }

    fn integers(&self, key: &str) -> Result<Option<Vec<i32>>, Error> {
        self.entry(key, "a list of 32-bit numbers", |entry| entry.integers(&self.map))
    }

    fn need<T>(&self, key: &str, value: Option<T>) -> Result<T, Error> {
        value.ok_or_else(|| self.bad(format!("metadata `{key}` is missing: not a whole model for llama.cpp")))
    }
}
