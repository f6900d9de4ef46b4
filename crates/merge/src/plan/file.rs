//! A weight file of the merged model: what of the base's file it keeps, what it gains, and its header.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::Error;

/// A weight file.
#[derive(Debug)]
pub(crate) struct OutFile {
    /// The base's file.
    pub(crate) source: PathBuf,
    /// Its new header, length field included; none where it is the base's.
    pub(crate) new_header: Option<Vec<u8>>,
    /// Tensors that follow what the base's file has, in this order.
    pub(crate) added: Vec<Added>,
    /// Tensors of the base's file that are left out.
    pub(crate) dropped: Vec<Dropped>,
    /// Bytes of the base's header, length field included.
    header: u64,
    /// Bytes of the base's file.
    source_len: u64,
}

/// A tensor that the base's file does not have.
#[derive(Clone, Debug)]
pub(crate) struct Added {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: u64,
}

impl Added {
    pub(crate) fn values(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64
    }
}

/// A tensor of the base's file that the merged one does not have.
#[derive(Clone, Debug)]
pub(crate) struct Dropped {
    pub(crate) name: String,
    /// Where it lies in the base's file.
    pub(crate) range: Range<u64>,
    pub(crate) values: u64,
}

impl OutFile {
    /// The base's file `source` as it is.
    pub(super) fn like(source: &Path) -> Result<Self, Error> {
        let mut length = [0; 8];
        let mut file = File::open(source).map_err(Error::io(source))?;
        file.read_exact(&mut length).map_err(Error::io(source))?;
        let source_len = file.metadata().map_err(Error::io(source))?.len();
        Ok(Self {
            source: source.to_owned(),
            new_header: None,
            added: Vec::new(),
            dropped: Vec::new(),
            header: 8 + u64::from_le_bytes(length),
            source_len,
        })
    }

    /// Where the byte `at` of the base's file lies in the new one.
    pub(crate) fn place(&self, at: u64) -> u64 {
        match &self.new_header {
            Some(header) => header.len() as u64 + self.in_data(at - self.header),
            None => at,
        }
    }

    /// Where the byte `at` of the base's data lies in the new data.
    fn in_data(&self, at: u64) -> u64 {
        let before =
            self.dropped.iter().map(|dropped| &dropped.range).filter(|range| range.start < at + self.header);
        at - before.map(|range| range.end - range.start).sum::<u64>()
    }

    /// Bytes of the new file.
    pub(crate) fn len(&self) -> u64 {
        self.place(self.source_len) + self.added.iter().map(|added| added.bytes).sum::<u64>()
    }

    /// An added tensor, and where it starts in the new file.
    pub(super) fn find_added(&self, name: &str) -> Option<(u64, &Added)> {
        let index = self.added.iter().position(|added| added.name == name)?;
        let before: u64 = self.added[..index].iter().map(|added| added.bytes).sum();
        Some((self.place(self.source_len) + before, &self.added[index]))
    }

    /// Ranges of the base's file that are copied, in their order: all but `replaced` and what is dropped.
    pub(super) fn copied(&self, replaced: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
        let mut left_out: Vec<_> =
            self.dropped.iter().map(|dropped| dropped.range.clone()).chain(replaced).collect();
        left_out.sort_unstable_by_key(|range| range.start);
        let mut ranges = Vec::new();
        let mut at = if self.new_header.is_some() { self.header } else { 0 };
        for range in left_out {
            ranges.push(at..range.start);
            at = range.end;
        }
        ranges.push(at..self.source_len);
        ranges.retain(|range| !range.is_empty());
        ranges
    }

    /// Makes the new header, if the file has other tensors than the base's: padded with spaces to a multiple of eight bytes.
    pub(super) fn renew_header(&mut self) -> Result<(), Error> {
        if self.added.is_empty() && self.dropped.is_empty() {
            return Ok(());
        }
        let mut header = self.read_header()?;
        header.retain(|name, _| !self.dropped.iter().any(|dropped| dropped.name == *name));
        for (_, entry) in header.iter_mut().filter(|(name, _)| *name != "__metadata__") {
            for end in entry["data_offsets"].as_array_mut().into_iter().flatten() {
                *end = self.in_data(end.as_u64().unwrap_or_default()).into();
            }
        }
        let mut end = self.in_data(self.source_len - self.header);
        for Added { name, dtype, shape, bytes } in &self.added {
            let offsets = [end, end + bytes];
            header.insert(
                name.clone(),
                json!({"dtype": format!("{dtype:?}"), "shape": shape, "data_offsets": offsets}),
            );
            end += bytes;
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        self.new_header = Some([&(text.len() as u64).to_le_bytes()[..], &text].concat());
        Ok(())
    }

    fn read_header(&self) -> Result<Map<String, Value>, Error> {
        let mut bytes = vec![0; self.header as usize];
        let mut source = File::open(&self.source).map_err(Error::io(&self.source))?;
        source.read_exact(&mut bytes).map_err(Error::io(&self.source))?;
        serde_json::from_slice(&bytes[8..])
            .map_err(|source| Error::file(&self.source, format!("its header is not JSON: {source}")))
    }
}
