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
use serde_json::{Value, json};

use super::{Found, quotes};
use crate::Error;
use crate::data::format::{Fields, NOT_FINITE};

/// The records of a CSV or TSV file as texts, keyed by the names in its first line.
pub(super) fn csv(path: &Path, delimiter: u8) -> Result<impl Iterator<Item = Found> + use<>, Error> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(Error::io(path))?);
    let crlf = ends_crlf(file.fill_buf().map_err(Error::io(path))?);
    let size = file.get_ref().metadata().map_err(Error::io(path))?.len();
    let quoting = delimiter != b'\t';
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).quoting(quoting).from_reader(file);
    let path = path.to_path_buf();
    let header = reader.headers().map_err(|error| csv_error(&path, error, (0, crlf)))?;
    let names: Vec<String> = header.iter().map(|name| name.trim().to_owned()).collect();
    if quoting && reader.position().byte() >= size {
        check_closed(&path, &csv::Position::new(), delimiter)?;
    }
    if names.iter().all(String::is_empty) {
        return Err(Error::row(&path, 1, "names no column, expected a first line such as prompt,completion"));
    }
    if let Some(name) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
        return Err(Error::row(&path, 1, format!("names the column {:?} twice", name.1)));
    }
    let mut records = reader.into_records();
    Ok(std::iter::from_fn(move || records.next().map(|record| (record, records.reader().position().byte())))
        .map(move |(record, end)| {
            let start = match &record {
                Ok(record) => record.position(),
                Err(error) => error.position(),
            };
            // Only the last record can have a quotation mark that is never closed: it goes on to the end.
            if let Some(start) = start.filter(|_| quoting && end >= size) {
                check_closed(&path, start, delimiter)?;
            }
            let record = record.map_err(|error| csv_error(&path, error, (names.len(), crlf)))?;
            let line = record.position().map_or(0, |position| line(position, crlf));
            let cells = record.iter().map(|cell| Value::String(cell.to_owned()));
            Ok((line, names.iter().cloned().zip(cells).collect()))
        }))
}

/// An error if a cell of the record at `start` is opened by a quotation mark that nothing closes.
fn check_closed(path: &Path, start: &csv::Position, delimiter: u8) -> Result<(), Error> {
    match quotes::unclosed(path, start, delimiter).map_err(Error::io(path))? {
        Some(line) => Err(Error::row(
            path,
            line,
            "a cell begins with a quotation mark that is never closed, so that all that follows is read into it: put one at its \
             end, or, if it is the text's own, write the cell as \"\"\"…\"",
        )),
        None => Ok(()),
    }
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

/// The rows of a Parquet file. A null is one, as in JSON; in the objects that a column holds it is left out.
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
        Ok((number, row.get_column_iter().map(|(name, field)| (name.clone(), json(field))).collect()))
    }))
}

/// The fields of a group that hold something: Parquet gives every object every key, and what is null was not there.
fn present<'a>(columns: impl Iterator<Item = (&'a String, &'a Field)>) -> Fields {
    let there = columns.map(|(name, field)| (name.clone(), json(field)));
    there.filter(|(_, value)| !value.is_null()).collect()
}

/// What a column holds. Many writers leave out that a column of bytes is text; the parquet crate would give those in base64.
/// Bytes that are no text are an object, which is none either: only a row that reads them is refused. So are numbers that are
/// not finite, which the parquet crate would give as null.
fn json(field: &Field) -> Value {
    match field {
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => json!({ "bytes": bytes.len() }),
        },
        Field::Group(row) => Value::Object(present(row.get_column_iter())),
        Field::ListInternal(list) => list.elements().iter().map(json).collect(),
        Field::MapInternal(map) => {
            let name = |key| match json(key) {
                Value::String(name) => name,
                key => key.to_string(),
            };
            let entries = map.entries().iter().map(|(key, value)| (name(key), json(value)));
            Value::Object(entries.filter(|(_, value)| !value.is_null()).collect())
        }
        Field::Float16(number) if !number.is_finite() => json!({ NOT_FINITE: number.to_string() }),
        Field::Float(number) if !number.is_finite() => json!({ NOT_FINITE: number.to_string() }),
        Field::Double(number) if !number.is_finite() => json!({ NOT_FINITE: number.to_string() }),
        plain => plain.to_json_value(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;
    use crate::data::format::kind;

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
    fn parquet_rows_are_objects() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        write(&path);
        let rows: Vec<_> = parquet(&path).unwrap().map(|row| row.unwrap()).collect();
        let texts: Vec<_> = rows.iter().map(|(at, row)| (*at, serde_json::to_string(row).unwrap())).collect();
        let first = r#"{"text":"one","id":7,"messages":[{"role":"user"},{"role":"assistant"}]}"#;
        assert_eq!(texts[0], (1, first.to_owned()));
        assert_eq!(texts[1], (2, r#"{"text":null,"id":8,"messages":[{"role":"user"}]}"#.to_owned()));
    }

    #[test]
    fn columns_of_bytes_are_text_or_an_object() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        let schema = "message rows { required binary text; required group image { required binary bytes; } }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer =
            SerializedFileWriter::new(File::create(&path).unwrap(), schema, Arc::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        for values in [["one", "zwölf"].map(str::as_bytes), [b"in", b"\x89P"]] {
            let mut column = group.next_column().unwrap().unwrap();
            let values = values.map(|bytes| ByteArray::from(bytes.to_vec()));
            column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
        let rows = parquet(&path).unwrap().map(|row| Value::Object(row.unwrap().1).to_string());
        assert_eq!(
            rows.collect::<Vec<_>>(),
            [r#"{"text":"one","image":{"bytes":"in"}}"#, r#"{"text":"zwölf","image":{"bytes":{"bytes":2}}}"#]
        );
    }

    #[test]
    fn numbers_that_are_not_finite_are_no_nulls() {
        let not_finite = |field: Field| kind(&json(&field));
        for field in [Field::Double(f64::NAN), Field::Float(f32::INFINITY)] {
            assert_eq!(not_finite(field), "NaN or infinite");
        }
        assert_eq!((not_finite(Field::Null), json(&Field::Double(0.5))), ("null", json!(0.5)));
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
