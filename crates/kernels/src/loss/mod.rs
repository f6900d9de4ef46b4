//! Cross-entropy summed over labelled rows, fused with the language-model head so that a batch's logits never exist.

mod head;
#[cfg(test)]
mod head_tests;
mod scoring;

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

pub use head::{HeadWeight, linear_cross_entropy, linear_nll};
pub use scoring::Scoring;

use self::scoring::Targets;
use crate::operand::{Held, gradient, output, values};
use crate::{parts, pool, vector};

const OP: &str = "cross_entropy";

/// Which rows of the hidden states predict which token.
#[derive(Clone, Debug, Default)]
pub struct Labelled {
    /// Row of the batch whose output is scored.
    pub rows: Vec<u32>,
    /// The token that row should predict.
    pub labels: Vec<u32>,
}

impl Labelled {
    /// Checks that rows and labels pair up and lie below `rows` and `classes`.
    fn check(&self, op: &str, rows: usize, classes: usize) -> Result<()> {
        if self.rows.len() != self.labels.len() {
            candle_core::bail!("{op}: {} rows and {} labels", self.rows.len(), self.labels.len());
        }
        if let Some(row) = self.rows.iter().find(|row| **row as usize >= rows) {
            candle_core::bail!("{op}: row {row} is not one of {rows}");
        }
        check_labels(op, &self.labels, classes)
    }
}

fn check_labels(op: &str, labels: &[u32], classes: usize) -> Result<()> {
    match labels.iter().find(|label| **label as usize >= classes) {
        Some(label) => candle_core::bail!("{op}: label {label} is not one of {classes} classes"),
        None => Ok(()),
    }
}

/// `Σ -log softmax(logits)[label]` in nats, or what `scoring` makes of it, a scalar: `logits` `(L, V)` against `labels` `(L,)`.
pub fn cross_entropy(logits: &Tensor, labels: &[u32], scoring: Scoring<'_>) -> Result<Tensor> {
    let (rows, classes) = logits.dims2()?;
    if rows != labels.len() || classes == 0 {
        candle_core::bail!("{OP}: logits {:?} against {} labels", logits.shape(), labels.len());
    }
    check_labels(OP, labels, classes)?;
    let targets = Targets::new(OP, scoring, classes)?;
    logits.apply_op1(CrossEntropy { labels: labels.to_vec(), targets, classes, log_sums: OnceLock::new() })
}

struct CrossEntropy {
    labels: Vec<u32>,
    targets: Targets,
    classes: usize,
    /// `log Σ exp(logit)` `(L,)`.
    log_sums: OnceLock<Vec<f32>>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let logits = values(OP, storage, layout)?;
        let rows = parts::rows_per_task(self.classes);
        let mut log_sums = vec![0.0; self.labels.len()];
        pool::for_each_chunk(&mut log_sums, rows, |i, log_sums| {
            let mut weights = Vec::with_capacity(self.classes);
            for (log_sum, row) in
                log_sums.iter_mut().zip(logits[i * rows * self.classes..].chunks_exact(self.classes))
            {
                weights.clear();
                weights.extend_from_slice(row);
                let maximum = vector::max(row);
                *log_sum = maximum + vector::exp_sub_sum(&mut weights, maximum).ln();
            }
        });
        let rows = logits.chunks_exact(self.classes).zip(&self.labels).zip(&log_sums);
        let loss: f64 = rows
            .map(|((row, label), log_sum)| {
                let (mass, wanted) =
                    (self.targets.mass(*label as usize), self.targets.wanted(row, *label as usize));
                f64::from(mass) * f64::from(*log_sum) - f64::from(wanted)
            })
            .sum();
        // Each call of `cross_entropy` makes its own operation, so that nothing is there yet.
        let _ = self.log_sums.set(log_sums);
        Ok(output(vec![loss as f32], ()))
    }

    /// `g · (Σt·softmax(logits) - t)`: without smoothing and weights `t` is `onehot(label)`.
    fn bwd(&self, logits: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.to_scalar::<f32>()?;
        let log_sums =
            self.log_sums.get().ok_or_else(|| candle_core::Error::msg("cross_entropy: backward first"))?;
        let held = Held::new(OP, logits)?;
        let rows = parts::rows_per_task(self.classes);
        gradient(logits, || {
            let mut d = held.values().to_vec();
            pool::for_each_chunk(&mut d, rows * self.classes, |i, d| {
                for (j, row) in d.chunks_exact_mut(self.classes).enumerate() {
                    let label = self.labels[i * rows + j] as usize;
                    vector::exp_sub_sum(row, log_sums[i * rows + j]);
                    scale(row, self.targets.mass(label));
                    self.targets.take_from(row, label);
                    scale(row, g);
                }
            });
            d
        })
    }
}

/// `row *= factor`.
fn scale(row: &mut [f32], factor: f32) {
    vector::wide(
        #[inline(always)]
        || row.iter_mut().for_each(|r| *r *= factor),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, check, constant, flat, tensor, var};

    const PLAIN: Scoring<'_> = Scoring { label_smoothing: 0.0, weights: None };

    fn reference(logits: &[f64], labels: &[u32]) -> Vec<f64> {
        let rows = logits.chunks(logits.len() / labels.len()).zip(labels);
        vec![rows.map(|(row, l)| row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[*l as usize]).sum()]
    }

    #[test]
    fn matches_the_reference() {
        let labels = [3, 0, 10, 3];
        check(&[var(&[4, 11])], |a| cross_entropy(&a[0], &labels, PLAIN), |a| reference(&a[0], &labels));
        check(&[var(&[1, 1])], |a| cross_entropy(&a[0], &[0], PLAIN), |a| reference(&a[0], &[0]));
        let labels: Vec<u32> = (0..700).map(|i| i * 37 % 90).collect();
        check(
            &[constant(&[700, 90])],
            |a| cross_entropy(&a[0], &labels, PLAIN),
            |a| reference(&a[0], &labels),
        );
    }

    #[test]
    fn the_upstream_gradient_scales_it() {
        let labels = [2, 5];
        let halved = |a: &[Tensor]| cross_entropy(&a[0], &labels, PLAIN)?.affine(0.5, 0.0);
        check(&[var(&[2, 6])], halved, |a| vec![0.5 * reference(&a[0], &labels)[0]]);
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let logits = (tensor(1, &[3, 8]) * 1e4).unwrap();
        let plain: Vec<f64> = flat(&logits).into_iter().map(f64::from).collect();
        let expected = plain.chunks(8).map(|row| row.iter().copied().fold(f64::MIN, f64::max) - row[1]).sum();
        assert_close("loss", &flat(&cross_entropy(&logits, &[1, 1, 1], PLAIN).unwrap()), &[expected], 1e-6);
    }

    #[test]
    fn labels_outside_the_classes_are_refused() {
        let error = cross_entropy(&tensor(1, &[2, 3]), &[0, 3], PLAIN).unwrap_err().to_string();
        assert!(error.contains("label 3 is not one of 3"), "{error}");
        assert!(cross_entropy(&tensor(1, &[2, 3]), &[0], PLAIN).is_err());
    }
}
