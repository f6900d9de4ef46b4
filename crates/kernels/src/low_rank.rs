//! The arithmetic of a low-rank term `s · (dropout(x) Aᵀ) Bᵀ` and of its gradients, on slices.

use std::ops::Range;

use candle_core::Result;

use crate::buffers::{by_chunk, zeros};
use crate::operand::Held;
use crate::product::dense::{Dims, Write, nn};
use crate::product::{self, Direction, Prepared, Rest};
use crate::{Compute, Dropout, LowRank, Weight, parts};

/// `weight += s · B[rows] A`: the low-rank term of some rows of a weight, `weight` `(rows.len(), in)`, in f32.
pub fn add_low_rank(factors: &LowRank<'_>, rows: Range<usize>, weight: &mut [f32]) -> Result<()> {
    const OP: &str = "add_low_rank";
    let ((rank, inputs), (outputs, _)) = (factors.a.dims2()?, factors.b.dims2()?);
    check(OP, factors, (outputs, inputs))?;
    if rows.end > outputs || weight.len() != rows.len() * inputs {
        candle_core::bail!("{OP}: {} values for rows {rows:?} of {outputs} x {inputs}", weight.len());
    }
    let held = [Held::new(OP, factors.a)?, Held::new(OP, factors.b)?];
    let [a, b] = held.each_ref().map(Held::values);
    let dims = Dims { m: rows.len(), n: inputs, k: rank };
    nn(
        Compute::F32,
        (weight, &b[rows.start * rank..rows.end * rank], a),
        dims,
        Write::Add(factors.scaling as f32),
    );
    Ok(())
}

/// The factors' shapes against a weight of `outputs x inputs`; their rank.
fn check(op: &str, factors: &LowRank<'_>, (outputs, inputs): (usize, usize)) -> Result<usize> {
    let (rank, a_cols) = factors.a.dims2()?;
    let (b_rows, b_rank) = factors.b.dims2()?;
    if (a_cols, b_rows, b_rank) != (inputs, outputs, rank) || rank == 0 {
        candle_core::bail!(
            "{op}: factors A {:?} and B {:?} do not fit a weight of {outputs} x {inputs}",
            factors.a.shape(),
            factors.b.shape()
        );
    }
    Ok(rank)
}

/// The sizes and constants of a low-rank term.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Term {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) rank: usize,
    pub(crate) scaling: f32,
    dropout: Option<Dropout>,
    compute: Compute,
}

impl Term {
    /// Of factors that fit the weight, computed as it is.
    pub(crate) fn new(op: &str, factors: &LowRank<'_>, weight: &Weight) -> Result<Self> {
        let (outputs, inputs) = (weight.rows(), weight.cols());
        let rank = check(op, factors, (outputs, inputs))?;
        let dropout = factors.dropout.filter(|dropout| !dropout.is_identity());
        if dropout.is_some_and(|dropout| dropout.p.is_nan() || dropout.p >= 1.0) {
            candle_core::bail!("{op}: the probability of dropout is not in [0, 1)");
        }
        let (scaling, compute) = (factors.scaling as f32, weight.compute());
        Ok(Self { inputs, outputs, rank, scaling, dropout, compute })
    }

    /// Whether its input is dropped in part.
    pub(crate) fn has_dropout(&self) -> bool {
        self.dropout.is_some()
    }

    /// `dropout(x)` `(n, in)`, where that is not `x`; the mask's index of `x`'s first row is `row`.
    pub(crate) fn dropped(&self, x: &Prepared<'_>, row: usize) -> Option<Prepared<'static>> {
        let dropout = self.dropout?;
        let x = x.values();
        let chunk = parts::rows_per_task(self.inputs) * self.inputs;
        let dropped = by_chunk(x.len(), chunk, |i, out| {
            out.copy_from_slice(&x[i * chunk..][..out.len()]);
            dropout.apply(out, row * self.inputs + i * chunk);
        });
        Some(Prepared::new(self.compute, dropped, self.inputs))
    }

    /// `u = s · dropped Aᵀ` `(n, R)`.
    pub(crate) fn down(&self, dropped: &Prepared<'_>, a: &[f32]) -> Vec<f32> {
        let mut u = dropped.times(a, Direction::Forward);
        self.scale(&mut u);
        u
    }

    /// `v = s · g B` `(n, R)`.
    pub(crate) fn pull(&self, g: &Prepared<'_>, b: &[f32]) -> Vec<f32> {
        let mut v = g.times(b, Direction::Backward);
        self.scale(&mut v);
        v
    }

    /// Times `s`: the few values of `u` or `v`, not all that they are made of.
    pub(crate) fn scale(&self, values: &mut [f32]) {
        for value in values {
            *value *= self.scaling;
        }
    }

    /// `u Bᵀ` beside the product of the frozen weight.
    pub(crate) fn up<'a>(&self, u: &'a [f32], b: &'a [f32]) -> product::Term<'a> {
        product::Term { u, b, rank: self.rank, direction: Direction::Forward }
    }

    /// `v A` beside the gradient that goes through the frozen weight.
    fn back<'a>(&self, v: &'a [f32], a: &'a [f32]) -> product::Term<'a> {
        product::Term { u: v, b: a, rank: self.rank, direction: Direction::Backward }
    }

    /// `dx = onto + g W + mask ∘ (v A)`; the mask's index of the first row is `row`.
    pub(crate) fn input_gradient(
        &self,
        (weight, g): (&Weight, &Prepared<'_>),
        (v, a): (&[f32], &[f32]),
        onto: Option<&[f32]>,
        row: usize,
    ) -> Vec<f32> {
        let term = (!self.has_dropout()).then(|| self.back(v, a));
        let mut dx = weight.transposed_finished(g, &Rest { term, onto, ..Rest::default() });
        self.add_masked((v, a), &mut dx, row);
        dx
    }

    /// `dx += g W + mask ∘ (v A)`.
    pub(crate) fn add_input_gradient(
        &self,
        (weight, g): (&Weight, &Prepared<'_>),
        (v, a): (&[f32], &[f32]),
        dx: &mut [f32],
        row: usize,
    ) {
        let term = (!self.has_dropout()).then(|| self.back(v, a));
        weight.add_product_transposed(g, dx, term);
        self.add_masked((v, a), dx, row);
    }

    /// `dx += mask ∘ (v A)`, where there is dropout.
    fn add_masked(&self, (v, a): (&[f32], &[f32]), dx: &mut [f32], row: usize) {
        let Some(dropout) = self.dropout else { return };
        let dims = Dims { m: v.len() / self.rank, n: self.inputs, k: self.rank };
        let mut term = zeros(dx.len());
        nn(self.compute, (&mut term, v, a), dims, Write::Set(1.0));
        let chunk = parts::rows_per_task(self.inputs) * self.inputs;
        parts::for_each_pair(dx, &mut term, (chunk, chunk), |i, dx, term| {
            dropout.apply(term, row * self.inputs + i * chunk);
            for (d, t) in dx.iter_mut().zip(term) {
                *d += *t;
            }
        });
    }

    /// `dA += vᵀ dropped`.
    pub(crate) fn add_a_gradient(v: &[f32], dropped: &Prepared<'_>, da: &mut [f32]) {
        dropped.add_beneath(v, da);
    }

    /// `dB += gᵀ u`.
    pub(crate) fn add_b_gradient(g: &Prepared<'_>, u: &[f32], db: &mut [f32]) {
        g.add_transposed(u, db);
    }
}
