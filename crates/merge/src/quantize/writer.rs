//! The bytes of a GGUF file (version 3): metadata, tensor infos, then the tensors, each at a multiple of 32.

use std::io::{self, Write};

use taper_base::gguf::type_number;
use taper_kernels::Stored;

const ALIGNMENT: u64 = 32;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Entry {
    U32(u32),
    F32(f32),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Floats(Vec<f32>),
    Integers(Vec<i32>),
}

/// Metadata in the order in which it is written.
pub(super) type Metadata = Vec<(String, Entry)>;

/// What the header says of a tensor.
pub(super) struct Info {
    pub(super) name: String,
    /// Row-major.
    pub(super) shape: Vec<usize>,
    pub(super) stored: Stored,
    pub(super) bytes: u64,
}

/// Writes all before the tensors.
pub(super) fn write_header(
    out: &mut dyn Write,
    metadata: &[(String, Entry)],
    infos: &[&Info],
) -> io::Result<()> {
    let mut header = Vec::from(*b"GGUF");
    header.extend(3u32.to_le_bytes());
    header.extend((infos.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, entry) in metadata {
        put_text(&mut header, key);
        put_entry(&mut header, entry);
    }
    let mut offset = 0;
    for info in infos {
        put_text(&mut header, &info.name);
        header.extend((info.shape.len() as u32).to_le_bytes());
        // ggml counts sides from the innermost.
        for side in info.shape.iter().rev() {
            header.extend((*side as u64).to_le_bytes());
        }
        header.extend(type_number(info.stored).to_le_bytes());
        header.extend(u64::to_le_bytes(offset));
        offset += info.bytes.next_multiple_of(ALIGNMENT);
    }
    let bytes = header.len() as u64;
    out.write_all(&header)?;
    write_padding(out, bytes)
}

/// Fills up after `written` bytes.
pub(super) fn write_padding(out: &mut dyn Write, written: u64) -> io::Result<()> {
    out.write_all(&[0; ALIGNMENT as usize][..(written.next_multiple_of(ALIGNMENT) - written) as usize])
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The type's number, then the value; a list's number is 9, then come that of its items and how many there are.
fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    let list = |out: &mut Vec<u8>, kind: u32, count: usize| {
        out.extend(9u32.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((count as u64).to_le_bytes());
    };
    match entry {
        Entry::U32(n) => out.extend([4u32.to_le_bytes(), n.to_le_bytes()].concat()),
        Entry::F32(x) => out.extend([6u32.to_le_bytes(), x.to_le_bytes()].concat()),
        Entry::Flag(flag) => {
            out.extend(7u32.to_le_bytes());
            out.push(u8::from(*flag));
        }
        Entry::Text(text) => {
            out.extend(8u32.to_le_bytes());
            put_text(out, text);
        }
        Entry::Texts(texts) => {
            list(out, 8, texts.len());
            for text in texts {
                put_text(out, text);
            }
        }
        Entry::Floats(numbers) => {
            list(out, 6, numbers.len());
            out.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
        }
        Entry::Integers(numbers) => {
            list(out, 5, numbers.len());
            out.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
        }
    }
}
