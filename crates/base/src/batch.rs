//! The one shape that a model runs on: a flat run of tokens cut into sequences.

use std::ops::Range;

/// Tokens of several sequences, one after another, with no padding between them.
///
/// For a network that reads one sequence and writes another, these are what it writes, and [`source`](Self::source) is what
/// it reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    tokens: Vec<u32>,
    types: Vec<u32>,
    segments: Vec<Range<usize>>,
    source: Option<Box<Batch>>,
}

impl Batch {
    /// One segment a sequence.
    pub fn new<S: AsRef<[u32]>>(sequences: impl IntoIterator<Item = S>) -> Self {
        let mut batch = Self::default();
        for sequence in sequences {
            batch.push(sequence.as_ref());
        }
        batch
    }

    /// Appends a sequence as a segment of its own, every token of the first type.
    pub fn push(&mut self, sequence: &[u32]) {
        self.push_typed(sequence, &[]);
    }

    /// As [`push`](Self::push), with the type of each token: 0 for a first text, 1 for a second. Missing ones are 0.
    pub fn push_typed(&mut self, sequence: &[u32], types: &[u32]) {
        let start = self.tokens.len();
        self.tokens.extend_from_slice(sequence);
        self.types.extend_from_slice(&types[..types.len().min(sequence.len())]);
        self.types.resize(self.tokens.len(), 0);
        self.segments.push(start..self.tokens.len());
    }

    /// Appends a sequence as a segment of its own, with the `source` that it is written from.
    pub fn push_from(&mut self, source: &[u32], sequence: &[u32]) {
        self.source.get_or_insert_default().push(source);
        self.push(sequence);
    }

    /// The sequences that those of this batch are written from, one each. None for a decoder alone, and where the caches
    /// hold what was made of them.
    pub fn source(&self) -> Option<&Batch> {
        self.source.as_deref()
    }

    /// All tokens `(N,)`.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The type of each token `(N,)`.
    pub fn types(&self) -> &[u32] {
        &self.types
    }

    /// The rows of each sequence, consecutive, covering the batch.
    pub fn segments(&self) -> &[Range<usize>] {
        &self.segments
    }

    /// Number of tokens N.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}
