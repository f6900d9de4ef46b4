//! What a labelled row should predict: its label, or a share of every class, each class counted by a weight.

use candle_core::Result;

use crate::vector;

/// How labels are scored: with `t = w·((1-ε)·onehot(label) + ε/V)` a row's loss is `-Σ t·log softmax(logits)`.
///
/// That is `torch.nn.functional.cross_entropy` with `label_smoothing` and `weight` (2.15), before its mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scoring<'a> {
    /// ε, from 0 to below 1.
    pub label_smoothing: f32,
    /// `w` `(V,)`; every class counts 1 when none.
    pub weights: Option<&'a [f32]>,
}

/// A [`Scoring`] of rows of V logits.
pub(super) struct Targets {
    /// `1 - ε`.
    sharp: f32,
    /// `ε/V`.
    flat: f32,
    weights: Option<Vec<f32>>,
    /// `ε/V·Σ w`.
    flat_mass: f32,
}

impl Targets {
    /// Checks that the scoring is one of `classes` classes.
    pub(super) fn new(op: &str, scoring: Scoring<'_>, classes: usize) -> Result<Self> {
        let Scoring { label_smoothing: smoothing, weights } = scoring;
        if !(0.0..1.0).contains(&smoothing) {
            candle_core::bail!("{op}: labels smoothed by {smoothing}, expected 0 or more and below 1");
        }
        if let Some(weights) = weights.filter(|weights| weights.len() != classes) {
            candle_core::bail!("{op}: {} weights for {classes} classes", weights.len());
        }
        let flat = smoothing / classes as f32;
        Ok(Self {
            sharp: 1.0 - smoothing,
            flat,
            weights: weights.map(<[f32]>::to_vec),
            flat_mass: weights.map_or(smoothing, |weights| flat * vector::sum(weights)),
        })
    }

    /// A row's loss, and the sum of what its logits become, `exp(logit - max)`.
    pub(super) fn loss(&self, row: &mut [f32], label: usize) -> (f32, f32) {
        let (maximum, mass) = (vector::max(row), self.mass(label));
        let scored = self.wanted(row, label) - mass * maximum;
        let sum = vector::exp_sub_sum(row, maximum);
        (mass * sum.ln() - scored, sum)
    }

    /// `(1-ε)·w` of the label.
    fn peak(&self, label: usize) -> f32 {
        self.weights.as_ref().map_or(self.sharp, |weights| self.sharp * weights[label])
    }

    /// `Σ t`.
    pub(super) fn mass(&self, label: usize) -> f32 {
        if self.weights.is_none() { 1.0 } else { self.peak(label) + self.flat_mass }
    }

    /// `Σ t·logit`.
    pub(super) fn wanted(&self, logits: &[f32], label: usize) -> f32 {
        let peak = self.peak(label) * logits[label];
        if self.flat > 0.0 { peak + self.flat * self.weighted_sum(logits) } else { peak }
    }

    /// `Σ w·logit`, in parts short enough that a sum of many keeps its digits.
    fn weighted_sum(&self, logits: &[f32]) -> f32 {
        const PART: usize = 2048;
        let sum: f64 = match &self.weights {
            None => logits.chunks(PART).map(|part| f64::from(vector::sum(part))).sum(),
            Some(weights) => {
                let parts = logits.chunks(PART).zip(weights.chunks(PART));
                parts.map(|(logits, weights)| f64::from(vector::dot(logits, weights))).sum()
            }
        };
        sum as f32
    }

    /// `row -= t`.
    pub(super) fn take_from(&self, row: &mut [f32], label: usize) {
        match &self.weights {
            Some(weights) if self.flat > 0.0 => vector::axpy(-self.flat, weights, row),
            None if self.flat > 0.0 => {
                let flat = self.flat;
                vector::wide(
                    #[inline(always)]
                    || row.iter_mut().for_each(|r| *r -= flat),
                );
            }
            _ => {}
        }
        row[label] -= self.peak(label);
    }
}
