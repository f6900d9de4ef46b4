//! Plain sentences and how an old pirate says them. The rewriting is a function of the plain sentence alone: a phrase table,
//! a few sound rules, and an opening and an ending that follow from the kind of sentence.

use std::collections::BTreeMap;

use serde_json::json;

use crate::Result;
use crate::draw::{Draw, held_out};
use crate::english::{capital, polish};
use crate::grammar::Grammar;
use crate::splits::{Row, Splits};
use crate::text::Text;

/// The seed of the committed files.
pub const SEED: u64 = 13;
/// Rows of train, valid and test.
pub const COUNTS: [usize; 3] = [1500, 150, 200];
/// The kinds of plain sentences, rules `plain_…` of the grammar.
pub const KINDS: [&str; 4] = ["statement", "question", "order", "cry"];
/// Share of (subject, object) pairs, in percent, that only test holds.
const HELD_OUT: u64 = 12;
/// Words in the longest phrase of the table.
const LONGEST: usize = 3;

/// A plain sentence in pirate speech and back to front: its two ends of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The kind, one of [`KINDS`].
    pub kind: &'static str,
    /// The plain sentence.
    pub plain: String,
    /// What the pirate says.
    pub pirate: String,
    /// Whether its subject and object are a pair kept for the test split.
    pub held_out: bool,
}

/// A grammar of plain sentences and a pirate's words.
#[derive(Debug)]
pub struct Style {
    grammar: Grammar,
    table: BTreeMap<&'static str, &'static str>,
}

impl Style {
    /// The committed grammar and phrase table.
    pub fn new() -> Result<Self> {
        let grammar =
            Grammar::parse(&[include_str!("../words/people.txt"), include_str!("../style/grammar.txt")])?;
        let lines = include_str!("../style/pirate.txt").lines().filter(|line| !line.starts_with('#'));
        let table =
            lines.flat_map(|line| line.split('|')).filter_map(|pair| pair.trim().split_once('/')).collect();
        Ok(Self { grammar, table })
    }

    /// A random sentence, plain and in style.
    pub fn pair(&self, draw: &mut Draw) -> Result<Pair> {
        let kind = draw.pick(&KINDS).copied().unwrap_or(KINDS[0]);
        let mut text = Text::new(&self.grammar, draw);
        let plain = polish(&text.expand(&format!("plain_{kind}"))?, true);
        let [subject, object] = ["s", "o"].map(|word| text.bound(word).unwrap_or_default());
        let held_out = held_out(&[subject, object], HELD_OUT);
        Ok(Pair { kind, pirate: self.rewrite(&plain), plain, held_out })
    }

    /// `plain` as a pirate says it.
    pub fn rewrite(&self, plain: &str) -> String {
        let (body, mark) = plain.split_at(plain.len() - usize::from(plain.ends_with(['.', '?', '!'])));
        let order = body.strip_prefix("Please ");
        let words: Vec<&str> = order.unwrap_or(body).split(' ').collect();
        let mut said = Vec::new();
        let mut at = 0;
        while at < words.len() {
            let (spoken, used) = self.speak(&words[at..]);
            said.push(spoken);
            at += used;
        }
        let said = said.join(" ");
        match (order, mark) {
            (Some(_), _) => format!("Avast! {}, or walk th' plank!", capital(&said)),
            (None, "?") => format!("Ahoy! {}, matey?", capital(&said)),
            (None, "!") => format!("Yo ho ho! {}!", capital(&said)),
            _ => format!("Arr, {said}."),
        }
    }

    /// The pirate's words for the longest known phrase at the start of `words`, and its length.
    fn speak(&self, words: &[&str]) -> (String, usize) {
        for length in (1..=LONGEST.min(words.len())).rev() {
            let phrase = words[..length].join(" ");
            let (phrase, comma) =
                phrase.strip_suffix(',').map_or((phrase.as_str(), ""), |phrase| (phrase, ","));
            // Names keep their capital; the first word of a sentence loses it.
            let small =
                phrase.strip_prefix("I ").map_or_else(|| phrase.to_lowercase(), |rest| format!("I {rest}"));
            if let Some(spoken) = self.table.get(small.as_str()) {
                return (format!("{spoken}{comma}"), length);
            }
        }
        (self.sound(words[0]), 1)
    }

    /// A word outside the table: `-ing` loses its g, and a capital that only opens a sentence is dropped.
    fn sound(&self, word: &str) -> String {
        let bare = word.trim_end_matches(',');
        let is_name = bare == "I" || self.is_name(bare);
        let word = if is_name { word.to_owned() } else { word.to_lowercase() };
        let short =
            ["thing", "ring", "king", "sing", "bring", "morning"].contains(&bare.to_lowercase().as_str());
        if bare.to_lowercase().ends_with("ing") && !short { word.replacen("ing", "in'", 1) } else { word }
    }

    fn is_name(&self, word: &str) -> bool {
        let rules = ["she_name", "he_name", "day", "month"];
        rules
            .iter()
            .filter_map(|rule| self.grammar.rule(rule))
            .any(|names| names.iter().any(|name| name == word))
    }
}

/// The data set.
pub fn splits(seed: u64) -> Result<Splits> {
    let style = Style::new()?;
    Splits::fill(COUNTS, KINDS.len(), &mut Draw::new(seed), |draw| {
        let pair = style.pair(draw)?;
        let (prompt, completion) = (format!("{}\nPirate:", pair.plain), format!(" {}", pair.pirate));
        Ok(Row {
            json: json!({"prompt": prompt, "completion": completion}),
            input: pair.plain,
            class: pair.kind.to_owned(),
            held_out: pair.held_out,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_deterministic_and_kinds_balanced() {
        let splits = splits(SEED).unwrap();
        assert_eq!(splits, super::splits(SEED).unwrap());
        let counts = splits.classes();
        assert!(counts.len() == 4 && counts.values().all(|count| (450..480).contains(count)), "{counts:?}");
    }

    #[test]
    fn the_pirate_never_says_it_plainly() {
        for row in splits(SEED).unwrap().rows.iter().flatten() {
            let said = row.json["completion"].as_str().unwrap().trim();
            assert!(!row.json["prompt"].as_str().unwrap().contains(said));
        }
    }

    #[test]
    fn kinds_of_sentences() {
        let style = Style::new().unwrap();
        for (plain, pirate) in [
            ("My friend is looking for the money.", "Arr, me matey be lookin' fer th' doubloons."),
            ("Where are the children?", "Ahoy! Whar be th' cabin boys, matey?"),
            ("Please clean the floor now.", "Avast! Swab th' deck smartly, or walk th' plank!"),
            ("Yes, Tom, I am hungry!", "Yo ho ho! Aye, Tom, I be starvin'!"),
        ] {
            assert_eq!(style.rewrite(plain), pirate);
        }
    }
}
