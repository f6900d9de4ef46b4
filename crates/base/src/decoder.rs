//! The decoder that Llama-type models share: one forward pass over ragged batches, for training, scoring and generation.

mod load;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use taper_kernels::{Adapted, AttentionShape, BlockPass, CachedSegment, RopeTable};

use crate::rope::Rope;
use crate::{Adapter, Batch, Effect, Embedding, KvCache, Linear, Module, Network, RmsNorm, Sizes};

/// The facts by which Llama-type models differ, in the terms of config.json.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own in config.json")]
pub(crate) struct DecoderConfig {
    /// Its sizes.
    pub(crate) sizes: Sizes,
    /// Added to the mean square in every norm.
    pub(crate) rms_norm_eps: f64,
    /// Whether q, k and v have biases.
    pub(crate) qkv_bias: bool,
    /// Whether the output projection of attention has one.
    pub(crate) o_bias: bool,
    /// Whether the feed-forward layers have them.
    pub(crate) mlp_bias: bool,
    /// Whether each q and k head is normalised before it is rotated.
    pub(crate) qk_norm: bool,
    /// What differs from block to block.
    pub(crate) layers: Vec<LayerFacts>,
    pub(crate) rope: Rope,
}

/// Facts of one block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerFacts {
    /// Whether q and k are rotated.
    pub(crate) rope: bool,
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
    lm_head: Linear,
}

#[derive(Debug)]
struct Block {
    input_layernorm: RmsNorm,
    attention: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
    /// The same parts, for one operation.
    fused: Arc<taper_kernels::Block>,
}

#[derive(Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Norms of q and k heads.
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    shape: AttentionShape,
    rope: bool,
}

#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "the checkpoint's names")]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

/// What one forward pass shares between its blocks.
struct Pass<'a, 'c> {
    segments: Arc<[Range<usize>]>,
    rope: Arc<RopeTable>,
    caches: &'a mut [&'c mut KvCache],
    adapter: &'a dyn Adapter,
}

impl Network for Decoder {
    fn sizes(&self) -> &Sizes {
        &self.config.sizes
    }

    fn hidden(&self, batch: &Batch, caches: &mut [&mut KvCache], adapter: &dyn Adapter) -> Result<Tensor> {
        if !caches.is_empty() && caches.len() != batch.segments().len() {
            candle_core::bail!("{} caches for {} sequences", caches.len(), batch.segments().len());
        }
        for (cache, rows) in caches.iter_mut().zip(batch.segments()) {
            cache.turn(self.config.rope.turning(cache.len() + rows.len()));
        }
        let hidden = if caches.iter().any(|cache| !cache.unread().is_empty()) {
            let (longer, asked) = with_unread(batch, caches);
            self.run(&longer, caches, adapter)?.index_select(&Tensor::new(asked, &Device::Cpu)?, 0)?
        } else {
            self.run(batch, caches, adapter)?
        };
        for (cache, rows) in caches.iter_mut().zip(batch.segments()) {
            cache.advance(&batch.tokens()[rows.clone()]);
        }
        Ok(hidden)
    }

    fn head(&self) -> &Linear {
        &self.lm_head
    }

    fn embedding(&self) -> &Embedding {
        &self.embed_tokens
    }

    fn new_cache(&self) -> KvCache {
        let sizes = &self.config.sizes;
        KvCache::new(sizes.num_hidden_layers, sizes.key_width())
    }

    /// Embedding, blocks, final norm, head.
    fn modules(&self) -> Vec<Module<'_>> {
        let mut modules = vec![Module::Embedding(&self.embed_tokens)];
        for block in &self.blocks {
            let Attention { q_proj, k_proj, v_proj, o_proj, qk_norm, .. } = &block.attention;
            let Mlp { gate_proj, up_proj, down_proj } = &block.mlp;
            modules.extend([q_proj, k_proj, v_proj, o_proj].map(Module::Linear));
            modules.extend(qk_norm.iter().flat_map(|(q, k)| [q, k]).map(Module::Norm));
            modules.extend([gate_proj, up_proj, down_proj].map(Module::Linear));
            modules.extend([&block.input_layernorm, &block.post_attention_layernorm].map(Module::Norm));
        }
        modules.push(Module::Norm(&self.norm));
        modules.push(Module::Linear(&self.lm_head));
        modules
    }

    /// With query width Q = H·E, key width K = K·E and feed-forward width F, a block keeps:
    ///
    /// - `2 (D + Q + K + F)` as one operation (`taper-kernels`, `block`);
    /// - `6 D + 3 Q + 3 K + 3 F` operation by operation: two norms, two projections back to D, two sums; q before and after
    ///   its rotation, and what was attended; k likewise, and v; gate, up, and their product; and Q + K more where heads are
    ///   normalised.
    fn kept_per_token(&self, whole_blocks: bool) -> usize {
        let sizes = &self.config.sizes;
        let (hidden, inner) = (sizes.hidden_size, sizes.intermediate_size);
        let heads = sizes.query_width() + sizes.key_width();
        let block = if whole_blocks {
            2 * (hidden + heads + inner)
        } else {
            6 * hidden + 3 * (heads + inner) + if self.config.qk_norm { heads } else { 0 }
        };
        sizes.num_hidden_layers * block
    }
}

impl Decoder {
    /// [`hidden`](Network::hidden) of a batch that begins where the caches' keys end.
    fn run(&self, batch: &Batch, caches: &mut [&mut KvCache], adapter: &dyn Adapter) -> Result<Tensor> {
        let start = |i: usize| caches.get(i).map_or(0, |cache| cache.start());
        let positions: Vec<Range<usize>> =
            batch.segments().iter().enumerate().map(|(i, rows)| start(i)..start(i) + rows.len()).collect();
        let rope = Arc::new(self.config.rope.table(&positions));
        let mut x = self.embed_tokens.forward(batch.tokens(), adapter)?;
        let mut pass = Pass { segments: batch.segments().into(), rope, caches, adapter };
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(layer, &x, &mut pass)?;
        }
        self.norm.forward(&x, adapter)
    }
}

/// `batch` with each cache's unread tokens before its segment, and the rows of `batch` in that.
fn with_unread(batch: &Batch, caches: &[&mut KvCache]) -> (Batch, Vec<u32>) {
    let (mut longer, mut asked) = (Batch::default(), Vec::with_capacity(batch.len()));
    for (cache, rows) in caches.iter().zip(batch.segments()) {
        longer.push(&[cache.unread(), &batch.tokens()[rows.clone()]].concat());
        let end = longer.len() as u32;
        asked.extend(end - rows.len() as u32..end);
    }
    (longer, asked)
}

impl Block {
    /// `x` `(N, D)` to `(N, D)`: in one operation, where the adapter allows it.
    fn forward(&self, layer: usize, x: &Tensor, pass: &mut Pass<'_, '_>) -> Result<Tensor> {
        let Some(adapted) = self.adapted(pass.adapter)? else { return self.in_parts(layer, x, pass) };
        let (segments, rope) = (pass.segments.clone(), pass.rope.clone());
        let shared = BlockPass { segments, rope, recompute: false };
        if pass.caches.is_empty() {
            return taper_kernels::block(x, &self.fused, &shared, &adapted);
        }
        let mut caches: Vec<_> = pass.caches.iter_mut().map(|cache| cache.layer_mut(layer)).collect();
        taper_kernels::block_cached(x, &self.fused, &shared, &adapted, &mut caches)
    }

    /// What `adapter` makes of the projections, if it changes nothing else in the block.
    fn adapted<'a>(&self, adapter: &'a dyn Adapter) -> Result<Option<[Option<Adapted<'a>>; 7]>> {
        let heads = self.attention.qk_norm.iter().flat_map(|(q, k)| [q, k]);
        let mut norms = [&self.input_layernorm, &self.post_attention_layernorm].into_iter().chain(heads);
        if norms.any(|norm| adapter.param(&norm.gain_path).is_some()) {
            return Ok(None);
        }
        let mut all = [const { None }; 7];
        for (adapted, layer) in all.iter_mut().zip(projections(&self.attention, &self.mlp)) {
            match adapter.effect(layer)? {
                Effect::Frozen => {}
                Effect::Adapted(change) => *adapted = Some(change),
                Effect::Other => return Ok(None),
            }
        }
        Ok(Some(all))
    }

    /// The block in its single operations.
    fn in_parts(&self, layer: usize, x: &Tensor, pass: &mut Pass<'_, '_>) -> Result<Tensor> {
        let attended =
            self.attention.forward(layer, &self.input_layernorm.forward(x, pass.adapter)?, pass)?;
        let x = (x + attended)?;
        let fed =
            self.mlp.forward(&self.post_attention_layernorm.forward(&x, pass.adapter)?, pass.adapter)?;
        x + fed
    }
}

/// In the order of [`taper_kernels::Block`].
fn projections<'a>(attention: &'a Attention, mlp: &'a Mlp) -> [&'a Linear; 7] {
    let Attention { q_proj, k_proj, v_proj, o_proj, .. } = attention;
    [q_proj, k_proj, v_proj, o_proj, &mlp.gate_proj, &mlp.up_proj, &mlp.down_proj]
}

impl Attention {
    /// `x` `(N, D)`, normalised, to `(N, D)`.
    fn forward(&self, layer: usize, x: &Tensor, pass: &mut Pass<'_, '_>) -> Result<Tensor> {
        let mut q = self.q_proj.forward(x, pass.adapter)?; // (N, H·E)
        let mut k = self.k_proj.forward(x, pass.adapter)?; // (N, K·E)
        let v = self.v_proj.forward(x, pass.adapter)?; // (N, K·E)
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            (q, k) = (q_norm.forward(&q, pass.adapter)?, k_norm.forward(&k, pass.adapter)?);
        }
        if self.rope {
            q = taper_kernels::rope(&q, &pass.rope, self.shape.head_dim)?;
            k = taper_kernels::rope(&k, &pass.rope, self.shape.head_dim)?;
        }
        let attended = if pass.caches.is_empty() {
            taper_kernels::attention(&q, &k, &v, &pass.segments, self.shape)?
        } else {
            self.attend_cached(layer, (&q, &k, &v), pass)?
        };
        self.o_proj.forward(&attended, pass.adapter)
    }

    fn attend_cached(
        &self,
        layer: usize,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        pass: &mut Pass<'_, '_>,
    ) -> Result<Tensor> {
        for (cache, rows) in pass.caches.iter_mut().zip(pass.segments.iter()) {
            cache.append(layer, k, v, rows)?;
        }
        let segments: Vec<CachedSegment<'_>> = (pass.caches.iter().zip(pass.segments.iter()))
            .map(|(cache, rows)| {
                let (keys, values) = cache.layer(layer);
                CachedSegment { start: rows.start, len: rows.len(), keys, values }
            })
            .collect();
        taper_kernels::attention_cached(q, &segments, self.shape)
    }
}

impl Mlp {
    /// `x` `(N, D)`, normalised, to `(N, D)`.
    fn forward(&self, x: &Tensor, adapter: &dyn Adapter) -> Result<Tensor> {
        let gate = self.gate_proj.forward(x, adapter)?;
        let up = self.up_proj.forward(x, adapter)?;
        self.down_proj.forward(&taper_kernels::swiglu(&gate, &up)?, adapter)
    }
}

#[cfg(test)]
mod tests;
