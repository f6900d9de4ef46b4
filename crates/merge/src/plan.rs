//! What becomes of every byte of the base's weight files: copied where it is, or merged, in place.
//!
//! Merged files have the base's names, headers and offsets. Only a head that parts from its tied embedding is new: it goes
//! to the end of the file that holds the embedding.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Map, Value, json};
use taper_base::{Checkpoint, TensorInfo};

use crate::merge::Source;
use crate::{Error, values};

/// Every file to write, and every tensor in them that is not copied.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) files: Vec<OutFile>,
    pub(crate) targets: Vec<Target>,
    /// Whether the head gets a matrix of its own.
    pub(crate) unties: bool,
}

/// A weight file.
#[derive(Debug)]
pub(crate) struct OutFile {
    /// The base's file.
    pub(crate) source: PathBuf,
    /// Its new header, length field included, and the tensor added to it, if there is one.
    pub(crate) added: Option<Added>,
    /// Bytes of the base's header, length field included.
    pub(crate) header: u64,
    /// Bytes of the base's file.
    pub(crate) source_len: u64,
}

/// A tensor that the base's file does not have.
#[derive(Debug)]
pub(crate) struct Added {
    pub(crate) header: Vec<u8>,
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) values: u64,
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
    /// The base's tensor that it is made from.
    pub(crate) from: String,
    pub(crate) dtype: Dtype,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl OutFile {
    /// How much further than in the base's file the tensors lie.
    pub(crate) fn shift(&self) -> u64 {
        self.added.as_ref().map_or(0, |added| added.header.len() as u64 - self.header)
    }

    /// Bytes of the new file.
    pub(crate) fn len(&self) -> u64 {
        self.source_len + self.added.as_ref().map_or(0, |added| added.bytes + self.shift())
    }
}

impl Plan {
    /// The plan for a base of which `changed` parameters change; with `unties`, embedding and head part.
    pub(crate) fn new(source: &Source<'_>, changed: &[&str], unties: bool) -> Result<Self, Error> {
        let checkpoint = source.checkpoint;
        let files = checkpoint.files().map(OutFile::like).collect::<Result<_, _>>()?;
        let mut plan = Self { files, targets: Vec::new(), unties };
        let ends = source.ends();
        if unties {
            plan.untie(checkpoint, &ends)?;
        }
        let mut seen = BTreeSet::new();
        for parameter in changed.iter().filter(|name| !(unties && ends.iter().any(|end| end == *name))) {
            let Some(name) = checkpoint.stored_name(parameter, source.tied) else {
                return Err(missing(source.dir, parameter));
            };
            // Embedding and head of a model that stays tied are one tensor, and change alike.
            if seen.insert(name) {
                let target = plan.target(checkpoint, parameter, name, name)?;
                plan.targets.push(target);
            }
        }
        Ok(plan)
    }

    /// Makes targets of the embedding and the head, both from the one matrix that the base has for them.
    fn untie(&mut self, checkpoint: &Checkpoint, ends: &[String; 2]) -> Result<(), Error> {
        let find = |name: &str| {
            checkpoint
                .stored_name(name, true)
                .map(str::to_owned)
                .ok_or_else(|| missing(&self.files[0].source, name))
        };
        let shared = find(&ends[0])?;
        let own = |name: &str| checkpoint.stored_name(name, false);
        for parameter in ends.iter().filter(|name| own(name).is_none()) {
            self.add(checkpoint, parameter, &shared)?;
        }
        for parameter in ends {
            let target = self.target(checkpoint, parameter, own(parameter).unwrap_or(parameter), &shared)?;
            self.targets.push(target);
        }
        Ok(())
    }

    /// Adds a tensor `name`, like `model`, at the end of the file of that one.
    fn add(&mut self, checkpoint: &Checkpoint, name: &str, model: &str) -> Result<(), Error> {
        let info = checkpoint.info(model).ok_or_else(|| missing(&self.files[0].source, model))?;
        let file = &mut self.files[info.file];
        let header = extended_header(file, name, info)?;
        file.added = Some(Added {
            header,
            name: name.to_owned(),
            bytes: info.range.len() as u64,
            values: info.shape.iter().product::<usize>() as u64,
        });
        Ok(())
    }

    fn target(
        &self,
        checkpoint: &Checkpoint,
        parameter: &str,
        name: &str,
        from: &str,
    ) -> Result<Target, Error> {
        let source = checkpoint.info(from).ok_or_else(|| missing(&self.files[0].source, from))?;
        let own = checkpoint.info(name);
        let at = own.unwrap_or(source);
        let file = &self.files[at.file];
        if (at.dtype, &at.shape) != (source.dtype, &source.shape) {
            let what = format!(
                "tensor `{name}` is {:?} {:?}, but `{from}`, to which it is tied, {:?} {:?}",
                at.dtype, at.shape, source.dtype, source.shape
            );
            return Err(Error::file(&file.source, what));
        }
        let Some(dtype) = at.dtype.plain().filter(|dtype| values::size(*dtype).is_some()) else {
            let what =
                format!("tensor `{name}` is stored as {:?}: taper merges into F32, F16 and BF16", at.dtype);
            return Err(Error::file(&file.source, what));
        };
        let replaces = own.map(|info| info.range.start as u64..info.range.end as u64);
        let end = file.source_len + file.shift();
        let rows = at.shape.first().copied().unwrap_or(1);
        Ok(Target {
            parameter: parameter.to_owned(),
            name: name.to_owned(),
            file: at.file,
            offset: replaces.as_ref().map_or(end, |range| range.start + file.shift()),
            replaces,
            from: from.to_owned(),
            dtype,
            rows,
            cols: at.shape.iter().skip(1).product(),
        })
    }

    /// The files that get a tensor more, with it.
    pub(crate) fn added(&self) -> impl Iterator<Item = (&OutFile, &Added)> {
        self.files.iter().filter_map(|file| Some((file, file.added.as_ref()?)))
    }

    /// Ranges of the base's file `file` that are copied, in their order.
    pub(crate) fn copied(&self, file: usize) -> Vec<Range<u64>> {
        let out = &self.files[file];
        let mut replaced: Vec<_> =
            self.targets.iter().filter(|t| t.file == file).filter_map(|t| t.replaces.clone()).collect();
        replaced.sort_unstable_by_key(|range| range.start);
        let mut ranges = Vec::new();
        let mut at = if out.added.is_some() { out.header } else { 0 };
        for range in replaced {
            ranges.push(at..range.start);
            at = range.end;
        }
        ranges.push(at..out.source_len);
        ranges.retain(|range| !range.is_empty());
        ranges
    }
}

impl OutFile {
    fn like(source: &Path) -> Result<Self, Error> {
        let mut length = [0; 8];
        let mut file = std::fs::File::open(source).map_err(Error::io(source))?;
        std::io::Read::read_exact(&mut file, &mut length).map_err(Error::io(source))?;
        let source_len = file.metadata().map_err(Error::io(source))?.len();
        Ok(Self {
            source: source.to_owned(),
            added: None,
            header: 8 + u64::from_le_bytes(length),
            source_len,
        })
    }
}

/// The header of `file` with one tensor more, padded with spaces to a multiple of eight bytes.
fn extended_header(file: &OutFile, name: &str, like: &TensorInfo) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; file.header as usize];
    let mut source = std::fs::File::open(&file.source).map_err(Error::io(&file.source))?;
    std::io::Read::read_exact(&mut source, &mut bytes).map_err(Error::io(&file.source))?;
    let mut header: Map<String, Value> = serde_json::from_slice(&bytes[8..])
        .map_err(|source| Error::file(&file.source, format!("its header is not JSON: {source}")))?;
    let end = file.source_len - file.header;
    let dtype = format!("{:?}", like.dtype);
    let entry =
        json!({"dtype": dtype, "shape": like.shape, "data_offsets": [end, end + like.range.len() as u64]});
    header.insert(name.to_owned(), entry);
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok([&(text.len() as u64).to_le_bytes()[..], &text].concat())
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
