//! Which modules a configuration means: PEFT's matching rules.
//!
//! `peft/tuners/tuners_utils.py` `check_target_module_exists` and `peft/utils/other.py` `get_pattern_key`, 0.21.2. Patterns
//! are Python's: `re.fullmatch` where a field is one pattern, `re.match` where it is inserted into a larger one.

use fancy_regex::Regex;

use crate::config::ALL_LINEAR;
use crate::{Error, LoraConfig, Names};

/// A configuration's rules, compiled.
#[derive(Debug)]
pub(crate) struct Matcher {
    target: Rule,
    exclude: Rule,
    saved: Vec<Saved>,
    layers: Option<Vec<usize>>,
    layer_of: Vec<Regex>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
    default: (usize, f64),
}

/// What a field of names selects.
#[derive(Debug)]
enum Rule {
    Nothing,
    AllLinear,
    Full(Regex),
    List(Vec<String>),
}

/// An entry of `modules_to_save`, which selects modules to save by its text, and to leave untargeted as a pattern.
#[derive(Debug)]
struct Saved {
    name: String,
    at_or_below: Regex,
}

/// A module as matching sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    /// Its path in the base.
    pub(crate) path: &'a str,
    /// Whether `all-linear` includes it: a linear layer that is not the head.
    pub(crate) in_all_linear: bool,
}

impl Matcher {
    pub(crate) fn new(config: &LoraConfig) -> Result<Self, Error> {
        let saved = |name: &String| {
            let at_or_below = regex("modules_to_save", name, &format!(r"\A(?:(^|.*\.){name}($|\..*))"))?;
            Ok(Saved { name: name.clone(), at_or_below })
        };
        Ok(Self {
            target: Rule::new("target_modules", config.target_modules.as_ref())?,
            exclude: Rule::new("exclude_modules", config.exclude_modules.as_ref())?,
            saved: config.modules_to_save.iter().map(saved).collect::<Result<_, Error>>()?,
            layers: config.layers_to_transform.clone(),
            layer_of: layer_patterns(&config.layers_pattern)?,
            ranks: patterns("rank_pattern", &config.rank_pattern)?,
            alphas: patterns("alpha_pattern", &config.alpha_pattern)?,
            default: (config.r, config.lora_alpha),
        })
    }

    /// Whether `target_modules` alone selects a module of that name which is not linear.
    pub(crate) fn selects(&self, path: &str) -> Result<bool, Error> {
        self.target.selects(Candidate { path, in_all_linear: false })
    }

    /// Whether the module gets low-rank factors.
    pub(crate) fn targets(&self, module: Candidate<'_>) -> Result<bool, Error> {
        if self.exclude.selects(module)? || self.is_saved_or_below(module.path)? {
            return Ok(false);
        }
        match &self.target {
            // A name that is the whole path passes by the filter of layers.
            Rule::List(names) if !names.iter().any(|name| name == module.path) => {
                Ok(self.target.selects(module)? && self.in_layers(module.path)?)
            }
            rule => rule.selects(module),
        }
    }

    /// Whether the module, or one that holds it, is trained whole: a path that ends in the text of an entry.
    pub(crate) fn saves(&self, path: &str) -> bool {
        self.saved.iter().any(|saved| saved_by(path, &saved.name))
    }

    fn is_saved_or_below(&self, path: &str) -> Result<bool, Error> {
        any(self.saved.iter().map(|saved| &saved.at_or_below), path)
    }

    /// Rank and α of the module at `path`: of the first pattern that matches, or the configuration's own.
    pub(crate) fn rank_and_alpha(&self, path: &str) -> Result<(usize, f64), Error> {
        let rank = first(&self.ranks, path)?.unwrap_or(self.default.0);
        Ok((rank, first(&self.alphas, path)?.unwrap_or(self.default.1)))
    }

    fn in_layers(&self, path: &str) -> Result<bool, Error> {
        let Some(layers) = &self.layers else { return Ok(true) };
        for pattern in &self.layer_of {
            if let Some(captures) = pattern.captures(path).map_err(run_away)? {
                let index = captures.name("idx").and_then(|index| index.as_str().parse().ok());
                return Ok(index.is_some_and(|index| layers.contains(&index)));
            }
        }
        Ok(false)
    }
}

impl Rule {
    fn new(field: &str, names: Option<&Names>) -> Result<Self, Error> {
        Ok(match names {
            None => Self::Nothing,
            Some(Names::List(names)) => Self::List(names.clone()),
            Some(Names::Pattern(text))
                if field == "target_modules" && text.eq_ignore_ascii_case(ALL_LINEAR) =>
            {
                Self::AllLinear
            }
            Some(Names::Pattern(text)) => Self::Full(regex(field, text, &format!(r"\A(?:{text})\z"))?),
        })
    }

    fn selects(&self, module: Candidate<'_>) -> Result<bool, Error> {
        match self {
            Self::Nothing => Ok(false),
            Self::AllLinear => Ok(module.in_all_linear),
            Self::Full(pattern) => pattern.is_match(module.path).map_err(run_away),
            Self::List(names) => Ok(names.iter().any(|name| ends_with(module.path, name))),
        }
    }
}

/// Whether `name` is `path` or its end after a dot.
pub fn ends_with(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether the entry `name` of `modules_to_save` is the end of `path` or of the path of a module that holds it, at a dot or
/// not (`key.endswith(name)`, `peft/utils/other.py` `_set_trainable`).
pub fn saved_by(path: &str, name: &str) -> bool {
    let holders = path.match_indices('.').map(|(dot, _)| &path[..dot]);
    holders.chain([path]).any(|module| module.ends_with(name))
}

/// Whether the key of a `rank_pattern` or `alpha_pattern` matches `path`.
pub fn pattern_matches(field: &str, key: &str, path: &str) -> Result<bool, Error> {
    pattern(field, key)?.is_match(path).map_err(run_away)
}

fn pattern(field: &str, key: &str) -> Result<Regex, Error> {
    regex(field, key, &format!(r"\A(?:(.*\.)?({key})$)"))
}

fn patterns<T: Copy>(field: &str, entries: &[(String, T)]) -> Result<Vec<(Regex, T)>, Error> {
    entries.iter().map(|(key, value)| Ok((pattern(field, key)?, *value))).collect()
}

/// Patterns that find the index of the layer that a path lies in, to be tried in order.
fn layer_patterns(names: &[String]) -> Result<Vec<Regex>, Error> {
    if names.is_empty() {
        return Ok(vec![regex("layers_to_transform", "", r"\A.*?\.[^.]*\.(?P<idx>\d+)\.")?]);
    }
    let compile =
        |name: &String| regex("layers_pattern", name, &format!(r"\A(?:^|.*?\.){name}\.(?P<idx>\d+)\."));
    names.iter().map(compile).collect()
}

fn first<T: Copy>(patterns: &[(Regex, T)], path: &str) -> Result<Option<T>, Error> {
    for (pattern, value) in patterns {
        if pattern.is_match(path).map_err(run_away)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

fn any<'r>(mut patterns: impl Iterator<Item = &'r Regex>, path: &str) -> Result<bool, Error> {
    patterns.try_fold(false, |found, pattern| Ok(found || pattern.is_match(path).map_err(run_away)?))
}

fn regex(field: &str, given: &str, whole: &str) -> Result<Regex, Error> {
    Regex::new(whole).map_err(|source| {
        Error::config(format!("`{field}`: {given:?} is not a regular expression: {source}"))
    })
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn run_away(source: fancy_regex::Error) -> Error {
    Error::config(format!("a pattern of the configuration is too costly to match: {source}"))
}
