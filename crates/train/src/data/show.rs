//! What `taper data show` prints: a row's tokens with what is learned marked. Colours are left to the caller.

use std::ops::Range;
use std::path::PathBuf;

use taper_base::Tokenizer;

use super::set::Source;
use super::{DataOptions, task_of};
use crate::augment::Augmenter;
use crate::{Augment, Error};

/// A token of a row.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ShownToken {
    /// Its id.
    pub id: u32,
    /// The text it stands for; of a special token its name, of a piece of a character its vocabulary entry.
    pub text: String,
    /// Whether it is a label.
    pub learned: bool,
}

/// A row of a data set as the model sees it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ShownRow {
    /// The file it stands in.
    pub path: PathBuf,
    /// Its line there, or its number, from 1.
    pub line: usize,
    /// The name of the format it was read as.
    pub format: &'static str,
    /// What its tokens are written from, for an encoder-decoder, after the cut at `--max-length`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<ShownToken>,
    /// Its tokens after the cut at `--max-length`.
    pub tokens: Vec<ShownToken>,
    /// Number of labels; a row with none is dropped from training.
    pub labels: usize,
    /// Tokens that were cut off.
    pub cut: usize,
}

/// Rows `rows` of `files` (counted over all of them, from 0), as tokens: changed as `augment` and a seed change them in the first
/// epoch.
///
/// # Errors
/// As [`DataSet::load`](super::DataSet::load), for the rows that are read.
pub fn show(
    files: &[PathBuf],
    tokenizer: &Tokenizer,
    options: &DataOptions,
    rows: Range<usize>,
    augment: (Augment, u64),
) -> Result<Vec<ShownRow>, Error> {
    augment.0.check(Some(task_of(files, options)?))?;
    let options = &DataOptions { texts: true, ..options.clone() };
    let augmenter = Augmenter::new(augment.0, tokenizer, augment.1);
    let augmenter = augmenter.map(|changes| changes.within(usize::MAX, options.max_length));
    let mut source = Source::open(files, tokenizer, options)?;
    let mut shown = Vec::new();
    for at in 0..rows.end {
        let Some(row) = source.next()? else { break };
        if !rows.contains(&at) {
            continue;
        }
        let mut example = source.builder.build(&row)?;
        if let Some(length) = options.max_length {
            example.cut(length);
        }
        let drawn = augmenter.as_ref().map(|changes| changes.draw(&example, 0)).transpose()?;
        let fed = drawn.as_ref().unwrap_or(&example);
        shown.push(ShownRow {
            path: files[row.file].clone(),
            line: row.line,
            format: source.builder.format.name,
            source: tokens(tokenizer, fed.source.as_deref().unwrap_or_default(), |_| false)?,
            tokens: tokens(tokenizer, &fed.tokens, |at| example.learned(at))?,
            labels: example.labels(),
            cut: example.cut,
        });
    }
    Ok(shown)
}

/// Each token with its own text: the text of one token alone would lose leading spaces in some tokenizers and be no
/// character in others, so that it is what the token adds to the text of the one before it.
fn tokens(
    tokenizer: &Tokenizer,
    ids: &[u32],
    learned: impl Fn(usize) -> bool,
) -> Result<Vec<ShownToken>, Error> {
    let mut before = None;
    let mut shown = Vec::with_capacity(ids.len());
    for (at, &id) in ids.iter().enumerate() {
        let text = match before {
            Some(before) => {
                let (alone, pair) = (tokenizer.decode(&[before])?, tokenizer.decode(&[before, id])?);
                pair.strip_prefix(&alone).map(str::to_owned)
            }
            None => Some(tokenizer.decode(&[id])?),
        };
        let readable = text.filter(|text| !text.is_empty() && !text.contains('\u{fffd}'));
        let text = readable.or_else(|| tokenizer.token(id)).unwrap_or_default();
        shown.push(ShownToken { id, text, learned: learned(at) });
        before = Some(id);
    }
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sample;

    #[test]
    fn rows_are_shown_with_what_is_learned() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        std::fs::write(
            &path,
            "{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"prompt\":\"a b\",\"completion\":\"ü\"}\n",
        )
        .unwrap();
        let plain = (Augment::default(), 0);
        let options = DataOptions { max_length: Some(5), ..DataOptions::default() };
        let rows = show(std::slice::from_ref(&path), &sample::plain(), &options, 1..9, plain).unwrap();
        let [row] = rows.as_slice() else { panic!("one row") };
        assert_eq!((row.line, row.format, row.labels, row.cut), (2, "prompt-completion", 2, 1));
        let shown: Vec<_> = row.tokens.iter().map(|token| (token.text.as_str(), token.learned)).collect();
        assert_eq!(shown, [("a", false), (" ", false), ("b", false), ("Ã", true), ("¼", true)]);
        let whole = show(&[path], &sample::plain(), &DataOptions::default(), 0..1, plain).unwrap();
        assert_eq!(whole[0].tokens[2].text, "<|eos|>");
    }
}
