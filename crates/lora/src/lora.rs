//! LoRA: `y = x (W + s·B·A)ᵀ + b`. Hu et al. 2021, arXiv:2106.09685 §4.1; `peft/tuners/lora/layer.py`, 0.21.2.
//!
//! rsLoRA (arXiv:2312.03732) is this with another `s`.

use std::ops::Range;

use candle_core::{Result, Tensor};
use taper_base::Linear;
use taper_kernels::{Adapted, Dropout, LowRank};

use crate::source::{Source, Start};
use crate::variant::{Variant, View};
use crate::{Error, Init, ops};

/// Key prefix of every tensor in a PEFT file.
pub(crate) const PREFIX: &str = "base_model.model.";

/// Rank, `s` and start of a module's factors.
#[derive(Clone, Debug)]
pub(crate) struct Factors {
    pub(crate) r: usize,
    pub(crate) scaling: f64,
    pub(crate) init: Init,
    pub(crate) lora_bias: bool,
    pub(crate) use_dora: bool,
}

/// The low-rank factors of a linear layer.
#[derive(Clone, Debug)]
pub(crate) struct Lora {
    /// `(R, in)`.
    pub(crate) a: Tensor,
    /// `(out, R)`.
    pub(crate) b: Tensor,
    /// `b_B` `(out,)`, a bias of `B`'s.
    bias: Option<Tensor>,
    /// `s`.
    pub(crate) scaling: f64,
}

impl Lora {
    pub(crate) fn new(
        factors: &Factors,
        layer: &Linear,
        source: &mut dyn Source,
    ) -> std::result::Result<Self, Error> {
        let (inputs, outputs, r) = (layer.in_features(), layer.out_features(), factors.r);
        let path = &layer.path;
        let random = |size: usize| Start::Uniform(1.0 / (size as f64).sqrt());
        let (start_a, start_b, start_bias) = match factors.init {
            Init::Random => (random(inputs), random(r), random(r)),
            Init::Gaussian => (Start::Normal(1.0 / r as f64), Start::Zeros, Start::Zeros),
            Init::Default | Init::Other(_) => (random(inputs), Start::Zeros, Start::Zeros),
        };
        let a = source.tensor(&format!("{PREFIX}{path}.lora_A.weight"), &[r, inputs], start_a)?;
        let b = source.tensor(&format!("{PREFIX}{path}.lora_B.weight"), &[outputs, r], start_b)?;
        let mut bias = None;
        if factors.lora_bias {
            bias = Some(source.tensor(&format!("{PREFIX}{path}.lora_B.bias"), &[outputs], start_bias)?);
        }
        Ok(Self { a, b, bias, scaling: factors.scaling })
    }

    /// These factors, without a bias.
    #[cfg(test)]
    pub(crate) fn of(a: Tensor, b: Tensor, scaling: f64) -> Self {
        Self { a, b, bias: None, scaling }
    }

    /// `s·B·A` for rows `rows`, added to those of `weight`.
    pub(crate) fn add_delta(&self, rows: Range<usize>, weight: &mut [f32]) -> Result<()> {
        let (a, b) = (self.a.detach(), self.b.detach());
        let factors = LowRank { a: &a, b: &b, scaling: self.scaling, dropout: None };
        taper_kernels::add_low_rank(&factors, rows, weight)
    }

    /// The factors as `view` has them.
    pub(crate) fn view(&self, view: View) -> Self {
        Self {
            a: view.of(&self.a),
            b: view.of(&self.b),
            bias: self.bias.as_ref().map(|bias| view.of(bias)),
            scaling: self.scaling,
        }
    }
}

impl Variant for Lora {
    /// `y = x Wᵀ + b + s·((dropout(x) Aᵀ) Bᵀ + b_B)`.
    fn forward(
        &self,
        layer: &Linear,
        bias: Option<&Tensor>,
        x: &Tensor,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let low_rank = LowRank { a: &self.a, b: &self.b, scaling: self.scaling, dropout };
        match self.bias()? {
            None => taper_kernels::linear(x, &layer.weight, bias, Some(low_rank)),
            Some(added) => {
                let bias = bias.map_or_else(|| Ok(added.clone()), |bias| ops::plus(&added, bias))?;
                taper_kernels::linear(x, &layer.weight, Some(&bias), Some(low_rank))
            }
        }
    }

    /// `W + s·B·A`.
    fn merge_rows(&self, rows: Range<usize>, weight: &mut [f32]) -> Result<()> {
        self.add_delta(rows, weight)
    }

    /// `s·b_B`.
    fn bias(&self) -> Result<Option<Tensor>> {
        self.bias.as_ref().map(|bias| bias * self.scaling).transpose()
    }

    fn adapted(&self, _: &Linear, dropout: Option<Dropout>) -> Result<Option<Adapted<'_>>> {
        let low_rank = LowRank { a: &self.a, b: &self.b, scaling: self.scaling, dropout };
        Ok(self.bias.is_none().then_some(Adapted { low_rank, gain: None }))
    }

    fn tensors(&self) -> Vec<&Tensor> {
        [&self.a, &self.b].into_iter().chain(&self.bias).collect()
    }

    fn outputs(&self) -> usize {
        self.b.dims().first().copied().unwrap_or_default()
    }

    fn inputs(&self) -> usize {
        self.a.dims().last().copied().unwrap_or_default()
    }

    fn rank(&self) -> usize {
        self.b.dims().last().copied().unwrap_or_default()
    }

    fn seen(&self, view: View) -> Box<dyn Variant> {
        Box::new(self.view(view))
    }
}
