//! Words that a text shares with a reference: ROUGE (Lin 2004), equal to Google's `rouge-score` (0.1.2).

use std::collections::{BTreeMap, BTreeSet};

use super::overlap::runs;
use super::porter::stem;

/// Which words are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rouge {
    /// Runs of so many words: ROUGE-1, ROUGE-2.
    N(usize),
    /// The longest common subsequence of the whole texts.
    L,
    /// The union of the longest common subsequences of their lines.
    Lsum,
}

/// The F measure of `prediction` against the reference that suits it best, from 0 to 1, with or without words cut to their
/// stems. The package's default is without.
pub fn rouge<T: AsRef<str>>(kind: Rouge, prediction: &str, references: &[T], stems: bool) -> f64 {
    let score = |reference: &T| one(kind, prediction, reference.as_ref(), stems);
    references.iter().map(score).fold(0.0, f64::max)
}

fn one(kind: Rouge, prediction: &str, reference: &str, stems: bool) -> f64 {
    let tokens = |text: &str| tokens(text, stems);
    match kind {
        Rouge::N(length) => {
            let (ours, theirs) = (tokens(prediction), tokens(reference));
            let (ours, theirs) = (runs(&ours, length), runs(&theirs, length));
            let both = theirs.iter().map(|(run, count)| count.min(ours.get(run).unwrap_or(&0))).sum();
            f_measure(both, ours.values().sum(), theirs.values().sum())
        }
        Rouge::L => {
            let (ours, theirs) = (tokens(prediction), tokens(reference));
            f_measure(common(&theirs, &ours).len(), ours.len(), theirs.len())
        }
        Rouge::Lsum => {
            let lines = |text: &str| -> Vec<Vec<String>> {
                text.split('\n').filter(|line| !line.is_empty()).map(tokens).collect()
            };
            by_lines(&lines(prediction), &lines(reference))
        }
    }
}

/// Words of the letters a to z and digits, lower-case.
fn tokens(text: &str, stems: bool) -> Vec<String> {
    let text = text.to_lowercase();
    let words = text.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    let words = words.filter(|word| !word.is_empty());
    words.map(|word| if stems && word.len() > 3 { stem(word) } else { word.to_owned() }).collect()
}

fn f_measure(both: usize, ours: usize, theirs: usize) -> f64 {
    let (precision, recall) = (both as f64 / ours.max(1) as f64, both as f64 / theirs.max(1) as f64);
    if both == 0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) }
}

/// Indices into `reference` of a longest common subsequence: of several, the one that `rouge-score` reads out.
fn common<T: Eq>(reference: &[T], other: &[T]) -> Vec<usize> {
    let width = other.len() + 1;
    let mut table = vec![0u32; (reference.len() + 1) * width];
    for (i, a) in reference.iter().enumerate() {
        for (j, b) in other.iter().enumerate() {
            let (above, left) = (table[i * width + j + 1], table[(i + 1) * width + j]);
            table[(i + 1) * width + j + 1] = if a == b { table[i * width + j] + 1 } else { above.max(left) };
        }
    }
    let (mut i, mut j) = (reference.len(), other.len());
    let mut found = Vec::new();
    while i > 0 && j > 0 {
        if reference[i - 1] == other[j - 1] {
            (i, j) = (i - 1, j - 1);
            found.push(i);
        } else if table[i * width + j - 1] > table[(i - 1) * width + j] {
            j -= 1;
        } else {
            i -= 1;
        }
    }
    found.reverse();
    found
}

/// ROUGE-L of a summary: each line of the reference against all lines of the prediction, no word counted more often than
/// both sides have it.
fn by_lines(ours: &[Vec<String>], theirs: &[Vec<String>]) -> f64 {
    let count = |lines: &[Vec<String>]| {
        let mut counts = BTreeMap::<String, usize>::new();
        lines.iter().flatten().for_each(|word| *counts.entry(word.clone()).or_default() += 1);
        counts
    };
    let (mut left, mut there) = (count(ours), count(theirs));
    let mut hits = 0;
    for line in theirs {
        let union: BTreeSet<usize> = ours.iter().flat_map(|other| common(line, other)).collect();
        for word in union.into_iter().map(|at| &line[at]) {
            if let (Some(a @ 1..), Some(b @ 1..)) = (left.get_mut(word), there.get_mut(word)) {
                (*a, *b, hits) = (*a - 1, *b - 1, hits + 1);
            }
        }
    }
    let words = |lines: &[Vec<String>]| lines.iter().map(Vec::len).sum();
    f_measure(hits, words(ours), words(theirs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::testing::{cases, close, lists, texts};

    #[test]
    fn as_rouge_score() {
        for case in cases("texts") {
            let (predicted, references) = (texts(&case["predicted"]), lists(&case["references"]));
            for (key, stems) in [("rouge", false), ("rouge_stemmed", true)] {
                let expected = &case["expected"][key];
                for (name, kind) in [
                    ("rouge1", Rouge::N(1)),
                    ("rouge2", Rouge::N(2)),
                    ("rougeL", Rouge::L),
                    ("rougeLsum", Rouge::Lsum),
                ] {
                    let expected = expected[name].as_array().unwrap();
                    for ((text, references), expected) in predicted.iter().zip(&references).zip(expected) {
                        close(rouge(kind, text, references, stems), expected);
                    }
                }
            }
        }
    }
}
