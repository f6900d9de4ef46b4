//! Reviews and their sentiment. A label follows from two or three opinions, each of which may turn on a negation or a
//! disappointed expectation; no single word gives it away.

use serde_json::json;

use crate::draw::{Draw, held_out};
use crate::english::polish;
use crate::grammar::Grammar;
use crate::splits::{Row, Splits};
use crate::text::Text;
use crate::{Error, Result};

/// The seed of the committed files.
pub const SEED: u64 = 11;
/// Rows of train, valid and test.
pub const COUNTS: [usize; 3] = [3600, 150, 300];
/// The classes.
pub const LABELS: [&str; 3] = ["positive", "negative", "mixed"];
/// Bytes of the longest review of the data set: what a base of a million parameters can weigh.
const LONGEST: usize = 80;
/// Share of (aspect, adjective) pairs, in percent, that only test holds.
const HELD_OUT: u64 = 10;

/// A review without its label.
#[derive(Debug, Clone, PartialEq)]
pub struct Review {
    /// Its sentences.
    pub text: String,
    /// Its label.
    pub label: &'static str,
    /// Whether it has an (aspect, adjective) pair that is kept for the test split.
    pub held_out: bool,
}

/// The rules of the reviews.
pub fn grammar() -> Result<Grammar> {
    Grammar::parse(&[include_str!("../words/people.txt"), include_str!("../sentiment/grammar.txt")])
}

/// One random review of random label.
pub fn review(grammar: &Grammar, draw: &mut Draw) -> Result<Review> {
    let label = draw.pick(&LABELS).copied().unwrap_or(LABELS[0]);
    let praise_first = draw.chance(50);
    let praise = match label {
        "positive" => [true; 3],
        "negative" => [false; 3],
        _ => [praise_first, !praise_first, draw.chance(50)],
    };
    let mut text = Text::new(grammar, draw);
    let domain = text.expand("domain")?;
    text.bind("domain", domain.clone());
    let mut pairs = Vec::new();
    for (name, praise) in ["x", "y", "z"].iter().zip(praise) {
        let (said, held) = opinion(&mut text, &domain, praise)?;
        pairs.push((said.clone(), held));
        text.bind(name, said);
    }
    let frame = text.expand(if label == "mixed" { "both" } else { "same" })?;
    let held_out = pairs.iter().any(|(said, held)| *held && frame.contains(said.as_str()));
    Ok(Review { text: polish(&frame, true), label, held_out })
}

/// One opinion on an aspect of the domain, and whether it holds a held-out pair.
fn opinion(text: &mut Text, domain: &str, praise: bool) -> Result<(String, bool)> {
    bind_aspect(text, domain)?;
    let said = text.expand(if praise { "praise" } else { "complaint" })?;
    let held = has_held_out_pair(text, &said);
    Ok((said, held))
}

/// Binds `asp` to an aspect of `domain`, `it` to its pronoun, and `good` and `bad` to adjectives that suit it.
pub fn bind_aspect(text: &mut Text, domain: &str) -> Result<()> {
    let aspect = text.expand(&format!("aspects_{domain}"))?;
    let (noun, kind) = aspect.split_once('/').ok_or_else(|| Error::Unknown(aspect.clone()))?;
    let pronoun = if kind == "person" { text.draw().pick(&["he", "she"]) } else { None };
    text.bind("it", pronoun.copied().unwrap_or("it"));
    text.bind("asp", noun);
    for word in ["good", "bad"] {
        let adjective = text.expand(&format!("{word}_{kind}"))?;
        text.bind(word, adjective);
    }
    Ok(())
}

/// Whether `said` couples the bound aspect with an adjective that only the test split may couple it with.
pub fn has_held_out_pair(text: &Text, said: &str) -> bool {
    let aspect = text.bound("asp").unwrap_or_default();
    let words = ["good", "bad"].map(|word| text.bound(word).unwrap_or_default());
    words.iter().any(|word| said.contains(word) && held_out(&[aspect, word], HELD_OUT))
}

/// The data set.
pub fn splits(seed: u64) -> Result<Splits> {
    let grammar = grammar()?;
    Splits::fill(COUNTS, LABELS.len(), &mut Draw::new(seed), |draw| {
        let review = loop {
            let review = review(&grammar, draw)?;
            if review.text.len() <= LONGEST {
                break review;
            }
        };
        Ok(Row {
            json: json!({"text": &review.text, "label": review.label}),
            input: review.text,
            class: review.label.to_owned(),
            held_out: review.held_out,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_deterministic_and_labels_balanced() {
        let splits = splits(SEED).unwrap();
        assert_eq!(splits, super::splits(SEED).unwrap());
        assert_eq!(splits.lengths(), COUNTS);
        assert!(splits.classes().values().all(|count| *count == 1350));
    }

    #[test]
    fn rows_are_short() {
        let splits = splits(1).unwrap();
        assert!(splits.rows.iter().flatten().all(|row| row.input.split(' ').count() <= 60));
    }
}
