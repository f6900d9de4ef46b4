//! A model folder to one GGUF file, with its weights rounded to fewer bits.
//!
//! Tensors are read, rounded and written some rows at a time, one tensor after the other: memory does not grow with the
//! model. What the blocks of each type hold is `taper-kernels`'; names and the order of rows are those of `taper_base::gguf`.

mod facts;
mod rope;
mod vocabulary;
mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use serde::Serialize;
use taper_base::gguf::{Architecture, rope_factors, stored_name};
use taper_base::{Base, Module, files};
use taper_kernels::{RowOrder, Stored, Weight, encode, pool};

use crate::{Error, Progress};
use writer::{Info, write_header, write_padding};

/// Bytes that are filled before they are written, about.
const RUN: usize = 1 << 23;
/// Values of a task, about.
const TASK: usize = 1 << 16;

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quantized {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// Values by type.
    pub values_by_type: BTreeMap<String, u64>,
    /// Values of matrices that take more bits than was asked for, by the length of their rows: it is not whole blocks.
    pub unfit_by_row: BTreeMap<usize, u64>,
}

/// A tensor to write.
struct Source {
    info: Info,
    /// What the checkpoint calls it.
    name: String,
    weight: Weight,
    order: RowOrder,
}

/// Writes the model of `base` to the GGUF file `out`, its matrices as `to`.
///
/// Norms and biases are F32. With `Q4_K`, the matrix that makes the logits (the head, or the embedding where it is tied) is
/// `Q6_K`, as in llama.cpp's `Q4_K_S`. Rows that are not whole blocks are stored with more bits, in the first of `Q8_0` and
/// `F16` that holds them. The file appears whole or not at all.
///
/// # Errors
/// [`Error::Out`] where `out` exists and `force` is false, or is no GGUF file or the model itself; [`Error::File`] for a
/// model that llama.cpp would compute otherwise; [`Error::NotFinite`]; [`Error::Stopped`] where `on_progress` says so.
pub fn quantize(
    base: &Base,
    to: Stored,
    out: &Path,
    force: bool,
    on_progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Quantized, Error> {
    check_place(base, out, force)?;
    let architecture = facts::architecture(base)?;
    let sources = sources(base, architecture, to)?;
    let mut metadata = facts::metadata(base, architecture, to)?;
    metadata.extend(vocabulary::metadata(base)?);
    let total = sources.iter().map(|source| source.info.bytes).sum();
    let mut failure = None;
    let written = files::write_whole(out, |file| {
        let infos: Vec<&Info> = sources.iter().map(|source| &source.info).collect();
        write_header(file, &metadata, &infos)?;
        let mut done = 0;
        for source in &sources {
            source
                .write(file, &mut |bytes| {
                    done += bytes;
                    on_progress(Progress { done, total })
                })
                .map_err(|error| {
                    failure = Some(error);
                    io::ErrorKind::Other
                })?;
        }
        Ok(())
    });
    match (failure, written) {
        (Some(Error::Io { source, .. }), _) | (None, Err(source)) => Err(Error::io(out)(source)),
        (Some(error), _) => Err(error),
        (None, Ok(())) => {
            let bytes = std::fs::metadata(out).map_err(Error::io(out))?.len();
            Ok(Quantized::of(out, bytes, &sources, to))
        }
    }
}

/// Whether `out` may be written: replaced is a GGUF file, or an empty one, and never the one that is read.
fn check_place(base: &Base, out: &Path, force: bool) -> Result<(), Error> {
    if out.is_dir() {
        let what = format!("is a folder: give a file's name, such as {}", out.join("model.gguf").display());
        return Err(Error::out(out, what));
    }
    if !out.exists() {
        return Ok(());
    }
    if !force {
        return Err(Error::out(out, "is there already: give another --out, or --force to replace the file"));
    }
    let real = |path: &Path| std::fs::canonicalize(path).map_err(Error::io(path));
    if real(out)? == real(&base.dir.path)? {
        return Err(Error::out(out, "is the model that is read: give another --out"));
    }
    let mut start = Vec::new();
    let file = File::open(out).map_err(Error::io(out))?;
    file.take(4).read_to_end(&mut start).map_err(Error::io(out))?;
    if start.is_empty() || start == b"GGUF" {
        return Ok(());
    }
    let what = "does not begin as a GGUF file does, and --force replaces no other: give another --out, or move it away";
    Err(Error::out(out, what))
}

impl Quantized {
    fn of(path: &Path, bytes: u64, sources: &[Source], to: Stored) -> Self {
        let (mut values_by_type, mut unfit_by_row) = (BTreeMap::new(), BTreeMap::new());
        for Source { info, .. } in sources {
            let values = info.shape.iter().product::<usize>() as u64;
            *values_by_type.entry(format!("{:?}", info.stored)).or_default() += values;
            if let [_, cols] = info.shape[..]
                && !cols.is_multiple_of(to.block())
            {
                *unfit_by_row.entry(cols).or_default() += values;
            }
        }
        Self { path: path.to_owned(), bytes, tensors: sources.len(), values_by_type, unfit_by_row }
    }
}

/// Every parameter that the network uses.
fn sources(base: &Base, architecture: Architecture, to: Stored) -> Result<Vec<Source>, Error> {
    let sizes = base.model.sizes();
    let logits = if sizes.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
    let mut sources = Vec::new();
    let mut add = |name: String, weight: Weight, stored: Stored, is_vector: bool| {
        let theirs = stored_name(&name)
            .ok_or_else(|| Error::unsupported(format!("`{name}` has no name in a GGUF file")))?;
        let order = architecture.order(&name, sizes.head_dim);
        let (rows, cols) = (weight.rows(), weight.cols());
        let shape = if is_vector { vec![rows * cols] } else { vec![rows, cols] };
        let bytes = stored.bytes(rows * cols).unwrap_or_default() as u64;
        sources.push(Source { info: Info { name: theirs, shape, stored, bytes }, name, weight, order });
        Ok::<(), Error>(())
    };
    for module in base.model.modules() {
        let name = format!("{}.weight", module.path());
        match &module {
            Module::Linear(layer) if !(sizes.tie_word_embeddings && module.path() == "lm_head") => {
                add(
                    name.clone(),
                    layer.weight.clone(),
                    fitting(to, name == logits, layer.weight.cols()),
                    false,
                )?;
                if let Some(bias) = &layer.bias {
                    // A row each, so that they are ordered as the weight's rows are.
                    let values = bias.to_vec1::<f32>()?;
                    let rows = values.len();
                    let bias = Weight::dense(values, rows, 1).map_err(taper_base::Error::from)?;
                    add(format!("{}.bias", module.path()), bias, Stored::F32, true)?;
                }
            }
            Module::Linear(_) => {}
            Module::Embedding(layer) => {
                add(
                    name.clone(),
                    layer.weight.clone(),
                    fitting(to, name == logits, layer.weight.cols()),
                    false,
                )?;
            }
            Module::LayerNorm(_) => {
                return Err(Error::unsupported(format!(
                    "`{name}` is of a kind that GGUF has no place for here"
                )));
            }
            Module::Norm(norm) => {
                let values = norm.gain.to_vec1::<f32>()?;
                let cols = values.len();
                let gain = Weight::dense(values, 1, cols).map_err(taper_base::Error::from)?;
                add(name, gain, Stored::F32, true)?;
            }
        }
    }
    sources.extend(factors(base)?);
    Ok(sources)
}

/// What the frequencies of a rope are divided by, where they are.
fn factors(base: &Base) -> Result<Option<Source>, Error> {
    let Some(factors) = rope_factors(&base.config)? else { return Ok(None) };
    let count = factors.len();
    let weight = Weight::dense(factors, 1, count).map_err(taper_base::Error::from)?;
    let name = "rope_freqs.weight".to_owned();
    let info = Info { name: name.clone(), shape: vec![count], stored: Stored::F32, bytes: 4 * count as u64 };
    Ok(Some(Source { info, name, weight, order: RowOrder::Plain }))
}

/// The type of a matrix whose rows have `cols` values.
fn fitting(to: Stored, makes_logits: bool, cols: usize) -> Stored {
    let wanted = if to == Stored::Q4_K && makes_logits { Stored::Q6_K } else { to };
    let fits = |stored: &Stored| cols.is_multiple_of(stored.block());
    [wanted, Stored::Q8_0].into_iter().find(fits).unwrap_or(Stored::F16)
}

impl Source {
    /// Writes the tensor and what fills it up.
    fn write(
        &self,
        out: &mut dyn Write,
        on_written: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let (rows, cols) = (self.weight.rows(), self.weight.cols());
        let stored = self.info.stored;
        let line = stored.bytes(cols).unwrap_or_default().max(1);
        // Which row comes where.
        let mut at: Vec<usize> = (0..rows).collect();
        (0..rows).for_each(|row| at[self.order.stored(row)] = row);
        let together = TASK.div_ceil(cols.max(1));
        let failed = AtomicUsize::new(usize::MAX);
        for rows in at.chunks((RUN / line).max(1)) {
            let mut bytes = vec![0; rows.len() * line];
            pool::for_each_chunk(&mut bytes, together * line, |chunk, bytes| {
                let first = chunk * together;
                let mut values = vec![0.0; cols];
                for (bytes, &row) in bytes.chunks_exact_mut(line).zip(&rows[first..]) {
                    self.weight.read_row(row, &mut values);
                    if !encode(&values, stored, bytes) {
                        failed.fetch_min(row, Relaxed);
                    }
                }
            });
            let failed = failed.load(Relaxed);
            if failed != usize::MAX {
                return Err(Error::NotFinite {
                    path: PathBuf::from(&self.info.name),
                    tensor: self.name.clone(),
                    row: failed,
                    what: format!(
                        "holds a value that is infinite, not a number, or too large for {stored:?}"
                    ),
                });
            }
            out.write_all(&bytes).map_err(Error::io(&self.info.name))?;
            if on_written(bytes.len() as u64).is_break() {
                return Err(Error::Stopped);
            }
        }
        write_padding(out, self.info.bytes).map_err(Error::io(&self.info.name))
    }
}
