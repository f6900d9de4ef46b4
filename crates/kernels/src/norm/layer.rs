//! Layer normalisation (arXiv:1607.06450).

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor};

use crate::buffers::copied;
use crate::operand::{Held, gradient, output, values};
use crate::{parts, vector};

use super::Normalise;

const OP: &str = "layer_norm";

/// `(x - mean(x)) / sqrt(var(x) + eps) ⊙ gain + bias` over the last dimension: `x` `(…, D)`, `gain` and `bias` `(D,)`; the
/// variance is that of the population, and no bias is one of zeros.
///
/// `gain` and `bias` get a gradient where they are tracked.
pub fn layer_norm(x: &Tensor, gain: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let size = gain.dims1()?;
    let last = x.dims().last().copied().unwrap_or(0);
    if size == 0 || last != size || bias.is_some_and(|bias| bias.dims() != [size]) {
        candle_core::bail!(
            "{OP}: rows of {last} values, a gain of {size}, a bias of {:?}",
            bias.map(Tensor::dims)
        );
    }
    let norm = LayerNorm { eps: eps as f32 };
    match bias {
        Some(bias) => x.apply_op3(gain, bias, norm),
        None => x.apply_op3(gain, &Tensor::from_vec(vec![0f32; size], size, &Device::Cpu)?, norm),
    }
}

/// The norm with its gain and bias.
pub(super) struct Layer<'a> {
    pub(super) gain: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) eps: f32,
}

impl Layer<'_> {
    /// `(x - mean) r` into `y`, with `r = 1/sqrt(var + eps)`, which it returns.
    fn standardise(&self, x: &[f32], y: &mut [f32]) -> f32 {
        let size = x.len() as f32;
        let mean = vector::sum(x) / size;
        vector::wide(
            #[inline(always)]
            || {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = x - mean;
                }
            },
        );
        let inverse = 1.0 / (vector::dot(y, y) / size + self.eps).sqrt();
        vector::wide(
            #[inline(always)]
            || y.iter_mut().for_each(|y| *y *= inverse),
        );
        inverse
    }

    /// `Σ g⊙z`.
    fn gain_gradient(&self, x: &[f32], g: &[f32]) -> Vec<f32> {
        let size = self.gain.len();
        let chunk = parts::rows_per_task(size) * size;
        parts::column_sums(x.len().div_ceil(chunk), size, |i, sums| {
            let mut z = vec![0.0; size];
            let part = i * chunk..x.len().min((i + 1) * chunk);
            for (x, g) in x[part.clone()].chunks_exact(size).zip(g[part].chunks_exact(size)) {
                self.standardise(x, &mut z);
                sums.iter_mut().zip(&z).zip(g).for_each(|((s, z), g)| *s += g * z);
            }
        })
    }
}

impl Normalise for Layer<'_> {
    fn size(&self) -> usize {
        self.gain.len()
    }

    fn row(&self, x: &[f32], y: &mut [f32]) {
        self.standardise(x, y);
        vector::wide(
            #[inline(always)]
            || {
                for ((y, w), b) in y.iter_mut().zip(self.gain).zip(self.bias) {
                    *y = *y * w + b;
                }
            },
        );
    }

    /// With `z` the standardised row, `g` becomes `r (g⊙w - mean(g⊙w) - z mean(g⊙w⊙z))`.
    fn pull_back_row(&self, x: &[f32], g: &mut [f32], z: &mut Vec<f32>) {
        z.resize(x.len(), 0.0);
        let inverse = self.standardise(x, z);
        vector::wide(
            #[inline(always)]
            || {
                for (g, w) in g.iter_mut().zip(self.gain) {
                    *g *= w;
                }
            },
        );
        let mean = vector::sum(g) / x.len() as f32;
        let along = vector::dot(g, z) / x.len() as f32;
        vector::wide(
            #[inline(always)]
            || {
                for (g, z) in g.iter_mut().zip(&*z) {
                    *g = inverse * (*g - mean - z * along);
                }
            },
        );
    }
}

/// `Σ g`.
fn bias_gradient(size: usize, g: &[f32]) -> Vec<f32> {
    let chunk = parts::rows_per_task(size) * size;
    parts::column_sums(g.len().div_ceil(chunk), size, |i, sums| {
        for g in g[i * chunk..g.len().min((i + 1) * chunk)].chunks_exact(size) {
            vector::axpy(1.0, g, sums);
        }
    })
}

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, gain, bias) = (values(OP, s1, l1)?, values(OP, s2, l2)?, values(OP, s3, l3)?);
        Ok(output(Layer { gain, bias, eps: self.eps }.normalise(x), l1.shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let held = [Held::new(OP, x)?, Held::new(OP, gain)?, Held::new(OP, bias)?, Held::new(OP, &g)?];
        let [xs, gains, biases, gs] = held.each_ref().map(Held::values);
        let norm = Layer { gain: gains, bias: biases, eps: self.eps };
        Ok((
            gradient(x, || {
                let mut dx = copied(gs);
                norm.pull_back(xs, &mut dx);
                dx
            })?,
            gradient(gain, || norm.gain_gradient(xs, gs))?,
            gradient(bias, || bias_gradient(gains.len(), gs))?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, check, constant, flat, tensor, var};

    /// Arguments: x, gain, bias.
    fn reference(a: &[Vec<f64>], eps: f64) -> Vec<f64> {
        let size = a[1].len() as f64;
        let rows = a[0].chunks(a[1].len());
        rows.flat_map(|x| {
            let mean = x.iter().sum::<f64>() / size;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / size;
            let affine = a[1].iter().zip(&a[2]);
            x.iter()
                .zip(affine)
                .map(|(x, (w, b))| (x - mean) / (variance + eps).sqrt() * w + b)
                .collect::<Vec<_>>()
        })
        .collect()
    }

    #[test]
    fn every_choice_of_tracked_arguments_gets_its_gradients() {
        let shapes: [&[usize]; 3] = [&[3, 10], &[10], &[10]];
        for tracked in 0..8 {
            let args: Vec<_> = (0..3)
                .map(|i| if tracked >> i & 1 == 1 { var(shapes[i]) } else { constant(shapes[i]) })
                .collect();
            check(&args, |a| layer_norm(&a[0], &a[1], Some(&a[2]), 0.1), |a| reference(a, 0.1));
        }
    }

    #[test]
    fn a_norm_may_lack_its_bias() {
        check(
            &[var(&[2, 3, 17]), var(&[17])],
            |a| layer_norm(&a[0], &a[1], None, 1e-5),
            |a| reference(&[a[0].clone(), a[1].clone(), vec![0.0; 17]], 1e-5),
        );
    }

    #[test]
    fn many_rows_are_summed_over_tasks() {
        let args = [var(&[600, 3]), var(&[3]), var(&[3])];
        check(&args, |a| layer_norm(&a[0], &a[1], Some(&a[2]), 0.3), |a| reference(a, 0.3));
        let big = [constant(&[40, 1000]), constant(&[1000]), constant(&[1000])];
        check(&big, |a| layer_norm(&a[0], &a[1], Some(&a[2]), 0.3), |a| reference(a, 0.3));
    }

    #[test]
    fn rows_far_from_zero_keep_their_digits() {
        let [x, gain, bias] = [tensor(1, &[4, 64]), tensor(2, &[64]), tensor(3, &[64])];
        let shifted = (&x + 1000.0).unwrap();
        let found = flat(&layer_norm(&shifted, &gain, Some(&bias), 1e-5).unwrap());
        let args = [&shifted, &gain, &bias].map(|t| flat(t).into_iter().map(f64::from).collect());
        assert_close("y", &found, &reference(&args, 1e-5), 2e-4); // Its mean is a number near 1000, to 6e-5.
    }

    #[test]
    fn mismatched_arguments_are_refused() {
        let (x, gain) = (tensor(1, &[2, 6]), tensor(2, &[3]));
        let error = layer_norm(&x, &gain, None, 1e-5).unwrap_err().to_string();
        assert!(error.contains("layer_norm: rows of 6 values, a gain of 3"), "{error}");
        assert!(layer_norm(&x, &tensor(2, &[6]), Some(&gain), 1e-5).is_err());
    }
}
