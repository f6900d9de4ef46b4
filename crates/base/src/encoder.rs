//! The encoder that BERT-type models share: attention in both directions, a norm after each half of a block, and the head of
//! a task. arXiv:1810.04805; transformers `modeling_bert.py`, `modeling_roberta.py`, `modeling_distilbert.py` (5.23).

mod load;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use taper_kernels::{Activation, RopeTable, attention, attention_across};

use crate::network::{Fresh, rows_at};
use crate::pass::Pass;
use crate::whole::{Whole, through};
use crate::{Adapter, Batch, Embedding, Head, Kept, KvCache, LayerNorm, Linear, Module, Network, Sizes};

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
    /// Query, key, value, output of attention, up and down: in the order of [`taper_kernels::Block`].
    layers: [Linear; 6],
    /// After attention, and after the feed-forward layer.
    norms: [LayerNorm; 2],
    /// The same parts for one operation, with their facts.
    fused: Arc<taper_kernels::Block>,
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
        let mut pass = Pass { segments: batch.segments().into(), caches, adapter };
        let x = self.embed(batch, adapter)?;
        let (last, whole) = match self.blocks.split_last() {
            Some((last, before)) if self.top.pooler.is_some() => (Some(last), before),
            _ => (None, &*self.blocks),
        };
        let mut x = through(x, whole, &[], &mut pass)?;
        if let Some(block) = last {
            // A text is pooled from its first token: nothing reads the other rows.
            x = block.first_rows(&x, &pass.segments, adapter)?;
        }
        self.top.pool(x, adapter)
    }

    fn places(&self) -> Option<usize> {
        Some(self.config.sizes.max_position_embeddings)
    }

    fn head(&self) -> &Head {
        &self.top.head
    }

    fn embedding(&self) -> &Embedding {
        &self.embeddings.word
    }

    fn new_cache(&self) -> KvCache {
        KvCache::new(0, (0, 0))
    }

    /// Embeddings, blocks, head.
    fn modules(&self) -> Vec<Module<'_>> {
        let Embeddings { word, position, kind, norm } = &self.embeddings;
        let mut modules = vec![Module::Embedding(word), Module::Embedding(position)];
        modules.extend(kind.iter().map(Module::Embedding));
        modules.push(Module::LayerNorm(norm));
        for Block { layers, norms: [attention_norm, norm], .. } in &self.blocks {
            let (of_attention, fed) = layers.split_at(4);
            modules.extend(of_attention.iter().map(Module::Linear));
            modules.push(Module::LayerNorm(attention_norm));
            modules.extend(fed.iter().map(Module::Linear));
            modules.push(Module::LayerNorm(norm));
        }
        modules.extend(self.top.pooler.iter().map(|(dense, _)| Module::Linear(dense)));
        modules.push(Module::Linear(&self.top.head.linear));
        modules
    }

    /// A block keeps
    ///
    /// - `7 D + F` as one operation (`taper-kernels`, `blocks`), `D + F` of them as they are read;
    /// - `10 D + 2 F` operation by operation: q, k, v and what was attended; two projections, two sums and two norms; the
    ///   feed-forward layer before and after its function;
    /// - `3 D` where it is the last one and a text is read from its first token: k, v and what it reads.
    fn kept_per_token(&self, whole_blocks: bool) -> Kept {
        let Sizes { hidden_size, intermediate_size, num_hidden_layers, .. } = self.config.sizes;
        let (block, read) = if whole_blocks {
            (7 * hidden_size + intermediate_size, hidden_size + intermediate_size)
        } else {
            (10 * hidden_size + 2 * intermediate_size, 0)
        };
        let pooled = usize::from(self.top.pooler.is_some() && num_hidden_layers > 0);
        let blocks = num_hidden_layers - pooled;
        Kept { values: blocks * block + pooled * 3 * hidden_size, read: blocks * read }
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

impl Whole for Block {
    fn fused(&self) -> Option<&Arc<taper_kernels::Block>> {
        Some(&self.fused)
    }

    fn layers(&self) -> Vec<&Linear> {
        self.layers.iter().collect()
    }

    fn norms(&self) -> Vec<Module<'_>> {
        self.norms.iter().map(Module::LayerNorm).collect()
    }

    fn rope(&self) -> Option<usize> {
        None
    }

    fn in_parts(
        &self,
        _: usize,
        x: &Tensor,
        _: Option<&Arc<RopeTable>>,
        pass: &mut Pass<'_, '_>,
    ) -> Result<Tensor> {
        let [q, k, v] = self.heads([x, x], pass.adapter)?;
        self.feed(&attention(&q, &k, &v, &pass.segments, self.fused.shape)?, x, pass.adapter)
    }
}

impl Block {
    /// The first row of each segment, `(B, D)`, of what the whole block gives.
    fn first_rows(
        &self,
        x: &Tensor,
        segments: &Arc<[Range<usize>]>,
        adapter: &dyn Adapter,
    ) -> Result<Tensor> {
        let first = rows_at(x, segments.iter().map(|rows| rows.start))?;
        let [q, k, v] = self.heads([&first, x], adapter)?;
        let queries = (0..segments.len()).map(|row| row..row + 1).collect();
        let attended = attention_across(&q, &k, &v, [&queries, segments], self.fused.shape)?;
        self.feed(&attended, &first, adapter)
    }

    /// The queries of some rows, the keys and values of others.
    fn heads(&self, [asking, asked]: [&Tensor; 2], adapter: &dyn Adapter) -> Result<[Tensor; 3]> {
        let [query, key, value, ..] = &self.layers;
        Ok([query.forward(asking, adapter)?, key.forward(asked, adapter)?, value.forward(asked, adapter)?])
    }

    /// The rest of the block, row by row: `attended` and the block's input `x`, both `(N, D)`, to `(N, D)`.
    fn feed(&self, attended: &Tensor, x: &Tensor, adapter: &dyn Adapter) -> Result<Tensor> {
        let ([.., output, up, down], [attention_norm, norm]) = (&self.layers, &self.norms);
        let x = attention_norm.forward(&(output.forward(attended, adapter)? + x)?, adapter)?;
        let inner = taper_kernels::activate(&up.forward(&x, adapter)?, self.fused.activation)?;
        norm.forward(&(down.forward(&inner, adapter)? + x)?, adapter)
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
