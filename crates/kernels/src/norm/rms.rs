//! RMS normalisation (arXiv:1910.07467).

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use crate::buffers::copied;
use crate::operand::{Held, gradient, output, values};
use crate::{parts, vector};

use super::Normalise;

const OP: &str = "rms_norm";

/// `x / sqrt(mean(x²) + eps) ⊙ gain` over the last dimension: `x` `(…, D)`, `gain` `(D,)`.
///
/// `gain` gets a gradient where it is tracked. For a norm over heads, `x` may be `(N, H·E)` with `gain` `(E,)`: every run of
/// `E` values is a row.
pub fn rms_norm(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    let size = gain.dims1()?;
    let last = x.dims().last().copied().unwrap_or(0);
    if size == 0 || last % size != 0 {
        candle_core::bail!("{OP}: rows of {last} values do not divide into runs of the gain's {size}");
    }
    x.apply_op2(gain, RmsNorm { eps: eps as f32 })
}

/// The norm with its gain.
pub(super) struct Rms<'a> {
    pub(super) gain: &'a [f32],
    pub(super) eps: f32,
}

impl Rms<'_> {
    /// `1 / sqrt(mean(x²) + eps)`.
    fn inverse(&self, x: &[f32]) -> f32 {
        1.0 / (vector::dot(x, x) / x.len() as f32 + self.eps).sqrt()
    }

    /// `Σ g⊙x r`.
    fn gain_gradient(&self, x: &[f32], g: &[f32]) -> Vec<f32> {
        let size = self.gain.len();
        let chunk = parts::rows_per_task(size) * size;
        parts::column_sums(x.len().div_ceil(chunk), size, |i, sums| {
            let end = x.len().min((i + 1) * chunk);
            let rows = x[i * chunk..end].chunks_exact(size).zip(g[i * chunk..end].chunks_exact(size));
            for (x, g) in rows {
                let inverse = self.inverse(x);
                for ((s, x), g) in sums.iter_mut().zip(x).zip(g) {
                    *s += g * x * inverse;
                }
            }
        })
    }
}

impl Normalise for Rms<'_> {
    fn size(&self) -> usize {
        self.gain.len()
    }

    fn row(&self, x: &[f32], y: &mut [f32]) {
        let inverse = self.inverse(x);
        vector::wide(
            #[inline(always)]
            || {
                for ((y, x), w) in y.iter_mut().zip(x).zip(self.gain) {
                    *y = x * inverse * w;
                }
            },
        );
    }

    /// With `r = 1/sqrt(mean(x²) + eps)`, `g` becomes `r (g⊙w - x r² mean(g⊙w⊙x))`.
    fn pull_back_row(&self, x: &[f32], g: &mut [f32], _: &mut Vec<f32>) {
        let inverse = self.inverse(x);
        vector::wide(
            #[inline(always)]
            || {
                for (g, w) in g.iter_mut().zip(self.gain) {
                    *g *= w;
                }
            },
        );
        let along = vector::dot(g, x) * inverse * inverse / x.len() as f32;
        vector::wide(
            #[inline(always)]
            || {
                for (g, x) in g.iter_mut().zip(x) {
                    *g = inverse * (*g - x * along);
                }
            },
        );
    }
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, gain) = (values(OP, s1, l1)?, values(OP, s2, l2)?);
        let y = Rms { gain, eps: self.eps }.normalise(x);
        Ok(output(y, l1.shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (xs, gains, gs) = (Held::new(OP, x)?, Held::new(OP, gain)?, Held::new(OP, &g)?);
        let (norm, xs, gs) = (Rms { gain: gains.values(), eps: self.eps }, xs.values(), gs.values());
        Ok((
            gradient(x, || {
                let mut dx = copied(gs);
                norm.pull_back(xs, &mut dx);
                dx
            })?,
            gradient(gain, || norm.gain_gradient(xs, gs))?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check, constant, tensor, var};

    fn reference(x: &[f64], gain: &[f64], eps: f64) -> Vec<f64> {
        let rows = x.chunks(gain.len());
        rows.flat_map(|x| {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / gain.len() as f64;
            x.iter().zip(gain).map(|(x, w)| x / (mean + eps).sqrt() * w).collect::<Vec<_>>()
        })
        .collect()
    }

    #[test]
    fn matches_the_reference_with_either_argument_tracked() {
        for (x, gain) in [
            (var(&[3, 10]), var(&[10])),
            (var(&[2, 3, 17]), constant(&[17])),
            (constant(&[5, 4]), var(&[4])),
            (var(&[1, 1]), var(&[1])),
        ] {
            check(&[x, gain], |a| rms_norm(&a[0], &a[1], 0.1), |a| reference(&a[0], &a[1], 0.1));
        }
    }

    #[test]
    fn a_short_gain_normalises_each_head() {
        check(
            &[var(&[3, 12]), var(&[4])],
            |a| rms_norm(&a[0], &a[1], 1e-5),
            |a| reference(&a[0], &a[1], 1e-5),
        );
    }

    #[test]
    fn many_rows_are_summed_over_tasks() {
        let (x, gain) = (var(&[600, 2]), var(&[2]));
        check(&[x, gain], |a| rms_norm(&a[0], &a[1], 0.3), |a| reference(&a[0], &a[1], 0.3));
        let big = constant(&[40, 1000]);
        check(&[big, constant(&[1000])], |a| rms_norm(&a[0], &a[1], 0.3), |a| reference(&a[0], &a[1], 0.3));
    }

    #[test]
    fn mismatched_or_strided_arguments_are_refused() {
        let error = rms_norm(&tensor(1, &[2, 5]), &tensor(2, &[3]), 1e-5).unwrap_err().to_string();
        assert!(error.contains("rms_norm: rows of 5"), "{error}");
        let error =
            rms_norm(&tensor(1, &[3, 2]).t().unwrap(), &tensor(2, &[3]), 1e-5).unwrap_err().to_string();
        assert!(error.contains("not contiguous"), "{error}");
    }
}
