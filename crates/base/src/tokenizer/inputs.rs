//! Whole inputs of a model that labels: one text or a pair, as the post-processor frames them, cut to a length.

use std::ops::Range;

use tokenizers::{
    PostProcessor, TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings,
};

use super::{Tokenizer, failed};
use crate::Error;

/// A model's input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input {
    /// Ids, special tokens included.
    pub ids: Vec<u32>,
    /// The type of each: 0 for the first text, 1 for the second.
    pub types: Vec<u32>,
    /// The bytes of its own text that each covers; none for what the post-processor added.
    pub offsets: Vec<Option<Range<usize>>>,
    /// Tokens that were cut off.
    pub cut: usize,
}

impl Tokenizer {
    /// `text`, or `text` and `second`, with whatever the post-processor adds, as `tokenizer(text, second)` in transformers.
    ///
    /// Beyond `max_length` tokens, the longer text loses its last ones until both fit (`truncation=True`): what the
    /// post-processor adds stays.
    pub fn input(&self, text: &str, second: Option<&str>, max_length: Option<usize>) -> Result<Input, Error> {
        let bare = |text: &str| self.inner.encode(text, false).map_err(|source| failed(&*source));
        let (mut first, mut second) = (bare(text)?, second.map(bare).transpose()?);
        let length = |first: &tokenizers::Encoding, second: Option<&tokenizers::Encoding>| {
            first.len() + second.map_or(0, tokenizers::Encoding::len)
        };
        let whole = length(&first, second.as_ref());
        if let Some(most) = max_length {
            let added = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(second.is_some()));
            let room = TruncationParams {
                max_length: most.saturating_sub(added),
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
                direction: TruncationDirection::Right,
            };
            (first, second) = truncate_encodings(first, second, &room).map_err(|source| failed(&*source))?;
        }
        let cut = whole - length(&first, second.as_ref());
        let framed = self.inner.post_process(first, second, true).map_err(|source| failed(&*source))?;
        let added = framed.get_special_tokens_mask().iter().map(|&mask| mask == 1);
        let offsets = framed.get_offsets().iter().zip(added);
        Ok(Input {
            ids: framed.get_ids().to_vec(),
            types: framed.get_type_ids().to_vec(),
            offsets: offsets.map(|(&(start, end), added)| (!added).then_some(start..end)).collect(),
            cut,
        })
    }
}
