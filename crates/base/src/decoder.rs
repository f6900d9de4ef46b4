//! The decoder that Llama-type models share: one forward pass over ragged batches, for training, scoring and generation.

mod load;

use std::sync::Arc;

use candle_core::{Result, Tensor};
use taper_kernels::{Activation, AttentionShape, Columns, RopeTable, columns};

use crate::pass::{Pass, with_caches};
use crate::rope::Rope;
use crate::whole::{Whole, through};
use crate::{Adapter, Batch, Embedding, Head, Kept, KvCache, Linear, Module, Network, RmsNorm, Sizes};

/// The facts by which Llama-type models differ, in the terms of config.json.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own in config.json")]
pub(crate) struct DecoderConfig {
    /// Its sizes.
    pub(crate) sizes: Sizes,
    /// Path of the module that holds the blocks.
    pub(crate) body: &'static str,
    /// Added to the mean square in every norm.
    pub(crate) rms_norm_eps: f64,
    /// Added to the gain of every norm.
    pub(crate) norm_offset: f64,
    /// Whether what a block's attention and feed-forward layer give is normalised too, before it is added.
    pub(crate) post_norms: bool,
    /// Whether q, k and v have biases.
    pub(crate) qkv_bias: bool,
    /// Whether the output projection of attention has one.
    pub(crate) o_bias: bool,
    /// Whether the feed-forward layers have them.
    pub(crate) mlp_bias: bool,
    /// Whether each q and k head is normalised before it is rotated.
    pub(crate) qk_norm: bool,
    /// How q, k, v and gate, up are stored.
    pub(crate) projections: Projections,
    /// Of the feed-forward layers' gates.
    pub(crate) activation: Activation,
    /// Factor on the token vectors.
    pub(crate) embed_scale: Option<f64>,
    /// Factor on the attention scores.
    pub(crate) attention_scale: f32,
    /// Soft cap on the attention scores.
    pub(crate) attention_cap: Option<f32>,
    /// Soft cap on the logits.
    pub(crate) logit_cap: Option<f32>,
    /// What differs from block to block.
    pub(crate) layers: Vec<LayerFacts>,
    /// The ways in which blocks rotate.
    pub(crate) ropes: Vec<Rope>,
}

/// How the projections of one input are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Projections {
    /// Each as a layer of its own.
    Apart,
    /// As one: `qkv_proj`, `gate_up_proj`.
    Fused,
}

/// Facts of one block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerFacts {
    /// Which of the ropes rotates q and k, if any.
    pub(crate) rope: Option<usize>,
    /// Keys that a query sees, itself included; all when none.
    pub(crate) window: Option<usize>,
}

/// A frozen Llama-type decoder.
#[derive(Debug)]
pub(crate) struct Decoder {
    config: DecoderConfig,
    embed_tokens: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Head,
}

#[derive(Debug)]
struct Block {
    attention_norm: RmsNorm,
    attention: Attention,
    mlp_norm: RmsNorm,
    mlp: Mlp,
    /// Norms of what attention and the feed-forward layer give.
    post_norms: Option<[RmsNorm; 2]>,
    /// The same parts, for one operation.
    fused: Arc<taper_kernels::Block>,
}

#[derive(Debug)]
struct Attention {
    qkv: Qkv,
    o_proj: Linear,
    /// Norms of q and k heads.
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    shape: AttentionShape,
    rope: Option<usize>,
}

#[derive(Debug)]
enum Qkv {
    /// q, k, v.
    Apart([Linear; 3]),
    /// `(H·E + 2·K·E, D)`.
    Fused(Linear),
}

#[derive(Debug)]
struct Mlp {
    gate_up: GateUp,
    down_proj: Linear,
    activation: Activation,
}

#[derive(Debug)]
enum GateUp {
    /// gate, up.
    Apart([Linear; 2]),
    /// `(2·F, D)`.
    Fused(Linear),
}

impl Network for Decoder {
    fn sizes(&self) -> &Sizes {
        &self.config.sizes
    }

    fn hidden(&self, batch: &Batch, caches: &mut [&mut KvCache], adapter: &dyn Adapter) -> Result<Tensor> {
        // Only one of a model's ropes, if any, depends on the length.
        let turning = |len: usize| self.config.ropes.iter().map(|rope| rope.turning(len)).max().unwrap_or(0);
        with_caches(batch, caches, turning, |batch, caches| self.run(batch, caches, adapter))
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn embedding(&self) -> &Embedding {
        &self.embed_tokens
    }

    fn new_cache(&self) -> KvCache {
        let sizes = &self.config.sizes;
        KvCache::new(sizes.num_hidden_layers, (sizes.num_key_value_heads, sizes.head_dim))
    }

    /// Embedding, blocks, final norm, head.
    fn modules(&self) -> Vec<Module<'_>> {
        let mut modules = vec![Module::Embedding(&self.embed_tokens)];
        for block in &self.blocks {
            let Attention { qkv, o_proj, qk_norm, .. } = &block.attention;
            modules.extend(qkv.layers().iter().chain([o_proj]).map(Module::Linear));
            modules.extend(qk_norm.iter().flat_map(|(q, k)| [q, k]).map(Module::Norm));
            let Mlp { gate_up, down_proj, .. } = &block.mlp;
            modules.extend(gate_up.layers().iter().chain([down_proj]).map(Module::Linear));
            modules.extend([&block.attention_norm, &block.mlp_norm].map(Module::Norm));
            modules.extend(block.post_norms.iter().flatten().map(Module::Norm));
        }
        modules.push(Module::Norm(&self.norm));
        modules.push(Module::Linear(&self.head.linear));
        modules
    }

    /// With query width Q = H·E, key width K = K·E and feed-forward width F, a block keeps:
    ///
    /// - `2 (D + Q + K + F)` as one operation (`taper-kernels`, `blocks`), `Q + 2 F` of them as they are read, and D more where
    ///   what is added is normalised;
    /// - `6 D + 3 Q + 3 K + 3 F` operation by operation: two norms, two projections back to D, two sums; q before and after
    ///   its rotation, and what was attended; k likewise, and v; gate, up, and their product; and Q + K more where heads are
    ///   normalised, 2 D where what is added is, Q + 2 K + 2 F where projections are fused.
    fn kept_per_token(&self, whole_blocks: bool) -> Kept {
        let (config, sizes) = (&self.config, &self.config.sizes);
        let (hidden, inner) = (sizes.hidden_size, sizes.intermediate_size);
        let heads = sizes.query_width() + sizes.key_width();
        let if_so = |fact: bool, values: usize| if fact { values } else { 0 };
        let block = if whole_blocks {
            2 * (hidden + heads + inner) + if_so(config.post_norms, hidden)
        } else {
            6 * hidden
                + 3 * (heads + inner)
                + if_so(config.qk_norm, heads)
                + if_so(config.post_norms, 2 * hidden)
                + if_so(config.projections == Projections::Fused, heads + sizes.key_width() + 2 * inner)
        };
        let read = if_so(whole_blocks, sizes.query_width() + 2 * inner);
        Kept { values: sizes.num_hidden_layers * block, read: sizes.num_hidden_layers * read }
    }
}

impl Decoder {
    /// [`hidden`](Network::hidden) of a batch that begins where the caches' keys end.
    fn run(&self, batch: &Batch, caches: &mut [&mut KvCache], adapter: &dyn Adapter) -> Result<Tensor> {
        let mut pass = Pass { segments: batch.segments().into(), caches, adapter };
        let positions = pass.positions();
        let ropes: Vec<_> = self.config.ropes.iter().map(|rope| Arc::new(rope.table(&positions))).collect();
        let mut x = self.embed_tokens.forward(batch.tokens(), adapter)?;
        if let Some(scale) = self.config.embed_scale {
            x = (x * scale)?;
        }
        self.norm.forward(&through(x, &self.blocks, &ropes, &mut pass)?, adapter)
    }
}

impl Whole for Block {
    fn fused(&self) -> Option<&Arc<taper_kernels::Block>> {
        Some(&self.fused)
    }

    fn layers(&self) -> Vec<&Linear> {
        projections(&self.attention, &self.mlp)
    }

    fn norms(&self) -> Vec<Module<'_>> {
        let heads = self.attention.qk_norm.iter().flat_map(|(q, k)| [q, k]);
        let rows = [&self.attention_norm, &self.mlp_norm].into_iter().chain(self.post_norms.iter().flatten());
        rows.chain(heads).map(Module::Norm).collect()
    }

    fn rope(&self) -> Option<usize> {
        self.attention.rope
    }

    fn in_parts(
        &self,
        layer: usize,
        x: &Tensor,
        rope: Option<&Arc<RopeTable>>,
        pass: &mut Pass<'_, '_>,
    ) -> Result<Tensor> {
        let adapter = pass.adapter;
        let mut attended =
            self.attention.forward(layer, &self.attention_norm.forward(x, adapter)?, rope, pass)?;
        if let Some([norm, _]) = &self.post_norms {
            attended = norm.forward(&attended, adapter)?;
        }
        let x = (x + attended)?;
        let mut fed = self.mlp.forward(&self.mlp_norm.forward(&x, adapter)?, adapter)?;
        if let Some([_, norm]) = &self.post_norms {
            fed = norm.forward(&fed, adapter)?;
        }
        x + fed
    }
}

/// In the order of [`taper_kernels::Block`].
fn projections<'a>(attention: &'a Attention, mlp: &'a Mlp) -> Vec<&'a Linear> {
    let (qkv, gate_up) = (attention.qkv.layers(), mlp.gate_up.layers());
    let mut layers: Vec<_> = qkv.iter().chain([&attention.o_proj]).collect();
    layers.extend(&gate_up[..1]);
    layers.push(&mlp.down_proj);
    layers.extend(&gate_up[1..]);
    layers
}

impl Attention {
    /// `x` `(N, D)`, normalised, to `(N, D)`.
    fn forward(
        &self,
        layer: usize,
        x: &Tensor,
        rope: Option<&Arc<RopeTable>>,
        pass: &mut Pass<'_, '_>,
    ) -> Result<Tensor> {
        let adapter = pass.adapter;
        let [mut q, mut k, v] = self.qkv.forward(x, self.shape, adapter)?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            (q, k) = (q_norm.forward(&q, adapter)?, k_norm.forward(&k, adapter)?);
        }
        if let Some(rope) = rope {
            q = taper_kernels::rope(&q, rope, self.shape.head_dim)?;
            k = taper_kernels::rope(&k, rope, self.shape.head_dim)?;
        }
        self.o_proj.forward(&pass.attend(layer, (&q, &k, &v), self.shape)?, adapter)
    }
}

impl Qkv {
    fn layers(&self) -> &[Linear] {
        match self {
            Self::Apart(layers) => layers,
            Self::Fused(layer) => std::slice::from_ref(layer),
        }
    }

    /// q `(N, H·E)`, k and v `(N, K·E)`.
    fn forward(&self, x: &Tensor, shape: AttentionShape, adapter: &dyn Adapter) -> Result<[Tensor; 3]> {
        match self {
            Self::Apart([q, k, v]) => {
                Ok([q.forward(x, adapter)?, k.forward(x, adapter)?, v.forward(x, adapter)?])
            }
            Self::Fused(layer) => {
                let all = layer.forward(x, adapter)?;
                let (q, k) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
                let part = |start, width| columns(&all, Columns { start, width, stride: q + 2 * k });
                Ok([part(0, q)?, part(q, k)?, part(q + k, k)?])
            }
        }
    }
}

impl Mlp {
    /// `x` `(N, D)`, normalised, to `(N, D)`.
    fn forward(&self, x: &Tensor, adapter: &dyn Adapter) -> Result<Tensor> {
        let [gate, up] = self.gate_up.forward(x, adapter)?;
        self.down_proj.forward(&taper_kernels::gated(&gate, &up, self.activation)?, adapter)
    }
}

impl GateUp {
    fn layers(&self) -> &[Linear] {
        match self {
            Self::Apart(layers) => layers,
            Self::Fused(layer) => std::slice::from_ref(layer),
        }
    }

    /// Both `(N, F)`.
    fn forward(&self, x: &Tensor, adapter: &dyn Adapter) -> Result<[Tensor; 2]> {
        match self {
            Self::Apart([gate, up]) => Ok([gate.forward(x, adapter)?, up.forward(x, adapter)?]),
            Self::Fused(layer) => {
                let all = layer.forward(x, adapter)?;
                let width = layer.out_features() / 2;
                let part = |start| columns(&all, Columns { start, width, stride: 2 * width });
                Ok([part(0)?, part(width)?])
            }
        }
    }
}

#[cfg(test)]
mod tests;
