//! The bytes of a GGUF header: counts, metadata, tensors. What they mean is for others.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use taper_kernels::Stored;

use super::Tensor;
use crate::Error;

const MAGIC: &[u8; 4] = b"GGUF";
/// `general.alignment` where the file does not say.
const ALIGNMENT: u64 = 32;
/// Most sides of a tensor, as in ggml.
const MAX_DIMS: u32 = 4;

/// Types of metadata.
const U8: u32 = 0;
const F32: u32 = 6;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const LIST: u32 = 9;

/// Names of ggml's tensor types, by number; those that ggml dropped are empty.
const TYPES: [&str; 40] = [
    "F32", "F16", "Q4_0", "Q4_1", "", "", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8",
    "I16", "I32", "I64", "F64", "IQ1_M", "BF16", "", "", "", "TQ1_0", "TQ2_0", "", "", "", "MXFP4",
];

/// The number that ggml gives to a type.
pub fn type_number(stored: Stored) -> u32 {
    match stored {
        Stored::F32 => 0,
        Stored::F16 => 1,
        Stored::Q4_0 => 2,
        Stored::Q8_0 => 8,
        Stored::Q4_K => 12,
        Stored::Q5_K => 13,
        Stored::Q6_K => 14,
        Stored::Bf16 => 30,
    }
}

fn stored(number: u32) -> Option<Stored> {
    use Stored::{Bf16, F16, F32, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0};
    [F32, F16, Bf16, Q8_0, Q4_0, Q4_K, Q5_K, Q6_K].into_iter().find(|&stored| type_number(stored) == number)
}

/// One value of the metadata.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    Number(i128),
    Float(f64),
    Flag(bool),
    Text(Range<usize>),
    /// Where its items lie, all of type `kind`.
    List {
        kind: u32,
        range: Range<usize>,
    },
}

impl Entry {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Number(_) => "a whole number",
            Self::Float(_) => "a number",
            Self::Flag(_) => "true or false",
            Self::Text(_) => "a text",
            Self::List { .. } => "a list",
        }
    }

    pub(super) fn number(&self) -> Option<u64> {
        if let Self::Number(n) = self { u64::try_from(*n).ok() } else { None }
    }

    pub(super) fn float(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            Self::Number(n) => Some(*n as f64),
            _ => None,
        }
    }

    pub(super) fn flag(&self) -> Option<bool> {
        if let Self::Flag(flag) = self { Some(*flag) } else { None }
    }

    pub(super) fn text<'a>(&self, bytes: &'a [u8]) -> Option<&'a str> {
        if let Self::Text(range) = self { std::str::from_utf8(&bytes[range.clone()]).ok() } else { None }
    }

    pub(super) fn texts<'a>(&self, bytes: &'a [u8]) -> Option<Vec<&'a str>> {
        let Self::List { kind: TEXT, range } = self else { return None };
        let mut rest = &bytes[range.clone()];
        let mut texts = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<8>() {
            let (text, after) = after.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
            texts.push(std::str::from_utf8(text).ok()?);
            rest = after;
        }
        Some(texts)
    }

    /// The items of a list whose type has four bytes.
    fn words<'a>(&self, bytes: &'a [u8], kinds: &[u32]) -> Option<&'a [[u8; 4]]> {
        match self {
            Self::List { kind, range } if kinds.contains(kind) => Some(bytes[range.clone()].as_chunks().0),
            _ => None,
        }
    }

    pub(super) fn floats(&self, bytes: &[u8]) -> Option<Vec<f32>> {
        Some(self.words(bytes, &[F32])?.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }

    pub(super) fn integers(&self, bytes: &[u8]) -> Option<Vec<i32>> {
        Some(self.words(bytes, &[4, 5])?.iter().map(|word| i32::from_le_bytes(*word)).collect())
    }
}

type Header = (BTreeMap<String, Entry>, BTreeMap<String, Tensor>);

/// Reads the header of the file `path` that holds `bytes`.
pub(super) fn header(path: &Path, bytes: &[u8]) -> Result<Header, Error> {
    let mut reader = Reader { path, bytes, at: 0 };
    if reader.take(4, "the magic number")? != MAGIC {
        return Err(reader.bad("does not start with `GGUF`: not a GGUF file"));
    }
    match reader.u32("the version")? {
        2 | 3 => {}
        version if version.swap_bytes() <= 3 => {
            return Err(reader.bad("is a big-endian GGUF file; taper reads little-endian ones"));
        }
        version => {
            return Err(reader.bad(format!(
                "is GGUF of version {version}; taper reads 2 and 3: convert the model again with llama.cpp"
            )));
        }
    }
    let (tensors, entries) = (reader.u64("the number of tensors")?, reader.u64("the number of metadata")?);
    let entries = reader.entries(entries)?;
    let tensors = reader.tensors(tensors, &entries)?;
    Ok((entries, tensors))
}

struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn bad(&self, what: impl Into<String>) -> Error {
        Error::file(self.path, what)
    }

    /// The next `count` bytes, which are `what`.
    fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], Error> {
        let left = self.bytes.len() - self.at;
        if count > left as u64 {
            return Err(self.bad(format!(
                "{what} claims {count} bytes at byte {}, where {left} are left: truncated or damaged; download it again",
                self.at
            )));
        }
        let start = self.at;
        self.at += count as usize;
        Ok(&self.bytes[start..self.at])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32, Error> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, Error> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Where a text lies.
    fn text(&mut self, what: &str) -> Result<Range<usize>, Error> {
        let length = self.u64(what)?;
        self.take(length, what)?;
        Ok(self.at - length as usize..self.at)
    }

    fn name(&mut self, what: &str) -> Result<String, Error> {
        let range = self.text(what)?;
        let text = std::str::from_utf8(&self.bytes[range]);
        text.map(str::to_owned).map_err(|_| self.bad(format!("{what} is not UTF-8: damaged")))
    }

    fn entries(&mut self, count: u64) -> Result<BTreeMap<String, Entry>, Error> {
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let key = self.name("a metadata key")?;
            let what = format!("metadata `{key}`");
            let kind = self.u32(&what)?;
            let entry = self.entry(kind, &what)?;
            if entries.insert(key, entry).is_some() {
                return Err(self.bad(format!("{what} is there twice")));
            }
        }
        Ok(entries)
    }

    fn entry(&mut self, kind: u32, what: &str) -> Result<Entry, Error> {
        let number = |n: i128| Ok(Entry::Number(n));
        match kind {
            U8 => number(u8::from_le_bytes(self.array(what)?).into()),
            1 => number(i8::from_le_bytes(self.array(what)?).into()),
            2 => number(u16::from_le_bytes(self.array(what)?).into()),
            3 => number(i16::from_le_bytes(self.array(what)?).into()),
            4 => number(u32::from_le_bytes(self.array(what)?).into()),
            5 => number(i32::from_le_bytes(self.array(what)?).into()),
            F32 => Ok(Entry::Float(f32::from_le_bytes(self.array(what)?).into())),
            BOOL => Ok(Entry::Flag(self.array::<1>(what)?[0] != 0)),
            TEXT => Ok(Entry::Text(self.text(what)?)),
            LIST => self.list(what),
            10 => number(u64::from_le_bytes(self.array(what)?).into()),
            11 => number(i64::from_le_bytes(self.array(what)?).into()),
            12 => Ok(Entry::Float(f64::from_le_bytes(self.array(what)?))),
            other => Err(self.bad(format!("{what} is of type {other}, which GGUF does not know: damaged"))),
        }
    }

    fn list(&mut self, what: &str) -> Result<Entry, Error> {
        let (kind, count) = (self.u32(what)?, self.u64(what)?);
        let start = self.at;
        let size = match kind {
            0 | 1 | BOOL => 1,
            2 | 3 => 2,
            4..=F32 => 4,
            10..=12 => 8,
            TEXT => {
                for _ in 0..count {
                    self.text(what)?;
                }
                return Ok(Entry::List { kind, range: start..self.at });
            }
            other => {
                return Err(self.bad(format!("{what} is a list of type {other}, which taper does not read")));
            }
        };
        self.take(count.saturating_mul(size), what)?;
        Ok(Entry::List { kind, range: start..self.at })
    }

    fn tensors(
        &mut self,
        count: u64,
        entries: &BTreeMap<String, Entry>,
    ) -> Result<BTreeMap<String, Tensor>, Error> {
        let mut found = Vec::new();
        for _ in 0..count {
            let name = self.name("a tensor's name")?;
            let what = format!("tensor `{name}`");
            let shape = self.shape(&what)?;
            let kind = self.u32(&what)?;
            let offset = self.u64(&what)?;
            found.push((name, shape, kind, offset));
        }
        let alignment = entries.get("general.alignment").and_then(Entry::number).unwrap_or(ALIGNMENT);
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            return Err(
                self.bad(format!("`general.alignment` is {alignment}, expected a small power of two"))
            );
        }
        let start = (self.at as u64).next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for (name, shape, kind, offset) in found {
            let tensor = self.tensor(&name, (shape, kind), start.checked_add(offset))?;
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(self.bad(format!("tensor `{name}` is there twice")));
            }
        }
        Ok(tensors)
    }

    /// Row-major: the file's first side is the length of a row.
    fn shape(&mut self, what: &str) -> Result<Vec<u64>, Error> {
        let dims = self.u32(what)?;
        if dims > MAX_DIMS {
            return Err(self.bad(format!("{what} has {dims} sides, ggml knows at most {MAX_DIMS}: damaged")));
        }
        let mut shape = (0..dims).map(|_| self.u64(what)).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        Ok(shape)
    }

    fn tensor(
        &self,
        name: &str,
        (shape, kind): (Vec<u64>, u32),
        start: Option<u64>,
    ) -> Result<Tensor, Error> {
        let Some(stored) = stored(kind) else {
            let called = TYPES.get(kind as usize).filter(|name| !name.is_empty());
            let called =
                called.map_or_else(|| format!("type {kind}"), |name| format!("{name} (type {kind})"));
            return Err(self.bad(format!(
                "tensor `{name}` is stored as {called}; taper reads F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K and Q6_K: \
                 take another file of this model, Q4_K_S or Q8_0 for example"
            )));
        };
        let values = shape.iter().try_fold(1u64, |all, &side| all.checked_mul(side));
        let row = shape.last().copied().unwrap_or(1);
        let bytes = values
            .filter(|_| row.is_multiple_of(stored.block() as u64))
            .and_then(|values| stored.bytes(usize::try_from(values).ok()?));
        let end = bytes.and_then(|bytes| start?.checked_add(bytes as u64));
        match (bytes, start, end) {
            (Some(_), Some(start), Some(end)) if end <= self.bytes.len() as u64 => {
                let shape = shape.into_iter().map(|side| side as usize).collect();
                Ok(Tensor { shape, stored, range: start as usize..end as usize })
            }
            (Some(bytes), ..) => Err(self.bad(format!(
                "tensor `{name}` claims {bytes} bytes at byte {}, the file has {}: truncated or damaged; download it again",
                start.unwrap_or(u64::MAX),
                self.bytes.len()
            ))),
            _ => Err(self.bad(format!(
                "tensor `{name}` claims the shape {shape:?} of {stored:?} values, which cannot be: damaged"
            ))),
        }
    }
}
