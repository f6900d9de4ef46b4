//! DoRA: `y = x (m ⊙ (W + s·B·A) / n)ᵀ + b` with `n = ‖W + s·B·A‖` by output row, a constant in backward. Liu et al. 2024,
//! arXiv:2402.09353 §4.1 and §4.3; `peft/tuners/lora/dora.py`, 0.21.2.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{Result, Tensor};
use taper_base::Linear;
use taper_kernels::{Adapted, Dropout, LowRank};

use crate::lora::{Factors, Lora, PREFIX};
use crate::norms::{self, inverse, length};
use crate::source::{Source, Start};
use crate::variant::{Variant, View};
use crate::{Error, ops};

/// The factors and the magnitude of a linear layer.
#[derive(Debug)]
pub(crate) struct Dora {
    lora: Lora,
    /// `m` `(out,)`.
    magnitude: Tensor,
    /// `‖W‖²` by row.
    squares: Arc<OnceLock<Vec<f64>>>,
    /// `m / n`, kept where nothing can change it.
    gain: Option<OnceLock<Tensor>>,
}

impl Dora {
    pub(crate) fn new(
        factors: &Factors,
        layer: &Linear,
        source: &mut dyn Source,
    ) -> std::result::Result<Self, Error> {
        let lora = Lora::new(factors, layer, source)?;
        let squares = Arc::new(OnceLock::new());
        let start = || Ok(lengths(&lora, &squares, layer)?.into_iter().map(|n| n as f32).collect());
        let key = format!("{PREFIX}{}.lora_magnitude_vector", layer.path);
        let magnitude = source.tensor(&key, &[layer.out_features()], Start::Values(&start))?;
        Ok(Self { lora, magnitude, squares, gain: None })
    }

    /// `m / n` `(out,)`.
    fn gain(&self, layer: &Linear) -> Result<Tensor> {
        let compute = || {
            let lengths = lengths(&self.lora, &self.squares, layer)?;
            ops::times(&self.magnitude, lengths.into_iter().map(inverse).collect())
        };
        norms::kept(self.gain.as_ref(), compute)
    }
}

impl Variant for Dora {
    /// `y = g ⊙ (x Wᵀ + s·(x Aᵀ) Bᵀ) + b` with `g = m / n`; the bias is not scaled.
    ///
    /// With dropout `d` in training `y = x Wᵀ + (g - 1) ⊙ d(x) Wᵀ + g ⊙ s·(d(x) Aᵀ) Bᵀ + b`.
    fn forward(
        &self,
        layer: &Linear,
        bias: Option<&Tensor>,
        x: &Tensor,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let (lora, gain) = (&self.lora, self.gain(layer)?);
        let low_rank = Some(LowRank { a: &lora.a, b: &lora.b, scaling: lora.scaling, dropout: None });
        let y = match dropout.filter(|dropout| dropout.p > 0.0) {
            None => taper_kernels::scale_columns(
                &taper_kernels::linear(x, &layer.weight, None, low_rank)?,
                &gain,
            )?,
            Some(dropout) => {
                let dropped = ops::dropped(x, dropout)?;
                let adapted = taper_kernels::linear(&dropped, &layer.weight, None, low_rank)?;
                let rest = taper_kernels::linear(&(x - &dropped)?, &layer.weight, None, None)?;
                ops::plus(&taper_kernels::scale_columns(&adapted, &gain)?, &rest)?
            }
        };
        bias.map_or_else(|| Ok(y.clone()), |bias| taper_kernels::add_bias(&y, bias))
    }

    /// Not with dropout, which is the frozen product's as well; and not where a gain is 0, as it hides what the gradient of
    /// its magnitude needs.
    fn adapted(&self, layer: &Linear, dropout: Option<Dropout>) -> Result<Option<Adapted<'_>>> {
        if self.gain.is_none() || dropout.is_some_and(|dropout| dropout.p > 0.0) {
            return Ok(None);
        }
        let gain = self.gain(layer)?;
        let all = gain.detach().to_vec1::<f32>()?.iter().all(|c| c.is_normal());
        let Lora { a, b, scaling, .. } = &self.lora;
        let low_rank = LowRank { a, b, scaling: *scaling, dropout: None };
        Ok(all.then_some(Adapted { low_rank, gain: Some(gain) }))
    }

    /// `m ⊙ (W + s·B·A) / ‖W + s·B·A‖`.
    fn merge_rows(&self, rows: Range<usize>, weight: &mut [f32]) -> Result<()> {
        self.lora.add_delta(rows.clone(), weight)?;
        let magnitudes = self.magnitude.detach().narrow(0, rows.start, rows.len())?.to_vec1::<f32>()?;
        let width = weight.len() / rows.len().max(1);
        for (row, m) in weight.chunks_exact_mut(width.max(1)).zip(magnitudes) {
            let gain = m * inverse(length(row));
            for w in row {
                *w *= gain;
            }
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<&Tensor> {
        self.lora.tensors().into_iter().chain([&self.magnitude]).collect()
    }

    fn outputs(&self) -> usize {
        self.lora.outputs()
    }

    fn inputs(&self) -> usize {
        self.lora.inputs()
    }

    fn rank(&self) -> usize {
        self.lora.rank()
    }

    fn seen(&self, view: View) -> Box<dyn Variant> {
        Box::new(Self {
            lora: self.lora.view(view),
            magnitude: view.of(&self.magnitude),
            squares: self.squares.clone(),
            gain: Some(OnceLock::new()),
        })
    }
}

/// `‖W + s·B·A‖` by row.
fn lengths(lora: &Lora, squares: &OnceLock<Vec<f64>>, layer: &Linear) -> Result<Vec<f64>> {
    let squares = squares.get_or_init(|| norms::row_squares(&layer.weight));
    norms::row_lengths(&layer.weight, squares, lora)
}
