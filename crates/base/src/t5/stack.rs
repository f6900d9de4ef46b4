//! A stack of T5's blocks: the encoder or the decoder.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result as Tensors, Tensor};
use taper_kernels::{Activation, AttentionShape, DistanceBias};

use super::T5Config;
use crate::parts::Parts;
use crate::pass::Pass;
use crate::{Adapter, Error, Linear, Module, RmsNorm};

/// What a decoder's rows attend to of what was read.
pub(super) struct Sources {
    /// Keys and values `(M, H·E)` in each block.
    pub(super) layers: Vec<(Tensor, Tensor)>,
    /// Rows of each source among the M.
    pub(super) segments: Arc<[Range<usize>]>,
}

/// Blocks one after the other, and a norm. Those of a decoder attend to sources, too.
#[derive(Debug)]
pub(super) struct Stack {
    blocks: Vec<Block>,
    /// Of every block: the first one holds its table.
    bias: Arc<DistanceBias>,
    norm: RmsNorm,
    /// Of what rows attend to in their own stack.
    shape: AttentionShape,
}

#[derive(Debug)]
struct Block {
    own: Attention,
    /// To the sources.
    across: Option<Attention>,
    feed: Feed,
}

#[derive(Debug)]
struct Attention {
    norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
}

#[derive(Debug)]
struct Feed {
    norm: RmsNorm,
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl Stack {
    /// The stack `name`, `encoder` or `decoder`, of the body whose paths begin with `prefix`.
    pub(super) fn load(
        config: &T5Config,
        parts: Parts<'_>,
        (prefix, name): (&str, &str),
        layers: usize,
    ) -> Result<Self, Error> {
        let (sizes, causal) = (&config.sizes, name == "decoder");
        let path = format!("{prefix}{name}");
        let heads = sizes.num_attention_heads;
        let table = parts.table(
            &format!("{path}.block.0.layer.0.SelfAttention.relative_attention_bias"),
            (config.buckets.count, heads),
        )?;
        let block = |i| Block::load(config, parts, &format!("{path}.block.{i}.layer"), causal);
        Ok(Self {
            blocks: (0..layers).map(block).collect::<Result<_, Error>>()?,
            bias: Arc::new(config.buckets.bias(&table, !causal)?),
            norm: parts.rms_norm(&format!("{path}.final_layer_norm"), sizes.hidden_size, config.eps)?,
            shape: AttentionShape {
                heads,
                kv_heads: heads,
                head_dim: sizes.head_dim,
                scale: 1.0,
                causal,
                window: None,
                cap: None,
                compute: parts.compute,
            },
        })
    }

    /// `x` `(N, D)` to `(N, D)`. A decoder's rows attend to `sources` or, with caches, to those that the caches hold.
    pub(super) fn forward(
        &self,
        mut x: Tensor,
        sources: Option<&Sources>,
        pass: &mut Pass<'_, '_>,
    ) -> Tensors<Tensor> {
        let adapter = pass.adapter;
        for (layer, block) in self.blocks.iter().enumerate() {
            let Attention { norm, q, k, v, o } = &block.own;
            let h = norm.forward(&x, adapter)?;
            let [q, k, v] = [q, k, v].map(|part| part.forward(&h, adapter));
            let attended = pass.attend_biased(layer, (&q?, &k?, &v?), (self.shape, Some(&self.bias)))?;
            x = (x + o.forward(&attended, adapter)?)?;
            if let Some(across) = &block.across {
                let q = across.q.forward(&across.norm.forward(&x, adapter)?, adapter)?;
                let attended = self.attend_sources(layer, &q, sources, pass)?;
                x = (x + across.o.forward(&attended, adapter)?)?;
            }
            x = (&x + block.feed.forward(&x, adapter)?)?;
        }
        self.norm.forward(&x, adapter)
    }

    fn attend_sources(
        &self,
        layer: usize,
        q: &Tensor,
        sources: Option<&Sources>,
        pass: &Pass<'_, '_>,
    ) -> Tensors<Tensor> {
        let shape = AttentionShape { causal: false, ..self.shape };
        match sources {
            Some(Sources { layers, segments }) if pass.caches.is_empty() => {
                let (k, v) = &layers[layer];
                taper_kernels::attention_across(q, k, v, [&pass.segments, segments], shape)
            }
            _ => pass.attend_source(layer, q, shape),
        }
    }

    /// The keys and values that each block makes of the encoder's `rows` `(M, D)`.
    pub(super) fn keys_of_sources(
        &self,
        rows: &Tensor,
        adapter: &dyn Adapter,
    ) -> Tensors<Vec<(Tensor, Tensor)>> {
        let across = self.blocks.iter().filter_map(|block| block.across.as_ref());
        across.map(|part| Ok((part.k.forward(rows, adapter)?, part.v.forward(rows, adapter)?))).collect()
    }

    /// Its modules, in their order in the checkpoint.
    pub(super) fn modules(&self) -> impl Iterator<Item = Module<'_>> {
        self.blocks.iter().flat_map(Block::modules).chain([Module::Norm(&self.norm)])
    }
}

impl Block {
    fn load(config: &T5Config, parts: Parts<'_>, path: &str, across: bool) -> Result<Self, Error> {
        let attention = |name: &str| Attention::load(config, parts, path, name);
        Ok(Self {
            own: attention("0.SelfAttention")?,
            across: across.then(|| attention("1.EncDecAttention")).transpose()?,
            feed: Feed::load(config, parts, &format!("{path}.{}", if across { 2 } else { 1 }))?,
        })
    }

    fn modules(&self) -> Vec<Module<'_>> {
        let mut modules = Vec::new();
        for Attention { norm, q, k, v, o } in [&self.own].into_iter().chain(&self.across) {
            modules.extend([q, k, v, o].map(Module::Linear));
            modules.push(Module::Norm(norm));
        }
        let Feed { norm, gate, up, down, .. } = &self.feed;
        modules.extend(gate.iter().chain([up, down]).map(Module::Linear));
        modules.push(Module::Norm(norm));
        modules
    }
}

impl Attention {
    /// The layers `name`, `0.SelfAttention` say, of the block at `path`.
    fn load(config: &T5Config, parts: Parts<'_>, path: &str, name: &str) -> Result<Self, Error> {
        let (hidden, inner) = (config.sizes.hidden_size, config.sizes.query_width());
        let linear = |part: &str, dims| parts.linear(&format!("{path}.{name}.{part}"), dims, false);
        let number = name.split_once('.').map_or(name, |(number, _)| number);
        Ok(Self {
            norm: parts.rms_norm(&format!("{path}.{number}.layer_norm"), hidden, config.eps)?,
            q: linear("q", (hidden, inner))?,
            k: linear("k", (hidden, inner))?,
            v: linear("v", (hidden, inner))?,
            o: linear("o", (inner, hidden))?,
        })
    }
}

impl Feed {
    fn load(config: &T5Config, parts: Parts<'_>, path: &str) -> Result<Self, Error> {
        let (hidden, inner) = (config.sizes.hidden_size, config.sizes.intermediate_size);
        let linear = |name: &str, dims| parts.linear(&format!("{path}.DenseReluDense.{name}"), dims, false);
        let gate = config.gated.then(|| linear("wi_0", (hidden, inner))).transpose()?;
        Ok(Self {
            norm: parts.rms_norm(&format!("{path}.layer_norm"), hidden, config.eps)?,
            up: linear(if gate.is_some() { "wi_1" } else { "wi" }, (hidden, inner))?,
            gate,
            down: linear("wo", (inner, hidden))?,
            activation: config.activation,
        })
    }

    fn forward(&self, x: &Tensor, adapter: &dyn Adapter) -> Tensors<Tensor> {
        let h = self.norm.forward(x, adapter)?;
        let up = self.up.forward(&h, adapter)?;
        let fed = match &self.gate {
            None => taper_kernels::activate(&up, self.activation)?,
            Some(gate) => taper_kernels::gated(&gate.forward(&h, adapter)?, &up, self.activation)?,
        };
        self.down.forward(&fed, adapter)
    }
}
