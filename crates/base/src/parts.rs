//! Finds the parts of networks in a checkpoint, by the paths of their modules.

use candle_core::Tensor;
use taper_kernels::{Compute, Weight};

use crate::{Checkpoint, Embedding, Error, LayerNorm, Linear, RmsNorm};

/// A checkpoint, and how a network reads it.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    /// Of every product.
    pub(crate) compute: Compute,
    /// Whether the head is the embedding's matrix.
    pub(crate) tied: bool,
}

impl Parts<'_> {
    /// The layer at `path` of `(input, output)` features.
    pub(crate) fn linear(
        &self,
        path: &str,
        (input, output): (usize, usize),
        bias: bool,
    ) -> Result<Linear, Error> {
        let weight = self.weight(path, (output, input))?;
        self.with_bias(path, weight, bias)
    }

    /// The layer at `path` of `(input, output)` features, which is stored `(in, out)`.
    pub(crate) fn conv1d(
        &self,
        path: &str,
        (input, output): (usize, usize),
        bias: bool,
    ) -> Result<Linear, Error> {
        let weight = self.weight(path, (input, output))?.transposed();
        self.with_bias(path, weight, bias)
    }

    fn with_bias(&self, path: &str, weight: Weight, bias: bool) -> Result<Linear, Error> {
        let bias = bias.then(|| self.vector(path, "bias", weight.rows())).transpose()?;
        Ok(Linear { path: path.into(), weight, bias })
    }

    /// The table at `path` of `(rows, width)` values.
    pub(crate) fn embedding(&self, path: &str, dims: (usize, usize)) -> Result<Embedding, Error> {
        Ok(Embedding { path: path.into(), weight: self.weight(path, dims)? })
    }

    /// The layer norm at `path`.
    pub(crate) fn layer_norm(
        &self,
        path: &str,
        size: usize,
        eps: f64,
        bias: bool,
    ) -> Result<LayerNorm, Error> {
        let gain = self.vector(path, "weight", size)?;
        let bias = bias.then(|| self.vector(path, "bias", size)).transpose()?;
        Ok(LayerNorm::new(path, gain, bias, eps))
    }

    /// The RMS norm at `path`.
    pub(crate) fn rms_norm(&self, path: &str, size: usize, eps: f64) -> Result<RmsNorm, Error> {
        Ok(RmsNorm::new(path, self.vector(path, "weight", size)?, eps))
    }

    /// The parameter `name` `(size,)` of the module at `path`.
    pub(crate) fn vector(&self, path: &str, name: &str, size: usize) -> Result<Tensor, Error> {
        self.checkpoint.tensor(&self.name(path, name), &[size])
    }

    /// The small table at `path` of `(rows, width)` values, widened.
    pub(crate) fn table(&self, path: &str, (rows, width): (usize, usize)) -> Result<Tensor, Error> {
        self.checkpoint.tensor(&self.name(path, "weight"), &[rows, width])
    }

    fn weight(&self, path: &str, (rows, cols): (usize, usize)) -> Result<Weight, Error> {
        let weight = self.checkpoint.weight(&self.name(path, "weight"), rows, cols)?;
        Ok(weight.with_compute(self.compute))
    }

    /// The name in the files of a parameter of the module at `path`.
    fn name(&self, path: &str, parameter: &str) -> String {
        let name = format!("{path}.{parameter}");
        self.checkpoint.stored_name(&name, self.tied).unwrap_or(&name).to_owned()
    }
}
