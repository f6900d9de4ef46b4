//! A few rows as a prompt and the answer that is expected, to show what a model makes of them.

use std::path::PathBuf;

use taper_base::Tokenizer;

use super::set::Source;
use super::{DataOptions, Example};
use crate::Error;

/// A row cut where its first answer begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Tokens before the answer, or those that an encoder-decoder writes it from.
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
    if source.builder.format.name == "text" || source.builder.format.task != "causal-lm" {
        return Ok(samples);
    }
    while samples.len() < count
        && let Some(row) = source.next()?
    {
        let mut example = source.builder.build(&row)?;
        example.cut(options.max_length.unwrap_or(usize::MAX));
        samples.extend(sample(tokenizer, &example)?);
    }
    Ok(samples)
}

/// The first `count` rows of `files` as examples, not cut.
pub(crate) fn first_examples(
    files: &[PathBuf],
    tokenizer: &Tokenizer,
    options: &DataOptions,
    count: usize,
) -> Result<Vec<Example>, Error> {
    let mut source = Source::open(files, tokenizer, options)?;
    let mut examples = Vec::new();
    while examples.len() < count
        && let Some(row) = source.next()?
    {
        examples.push(source.builder.build(&row)?);
    }
    Ok(examples)
}

fn sample(tokenizer: &Tokenizer, example: &Example) -> Result<Option<Sample>, Error> {
    let Some(span) = example.spans().first() else { return Ok(None) };
    let answer = tokenizer.decode(&example.tokens[span.clone()])?;
    let prompt = example.source.as_deref().unwrap_or(&example.tokens[..span.start]).to_vec();
    Ok(Some(Sample { prompt, answer }))
}
