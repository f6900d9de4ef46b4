//! Answers against expected ones: equal or not, words in common, lengths.

use std::collections::BTreeMap;

use super::overlap::{PUNCTUATION, is_space, words};

/// 1 where the prediction is one of the references, white space at the ends aside; else 0.
pub fn exact_match<T: AsRef<str>>(prediction: &str, references: &[T]) -> f64 {
    let bare = |text: &str| text.trim_matches(is_space).to_owned();
    f64::from(u8::from(references.iter().any(|reference| bare(reference.as_ref()) == bare(prediction))))
}

/// F1 of the words of prediction and the reference that suits it best, as `SQuAD` 1.1 and 2.0 have it (`compute_f1`):
/// lower-case, without punctuation and articles; of two of which one has no words, 1 where both have none.
pub fn token_f1<T: AsRef<str>>(prediction: &str, references: &[T]) -> f64 {
    let ours = plain_words(prediction);
    references.iter().map(|reference| words_f1(&ours, &plain_words(reference.as_ref()))).fold(0.0, f64::max)
}

fn words_f1(ours: &[String], theirs: &[String]) -> f64 {
    if ours.is_empty() || theirs.is_empty() {
        return f64::from(u8::from(ours == theirs));
    }
    let mut left = BTreeMap::<&str, usize>::new();
    for word in theirs {
        *left.entry(word).or_default() += 1;
    }
    let mut common = 0;
    for word in ours {
        if let Some(count @ 1..) = left.get_mut(&**word) {
            *count -= 1;
            common += 1;
        }
    }
    if common == 0 {
        return 0.0;
    }
    let (precision, recall) = (common as f64 / ours.len() as f64, common as f64 / theirs.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

/// The words of a text, lower-case, without ASCII punctuation and the articles a, an and the.
fn plain_words(text: &str) -> Vec<String> {
    let lower: String = text.to_lowercase().chars().filter(|c| !PUNCTUATION.contains(*c)).collect();
    words(&without_articles(&lower)).map(ToOwned::to_owned).collect()
}

/// An article is one between any characters that words are not made of, as `\b` has it.
fn without_articles(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    for piece in text.split_inclusive(|c| !inside(c)) {
        let end = piece.find(|c| !inside(c)).unwrap_or(piece.len());
        let word = &piece[..end];
        out.push_str(if matches!(word, "a" | "an" | "the") { " " } else { word });
        out.push_str(&piece[end..]);
    }
    out
}

/// Words of a prediction.
pub fn length(prediction: &str) -> usize {
    words(prediction).count()
}

/// Words of all predictions over words of all first references: below 1, predictions are short. Not a number where the
/// references have none.
pub fn length_ratio<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> f64 {
    let (ours, theirs) = pairs
        .into_iter()
        .fold((0, 0), |(ours, theirs), (text, reference)| (ours + length(text), theirs + length(reference)));
    if theirs == 0 { f64::NAN } else { ours as f64 / theirs as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::testing::{cases, close, lists, texts};

    #[test]
    fn as_the_squad_metrics_of_transformers() {
        for case in cases("texts") {
            let (predicted, references) = (texts(&case["predicted"]), lists(&case["references"]));
            let expected = case["expected"]["squad_f1"].as_array().unwrap();
            for ((text, references), expected) in predicted.iter().zip(&references).zip(expected) {
                close(token_f1(text, references), expected);
            }
        }
    }

    #[test]
    fn a_match_is_exact_but_for_its_ends() {
        let matches = |text: &str, reference: &str| exact_match(text, &["x", reference]) > 0.5;
        assert_eq!([" a b\n", "a  b", "A b"].map(|text| matches(text, "a b")), [true, false, false]);
        assert!(matches("", ""));
    }

    #[test]
    fn lengths_are_in_words() {
        assert_eq!(length(" it's  a\u{a0}word "), 3);
        assert!((length_ratio([("a b", "a"), ("", "c d e")]) - 0.5).abs() < 1e-12);
        assert!(length_ratio([("a", "")]).is_nan());
    }
}
