//! What a way of adapting a linear layer has to offer.

use std::ops::Range;

use candle_core::{Result, Tensor};
use taper_base::Linear;
use taper_kernels::{Dropout, LowRank};

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

    /// The term beside `W`, where there is nothing else to the variant: then the head's loss can be one fused operation.
    fn low_rank(&self, dropout: Option<Dropout>) -> Option<LowRank<'_>> {
        let _ = dropout;
        None
    }

    /// The variant's own tensors.
    fn tensors(&self) -> Vec<&Tensor>;

    /// R.
    fn rank(&self) -> usize;

    /// The same variant with nothing tracked and its term `weight` times as large, sharing the values.
    fn frozen(&self, weight: f64) -> Box<dyn Variant>;
}
