//! The decoder that GPT-2 and GPT-NeoX share: layer norms, biases, one projection for q, k and v, no gates.

use std::sync::Arc;

use candle_core::{Result as Tensors, Tensor};
use taper_kernels::{Activation, AttentionShape, Columns, Compute, Joined, Norms, Order, RopeTable, columns};

use crate::parts::Parts;
use crate::pass::{Pass, with_caches};
use crate::rope::Rope;
use crate::whole::{self, Whole, through};
use crate::{
    Adapter, Batch, Checkpoint, Embedding, Error, Head, Kept, KvCache, LayerNorm, Linear, Module, Network,
    Sizes,
};

/// The facts by which GPT-type models differ, in the terms of config.json.
#[derive(Clone, Debug)]
pub(crate) struct GptConfig {
    /// Its sizes.
    pub(crate) sizes: Sizes,
    /// What its modules are called.
    pub(crate) names: Names,
    /// Added to the variance in every norm.
    pub(crate) eps: f64,
    /// Of the feed-forward layers.
    pub(crate) activation: Activation,
    /// How it knows the places of tokens.
    pub(crate) positions: Positions,
    /// Where q, k and v lie in their projection.
    pub(crate) order: Order,
    /// Whether layers are stored `(in, out)`.
    pub(crate) conv1d: bool,
    /// Whether attention's layers have biases.
    pub(crate) attention_bias: bool,
    /// Whether a block's feed-forward layer reads what its attention reads, and not what it gives.
    pub(crate) parallel: bool,
    /// Factor on the attention scores of each block.
    pub(crate) scales: Vec<f32>,
}

/// Paths of modules, or their ends within a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    pub(crate) embedding: &'static str,
    pub(crate) blocks: &'static str,
    pub(crate) attention_norm: &'static str,
    pub(crate) qkv: &'static str,
    pub(crate) out: &'static str,
    pub(crate) mlp_norm: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    pub(crate) norm: &'static str,
    pub(crate) head: &'static str,
}

/// How a model knows the places of tokens.
#[derive(Clone, Debug)]
pub(crate) enum Positions {
    /// A vector for each, from the table at this path.
    Learned(&'static str),
    /// Heads rotated, whole or in part.
    Rotary(Rope),
}

/// A frozen GPT-type decoder.
#[derive(Debug)]
pub(crate) struct Gpt {
    config: GptConfig,
    embedding: Embedding,
    positions: Option<Embedding>,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Head,
}

#[derive(Debug)]
struct Block {
    attention_norm: LayerNorm,
    qkv: Linear,
    out: Linear,
    mlp_norm: LayerNorm,
    up: Linear,
    down: Linear,
    order: Order,
    rotates: bool,
    /// The same parts for one operation, with their facts.
    fused: Arc<taper_kernels::Block>,
}

impl Gpt {
    /// Finds every weight that `config` calls for; nothing is copied but norms and biases.
    pub(crate) fn load(config: GptConfig, checkpoint: &Checkpoint, compute: Compute) -> Result<Self, Error> {
        let (sizes, names) = (&config.sizes, &config.names);
        let parts = Parts { checkpoint, compute, tied: sizes.tie_word_embeddings };
        let (vocab, hidden) = (sizes.vocab_size, sizes.hidden_size);
        let positions = match config.positions {
            Positions::Learned(path) => Some(parts.embedding(path, (sizes.max_position_embeddings, hidden))?),
            Positions::Rotary(_) => None,
        };
        let blocks = (0..sizes.num_hidden_layers)
            .map(|i| Block::load(&config, parts, i))
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            embedding: parts.embedding(names.embedding, (vocab, hidden))?,
            positions,
            blocks,
            norm: parts.layer_norm(names.norm, hidden, config.eps, true)?,
            head: parts.linear(names.head, (hidden, vocab), false)?.into(),
            config,
        })
    }

    /// [`hidden`](Network::hidden) of a batch that begins where the caches' keys end.
    fn run(&self, batch: &Batch, caches: &mut [&mut KvCache], adapter: &dyn Adapter) -> Tensors<Tensor> {
        let mut pass = Pass { segments: batch.segments().into(), caches, adapter };
        let places = pass.positions();
        let mut x = self.embedding.forward(batch.tokens(), adapter)?;
        let mut ropes = Vec::new();
        match (&self.config.positions, &self.positions) {
            (Positions::Rotary(rope), _) => ropes.push(Arc::new(rope.table(&places))),
            (Positions::Learned(_), None) => {}
            (Positions::Learned(_), Some(table)) => {
                let places: Vec<u32> = places.into_iter().flatten().map(|place| place as u32).collect();
                let longest = table.weight.rows();
                if let Some(place) = places.iter().find(|place| **place as usize >= longest) {
                    candle_core::bail!(
                        "a sequence of at least {} tokens: this model knows {longest} places, cut it there",
                        place + 1
                    );
                }
                x = (x + table.forward(&places, adapter)?)?;
            }
        }
        self.norm.forward(&through(x, &self.blocks, &ropes, &mut pass)?, adapter)
    }
}

impl Network for Gpt {
    fn sizes(&self) -> &Sizes {
        &self.config.sizes
    }

    fn hidden(&self, batch: &Batch, caches: &mut [&mut KvCache], adapter: &dyn Adapter) -> Tensors<Tensor> {
        let turning = |len| match &self.config.positions {
            Positions::Learned(_) => 0,
            Positions::Rotary(rope) => rope.turning(len),
        };
        with_caches(batch, caches, turning, |batch, caches| self.run(batch, caches, adapter))
    }

    fn places(&self) -> Option<usize> {
        self.positions.as_ref().map(|table| table.weight.rows())
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn embedding(&self) -> &Embedding {
        &self.embedding
    }

    fn new_cache(&self) -> KvCache {
        let sizes = &self.config.sizes;
        KvCache::new(sizes.num_hidden_layers, (sizes.num_key_value_heads, sizes.head_dim))
    }

    /// Embeddings, blocks, final norm, head.
    fn modules(&self) -> Vec<Module<'_>> {
        let tables = [&self.embedding].into_iter().chain(&self.positions);
        let mut modules: Vec<_> = tables.map(Module::Embedding).collect();
        for block in &self.blocks {
            let Block { attention_norm, qkv, out, mlp_norm, up, down, .. } = block;
            modules.push(Module::LayerNorm(attention_norm));
            modules.extend([qkv, out].map(Module::Linear));
            modules.push(Module::LayerNorm(mlp_norm));
            modules.extend([up, down].map(Module::Linear));
        }
        modules.push(Module::LayerNorm(&self.norm));
        modules.push(Module::Linear(&self.head.linear));
        modules
    }

    /// With feed-forward width F, a block keeps
    ///
    /// - `6 D + F` as one operation (`taper-kernels`, `blocks`), `D + F` of them as they are read;
    /// - `13 D + 2 F` operation by operation: two norms, two projections back to D, two sums; q, k and v together, apart
    ///   and, where they are rotated, after that (2 D more), and what was attended; what is fed, before and after its
    ///   activation.
    fn kept_per_token(&self, whole_blocks: bool) -> Kept {
        let Sizes { hidden_size, intermediate_size, num_hidden_layers, .. } = self.config.sizes;
        let (rows, fed) = match self.config.positions {
            _ if whole_blocks => (6, 1),
            Positions::Learned(_) => (13, 2),
            Positions::Rotary(_) => (15, 2),
        };
        let read = if whole_blocks { hidden_size + intermediate_size } else { 0 };
        let values = rows * hidden_size + fed * intermediate_size;
        Kept { values: num_hidden_layers * values, read: num_hidden_layers * read }
    }
}

impl Whole for Block {
    fn fused(&self) -> Option<&Arc<taper_kernels::Block>> {
        Some(&self.fused)
    }

    fn layers(&self) -> Vec<&Linear> {
        vec![&self.qkv, &self.out, &self.up, &self.down]
    }

    fn norms(&self) -> Vec<Module<'_>> {
        [&self.attention_norm, &self.mlp_norm].map(Module::LayerNorm).into()
    }

    fn rope(&self) -> Option<usize> {
        self.rotates.then_some(0)
    }

    fn in_parts(
        &self,
        layer: usize,
        x: &Tensor,
        rope: Option<&Arc<RopeTable>>,
        pass: &mut Pass<'_, '_>,
    ) -> Tensors<Tensor> {
        let (adapter, shape) = (pass.adapter, self.fused.shape);
        let [mut q, mut k, v] = self.qkv(&self.attention_norm.forward(x, adapter)?, adapter)?;
        if let Some(rope) = rope {
            q = taper_kernels::rope(&q, rope, shape.head_dim)?;
            k = taper_kernels::rope(&k, rope, shape.head_dim)?;
        }
        let attended = self.out.forward(&pass.attend(layer, (&q, &k, &v), shape)?, adapter)?;
        let middle = (x + attended)?;
        let fed = if matches!(self.fused.norms, Norms::Parallel(_)) { x } else { &middle };
        let fed = self.up.forward(&self.mlp_norm.forward(fed, adapter)?, adapter)?;
        let fed = self.down.forward(&taper_kernels::activate(&fed, self.fused.activation)?, adapter)?;
        middle + fed
    }
}

impl Block {
    fn load(config: &GptConfig, parts: Parts<'_>, i: usize) -> Result<Self, Error> {
        let (sizes, names) = (&config.sizes, &config.names);
        let (hidden, inner) = (sizes.hidden_size, sizes.intermediate_size);
        let path = |name: &str| format!("{}.{i}.{name}", names.blocks);
        let linear = |name: &str, dims, bias| {
            let path = path(name);
            if config.conv1d { parts.conv1d(&path, dims, bias) } else { parts.linear(&path, dims, bias) }
        };
        let norm = |name: &str| parts.layer_norm(&path(name), hidden, config.eps, true);
        let [attention_norm, mlp_norm] = [norm(names.attention_norm)?, norm(names.mlp_norm)?];
        let [qkv, out, up, down] = [
            linear(names.qkv, (hidden, 3 * hidden), config.attention_bias)?,
            linear(names.out, (hidden, hidden), config.attention_bias)?,
            linear(names.up, (hidden, inner), true)?,
            linear(names.down, (inner, hidden), true)?,
        ];
        let norms = [whole::layer_norm(&attention_norm)?, whole::layer_norm(&mlp_norm)?];
        let rotates = matches!(config.positions, Positions::Rotary(_));
        let fused = taper_kernels::Block {
            projections: [&qkv, &out, &up, &down]
                .into_iter()
                .map(whole::projection)
                .collect::<Tensors<_>>()?,
            joined: Joined { qkv: Some(config.order), gate_up: false },
            norms: if config.parallel { Norms::Parallel(norms) } else { Norms::Before(norms) },
            head_norms: None,
            activation: config.activation,
            shape: AttentionShape {
                heads: sizes.num_attention_heads,
                kv_heads: sizes.num_attention_heads,
                head_dim: sizes.head_dim,
                scale: config.scales[i],
                causal: true,
                window: None,
                cap: None,
                compute: parts.compute,
            },
            rotates,
        };
        let (order, fused) = (config.order, Arc::new(fused));
        Ok(Self { attention_norm, qkv, out, mlp_norm, up, down, order, rotates, fused })
    }

    /// q, k and v `(N, D)`, their heads side by side.
    fn qkv(&self, x: &Tensor, adapter: &dyn Adapter) -> Tensors<[Tensor; 3]> {
        let all = self.qkv.forward(x, adapter)?;
        let AttentionShape { heads, head_dim, .. } = self.fused.shape;
        let width = match self.order {
            Order::Whole => heads * head_dim,
            Order::ByHead => head_dim,
        };
        let part = |i: usize| columns(&all, Columns { start: i * width, width, stride: 3 * width });
        Ok([part(0)?, part(1)?, part(2)?])
    }
}
