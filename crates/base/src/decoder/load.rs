//! Finds a decoder's parts in its checkpoint.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use taper_kernels::{AttentionShape, Compute, Projection};

use super::{Attention, Block, Decoder, DecoderConfig, LayerFacts, Mlp, projections};
use crate::{Checkpoint, Embedding, Error, Linear, RmsNorm};

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
        let (vocab, hidden) = (config.sizes.vocab_size, config.sizes.hidden_size);
        let embed_tokens = Embedding {
            path: "model.embed_tokens".into(),
            weight: loader.weight("model.embed_tokens", vocab, hidden)?,
        };
        let blocks = (0..config.sizes.num_hidden_layers)
            .map(|i| loader.block(i))
            .collect::<std::result::Result<_, _>>()?;
        let norm = loader.norm("model.norm", hidden)?;
        let lm_head = loader.linear("lm_head", (hidden, vocab), false)?;
        Ok(Self { config, embed_tokens, blocks, norm, lm_head })
    }
}

impl Loader<'_> {
    fn block(&self, i: usize) -> std::result::Result<Block, Error> {
        let path = format!("model.layers.{i}");
        let hidden = self.config.sizes.hidden_size;
        let input_layernorm = self.norm(&format!("{path}.input_layernorm"), hidden)?;
        let attention = self.attention(&format!("{path}.self_attn"), self.config.layers[i])?;
        let post_attention_layernorm = self.norm(&format!("{path}.post_attention_layernorm"), hidden)?;
        let mlp = self.mlp(&format!("{path}.mlp"))?;
        let norms = [&input_layernorm, &post_attention_layernorm];
        let fused = Arc::new(self.fused(norms, &attention, &mlp)?);
        Ok(Block { input_layernorm, attention, post_attention_layernorm, mlp, fused })
    }

    fn fused(
        &self,
        [input, middle]: [&RmsNorm; 2],
        attention: &Attention,
        mlp: &Mlp,
    ) -> std::result::Result<taper_kernels::Block, Error> {
        let values = |tensor: &Tensor| tensor.to_vec1::<f32>();
        let projection = |layer: &Linear| -> Result<Projection> {
            let bias = layer.bias.as_ref().map(values).transpose()?;
            Ok(Projection { weight: layer.weight.clone(), bias })
        };
        let [q, k, v, o, gate, up, down] = projections(attention, mlp).map(projection);
        let head_gains = match &attention.qk_norm {
            None => None,
            Some((q, k)) => Some([values(&q.gain)?, values(&k.gain)?]),
        };
        Ok(taper_kernels::Block {
            projections: [q?, k?, v?, o?, gate?, up?, down?],
            gains: [values(&input.gain)?, values(&middle.gain)?],
            head_gains,
            eps: self.config.rms_norm_eps as f32,
            shape: attention.shape,
            rotates: attention.rope,
        })
    }

    fn attention(&self, path: &str, facts: LayerFacts) -> std::result::Result<Attention, Error> {
        let (c, sizes) = (self.config, &self.config.sizes);
        let (hidden, q, kv) = (sizes.hidden_size, sizes.query_width(), sizes.key_width());
        let norms = || -> std::result::Result<_, Error> {
            Ok((
                self.norm(&format!("{path}.q_norm"), sizes.head_dim)?,
                self.norm(&format!("{path}.k_norm"), sizes.head_dim)?,
            ))
        };
        Ok(Attention {
            q_proj: self.linear(&format!("{path}.q_proj"), (hidden, q), c.qkv_bias)?,
            k_proj: self.linear(&format!("{path}.k_proj"), (hidden, kv), c.qkv_bias)?,
            v_proj: self.linear(&format!("{path}.v_proj"), (hidden, kv), c.qkv_bias)?,
            o_proj: self.linear(&format!("{path}.o_proj"), (q, hidden), c.o_bias)?,
            qk_norm: c.qk_norm.then(norms).transpose()?,
            shape: AttentionShape {
                heads: sizes.num_attention_heads,
                kv_heads: sizes.num_key_value_heads,
                head_dim: sizes.head_dim,
                scale: 1.0 / (sizes.head_dim as f32).sqrt(),
                window: facts.window,
            },
            rope: facts.rope,
        })
    }

    fn mlp(&self, path: &str) -> std::result::Result<Mlp, Error> {
        let c = self.config;
        let (hidden, inner) = (c.sizes.hidden_size, c.sizes.intermediate_size);
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
        Ok(RmsNorm::new(path, gain, self.config.rms_norm_eps))
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
        self.checkpoint.stored_name(&name, self.config.sizes.tie_word_embeddings).unwrap_or(&name).to_owned()
    }
}
