//! `.json` files: a list of objects, an object with such a list under `data`, or what is really JSONL, or a single row.

use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::once::Once;
use super::{Found, lines};
use crate::Error;
use crate::data::format::{Fields, kind};

/// Keys of an outermost object under which rows are looked for.
const LISTS: [&str; 5] = ["data", "rows", "examples", "train", "instances"];

/// The rows of a `.json` file.
pub(super) fn open(path: &Path) -> Result<Box<dyn Iterator<Item = Found>>, Error> {
    let mut rows = Objects { path: path.to_path_buf(), bytes: read(path)?, at: 0, line: 1, over: false };
    if rows.bytes.starts_with("\u{feff}".as_bytes()) {
        rows.at = 3;
    }
    match rows.peek() {
        Some(b'[') => {
            rows.at += 1;
            Ok(Box::new(rows))
        }
        Some(b'{') => {
            if rows.find_list()? {
                return Ok(Box::new(rows));
            }
            let line = rows.line;
            let Once(row) = rows.value()?;
            if rows.peek().is_some() {
                return Ok(Box::new(lines::objects(path)?));
            }
            let fields = row.as_object().cloned().unwrap_or_default();
            Ok(Box::new(std::iter::once(Ok((line, fields)))))
        }
        Some(_) => Err(rows.error("expected a list of rows [{…}, …]")),
        None => Err(Error::file(path, "holds no row, expected a list of rows [{…}, …]")),
    }
}

/// The whole file, if there is room for it.
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
    let mut bytes = Vec::new();
    if usize::try_from(size).ok().and_then(|size| bytes.try_reserve_exact(size).ok()).is_none() {
        let what = format!(
            "has {size} bytes, more than there is memory for: write it as .jsonl, which is read by line"
        );
        return Err(Error::file(path, what));
    }
    let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
    std::io::Read::read_to_end(&mut file, &mut bytes).map_err(Error::io(path))?;
    Ok(bytes)
}

/// The elements of a list, parsed in place one by one.
struct Objects {
    path: PathBuf,
    bytes: Vec<u8>,
    at: usize,
    line: usize,
    over: bool,
}

impl Objects {
    /// Moves to the next byte that is not a space, and gives it.
    fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.bytes.get(self.at).filter(|byte| byte.is_ascii_whitespace()) {
            self.line += usize::from(*byte == b'\n');
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    /// Parses the value at hand and moves behind it.
    fn value<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        let rest = &self.bytes[self.at..];
        let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<T>();
        match values.next() {
            Some(Ok(value)) => {
                let end = values.byte_offset();
                self.line += rest[..end].split(|byte| *byte == b'\n').count() - 1;
                self.at += end;
                Ok(value)
            }
            Some(Err(error)) => {
                self.line += error.line().saturating_sub(1);
                // In its first line, what is parsed begins behind what stood there before.
                let line = self.bytes[..self.at].iter().rev().take_while(|byte| **byte != b'\n');
                let before = if error.line() > 1 { 0 } else { line.count() };
                Err(self.error(lines::not_json(&error, before)))
            }
            None => Err(self.error("the file ends in the middle, expected a value")),
        }
    }

    /// Moves into the list under one of [`LISTS`], if the object at hand has one.
    fn find_list(&mut self) -> Result<bool, Error> {
        let start = (self.at, self.line);
        self.at += 1;
        while self.peek() == Some(b'"') {
            let key: String = self.value()?;
            if self.peek() != Some(b':') {
                return Err(self.error(format!("expected : after {key:?}")));
            }
            self.at += 1;
            if self.peek() == Some(b'[') && LISTS.contains(&key.as_str()) {
                self.at += 1;
                return Ok(true);
            }
            let _: IgnoredAny = self.value()?;
            if self.peek() != Some(b',') {
                break;
            }
            self.at += 1;
        }
        (self.at, self.line) = start;
        Ok(false)
    }

    fn error(&self, what: impl Into<String>) -> Error {
        Error::row(&self.path, self.line, what)
    }

    /// Moves over what stands between two elements; false at the list's end.
    fn more(&mut self) -> Result<bool, Error> {
        let before = self.at.checked_sub(1).and_then(|at| self.bytes.get(at)).copied();
        match (before, self.peek()) {
            // At the list's start.
            (Some(b'['), Some(b']')) => Ok(false),
            (Some(b'['), _) => Ok(true),
            (_, Some(b']')) => {
                self.at += 1;
                Ok(false)
            }
            (_, Some(b',')) => {
                self.at += 1;
                self.peek();
                Ok(true)
            }
            _ => Err(self.error("expected , or ] after a row")),
        }
    }

    fn row(&mut self) -> Result<Option<(usize, Fields)>, Error> {
        if !self.more()? {
            return match self.peek() {
                None | Some(b',' | b'}' | b']') => Ok(None),
                Some(_) => Err(self.error("there is more after the list of rows")),
            };
        }
        let line = self.line;
        match self.value()? {
            Once(Value::Object(fields)) => Ok(Some((line, fields))),
            Once(other) => {
                let what = format!("is {}, expected an object {{…}} for each row", kind(&other));
                Err(Error::row(&self.path, line, what))
            }
        }
    }
}

impl Iterator for Objects {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        if self.over {
            return None;
        }
        let row = self.row().transpose();
        self.over = !matches!(row, Some(Ok(_)));
        row
    }
}
