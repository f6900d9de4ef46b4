//! Finds a decoder's parts in its checkpoint.

use std::sync::Arc;

use candle_core::Result as Tensors;
use taper_kernels::{AttentionShape, Compute, Joined, Norms, Order};

use super::{
    Attention, Block, Decoder, DecoderConfig, GateUp, LayerFacts, Mlp, Projections, Qkv, projections,
};
use crate::parts::Parts;
use crate::whole;
use crate::{Checkpoint, Error, Head, RmsNorm};

/// Finds the weights that a [`DecoderConfig`] calls for.
struct Loader<'a> {
    config: &'a DecoderConfig,
    parts: Parts<'a>,
}

impl Decoder {
    /// Finds every weight that `config` calls for; nothing is copied but norms and biases.
    pub(crate) fn load(
        config: DecoderConfig,
        checkpoint: &Checkpoint,
        compute: Compute,
    ) -> Result<Self, Error> {
        let parts = Parts { checkpoint, compute, tied: config.sizes.tie_word_embeddings };
        let loader = Loader { config: &config, parts };
        let (vocab, hidden) = (config.sizes.vocab_size, config.sizes.hidden_size);
        let embed_tokens = parts.embedding(&format!("{}.embed_tokens", config.body), (vocab, hidden))?;
        let blocks =
            (0..config.sizes.num_hidden_layers).map(|i| loader.block(i)).collect::<Result<_, Error>>()?;
        let norm = loader.norm(&format!("{}.norm", config.body), hidden)?;
        let head =
            Head { linear: parts.linear("lm_head", (hidden, vocab), false)?, soft_cap: config.logit_cap };
        Ok(Self { config, embed_tokens, blocks, norm, head })
    }
}

impl Loader<'_> {
    fn block(&self, i: usize) -> Result<Block, Error> {
        let path = format!("{}.layers.{i}", self.config.body);
        let norm = |name: &str| self.norm(&format!("{path}.{name}"), self.config.sizes.hidden_size);
        let attention_norm = norm("input_layernorm")?;
        let (mlp_norm, post_norms) = if self.config.post_norms {
            let after = [norm("post_attention_layernorm")?, norm("post_feedforward_layernorm")?];
            (norm("pre_feedforward_layernorm")?, Some(after))
        } else {
            (norm("post_attention_layernorm")?, None)
        };
        let attention = self.attention(&format!("{path}.self_attn"), self.config.layers[i])?;
        let mlp = self.mlp(&format!("{path}.mlp"))?;
        let fused =
            Arc::new(self.fused(([&attention_norm, &mlp_norm], post_norms.as_ref()), &attention, &mlp)?);
        Ok(Block { attention_norm, attention, mlp_norm, mlp, post_norms, fused })
    }

    /// The block as one operation.
    fn fused(
        &self,
        (before, after): ([&RmsNorm; 2], Option<&[RmsNorm; 2]>),
        attention: &Attention,
        mlp: &Mlp,
    ) -> Tensors<taper_kernels::Block> {
        let both = |[a, b]: [&RmsNorm; 2]| -> Tensors<_> { Ok([whole::rms_norm(a)?, whole::rms_norm(b)?]) };
        let of_heads = |(q, k): &(RmsNorm, RmsNorm)| both([q, k]);
        let joined = self.config.projections == Projections::Fused;
        Ok(taper_kernels::Block {
            projections: projections(attention, mlp)
                .into_iter()
                .map(whole::projection)
                .collect::<Tensors<_>>()?,
            joined: Joined { qkv: joined.then_some(Order::Whole), gate_up: joined },
            norms: match after {
                None => Norms::Before(both(before)?),
                Some(after) => Norms::Around(both(before)?, both(after.each_ref())?),
            },
            head_norms: attention.qk_norm.as_ref().map(of_heads).transpose()?,
            activation: mlp.activation,
            shape: attention.shape,
            rotates: attention.rope.is_some(),
        })
    }

    fn attention(&self, path: &str, facts: LayerFacts) -> Result<Attention, Error> {
        let (c, sizes) = (self.config, &self.config.sizes);
        let (hidden, q, kv) = (sizes.hidden_size, sizes.query_width(), sizes.key_width());
        let linear = |name: &str, dims, bias| self.parts.linear(&format!("{path}.{name}"), dims, bias);
        let norm = |name: &str| self.norm(&format!("{path}.{name}"), sizes.head_dim);
        let norms = || -> Result<_, Error> { Ok((norm("q_norm")?, norm("k_norm")?)) };
        Ok(Attention {
            qkv: match c.projections {
                Projections::Fused => Qkv::Fused(linear("qkv_proj", (hidden, q + 2 * kv), c.qkv_bias)?),
                Projections::Apart => Qkv::Apart([
                    linear("q_proj", (hidden, q), c.qkv_bias)?,
                    linear("k_proj", (hidden, kv), c.qkv_bias)?,
                    linear("v_proj", (hidden, kv), c.qkv_bias)?,
                ]),
            },
            o_proj: linear("o_proj", (q, hidden), c.o_bias)?,
            qk_norm: c.qk_norm.then(norms).transpose()?,
            shape: AttentionShape {
                heads: sizes.num_attention_heads,
                kv_heads: sizes.num_key_value_heads,
                head_dim: sizes.head_dim,
                scale: c.attention_scale,
                causal: true,
                window: facts.window,
                cap: c.attention_cap,
                compute: self.parts.compute,
            },
            rope: facts.rope,
        })
    }

    fn mlp(&self, path: &str) -> Result<Mlp, Error> {
        let c = self.config;
        let (hidden, inner) = (c.sizes.hidden_size, c.sizes.intermediate_size);
        let linear = |name: &str, dims| self.parts.linear(&format!("{path}.{name}"), dims, c.mlp_bias);
        Ok(Mlp {
            gate_up: match c.projections {
                Projections::Fused => GateUp::Fused(linear("gate_up_proj", (hidden, 2 * inner))?),
                Projections::Apart => GateUp::Apart([
                    linear("gate_proj", (hidden, inner))?,
                    linear("up_proj", (hidden, inner))?,
                ]),
            },
            down_proj: linear("down_proj", (inner, hidden))?,
            activation: c.activation,
        })
    }

    fn norm(&self, path: &str, size: usize) -> Result<RmsNorm, Error> {
        let gain = self.parts.vector(path, "weight", size)?;
        Ok(RmsNorm::new(path, gain, self.config.rms_norm_eps).with_offset(self.config.norm_offset))
    }
}
