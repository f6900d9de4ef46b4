//! Rows of tables: CSV and TSV with a header line, and Parquet.
//!
//! CSV follows RFC 4180. TSV has no quotes: a quotation mark in it is one, as in the IANA registration, so that a stray one
//! cannot swallow lines.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use parquet::file::reader::SerializedFileReader;
use parquet::record::Field;
use parquet::record::reader::RowIter;
use serde_json::Value;

use super::Found;
use crate::Error;
use crate::data::format::Fields;

/// The records of a CSV or TSV file as texts, keyed by the names in its first line.
pub(super) fn csv(path: &Path, delimiter: u8) -> Result<impl Iterator<Item = Found> + use<>, Error> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(Error::io(path))?);
    let crlf = ends_crlf(file.fill_buf().map_err(Error::io(path))?);
    let mut reader =
        csv::ReaderBuilder::new().delimiter(delimiter).quoting(delimiter != b'\t').from_reader(file);
    let path = path.to_path_buf();
    let header = reader.headers().map_err(|error| csv_error(&path, error, (0, crlf)))?;
    let names: Vec<String> = header.iter().map(|name| name.trim().to_owned()).collect();
    if names.iter().all(String::is_empty) {
        return Err(Error::row(&path, 1, "names no column, expected a first line such as prompt,completion"));
    }
    if let Some(name) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
        return Err(Error::row(&path, 1, format!("names the column {:?} twice", name.1)));
    }
    Ok(reader.into_records().map(move |record| {
        let record = record.map_err(|error| csv_error(&path, error, (names.len(), crlf)))?;
        let line = record.position().map_or(0, |position| line(position, crlf));
        let cells = record.iter().map(|cell| Value::String(cell.to_owned()));
        Ok((line, names.iter().cloned().zip(cells).collect()))
    }))
}

/// Whether the first line of `start` ends with a carriage return and a line feed.
fn ends_crlf(start: &[u8]) -> bool {
    let end = start.iter().position(|byte| *byte == b'\n');
    end.and_then(|end| end.checked_sub(1)).is_some_and(|before| start[before] == b'\r')
}

/// The line of a record: of two characters that end a line, the csv crate counts the second to the next record.
fn line(position: &csv::Position, crlf: bool) -> usize {
    position.line() as usize + usize::from(crlf && position.byte() > 0)
}

fn csv_error(path: &Path, error: csv::Error, (columns, crlf): (usize, bool)) -> Error {
    let line = error.position().map_or(1, |position| line(position, crlf));
    match error.into_kind() {
        csv::ErrorKind::Io(error) => Error::io(path)(error),
        csv::ErrorKind::Utf8 { err, .. } => {
            let what = format!("cell {} is not UTF-8: save the file as UTF-8", err.field() + 1);
            Error::row(path, line, what)
        }
        csv::ErrorKind::UnequalLengths { len, .. } => {
            let cells = if len == 1 { "cell" } else { "cells" };
            let what = format!(
                "has {len} {cells}, the first line names {columns} columns: put quotes around cells that hold the separator"
            );
            Error::row(path, line, what)
        }
        other => Error::row(path, line, format!("{other:?}")),
    }
}

/// The rows of a Parquet file. Nulls are left out, as if their columns were not there.
pub(super) fn parquet(path: &Path) -> Result<impl Iterator<Item = Found> + use<>, Error> {
    let file = File::open(path).map_err(Error::io(path))?;
    let unreadable = |error: parquet::errors::ParquetError| {
        Error::file(path, format!("is not a readable Parquet file ({error}): download or write it again"))
    };
    let reader = SerializedFileReader::new(file).map_err(unreadable)?;
    let path = path.to_path_buf();
    Ok(RowIter::from_file_into(Box::new(reader)).zip(1..).map(move |(row, number)| {
        let row =
            row.map_err(|error| Error::row(&path, number, format!("this row cannot be read ({error})")))?;
        let fields = present(row.get_column_iter()).map_err(|column| {
            let what = format!(
                "the column `{column}` holds bytes that are not UTF-8: write it as text, or leave it out"
            );
            Error::row(&path, number, what)
        })?;
        Ok((number, fields))
    }))
}

/// The columns of a row or group that hold something: Parquet gives every object every key, and what is null was not there.
/// Else the path of a column whose bytes are no text.
fn present<'a>(columns: impl Iterator<Item = (&'a String, &'a Field)>) -> Result<Fields, String> {
    let mut fields = Fields::new();
    for (name, field) in columns {
        let inside =
            |column: String| if column.is_empty() { name.clone() } else { format!("{name}.{column}") };
        let value = json(field).map_err(inside)?;
        if !value.is_null() {
            fields.insert(name.clone(), value);
        }
    }
    Ok(fields)
}

/// What a column holds, or the path below it to bytes that are no text. Many writers leave out that a column of bytes is
/// text; the parquet crate would give those in base64.
fn json(field: &Field) -> Result<Value, String> {
    match field {
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).map(Value::from).map_err(|_| String::new()),
        Field::Group(row) => present(row.get_column_iter()).map(Value::Object),
        Field::ListInternal(list) => list.elements().iter().map(json).collect(),
        Field::MapInternal(map) => {
            let mut fields = Fields::new();
            for (key, value) in map.entries() {
                let (key, value) = (json(key)?, json(value)?);
                if !value.is_null() {
                    fields.insert(key.as_str().map_or_else(|| key.to_string(), str::to_owned), value);
                }
            }
            Ok(Value::Object(fields))
        }
        plain => Ok(plain.to_json_value()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    /// A file with a text column that may be null, a number column and a list of objects.
    fn write(path: &Path) {
        let schema = "message rows { optional binary text (utf8); required int64 id; required group messages (list) { \
                      repeated group list { required group element { required binary role (utf8); } } } }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let file = File::create(path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let bytes = |texts: &[&str]| texts.iter().map(|text| ByteArray::from(*text)).collect::<Vec<_>>();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&bytes(&["one"]), Some(&[1, 0]), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[7, 8], None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let roles = bytes(&["user", "assistant", "user"]);
        column.typed::<ByteArrayType>().write_batch(&roles, Some(&[1, 1, 1]), Some(&[0, 1, 0])).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
    }

    #[test]
    fn parquet_rows_are_objects_without_nulls() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        write(&path);
        let rows: Vec<_> = parquet(&path).unwrap().map(|row| row.unwrap()).collect();
        let texts: Vec<_> = rows.iter().map(|(at, row)| (*at, serde_json::to_string(row).unwrap())).collect();
        let first = r#"{"text":"one","id":7,"messages":[{"role":"user"},{"role":"assistant"}]}"#;
        assert_eq!(texts[0], (1, first.to_owned()));
        assert_eq!(texts[1], (2, r#"{"id":8,"messages":[{"role":"user"}]}"#.to_owned()));
    }

    /// Rows with a column of bytes that is not said to be text, and one in a group.
    fn read_bytes(texts: &[&[u8]], inside: &[u8]) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        let schema = "message rows { required binary text; required group image { required binary bytes; } }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer =
            SerializedFileWriter::new(File::create(&path).unwrap(), schema, Arc::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let texts: Vec<_> = texts.iter().map(|text| ByteArray::from(text.to_vec())).collect();
        for values in [texts.clone(), vec![ByteArray::from(inside.to_vec()); texts.len()]] {
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
        let place = format!("{}/", folder.path().display());
        let rows = parquet(&path).unwrap();
        rows.map(|row| match row {
            Ok((_, fields)) => Ok(serde_json::to_string(&fields).unwrap()),
            Err(error) => Err(error.to_string().replace(&place, "")),
        })
        .collect()
    }

    #[test]
    fn columns_of_bytes_are_text_or_refused() {
        let rows = read_bytes(&[b"one", "zwölf".as_bytes()], b"in").unwrap();
        let expected =
            [r#"{"text":"one","image":{"bytes":"in"}}"#, r#"{"text":"zwölf","image":{"bytes":"in"}}"#];
        assert_eq!(rows, expected);
        let error = read_bytes(&[b"one", b"\xff\xfe"], b"in").unwrap_err();
        assert!(
            error.starts_with("x.parquet:2: the column `text` holds bytes that are not UTF-8"),
            "{error}"
        );
        let error = read_bytes(&[b"one"], b"\x89PNG").unwrap_err();
        assert!(error.starts_with("x.parquet:1: the column `image.bytes` holds bytes"), "{error}");
    }

    #[test]
    fn a_cut_parquet_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        write(&path);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(parquet(&path).err().unwrap().to_string().contains("not a readable Parquet file"));
    }
}
