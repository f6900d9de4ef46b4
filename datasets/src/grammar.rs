//! The grammar files: named rules, each a list of alternatives. Reading them is done here; expanding them in [`crate::text`].
//!
//! ```text
//! # a comment
//! fruit: apple | pear
//!        plum | cherry          (an indented line goes on; a line break separates like `|`)
//! wish: {s} would like (a|another) {fruit}.
//! ```
//!
//! In an alternative `{rule}` is a random expansion, `{word=rule}` also remembers it as `word`, `{#word=rule}` remembers it
//! without saying it, `{word.form}` inflects (see [`crate::text`]), `(a|b|)` chooses in place, `«` `»` are literal braces
//! and `~` keeps the next letter small.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Error, Result};

/// The rules of some grammar files.
#[derive(Debug, Default)]
pub struct Grammar {
    rules: BTreeMap<String, Vec<String>>,
    she: BTreeSet<String>,
    he: BTreeSet<String>,
    they: BTreeSet<String>,
}

impl Grammar {
    /// Reads the rules of several files. A name that stands twice is refused: the two would run into each other unseen.
    pub fn parse(files: &[&str]) -> Result<Self> {
        let mut grammar = Self::default();
        let mut current = String::new();
        for (index, line) in files.iter().flat_map(|file| file.lines()).enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let items = if line.starts_with(char::is_whitespace) {
                line
            } else {
                let (name, items) = line.split_once(':').ok_or_else(|| Error::Syntax {
                    line: index + 1,
                    why: format!("expected `name: alternatives`, found `{line}`"),
                })?;
                if grammar.rules.contains_key(name) {
                    return Err(Error::Syntax {
                        line: index + 1,
                        why: format!("the rule `{name}` stands twice"),
                    });
                }
                name.clone_into(&mut current);
                items
            };
            grammar.rules.entry(current.clone()).or_default().extend(alternatives(items));
        }
        grammar.she = grammar.words("she_");
        grammar.he = grammar.words("he_");
        grammar.they = grammar.words("they_");
        Ok(grammar)
    }

    /// Gives `name` further alternatives.
    pub fn extend(&mut self, name: &str, items: impl IntoIterator<Item = String>) {
        self.rules.entry(name.to_owned()).or_default().extend(items);
    }

    /// The alternatives of a rule, if it exists.
    pub fn rule(&self, name: &str) -> Option<&[String]> {
        self.rules.get(name).map(Vec::as_slice)
    }

    /// The names of all rules.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.rules.keys().map(String::as_str)
    }

    /// The words that the pronouns she, he and they stand for: the rules called `she_…`, `he_…` and `they_…`.
    pub fn genders(&self) -> [&BTreeSet<String>; 3] {
        [&self.she, &self.he, &self.they]
    }

    fn words(&self, prefix: &str) -> BTreeSet<String> {
        self.rules
            .iter()
            .filter(|(name, _)| name.starts_with(prefix))
            .flat_map(|(_, items)| items.clone())
            .collect()
    }
}

/// Splits `items` at every `|` that is not inside brackets.
pub(crate) fn alternatives(items: &str) -> Vec<String> {
    let mut found = split_choices(items);
    found.retain(|item| !item.is_empty());
    found
}

/// As [`alternatives`], but keeps empty choices: `(very |)` has two.
pub(crate) fn split_choices(items: &str) -> Vec<String> {
    let (mut depth, mut from, mut found) = (0usize, 0, Vec::new());
    for (at, letter) in items.char_indices() {
        match letter {
            '(' | '{' => depth += 1,
            ')' | '}' => depth = depth.saturating_sub(1),
            // `<|user|>` is a special token, not two choices.
            '|' if depth == 0 && !is_special_bar(items, at) => {
                found.push(&items[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    found.push(&items[from..]);
    found.into_iter().map(|item| item.trim_matches(' ').to_owned()).collect()
}

/// Whether the `|` at byte `at` is part of `<|` or `|>`.
fn is_special_bar(items: &str, at: usize) -> bool {
    items[..at].ends_with('<') || items[at + 1..].starts_with('>')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_go_on_over_lines_and_files() {
        let grammar = Grammar::parse(&["# c\na: x (y|z) | {b}\n   w\n", "she_x: Ada"]).unwrap();
        assert_eq!(grammar.rule("a").unwrap(), ["x (y|z)", "{b}", "w"]);
        assert!(grammar.genders()[0].contains("Ada"));
    }

    #[test]
    fn special_tokens_are_not_choices() {
        assert_eq!(alternatives("<|user|> a | b"), ["<|user|> a", "b"]);
    }

    #[test]
    fn a_rule_that_stands_twice_is_refused() {
        assert!(matches!(Grammar::parse(&["a: x", "a: y"]), Err(Error::Syntax { line: 2, .. })));
    }

    #[test]
    fn a_line_without_a_name_is_refused() {
        assert!(matches!(Grammar::parse(&["oops"]), Err(Error::Syntax { line: 1, .. })));
    }
}
