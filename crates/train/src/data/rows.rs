//! Files to rows: JSON objects with their place in the file. What their keys mean is left to `format`.
//!
//! Rows are read one at a time, so that memory follows the longest row and not the file (a `.json` file, which is parsed
//! in place, is held as bytes).

mod json;
mod lines;
mod once;
mod plain;
mod quotes;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::files::extension;
use super::format::Fields;
use crate::Error;

/// A row as it stands in a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// Which of the data set's files.
    pub(super) file: usize,
    /// The line that it begins at, or its number in a Parquet file, from 1.
    pub(super) line: usize,
    pub(super) fields: Fields,
}

impl Row {
    /// Whether the row has the columns that were named. Later rows may lack one, as JSON has no fixed columns.
    pub(super) fn has_columns(&self, columns: &BTreeMap<String, String>) -> Result<(), String> {
        let Some((ours, theirs)) = columns.iter().find(|(_, theirs)| !self.fields.contains_key(*theirs))
        else {
            return Ok(());
        };
        let keys: Vec<&str> = self.fields.keys().map(String::as_str).collect();
        let keys = keys.join("`, `");
        Err(format!("--column {ours}={theirs} names a column that is not there: the row has `{keys}`"))
    }

    /// The row with `columns` (from our name to the file's) under our names.
    pub(super) fn renamed(mut self, columns: &BTreeMap<String, String>) -> Self {
        let taken: Vec<_> =
            columns.iter().filter_map(|(ours, theirs)| Some((ours, self.fields.remove(theirs)?))).collect();
        for (ours, value) in taken {
            self.fields.insert(ours.clone(), value);
        }
        self
    }
}

/// What a reader of some kind of file gives: where, and what.
type Found = Result<(usize, Fields), Error>;

/// The rows of one file.
pub(super) struct Rows {
    path: PathBuf,
    file: usize,
    read: Box<dyn Iterator<Item = Found>>,
    any: bool,
    over: bool,
}

impl Rows {
    /// Reads `path`, the data set's file number `file`. A file without a row gives an error in its place.
    pub(super) fn open(path: &Path, file: usize) -> Result<Self, Error> {
        let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
        if size == 0 {
            return Err(Error::file(path, "is empty (0 bytes), expected at least one row"));
        }
        let read: Box<dyn Iterator<Item = Found>> = match extension(path)? {
            "json" => json::open(path)?,
            "csv" => Box::new(table::csv(path, b',')?),
            "tsv" => Box::new(table::csv(path, b'\t')?),
            "parquet" => Box::new(table::parquet(path)?),
            "txt" => Box::new(plain::Paragraphs::open(path)?),
            _ => Box::new(lines::objects(path)?),
        };
        Ok(Self { path: path.to_path_buf(), file, read, any: false, over: false })
    }
}

impl Iterator for Rows {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        match self.read.next() {
            Some(Ok((line, fields))) => {
                self.any = true;
                Some(Ok(Row { file: self.file, line, fields }))
            }
            Some(Err(error)) => {
                self.over = true;
                Some(Err(error))
            }
            None => {
                self.over = true;
                (!self.any).then(|| Err(Error::file(&self.path, "holds no row, expected at least one")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(in crate::data) fn read(name: &str, content: &[u8]) -> Result<Vec<(usize, String)>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let place = format!("{}/", folder.path().display());
        let strip = |error: Error| error.to_string().replace(&place, "");
        let rows = Rows::open(&path, 0).map_err(strip)?;
        rows.map(|row| row.map(|row| (row.line, serde_json::to_string(&row.fields).unwrap())).map_err(strip))
            .collect()
    }

    fn ok(name: &str, content: &str) -> Vec<(usize, String)> {
        read(name, content.as_bytes()).unwrap()
    }

    fn error(name: &str, content: &[u8]) -> String {
        read(name, content).unwrap_err()
    }

    fn rows(expected: &[(usize, &str)]) -> Vec<(usize, String)> {
        expected.iter().map(|(line, text)| (*line, (*text).to_owned())).collect()
    }

    #[test]
    fn json_lines_with_bom_crlf_blank_lines_and_no_last_newline() {
        let text = "\u{feff}{\"a\":1}\r\n\r\n  \n{\"a\":\"ü\"}";
        assert_eq!(ok("x.jsonl", text), rows(&[(1, r#"{"a":1}"#), (4, r#"{"a":"ü"}"#)]));
    }

    #[test]
    fn json_lines_errors_name_the_line() {
        let bad = error("x.jsonl", b"{\"a\":1}\n{\"a\":\n");
        assert!(bad.starts_with("x.jsonl:2: ") && bad.contains("not valid JSON"), "{bad}");
        let list = error("x.jsonl", b"{\"a\":1}\n\n[1]\n");
        assert!(list.starts_with("x.jsonl:3: ") && list.contains("a list, expected an object"), "{list}");
        let latin = error("x.jsonl", b"{\"a\":1}\n{\"a\":\"\xfc\"}\n");
        assert!(
            latin.starts_with("x.jsonl:2: ") && latin.contains("byte 0xfc at column 7 is not UTF-8"),
            "{latin}"
        );
        let wide = error("x.jsonl", b"\xff\xfe{\0");
        assert!(wide.contains("UTF-16"), "{wide}");
    }

    #[test]
    fn nothing_in_a_file_is_an_error() {
        assert_eq!(error("x.jsonl", b""), "x.jsonl: is empty (0 bytes), expected at least one row");
        for name in ["x.jsonl", "x.json", "x.csv", "x.txt"] {
            let blank = error(name, b"\n \n");
            assert!(blank.contains("no row") || blank.contains("no column"), "{blank}");
        }
        assert!(error("x.json", b"[]").contains("no row"));
        assert!(error("x.csv", b"prompt,completion\n").contains("no row"));
    }

    #[test]
    fn json_arrays_tell_the_line_of_each_row() {
        let text = "\u{feff}[\n {\"a\": 1},\n\n {\"a\":\n 2}\n]\n";
        let expected = rows(&[(2, r#"{"a":1}"#), (4, r#"{"a":2}"#)]);
        assert_eq!(ok("x.json", text), expected);
        let wrapped = format!("{{\"version\": [1,{{}}], \"data\": {}}}", text.trim_start_matches('\u{feff}'));
        assert_eq!(ok("x.json", &wrapped).len(), 2);
        assert_eq!(ok("x.json", "{\"a\":1}\n{\"a\":2}\n"), rows(&[(1, r#"{"a":1}"#), (2, r#"{"a":2}"#)]));
        assert_eq!(ok("x.json", "{\"text\":\"one\"}"), rows(&[(1, r#"{"text":"one"}"#)]));
    }

    #[test]
    fn json_array_errors_name_the_line() {
        let cut = error("x.json", b"[\n{\"a\":1},\n{\"a\":");
        assert!(cut.starts_with("x.json:3: ") && cut.contains("not valid JSON"), "{cut}");
        let number = error("x.json", b"[\n{\"a\":1},\n3]");
        assert!(
            number.starts_with("x.json:3: ") && number.contains("a number, expected an object"),
            "{number}"
        );
        let comma = error("x.json", b"[{\"a\":1}\n{\"a\":2}]");
        assert!(comma.starts_with("x.json:2: ") && comma.contains("expected , or ]"), "{comma}");
        let open = error("x.json", b"[{\"a\":1}\n");
        assert!(open.contains("expected , or ]"), "{open}");
        let more = error("x.json", b"[{\"a\":1}]\nx");
        assert!(more.starts_with("x.json:2: "), "{more}");
        assert!(error("x.json", b"7").contains("expected a list of rows"));
        let one_line = error("x.json", b"[\n {\"a\":1}, {\"a\": x}]");
        assert!(one_line.starts_with("x.json:2: ") && one_line.ends_with("(column 17)"), "{one_line}");
        let later = error("x.json", b"[{\"a\":1}, {\"a\":\n x}]");
        assert!(later.starts_with("x.json:2: ") && later.ends_with("(column 2)"), "{later}");
    }

    #[test]
    fn tables_have_their_columns_as_keys() {
        let csv = "\u{feff}prompt,completion\r\n\"a, \"\"b\"\"\nc\",d\r\ne,\r\n";
        let expected = rows(&[
            (2, r#"{"prompt":"a, \"b\"\nc","completion":"d"}"#),
            (4, r#"{"prompt":"e","completion":""}"#),
        ]);
        assert_eq!(ok("x.csv", csv), expected);
        assert_eq!(ok("x.tsv", "text\tlabel\n\"a\tb\n"), rows(&[(2, r#"{"text":"\"a","label":"b"}"#)]));
        let short = error("x.csv", b"a,b\n1,2\n3\n");
        assert!(
            short.starts_with("x.csv:3: ") && short.contains("1 cell, the first line names 2"),
            "{short}"
        );
        let twice = error("x.csv", b"a,a\n1,2\n");
        assert!(twice.starts_with("x.csv:1: ") && twice.contains("twice"), "{twice}");
        let latin = error("x.csv", b"a,b\n1,2\n3,\xe9\n");
        assert!(latin.starts_with("x.csv:3: ") && latin.contains("UTF-8"), "{latin}");
    }

    #[test]
    fn a_quotation_mark_that_is_never_closed_is_named_by_its_line() {
        let words = "a quotation mark that is never closed";
        let ends = ["\n", "\r\n"];
        for text in ["a,b\n1,2\n\n\"x\ny\",\"z\n5,6\n", "\u{feff}a,b\n1,2\n\n3,\n\"\"\"4,5\n"] {
            for end in ends {
                let found = error("x.csv", text.replace('\n', end).as_bytes());
                assert!(found.starts_with("x.csv:5: ") && found.contains(words), "{found}");
            }
        }
        let head = error("x.csv", b"a,\"b\n1,2\n");
        assert!(head.starts_with("x.csv:1: ") && head.contains(words), "{head}");
        let closed = [(2, r#"{"a":"5\"","b":"x\"y"}"#), (3, r#"{"a":"","b":"\n"}"#)];
        assert_eq!(ok("x.csv", "a,b\n5\",\"x\"\"y\"\n\"\",\"\n\""), rows(&closed));
        assert_eq!(ok("x.tsv", "a\tb\n1\t\"2"), rows(&[(2, r#"{"a":"1","b":"\"2"}"#)]));
    }

    #[test]
    fn a_key_that_stands_twice_is_an_error() {
        let twice = error("x.jsonl", b"{\"text\":\"a\"}\n{\"text\":\"a\",\"text\":\"b\"}\n");
        assert!(twice.starts_with("x.jsonl:2: names the key `text` twice, expected"), "{twice}");
        assert!(twice.ends_with("(column 18)"), "{twice}");
        let list = error("x.json", b"[{\"a\":1},\n{\"m\":[{\"r\":1,\"r\":1}]}]");
        assert!(list.starts_with("x.json:2: names the key `r` twice"), "{list}");
        assert!(error("x.json", b"{\"a\":1,\"a\":2}").contains("names the key `a` twice"));
    }

    #[test]
    fn parquet_that_is_none_is_an_error() {
        let bad = error("x.parquet", b"PAR1 not really");
        assert!(bad.starts_with("x.parquet: ") && bad.contains("Parquet"), "{bad}");
    }

    #[test]
    fn columns_are_renamed() {
        let fields = serde_json::json!({"question": 1, "prompt": 2, "id": 3}).as_object().unwrap().clone();
        let columns = BTreeMap::from([("prompt".to_owned(), "question".to_owned())]);
        let row = Row { file: 0, line: 1, fields }.renamed(&columns);
        assert_eq!(serde_json::Value::Object(row.fields), serde_json::json!({"prompt": 1, "id": 3}));
    }
}
