//! A row as tokens, and which of them are learned. What the row's keys mean is left to `format`.

use std::ops::Range;

use taper_base::Tokenizer;

/// The tokens of one row and those of them that are labels.
///
/// What is learned is kept by position, never by id: an EOS that is also the padding token is learned like any other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Example {
    /// The row's tokens; never empty in a [`DataSet`](super::DataSet).
    pub tokens: Vec<u32>,
    /// Positions in `tokens` that are labels: ascending, apart, without position 0 (nothing predicts a first token).
    pub learn: Vec<Range<usize>>,
    /// Where the row stood: its line in the file, or its number, from 1.
    pub line: usize,
    /// A hash of the row's tokens and labels before any cut, equal for equal rows.
    pub key: u64,
}

impl Example {
    /// An example that learns `learn`, put in order, without position 0 and beyond the end.
    pub(super) fn new(tokens: Vec<u32>, learn: impl IntoIterator<Item = Range<usize>>) -> Self {
        let mut example = Self { tokens, ..Self::default() };
        let end = example.tokens.len();
        for span in learn {
            let span = span.start.max(1)..span.end.min(end);
            match example.learn.last_mut() {
                _ if span.is_empty() => {}
                Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
                _ => example.learn.push(span),
            }
        }
        example.key = fnv(&example);
        example
    }

    /// Number of labels.
    pub fn labels(&self) -> usize {
        self.learn.iter().map(Range::len).sum()
    }

    /// Whether the token at `position` is a label.
    pub fn learned(&self, position: usize) -> bool {
        self.learn.iter().any(|span| span.contains(&position))
    }

    /// The positions whose output is scored, each with the token it should predict: `t - 1` and token `t` for each label.
    pub fn labelled(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        self.learn.iter().flat_map(Range::clone).map(|at| (at - 1, self.tokens[at]))
    }

    /// The edges of what is learned.
    #[cfg(test)]
    pub(super) fn spans(&self) -> Vec<(usize, usize)> {
        self.learn.iter().map(|span| (span.start, span.end)).collect()
    }

    /// Keeps the first `length` tokens; says whether any was cut off.
    pub(super) fn cut(&mut self, length: usize) -> bool {
        let cut = self.tokens.len() > length;
        self.tokens.truncate(length);
        self.learn.retain_mut(|span| {
            span.end = span.end.min(length);
            span.start < span.end
        });
        cut
    }
}

/// FNV-1a, 64 bits, over ids and spans: the same on every machine and in every version.
fn fnv(example: &Example) -> u64 {
    let spans = example.learn.iter().flat_map(|span| [span.start as u32, span.end as u32]);
    let words = example.tokens.iter().copied().chain([u32::MAX]).chain(spans);
    words
        .flat_map(u32::to_le_bytes)
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A tokenizer with what must be known to put the parts of a row together.
pub(super) struct Encoder<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    /// What the post-processor puts before a text, usually nothing or a BOS.
    before: Vec<u32>,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Result<Self, taper_base::Error> {
        let (whole, bare) = (tokenizer.encode("a")?, tokenizer.encode_bare("a")?);
        let at = whole.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
        Ok(Self { tokenizer, before: whole[..at].to_vec() })
    }

    /// `text` as the tokenizer itself encodes it, every token but the first a label.
    pub(super) fn text(&self, text: &str) -> Result<Example, String> {
        let tokens = self.tokenizer.encode(text).map_err(|error| error.to_string())?;
        let end = tokens.len();
        Ok(Example::new(tokens, Some(1..end)))
    }

    /// tokens(prompt), tokens(completion), EOS: the prompt with whatever the post-processor puts before a text (a BOS) and
    /// without what it puts after one, the completion bare. The completion and the EOS are labels.
    pub(super) fn completion(&self, prompt: &str, completion: &str) -> Result<Example, String> {
        let eos = self.tokenizer.eos().ok_or(
            "the model names no end-of-sequence token, so that nothing could teach it where a completion stops: set \
             eos_token in its tokenizer_config.json",
        )?;
        let bare = |text: &str| self.tokenizer.encode_bare(text).map_err(|error| error.to_string());
        let mut tokens = self.before.clone();
        tokens.extend(bare(prompt)?);
        let start = tokens.len();
        tokens.extend(bare(completion)?);
        // A completion that spells its EOS out has it once all the same.
        if tokens.len() == start || tokens.last() != Some(&eos) {
            tokens.push(eos);
        }
        let end = tokens.len();
        Ok(Example::new(tokens, Some(start..end)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sample::{self, BOS, EOS};

    /// Id of a printable byte in the sample tokenizer.
    fn id(character: char) -> u32 {
        character as u32 - 33
    }

    #[test]
    fn text_is_the_tokenizers_own_and_all_but_its_first_token_is_learned() {
        let plain = sample::plain();
        let example = Encoder::new(&plain).unwrap().text("abc").unwrap();
        assert_eq!(example.tokens, [id('a'), id('b'), id('c')]);
        assert_eq!(example.spans(), [(1, 3)]);
        let framed = sample::framed();
        let example = Encoder::new(&framed).unwrap().text("ab").unwrap();
        assert_eq!(example.tokens, [BOS, id('a'), id('b'), EOS]);
        assert_eq!(example.spans(), [(1, 4)]);
        assert_eq!(example.labelled().collect::<Vec<_>>(), [(0, id('a')), (1, id('b')), (2, EOS)]);
        for text in ["", "a"] {
            assert!(Encoder::new(&plain).unwrap().text(text).unwrap().learn.is_empty());
        }
    }

    #[test]
    fn t4_prompt_has_one_bos_and_no_eos_before_the_completion() {
        let framed = sample::framed();
        let encoder = Encoder::new(&framed).unwrap();
        let example = encoder.completion("ab", "c").unwrap();
        assert_eq!(example.tokens, [BOS, id('a'), id('b'), id('c'), EOS]);
        assert_eq!(example.spans(), [(3, 5)]);
        let example = encoder.completion("", "c").unwrap();
        assert_eq!(example.spans(), [(1, 3)]);
        assert_eq!(example.tokens, [BOS, id('c'), EOS]);
    }

    #[test]
    fn t3_eos_is_learned_though_it_is_the_padding_token() {
        let plain = sample::plain();
        assert_eq!(plain.pad(), plain.eos());
        let encoder = Encoder::new(&plain).unwrap();
        let example = encoder.completion("a<|eos|>", "b<|eos|>c").unwrap();
        assert_eq!(example.tokens, [id('a'), EOS, id('b'), EOS, id('c'), EOS]);
        assert_eq!(example.spans(), [(2, 6)]);
        assert_eq!((example.labels(), example.learned(1), example.learned(5)), (4, false, true));
        assert_eq!(encoder.completion("a", "b<|eos|>").unwrap().tokens, [id('a'), id('b'), EOS]);
        assert_eq!(encoder.completion("a", "").unwrap().spans(), [(1, 2)]);
    }

    #[test]
    fn first_token_of_an_empty_prompt_cannot_be_learned() {
        let plain = sample::plain();
        let example = Encoder::new(&plain).unwrap().completion("", "ab").unwrap();
        assert_eq!((example.tokens.len(), example.spans()), (3, vec![(1, 3)]));
    }

    #[test]
    fn completion_without_an_eos_token_is_refused() {
        let endless = sample::endless();
        let error = Encoder::new(&endless).unwrap().completion("a", "b").unwrap_err();
        assert!(error.contains("set eos_token in its tokenizer_config.json"), "{error}");
    }

    #[test]
    fn cut_keeps_the_head_and_equal_rows_have_equal_keys() {
        let mut example = Example::new((0..10).collect(), [0..2, 2..3, 5..8]);
        assert_eq!(example.learn, [1..3, 5..8]);
        let key = example.key;
        assert!(!example.cut(10) && example.cut(6));
        assert_eq!((example.tokens.len(), &example.learn), (6, &vec![1..3, 5..6]));
        assert!(example.cut(1));
        assert!(example.learn.is_empty());
        assert_eq!(key, example.key);
        assert_eq!(key, Example::new((0..10).collect(), [1..3, 5..8]).key);
        assert_ne!(key, Example::new((0..10).collect(), [1..3, 5..9]).key);
    }
}
