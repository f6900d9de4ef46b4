//! The frozen linear layer with a low-rank term.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor};

use crate::low_rank::Term;
use crate::operand::{Held, gradient, output, values};
use crate::product::{self, Prepared, Rest};
use crate::{Dropout, Weight, add_bias};

const OP: &str = "linear";

/// The low-rank term `s·B·A` beside a frozen weight: `y += scaling · (dropout(x) Aᵀ) Bᵀ`.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// `A` `(R, in)`.
    pub a: &'a Tensor,
    /// `B` `(out, R)`.
    pub b: &'a Tensor,
    /// `s`.
    pub scaling: f64,
    /// Dropout on the term's input, while training.
    pub dropout: Option<Dropout>,
}

impl LowRank<'_> {
    /// Whether gradients of `A` or `B` are asked for.
    pub fn is_tracked(&self) -> bool {
        self.a.track_op() || self.b.track_op()
    }
}

/// `y = x Wᵀ + bias + s · (dropout(x) Aᵀ) Bᵀ`: `x` `(N, in)` to `(N, out)`.
///
/// Gradients reach `x`, `A`, `B` and `bias` where they are tracked; `W`'s is never formed.
pub fn linear(
    x: &Tensor,
    weight: &Weight,
    bias: Option<&Tensor>,
    low_rank: Option<LowRank<'_>>,
) -> Result<Tensor> {
    let (_, inputs) = x.dims2()?;
    if inputs != weight.cols() {
        candle_core::bail!(
            "{OP}: rows of {inputs} values against a weight of {} x {}",
            weight.rows(),
            weight.cols()
        );
    }
    if let Some(bias) = bias
        && bias.dims() != [weight.rows()]
    {
        candle_core::bail!("{OP}: bias {:?} against a weight of {} rows", bias.shape(), weight.rows());
    }
    if let Some(trained) = bias.filter(|bias| bias.track_op()) {
        return add_bias(&linear(x, weight, None, low_rank)?, trained);
    }
    let frozen = Frozen { weight: weight.clone(), bias: bias.map(Tensor::detach) };
    match low_rank {
        None => x.apply_op1(frozen),
        Some(factors) => {
            let term = Term::new(OP, &factors, weight)?;
            x.apply_op3(factors.a, factors.b, Adapted { frozen, term, u: OnceLock::new() })
        }
    }
}

/// `y = x Wᵀ + bias`.
struct Frozen {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Frozen {
    fn forward(&self, x: &Prepared<'_>, term: Option<product::Term<'_>>) -> Result<Vec<f32>> {
        let bias = self.bias.as_ref().map(|bias| Held::new(OP, bias)).transpose()?;
        let rest = Rest { term, bias: bias.as_ref().map(Held::values), ..Rest::default() };
        Ok(self.weight.finished(x, &rest))
    }

    /// Activations ready to go through the weight.
    fn ready<'a>(&self, x: &'a [f32]) -> Prepared<'a> {
        Prepared::new(self.weight.compute(), x, self.weight.cols())
    }

    /// A gradient ready to go back through the weight.
    fn prepared<'a>(&self, g: &'a [f32]) -> Prepared<'a> {
        Prepared::new(self.weight.compute(), g, self.weight.rows())
    }

    fn shape(&self, x: &Layout) -> Result<(usize, usize)> {
        Ok((x.shape().dims2()?.0, self.weight.rows()))
    }
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(output(self.forward(&self.ready(values(OP, storage, layout)?), None)?, self.shape(layout)?))
    }

    /// `dx = g W`.
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.contiguous()?;
        let g = Held::new(OP, &g)?;
        gradient(x, || self.weight.transposed_finished(&self.prepared(g.values()), &Rest::default()))
    }
}

/// [`Frozen`] and a low-rank term. Keeps `u = s · dropout(x) Aᵀ` `(N, R)` for backward.
struct Adapted {
    frozen: Frozen,
    term: Term,
    u: OnceLock<Vec<f32>>,
}

impl CustomOp3 for Adapted {
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
        let (x, a, b) = (values(OP, s1, l1)?, values(OP, s2, l2)?, values(OP, s3, l3)?);
        let x = self.frozen.ready(x);
        let dropped = self.term.dropped(&x, 0);
        let u = self.term.down(dropped.as_ref().unwrap_or(&x), a);
        let y = self.frozen.forward(&x, Some(self.term.up(&u, b)))?;
        // Each call of `linear` makes its own operation, so that nothing is there yet.
        let _ = self.u.set(u);
        Ok(output(y, self.frozen.shape(l1)?))
    }

    /// With `v = s · g B`: `dx = g W + mask∘(v A)`, `dA = vᵀ dropout(x)`, `dB = gᵀ u`.
    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let held = [Held::new(OP, x)?, Held::new(OP, a)?, Held::new(OP, b)?, Held::new(OP, &g)?];
        let [xs, a_s, bs, gs] = held.each_ref().map(Held::values);
        let u = self.u.get().ok_or_else(|| candle_core::Error::msg("linear: backward before forward"))?;
        let gs = self.frozen.prepared(gs);
        let v = if x.track_op() || a.track_op() { self.term.pull(&gs, bs) } else { Vec::new() };
        let dx = gradient(x, || {
            let through = (&self.frozen.weight, &gs);
            self.term.input_gradient(through, (&v, a_s), None, 0)
        })?;
        let da = gradient(a, || {
            let mut da = vec![0.0; a_s.len()];
            let xs = self.frozen.ready(xs);
            let dropped = self.term.dropped(&xs, 0);
            Term::add_a_gradient(&v, dropped.as_ref().unwrap_or(&xs), &mut da);
            da
        })?;
        let db = gradient(b, || {
            let mut db = vec![0.0; bs.len()];
            Term::add_b_gradient(&gs, u, &mut db);
            db
        })?;
        Ok((dx, da, db))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check, constant, tensor, values, var};

    const IN: usize = 7;
    const OUT: usize = 5;
    const SCALING: f64 = 1.7;

    fn weight() -> Weight {
        Weight::dense(values(50, OUT * IN), OUT, IN).unwrap()
    }

    fn matmul_t(x: &[f64], w: &[f64], inner: usize) -> Vec<f64> {
        let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(a, b)| a * b).sum::<f64>();
        x.chunks(inner).flat_map(|x| w.chunks(inner).map(|w| dot(x, w)).collect::<Vec<_>>()).collect()
    }

    /// Arguments: x, A, B, bias.
    fn reference(args: &[Vec<f64>], rank: usize, dropout: Option<Dropout>) -> Vec<f64> {
        let w: Vec<f64> = values(50, OUT * IN).into_iter().map(f64::from).collect();
        let mut mask = vec![1f32; args[0].len()];
        if let Some(dropout) = dropout {
            dropout.apply(&mut mask, 0);
        }
        let dropped: Vec<f64> = args[0].iter().zip(&mask).map(|(x, m)| x * f64::from(*m)).collect();
        let low = matmul_t(&matmul_t(&dropped, &args[1], IN), &args[2], rank);
        let base = matmul_t(&args[0], &w, IN);
        base.iter().zip(low).zip(args[3].iter().cycle()).map(|((y, l), b)| y + SCALING * l + b).collect()
    }

    fn run(args: &[Tensor], dropout: Option<Dropout>) -> Result<Tensor> {
        let factors = LowRank { a: &args[1], b: &args[2], scaling: SCALING, dropout };
        linear(&args[0], &weight(), Some(&args[3]), Some(factors))
    }

    #[test]
    fn the_frozen_layer_passes_the_gradient_of_its_input_alone() {
        let w: Vec<f64> = values(50, OUT * IN).into_iter().map(f64::from).collect();
        check(&[var(&[4, IN])], |a| linear(&a[0], &weight(), None, None), |a| matmul_t(&a[0], &w, IN));
        check(
            &[var(&[1, IN]), constant(&[OUT])],
            |a| linear(&a[0], &weight(), Some(&a[1]), None),
            |a| matmul_t(&a[0], &w, IN).iter().zip(&a[1]).map(|(y, b)| y + b).collect(),
        );
    }

    #[test]
    fn every_choice_of_tracked_arguments_gets_its_gradients() {
        let (n, rank) = (6, 3);
        let shapes: [&[usize]; 4] = [&[n, IN], &[rank, IN], &[OUT, rank], &[OUT]];
        for dropout in [None, Some(Dropout { p: 0.4, seed: 0 })] {
            for tracked in 0..16 {
                let args: Vec<_> = (0..4)
                    .map(|i| if tracked >> i & 1 == 1 { var(shapes[i]) } else { constant(shapes[i]) })
                    .collect();
                check(&args, |a| run(a, dropout), |a| reference(a, rank, dropout));
            }
        }
    }

    #[test]
    fn the_mask_follows_its_seed() {
        let args = [tensor(1, &[6, IN]), tensor(2, &[2, IN]), tensor(3, &[OUT, 2]), tensor(4, &[OUT])];
        let with = |seed| run(&args, Some(Dropout { p: 0.5, seed })).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(with(1), with(1));
        assert_ne!(with(1), with(2));
        assert_eq!(
            run(&args, Some(Dropout { p: 0.0, seed: 3 })).unwrap().to_vec2::<f32>().unwrap(),
            run(&args, None).unwrap().to_vec2::<f32>().unwrap()
        );
    }

    #[test]
    fn mismatched_factors_are_refused_with_their_shapes() {
        let args = [tensor(1, &[6, IN]), tensor(2, &[2, IN]), tensor(3, &[OUT, 3]), tensor(4, &[OUT])];
        let error = run(&args, None).unwrap_err().to_string();
        assert!(error.contains("A [2, 7] and B [5, 3]"), "{error}");
        assert!(linear(&tensor(1, &[2, 3]), &weight(), None, None).is_err());
        assert!(linear(&args[0], &weight(), Some(&tensor(1, &[IN])), None).is_err());
    }

    #[test]
    fn a_step_with_many_rows_agrees_with_autograd() {
        let (n, inputs, outputs, rank) = (300, 96, 130, 8);
        let w = tensor(7, &[outputs, inputs]);
        let weight = Weight::dense(crate::testing::flat(&w), outputs, inputs).unwrap();
        let vars: Vec<_> = [[n, inputs], [rank, inputs], [outputs, rank]]
            .iter()
            .zip(1..)
            .map(|(shape, i)| candle_core::Var::from_tensor(&tensor(i, shape)).unwrap())
            .collect();
        let [x, a, b] = [&vars[0], &vars[1], &vars[2]].map(|v| v.as_tensor().clone());
        let low = x.matmul(&a.t().unwrap()).unwrap().matmul(&b.t().unwrap()).unwrap();
        let plain = (x.matmul(&w.t().unwrap()).unwrap() + (low * SCALING).unwrap()).unwrap();
        let fused =
            linear(&x, &weight, None, Some(LowRank { a: &a, b: &b, scaling: SCALING, dropout: None }))
                .unwrap();
        let loss = |y: &Tensor| y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let (expected, found) = (loss(&plain), loss(&fused));
        for (i, var) in vars.iter().enumerate() {
            let [e, f] = [&expected, &found].map(|g| crate::testing::flat(g.get(var).unwrap()));
            let e: Vec<f64> = e.into_iter().map(f64::from).collect();
            crate::testing::assert_close(&format!("gradient {i}"), &f, &e, 1e-5);
        }
    }
}
