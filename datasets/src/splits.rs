//! Train, valid and test splits: filling them without overlap and writing them as JSONL.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::draw::Draw;
use crate::{Error, Result};

/// The names of the splits, in the order of [`Splits::rows`].
pub const NAMES: [&str; 3] = ["train", "valid", "test"];

/// One generated row.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What the model is given: no two rows share it.
    pub input: String,
    /// What rows are balanced by: a label, an intent.
    pub class: String,
    /// Whether it holds a word combination kept out of train and valid.
    pub held_out: bool,
    /// The line of the file.
    pub json: Value,
}

/// The three splits of a data set.
#[derive(Debug, Default, PartialEq)]
pub struct Splits {
    /// Rows of train, valid and test.
    pub rows: [Vec<Row>; 3],
}

impl Splits {
    /// Fills splits of `counts` rows from `next`. Rows with a held-out combination go to test, all others to valid, then
    /// train; a repeated input, or a class beyond its equal share of `classes`, is dropped. Train is shuffled at the end.
    pub fn fill(
        counts: [usize; 3],
        classes: usize,
        draw: &mut Draw,
        mut next: impl FnMut(&mut Draw) -> Result<Row>,
    ) -> Result<Self> {
        let mut splits = Self::default();
        let (mut seen, mut shares) = (BTreeSet::new(), BTreeMap::new());
        let limit = 400 * counts.iter().sum::<usize>();
        for _ in 0..limit {
            if splits.lengths() == counts {
                splits.rows.iter_mut().for_each(|rows| draw.shuffle(rows));
                return Ok(splits);
            }
            let row = next(draw)?;
            let fits = |split: usize| {
                let share = shares.get(&(split, row.class.clone())).copied().unwrap_or(0);
                splits.rows[split].len() < counts[split] && share < counts[split].div_ceil(classes)
            };
            let homes: &[usize] = if row.held_out { &[2] } else { &[1, 0] };
            let Some(&split) = homes.iter().find(|split| fits(**split)) else { continue };
            if seen.insert(row.input.clone()) {
                *shares.entry((split, row.class.clone())).or_insert(0) += 1;
                splits.rows[split].push(row);
            }
        }
        Err(Error::Exhausted { attempts: limit, state: format!("{:?} of {counts:?}", splits.lengths()) })
    }

    /// Rows by split.
    pub fn lengths(&self) -> [usize; 3] {
        [0, 1, 2].map(|split| self.rows[split].len())
    }

    /// Rows by class, over all splits.
    pub fn classes(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for row in self.rows.iter().flatten() {
            *counts.entry(row.class.as_str()).or_insert(0) += 1;
        }
        counts
    }

    /// Refuses an input that stands twice, in one split or in two.
    pub fn check_overlap(&self) -> Result<()> {
        let mut seen = BTreeSet::new();
        match self.rows.iter().flatten().find(|row| !seen.insert(&row.input)) {
            Some(row) => Err(Error::Overlap(row.input.clone())),
            None => Ok(()),
        }
    }

    /// Writes `train.jsonl`, `valid.jsonl` and `test.jsonl` into `folder`, if no input stands twice.
    pub fn write(&self, folder: &Path) -> Result<()> {
        self.check_overlap()?;
        for (name, rows) in NAMES.iter().zip(&self.rows) {
            write_lines(&folder.join(format!("{name}.jsonl")), rows.iter().map(|row| &row.json))?;
        }
        Ok(())
    }
}

/// Writes one JSON value a line, to a temporary name that is then renamed.
pub fn write_lines<'a>(path: &Path, lines: impl Iterator<Item = &'a Value>) -> Result<()> {
    let lines: Vec<String> = lines.map(Value::to_string).chain([String::new()]).collect();
    write_file(path, lines.join("\n").as_bytes())
}

/// Writes `bytes` to `path` whole, by way of a temporary name beside it; makes the folder if needed.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
    folder
        .and_then(|()| fs::write(&partial, bytes))
        .and_then(|()| fs::rename(&partial, path))
        .map_err(|source| Error::Write { path: path.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(draw: &mut Draw) -> Row {
        let n = draw.below(500);
        let class = if n.is_multiple_of(2) { "even" } else { "odd" }.to_owned();
        Row { input: n.to_string(), class, held_out: n.is_multiple_of(5), json: Value::from(n) }
    }

    #[test]
    fn splits_are_full_balanced_and_apart() {
        let splits = Splits::fill([100, 20, 20], 2, &mut Draw::new(0), |draw| Ok(number(draw))).unwrap();
        assert_eq!(splits.lengths(), [100, 20, 20]);
        assert_eq!(splits.classes()["even"], 70);
        let inputs: BTreeSet<&str> = splits.rows.iter().flatten().map(|row| row.input.as_str()).collect();
        assert_eq!(inputs.len(), 140);
        assert!(splits.rows[2].iter().all(|row| row.held_out));
        assert!(!splits.rows[0].iter().any(|row| row.held_out));
    }

    #[test]
    fn an_overlap_is_refused() {
        let row = number(&mut Draw::new(0));
        let splits = Splits { rows: [vec![row.clone()], vec![], vec![row]] };
        assert!(matches!(splits.check_overlap(), Err(Error::Overlap(_))));
    }

    #[test]
    fn a_small_grammar_is_an_error() {
        assert!(matches!(
            Splits::fill([1000, 1, 1], 2, &mut Draw::new(0), |draw| Ok(number(draw))),
            Err(Error::Exhausted { .. })
        ));
    }
}
