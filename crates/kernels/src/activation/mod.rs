//! The element-wise functions of feed-forward layers, alone and as gates.

mod curve;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use crate::buffers::{by_chunk, rows};
use crate::operand::{Held, gradient, output, values};
pub(crate) use curve::Function;
use curve::SoftCap;

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
    x.apply_op1(Alone(f))
}

/// `f(gate) ⊙ up`, both `(N, F)`: SwiGLU, GEGLU (arXiv:2002.05202).
pub fn gated(gate: &Tensor, up: &Tensor, f: Activation) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        candle_core::bail!("gated: gate {:?} and up {:?} differ in shape", gate.shape(), up.shape());
    }
    gate.apply_op2(up, Gate(f))
}

/// `c·tanh(x/c)`, value by value, in the shape of `x`: logits under a soft cap `c > 0` (arXiv:2408.00118 §2).
pub fn soft_cap(x: &Tensor, cap: f32) -> Result<Tensor> {
    x.apply_op1(Alone(SoftCap(cap)))
}

/// [`Function::apply`] on the pool.
pub(crate) fn apply<F: Function>(f: F, gate: &[f32], up: Option<&[f32]>) -> Vec<f32> {
    by_chunk(gate.len(), CHUNK, |i, y| {
        let part = i * CHUNK..i * CHUNK + y.len();
        f.apply(&gate[part.clone()], up.map(|up| &up[part]), y);
    })
}

/// [`Function::pull_back`] on the pool: the result, and the gradients of gate and, where there is one, of up; of rows as `x`
/// has them.
fn pull_back<F: Function>(f: F, x: &Tensor, gate: &[f32], up: Option<&[f32]>, g: &[f32]) -> Vec<Vec<f32>> {
    let width = x.dims().last().copied().unwrap_or(1).max(1);
    rows((if up.is_some() { 3 } else { 2 }, g.len() / width, width), |i, back| {
        let row = i * width..(i + 1) * width;
        f.pull_back(&gate[row.clone()], up.map(|up| &up[row.clone()]), &g[row], back);
    })
}

struct Alone<F>(F);

impl<F: Function> CustomOp1 for Alone<F> {
    fn name(&self) -> &'static str {
        "activate"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(self.name(), storage, layout)?;
        Ok(output(apply(self.0, x, None), layout.shape()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.contiguous()?;
        let (xs, gs) = (Held::new(self.name(), x)?, Held::new(self.name(), &g)?);
        gradient(x, || {
            let (xs, gs) = (xs.values(), gs.values());
            pull_back(self.0, x, xs, None, gs).swap_remove(1)
        })
    }
}

struct Gate(Activation);

impl CustomOp2 for Gate {
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
        Ok(output(apply(self.0, gate, Some(up)), l1.shape()))
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
        let mut found = pull_back(self.0, gate, gates, Some(ups), gs);
        let (dup, dgate) = (found.swap_remove(2), found.swap_remove(1));
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
