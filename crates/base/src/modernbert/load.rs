//! Finds `ModernBERT`'s parts in its checkpoint.

use std::sync::Arc;

use candle_core::{DType, Device, Result as Tensors, Tensor};
use taper_kernels::{AttentionShape, Compute, Joined, Norms, Order};

use super::{Block, ModernBert, ModernBertConfig, Top};
use crate::network::{Fresh, head_linear, needs_labels};
use crate::parts::Parts;
use crate::whole::{self, Whole};
use crate::{Checkpoint, Error, Head, Labels, LayerNorm, Task};

/// The layer that labels, and its name in `modules_to_save`.
const CLASSIFIER: &str = "classifier";

/// What stands before it, as one name in `modules_to_save`, and its parts.
const HEAD: &str = "head";
const DENSE: &str = "head.dense";
const NORM: &str = "head.norm";

struct Loader<'a> {
    config: &'a ModernBertConfig,
    parts: Parts<'a>,
}

impl ModernBert {
    /// Finds every weight that `config` and the task's head call for. The layer that labels is the files' where `own_head`
    /// says that it is for the same labels, what stands before it wherever they have it; else they are fresh.
    pub(crate) fn load(
        config: ModernBertConfig,
        checkpoint: &Checkpoint,
        compute: Compute,
        (task, own_head): (&Task, bool),
    ) -> Result<Self, Error> {
        let loader = Loader { config: &config, parts: Parts { checkpoint, compute, tied: false } };
        let sizes = &config.sizes;
        let embedding = loader
            .parts
            .embedding("model.embeddings.tok_embeddings", (sizes.vocab_size, sizes.hidden_size))?;
        let embedding_norm = loader.norm("model.embeddings.norm")?;
        let blocks = (0..sizes.num_hidden_layers).map(|i| loader.block(i)).collect::<Result<_, _>>()?;
        let norm = loader.norm("model.final_norm")?;
        // After the blocks, which hold config.json's sizes against the files': a fresh head is allocated by them.
        let mut fresh = Vec::new();
        let top = loader.top(task, own_head, &mut fresh)?;
        Ok(Self { config, embedding, embedding_norm, blocks, norm, top, fresh })
    }
}

impl Loader<'_> {
    fn block(&self, i: usize) -> Result<Block, Error> {
        let (c, sizes) = (self.config, &self.config.sizes);
        let (hidden, inner) = (sizes.hidden_size, sizes.intermediate_size);
        let path = |name: &str| format!("model.layers.{i}.{name}");
        let linear = |name: &str, dims, bias| self.parts.linear(&path(name), dims, bias);
        let mut block = Block {
            attention_norm: (i > 0).then(|| self.norm(&path("attn_norm"))).transpose()?,
            qkv: linear("attn.Wqkv", (hidden, 3 * hidden), c.attention_bias)?,
            out: linear("attn.Wo", (hidden, hidden), c.attention_bias)?,
            mlp_norm: self.norm(&path("mlp_norm"))?,
            gate_up: linear("mlp.Wi", (hidden, 2 * inner), c.mlp_bias)?,
            down: linear("mlp.Wo", (inner, hidden), c.mlp_bias)?,
            activation: c.activation,
            shape: AttentionShape {
                heads: sizes.num_attention_heads,
                kv_heads: sizes.num_attention_heads,
                head_dim: sizes.head_dim,
                scale: 1.0 / (sizes.head_dim as f32).sqrt(),
                causal: false,
                window: c.layers[i].window,
                cap: None,
                compute: self.parts.compute,
            },
            rope: c.layers[i].rope,
            fused: None,
        };
        block.fused = fused(&block)?.map(Arc::new);
        Ok(block)
    }

    fn top(&self, task: &Task, own_head: bool, fresh: &mut Vec<Fresh>) -> Result<Top, Error> {
        let (c, hidden) = (self.config, self.config.sizes.hidden_size);
        let pooling = match task {
            Task::CausalLm => return Err(needs_labels()),
            Task::Classify(_) => Some(c.pooling),
            Task::Tag(_) => None,
        };
        // `_init_weights`: `final_out`, `out`.
        let layers = c.sizes.num_hidden_layers as f64;
        let (of_labels, of_dense) =
            (1.0 / (hidden as f64).sqrt(), c.initializer_range / (2.0 * layers).sqrt());
        let Parts { checkpoint, compute, .. } = self.parts;
        let outputs = task.labels().map_or(0, Labels::outputs);
        let labels = (Some(checkpoint).filter(|_| own_head), compute);
        let head = head_linear(labels, CLASSIFIER, (hidden, outputs), true, (of_labels, fresh))?;
        let dense = (Some(checkpoint), compute);
        let dense = head_linear(dense, DENSE, (hidden, hidden), c.head_bias, (of_dense, fresh))?;
        let norm = self.head_norm(fresh)?;
        let lacks_head = fresh.iter().any(|fresh| [DENSE, NORM].contains(&fresh.path.as_str()));
        let modules = if lacks_head { vec![HEAD, CLASSIFIER] } else { vec![CLASSIFIER] };
        Ok(Top { pooling, dense, activation: c.head_activation, norm, head: Head::from(head), modules })
    }

    /// The files', or one that changes no scale.
    fn head_norm(&self, fresh: &mut Vec<Fresh>) -> Result<LayerNorm, Error> {
        if self.parts.checkpoint.stored_name(&format!("{NORM}.weight"), false).is_some() {
            return self.norm(NORM);
        }
        fresh.push(Fresh { path: NORM.to_owned(), deviation: 0.0 });
        let size = self.config.sizes.hidden_size;
        let gain = Tensor::ones(size, DType::F32, &Device::Cpu)?;
        let bias =
            self.config.norm_bias.then(|| Tensor::zeros(size, DType::F32, &Device::Cpu)).transpose()?;
        Ok(LayerNorm::new(NORM, gain, bias, self.config.eps))
    }

    fn norm(&self, path: &str) -> Result<LayerNorm, Error> {
        let c = self.config;
        self.parts.layer_norm(path, c.sizes.hidden_size, c.eps, c.norm_bias)
    }
}

/// The block as one operation, if it has both norms.
fn fused(block: &Block) -> Tensors<Option<taper_kernels::Block>> {
    let Some(attention_norm) = &block.attention_norm else { return Ok(None) };
    Ok(Some(taper_kernels::Block {
        projections: block.layers().into_iter().map(whole::projection).collect::<Tensors<_>>()?,
        joined: Joined { qkv: Some(Order::Whole), gate_up: true },
        norms: Norms::Before([whole::layer_norm(attention_norm)?, whole::layer_norm(&block.mlp_norm)?]),
        head_norms: None,
        activation: block.activation,
        shape: block.shape,
        rotates: block.rope.is_some(),
    }))
}
