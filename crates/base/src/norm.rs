//! Frozen norms, whose parameters an adapter may train whole.

use candle_core::{Result, Tensor};

use crate::Adapter;

/// A frozen RMS norm.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    /// Module path.
    pub path: String,
    /// Path of its gain, `path` + `.weight`.
    pub gain_path: String,
    /// `(D,)`, as it is stored.
    pub gain: Tensor,
    /// Added to the stored gain: 1 in Gemma's norms.
    pub offset: f64,
    /// Added to the mean square.
    pub eps: f64,
}

impl RmsNorm {
    /// The norm at `path`, its gain under its usual name.
    pub fn new(path: impl Into<String>, gain: Tensor, eps: f64) -> Self {
        let path = path.into();
        Self { gain_path: format!("{path}.weight"), path, gain, offset: 0.0, eps }
    }

    /// The same norm with `offset` added to its gain.
    #[must_use]
    pub fn with_offset(self, offset: f64) -> Self {
        Self { offset, ..self }
    }

    /// The norm as `adapter` has it, over every run of `gain`'s length in the rows of `x`.
    pub fn forward(&self, x: &Tensor, adapter: &dyn Adapter) -> Result<Tensor> {
        let gain = adapter.param(&self.gain_path).unwrap_or(&self.gain);
        if self.offset == 0.0 {
            return taper_kernels::rms_norm(x, gain, self.eps);
        }
        taper_kernels::rms_norm(x, &(gain + self.offset)?, self.eps)
    }
}

/// A frozen layer norm.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// Module path.
    pub path: String,
    /// Path of its gain, `path` + `.weight`.
    pub gain_path: String,
    /// `(D,)`.
    pub gain: Tensor,
    /// Path of its bias, `path` + `.bias`.
    pub bias_path: String,
    /// `(D,)`.
    pub bias: Option<Tensor>,
    /// Added to the variance.
    pub eps: f64,
}

impl LayerNorm {
    /// The norm at `path`, its parameters under their usual names.
    pub fn new(path: impl Into<String>, gain: Tensor, bias: Option<Tensor>, eps: f64) -> Self {
        let path = path.into();
        let (gain_path, bias_path) = (format!("{path}.weight"), format!("{path}.bias"));
        Self { path, gain_path, gain, bias_path, bias, eps }
    }

    /// The norm as `adapter` has it, over the rows of `x` `(…, D)`.
    pub fn forward(&self, x: &Tensor, adapter: &dyn Adapter) -> Result<Tensor> {
        let gain = adapter.param(&self.gain_path).unwrap_or(&self.gain);
        let bias = self.bias.as_ref().map(|bias| adapter.param(&self.bias_path).unwrap_or(bias));
        taper_kernels::layer_norm(x, gain, bias, self.eps)
    }
}
