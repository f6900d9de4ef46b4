//! A few rows as a prompt and the answer that is expected, to show what a model makes of them.

use std::path::PathBuf;

use taper_base::Tokenizer;

use super::set::Source;
use super::{DataOptions, Example};
use crate::Error;

/// A row cut where its first answer begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Tokens before the answer.
    pub prompt: Vec<u32>,
    /// The answer's text.
    pub answer: String,
}

/// The first `count` rows of `files` that have a prompt and an answer; none of a format that learns every token.
///
/// # Errors
/// As [`DataSet::load`](super::DataSet::load), for the rows that are read.
pub fn samples(
    files: &[PathBuf],
    tokenizer: &Tokenizer,
    options: &DataOptions,
    count: usize,
) -> Result<Vec<Sample>, Error> {
    let mut source = Source::open(files, tokenizer, options)?;
    let mut samples = Vec::new();
    while samples.len() < count
        && let Some(row) = source.next()?
    {
        if let Some(sample) = sample(tokenizer, &source.builder.build(&row)?)? {
            samples.push(sample);
        } else if source.builder.format.name == "text" {
            break;
        }
    }
    Ok(samples)
}

fn sample(tokenizer: &Tokenizer, example: &Example) -> Result<Option<Sample>, Error> {
    match example.learn.first() {
        Some(span) if span.start > 1 => Ok(Some(Sample {
            prompt: example.tokens[..span.start].to_vec(),
            answer: tokenizer.decode(&example.tokens[span.clone()])?,
        })),
        _ => Ok(None),
    }
}
