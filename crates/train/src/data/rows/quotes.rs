//! Where a cell of a CSV file is opened that nothing closes. Reading cells is the csv crate's, which reads one up to the end of the file.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// Where in a cell a byte stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// At its beginning.
    Start,
    /// In one without quotation marks, or behind the mark that closes it.
    Plain,
    /// Between its marks.
    Quoted,
    /// Behind a mark that closes it or, if another follows, is the text's.
    Mark,
}

/// The line of the quotation mark of the record at `start` that is still open at the end of the file; none if all are closed.
pub(super) fn unclosed(path: &Path, start: &csv::Position, delimiter: u8) -> io::Result<Option<usize>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start.byte()))?;
    let (mut at, mut line, mut opened) = (At::Start, start.line() as usize, 0);
    let mut bytes = BufReader::with_capacity(1 << 16, file).bytes().peekable();
    if start.byte() == 0 {
        for byte in "\u{feff}".bytes() {
            if bytes.next_if(|next| matches!(next, Ok(next) if *next == byte)).is_none() {
                break;
            }
        }
    }
    for byte in bytes {
        let byte = byte?;
        at = match (at, byte) {
            (At::Start, b'"') => {
                opened = line;
                At::Quoted
            }
            (At::Quoted, b'"') => At::Mark,
            (At::Mark, b'"') | (At::Quoted, _) => At::Quoted,
            (_, b'\n' | b'\r') => At::Start,
            (_, byte) if byte == delimiter => At::Start,
            _ => At::Plain,
        };
        line += usize::from(byte == b'\n');
    }
    Ok((at == At::Quoted).then_some(opened))
}
