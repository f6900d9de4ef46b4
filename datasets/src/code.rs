//! Short Python programs with one slip each, and the programs as they should be: repairs that can be checked to the letter.

use serde_json::json;

use crate::draw::{Draw, held_out};
use crate::grammar::Grammar;
use crate::splits::{Row, Splits};
use crate::{Error, Result};

/// The seed of the committed files.
pub const SEED: u64 = 15;
/// Rows of train, valid and test.
pub const COUNTS: [usize; 3] = [1504, 152, 200];
/// Share of (program, function or list, number or text) combinations, in percent, that only test holds.
const HELD_OUT: u64 = 12;

/// Something that goes wrong in a program: none where it cannot.
type Slip = fn(&str, &mut Draw) -> Option<String>;

/// The slips, by what they are about.
pub const SLIPS: [(&str, Slip); 8] = [
    ("colon", |program, draw| without(program, ":\n", "\n", draw)),
    ("bracket", |program, draw| {
        let close = *draw.pick(&[")", "]"])?;
        without(program, close, "", draw)
    }),
    ("quote", |program, draw| without(program, "\"", "", draw)),
    ("comma", |program, draw| without(program, ", ", " ", draw)),
    ("equals", |program, draw| without(program, "==", "=", draw)),
    ("indent", |program, draw| without(program, "\n    ", "\n", draw)),
    ("word", |program, draw| {
        let (right, wrong) = *draw.pick(&MISSPELT)?;
        without(program, right, wrong, draw)
    }),
    ("none", |program, _| Some(program.to_owned())),
];

/// Words of the language as people mistype them.
const MISSPELT: [(&str, &str); 10] = [
    ("return", "retrun"),
    ("return", "retun"),
    ("print", "pritn"),
    ("print", "prnt"),
    ("while", "whlie"),
    ("else", "esle"),
    ("True", "true"),
    ("False", "false"),
    ("def", "fed"),
    ("len", "lne"),
];

/// `program` with `wrong` in the place of one `right` in it.
fn without(program: &str, right: &str, wrong: &str, draw: &mut Draw) -> Option<String> {
    let places: Vec<usize> = program.match_indices(right).map(|(at, _)| at).collect();
    let at = *draw.pick(&places)?;
    Some(format!("{}{wrong}{}", &program[..at], &program[at + right.len()..]))
}

/// The programs with gaps, and the names to fill them.
#[derive(Debug)]
pub struct Code {
    programs: Vec<&'static str>,
    names: Grammar,
}

impl Code {
    /// The committed ones.
    pub fn new() -> Result<Self> {
        let blocks = include_str!("../code/programs.txt").split("\n\n").map(str::trim_end);
        Ok(Self {
            programs: blocks.filter(|block| !block.starts_with('#')).collect(),
            names: Grammar::parse(&[include_str!("../code/names.txt")])?,
        })
    }

    /// A random program with its names, and whether they are kept for the test split.
    pub fn program(&self, draw: &mut Draw) -> Result<(String, bool)> {
        let program = *draw.pick(&self.programs).ok_or_else(|| Error::Unknown("programs".to_owned()))?;
        let (list, item) = self.name("l", draw)?.split_once('/').unwrap_or_default();
        let (a, b) = two(draw, |draw| self.name("a", draw))?;
        let (k, m) = two(draw, |draw| Ok(draw.below(20).to_string()))?;
        let quoted = format!("\"{}\"", self.name("q", draw)?);
        let (f, s) = (self.name("f", draw)?, self.name("s", draw)?);
        let gaps =
            [("$f", f), ("$a", a), ("$b", b), ("$s", s), ("$l", list), ("$x", item), ("$k", &k), ("$m", &m)];
        let used: Vec<&str> =
            gaps.iter().filter(|(gap, _)| program.contains(gap)).map(|(_, name)| *name).collect();
        let held_out = held_out(&[&[program], &used[..used.len().min(2)]].concat(), HELD_OUT);
        let filled =
            gaps.iter().fold(program.replace("$q", &quoted), |text, (gap, name)| text.replace(gap, name));
        Ok((filled, held_out))
    }

    fn name(&self, rule: &str, draw: &mut Draw) -> Result<&str> {
        let names = self.names.rule(rule).unwrap_or_default();
        draw.pick(names).map(String::as_str).ok_or_else(|| Error::Unknown(rule.to_owned()))
    }
}

/// Two different values of `next`.
fn two<T: PartialEq>(draw: &mut Draw, next: impl Fn(&mut Draw) -> Result<T>) -> Result<(T, T)> {
    let first = next(draw)?;
    loop {
        let second = next(draw)?;
        if second != first {
            return Ok((first, second));
        }
    }
}

/// A program without case and white space: what `taper data check` would call the same row.
fn key(program: &str) -> String {
    program.split_whitespace().map(str::to_lowercase).collect()
}

/// The data set.
pub fn splits(seed: u64) -> Result<Splits> {
    let code = Code::new()?;
    Splits::fill(COUNTS, SLIPS.len(), &mut Draw::new(seed), |draw| {
        let (kind, slip) = draw.pick(&SLIPS).copied().unwrap_or(SLIPS[0]);
        loop {
            let (program, held_out) = code.program(draw)?;
            let Some(broken) = slip(&program, draw) else { continue };
            let prompt = format!("# broken\n{broken}\n# repaired\n");
            let json = json!({"prompt": prompt, "completion": program});
            return Ok(Row { json, input: key(&broken), class: kind.to_owned(), held_out });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_deterministic_and_slips_balanced() {
        let splits = splits(SEED).unwrap();
        assert_eq!(splits, super::splits(SEED).unwrap());
        assert_eq!(splits.lengths(), COUNTS);
        assert!(splits.classes().values().all(|count| *count == 232), "{:?}", splits.classes());
    }

    #[test]
    fn one_place_is_broken_and_only_one_repair_fits() {
        let mut repairs = std::collections::BTreeMap::new();
        for row in splits(SEED).unwrap().rows.iter().flatten() {
            let right = row.json["completion"].as_str().unwrap();
            let broken = row.json["prompt"].as_str().unwrap();
            assert_eq!(row.class == "none", broken.contains(&format!("\n{right}\n")), "{right}");
            assert!(!right.contains('$'), "{right}");
            assert_eq!(*repairs.entry(broken.to_owned()).or_insert(right.to_owned()), right);
        }
    }
}
