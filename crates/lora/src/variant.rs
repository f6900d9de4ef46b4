//! What a way of adapting a linear layer has to offer.

use std::ops::Range;

use candle_core::{Result, Tensor};
use taper_base::Linear;
use taper_kernels::{Adapted, Dropout};

/// One way of adapting a linear layer by low-rank factors.
///
/// Law, checked for every variant: `forward(layer, b, x)` is `x merge(W)ᵀ + bias(b)`.
pub(crate) trait Variant: Send + Sync + std::fmt::Debug {
    /// `x` `(N, in)` to `(N, out)`, bias included: the layer's frozen one, or the one trained in its place.
    fn forward(
        &self,
        layer: &Linear,
        bias: Option<&Tensor>,
        x: &Tensor,
        dropout: Option<Dropout>,
    ) -> Result<Tensor>;

    /// Rows `rows` of `W` `(out, in)` into those of the weight that replaces it, f32.
    fn merge_rows(&self, rows: Range<usize>, weight: &mut [f32]) -> Result<()>;

    /// What is added to the layer's bias `(out,)`.
    fn bias(&self) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// The variant as a low-rank term and perhaps a gain, where it is nothing else: then a block of the model, or the loss of
    /// its head, can be one fused operation.
    fn adapted(&self, layer: &Linear, dropout: Option<Dropout>) -> Result<Option<Adapted<'_>>> {
        let _ = (layer, dropout);
        Ok(None)
    }

    /// The variant's own tensors.
    fn tensors(&self) -> Vec<&Tensor>;

    /// Rows of `W`.
    fn outputs(&self) -> usize;

    /// Columns of `W`.
    fn inputs(&self) -> usize;

    /// R.
    fn rank(&self) -> usize;

    /// The same variant as `view` has it, sharing the values. It may keep what it computes from them.
    fn seen(&self, view: View) -> Box<dyn Variant>;
}

/// How passes see an adapter between which no parameter changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    /// Whether gradients reach the parameters.
    pub(crate) tracked: bool,
}

impl View {
    /// A parameter.
    pub(crate) fn of(self, tensor: &Tensor) -> Tensor {
        if self.tracked { tensor.clone() } else { tensor.detach() }
    }
}
