//! Gradients of parameters, summed outside candle's store.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Tensor, TensorId};

use crate::buffers::zeros;

/// Where [`blocks`](crate::blocks) leave the gradients of their factors: summed in place over the backward passes of a step.
///
/// candle's store would make zeros for each of them and of what each was made from, add to them, and hand over copies. What
/// a clone is given, the others have.
#[derive(Clone, Debug, Default)]
pub struct Gradients(Arc<Mutex<Sums>>);

#[expect(clippy::disallowed_types, reason = "a `TensorId` has no order, and nothing goes through the map")]
type Sums = std::collections::HashMap<TensorId, Vec<f32>>;

impl Gradients {
    /// Has the gradient of `parameter` added to the sum, zeros at first.
    pub(crate) fn sum(&self, parameter: &Tensor, add: impl FnOnce(&mut [f32])) {
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        add(sums.entry(parameter.id()).or_insert_with(|| zeros(parameter.elem_count())));
    }

    /// Takes out the sum for `parameter`, row-major; none where no backward pass came to it.
    pub fn take(&self, parameter: &Tensor) -> Option<Vec<f32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&parameter.id())
    }
}
