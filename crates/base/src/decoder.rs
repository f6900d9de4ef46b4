//! The decoder that Llama-type models share: one forward pass over ragged batches, for training, scoring and generation.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use taper_kernels::{AttentionShape, CachedSegment, Compute, RopeTable};

use crate::rope::Rope;
use crate::{Adapter, Batch, Checkpoint, Embedding, Error, KvCache, Linear, Module, RmsNorm};

/// The facts by which Llama-type models differ, in the terms of config.json.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own in config.json")]
pub struct DecoderConfig {
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
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// Whether the head is the embedding's matrix.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the output projection of attention has one.
    pub o_bias: bool,
    /// Whether the feed-forward layers have them.
    pub mlp_bias: bool,
    /// Whether each q and k head is normalised before it is rotated.
    pub qk_norm: bool,
    /// What differs from block to block.
    pub layers: Vec<LayerFacts>,
    pub(crate) rope: Rope,
}

/// Facts of one block.
#[derive(Clone, Copy, Debug)]
pub struct LayerFacts {
    /// Whether q and k are rotated.
    pub rope: bool,
    /// Keys that a query sees, itself included; all when none.
    pub window: Option<usize>,
}

/// A frozen Llama-type decoder.
#[derive(Debug)]
pub struct Decoder {
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

impl Decoder {
    /// The facts it was built from.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Final hidden states `(N, D)`, after the last norm. `caches` is empty, or holds one cache a segment: then segment `i`
    /// continues `caches[i]`, which takes up its keys and values, and no gradient is kept.
    pub fn hidden(
        &self,
        batch: &Batch,
        caches: &mut [&mut KvCache],
        adapter: &dyn Adapter,
    ) -> Result<Tensor> {
        if !caches.is_empty() && caches.len() != batch.segments().len() {
            candle_core::bail!("{} caches for {} sequences", caches.len(), batch.segments().len());
        }
        let start = |i: usize| caches.get(i).map_or(0, |cache| cache.len());
        let positions: Vec<Range<usize>> =
            batch.segments().iter().enumerate().map(|(i, rows)| start(i)..start(i) + rows.len()).collect();
        let rope = Arc::new(self.config.rope.table(&positions));
        let mut x = self.embed_tokens.forward(batch.tokens(), adapter)?;
        let mut pass = Pass { segments: batch.segments().into(), rope, caches, adapter };
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(layer, &x, &mut pass)?;
        }
        for (cache, rows) in pass.caches.iter_mut().zip(batch.segments()) {
            cache.advance(rows.len());
        }
        self.norm.forward(&x, adapter)
    }

    /// The language-model head.
    pub fn head(&self) -> &Linear {
        &self.lm_head
    }

    /// The table of token vectors.
    pub fn embedding(&self) -> &Embedding {
        &self.embed_tokens
    }

    /// An empty cache for one sequence.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(self.config.num_hidden_layers, self.config.num_key_value_heads * self.config.head_dim)
    }

    /// Every module that an adapter may name, in the order of the checkpoint (embedding, blocks, final norm, head).
    pub fn modules(&self) -> Vec<Module<'_>> {
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
}

impl Block {
    /// `x` `(N, D)` to `(N, D)`.
    fn forward(&self, layer: usize, x: &Tensor, pass: &mut Pass<'_, '_>) -> Result<Tensor> {
        let attended =
            self.attention.forward(layer, &self.input_layernorm.forward(x, pass.adapter)?, pass)?;
        let x = (x + attended)?;
        let fed =
            self.mlp.forward(&self.post_attention_layernorm.forward(&x, pass.adapter)?, pass.adapter)?;
        x + fed
    }
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

/// Finds the weights that a [`DecoderConfig`] calls for.
struct Loader<'a> {
    config: &'a DecoderConfig,
    checkpoint: &'a Checkpoint,
    compute: Compute,
}

impl Decoder {
    /// Finds every weight that `config` calls for; nothing is copied but norms and biases.
    pub(crate) fn load(
        config: DecoderConfig,
        checkpoint: &Checkpoint,
        compute: Compute,
    ) -> std::result::Result<Self, Error> {
        let loader = Loader { config: &config, checkpoint, compute };
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embed_tokens = Embedding {
            path: "model.embed_tokens".into(),
            weight: loader.weight("model.embed_tokens", vocab, hidden)?,
        };
        let blocks =
            (0..config.num_hidden_layers).map(|i| loader.block(i)).collect::<std::result::Result<_, _>>()?;
        let norm = loader.norm("model.norm", hidden)?;
        let lm_head = loader.linear("lm_head", (hidden, vocab), false)?;
        Ok(Self { config, embed_tokens, blocks, norm, lm_head })
    }
}

impl Loader<'_> {
    fn block(&self, i: usize) -> std::result::Result<Block, Error> {
        let path = format!("model.layers.{i}");
        Ok(Block {
            input_layernorm: self.norm(&format!("{path}.input_layernorm"), self.config.hidden_size)?,
            attention: self.attention(&format!("{path}.self_attn"), self.config.layers[i])?,
            post_attention_layernorm: self
                .norm(&format!("{path}.post_attention_layernorm"), self.config.hidden_size)?,
            mlp: self.mlp(&format!("{path}.mlp"))?,
        })
    }

    fn attention(&self, path: &str, facts: LayerFacts) -> std::result::Result<Attention, Error> {
        let c = self.config;
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let norms = || -> std::result::Result<_, Error> {
            Ok((
                self.norm(&format!("{path}.q_norm"), c.head_dim)?,
                self.norm(&format!("{path}.k_norm"), c.head_dim)?,
            ))
        };
        Ok(Attention {
            q_proj: self.linear(&format!("{path}.q_proj"), (c.hidden_size, q), c.qkv_bias)?,
            k_proj: self.linear(&format!("{path}.k_proj"), (c.hidden_size, kv), c.qkv_bias)?,
            v_proj: self.linear(&format!("{path}.v_proj"), (c.hidden_size, kv), c.qkv_bias)?,
            o_proj: self.linear(&format!("{path}.o_proj"), (q, c.hidden_size), c.o_bias)?,
            qk_norm: c.qk_norm.then(norms).transpose()?,
            shape: AttentionShape {
                heads: c.num_attention_heads,
                kv_heads: c.num_key_value_heads,
                head_dim: c.head_dim,
                scale: 1.0 / (c.head_dim as f32).sqrt(),
                window: facts.window,
            },
            rope: facts.rope,
        })
    }

    fn mlp(&self, path: &str) -> std::result::Result<Mlp, Error> {
        let c = self.config;
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        Ok(Mlp {
            gate_proj: self.linear(&format!("{path}.gate_proj"), (hidden, inner), c.mlp_bias)?,
            up_proj: self.linear(&format!("{path}.up_proj"), (hidden, inner), c.mlp_bias)?,
            down_proj: self.linear(&format!("{path}.down_proj"), (inner, hidden), c.mlp_bias)?,
        })
    }

    fn linear(
        &self,
        path: &str,
        (input, output): (usize, usize),
        bias: bool,
    ) -> std::result::Result<Linear, Error> {
        let bias = bias.then(|| self.checkpoint.tensor(&self.name(path, "bias"), &[output])).transpose()?;
        Ok(Linear { path: path.into(), weight: self.weight(path, output, input)?, bias })
    }

    fn norm(&self, path: &str, size: usize) -> std::result::Result<RmsNorm, Error> {
        let gain = self.checkpoint.tensor(&self.name(path, "weight"), &[size])?;
        Ok(RmsNorm {
            path: path.into(),
            gain_path: format!("{path}.weight"),
            gain,
            eps: self.config.rms_norm_eps,
        })
    }

    fn weight(
        &self,
        path: &str,
        rows: usize,
        cols: usize,
    ) -> std::result::Result<taper_kernels::Weight, Error> {
        Ok(self.checkpoint.weight(&self.name(path, "weight"), rows, cols)?.with_compute(self.compute))
    }

    fn name(&self, path: &str, parameter: &str) -> String {
        let name = format!("{path}.{parameter}");
        self.checkpoint.stored_name(&name, self.config.tie_word_embeddings).unwrap_or(&name).to_owned()
    }
}

#[cfg(test)]
mod tests;
