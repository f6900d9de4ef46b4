//! The output head.

use candle_core::{Result, Tensor};
use taper_kernels::HeadWeight;

use crate::{Adapter, Linear};

/// A frozen head: hidden rows to logits.
#[derive(Clone, Debug)]
pub struct Head {
    /// The layer.
    pub linear: Linear,
    /// `c`: its output `y` becomes `c·tanh(y/c)`, as in Gemma 2; left as it is when none.
    pub soft_cap: Option<f32>,
}

impl From<Linear> for Head {
    fn from(linear: Linear) -> Self {
        Self { linear, soft_cap: None }
    }
}

impl Head {
    /// Logits `(N, V)` of `x` `(N, D)`, as `adapter` has the layer.
    pub fn forward(&self, x: &Tensor, adapter: &dyn Adapter) -> Result<Tensor> {
        self.capped(self.linear.forward(x, adapter)?)
    }

    /// `logits` under the soft cap.
    pub fn capped(&self, logits: Tensor) -> Result<Tensor> {
        match self.soft_cap {
            None => Ok(logits),
            Some(cap) => taper_kernels::soft_cap(&logits, cap),
        }
    }

    /// The frozen head, for the loss.
    pub fn weight(&self) -> HeadWeight<'_> {
        HeadWeight { weight: &self.linear.weight, bias: self.linear.bias.as_ref(), cap: self.soft_cap }
    }
}
