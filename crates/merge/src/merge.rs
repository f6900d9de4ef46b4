//! Merging: the base's files with adapters in them, as a folder of the same kind.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use serde_json::Value;
use taper_base::{Base, Checkpoint, Fresh, Module, Task, gguf};
use taper_lora::LoraAdapter;

use crate::Error;
use crate::folder::Partial;
use crate::plan::{Added, Dropped, OutFile, Plan};
use crate::write::Writer;

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Weights in any format, and what belongs to a training run: never copied beside merged weights.
const WEIGHTS: &[&str] = &[
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "gguf",
    "ggml",
    "h5",
    "msgpack",
    "onnx",
    "ot",
    "npz",
    "pkl",
    "partial",
    "lock",
];

/// The base as the merge needs it: files, not a network.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    /// The model's folder.
    pub dir: &'a Path,
    /// Its mapped weight files.
    pub checkpoint: &'a Checkpoint,
    /// Whether its head is its embedding's matrix.
    pub tied: bool,
    /// Path of its embedding.
    pub embedding: &'a str,
    /// Path of its head.
    pub head: &'a str,
    /// The head of a task that the files lack: its parameters, and their shapes.
    pub fresh: Vec<(String, Vec<usize>)>,
    /// The task, where `config.json` names another: the merged model is for this one.
    pub task: Option<&'a Task>,
}

impl<'a> From<&'a Base> for Source<'a> {
    fn from(base: &'a Base) -> Self {
        Self {
            dir: &base.dir.path,
            checkpoint: &base.checkpoint,
            tied: base.model.sizes().tie_word_embeddings,
            embedding: &base.model.embedding().path,
            head: &base.model.head().linear.path,
            fresh: base
                .model
                .modules()
                .into_iter()
                .flat_map(|module| fresh(module, base.model.fresh()))
                .collect(),
            task: Some(&base.task).filter(|task| **task != Task::of(&base.config)),
        }
    }
}

/// The parameters of `module` with their shapes, if it is among `lacking`.
fn fresh(module: Module<'_>, lacking: &[Fresh]) -> Vec<(String, Vec<usize>)> {
    if !lacking.iter().any(|fresh| fresh.path == module.path()) {
        return Vec::new();
    }
    let Module::Linear(layer) = module else {
        let params = module.params().into_iter();
        return params.map(|(name, value)| (name.to_owned(), value.dims().to_vec())).collect();
    };
    let weight = (format!("{}.weight", layer.path), vec![layer.weight.rows(), layer.weight.cols()]);
    let bias = layer.bias.as_ref().map(|bias| (format!("{}.bias", layer.path), bias.dims().to_vec()));
    [weight].into_iter().chain(bias).collect()
}

impl Source<'_> {
    /// Names of the parameters of embedding and head: a tied model has one matrix for both.
    pub(crate) fn ends(&self) -> [String; 2] {
        [self.embedding, self.head].map(|path| format!("{path}.weight"))
    }
}

/// An adapter and how much of it: `W + weight · (what the adapter makes of W - W)`.
#[derive(Clone, Copy, Debug)]
pub struct Weighted<'a> {
    /// The adapter, loaded on the base that is merged.
    pub adapter: &'a LoraAdapter,
    /// 1 for the adapter as it was trained.
    pub weight: f64,
}

impl Weighted<'_> {
    /// Turns rows `rows` of `tensor` into those that this adapter makes of them; `before` is room to work in.
    pub(crate) fn merge_rows(
        &self,
        tensor: &str,
        rows: Range<usize>,
        values: &mut [f32],
        before: &mut Vec<f32>,
    ) -> Result<(), Error> {
        before.clear();
        if !matches!(self.weight, 1.0) {
            before.extend_from_slice(values);
        }
        self.adapter.merge_rows(tensor, rows, values)?;
        let weight = self.weight as f32;
        for (value, before) in values.iter_mut().zip(before) {
            *value = *before + weight * (*value - *before);
        }
        Ok(())
    }
}

/// How far a merge is, in bytes of weight files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Written.
    pub done: u64,
    /// To write in all.
    pub total: u64,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The folder, absolute.
    pub path: PathBuf,
    /// Bytes of weight files.
    pub bytes: u64,
    /// Names of the tensors that differ from the base's.
    pub changed: Vec<String>,
    /// Number of tensors in the folder.
    pub tensors: usize,
    /// Whether the head's weight was parted from the embedding, in the files and in `config.json`.
    pub untied: bool,
}

/// Where a merged model goes.
#[derive(Clone, Copy, Debug)]
pub struct Out<'a> {
    /// The folder, which need not exist.
    pub path: &'a Path,
    /// Whether it may replace a model's folder that is there.
    pub force: bool,
    /// Folders that it may not replace, nor one that holds them: those that the adapters are in. The base is kept in any case.
    pub keep: &'a [&'a Path],
}

impl<'a> Out<'a> {
    /// The new folder `path`.
    pub fn new(path: &'a Path) -> Self {
        Self { path, force: false, keep: &[] }
    }
}

/// A merged model, whole but under a hidden name: it can be tried before it stands where it was asked for. Dropped without
/// [`publish`](Self::publish), it is removed.
pub struct Built {
    partial: Partial,
    merged: Merged,
}

impl Built {
    /// The folder that holds it.
    pub fn dir(&self) -> &Path {
        self.partial.path()
    }

    /// Puts it in its place.
    pub fn publish(self) -> Result<Merged, Error> {
        Ok(Merged { path: self.partial.publish()?, ..self.merged })
    }
}

/// Merges `adapters` into the weights of `base` and puts the resulting model into the folder `out`: [`build`], and
/// [`Built::publish`].
///
/// # Errors
/// Those of the two.
pub fn merge<'a>(
    base: impl Into<Source<'a>>,
    adapters: &[Weighted<'_>],
    out: Out<'_>,
    on_progress: &mut (dyn FnMut(Progress) -> ControlFlow<()> + Send),
) -> Result<Merged, Error> {
    build(base, adapters, out, on_progress)?.publish()
}

/// Merges `adapters` into the weights of `base`, for the folder `out`.
///
/// Every weight file keeps its name, header, metadata and offsets; a tensor that no adapter changes keeps its bytes. A
/// changed one is summed in f32 and rounded once, to nearest-even, to the type that it is stored in. Several adapters are
/// merged one after another, each into what the one before it left, as PEFT does (PEFT 0.21.2, `tuners/lora/layer.py`
/// `Linear.merge`); the order matters where one of them is DoRA or holds whole parameters. Other files of the base's folder
/// are copied, `config.json` byte for byte unless a tied head has to part from its embedding, or the adapter is for another
/// task than the base: then the task's head comes with it, under the names that transformers has for it, and `architectures`
/// and labels are the task's.
///
/// The folder is built under a hidden name beside `out`, and is to be renamed when it is whole and on the disk: whatever goes
/// wrong, nothing that looks finished is left. `on_progress` may stop it. Memory: a few blocks of rows a thread, or a few
/// times a layer that is stored `(in, out)`, which is merged whole.
///
/// # Errors
/// [`Error::Out`] where `out` exists without `force` or is no model's folder, where `out` and the base lie in each other, or
/// where it holds an adapter; [`Error::NotFinite`] for a merged value that is not; [`Error::Io`] with the file that could not
/// be read or written.
pub fn build<'a>(
    base: impl Into<Source<'a>>,
    adapters: &[Weighted<'_>],
    out: Out<'_>,
    on_progress: &mut (dyn FnMut(Progress) -> ControlFlow<()> + Send),
) -> Result<Built, Error> {
    let source = base.into();
    if gguf::is_file(source.dir) {
        let what = "is a GGUF file, whose weights are rounded to a few bits: merging would round them again. Merge into the \
                    folder of the full-precision model, and `taper quantize` the result";
        return Err(Error::file(source.dir, what));
    }
    if let Some(Weighted { weight, .. }) = adapters.iter().find(|a| !a.weight.is_finite()) {
        return Err(Error::unsupported(format!("an adapter's weight is {weight}: it must be a number")));
    }
    let unties = source.tied && adapters.iter().any(|a| a.adapter.unties());
    let ends = source.ends();
    let changes = changes(adapters, unties.then_some(&ends));
    check_embedding(adapters, &ends[0])?;
    let parameters: Vec<&str> = changes.keys().map(String::as_str).collect();
    let plan = Plan::new(&source, &parameters, unties)?;
    let partial = Partial::create(&out, source.dir)?;
    let writer = Writer {
        plan: &plan,
        checkpoint: source.checkpoint,
        adapters,
        changes: &changes,
        dir: partial.path(),
    };
    writer.run(on_progress)?;
    copy_small_files(&source, &plan, partial.path())?;
    let bytes = plan.files.iter().map(OutFile::len).sum();
    let mut changed: Vec<String> = plan.targets.iter().map(|target| target.name.clone()).collect();
    changed.sort_unstable();
    let tensors = source.checkpoint.names().count() + plan.added().count() - plan.dropped().count();
    let merged = Merged { path: PathBuf::new(), bytes, changed, tensors, untied: unties };
    Ok(Built { partial, merged })
}

/// Which adapters change each parameter, by their place in the list. When embedding and head part, every adapter is asked
/// about both of these `ends`: one that keeps them tied names only one of them.
fn changes(adapters: &[Weighted<'_>], ends: Option<&[String; 2]>) -> BTreeMap<String, Vec<usize>> {
    let mut changes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, weighted) in adapters.iter().enumerate() {
        for parameter in weighted.adapter.changed_tensors() {
            changes.entry(parameter).or_default().push(i);
        }
    }
    for parameter in ends.into_iter().flatten() {
        changes.insert(parameter.clone(), (0..adapters.len()).collect());
    }
    changes
}

/// DoRA on an embedding divides by lengths of whole columns, which the adapter has of its own base only.
fn check_embedding(adapters: &[Weighted<'_>], embedding: &str) -> Result<(), Error> {
    let changes = |i: &usize| adapters[*i].adapter.changed_tensors().iter().any(|name| name == embedding);
    let mut later = (0..adapters.len()).filter(changes).skip(1);
    match later.find(|&i| adapters[i].adapter.config().use_dora) {
        None => Ok(()),
        Some(i) => Err(Error::unsupported(format!(
            "adapter {} of {} is DoRA on an embedding that one before it changes: merge those first, and this one into the \
             result in a run of its own",
            i + 1,
            adapters.len()
        ))),
    }
}

/// Copies everything beside the weights, `config.json` last.
fn copy_small_files(source: &Source<'_>, plan: &Plan, to: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(source.dir).map_err(Error::io(source.dir))?;
    for entry in entries {
        let from = entry.map_err(Error::io(source.dir))?.path();
        let name = from.file_name().unwrap_or_default();
        if from.is_file() && name != CONFIG && is_small_file(&from) {
            let edit = if name == INDEX { index_with(&from, plan)? } else { None };
            write_file(&from, edit.as_deref(), &to.join(name))?;
        }
    }
    let config = source.dir.join(CONFIG);
    if config.is_file() {
        let edit = edited_config(source, plan.unties)?;
        write_file(&config, edit.as_deref(), &to.join(CONFIG))?;
    }
    Ok(())
}

fn is_small_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let index_of_others = name.ends_with(".index.json") && name != INDEX;
    let adapter = name == "adapter_config.json";
    !name.starts_with('.') && !index_of_others && !adapter && !WEIGHTS.contains(&extension.as_str())
}

/// Writes `text`, or else what is in `from`, to the new file `to`, and syncs it.
fn write_file(from: &Path, text: Option<&str>, to: &Path) -> Result<(), Error> {
    let mut source = File::open(from).map_err(Error::io(from))?;
    let mut write = || {
        let mut file = File::create_new(to)?;
        match text {
            Some(text) => io::copy(&mut text.as_bytes(), &mut file)?,
            None => io::copy(&mut source, &mut file)?,
        };
        file.sync_all()
    };
    write().map_err(Error::io(to))
}

/// The index with what was added and without what was dropped; none where that is nothing.
fn index_with(path: &Path, plan: &Plan) -> Result<Option<String>, Error> {
    if plan.added().next().is_none() {
        return Ok(None);
    }
    let mut json = read_json(path)?;
    for (file, added) in plan.added() {
        let file_name = file.source.file_name().unwrap_or_default().to_string_lossy();
        json["weight_map"][added.name.as_str()] = file_name.as_ref().into();
    }
    let added = |of: fn(&Added) -> u64| plan.added().map(|(_, added)| of(added)).sum::<u64>();
    let dropped = |of: fn(&Dropped) -> u64| plan.dropped().map(of).sum::<u64>();
    let counts = [
        ("total_size", added(|a| a.bytes), dropped(|d| d.range.end - d.range.start)),
        ("total_parameters", added(Added::values), dropped(|d| d.values)),
    ];
    for (count, more, less) in counts {
        if let Some(before) = json["metadata"][count].as_f64() {
            json["metadata"][count] = (before as u64 + more).saturating_sub(less).into();
        }
    }
    Ok(Some(pretty(&json)))
}

/// `config.json` with `tie_word_embeddings` false where a head parts from its embedding, and with the names of another task
/// than the base's; its other fields and their order kept. None where nothing changes.
fn edited_config(source: &Source<'_>, unties: bool) -> Result<Option<String>, Error> {
    if !unties && source.task.is_none() {
        return Ok(None);
    }
    let mut json = read_json(&source.dir.join(CONFIG))?;
    if unties {
        json["tie_word_embeddings"] = false.into();
    }
    if let (Some(task), Some(config)) = (source.task, json.as_object_mut()) {
        task.write_to(config);
    }
    Ok(Some(pretty(&json)))
}

fn read_json(path: &Path) -> Result<Value, Error> {
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    let json: Value =
        serde_json::from_str(&text).map_err(|source| Error::file(path, format!("not JSON: {source}")))?;
    if json.is_object() { Ok(json) } else { Err(Error::file(path, "not a JSON object")) }
}

fn pretty(json: &Value) -> String {
    format!("{json:#}\n")
}
