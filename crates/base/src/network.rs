//! What a base's network is to everything above it, whatever its architecture.

use std::fmt;

use candle_core::{Result, Tensor};

use crate::{Adapter, Batch, Embedding, Head, KvCache, Module};

/// A frozen network over ragged batches.
pub trait Network: fmt::Debug + Send + Sync {
    /// Its sizes.
    fn sizes(&self) -> &Sizes;

    /// The rows that the head reads `(N, D)`: final hidden states. `caches` is empty, or holds one cache a segment: then
    /// segment `i` continues `caches[i]`, which takes up its keys and values, and no gradient is kept. The
    /// rows are those of one pass over everything that is then in the cache; a dynamic rope beyond its trained context runs
    /// that pass again each time.
    fn hidden(&self, batch: &Batch, caches: &mut [&mut KvCache], adapter: &dyn Adapter) -> Result<Tensor>;

    /// The output head.
    fn head(&self) -> &Head;

    /// The table of token vectors.
    fn embedding(&self) -> &Embedding;

    /// An empty cache for one sequence.
    fn new_cache(&self) -> KvCache;

    /// Every module that an adapter may name, in the order of the checkpoint.
    fn modules(&self) -> Vec<Module<'_>>;

    /// About how many values one token keeps for the backward pass in all blocks; fewer where `whole_blocks` run as one
    /// operation each, which is under plain low-rank terms.
    fn kept_per_token(&self, whole_blocks: bool) -> usize;
}

/// The sizes that every network has, in the terms of config.json.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// D.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// H.
    pub num_attention_heads: usize,
    /// K.
    pub num_key_value_heads: usize,
    /// E.
    pub head_dim: usize,
    /// V.
    pub vocab_size: usize,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding's matrix.
    pub tie_word_embeddings: bool,
}

impl Sizes {
    /// Values of the queries of one token, H·E.
    pub(crate) fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Values of the keys of one token, K·E.
    pub(crate) fn key_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}
