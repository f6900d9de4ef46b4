//! A row as tokens, and what is learned of it. What the row's keys mean is left to `format`.

use std::borrow::Cow;
use std::ops::Range;

use taper_base::{Input, Labels, Tokenizer};

use crate::fingerprint::Fingerprint;

/// The tokens of one row and what is learned of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// The row's tokens; never empty in a [`DataSet`](super::DataSet).
    pub tokens: Vec<u32>,
    /// The type of each token: 0 in a first text, 1 in a second. Missing ones are 0.
    pub types: Vec<u32>,
    /// What the tokens are written from, for an encoder-decoder; none for a decoder alone.
    pub source: Option<Vec<u32>>,
    /// What is learned.
    pub learn: Learn,
    /// The text or the pair that a label is of, where the rows are to be changed word by word
    /// ([`DataOptions::texts`](super::DataOptions)).
    pub texts: Vec<String>,
    /// Tokens that were cut off.
    pub cut: usize,
    /// Where the row stood: its line in the file, or its number, from 1.
    pub line: usize,
    /// A hash of the row's tokens and labels, equal for equal rows: before the cut, but of a row that learns labels, which is
    /// cut as it is framed.
    pub key: u64,
}

/// What a row teaches.
#[derive(Clone, Debug, PartialEq)]
pub enum Learn {
    /// Its own tokens at these positions: ascending, apart, without position 0 (nothing predicts a first token).
    ///
    /// They are kept by position, never by id: an EOS that is also the padding token is learned like any other.
    Tokens(Vec<Range<usize>>),
    /// The label of the whole row.
    Class(u32),
    /// A number for the whole row.
    Number(f32),
    /// Labels of tokens by position, ascending.
    Tags(Vec<(usize, u32)>),
}

impl Learn {
    /// What is learned as words, equal for equal labels; of tokens their edges.
    pub(super) fn words(&self) -> Vec<u32> {
        match self {
            Self::Tokens(spans) => {
                spans.iter().flat_map(|span| [span.start as u32, span.end as u32]).collect()
            }
            Self::Class(label) => vec![*label],
            Self::Number(value) => vec![value.to_bits()],
            Self::Tags(tags) => tags.iter().flat_map(|(at, label)| [*at as u32, *label]).collect(),
        }
    }
}

impl Default for Learn {
    fn default() -> Self {
        Self::Tokens(Vec::new())
    }
}

impl Example {
    /// An example that learns the tokens at `learn`, put in order, without position 0 and beyond the end.
    pub(super) fn new(tokens: Vec<u32>, learn: impl IntoIterator<Item = Range<usize>>) -> Self {
        let end = tokens.len();
        let mut spans: Vec<Range<usize>> = Vec::new();
        for span in learn {
            let span = span.start.max(1)..span.end.min(end);
            match spans.last_mut() {
                _ if span.is_empty() => {}
                Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
                _ => spans.push(span),
            }
        }
        let mut example = Self { tokens, learn: Learn::Tokens(spans), ..Self::default() };
        example.key = key(&example);
        example
    }

    /// An example that learns labels of `input`.
    pub(super) fn labelled_input(input: Input, learn: Learn) -> Self {
        let Input { ids, types, cut, .. } = input;
        let mut example = Self { tokens: ids, types, learn, cut, ..Self::default() };
        example.key = key(&example);
        example
    }

    /// Where tokens are learned.
    pub fn spans(&self) -> &[Range<usize>] {
        match &self.learn {
            Learn::Tokens(spans) => spans,
            Learn::Class(_) | Learn::Number(_) | Learn::Tags(_) => &[],
        }
    }

    /// Tokens that run through the model: those of the source and its own.
    pub fn run_length(&self) -> usize {
        self.tokens.len() + self.source.as_ref().map_or(0, Vec::len)
    }

    /// About how much memory it takes, with what the allocator adds to each list.
    pub(super) fn bytes(&self) -> usize {
        const LIST: usize = 16;
        let learned = match &self.learn {
            Learn::Tokens(spans) => LIST + size_of_val(spans.as_slice()),
            Learn::Tags(tags) => LIST + size_of_val(tags.as_slice()),
            Learn::Class(_) | Learn::Number(_) => 0,
        };
        let tokens = [Some(&self.tokens), Some(&self.types), self.source.as_ref()];
        let tokens =
            tokens.into_iter().flatten().filter(|ids| !ids.is_empty()).map(|ids| LIST + 4 * ids.len());
        let texts = self.texts.iter().map(|text| size_of::<String>() + LIST + text.len());
        size_of::<Self>() + learned + tokens.chain(texts).sum::<usize>()
    }

    /// Number of labels.
    pub fn labels(&self) -> usize {
        match &self.learn {
            Learn::Tokens(spans) => spans.iter().map(Range::len).sum(),
            Learn::Class(_) | Learn::Number(_) => 1,
            Learn::Tags(tags) => tags.len(),
        }
    }

    /// Whether the token at `position` is a label, or has one.
    pub fn learned(&self, position: usize) -> bool {
        match &self.learn {
            Learn::Tokens(spans) => spans.iter().any(|span| span.contains(&position)),
            Learn::Class(_) | Learn::Number(_) => false,
            Learn::Tags(tags) => tags.iter().any(|(at, _)| *at == position),
        }
    }

    /// The positions whose output is scored, each with its label: of learned tokens, position `t - 1` and token `t`.
    pub fn labelled(&self) -> Vec<(usize, u32)> {
        match &self.learn {
            Learn::Tokens(spans) => {
                spans.iter().flat_map(Range::clone).map(|at| (at - 1, self.tokens[at])).collect()
            }
            Learn::Class(_) | Learn::Number(_) => Vec::new(),
            Learn::Tags(tags) => tags.clone(),
        }
    }

    /// The edges of what is learned.
    #[cfg(test)]
    pub(super) fn edges(&self) -> Vec<(usize, usize)> {
        self.spans().iter().map(|span| (span.start, span.end)).collect()
    }

    /// Keeps the first `length` tokens, and as many of the source. A row that learns labels was cut when it was framed, and has no more.
    pub(super) fn cut(&mut self, length: usize) {
        for tokens in self.source.iter_mut().chain([&mut self.tokens]) {
            self.cut += tokens.len().saturating_sub(length);
            tokens.truncate(length);
        }
        if let Learn::Tokens(spans) = &mut self.learn {
            spans.retain_mut(|span| {
                span.end = span.end.min(length);
                span.start < span.end
            });
        }
    }
}

/// The fingerprint of ids and labels.
fn key(example: &Example) -> u64 {
    let source = example.source.iter().flatten().copied();
    let words = source.chain(example.tokens.iter().copied()).chain([u32::MAX]).chain(example.learn.words());
    Fingerprint::of(words.flat_map(u32::to_le_bytes))
}

/// A tokenizer with what must be known to put the parts of a row together.
pub(super) struct Encoder<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    /// What labels mean, where rows have labels.
    pub(super) labels: Option<Cow<'a, Labels>>,
    /// Tokens at which a row with labels is cut.
    pub(super) max_length: Option<usize>,
    /// Whether a row with one label keeps its text.
    pub(super) texts: bool,
    /// What the post-processor puts before a text, usually nothing or a BOS.
    before: Vec<u32>,
    /// What a completion begins with that is written from its prompt: see [`DataOptions`](super::DataOptions).
    start: Option<u32>,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Result<Self, taper_base::Error> {
        let (whole, bare) = (tokenizer.encode("a")?, tokenizer.encode_bare("a")?);
        let at = whole.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
        let before = whole[..at].to_vec();
        Ok(Self { tokenizer, labels: None, max_length: None, texts: false, before, start: None })
    }

    /// As it is for an encoder-decoder, where `start` is given.
    pub(super) fn writing_from(self, start: Option<u32>) -> Self {
        Self { start, ..self }
    }

    /// `text` as the tokenizer itself encodes it, every token but the first a label.
    pub(super) fn text(&self, text: &str) -> Result<Example, String> {
        let tokens = self.tokenizer.encode(text).map_err(|error| error.to_string())?;
        let end = tokens.len();
        Ok(Example::new(tokens, Some(1..end)))
    }

    /// One text or a pair as the tokenizer frames it, cut to length.
    pub(super) fn input(&self, text: &str, second: Option<&str>) -> Result<Input, String> {
        self.tokenizer.input(text, second, self.max_length).map_err(|error| error.to_string())
    }

    /// tokens(prompt), tokens(completion), EOS: the prompt with whatever the post-processor puts before a text (a BOS) and
    /// without what it puts after one, the completion bare. The completion and the EOS are labels.
    ///
    /// For an encoder-decoder the prompt, as the tokenizer itself encodes it, is the source, and the completion stands behind
    /// the token that begins it.
    pub(super) fn completion(&self, prompt: &str, completion: &str) -> Result<Example, String> {
        let eos = self.tokenizer.eos().ok_or(
            "the model names no end-of-sequence token, so that nothing could teach it where a completion stops: set \
             eos_token in its tokenizer_config.json",
        )?;
        let bare = |text: &str| self.tokenizer.encode_bare(text).map_err(|error| error.to_string());
        let source =
            self.start.map(|_| self.tokenizer.encode(prompt)).transpose().map_err(|e| e.to_string())?;
        if source.as_ref().is_some_and(Vec::is_empty) {
            return Err("`prompt` has no tokens, so that there is nothing to write from".into());
        }
        let mut tokens = match self.start {
            Some(start) => vec![start],
            None => [self.before.clone(), bare(prompt)?].concat(),
        };
        let start = tokens.len();
        tokens.extend(bare(completion)?);
        // A completion that spells its EOS out has it once all the same.
        if tokens.len() == start || tokens.last() != Some(&eos) {
            tokens.push(eos);
        }
        let end = tokens.len();
        let mut example = Example { source, ..Example::new(tokens, Some(start..end)) };
        example.key = key(&example);
        Ok(example)
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
        assert_eq!(example.edges(), [(1, 3)]);
        let framed = sample::framed();
        let example = Encoder::new(&framed).unwrap().text("ab").unwrap();
        assert_eq!(example.tokens, [BOS, id('a'), id('b'), EOS]);
        assert_eq!(example.edges(), [(1, 4)]);
        assert_eq!(example.labelled(), [(0, id('a')), (1, id('b')), (2, EOS)]);
        for text in ["", "a"] {
            assert!(Encoder::new(&plain).unwrap().text(text).unwrap().spans().is_empty());
        }
    }

    #[test]
    fn t4_prompt_has_one_bos_and_no_eos_before_the_completion() {
        let framed = sample::framed();
        let encoder = Encoder::new(&framed).unwrap();
        let example = encoder.completion("ab", "c").unwrap();
        assert_eq!(example.tokens, [BOS, id('a'), id('b'), id('c'), EOS]);
        assert_eq!(example.edges(), [(3, 5)]);
        let example = encoder.completion("", "c").unwrap();
        assert_eq!(example.edges(), [(1, 3)]);
        assert_eq!(example.tokens, [BOS, id('c'), EOS]);
    }

    #[test]
    fn t3_eos_is_learned_though_it_is_the_padding_token() {
        let plain = sample::plain();
        assert_eq!(plain.pad(), plain.eos());
        let encoder = Encoder::new(&plain).unwrap();
        let example = encoder.completion("a<|eos|>", "b<|eos|>c").unwrap();
        assert_eq!(example.tokens, [id('a'), EOS, id('b'), EOS, id('c'), EOS]);
        assert_eq!(example.edges(), [(2, 6)]);
        assert_eq!((example.labels(), example.learned(1), example.learned(5)), (4, false, true));
        assert_eq!(encoder.completion("a", "b<|eos|>").unwrap().tokens, [id('a'), id('b'), EOS]);
        assert_eq!(encoder.completion("a", "").unwrap().edges(), [(1, 2)]);
    }

    #[test]
    fn a_source_is_the_prompt_as_the_tokenizer_frames_it() {
        let framed = sample::framed();
        let encoder = Encoder::new(&framed).unwrap().writing_from(Some(7));
        let mut example = encoder.completion("ab", "cd").unwrap();
        assert_eq!(example.source, Some(vec![BOS, id('a'), id('b'), EOS]));
        assert_eq!(example.tokens, [7, id('c'), id('d'), EOS]);
        assert_eq!((example.edges(), example.run_length()), (vec![(1, 4)], 8));
        assert_ne!(example.key, encoder.completion("a", "cd").unwrap().key);
        example.cut(3);
        assert_eq!((example.source.as_ref().unwrap().len(), example.tokens.len(), example.cut), (3, 3, 2));
        let plain = sample::plain();
        let bare = Encoder::new(&plain).unwrap().writing_from(Some(7));
        assert!(bare.completion("", "a").unwrap_err().contains("nothing to write from"));
    }

    #[test]
    fn first_token_of_an_empty_prompt_cannot_be_learned() {
        let plain = sample::plain();
        let example = Encoder::new(&plain).unwrap().completion("", "ab").unwrap();
        assert_eq!((example.tokens.len(), example.edges()), (3, vec![(1, 3)]));
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
        assert_eq!(example.spans(), [1..3, 5..8]);
        let key = example.key;
        example.cut(10);
        assert_eq!(example.cut, 0);
        example.cut(6);
        assert_eq!((example.tokens.len(), example.cut, example.spans()), (6, 4, &[1..3, 5..6][..]));
        example.cut(1);
        assert!(example.spans().is_empty());
        assert_eq!(key, example.key);
        assert_eq!(key, Example::new((0..10).collect(), [1..3, 5..8]).key);
        assert_ne!(key, Example::new((0..10).collect(), [1..3, 5..9]).key);
    }
}
