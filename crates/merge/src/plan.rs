//! What becomes of every byte of the base's weight files: copied where it is, or merged, in place.
//!
//! Merged files have the base's names, headers and offsets, but where tensors are new: a head that parts from its tied
//! embedding, and the head of a task that the base's files lack, or have for other labels. They go to the end of the file
//! that holds the embedding.

mod file;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use taper_base::{Checkpoint, TensorInfo};

use crate::merge::Source;
use crate::{Error, values};
pub(crate) use file::{Added, Dropped, OutFile};

/// Every file to write, and every tensor in them that is not copied.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) files: Vec<OutFile>,
    pub(crate) targets: Vec<Target>,
    /// Whether the head gets a matrix of its own.
    pub(crate) unties: bool,
}

/// A tensor that is merged.
#[derive(Debug)]
pub(crate) struct Target {
    /// The parameter, by its path in the model.
    pub(crate) parameter: String,
    /// Name of the tensor in its file.
    pub(crate) name: String,
    /// Index of that file.
    pub(crate) file: usize,
    /// Where it starts in the new file.
    pub(crate) offset: u64,
    /// The bytes that it replaces in the base's file; none if it is new there.
    pub(crate) replaces: Option<Range<u64>>,
    /// The base's tensor that it is made from; zeros where there is none.
    pub(crate) from: Option<String>,
    pub(crate) dtype: Dtype,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Plan {
    /// The plan for a base of which `changed` parameters change; with `unties`, embedding and head part.
    pub(crate) fn new(source: &Source<'_>, changed: &[&str], unties: bool) -> Result<Self, Error> {
        let files = source.checkpoint.files().map(OutFile::like).collect::<Result<_, _>>()?;
        let mut plan = Self { files, targets: Vec::new(), unties };
        let ends = source.ends();
        let shared = if unties { Some(plan.part(source, &ends)?) } else { None };
        for (name, shape) in &source.fresh {
            plan.add_fresh(source, name, shape)?;
        }
        plan.files.iter_mut().try_for_each(OutFile::renew_header)?;
        let mut seen = BTreeSet::new();
        for &parameter in changed {
            let shared = shared.as_deref().filter(|_| ends.iter().any(|end| end == parameter));
            let target = plan.target(source, parameter, shared)?;
            // Embedding and head of a model that stays tied are one tensor, and change alike.
            if seen.insert(target.name.clone()) {
                plan.targets.push(target);
            }
        }
        Ok(plan)
    }

    /// Adds whichever of embedding and head the base's files have no tensor of its own for, and names the matrix that they
    /// have for both.
    fn part(&mut self, source: &Source<'_>, ends: &[String; 2]) -> Result<String, Error> {
        let checkpoint = source.checkpoint;
        let shared = checkpoint.stored_name(&ends[0], true).ok_or_else(|| missing(source.dir, &ends[0]))?;
        let info = checkpoint.info(shared).ok_or_else(|| missing(source.dir, shared))?;
        for name in ends.iter().filter(|name| checkpoint.stored_name(name, false).is_none()) {
            self.add(info, name, &info.shape)?;
        }
        Ok(shared.to_owned())
    }

    /// Adds a tensor of the task's head, in the place of one for other labels if there is one.
    fn add_fresh(&mut self, source: &Source<'_>, name: &str, shape: &[usize]) -> Result<(), Error> {
        let checkpoint = source.checkpoint;
        if let Some(info) = checkpoint.info(name) {
            let range = info.range.start as u64..info.range.end as u64;
            let values = info.shape.iter().product::<usize>() as u64;
            self.files[info.file].dropped.push(Dropped { name: name.to_owned(), range, values });
        }
        let embedding = source.ends().into_iter().next().unwrap_or_default();
        let stored = checkpoint.stored_name(&embedding, true).and_then(|name| checkpoint.info(name));
        self.add(stored.ok_or_else(|| missing(source.dir, &embedding))?, name, shape)
    }

    /// Adds a tensor `name` at the end of the file of `like`, of its type.
    fn add(&mut self, like: &TensorInfo, name: &str, shape: &[usize]) -> Result<(), Error> {
        let file = &mut self.files[like.file];
        let dtype = mergeable(&file.source, name, like)?;
        let bytes = shape.iter().product::<usize>() * values::size(dtype).unwrap_or_default();
        let shape = shape.to_vec();
        file.added.push(Added { name: name.to_owned(), dtype, shape, bytes: bytes as u64 });
        Ok(())
    }

    /// The target of `parameter`; of an embedding and a head that part, made from `shared`.
    fn target(&self, source: &Source<'_>, parameter: &str, shared: Option<&str>) -> Result<Target, Error> {
        let added =
            self.files.iter().enumerate().find_map(|(i, file)| Some((i, file.find_added(parameter)?)));
        let Some((file, (offset, added))) = added else {
            let tied = source.tied && !self.unties;
            let Some(name) = source.checkpoint.stored_name(parameter, tied) else {
                return Err(missing(source.dir, parameter));
            };
            return self.in_place(source.checkpoint, parameter, name, shared.unwrap_or(name));
        };
        let (rows, cols) = matrix(&added.shape);
        Ok(Target {
            parameter: parameter.to_owned(),
            name: parameter.to_owned(),
            file,
            offset,
            replaces: None,
            from: shared.map(str::to_owned),
            dtype: added.dtype,
            rows,
            cols,
        })
    }

    /// The target that replaces the tensor `name`, made from `from`.
    fn in_place(
        &self,
        checkpoint: &Checkpoint,
        parameter: &str,
        name: &str,
        from: &str,
    ) -> Result<Target, Error> {
        let find = |name: &str| checkpoint.info(name).ok_or_else(|| missing(&self.files[0].source, name));
        let (at, source) = (find(name)?, find(from)?);
        let file = &self.files[at.file];
        if (at.dtype, &at.shape) != (source.dtype, &source.shape) {
            let what = format!(
                "tensor `{name}` is {:?} {:?}, but `{from}`, to which it is tied, {:?} {:?}",
                at.dtype, at.shape, source.dtype, source.shape
            );
            return Err(Error::file(&file.source, what));
        }
        let dtype = mergeable(&file.source, name, at)?;
        let range = at.range.start as u64..at.range.end as u64;
        let (rows, cols) = matrix(&at.shape);
        Ok(Target {
            parameter: parameter.to_owned(),
            name: name.to_owned(),
            file: at.file,
            offset: file.place(range.start),
            replaces: Some(range),
            from: Some(from.to_owned()),
            dtype,
            rows,
            cols,
        })
    }

    /// The tensors that a file gets more, each with that file.
    pub(crate) fn added(&self) -> impl Iterator<Item = (&OutFile, &Added)> {
        self.files.iter().flat_map(|file| file.added.iter().map(move |added| (file, added)))
    }

    /// The base's tensors that are left out.
    pub(crate) fn dropped(&self) -> impl Iterator<Item = &Dropped> {
        self.files.iter().flat_map(|file| &file.dropped)
    }

    /// Ranges of the base's file `file` that are copied, in their order.
    pub(crate) fn copied(&self, file: usize) -> Vec<Range<u64>> {
        let of_file = self.targets.iter().filter(|target| target.file == file);
        self.files[file].copied(of_file.filter_map(|target| target.replaces.clone()))
    }
}

/// Rows and columns of a tensor: those of a vector are of one value.
fn matrix(shape: &[usize]) -> (usize, usize) {
    (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product())
}

/// The type of a tensor like `info`, if it is one that taper merges into.
fn mergeable(file: &Path, name: &str, info: &TensorInfo) -> Result<Dtype, Error> {
    info.dtype.plain().filter(|dtype| values::size(*dtype).is_some()).ok_or_else(|| {
        let what =
            format!("tensor `{name}` is stored as {:?}: taper merges into F32, F16 and BF16", info.dtype);
        Error::file(file, what)
    })
}

fn missing(place: &Path, parameter: &str) -> Error {
    if let Some(module) = parameter.strip_suffix(".bias") {
        let what = format!(
            "has no bias `{parameter}` to merge into: `{module}` has none, as in PEFT the adapter stays one"
        );
        return Error::file(place, what);
    }
    Error::file(
        place,
        format!("has no tensor for `{parameter}`, which the adapter changes: it belongs to another base"),
    )
}
