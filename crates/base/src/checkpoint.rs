//! The weight files of a model: safetensors, one or many, or a GGUF file; mapped and never copied.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::Metadata};
use taper_kernels::{RowOrder, Stored, Weight};

use crate::Error;
use crate::gguf::{self, Architecture, Gguf};

/// Headers larger than this are refused, as the safetensors crate does.
const MAX_HEADER: u64 = 100_000_000;

/// Every tensor of a model folder, by name.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    files: Vec<(PathBuf, Arc<Mmap>)>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// Where a tensor lies and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Index of its file in [`Checkpoint::files`].
    pub file: usize,
    /// Bytes in that file.
    pub range: Range<usize>,
    /// Type of its values.
    pub dtype: ValueType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The order in which its rows are stored.
    pub order: RowOrder,
}

/// What a tensor's bytes are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ValueType {
    /// A value each, of a type that safetensors has.
    Plain(Dtype),
    /// Blocks of quantised values.
    Quantised(Stored),
}

impl fmt::Debug for ValueType {
    /// The type's own name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => dtype.fmt(f),
            Self::Quantised(stored) => stored.fmt(f),
        }
    }
}

impl ValueType {
    /// The type of values that lie each by itself.
    pub fn plain(self) -> Option<Dtype> {
        if let Self::Plain(dtype) = self { Some(dtype) } else { None }
    }

    /// The type, if it is one of those that taper computes with.
    pub fn stored(self) -> Option<Stored> {
        match self {
            Self::Quantised(stored) => Some(stored),
            Self::Plain(Dtype::F32) => Some(Stored::F32),
            Self::Plain(Dtype::F16) => Some(Stored::F16),
            Self::Plain(Dtype::BF16) => Some(Stored::Bf16),
            Self::Plain(_) => None,
        }
    }
}

impl From<Stored> for ValueType {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::F32 => Self::Plain(Dtype::F32),
            Stored::F16 => Self::Plain(Dtype::F16),
            Stored::Bf16 => Self::Plain(Dtype::BF16),
            quantised => Self::Quantised(quantised),
        }
    }
}

impl Checkpoint {
    /// Maps `model.safetensors`, or every file that `model.safetensors.index.json` names, in `dir`; or `dir`, where that is
    /// a GGUF file.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        if gguf::is_file(dir) {
            return Self::of_gguf(&Gguf::open(dir)?);
        }
        Self::open_files(&weight_files(dir)?)
    }

    /// The tensors of a GGUF file, by their names in a checkpoint; those that no checkpoint has keep their own.
    fn of_gguf(gguf: &Gguf) -> Result<Self, Error> {
        let architecture = Architecture::of(gguf)?;
        let head = gguf.json("config.json")?["head_dim"].as_u64().unwrap_or_default() as usize;
        let mut tensors = BTreeMap::new();
        for (stored_name, tensor) in gguf.tensors() {
            let name = gguf::tensor_name(stored_name).unwrap_or_else(|| stored_name.clone());
            let order = architecture.order(&name, head);
            let (range, dtype) = (tensor.range.clone(), tensor.stored.into());
            let info = TensorInfo { file: 0, range, dtype, shape: tensor.shape.clone(), order };
            if tensors.insert(name.clone(), info).is_some() {
                return Err(Error::file(gguf.path(), format!("tensor `{name}` is there twice")));
            }
        }
        Ok(Self { files: vec![(gguf.path().to_path_buf(), gguf.map().clone())], tensors })
    }

    /// Maps the given files. A name that stands in two of them is an error.
    pub fn open_files(paths: &[PathBuf]) -> Result<Self, Error> {
        let mut checkpoint = Self { files: Vec::new(), tensors: BTreeMap::new() };
        for path in paths {
            checkpoint.add(path)?;
        }
        Ok(checkpoint)
    }

    fn add(&mut self, path: &Path) -> Result<(), Error> {
        let map = map_file(path)?;
        let (data_start, header) = read_header(path, &map)?;
        let file = self.files.len();
        for (name, info) in header.tensors() {
            let range = data_start + info.data_offsets.0..data_start + info.data_offsets.1;
            let info = TensorInfo {
                file,
                range,
                dtype: ValueType::Plain(info.dtype),
                shape: info.shape.clone(),
                order: RowOrder::Plain,
            };
            if self.tensors.insert(name.clone(), info).is_some() {
                return Err(Error::file(
                    path,
                    format!("tensor `{name}` is in another file of the model as well"),
                ));
            }
        }
        self.files.push((path.to_path_buf(), Arc::new(map)));
        Ok(())
    }

    /// The mapped files, in the order of their shards.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The name under which the parameter `name` of a causal language model is stored: its own, or without the body's name
    /// (`model.`, `bert.`) in a bare model's files, or with the names that a norm's parameters had once (`gamma`, `beta`);
    /// with a tied head, the embedding and the head are each other's other name.
    pub fn stored_name(&self, name: &str, tied: bool) -> Option<&str> {
        const EMBEDDINGS: [&str; 5] = [
            "model.embed_tokens.weight",
            "model.language_model.embed_tokens.weight",
            "transformer.wte.weight",
            "gpt_neox.embed_in.weight",
            "shared.weight",
        ];
        const HEAD: &str = "lm_head.weight";
        let any = |names: &[&str]| names.iter().find_map(|name| self.find(name));
        // The head of a tied model is the embedding even where a file holds a stale copy of it.
        if tied && name == HEAD {
            return any(&EMBEDDINGS).or_else(|| self.find(name));
        }
        self.find(name).or_else(|| if tied && EMBEDDINGS.contains(&name) { self.find(HEAD) } else { None })
    }

    /// The name in the files of `name`: its own, or one that other versions of its model give it.
    fn find(&self, name: &str) -> Option<&str> {
        const OTHERS: [(&str, &str); 11] = [
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("lm_head.", "embed_out."),
            ("model.", ""),
            ("transformer.", ""),
            ("gpt_neox.", ""),
            ("bert.", ""),
            ("roberta.", ""),
            ("distilbert.", ""),
            ("shared.", "encoder.embed_tokens."),
            ("shared.", "decoder.embed_tokens."),
        ];
        const OLDER: [(&str, &str); 2] =
            [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")];
        let get = |name: &str| self.tensors.get_key_value(name).map(|(name, _)| name.as_str());
        let older = |name: &str| {
            OLDER.iter().find_map(|(now, then)| get(&format!("{}{then}", name.strip_suffix(now)?)))
        };
        let either = |name: &str| get(name).or_else(|| older(name));
        let other = |(now, then): &(&str, &str)| either(&format!("{then}{}", name.strip_prefix(now)?));
        either(name).or_else(|| OTHERS.iter().find_map(other))
    }

    /// Where the tensor `name` lies.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The file that holds the tensor `name`.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.info(name).map(|info| self.files[info.file].0.as_path())
    }

    /// The bytes of the tensor `name`, as they are in the file.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.info(name).map(|info| &self.files[info.file].1[info.range.clone()])
    }

    /// The matrix `name` of `rows x cols` values, left in the file.
    pub fn weight(&self, name: &str, rows: usize, cols: usize) -> Result<Weight, Error> {
        let info = self.expect(name, &[rows, cols])?;
        let (path, map) = &self.files[info.file];
        let stored = info.dtype.stored().ok_or_else(|| unreadable(path, name, info.dtype))?;
        let weight = Weight::mapped(map.clone(), info.range.start, stored, rows, cols)?;
        Ok(weight.with_order(info.order)?)
    }

    /// The tensor `name` of `shape`, copied and widened to f32: for gains, biases and other small ones.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        self.expect(name, shape)?;
        let values = self.values(name).transpose()?.unwrap_or_default();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    /// All values of the tensor `name`, widened to f32; none if there is no such tensor.
    fn values(&self, name: &str) -> Option<Result<Vec<f32>, Error>> {
        let info = self.info(name)?;
        let (path, map) = &self.files[info.file];
        let Some(stored) = info.dtype.stored() else { return Some(Err(unreadable(path, name, info.dtype))) };
        // The rows of a vector are its values.
        let rows = if info.order == RowOrder::Plain { 1 } else { info.shape.first().copied().unwrap_or(1) };
        let cols = info.shape.iter().product::<usize>() / rows.max(1);
        let weight = Weight::mapped(map.clone(), info.range.start, stored, rows, cols);
        Some(weight.and_then(|weight| weight.with_order(info.order)).map(|w| w.to_f32()).map_err(Error::from))
    }

    fn expect(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo, Error> {
        let first = self.files.first().map(|(path, _)| path.clone()).unwrap_or_default();
        let Some(info) = self.info(name) else {
            return Err(Error::file(first, format!("tensor `{name}` is missing; config.json calls for it")));
        };
        if info.shape != shape {
            let (path, _) = &self.files[info.file];
            let what = format!("tensor `{name}` is {:?}, config.json calls for {shape:?}", info.shape);
            return Err(Error::file(path, what));
        }
        Ok(info)
    }
}

fn unreadable(path: &Path, name: &str, dtype: ValueType) -> Error {
    Error::file(path, format!("tensor `{name}` is stored as {dtype:?}; taper reads F32, F16 and BF16"))
}

/// Maps a file for reading.
fn map_file(path: &Path) -> Result<Mmap, Error> {
    let file = File::open(path).map_err(Error::io(path))?;
    taper_kernels::map(&file).map_err(Error::io(path))
}

/// The start of the data and the header of a safetensors file; every offset in it lies inside the file.
fn read_header(path: &Path, map: &Mmap) -> Result<(usize, Metadata), Error> {
    let bad = |what: String| Error::file(path, what);
    let Some(length) = map.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)) else {
        return Err(bad(format!("{} bytes long: not a safetensors file", map.len())));
    };
    if length > MAX_HEADER || length > map.len() as u64 - 8 {
        let what = format!(
            "its header claims {length} bytes, the file has {}: truncated, or not a safetensors file",
            map.len()
        );
        return Err(bad(what));
    }
    let (header, metadata) = SafeTensors::read_metadata(map).map_err(|source| {
        bad(format!("not a whole safetensors file ({source}); download or copy it again"))
    })?;
    Ok((header + 8, metadata))
}

/// The weight files of a model folder, in shard order.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let single = dir.join("model.safetensors");
    let index = dir.join("model.safetensors.index.json");
    if index.is_file() {
        return indexed_files(dir, &index);
    }
    if single.is_file() {
        return Ok(vec![single]);
    }
    let pickled =
        ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|file| dir.join(file).is_file());
    let hint = if pickled {
        "only pickled .bin weights, which taper does not read: convert them to safetensors with their own library"
    } else {
        "neither model.safetensors nor model.safetensors.index.json"
    };
    Err(Error::file(dir, format!("holds {hint}")))
}

fn indexed_files(dir: &Path, index: &Path) -> Result<Vec<PathBuf>, Error> {
    let text = std::fs::read_to_string(index).map_err(Error::io(index))?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|source| Error::file(index, format!("not JSON: {source}")))?;
    let map =
        json["weight_map"].as_object().ok_or_else(|| Error::file(index, "has no `weight_map` object"))?;
    let mut files: Vec<&str> = map.values().filter_map(serde_json::Value::as_str).collect();
    files.sort_unstable();
    files.dedup();
    for file in &files {
        if Path::new(file).components().count() != 1 || !file.ends_with(".safetensors") {
            return Err(Error::file(
                index,
                format!("names `{file}`, which is not a .safetensors file beside it"),
            ));
        }
        if !dir.join(file).is_file() {
            return Err(Error::file(
                index,
                format!("names `{file}`, which is not there: the model is incomplete"),
            ));
        }
    }
    Ok(files.into_iter().map(|file| dir.join(file)).collect())
}
