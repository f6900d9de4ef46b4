//! A share of a data set's rows set aside to evaluate on, where the data has no split for that.

use std::collections::BTreeMap;

use super::{DataSet, DataStats, Example, Learn};
use crate::Error;
use crate::packing::shuffle;

/// Random stream of the choice, apart from that of the rows' order.
const SPLIT: u64 = 0x7370_6c69_7420_6f66;

impl DataSet {
    /// Takes about `share` of the rows out and gives them back, both parts in the order of the files. Answers that are common
    /// enough to be classes (`share` of their rows is one row or more) are split each by itself; equal rows stay together, so
    /// that none is trained and evaluated on. The same rows and seed give the same parts.
    ///
    /// # Errors
    /// [`Error::Data`] where one of the parts would have no row.
    pub fn split_off(&mut self, share: f64, seed: u64) -> Result<Self, Error> {
        let out = chosen(&self.examples, share, seed);
        let total = out.len();
        let mut parts = [Vec::new(), Vec::new()];
        for (example, out) in std::mem::take(&mut self.examples).into_iter().zip(out) {
            parts[usize::from(out)].push(example);
        }
        let [kept, held] = parts;
        if kept.is_empty() || held.is_empty() {
            return Err(Error::data(format!(
                "`eval_split` is {share}, but of {total} rows that leaves {} to train and {} to evaluate on: give another \
                 share, more rows, or `eval_data` (--eval-data)",
                kept.len(),
                held.len()
            )));
        }
        let stats = counts(&held);
        let DataStats { tokens, labels, longest, .. } = counts(&kept);
        self.stats = DataStats { rows: self.stats.rows - held.len(), tokens, labels, longest, ..self.stats };
        self.examples = kept;
        Ok(Self { examples: held, stats, format: self.format, labels: self.labels.clone() })
    }
}

fn counts(examples: &[Example]) -> DataStats {
    DataStats {
        rows: examples.len(),
        tokens: examples.iter().map(Example::run_length).sum(),
        labels: examples.iter().map(Example::labels).sum(),
        longest: examples.iter().map(Example::run_length).max().unwrap_or(0),
        ..DataStats::default()
    }
}

/// Whether each row is set aside.
fn chosen(examples: &[Example], share: f64, seed: u64) -> Vec<bool> {
    let mut equal = BTreeMap::<u64, Vec<usize>>::new();
    let mut answers = BTreeMap::<Vec<u32>, usize>::new();
    for (row, example) in examples.iter().enumerate() {
        equal.entry(example.key).or_default().push(row);
        *answers.entry(answer(example)).or_default() += 1;
    }
    // Groups of equal rows by their class; what is no class is one together.
    let mut classes = BTreeMap::<Option<Vec<u32>>, Vec<Vec<usize>>>::new();
    for rows in equal.into_values() {
        let answer = answer(&examples[rows[0]]);
        let class = (answers[&answer] as f64 * share >= 1.0).then_some(answer);
        classes.entry(class).or_default().push(rows);
    }
    let mut out = vec![false; examples.len()];
    for (index, mut groups) in classes.into_values().enumerate() {
        groups.sort_unstable();
        let rows: usize = groups.iter().map(Vec::len).sum();
        let wanted = (share * rows as f64).round() as usize;
        let mut order: Vec<u32> = (0..groups.len() as u32).collect();
        shuffle(&mut order, seed ^ SPLIT, index as u64);
        let mut taken = 0;
        for group in order.into_iter().map(|at| &groups[at as usize]) {
            if taken + group.len() <= wanted {
                taken += group.len();
                for &row in group {
                    out[row] = true;
                }
            }
        }
    }
    out
}

/// The tokens or the labels that a row teaches.
fn answer(example: &Example) -> Vec<u32> {
    match &example.learn {
        Learn::Tokens(spans) => {
            spans.iter().flat_map(|span| &example.tokens[span.clone()]).copied().collect()
        }
        labels => labels.words(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::data::FORMATS;

    /// Rows that answer 1, 2 or 3, six, three and one in ten; every seventh is there twice.
    fn set() -> DataSet {
        let row = |line: usize| {
            let answer = [1, 1, 1, 1, 1, 1, 2, 2, 2, 3][line % 10];
            let tokens = vec![10 + (line / 70) as u32, 100 + line as u32, answer];
            let learn = Learn::Tokens(std::iter::once(2..3).collect());
            Example { tokens, learn, line, key: line as u64, ..Example::default() }
        };
        let examples: Vec<Example> =
            (0..200).flat_map(|line| vec![row(line); 1 + usize::from(line % 7 == 0)]).collect();
        let stats = DataStats { dropped_empty: 3, ..counts(&examples) };
        DataSet { stats, examples, format: &FORMATS[0], labels: None }
    }

    #[test]
    fn classes_keep_their_shares_and_equal_rows_stay_together() {
        let whole = set();
        let mut train = set();
        let held = train.split_off(0.1, 0).unwrap();
        let keys =
            |set: &DataSet| -> BTreeSet<u64> { set.examples.iter().map(|example| example.key).collect() };
        assert!(keys(&train).is_disjoint(&keys(&held)));
        assert_eq!(train.examples.len() + held.examples.len(), whole.examples.len());
        for class in 1..=3 {
            let count =
                |set: &DataSet| set.examples.iter().filter(|example| example.tokens[2] == class).count();
            let wanted = 0.1 * count(&whole) as f64;
            assert!((count(&held) as f64 - wanted).abs() <= 1.0, "{class}: {} {wanted}", count(&held));
        }
        assert_eq!(train.stats.tokens + held.stats.tokens, whole.stats.tokens);
        assert_eq!((train.stats.rows + held.stats.rows, train.stats.dropped_empty), (whole.stats.rows, 3));
    }

    #[test]
    fn the_seed_decides() {
        let lines = |seed| -> Vec<usize> {
            set().split_off(0.2, seed).unwrap().examples.iter().map(|example| example.line).collect()
        };
        assert_eq!(lines(4), lines(4));
        assert_ne!(lines(4), lines(5));
        assert!(lines(4).is_sorted());
    }

    #[test]
    fn a_part_without_rows_is_refused() {
        let mut one = set();
        one.examples.truncate(1);
        let error = one.split_off(0.1, 0).unwrap_err().to_string();
        assert!(error.contains("of 1 rows that leaves 1 to train and 0 to evaluate on"), "{error}");
    }
}
