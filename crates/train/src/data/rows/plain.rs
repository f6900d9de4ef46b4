//! Plain text as `{"text"}` rows.
//!
//! A row is a run of whole paragraphs (blocks between blank lines) of up to [`ROW`] bytes: a paragraph alone is often too
//! short to learn from, a book too long for one sequence. A longer paragraph is a row of its own, cut at line ends into
//! rows of about that size. A line `<|endoftext|>` ends a row and belongs to none.

use std::path::Path;

use serde_json::Value;

use super::Found;
use super::lines::Lines;
use crate::Error;
use crate::data::format::Fields;

/// Bytes of a row: some 250 tokens of English.
const ROW: usize = 1024;

/// What stands between the texts of collections such as TinyStories.
const SEPARATOR: &str = "<|endoftext|>";

/// A paragraph, or a piece of a long one.
struct Block {
    /// Its first line.
    line: usize,
    text: String,
    /// Whether a separator stood before it.
    fresh: bool,
}

/// The rows of a text file.
pub(super) struct Paragraphs {
    lines: Lines,
    /// A block that did not fit into the row before it.
    next: Option<Block>,
    /// Whether a separator was read since the last block began.
    separated: bool,
}

impl Paragraphs {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self { lines: Lines::open(path)?, next: None, separated: false })
    }

    /// The next paragraph, or as many of its lines as reach [`ROW`].
    fn block(&mut self) -> Result<Option<Block>, Error> {
        let mut block: Option<Block> = None;
        while block.as_ref().is_none_or(|block| block.text.len() < ROW) {
            let Some(line) = self.lines.next() else { break };
            let (line, text) = line?;
            let separator = text.trim() == SEPARATOR;
            self.separated |= separator;
            match &mut block {
                None if separator || text.trim().is_empty() => {}
                Some(_) if separator || text.trim().is_empty() => break,
                None => block = Some(Block { line, text, fresh: std::mem::take(&mut self.separated) }),
                Some(block) => {
                    block.text.push('\n');
                    block.text.push_str(&text);
                }
            }
        }
        Ok(block)
    }

    fn row(&mut self) -> Result<Option<(usize, String)>, Error> {
        let first = match self.next.take() {
            Some(block) => Some(block),
            None => self.block()?,
        };
        let Some(Block { line, mut text, .. }) = first else {
            return Ok(None);
        };
        while let Some(block) = self.block()? {
            if block.fresh || text.len() + block.text.len() + 2 > ROW {
                self.next = Some(block);
                break;
            }
            text.push_str("\n\n");
            text.push_str(&block.text);
        }
        Ok(Some((line, text)))
    }
}

impl Iterator for Paragraphs {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        let fields = |text| Fields::from_iter([("text".to_owned(), Value::String(text))]);
        self.row().map(|row| row.map(|(line, text)| (line, fields(text)))).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Vec<(usize, String)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.txt");
        std::fs::write(&path, text).unwrap();
        let text = |fields: &Fields| fields["text"].as_str().unwrap().to_owned();
        Paragraphs::open(&path)
            .unwrap()
            .map(|row| row.map(|(line, row)| (line, text(&row))).unwrap())
            .collect()
    }

    #[test]
    fn short_paragraphs_share_a_row_and_separators_end_one() {
        let found = rows("one\r\ntwo\n\n\nthree\n<|endoftext|>\nfour\n\n<|endoftext|>\n\nfive\n\nsix\n");
        let expected = [(1, "one\ntwo\n\nthree"), (7, "four"), (11, "five\n\nsix")];
        assert_eq!(found, expected.map(|(line, text)| (line, text.to_owned())));
    }

    #[test]
    fn rows_end_at_about_a_kibibyte() {
        let paragraph = "x".repeat(400);
        let found = rows(&[paragraph.as_str(); 5].join("\n\n"));
        assert_eq!(
            found.iter().map(|(line, text)| (*line, text.len())).collect::<Vec<_>>(),
            [(1, 802), (5, 802), (9, 400)]
        );
        let found = rows(&[paragraph.as_str(); 5].join("\n"));
        assert_eq!(
            found.iter().map(|(line, text)| (*line, text.len())).collect::<Vec<_>>(),
            [(1, 1202), (4, 801)]
        );
        assert!(rows("\n \n").is_empty());
    }
}
