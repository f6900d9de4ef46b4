//! What `taper data check` prints: what a data set holds, what would be learned of it, and what looks wrong.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use taper_base::Tokenizer;

use super::{DataFiles, DataOptions, DataSet, DataStats, Example, Split};
use crate::Error;
use crate::fingerprint::Fingerprint;

/// Places listed of each kind of finding.
const LISTED: usize = 5;

/// A data set's splits and what they share.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DataReport {
    /// What was checked.
    pub path: PathBuf,
    /// What each split holds, training first.
    pub splits: Vec<SplitReport>,
    /// Rows that stand in two splits, for each pair that shares one.
    pub overlaps: Vec<Overlap>,
    /// Rows that stand in two splits but for case and white space.
    pub near_overlaps: Vec<Overlap>,
}

/// What a split holds.
#[derive(Clone, Debug, serde::Serialize)]
pub struct SplitReport {
    /// Which one.
    pub split: Split,
    /// Its files.
    pub files: Vec<PathBuf>,
    /// What its rows were read as.
    pub format: &'static str,
    /// What was read, cut and dropped.
    pub stats: DataStats,
    /// Labels a token, of the rows that are kept.
    pub learned: f64,
    /// Tokens a row before the cut, of the rows that hold something to learn.
    pub lengths: Lengths,
    /// Rows that stand there more than once.
    pub duplicates: Duplicates,
    /// Rows that repeat an earlier one but for case and white space.
    pub near_duplicates: Duplicates,
}

/// How long rows are, in tokens.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Lengths {
    /// The shortest.
    pub min: usize,
    /// The mean.
    pub mean: f64,
    /// Half of the rows are no longer.
    pub p50: usize,
    /// Nine in ten are no longer.
    pub p90: usize,
    /// 95 in 100 are no longer.
    pub p95: usize,
    /// 99 in 100 are no longer.
    pub p99: usize,
    /// The longest.
    pub max: usize,
    /// Rows of up to each power of two of tokens, from the first to the last that is not empty.
    pub histogram: Vec<(usize, usize)>,
}

/// Rows that are equal: in tokens and labels, or in their text but for case and white space.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Duplicates {
    /// Rows that repeat an earlier one.
    pub rows: usize,
    /// The first few, each with the line of the row that it repeats: `(first, again)`.
    pub lines: Vec<(usize, usize)>,
}

/// Rows that stand in two splits.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Overlap {
    /// One split.
    pub first: Split,
    /// The other, whose rows are counted.
    pub second: Split,
    /// Rows of `second` that stand in `first` too.
    pub rows: usize,
    /// The first few: line in `first`, line in `second`.
    pub lines: Vec<(usize, usize)>,
}

impl DataReport {
    /// Reads every split of `files`.
    ///
    /// # Errors
    /// As [`DataSet::load`].
    pub fn of(files: &DataFiles, tokenizer: &Tokenizer, options: &DataOptions) -> Result<Self, Error> {
        let mut splits = Vec::new();
        let mut seen: Vec<Seen> = Vec::new();
        let (mut overlaps, mut near_overlaps) = (Vec::new(), Vec::new());
        let mut options = options.clone();
        for (split, files) in files.splits() {
            let set = DataSet::load(files, tokenizer, &options)?;
            // Labels are those of the training rows, which come first.
            options.labels = options.labels.or(set.labels.clone());
            let whole = DataOptions { max_length: None, ..options.clone() };
            let whole =
                (set.stats.truncated > 0).then(|| DataSet::load(files, tokenizer, &whole)).transpose()?;
            // What is there twice is told by whole rows.
            let examples = &whole.as_ref().unwrap_or(&set).examples;
            let rows: Vec<Known> =
                examples.iter().map(|row| Known::of(row, tokenizer)).collect::<Result<_, _>>()?;
            for first in &seen {
                let [exactly, nearly] = first.shared(split, &rows);
                overlaps.extend(exactly);
                near_overlaps.extend(nearly);
            }
            let (known, duplicates, near_duplicates) = Seen::of(split, &rows);
            seen.push(known);
            splits.push(SplitReport {
                split,
                files: files.to_vec(),
                format: set.format.name,
                stats: set.stats,
                learned: set.stats.labels as f64 / set.stats.tokens as f64,
                lengths: Lengths::of(examples),
                duplicates,
                near_duplicates,
            });
        }
        Ok(Self { path: files.path().to_path_buf(), splits, overlaps, near_overlaps })
    }
}

/// A row by what it can be known again by.
#[derive(Clone, Copy)]
struct Known {
    exact: u64,
    /// A hash of its text without regard to case and white space.
    folded: u64,
    line: usize,
}

/// The line of each row by one of its keys.
type Lines = BTreeMap<u64, usize>;

/// The rows of a split that was read, by both keys.
struct Seen {
    split: Split,
    exact: Lines,
    folded: Lines,
}

impl Known {
    fn of(example: &Example, tokenizer: &Tokenizer) -> Result<Self, Error> {
        let source = example.source.as_deref().unwrap_or_default();
        let text = tokenizer.decode(source)? + " " + &tokenizer.decode(&example.tokens)?;
        let text = text.to_lowercase();
        let words = text.split_whitespace().flat_map(|word| [word, " "]).flat_map(str::bytes);
        Ok(Self { exact: example.key, folded: Fingerprint::of(words), line: example.line })
    }
}

/// The line of each row by its key, and what stands there again.
fn duplicates(rows: impl Iterator<Item = (u64, usize)>) -> (Lines, Duplicates) {
    let mut lines = BTreeMap::new();
    let mut found = Duplicates::default();
    for (key, line) in rows {
        match lines.entry(key) {
            Entry::Vacant(place) => {
                place.insert(line);
            }
            Entry::Occupied(first) => {
                found.rows += 1;
                if found.lines.len() < LISTED {
                    found.lines.push((*first.get(), line));
                }
            }
        }
    }
    (lines, found)
}

impl Seen {
    /// What is there again exactly, and what nearly: of rows that are there exactly once or first.
    fn of(split: Split, rows: &[Known]) -> (Self, Duplicates, Duplicates) {
        let (exact, twice) = duplicates(rows.iter().map(|row| (row.exact, row.line)));
        let mut once = BTreeSet::new();
        let first = rows.iter().filter(|row| once.insert(row.exact));
        let (folded, near) = duplicates(first.map(|row| (row.folded, row.line)));
        (Self { split, exact, folded }, twice, near)
    }

    /// The rows of `second` that this split has too, exactly and nearly.
    fn shared(&self, second: Split, rows: &[Known]) -> [Option<Overlap>; 2] {
        let exact = |row: &Known| Some((*self.exact.get(&row.exact)?, row.line));
        let near = |row: &Known| Some((*self.folded.get(&row.folded)?, row.line));
        let overlap = |shared: Vec<(usize, usize)>| {
            let lines = shared.iter().take(LISTED).copied().collect();
            (!shared.is_empty()).then_some(Overlap { first: self.split, second, rows: shared.len(), lines })
        };
        let exactly = rows.iter().filter_map(exact).collect();
        let nearly = rows.iter().filter(|row| exact(row).is_none()).filter_map(near).collect();
        [overlap(exactly), overlap(nearly)]
    }
}

impl Lengths {
    fn of(examples: &[Example]) -> Self {
        let mut lengths: Vec<usize> = examples.iter().map(Example::run_length).collect();
        lengths.sort_unstable();
        let (Some(&min), Some(&max)) = (lengths.first(), lengths.last()) else {
            return Self::default();
        };
        // The nearest rank: the shortest length that at least this share of the rows does not exceed.
        let rank = |percent: usize| lengths[(lengths.len() * percent).div_ceil(100).max(1) - 1];
        let mut histogram = BTreeMap::<usize, usize>::new();
        for length in &lengths {
            *histogram.entry(length.next_power_of_two()).or_default() += 1;
        }
        let mut edge = min.next_power_of_two();
        while edge < max {
            histogram.entry(edge).or_default();
            edge *= 2;
        }
        let mean = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
        let histogram = histogram.into_iter().collect();
        Self { min, mean, p50: rank(50), p90: rank(90), p95: rank(95), p99: rank(99), max, histogram }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sample;

    #[test]
    fn report_counts_finds_repeats_and_shared_rows() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, texts: &[&str]| {
            let rows: String =
                texts.iter().map(|text| serde_json::json!({"text": text}).to_string() + "\n").collect();
            std::fs::write(folder.path().join(name), rows).unwrap();
        };
        write("train.jsonl", &["abc", "de", "abc", "a long row that is cut", "f", "A  bC", "a bc"]);
        write("test.jsonl", &["xyz", "de", "DE"]);
        let files = DataFiles::open(folder.path()).unwrap();
        let options = DataOptions { max_length: Some(6), ..DataOptions::default() };
        let report = DataReport::of(&files, &sample::plain(), &options).unwrap();
        let train = &report.splits[0];
        assert_eq!((train.split, train.format), (Split::Train, "text"));
        let DataStats { rows, truncated, dropped_empty, tokens, labels, longest, .. } = train.stats;
        assert_eq!((rows, truncated, dropped_empty), (7, 1, 1));
        assert_eq!((tokens, labels, longest), (3 + 2 + 3 + 6 + 5 + 4, 2 + 1 + 2 + 5 + 4 + 3, 6));
        assert!((train.learned - 17.0 / 23.0).abs() < 1e-12);
        assert_eq!((train.lengths.min, train.lengths.max), (2, 22), "of whole rows");
        assert_eq!(train.duplicates, Duplicates { rows: 1, lines: vec![(1, 3)] });
        assert_eq!(
            report.overlaps,
            [Overlap { first: Split::Train, second: Split::Test, rows: 1, lines: vec![(2, 2)] }]
        );
        assert_eq!(train.near_duplicates, Duplicates { rows: 1, lines: vec![(6, 7)] });
        assert_eq!(
            report.near_overlaps,
            [Overlap { first: Split::Train, second: Split::Test, rows: 1, lines: vec![(2, 3)] }]
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["splits"][1]["split"], "test");
    }

    #[test]
    fn lengths_are_nearest_ranks() {
        let examples: Vec<_> =
            (1..=100).map(|length| Example { tokens: vec![0; length], ..Example::default() }).collect();
        let lengths = Lengths::of(&examples);
        assert_eq!(
            (lengths.min, lengths.p50, lengths.p90, lengths.p95, lengths.p99, lengths.max),
            (1, 50, 90, 95, 99, 100)
        );
        assert_eq!(
            lengths.histogram,
            [(1, 1), (2, 1), (4, 2), (8, 4), (16, 8), (32, 16), (64, 32), (128, 36)]
        );
        let two: Vec<_> = [&examples[0], &examples[15]].into_iter().cloned().collect();
        assert_eq!(Lengths::of(&two).histogram, [(1, 1), (2, 0), (4, 0), (8, 0), (16, 1)]);
    }
}
