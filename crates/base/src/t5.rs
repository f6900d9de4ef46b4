//! The encoder-decoder of T5: what it reads goes through one stack of blocks, what it writes through another, whose rows also
//! attend to the first one's. Tokens know their places by a bias on the scores alone.

mod buckets;
mod classifier;
mod stack;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{Result as Tensors, Tensor};
use taper_kernels::{Activation, Compute};

pub(crate) use self::buckets::Buckets;
pub(crate) use self::classifier::T5Classifier;
use self::stack::{Sources, Stack};
use crate::parts::Parts;
use crate::pass::{Pass, with_caches};
use crate::{Adapter, Batch, Checkpoint, Embedding, Error, Head, Kept, KvCache, Module, Network, Sizes};

/// The facts by which T5-type models differ, in the terms of config.json.
#[derive(Clone, Debug)]
pub(crate) struct T5Config {
    /// Its sizes; the blocks are the decoder's.
    pub(crate) sizes: Sizes,
    /// Blocks of the encoder.
    pub(crate) encoder_layers: usize,
    /// Added to the mean square in every norm.
    pub(crate) eps: f64,
    /// Whether feed-forward layers have a gate.
    pub(crate) gated: bool,
    /// Of the feed-forward layers.
    pub(crate) activation: Activation,
    /// Of distances.
    pub(crate) buckets: Buckets,
    /// Whether the head reads rows times `D^-½`.
    pub(crate) scaled: bool,
    /// The first token of everything that is written.
    pub(crate) decoder_start: u32,
    /// Standard deviation of a fresh head's weights.
    pub(crate) head_deviation: f64,
}

/// A frozen T5 without a head.
#[derive(Debug)]
struct Body {
    config: T5Config,
    embedding: Embedding,
    encoder: Stack,
    decoder: Stack,
}

/// A frozen T5 that writes.
#[derive(Debug)]
pub(crate) struct T5 {
    body: Body,
    head: Head,
}

impl T5 {
    /// Finds every weight that `config` calls for; nothing is copied but norms and the tables of biases.
    pub(crate) fn load(config: T5Config, checkpoint: &Checkpoint, compute: Compute) -> Result<Self, Error> {
        let sizes = config.sizes;
        let parts = Parts { checkpoint, compute, tied: sizes.tie_word_embeddings };
        let head = parts.linear("lm_head", (sizes.hidden_size, sizes.vocab_size), false)?.into();
        Ok(Self { body: Body::load(config, parts, "")?, head })
    }

    /// [`hidden`](Network::hidden) of a batch that begins where the caches' keys end.
    fn run(&self, batch: &Batch, caches: &mut [&mut KvCache], adapter: &dyn Adapter) -> Tensors<Tensor> {
        let rows = self.body.run(batch, caches, adapter)?;
        let T5Config { scaled, sizes, .. } = &self.body.config;
        if *scaled { rows * (sizes.hidden_size as f64).powf(-0.5) } else { Ok(rows) }
    }
}

impl Body {
    /// The body whose modules' paths begin with `prefix`.
    fn load(config: T5Config, parts: Parts<'_>, prefix: &str) -> Result<Self, Error> {
        let sizes = &config.sizes;
        let stack = |name, layers| Stack::load(&config, parts, (prefix, name), layers);
        Ok(Self {
            embedding: parts.embedding(&format!("{prefix}shared"), (sizes.vocab_size, sizes.hidden_size))?,
            encoder: stack("encoder", config.encoder_layers)?,
            decoder: stack("decoder", sizes.num_hidden_layers)?,
            config,
        })
    }

    /// What the decoder attends to of `source`.
    fn read(&self, source: &Batch, adapter: &dyn Adapter) -> Tensors<Sources> {
        let segments: Arc<[_]> = source.segments().into();
        let mut pass = Pass { segments: segments.clone(), caches: &mut [], adapter };
        let x = self.embedding.forward(source.tokens(), adapter)?;
        let rows = self.encoder.forward(x, None, &mut pass)?;
        Ok(Sources { layers: self.decoder.keys_of_sources(&rows, adapter)?, segments })
    }

    /// The decoder's rows `(N, D)` of a batch that begins where the caches' keys end.
    fn run(&self, batch: &Batch, caches: &mut [&mut KvCache], adapter: &dyn Adapter) -> Tensors<Tensor> {
        let sources = batch.source().map(|source| self.read(source, adapter)).transpose()?;
        if let Some(Sources { segments, .. }) = &sources
            && segments.len() != batch.segments().len()
        {
            candle_core::bail!("{} sources of {} sequences", segments.len(), batch.segments().len());
        }
        if let Some(Sources { layers, segments }) = &sources {
            for (cache, rows) in caches.iter_mut().zip(segments.iter()) {
                cache.set_source(layers, rows)?;
            }
        }
        if sources.is_none() && (caches.is_empty() || caches.iter().any(|cache| !cache.has_source())) {
            candle_core::bail!("a T5 writes from a source, and the batch has none");
        }
        let mut pass = Pass { segments: batch.segments().into(), caches, adapter };
        let x = self.embedding.forward(batch.tokens(), adapter)?;
        self.decoder.forward(x, sources.as_ref(), &mut pass)
    }

    /// Embedding, encoder, decoder.
    fn modules(&self) -> impl Iterator<Item = Module<'_>> {
        let stacks = self.encoder.modules().chain(self.decoder.modules());
        [Module::Embedding(&self.embedding)].into_iter().chain(stacks)
    }

    /// Values that a token keeps for the backward pass where it is read, and where it is written. With heads of A = H·E values
    /// and feed-forward width F, a part of a block keeps its norm, what it gives and the sum, 3 D; attention keeps 4 A
    /// besides, or 2 A of a token that is written from a source and 2 A in each of the decoder's blocks of one that is read;
    /// a feed-forward layer 2 F, or 3 F with a gate.
    fn kept_per_token(&self) -> (usize, usize) {
        let sizes = &self.config.sizes;
        let attended = sizes.query_width();
        let fed = sizes.intermediate_size * if self.config.gated { 3 } else { 2 };
        let read = self.config.encoder_layers * (6 * sizes.hidden_size + 4 * attended + fed)
            + sizes.num_hidden_layers * 2 * attended;
        (read, sizes.num_hidden_layers * (9 * sizes.hidden_size + 6 * attended + fed))
    }
}

impl Network for T5 {
    fn sizes(&self) -> &Sizes {
        &self.body.config.sizes
    }

    fn hidden(&self, batch: &Batch, caches: &mut [&mut KvCache], adapter: &dyn Adapter) -> Tensors<Tensor> {
        with_caches(batch, caches, |_| 0, |batch, caches| self.run(batch, caches, adapter))
    }

    fn decoder_start(&self) -> Option<u32> {
        Some(self.body.config.decoder_start)
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn embedding(&self) -> &Embedding {
        &self.body.embedding
    }

    fn new_cache(&self) -> KvCache {
        let sizes = self.sizes();
        KvCache::new(sizes.num_hidden_layers, (sizes.num_key_value_heads, sizes.head_dim))
    }

    /// Embedding, encoder, decoder, head.
    fn modules(&self) -> Vec<Module<'_>> {
        self.body.modules().chain([Module::Linear(&self.head.linear)]).collect()
    }

    /// Of a token that is read or written, whichever keeps more.
    fn kept_per_token(&self, _: bool) -> Kept {
        let (read, written) = self.body.kept_per_token();
        Kept { values: read.max(written), read: 0 }
    }
}
