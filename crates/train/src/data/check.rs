//! What `taper data check` prints: what a data set holds, what would be learned of it, and what looks wrong.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;

use taper_base::Tokenizer;

use super::{DataFiles, DataOptions, DataSet, DataStats, Example, Split};
use crate::Error;

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
    /// Tokens a row, of the rows that are kept.
    pub lengths: Lengths,
    /// Rows that stand there more than once.
    pub duplicates: Duplicates,
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

/// Rows with the same tokens and labels.
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
        let mut seen: Vec<(Split, BTreeMap<u64, usize>)> = Vec::new();
        let mut overlaps = Vec::new();
        for (split, files) in files.splits() {
            let set = DataSet::load(files, tokenizer, options)?;
            for (first, lines) in &seen {
                overlaps.extend(overlap(*first, split, lines, &set.examples));
            }
            let (lines, duplicates) = duplicates(&set.examples);
            seen.push((split, lines));
            splits.push(SplitReport {
                split,
                files: files.to_vec(),
                format: set.format.name,
                stats: set.stats,
                learned: set.stats.labels as f64 / set.stats.tokens as f64,
                lengths: Lengths::of(&set.examples),
                duplicates,
            });
        }
        Ok(Self { path: files.path().to_path_buf(), splits, overlaps })
    }
}

/// The line of each row by its key, and what stands there again.
fn duplicates(examples: &[Example]) -> (BTreeMap<u64, usize>, Duplicates) {
    let mut lines = BTreeMap::new();
    let mut found = Duplicates::default();
    for example in examples {
        match lines.entry(example.key) {
            Entry::Vacant(place) => {
                place.insert(example.line);
            }
            Entry::Occupied(first) => {
                found.rows += 1;
                if found.lines.len() < LISTED {
                    found.lines.push((*first.get(), example.line));
                }
            }
        }
    }
    (lines, found)
}

fn overlap(
    first: Split,
    second: Split,
    lines: &BTreeMap<u64, usize>,
    examples: &[Example],
) -> Option<Overlap> {
    let shared: Vec<_> =
        examples.iter().filter_map(|row| lines.get(&row.key).map(|line| (*line, row.line))).collect();
    let listed = shared.iter().take(LISTED).copied().collect();
    (!shared.is_empty()).then_some(Overlap { first, second, rows: shared.len(), lines: listed })
}

impl Lengths {
    fn of(examples: &[Example]) -> Self {
        let mut lengths: Vec<usize> = examples.iter().map(|example| example.tokens.len()).collect();
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
        write("train.jsonl", &["abc", "de", "abc", "a long row that is cut", "f"]);
        write("test.jsonl", &["xyz", "de"]);
        let files = DataFiles::open(folder.path()).unwrap();
        let options = DataOptions { max_length: Some(6), ..DataOptions::default() };
        let report = DataReport::of(&files, &sample::plain(), &options).unwrap();
        let train = &report.splits[0];
        assert_eq!((train.split, train.format), (Split::Train, "text"));
        let DataStats { rows, truncated, dropped_empty, tokens, labels, longest, .. } = train.stats;
        assert_eq!((rows, truncated, dropped_empty), (5, 1, 1));
        assert_eq!((tokens, labels, longest), (3 + 2 + 3 + 6, 2 + 1 + 2 + 5, 6));
        assert!((train.learned - 10.0 / 14.0).abs() < 1e-12);
        assert_eq!(train.duplicates, Duplicates { rows: 1, lines: vec![(1, 3)] });
        assert_eq!(
            report.overlaps,
            [Overlap { first: Split::Train, second: Split::Test, rows: 1, lines: vec![(2, 2)] }]
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
