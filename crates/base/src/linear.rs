//! The frozen parts of a base, and the one seam at which an adapter meets them.

use candle_core::{Result, Tensor};
use taper_kernels::{Adapted, Gradients, Labelled, Scoring, Weight};

use crate::{Head, LayerNorm, RmsNorm};

/// What an adapter does to the frozen parts of a base. `()` does nothing.
///
/// `lora` implements it; no model file knows how. Every method has the frozen layer's own behaviour as its default.
pub trait Adapter: Send + Sync {
    /// `x` `(N, in)` to `(N, out)`, bias included. One call, so that the base product, the low-rank term and the bias can be
    /// one fused operation.
    fn linear(&self, layer: &Linear, x: &Tensor) -> Result<Tensor> {
        layer.frozen(x)
    }

    /// What [`Adapter::linear`] does to `layer`, where a whole block can take it over in one operation. It must say the
    /// truth: where it does not say [`Effect::Other`], `linear` may not be asked.
    fn effect(&self, layer: &Linear) -> Result<Effect<'_>> {
        let _ = layer;
        Ok(Effect::Other)
    }

    /// How many of the blocks, the first ones, need to keep nothing but their input for the backward pass, which then runs
    /// them forward again. The result is the same. A base does so where a block is one operation.
    fn recomputed_blocks(&self) -> usize {
        0
    }

    /// Where a block that is one operation leaves the gradients of low-rank factors. Without it, blocks whose factors are
    /// tracked run in their single operations, and candle's store has all gradients.
    fn gradients(&self) -> Option<&Gradients> {
        None
    }

    /// Token ids to rows `(N, D)`.
    fn embedding(&self, layer: &Embedding, ids: &[u32]) -> Result<Tensor> {
        layer.frozen(ids)
    }

    /// A norm's parameter that is trained whole: its value, or none for the frozen one. Layers and tables are not asked for here.
    fn param(&self, path: &str) -> Option<&Tensor> {
        let _ = path;
        None
    }

    /// Summed cross-entropy of the head's output on the labelled rows of `hidden` `(N, D)`, scored as `scoring` says:
    /// `linear`, then the loss, without the logits of a whole batch.
    fn cross_entropy(
        &self,
        head: &Head,
        hidden: &Tensor,
        labelled: &Labelled,
        scoring: Scoring<'_>,
    ) -> Result<Tensor> {
        taper_kernels::linear_cross_entropy(hidden, head.weight(), None, labelled, scoring)
    }

    /// The loss of each labelled row in nats, neither smoothed nor weighted, without gradients.
    fn nll(&self, head: &Head, hidden: &Tensor, labelled: &Labelled) -> Result<Vec<f32>> {
        taper_kernels::linear_nll(hidden, head.weight(), None, labelled)
    }
}

/// The bare base.
impl Adapter for () {
    fn effect(&self, _: &Linear) -> Result<Effect<'_>> {
        Ok(Effect::Frozen)
    }
}

/// What an adapter does to a linear layer.
#[derive(Clone, Debug)]
pub enum Effect<'a> {
    /// Nothing.
    Frozen,
    /// A low-rank term beside the frozen layer, with the dropout of this pass, and perhaps a gain; nothing else.
    Adapted(Adapted<'a>),
    /// Something that only [`Adapter::linear`] knows.
    Other,
}

/// A frozen `y = x Wᵀ + b`, named by its path in the checkpoint (`model.layers.0.self_attn.q_proj`).
#[derive(Clone, Debug)]
pub struct Linear {
    /// Module path.
    pub path: String,
    /// `W` `(out, in)`.
    pub weight: Weight,
    /// `b` `(out,)`.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// The layer as `adapter` has it: `x` `(N, in)` to `(N, out)`.
    pub fn forward(&self, x: &Tensor, adapter: &dyn Adapter) -> Result<Tensor> {
        adapter.linear(self, x)
    }

    /// The layer by itself.
    pub fn frozen(&self, x: &Tensor) -> Result<Tensor> {
        taper_kernels::linear(x, &self.weight, self.bias.as_ref(), None)
    }

    /// Input size.
    pub fn in_features(&self) -> usize {
        self.weight.cols()
    }

    /// Output size.
    pub fn out_features(&self) -> usize {
        self.weight.rows()
    }
}

/// A frozen table of token or position vectors `(V, D)`.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// Module path.
    pub path: String,
    /// `(V, D)`.
    pub weight: Weight,
}

impl Embedding {
    /// The table as `adapter` has it: ids to rows `(N, D)`.
    pub fn forward(&self, ids: &[u32], adapter: &dyn Adapter) -> Result<Tensor> {
        adapter.embedding(self, ids)
    }

    /// The table by itself. An id outside it is an error.
    pub fn frozen(&self, ids: &[u32]) -> Result<Tensor> {
        let dim = self.weight.cols();
        let mut rows = vec![0f32; ids.len() * dim];
        for (&id, row) in ids.iter().zip(rows.chunks_exact_mut(dim)) {
            if id as usize >= self.weight.rows() {
                candle_core::bail!(
                    "token id {id} is outside the vocabulary of {} tokens",
                    self.weight.rows()
                );
            }
            self.weight.read_row(id as usize, row);
        }
        Tensor::from_vec(rows, (ids.len(), dim), &candle_core::Device::Cpu)
    }
}

/// A module of a base that an adapter may name.
#[derive(Clone, Copy, Debug)]
pub enum Module<'a> {
    /// A linear layer.
    Linear(&'a Linear),
    /// A table of token or position vectors.
    Embedding(&'a Embedding),
    /// An RMS norm.
    Norm(&'a RmsNorm),
    /// A layer norm.
    LayerNorm(&'a LayerNorm),
}

impl<'a> Module<'a> {
    /// Path in the checkpoint.
    pub fn path(self) -> &'a str {
        match self {
            Self::Linear(layer) => &layer.path,
            Self::Embedding(layer) => &layer.path,
            Self::Norm(norm) => &norm.path,
            Self::LayerNorm(norm) => &norm.path,
        }
    }

    /// Its bias, if it has one.
    pub fn bias(self) -> Option<&'a Tensor> {
        match self {
            Self::Linear(layer) => layer.bias.as_ref(),
            Self::LayerNorm(norm) => norm.bias.as_ref(),
            Self::Embedding(_) | Self::Norm(_) => None,
        }
    }

    /// A norm's parameters `(D,)` by their path in the checkpoint: those that [`Adapter::param`] is asked for.
    pub fn params(self) -> Vec<(&'a str, &'a Tensor)> {
        match self {
            Self::Linear(_) | Self::Embedding(_) => Vec::new(),
            Self::Norm(norm) => vec![(&norm.gain_path, &norm.gain)],
            Self::LayerNorm(norm) => {
                let bias = norm.bias.iter().map(|bias| (norm.bias_path.as_str(), bias));
                [(norm.gain_path.as_str(), &norm.gain)].into_iter().chain(bias).collect()
            }
        }
    }
}
