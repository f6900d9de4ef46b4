//! The functions themselves, and the loops over slices that apply them and pull gradients back through them.

#![expect(
    clippy::inline_always,
    reason = "a body must be compiled inside the function that enables its instructions"
)]

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use half::bf16;

use super::Activation;
use crate::vector;

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
        let (twice, bell) = vector::erfc(-x * FRAC_1_SQRT_2);
        let share = 0.5 * twice;
        (x * share, share + x * FACTOR * bell)
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
pub(super) struct SoftCap(pub(super) f32);

impl Curve for SoftCap {
    #[inline(always)]
    fn at(self, x: f32) -> (f32, f32) {
        let t = vector::tanh(x / self.0);
        (self.0 * t, 1.0 - t * t)
    }
}

/// A value to be read: an f32, or what was rounded to bf16.
pub(crate) trait Value: Copy + Send + Sync {
    /// Always inlined.
    fn get(self) -> f32;
}

impl Value for f32 {
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
}

impl Value for bf16 {
    #[inline(always)]
    fn get(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// A function on slices, alone or as a gate; on the caller's thread.
pub(crate) trait Function: Copy + Send + Sync + 'static {
    /// `y = f(gate) ⊙ up`, or `f(gate)` where there is no `up`.
    fn apply(self, gate: &[f32], up: Option<&[f32]>, y: &mut [f32]);

    /// From the gradient `g` of that into `back`: `y` again, and the gradients of gate and, where there is one, of up.
    fn pull_back<V: Value>(self, gate: &[V], up: Option<&[V]>, g: &[f32], back: &mut [&mut [f32]]);
}

impl Function for Activation {
    fn apply(self, gate: &[f32], up: Option<&[f32]>, y: &mut [f32]) {
        match self {
            Self::Silu => apply(Silu, gate, up, y),
            Self::Gelu => apply(Gelu, gate, up, y),
            Self::GeluTanh => apply(GeluTanh, gate, up, y),
            Self::Relu => apply(Relu, gate, up, y),
        }
    }

    fn pull_back<V: Value>(self, gate: &[V], up: Option<&[V]>, g: &[f32], back: &mut [&mut [f32]]) {
        match self {
            Self::Silu => pull_back(Silu, gate, up, g, back),
            Self::Gelu => pull_back(Gelu, gate, up, g, back),
            Self::GeluTanh => pull_back(GeluTanh, gate, up, g, back),
            Self::Relu => pull_back(Relu, gate, up, g, back),
        }
    }
}

impl Function for SoftCap {
    fn apply(self, gate: &[f32], up: Option<&[f32]>, y: &mut [f32]) {
        apply(self, gate, up, y);
    }

    fn pull_back<V: Value>(self, gate: &[V], up: Option<&[V]>, g: &[f32], back: &mut [&mut [f32]]) {
        pull_back(self, gate, up, g, back);
    }
}

/// [`Function::apply`].
fn apply<F: Curve>(f: F, gate: &[f32], up: Option<&[f32]>, y: &mut [f32]) {
    vector::wide(
        #[inline(always)]
        || match up {
            None => {
                for (y, &x) in y.iter_mut().zip(gate) {
                    *y = f.at(x).0;
                }
            }
            Some(up) => {
                for ((y, &x), up) in y.iter_mut().zip(gate).zip(up) {
                    *y = f.at(x).0 * up;
                }
            }
        },
    );
}

/// [`Function::pull_back`]: the gradients are `g·up·f'(gate)` and `g·f(gate)`.
fn pull_back<F: Curve, V: Value>(f: F, gate: &[V], up: Option<&[V]>, g: &[f32], back: &mut [&mut [f32]]) {
    let read = gate.iter().zip(g);
    match (up, back) {
        (None, [result, dgate]) => vector::wide(
            #[inline(always)]
            || {
                for ((gate, g), (result, dgate)) in read.zip(result.iter_mut().zip(dgate.iter_mut())) {
                    let (y, slope) = f.at(gate.get());
                    (*result, *dgate) = (y, g * slope);
                }
            },
        ),
        (Some(up), [result, dgate, dup]) => vector::wide(
            #[inline(always)]
            || {
                let back = result.iter_mut().zip(dgate.iter_mut()).zip(dup.iter_mut());
                for (((gate, g), up), ((result, dgate), dup)) in read.zip(up).zip(back) {
                    let ((y, slope), up) = (f.at(gate.get()), up.get());
                    (*result, *dgate, *dup) = (y * up, g * up * slope, g * y);
                }
            },
        ),
        (_, back) => unreachable!("{} gradients", back.len()),
    }
}
