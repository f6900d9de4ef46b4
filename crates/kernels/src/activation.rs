//! The element-wise functions of feed-forward layers, alone and as gates.

#![expect(
    clippy::inline_always,
    reason = "a body must be compiled inside the function that enables its instructions"
)]

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use crate::buffers::zeros;
use crate::operand::{Held, gradient, output, values};
use crate::{parts, pool, swiglu, vector};

/// Values to a task.
const CHUNK: usize = 16 * 1024;

/// A function of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x·sigmoid(x)`: `silu`, `swish`.
    Silu,
    /// `x·Φ(x) = x/2·(1 + erf(x/√2))`: `gelu` (arXiv:1606.08415).
    Gelu,
    /// `x/2·(1 + tanh(√(2/π)(x + 0.044715 x³)))`: `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// `max(x, 0)`: `relu`.
    Relu,
}

impl Activation {
    /// The function that `hidden_act` of config.json names; none for one that is not here.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Self::GeluTanh,
            "relu" => Self::Relu,
            _ => return None,
        })
    }
}

/// `f(x)`, value by value, in the shape of `x`.
pub fn activate(x: &Tensor, f: Activation) -> Result<Tensor> {
    match f {
        Activation::Silu => x.apply_op1(Alone(Silu)),
        Activation::Gelu => x.apply_op1(Alone(Gelu)),
        Activation::GeluTanh => x.apply_op1(Alone(GeluTanh)),
        Activation::Relu => x.apply_op1(Alone(Relu)),
    }
}

/// `f(gate) ⊙ up`, both `(N, F)`: SwiGLU, GEGLU (arXiv:2002.05202).
pub fn gated(gate: &Tensor, up: &Tensor, f: Activation) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        candle_core::bail!("gated: gate {:?} and up {:?} differ in shape", gate.shape(), up.shape());
    }
    match f {
        Activation::Silu => swiglu(gate, up),
        Activation::Gelu => gate.apply_op2(up, Gate(Gelu)),
        Activation::GeluTanh => gate.apply_op2(up, Gate(GeluTanh)),
        Activation::Relu => gate.apply_op2(up, Gate(Relu)),
    }
}

/// `c·tanh(x/c)`, value by value, in the shape of `x`: logits under a soft cap `c > 0` (arXiv:2408.00118 §2).
pub fn soft_cap(x: &Tensor, cap: f32) -> Result<Tensor> {
    x.apply_op1(Alone(SoftCap(cap)))
}

/// A function of one value, as a type of its own: a loop over one is compiled with its body inside. (A function handed over
/// as a value is called, value by value, for want of the instructions that the loop has.)
trait Curve: Copy + Send + Sync + 'static {
    /// `f(x)` and `f'(x)`. Always inlined.
    fn at(self, x: f32) -> (f32, f32);
}

#[derive(Clone, Copy)]
struct Silu;

impl Curve for Silu {
    #[inline(always)]
    fn at(self, x: f32) -> (f32, f32) {
        let sigma = vector::sigmoid(x);
        let y = x * sigma;
        (y, sigma + y * (1.0 - sigma))
    }
}

#[derive(Clone, Copy)]
struct Gelu;

impl Curve for Gelu {
    /// `xΦ(x)`, `Φ(x) + xφ(x)`.
    #[inline(always)]
    fn at(self, x: f32) -> (f32, f32) {
        const FACTOR: f32 = 0.5 * FRAC_1_SQRT_2 * FRAC_2_SQRT_PI; // 1/√(2π)
        let share = 0.5 * vector::erfc(-x * FRAC_1_SQRT_2);
        (x * share, share + x * FACTOR * vector::exp(-0.5 * x * x))
    }
}

#[derive(Clone, Copy)]
struct GeluTanh;

impl Curve for GeluTanh {
    /// With `u` the argument of tanh and `σ = sigmoid(2u)`: `xσ`, `σ + 2x σ(1-σ) u'`.
    #[inline(always)]
    fn at(self, x: f32) -> (f32, f32) {
        const ROOT: f32 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2; // √(2/π)
        const CUBIC: f32 = 0.044_715;
        let square = CUBIC * x * x;
        let sigma = vector::sigmoid(2.0 * ROOT * x * (1.0 + square));
        let slope = 2.0 * ROOT * (1.0 + 3.0 * square);
        (x * sigma, sigma + x * sigma * (1.0 - sigma) * slope)
    }
}

#[derive(Clone, Copy)]
struct Relu;

impl Curve for Relu {
    /// PyTorch's: no slope at 0.
    #[inline(always)]
    fn at(self, x: f32) -> (f32, f32) {
        if x > 0.0 { (x, 1.0) } else { (if x.is_nan() { x } else { 0.0 }, 0.0) }
    }
}

#[derive(Clone, Copy)]
struct SoftCap(f32);

impl Curve for SoftCap {
    #[inline(always)]
    fn at(self, x: f32) -> (f32, f32) {
        let t = vector::tanh(x / self.0);
        (self.0 * t, 1.0 - t * t)
    }
}

/// `y = f(x, z)`, value by value.
fn map(x: &[f32], z: &[f32], f: impl Fn(f32, f32) -> f32 + Copy + Sync) -> Vec<f32> {
    let mut y = zeros(x.len());
    pool::for_each_chunk(&mut y, CHUNK, |i, y| {
        let part = i * CHUNK..i * CHUNK + y.len();
        let (x, z) = (&x[part.clone()], &z[part]);
        vector::wide(
            #[inline(always)]
            || y.iter_mut().zip(x).zip(z).for_each(|((y, &x), &z)| *y = f(x, z)),
        );
    });
    y
}

struct Alone<F>(F);

impl<F: Curve> CustomOp1 for Alone<F> {
    fn name(&self) -> &'static str {
        "activate"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(self.name(), storage, layout)?;
        let f = self.0;
        Ok(output(
            map(
                x,
                x,
                #[inline(always)]
                move |x, _| f.at(x).0,
            ),
            layout.shape(),
        ))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.contiguous()?;
        let (xs, gs) = (Held::new(self.name(), x)?, Held::new(self.name(), &g)?);
        let f = self.0;
        gradient(x, || {
            map(
                xs.values(),
                gs.values(),
                #[inline(always)]
                move |x, g| g * f.at(x).1,
            )
        })
    }
}

struct Gate<F>(F);

impl<F: Curve> Gate<F> {
    /// `(dgate, dup)`: `g·up·f'(gate)`, `g·f(gate)`.
    fn gradients(&self, gate: &[f32], up: &[f32], g: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let f = self.0;
        let (mut dgate, mut dup) = (zeros(gate.len()), zeros(gate.len()));
        parts::for_each_pair(&mut dgate, &mut dup, (CHUNK, CHUNK), |i, dgate, dup| {
            let part = i * CHUNK..i * CHUNK + dgate.len();
            let (gate, up, g) = (&gate[part.clone()], &up[part.clone()], &g[part]);
            vector::wide(
                #[inline(always)]
                || {
                    let inputs = gate.iter().zip(up).zip(g);
                    for ((dgate, dup), ((&x, &up), &g)) in dgate.iter_mut().zip(dup).zip(inputs) {
                        let (y, slope) = f.at(x);
                        (*dgate, *dup) = (g * up * slope, g * y);
                    }
                },
            );
        });
        (dgate, dup)
    }
}

impl<F: Curve> CustomOp2 for Gate<F> {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (values(self.name(), s1, l1)?, values(self.name(), s2, l2)?);
        let f = self.0;
        Ok(output(
            map(
                gate,
                up,
                #[inline(always)]
                move |x, up| f.at(x).0 * up,
            ),
            l1.shape(),
        ))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let name = self.name();
        let held = [Held::new(name, gate)?, Held::new(name, up)?, Held::new(name, &g)?];
        let [gates, ups, gs] = held.each_ref().map(Held::values);
        let (dgate, dup) = self.gradients(gates, ups, gs);
        Ok((gradient(gate, || dgate)?, gradient(up, || dup)?))
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "infinities")]
mod tests {
    use super::*;
    use crate::testing::{check, constant, flat, tensor, var};

    const ALL: [Activation; 4] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu];

    /// `2/√π · e^(-x²) Σ 2ⁿ x^(2n+1) / (2n+1)!!`: every term has the sign of x.
    fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, 0.0);
        for n in 0..200 {
            sum += term;
            term *= 2.0 * x * x / f64::from(2 * n + 3);
        }
        std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
    }

    fn reference(f: Activation, x: f64) -> f64 {
        match f {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
            }
            Activation::Relu => x.max(0.0),
        }
    }

    #[test]
    fn every_function_matches_its_reference() {
        for f in ALL {
            // Four times the values, towards the flat ends.
            let scaled = |a: &[Vec<f64>]| a[0].iter().map(|x| reference(f, 4.0 * x)).collect();
            check(&[var(&[7, 9])], |a| activate(&(&a[0] * 4.0)?, f), scaled);
            let plain = |a: &[Vec<f64>]| a[0].iter().map(|x| reference(f, *x)).collect();
            check(&[constant(&[40, 1000])], |a| activate(&a[0], f), plain);
        }
    }

    #[test]
    fn every_gate_matches_its_reference() {
        let shape = [3, 7];
        for f in ALL {
            let product = |a: &[Vec<f64>]| -> Vec<f64> {
                a[0].iter().zip(&a[1]).map(|(x, up)| reference(f, 4.0 * x) * up).collect()
            };
            for args in
                [[var(&shape), var(&shape)], [var(&shape), constant(&shape)], [constant(&shape), var(&shape)]]
            {
                check(&args, |a| gated(&(&a[0] * 4.0)?, &a[1], f), product);
            }
        }
        assert!(gated(&tensor(1, &[2, 3]), &tensor(2, &[3, 2]), Activation::Gelu).is_err());
    }

    #[test]
    fn a_soft_cap_matches_its_reference() {
        let reference = |a: &[Vec<f64>]| a[0].iter().map(|x| 0.7 * (x / 0.7).tanh()).collect();
        check(&[var(&[7, 9])], |a| soft_cap(&a[0], 0.7), reference);
    }

    #[test]
    fn flat_ends_and_infinities_are_kept() {
        let inf = f32::INFINITY;
        let x = Tensor::new(&[-60f32, -9.0, 60.0, inf, f32::NAN], &candle_core::Device::Cpu).unwrap();
        for f in ALL {
            let y = flat(&activate(&x, f).unwrap());
            assert!(y[0].abs() < 1e-20 && y[1] <= 0.0 && y[1] > -2e-3, "{f:?}: {y:?}");
            assert!((y[2] - 60.0).abs() < 1e-4 && y[3] == inf && y[4].is_nan(), "{f:?}: {y:?}");
        }
    }

    #[test]
    fn names_are_those_of_config_json() {
        assert_eq!(Activation::named("gelu_new"), Some(Activation::GeluTanh));
        assert_eq!(Activation::named("gelu"), Some(Activation::Gelu));
        assert_eq!(Activation::named("mish"), None);
    }
}
