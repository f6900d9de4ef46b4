//! Requests to a household assistant and the JSON object each one means: its intent and its slots.

use serde_json::{Value, json};

use crate::draw::{Draw, held_out};
use crate::english::polish;
use crate::grammar::Grammar;
use crate::splits::{Row, Splits};
use crate::text::Text;
use crate::{Error, Result};

/// The seed of the committed files.
pub const SEED: u64 = 12;
/// Rows of train, valid and test.
pub const COUNTS: [usize; 3] = [1560, 156, 204];
/// How many intents the grammar has: `alarm`, `call`, …
pub const INTENTS: usize = 12;
/// Share of slot combinations, in percent, that only test holds.
const HELD_OUT: u64 = 12;
/// Hours in words, from one to twelve.
const HOURS: [&str; 12] =
    ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];

/// A request with what it means.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What is said, in small letters.
    pub said: String,
    /// The meaning, one compact JSON object.
    pub object: String,
    /// What a polite assistant answers in words.
    pub reply: String,
    /// Whether its slot combination is kept for the test split.
    pub held_out: bool,
}

/// The rules of the requests, with the clock.
pub fn grammar() -> Result<Grammar> {
    let mut grammar =
        Grammar::parse(&[include_str!("../words/people.txt"), include_str!("../requests/grammar.txt")])?;
    add_clock(&mut grammar);
    Ok(grammar)
}

/// Adds the rules `time` (`quarter past seven in the evening/19:15`), `minutes` (`9 minutes/9`) `hours` and `span`, which has both.
pub fn add_clock(grammar: &mut Grammar) {
    grammar.extend("time", (0..24).flat_map(times));
    let minutes = (2..60).map(|n| format!("{n} minutes/{n}"));
    let hours = (2..9).map(|n| format!("{} hours/{}", HOURS[n - 1], n * 60));
    grammar.extend("minutes", minutes.clone());
    grammar.extend("hours", hours.clone());
    grammar.extend("span", minutes.chain(hours));
}

/// The ways to say times within `hour` (0 to 23), each with its 24-hour form.
fn times(hour: usize) -> Vec<String> {
    let half = if hour < 12 { "am" } else { "pm" };
    let part = match hour {
        0..12 => "in the morning",
        12..18 => "in the afternoon",
        _ => "in the evening",
    };
    let short = (hour + 11) % 12 + 1;
    let (word, next) = (HOURS[short - 1], HOURS[short % 12]);
    let mut said = vec![
        format!("{short} {half}/{hour:02}:00"),
        format!("{short} {half}/{hour:02}:00"),
        format!("{short} o'clock {part}/{hour:02}:00"),
        format!("{word} {part}/{hour:02}:00"),
        format!("half past {word} {part}/{hour:02}:30"),
        format!("quarter past {word} {part}/{hour:02}:15"),
        format!("{hour}:30/{hour:02}:30"),
        format!("{hour}:05/{hour:02}:05"),
    ];
    // `quarter to twelve in the morning` would need a thought about noon.
    if hour % 12 != 11 {
        said.push(format!("quarter to {next} {part}/{hour:02}:45"));
    }
    said.extend([10, 15, 20, 40, 45, 50].map(|minute| format!("{short}:{minute} {half}/{hour:02}:{minute}")));
    said
}

/// The kinds of requests in `grammar`: what follows `ask_`.
pub fn kinds(grammar: &Grammar) -> Vec<String> {
    grammar.names().filter_map(|name| name.strip_prefix("ask_")).map(str::to_owned).collect()
}

/// A random request of `kind`.
pub fn request(grammar: &Grammar, kind: &str, draw: &mut Draw) -> Result<Request> {
    let mut text = Text::new(grammar, draw);
    let said = text.expand(&format!("ask_{kind}"))?;
    let object = text.expand(&format!("json_{kind}"))?;
    let reply = text.expand(&format!("reply_{kind}"))?;
    let slots: Vec<&str> = text.bindings().map(|(_, value)| value).take(2).collect();
    let held_out = held_out(&[[kind].as_slice(), &slots].concat(), HELD_OUT);
    Ok(Request {
        said: polish(&said, false),
        object: polish(&object, false),
        reply: polish(&reply, true),
        held_out,
    })
}

/// The data set.
pub fn splits(seed: u64) -> Result<Splits> {
    let grammar = grammar()?;
    let kinds = kinds(&grammar);
    Splits::fill(COUNTS, INTENTS, &mut Draw::new(seed), |draw| {
        let kind = draw.pick(&kinds).ok_or_else(|| Error::Unknown("ask_".to_owned()))?;
        let request = request(&grammar, kind, draw)?;
        let object: Value = serde_json::from_str(&request.object)?;
        let intent = object["intent"].as_str().unwrap_or_default();
        Ok(Row {
            json: json!({"messages": [
                {"role": "user", "content": &request.said},
                {"role": "assistant", "content": &request.object},
            ]}),
            class: intent.to_owned(),
            input: request.said,
            held_out: request.held_out,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_deterministic_and_intents_balanced() {
        let splits = splits(SEED).unwrap();
        assert_eq!(splits, super::splits(SEED).unwrap());
        assert_eq!(splits.classes().len(), INTENTS);
        assert!(splits.classes().values().all(|count| *count == 160), "{:?}", splits.classes());
    }

    #[test]
    fn completions_are_compact_objects_with_slots() {
        for row in splits(SEED).unwrap().rows.iter().flatten() {
            let said = row.json["messages"][1]["content"].as_str().unwrap();
            let object: Value = serde_json::from_str(said).unwrap();
            assert!(object.as_object().unwrap().len() >= 2, "{said}");
            assert_eq!(object.to_string(), said);
        }
    }

    #[test]
    fn the_clock_is_right() {
        let all: Vec<String> = (0..24).flat_map(times).collect();
        for time in [
            "12 am/00:00",
            "quarter to eight in the evening/19:45",
            "12:20 pm/12:20",
            "half past twelve in the afternoon/12:30",
        ] {
            assert!(all.iter().any(|said| said == time), "{time}");
        }
    }
}
