//! Expanding a grammar: one [`Text`] is one document, with the words it has bound and used.
//!
//! Forms, after a dot, left to right: a digit takes that field of a word like `7 pm/19:00`; `ed` past, `ing`, `en`
//! participle, `es` present agreeing with the word bound as `s`; `p` plural; `cap` first letter capital; `up` all capitals; and
//! `he him his himself is was has does` the pronoun or auxiliary that agrees with the word.

use std::collections::{BTreeMap, BTreeSet};

use crate::draw::Draw;
use crate::english::{self, Person};
use crate::grammar::{Grammar, split_choices};
use crate::{Error, Result};

/// How often a word that this text has already used is drawn again for another.
const RETRIES: usize = 8;

/// One document in the making. A word once bound keeps its value, and a fresh word avoids the used ones.
#[derive(Debug)]
pub struct Text<'a> {
    grammar: &'a Grammar,
    draw: &'a mut Draw,
    bound: BTreeMap<String, String>,
    used: BTreeSet<String>,
}

impl<'a> Text<'a> {
    /// An empty document.
    pub fn new(grammar: &'a Grammar, draw: &'a mut Draw) -> Self {
        Self { grammar, draw, bound: BTreeMap::new(), used: BTreeSet::new() }
    }

    /// The seeded stream, for choices beyond the grammar.
    pub fn draw(&mut self) -> &mut Draw {
        self.draw
    }

    /// Makes `{word}` stand for `value` from here on.
    pub fn bind(&mut self, word: &str, value: impl Into<String>) {
        self.bound.insert(word.to_owned(), value.into());
    }

    /// What `word` is bound to, if it is.
    pub fn bound(&self, word: &str) -> Option<&str> {
        self.bound.get(word).map(String::as_str)
    }

    /// All bound words with their values, by name.
    pub fn bindings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.bound.iter().map(|(word, value)| (word.as_str(), value.as_str()))
    }

    /// A random expansion of `rule`, unpolished.
    pub fn expand(&mut self, rule: &str) -> Result<String> {
        let grammar = self.grammar;
        let items = grammar.rule(rule).ok_or_else(|| Error::Unknown(rule.to_owned()))?;
        for attempt in 0..=RETRIES {
            let Some(item) = self.draw.pick(items) else { break };
            if item.contains(['{', '(']) {
                return self.fill(item);
            }
            if attempt == RETRIES || !self.used.contains(item) {
                self.used.insert(item.clone());
                return Ok(item.clone());
            }
        }
        Err(Error::Unknown(rule.to_owned()))
    }

    /// `template` with its slots and choices filled, unpolished.
    pub fn fill(&mut self, template: &str) -> Result<String> {
        let mut out = String::with_capacity(template.len() * 2);
        let mut rest = template;
        while let Some(open) = rest.find(['{', '(']) {
            out.push_str(&rest[..open]);
            let inside = enclosed(&rest[open..]).ok_or_else(|| bad(template, "an unclosed bracket"))?;
            if rest[open..].starts_with('{') {
                let word = self.slot(inside).map_err(|error| match error {
                    Error::Unknown(name) => {
                        bad(template, &format!("no rule and no bound word is called `{name}`"))
                    }
                    other => other,
                })?;
                out.push_str(&word);
            } else {
                let choices = split_spaced(inside);
                let choice = self.draw.pick(&choices).cloned().unwrap_or_default();
                out.push_str(&self.fill(&choice)?);
            }
            rest = &rest[open + inside.len() + 2..];
        }
        out.push_str(rest);
        Ok(out)
    }

    /// The value of what stands between braces: `#word=rule.form.form`.
    fn slot(&mut self, inside: &str) -> Result<String> {
        let (silent, inside) = inside.strip_prefix('#').map_or((false, inside), |rest| (true, rest));
        let (name, forms) = inside.split_once('.').unwrap_or((inside, ""));
        let mut value = match name.split_once('=') {
            Some((word, rule)) => {
                let value = self.lookup(rule)?;
                self.bind(word, value.clone());
                value
            }
            None => self.lookup(name)?,
        };
        if silent {
            return Ok(String::new());
        }
        for form in forms.split('.').filter(|form| !form.is_empty()) {
            value = self.inflect(&value, form)?;
        }
        Ok(value)
    }

    fn lookup(&mut self, name: &str) -> Result<String> {
        match self.bound.get(name) {
            Some(value) => Ok(value.clone()),
            None => self.expand(name),
        }
    }

    fn inflect(&self, value: &str, form: &str) -> Result<String> {
        let subject = self.bound("s").map_or(Person::It, |s| self.person(s));
        Ok(match form {
            "ed" => english::past(value, subject),
            "es" => english::present(value, subject),
            "ing" => english::gerund(value),
            "en" => english::participle(value),
            "p" => english::plural(value),
            "cap" => english::capital(value),
            "up" => value.to_uppercase(),
            _ => match form.parse::<usize>() {
                Ok(field) => value.split('/').nth(field).unwrap_or_default().to_owned(),
                Err(_) => {
                    self.person(value).form(form).ok_or_else(|| bad(form, "an unknown form"))?.to_owned()
                }
            },
        })
    }

    /// Who `value` is: by pronoun, by the grammar's `she_…`, `he_…` and `they_…` words, else by its ending.
    fn person(&self, value: &str) -> Person {
        match value {
            "I" | "me" => return Person::I,
            "you" => return Person::You,
            "we" | "us" => return Person::We,
            _ => {}
        }
        let [she, he, they] = self.grammar.genders();
        let last = value.rsplit(' ').next().unwrap_or_default();
        let plural_ending = last.ends_with('s') && !["ss", "us", "is"].iter().any(|end| last.ends_with(end));
        match last {
            _ if value.contains(" and ") || they.contains(last) => Person::They,
            _ if she.contains(last) => Person::She,
            _ if he.contains(last) => Person::He,
            _ if plural_ending => Person::They,
            _ => Person::It,
        }
    }
}

/// What stands between the bracket that `text` starts with and its partner.
fn enclosed(text: &str) -> Option<&str> {
    let mut depth = 0usize;
    for (at, letter) in text.char_indices() {
        match letter {
            '(' | '{' => depth += 1,
            ')' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return text.get(1..at);
        }
    }
    None
}

/// The choices of a bracket, with the spaces at their ends kept: `(very |)old`.
fn split_spaced(inside: &str) -> Vec<String> {
    let mut choices = split_choices(&inside.replace(' ', "\u{a0}"));
    for choice in &mut choices {
        *choice = choice.replace('\u{a0}', " ");
    }
    choices
}

fn bad(template: &str, why: &str) -> Error {
    Error::Template { template: template.to_owned(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(rules: &str) -> Result<String> {
        let grammar = Grammar::parse(&[rules]).unwrap();
        Text::new(&grammar, &mut Draw::new(1)).expand("top")
    }

    #[test]
    fn bound_words_stay_and_agree() {
        let told = say(
            "she_name: Ada\nact: go home\ntop: {#s=she_name}{s} {act.ed}. {s.he} {s.was} glad. {s} {act.es}.",
        )
        .unwrap();
        assert_eq!(told, "Ada went home. she was glad. Ada goes home.");
    }

    #[test]
    fn fresh_words_differ_from_used_ones() {
        let told = say("n: a | b | c\ntop: {n}{n}{n}").unwrap();
        let letters: BTreeSet<char> = told.chars().collect();
        assert_eq!(letters.len(), 3);
    }

    #[test]
    fn fields_choices_and_errors() {
        assert_eq!(say("t: 7 pm/19:00\ntop: {x=t.0} (is|is) {x.1}").unwrap(), "7 pm is 19:00");
        assert!(matches!(say("top: {gone}"), Err(Error::Template { why, .. }) if why.contains("gone")));
        assert!(matches!(say("top: {open"), Err(Error::Template { .. })));
    }
}
