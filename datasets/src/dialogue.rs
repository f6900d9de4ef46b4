//! Talks of several turns with the voice of a house. It asks for what a wish leaves open, remembers what was said and can
//! be corrected; each of its turns follows from those before.

use serde_json::{Value, json};

use crate::draw::{Draw, held_out};
use crate::english::polish;
use crate::grammar::Grammar;
use crate::splits::{Row, Splits};
use crate::text::Text;
use crate::{Error, Result, clock};

/// The seed of the committed files.
pub const SEED: u64 = 12;
/// Rows of train, valid and test.
pub const COUNTS: [usize; 3] = [720, 72, 108];
/// Share of slot combinations, in percent, that only test holds.
const HELD_OUT: u64 = 12;
/// What passes the word on in the grammar.
const NEXT: &str = " > ";
/// What the rules of scenes are called, before their kind.
const SCENE: &str = "scene_";
/// Who speaks, in turns.
const ROLES: [&str; 2] = ["user", "assistant"];

/// The rules of the talks, with the clock.
pub fn grammar() -> Result<Grammar> {
    let mut grammar = Grammar::parse(&[
        include_str!("../words/people.txt"),
        include_str!("../words/household.txt"),
        include_str!("../dialogue/grammar.txt"),
    ])?;
    clock::add_to(&mut grammar);
    Ok(grammar)
}

/// A random talk around a scene of `kind`, a name of a rule: its turns, the person's first, and whether its slots are held out.
pub fn talk(grammar: &Grammar, kind: &str, draw: &mut Draw) -> Result<(Vec<String>, bool)> {
    let mut text = Text::new(grammar, draw);
    let scene = text.expand(kind)?;
    let slots: Vec<&str> = text.bindings().map(|(_, value)| value).take(2).collect();
    let held_out = held_out(&[[kind].as_slice(), &slots].concat(), HELD_OUT);
    text.bind("scene", scene);
    let said = text.expand("talk")?;
    // Half the people care for capitals; the house always does.
    let careful = draw.chance(50);
    let turns = said.split(NEXT).enumerate();
    Ok((turns.map(|(at, turn)| polish(turn, careful || at % 2 == 1)).collect(), held_out))
}

/// The data set.
pub fn splits(seed: u64) -> Result<Splits> {
    let grammar = grammar()?;
    let kinds: Vec<&str> = grammar.names().filter(|name| name.starts_with(SCENE)).collect();
    Splits::fill(COUNTS, kinds.len(), &mut Draw::new(seed), |draw| {
        let kind = *draw.pick(&kinds).ok_or_else(|| Error::Unknown(SCENE.to_owned()))?;
        let (turns, held_out) = talk(&grammar, kind, draw)?;
        let messages: Vec<Value> = (turns.iter().zip(ROLES.iter().cycle()))
            .map(|(content, role)| json!({"role": role, "content": content}))
            .collect();
        Ok(Row {
            json: json!({"messages": messages}),
            input: turns.join("\n"),
            class: kind.to_owned(),
            held_out,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn rows_are_deterministic_and_scenes_balanced() {
        let splits = splits(SEED).unwrap();
        assert_eq!(splits, super::splits(SEED).unwrap());
        assert_eq!(splits.lengths(), COUNTS);
        assert_eq!(splits.classes().len(), 9);
    }

    #[test]
    fn the_house_has_the_last_word_and_always_the_same_one() {
        let mut answers = BTreeMap::new();
        for row in splits(SEED).unwrap().rows.iter().flatten() {
            let turns: Vec<&str> = row.input.split('\n').collect();
            assert!(turns.len().is_multiple_of(2) && turns.iter().all(|turn| !turn.is_empty()), "{turns:?}");
            for at in (1..turns.len()).step_by(2) {
                let said = answers.entry(turns[..at].join("\n")).or_insert(turns[at].to_owned());
                assert_eq!(said, turns[at], "{turns:?}");
            }
        }
    }
}
