//! Text files by line, and JSONL: one object a line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Found;
use super::once::Once;
use crate::Error;
use crate::data::format::kind;

/// Most bytes of a line; a longer one is no row of text but some other kind of file.
const LONGEST: u64 = 64 << 20;

/// The lines of a UTF-8 file without their ends and without a byte order mark.
pub(super) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    line: usize,
}

impl Lines {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io(path))?;
        Ok(Self { path: path.to_path_buf(), reader: BufReader::with_capacity(1 << 16, file), line: 0 })
    }
}

impl Iterator for Lines {
    type Item = Result<(usize, String), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.line += 1;
        let mut bytes = Vec::new();
        match self.reader.by_ref().take(LONGEST).read_until(b'\n', &mut bytes) {
            Err(error) => return Some(Err(Error::io(&self.path)(error))),
            Ok(0) => return None,
            Ok(read) if read as u64 == LONGEST && bytes.last() != Some(&b'\n') => {
                let what = format!("is longer than {} MiB, expected one row a line", LONGEST >> 20);
                return Some(Err(Error::row(&self.path, self.line, what)));
            }
            Ok(_) => {}
        }
        let text = utf8(bytes).map_err(|what| Error::row(&self.path, self.line, what));
        Some(text.map(|mut text| {
            if text.ends_with('\n') {
                text.pop();
            }
            if text.ends_with('\r') {
                text.pop();
            }
            if self.line == 1 && text.starts_with('\u{feff}') {
                text.drain(..'\u{feff}'.len_utf8());
            }
            (self.line, text)
        }))
    }
}

/// `bytes` as text.
pub(super) fn utf8(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|error| {
        let (at, bytes) = (error.utf8_error().valid_up_to(), error.as_bytes());
        if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
            return "is UTF-16, expected UTF-8: save the file as UTF-8".to_owned();
        }
        let byte = bytes.get(at).copied().unwrap_or_default();
        format!("byte {byte:#04x} at column {} is not UTF-8: save the file as UTF-8", at + 1)
    })
}

/// The objects of a JSONL file; blank lines are passed over.
pub(super) fn objects(path: &Path) -> Result<impl Iterator<Item = Found> + use<>, Error> {
    let lines = Lines::open(path)?;
    let path = path.to_path_buf();
    Ok(lines.filter(|line| !matches!(line, Ok((_, text)) if text.trim().is_empty())).map(move |line| {
        let (line, text) = line?;
        match serde_json::from_str(&text) {
            Ok(Once(Value::Object(fields))) => Ok((line, fields)),
            Ok(Once(other)) => {
                let hint = if other.is_array() { " (a list of rows is called .json)" } else { "" };
                let what = format!("is {}, expected an object {{…}} on each line{hint}", kind(&other));
                Err(Error::row(&path, line, what))
            }
            Err(error) => Err(Error::row(&path, line, not_json(&error, 0))),
        }
    }))
}

/// About text that is not JSON, or names a key twice; the line is the caller's, as are the bytes `before` the text in its line.
pub(super) fn not_json(error: &serde_json::Error, before: usize) -> String {
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or_default();
    let what = if error.is_data() { "" } else { "is not valid JSON: " };
    format!("{what}{reason} (column {})", before + error.column())
}
