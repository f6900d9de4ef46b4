//! Requests to a household assistant, each with an answer in words: a part of the corpus of `tiny`.

use crate::draw::{Draw, held_out};
use crate::english::polish;
use crate::grammar::Grammar;
use crate::text::Text;
use crate::{Result, clock};

/// Share of slot combinations, in percent, that the corpus leaves out.
const HELD_OUT: u64 = 12;

/// A request with what it means.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What is said, in small letters.
    pub said: String,
    /// What a polite assistant answers in words.
    pub reply: String,
    /// Whether its slot combination is kept out of the corpus.
    pub held_out: bool,
}

/// The rules of the requests, with the clock.
pub fn grammar() -> Result<Grammar> {
    let mut grammar = Grammar::parse(&[
        include_str!("../words/people.txt"),
        include_str!("../words/household.txt"),
        include_str!("../tiny/grammar/requests.txt"),
    ])?;
    clock::add_to(&mut grammar);
    Ok(grammar)
}

/// The kinds of requests in `grammar`: what follows `ask_`.
pub fn kinds(grammar: &Grammar) -> Vec<String> {
    grammar.names().filter_map(|name| name.strip_prefix("ask_")).map(str::to_owned).collect()
}

/// A random request of `kind`.
pub fn request(grammar: &Grammar, kind: &str, draw: &mut Draw) -> Result<Request> {
    let mut text = Text::new(grammar, draw);
    let said = text.expand(&format!("ask_{kind}"))?;
    // The corpus that the weights of `tiny` were trained on spent a choice here.
    text.draw().below(1);
    let reply = text.expand(&format!("reply_{kind}"))?;
    let slots: Vec<&str> = text.bindings().map(|(_, value)| value).take(2).collect();
    let held_out = held_out(&[[kind].as_slice(), &slots].concat(), HELD_OUT);
    Ok(Request { said: polish(&said, false), reply: polish(&reply, true), held_out })
}
