//! The encoder that BERT-type models share: attention in both directions, a norm after each half of a block, and the head of
//! a task. arXiv:1810.04805; transformers `modeling_bert.py`, `modeling_roberta.py`, `modeling_distilbert.py` (5.23).

mod load;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use taper_kernels::{Activation, AttentionShape};

use crate::network::{Fresh, rows_at};
use crate::{Adapter, Batch, Embedding, Head, KvCache, LayerNorm, Linear, Module, Network, Sizes};

/// The facts by which BERT-type models differ.
#[derive(Clone, Debug)]
pub(crate) struct EncoderConfig {
    /// Its sizes; `max_position_embeddings` counts tokens, not rows of the position table.
    pub(crate) sizes: Sizes,
    /// What its modules are called.
    pub(crate) names: &'static Names,
    /// Added to the variance in every norm.
    pub(crate) layer_norm_eps: f64,
    /// Between the feed-forward layers.
    pub(crate) hidden_act: Activation,
    /// Rows of the table of token types; 0 where there is none.
    pub(crate) type_vocab_size: usize,
    /// Row of the position table that belongs to a text's first token.
    pub(crate) first_position: usize,
    /// Standard deviation of fresh weights.
    pub(crate) initializer_range: f64,
    /// What a text's label is read from.
    pub(crate) pooling: Pooling,
}

/// What stands between a text's first hidden state and the layer that labels it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pooling {
    /// Path of a linear layer.
    pub(crate) dense: &'static str,
    /// The function after it.
    pub(crate) then: Squash,
    /// Path of the layer that labels.
    pub(crate) head: &'static str,
    /// What the task trains whole, by its names in `modules_to_save`.
    pub(crate) head_modules: &'static [&'static str],
}

/// A function of a pooled value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Squash {
    Tanh,
    Relu,
}

/// Paths of an encoder's modules: of the body's within the model, of a block's within the block.
#[derive(Debug)]
pub(crate) struct Names {
    /// The body.
    pub(crate) body: &'static str,
    /// The list of blocks.
    pub(crate) layers: &'static str,
    pub(crate) query: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: &'static str,
    pub(crate) attention_output: &'static str,
    pub(crate) attention_norm: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    pub(crate) norm: &'static str,
}

/// A frozen BERT-type encoder under the head of a task.
#[derive(Debug)]
pub(crate) struct Encoder {
    config: EncoderConfig,
    embeddings: Embeddings,
    blocks: Vec<Block>,
    top: Top,
    fresh: Vec<Fresh>,
}

#[derive(Debug)]
struct Embeddings {
    word: Embedding,
    position: Embedding,
    /// Of token types.
    kind: Option<Embedding>,
    norm: LayerNorm,
}

#[derive(Debug)]
struct Block {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    norm: LayerNorm,
    shape: AttentionShape,
    hidden_act: Activation,
}

/// The head of a task.
#[derive(Debug)]
struct Top {
    /// What pools a text; none where every token is labelled.
    pooler: Option<(Linear, Squash)>,
    head: Head,
    /// The head's names in `modules_to_save`.
    modules: Vec<&'static str>,
}

impl Network for Encoder {
    fn sizes(&self) -> &Sizes {
        &self.config.sizes
    }

    fn hidden(&self, batch: &Batch, caches: &mut [&mut KvCache], adapter: &dyn Adapter) -> Result<Tensor> {
        if !caches.is_empty() {
            candle_core::bail!("an encoder reads a whole text at once: there is no cache to continue");
        }
        let segments: Arc<[Range<usize>]> = batch.segments().into();
        let mut x = self.embed(batch, adapter)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let mut attended = block.attend(&x, &segments, adapter)?;
            if self.top.pooler.is_some() && i + 1 == self.blocks.len() {
                // A text is pooled from its first token: nothing reads the other rows.
                let first = |x: &Tensor| rows_at(x, segments.iter().map(|rows| rows.start));
                (attended, x) = (first(&attended)?, first(&x)?);
            }
            x = block.feed(&attended, &x, adapter)?;
        }
        self.top.pool(x, adapter)
    }

    fn head(&self) -> &Head {
        &self.top.head
    }

    fn embedding(&self) -> &Embedding {
        &self.embeddings.word
    }

    fn new_cache(&self) -> KvCache {
        KvCache::new(0, 0)
    }

    /// Embeddings, blocks, head.
    fn modules(&self) -> Vec<Module<'_>> {
        let Embeddings { word, position, kind, norm } = &self.embeddings;
        let mut modules = vec![Module::Embedding(word), Module::Embedding(position)];
        modules.extend(kind.iter().map(Module::Embedding));
        modules.push(Module::LayerNorm(norm));
        for block in &self.blocks {
            let Block { query, key, value, attention_output, attention_norm, up, down, norm, .. } = block;
            modules.extend([query, key, value, attention_output].map(Module::Linear));
            modules.push(Module::LayerNorm(attention_norm));
            modules.extend([up, down].map(Module::Linear));
            modules.push(Module::LayerNorm(norm));
        }
        modules.extend(self.top.pooler.iter().map(|(dense, _)| Module::Linear(dense)));
        modules.push(Module::Linear(&self.top.head.linear));
        modules
    }

    /// A block keeps `10 D + 2 F`: q, k, v and what was attended; two projections, two sums and two norms; the feed-forward
    /// layer before and after its function.
    fn kept_per_token(&self, _: bool) -> usize {
        let Sizes { hidden_size, intermediate_size, num_hidden_layers, .. } = self.config.sizes;
        num_hidden_layers * (10 * hidden_size + 2 * intermediate_size)
    }

    fn head_modules(&self) -> &[&'static str] {
        &self.top.modules
    }

    fn fresh(&self) -> &[Fresh] {
        &self.fresh
    }
}

impl Encoder {
    /// The sum of a token's, its position's and its type's vectors, normalised: `(N, D)`.
    fn embed(&self, batch: &Batch, adapter: &dyn Adapter) -> Result<Tensor> {
        let most = self.config.sizes.max_position_embeddings;
        if let Some(rows) = batch.segments().iter().find(|rows| rows.len() > most) {
            candle_core::bail!(
                "a text of {} tokens, and the model has positions for {most}: cut it at --max-length {most}",
                rows.len()
            );
        }
        let first = self.config.first_position;
        let positions: Vec<u32> = batch
            .segments()
            .iter()
            .flat_map(|rows| first..first + rows.len())
            .map(|row| row as u32)
            .collect();
        let Embeddings { word, position, kind, norm } = &self.embeddings;
        let mut x = word.forward(batch.tokens(), adapter)?;
        if let Some(kind) = kind {
            x = (x + kind.forward(batch.types(), adapter)?)?;
        }
        x = (x + position.forward(&positions, adapter)?)?;
        norm.forward(&x, adapter)
    }
}

impl Block {
    /// What every row of `x` `(N, D)` makes of its segment: `(N, D)`.
    fn attend(&self, x: &Tensor, segments: &Arc<[Range<usize>]>, adapter: &dyn Adapter) -> Result<Tensor> {
        let q = self.query.forward(x, adapter)?;
        let k = self.key.forward(x, adapter)?;
        let v = self.value.forward(x, adapter)?;
        taper_kernels::attention(&q, &k, &v, segments, self.shape)
    }

    /// The rest of the block, row by row: `attended` and the block's input `x`, both `(N, D)`, to `(N, D)`.
    fn feed(&self, attended: &Tensor, x: &Tensor, adapter: &dyn Adapter) -> Result<Tensor> {
        let attended = self.attention_output.forward(attended, adapter)?;
        let x = self.attention_norm.forward(&(attended + x)?, adapter)?;
        let inner = taper_kernels::activate(&self.up.forward(&x, adapter)?, self.hidden_act)?;
        self.norm.forward(&(self.down.forward(&inner, adapter)? + x)?, adapter)
    }
}

impl Top {
    /// The rows that the head reads: all as they are, or the first of each text, pooled.
    fn pool(&self, x: Tensor, adapter: &dyn Adapter) -> Result<Tensor> {
        let Some((dense, squash)) = &self.pooler else { return Ok(x) };
        let pooled = dense.forward(&x, adapter)?;
        match squash {
            Squash::Tanh => pooled.tanh(),
            Squash::Relu => taper_kernels::activate(&pooled, Activation::Relu),
        }
    }
}
