//! The encoder of `ModernBERT`: norms before each half of a block, rotated heads, windows in both directions, gated
//! feed-forward layers, and the head of a task. arXiv:2412.13663 §2; transformers `modeling_modernbert.py` (5.23).

mod load;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{Result, Tensor};
use taper_kernels::{Activation, AttentionShape, Columns, RopeTable, attention, attention_across, columns};

use crate::decoder::LayerFacts;
use crate::network::{Fresh, means, rows_at};
use crate::pass::Pass;
use crate::rope::Rope;
use crate::whole::{Whole, through};
use crate::{Adapter, Batch, Embedding, Head, Kept, KvCache, LayerNorm, Linear, Module, Network, Sizes};

/// The facts of config.json.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own in config.json")]
pub(crate) struct ModernBertConfig {
    /// Its sizes.
    pub(crate) sizes: Sizes,
    /// Added to the variance in every norm.
    pub(crate) eps: f64,
    /// Whether norms have biases.
    pub(crate) norm_bias: bool,
    /// Whether attention's projections have them.
    pub(crate) attention_bias: bool,
    /// Whether the feed-forward layers have them.
    pub(crate) mlp_bias: bool,
    /// Whether the layer before the one that labels has one.
    pub(crate) head_bias: bool,
    /// Of the feed-forward layers' gates.
    pub(crate) activation: Activation,
    /// Before the layer that labels.
    pub(crate) head_activation: Activation,
    /// What a text's label is read from.
    pub(crate) pooling: Pooling,
    /// Of fresh weights.
    pub(crate) initializer_range: f64,
    /// What differs from block to block.
    pub(crate) layers: Vec<LayerFacts>,
    /// The ways in which blocks rotate.
    pub(crate) ropes: Vec<Rope>,
}

/// What a text's label is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// Its first token.
    First,
    /// The mean of its tokens.
    Mean,
}

/// A frozen `ModernBERT` under the head of a task.
#[derive(Debug)]
pub(crate) struct ModernBert {
    config: ModernBertConfig,
    embedding: Embedding,
    embedding_norm: LayerNorm,
    blocks: Vec<Block>,
    norm: LayerNorm,
    top: Top,
    fresh: Vec<Fresh>,
}

#[derive(Debug)]
struct Block {
    /// None in the first: the embedding is normalised already.
    attention_norm: Option<LayerNorm>,
    /// `(3·D, D)`: q, k, v.
    qkv: Linear,
    out: Linear,
    mlp_norm: LayerNorm,
    /// `(2·F, D)`: gate, up.
    gate_up: Linear,
    down: Linear,
    activation: Activation,
    shape: AttentionShape,
    rope: Option<usize>,
    /// The same parts for one operation; none of a block without its first norm.
    fused: Option<Arc<taper_kernels::Block>>,
}

/// The head of a task.
#[derive(Debug)]
struct Top {
    /// What a text's label is read from; none where every token is labelled.
    pooling: Option<Pooling>,
    dense: Linear,
    activation: Activation,
    norm: LayerNorm,
    head: Head,
    /// The head's names in `modules_to_save`.
    modules: Vec<&'static str>,
}

impl Network for ModernBert {
    fn sizes(&self) -> &Sizes {
        &self.config.sizes
    }

    fn hidden(&self, batch: &Batch, caches: &mut [&mut KvCache], adapter: &dyn Adapter) -> Result<Tensor> {
        if !caches.is_empty() {
            candle_core::bail!("an encoder reads a whole text at once: there is no cache to continue");
        }
        let places: Vec<_> = batch.segments().iter().map(|rows| 0..rows.len()).collect();
        let ropes: Vec<_> = self.config.ropes.iter().map(|rope| Arc::new(rope.table(&places))).collect();
        let mut pass = Pass { segments: batch.segments().into(), caches, adapter };
        let x = self.embedding.forward(batch.tokens(), adapter)?;
        let x = self.embedding_norm.forward(&x, adapter)?;
        let (last, whole) = match self.blocks.split_last() {
            Some((last, before)) if self.top.pooling == Some(Pooling::First) => (Some(last), before),
            _ => (None, &*self.blocks),
        };
        let mut x = through(x, whole, &ropes, &mut pass)?;
        if let Some(block) = last {
            // Nothing reads the other rows.
            x = block.first_rows(&x, block.rope.map(|i| &ropes[i]), &pass)?;
        }
        self.top.pool(&self.norm.forward(&x, adapter)?, &pass)
    }

    fn head(&self) -> &Head {
        &self.top.head
    }

    fn embedding(&self) -> &Embedding {
        &self.embedding
    }

    fn new_cache(&self) -> KvCache {
        KvCache::new(0, (0, 0))
    }

    /// Embedding, blocks, final norm, head.
    fn modules(&self) -> Vec<Module<'_>> {
        let mut modules = vec![Module::Embedding(&self.embedding), Module::LayerNorm(&self.embedding_norm)];
        for Block { attention_norm, qkv, out, mlp_norm, gate_up, down, .. } in &self.blocks {
            modules.extend(attention_norm.iter().map(Module::LayerNorm));
            modules.extend([qkv, out].map(Module::Linear));
            modules.push(Module::LayerNorm(mlp_norm));
            modules.extend([gate_up, down].map(Module::Linear));
        }
        let Top { dense, norm, head, .. } = &self.top;
        modules.extend([Module::LayerNorm(&self.norm), Module::Linear(dense), Module::LayerNorm(norm)]);
        modules.push(Module::Linear(&head.linear));
        modules
    }

    /// With feed-forward width F, a block keeps
    ///
    /// - `6 D + 2 F` as one operation (`taper-kernels`, `blocks`), which all but the first may be, `D + 2 F` of them as they
    ///   are read;
    /// - `15 D + 5 F` operation by operation: two norms, two projections back to D, two sums; q, k and v together and apart,
    ///   q and k rotated, and what was attended; gate and up together and apart, and their product;
    /// - `9 D` where it is the last one and a text is read from its first token: what comes before attention.
    fn kept_per_token(&self, whole_blocks: bool) -> Kept {
        let hidden = self.config.sizes.hidden_size;
        let (last, others) = match self.blocks.split_last() {
            Some((_, others)) if self.top.pooling == Some(Pooling::First) => (9 * hidden, others),
            _ => (0, &*self.blocks),
        };
        let inner = self.config.sizes.intermediate_size;
        let mut kept = Kept { values: last, read: 0 };
        for block in others {
            let whole = whole_blocks && block.fused.is_some();
            kept.values += if whole { 6 * hidden + 2 * inner } else { 15 * hidden + 5 * inner };
            kept.read += if whole { hidden + 2 * inner } else { 0 };
        }
        kept
    }

    fn head_modules(&self) -> &[&'static str] {
        &self.top.modules
    }

    fn fresh(&self) -> &[Fresh] {
        &self.fresh
    }
}

impl Whole for Block {
    fn fused(&self) -> Option<&Arc<taper_kernels::Block>> {
        self.fused.as_ref()
    }

    fn layers(&self) -> Vec<&Linear> {
        vec![&self.qkv, &self.out, &self.gate_up, &self.down]
    }

    fn norms(&self) -> Vec<Module<'_>> {
        self.attention_norm.iter().chain([&self.mlp_norm]).map(Module::LayerNorm).collect()
    }

    fn rope(&self) -> Option<usize> {
        self.rope
    }

    fn in_parts(
        &self,
        _: usize,
        x: &Tensor,
        rope: Option<&Arc<RopeTable>>,
        pass: &mut Pass<'_, '_>,
    ) -> Result<Tensor> {
        let [q, k, v] = self.heads(x, rope, pass.adapter)?;
        self.feed(&attention(&q, &k, &v, &pass.segments, self.shape)?, x, pass.adapter)
    }
}

impl Block {
    /// The first row of each segment, `(B, D)`, of what the whole block gives.
    fn first_rows(&self, x: &Tensor, rope: Option<&Arc<RopeTable>>, pass: &Pass<'_, '_>) -> Result<Tensor> {
        let [q, k, v] = self.heads(x, rope, pass.adapter)?;
        let firsts = |x: &Tensor| rows_at(x, pass.segments.iter().map(|rows| rows.start));
        let queries = (0..pass.segments.len()).map(|row| row..row + 1).collect();
        let attended = attention_across(&firsts(&q)?, &k, &v, [&queries, &pass.segments], self.shape)?;
        self.feed(&attended, &firsts(x)?, pass.adapter)
    }

    /// q, k and v `(N, D)`, the first two rotated.
    fn heads(&self, x: &Tensor, rope: Option<&Arc<RopeTable>>, adapter: &dyn Adapter) -> Result<[Tensor; 3]> {
        let all = match &self.attention_norm {
            None => self.qkv.forward(x, adapter)?,
            Some(norm) => self.qkv.forward(&norm.forward(x, adapter)?, adapter)?,
        };
        let [q, k, v] = parts(&all)?;
        let Some(rope) = rope else { return Ok([q, k, v]) };
        let turned = |x| taper_kernels::rope(x, rope, self.shape.head_dim);
        Ok([turned(&q)?, turned(&k)?, v])
    }

    /// The rest of the block, row by row: `attended` and the block's input `x`, both `(N, D)`, to `(N, D)`.
    fn feed(&self, attended: &Tensor, x: &Tensor, adapter: &dyn Adapter) -> Result<Tensor> {
        let x = (x + self.out.forward(attended, adapter)?)?;
        let [gate, up] = parts(&self.gate_up.forward(&self.mlp_norm.forward(&x, adapter)?, adapter)?)?;
        let fed = taper_kernels::gated(&gate, &up, self.activation)?;
        x + self.down.forward(&fed, adapter)?
    }
}

/// `all` `(N, P·W)` in P parts `(N, W)`.
fn parts<const P: usize>(all: &Tensor) -> Result<[Tensor; P]> {
    let stride = all.dims2()?.1;
    let width = stride / P;
    let parts: Vec<Tensor> = (0..P)
        .map(|part| columns(all, Columns { start: part * width, width, stride }))
        .collect::<Result<_>>()?;
    parts.try_into().map_err(|_| candle_core::Error::msg("as many parts as were asked for"))
}

impl Top {
    /// What the layer that labels reads: of every row of `x` `(N, D)`, or of each text, pooled.
    fn pool(&self, x: &Tensor, pass: &Pass<'_, '_>) -> Result<Tensor> {
        let dense = match self.pooling {
            Some(Pooling::Mean) => self.dense.forward(&means(x, &pass.segments)?, pass.adapter)?,
            Some(Pooling::First) | None => self.dense.forward(x, pass.adapter)?,
        };
        self.norm.forward(&taper_kernels::activate(&dense, self.activation)?, pass.adapter)
    }
}
