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
use crate::tiny::{self, EOS};

/// The seed of the committed files.
pub const SEED: u64 = 13;
/// Rows of train, valid and test.
pub const COUNTS: [usize; 3] = [1000, 100, 150];
/// The kinds of plain sentences, rules `plain_…` of the grammar.
pub const KINDS: [&str; 4] = ["statement", "question", "order", "cry"];
/// Share of (subject, object) pairs, in percent, that the corpus leaves out, and of heroes whose tales only test holds.
const HELD_OUT: u64 = 12;
/// What stands between phrases.
const MARKS: [char; 7] = ['.', '?', '!', '"', ',', ';', ':'];
/// Bytes of the longest tale.
const LONGEST_TALE: usize = 300;
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

    /// The sentence `plain` as a pirate says it.
    pub fn rewrite(&self, plain: &str) -> String {
        let (body, mark) = plain.split_at(plain.len() - usize::from(plain.ends_with(['.', '?', '!'])));
        let order = body.strip_prefix("Please ");
        let said = self.speak(&self.small(order.unwrap_or(body)));
        match (order, mark) {
            (Some(_), _) => format!("Avast! {}, or walk th' plank!", capital(&said)),
            (None, "?") => format!("Ahoy! {}, matey?", capital(&said)),
            (None, "!") => format!("Yo ho ho! {}!", capital(&said)),
            _ => format!("Arr, {said}."),
        }
    }

    /// The text `plain` as a pirate tells it: what stands between marks in his words, with an opening.
    pub fn tell(&self, plain: &str) -> String {
        let mut told = String::from("Arr, ");
        let mut rest = plain;
        while !rest.is_empty() {
            let (words, after) = rest.split_at(rest.find(MARKS).unwrap_or(rest.len()));
            let bare = words.trim();
            let said = self.speak(&self.small(bare));
            let opens = bare.starts_with(char::is_uppercase) && rest.len() < plain.len();
            told += &words.replace(bare, &if opens { capital(&said) } else { said });
            let (marks, next) = after.split_at(after.find(|c| !MARKS.contains(&c)).unwrap_or(after.len()));
            told += marks;
            rest = next;
        }
        // `sound` takes the first of two, and the corpus that `tiny` was trained on has it so.
        told.replace("in'ing", "ingin'")
    }

    /// `text` with a small letter first, unless a name stands there.
    fn small(&self, text: &str) -> String {
        let first = text.split([' ', ',']).next().unwrap_or_default();
        if first == "I" || self.is_name(first) {
            return text.to_owned();
        }
        let mut letters = text.chars();
        letters.next().map_or_else(String::new, |letter| letter.to_lowercase().chain(letters).collect())
    }

    /// The pirate's words for `plain`, words with a space between: those of the longest known phrase at each place.
    fn speak(&self, plain: &str) -> String {
        let words: Vec<&str> = plain.split(' ').collect();
        let mut said = Vec::new();
        let mut at = 0;
        while at < words.len() {
            let (spoken, used) = self.phrase(&words[at..]);
            said.push(spoken);
            at += used;
        }
        said.join(" ")
    }

    /// The pirate's words for the longest known phrase at the start of `words`, and its length.
    fn phrase(&self, words: &[&str]) -> (String, usize) {
        for length in (1..=LONGEST.min(words.len())).rev() {
            let phrase = words[..length].join(" ");
            let (phrase, comma) =
                phrase.strip_suffix(',').map_or((phrase.as_str(), ""), |phrase| (phrase, ","));
            if let Some(spoken) = self.table.get(phrase) {
                return (format!("{spoken}{comma}"), length);
            }
        }
        (sound(words[0]), 1)
    }

    fn is_name(&self, word: &str) -> bool {
        let rules = ["she_name", "he_name", "day", "month"];
        rules
            .iter()
            .filter_map(|rule| self.grammar.rule(rule))
            .any(|names| names.iter().any(|name| name == word))
    }
}

/// A word outside the table: `-ing` loses its g.
fn sound(word: &str) -> String {
    let bare = word.trim_end_matches(',').to_lowercase();
    let short = ["thing", "ring", "king", "sing", "bring", "morning"].contains(&bare.as_str());
    if bare.ends_with("ing") && !short { word.replacen("ing", "in'", 1) } else { word.to_owned() }
}

/// The data set: tales of the corpus's grammar as the pirate tells them.
pub fn splits(seed: u64) -> Result<Splits> {
    let (style, tales) = (Style::new()?, tiny::grammar()?);
    Splits::fill(COUNTS, 1, &mut Draw::new(seed), |draw| {
        loop {
            let mut text = Text::new(&tales, draw);
            let plain = polish(&text.expand("tale")?, true);
            if plain.len() <= LONGEST_TALE {
                let held_out = held_out(&[text.bound("s").unwrap_or_default()], HELD_OUT);
                let told = style.tell(&plain);
                let json = json!({"text": format!("{told}{EOS}")});
                return Ok(Row { json, input: told, class: "tale".to_owned(), held_out });
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_deterministic() {
        let splits = splits(SEED).unwrap();
        assert_eq!(splits, super::splits(SEED).unwrap());
        assert_eq!(splits.lengths(), COUNTS);
    }

    #[test]
    fn a_tale_keeps_its_names_and_marks() {
        let told = Style::new().unwrap().tell(
            "Once there was a boy called Tom. \"Where is my hat?\" he asked. The king, who was singing, looked at Tom.",
        );
        assert_eq!(
            told,
            "Arr, once thar was a lad called Tom. \"Whar be me hat?\" he asked. Th' cap'n, who was singin', looked at Tom."
        );
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
