//! Runs of words and of characters that a text shares with references: BLEU and chrF, equal to sacrebleu's (2.x).

use std::collections::BTreeMap;

/// Longest runs that BLEU counts.
const ORDER: usize = 4;
/// Weight of recall in chrF, squared.
const BETA2: f64 = 4.0;
/// Python's `string.punctuation`.
pub(super) const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";

/// How often each run of `length` items occurs.
pub(super) fn runs<T: Ord>(items: &[T], length: usize) -> BTreeMap<&[T], usize> {
    let mut counts = BTreeMap::new();
    for run in items.windows(length) {
        *counts.entry(run).or_default() += 1;
    }
    counts
}

/// What Python's `str.split` and `str.strip` take for white space.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// How BLEU cuts a text into words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BleuTokens {
    /// mteval-v13a's rules, as WMT uses them.
    #[default]
    V13a,
    /// Characters.
    Char,
    /// At white space alone.
    None,
}

impl BleuTokens {
    fn apply(self, text: &str) -> String {
        let text = text.trim_end_matches(is_space);
        match self {
            Self::V13a => v13a(text),
            Self::Char => text.chars().flat_map(|c| [c, ' ']).collect(),
            Self::None => text.to_owned(),
        }
    }
}

fn v13a(text: &str) -> String {
    let text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    let text = text.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
    let apart = |c: char| matches!(c, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/');
    let mut spaced = vec![' '];
    for c in text.chars() {
        if apart(c) { spaced.extend([' ', c, ' ']) } else { spaced.push(c) }
    }
    spaced.push(' ');
    let point = |c: char| matches!(c, '.' | ',');
    let spaced = split_pairs(&spaced, |a, b| !a.is_ascii_digit() && point(b), |a, b| [a, ' ', b, ' ']);
    let spaced = split_pairs(&spaced, |a, b| point(a) && !b.is_ascii_digit(), |a, b| [' ', a, ' ', b]);
    let spaced = split_pairs(&spaced, |a, b| a.is_ascii_digit() && b == '-', |a, b| [a, ' ', b, ' ']);
    spaced.into_iter().collect()
}

/// Spaces out neighbours, as a regular expression of two characters replaces them: no character is in two pairs.
fn split_pairs(
    text: &[char],
    holds: impl Fn(char, char) -> bool,
    spaced: impl Fn(char, char) -> [char; 4],
) -> Vec<char> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 4);
    let mut at = 0;
    while at < text.len() {
        match text.get(at + 1) {
            Some(&next) if holds(text[at], next) => {
                out.extend(spaced(text[at], next));
                at += 2;
            }
            _ => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    out
}

/// Counts of BLEU (Papineni et al. 2002); those of a corpus are the sum of its rows'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bleu {
    /// Words of the predictions.
    pub length: usize,
    /// Words of the references nearest in length.
    pub reference_length: usize,
    right: [usize; ORDER],
    total: [usize; ORDER],
}

impl Bleu {
    /// The counts of one row against all its references.
    pub fn row<T: AsRef<str>>(prediction: &str, references: &[T], tokens: BleuTokens) -> Self {
        let prediction = tokens.apply(prediction);
        let prediction: Vec<&str> = words(&prediction).collect();
        let references: Vec<String> = references.iter().map(|text| tokens.apply(text.as_ref())).collect();
        let references: Vec<Vec<&str>> = references.iter().map(|text| words(text).collect()).collect();
        let nearest =
            references.iter().map(Vec::len).min_by_key(|length| (length.abs_diff(prediction.len()), *length));
        let mut row =
            Self { length: prediction.len(), reference_length: nearest.unwrap_or(0), ..Self::default() };
        for order in 0..ORDER {
            let counted: Vec<_> = references.iter().map(|words| runs(words, order + 1)).collect();
            for (run, count) in runs(&prediction, order + 1) {
                let most = counted.iter().filter_map(|counts| counts.get(run)).max();
                row.total[order] += count;
                row.right[order] += count.min(most.copied().unwrap_or(0));
            }
        }
        row
    }

    /// The counts of many rows together.
    pub fn sum<'a>(rows: impl IntoIterator<Item = &'a Self>) -> Self {
        rows.into_iter().fold(Self::default(), |mut sum, row| {
            sum.length += row.length;
            sum.reference_length += row.reference_length;
            for order in 0..ORDER {
                sum.right[order] += row.right[order];
                sum.total[order] += row.total[order];
            }
            sum
        })
    }

    /// From 0 to 100, an order without a match smoothed (`exp`: Chen & Cherry 2014, method 3).
    pub fn score(&self) -> f64 {
        self.smoothed(false)
    }

    /// As [`score`](Self::score), but leaving out orders longer than the text: for one sentence (`effective_order`).
    pub fn sentence_score(&self) -> f64 {
        self.smoothed(true)
    }

    fn smoothed(&self, effective: bool) -> f64 {
        if self.right.iter().all(|&right| right == 0) {
            return 0.0;
        }
        let mut precisions = [0f64; ORDER];
        let (mut smooth, mut orders) = (1.0, ORDER);
        for (order, precision) in precisions.iter_mut().enumerate() {
            let (right, total) = (self.right[order] as f64, self.total[order] as f64);
            if total == 0.0 {
                break;
            }
            if effective {
                orders = order + 1;
            }
            if right == 0.0 {
                smooth *= 2.0;
            }
            *precision = if right == 0.0 { 100.0 / (smooth * total) } else { 100.0 * right / total };
        }
        // The logarithm of no precision is sacrebleu's.
        let log = |p: &f64| if *p == 0.0 { -9999999999.0 } else { p.ln() };
        let mean = precisions[..orders].iter().map(log).sum::<f64>() / orders as f64;
        self.brevity() * mean.exp()
    }

    /// The brevity penalty.
    fn brevity(&self) -> f64 {
        if self.length >= self.reference_length {
            1.0
        } else if self.length == 0 {
            0.0
        } else {
            (1.0 - self.reference_length as f64 / self.length as f64).exp()
        }
    }
}

/// Counts of chrF (Popović 2015), or of chrF++ with runs of words as well; those of a corpus are the sum of its rows'.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chrf {
    /// Of each order: runs of the prediction, of the reference, and of both.
    orders: Vec<[usize; 3]>,
}

impl Chrf {
    /// The counts of one row against the reference that suits it best, with runs of up to six characters and up to
    /// `word_order` words: 0 is chrF, 2 is chrF++.
    pub fn row<T: AsRef<str>>(prediction: &str, references: &[T], word_order: usize) -> Self {
        let prediction = Pieces::of(prediction);
        let mut best: Option<Self> = None;
        for reference in references {
            let row = Self { orders: prediction.shared(&Pieces::of(reference.as_ref()), word_order) };
            if best.as_ref().is_none_or(|best| row.score() > best.score()) {
                best = Some(row);
            }
        }
        best.unwrap_or_default()
    }

    /// The counts of many rows together.
    pub fn sum<'a>(rows: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for row in rows {
            sum.orders.resize(row.orders.len().max(sum.orders.len()), [0; 3]);
            for (sum, row) in sum.orders.iter_mut().zip(&row.orders) {
                sum.iter_mut().zip(row).for_each(|(sum, count)| *sum += count);
            }
        }
        sum
    }

    /// From 0 to 100: the F score, with recall counting twice, of the mean precision and recall over the orders that both
    /// sides are long enough for.
    pub fn score(&self) -> f64 {
        let orders = self.orders.iter().filter(|[ours, theirs, _]| *ours > 0 && *theirs > 0);
        let count = orders.clone().count();
        let (mut precision, mut recall) = (0.0, 0.0);
        for [ours, theirs, both] in orders {
            precision += *both as f64 / *ours as f64;
            recall += *both as f64 / *theirs as f64;
        }
        if precision + recall == 0.0 {
            return 0.0;
        }
        let (precision, recall) = (precision / count as f64, recall / count as f64);
        100.0 * ((1.0 + BETA2) * precision * recall / (BETA2 * precision + recall))
    }
}

/// A text as chrF sees it.
struct Pieces<'a> {
    /// Without white space.
    letters: Vec<char>,
    /// With a mark of punctuation at an end split off.
    words: Vec<&'a str>,
}

impl<'a> Pieces<'a> {
    fn of(text: &'a str) -> Self {
        let letters = text.chars().filter(|c| !is_space(*c)).collect();
        let mut pieces = Vec::new();
        for word in words(text) {
            let last = word.char_indices().next_back().map_or(0, |(at, _)| at);
            let first = word.chars().next().map_or(0, char::len_utf8);
            if last > 0 && word[last..].contains(is_punctuation) {
                pieces.extend([&word[..last], &word[last..]]);
            } else if last > 0 && word[..first].contains(is_punctuation) {
                pieces.extend([&word[..first], &word[first..]]);
            } else {
                pieces.push(word);
            }
        }
        Self { letters, words: pieces }
    }

    fn shared(&self, reference: &Self, word_order: usize) -> Vec<[usize; 3]> {
        let letters = (1..=6).map(|n| shared(&self.letters, &reference.letters, n));
        letters.chain((1..=word_order).map(|n| shared(&self.words, &reference.words, n))).collect()
    }
}

fn is_punctuation(c: char) -> bool {
    PUNCTUATION.contains(c)
}

/// Runs of ours, if there are any of theirs; runs of theirs; runs of both.
fn shared<T: Ord>(ours: &[T], theirs: &[T], length: usize) -> [usize; 3] {
    let (ours, theirs) = (runs(ours, length), runs(theirs, length));
    let both = ours.iter().map(|(run, count)| *count.min(theirs.get(run).unwrap_or(&0))).sum();
    let total = |counts: &BTreeMap<&[T], usize>| counts.values().sum();
    [if theirs.is_empty() { 0 } else { total(&ours) }, total(&theirs), both]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::testing::{cases, close, lists, texts};

    #[test]
    fn as_sacrebleu() {
        for case in cases("texts") {
            let (predicted, references) = (texts(&case["predicted"]), lists(&case["references"]));
            let rows = || predicted.iter().zip(&references);
            let expected = &case["expected"];
            for (name, tokens) in
                [("13a", BleuTokens::V13a), ("char", BleuTokens::Char), ("none", BleuTokens::None)]
            {
                let rows: Vec<_> = rows().map(|(text, refs)| Bleu::row(text, refs, tokens)).collect();
                close(Bleu::sum(&rows).score(), &expected["bleu"][name]);
                for (row, expected) in rows.iter().zip(expected["sentence_bleu"][name].as_array().unwrap()) {
                    close(row.sentence_score(), expected);
                }
            }
            for (name, order) in [("chrf", 0), ("chrf++", 2)] {
                let rows: Vec<_> = rows().map(|(text, refs)| Chrf::row(text, refs, order)).collect();
                close(Chrf::sum(&rows).score(), &expected[name]);
                for (row, expected) in rows.iter().zip(expected["sentence_chrf"][name].as_array().unwrap()) {
                    close(row.score(), expected);
                }
            }
            for (text, expected) in predicted.iter().zip(texts(&expected["13a"])) {
                let cut = BleuTokens::V13a.apply(text);
                assert_eq!(words(&cut).collect::<Vec<_>>().join(" "), expected);
            }
        }
    }
}
