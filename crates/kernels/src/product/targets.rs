//! Several products of the same rows, each with what is added to it: what the layers that share an input make of it.

#![expect(
    unsafe_code,
    reason = "parts of a result that tasks have to themselves, and kernels whose instructions exist"
)]

#[cfg(target_arch = "x86_64")]
use std::ops::Range;

use super::dense::{Dims, Write, nt};
#[cfg(target_arch = "x86_64")]
use super::{Direction, Left, Matrix, avx2, avx512};
use super::{Prepared, Right};
#[cfg(target_arch = "x86_64")]
use crate::Stored;
use crate::parts;
use crate::pool::Disjoint;

/// `y = gain ⊙ (x Wᵀ + u Bᵀ) + bias + onto` of some rows of x.
pub(crate) struct Target<'a> {
    /// `Wᵀ`, of `W` `(n, k)`.
    pub(crate) w: Right<'a>,
    pub(crate) rest: Rest<'a>,
    /// `(m, n)`; what it held is not read.
    pub(crate) y: &'a mut [f32],
}

/// What is not the product with `W`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Rest<'a> {
    /// `u` `(m, R)` and `B` `(n, R)`.
    pub(crate) term: Option<(&'a [f32], &'a [f32])>,
    /// `(n,)`.
    pub(crate) gain: Option<&'a [f32]>,
    /// `(n,)`.
    pub(crate) bias: Option<&'a [f32]>,
    /// `(m, n)`.
    pub(crate) onto: Option<&'a [f32]>,
}

impl Prepared<'_> {
    /// Makes every target's `y`. With few rows, all in one job, each part of a result finished where it was made.
    pub(crate) fn targets(&self, targets: &mut [Target<'_>]) {
        #[cfg(target_arch = "x86_64")]
        if self.few_rows(targets) {
            return;
        }
        for Target { w, rest, y } in targets {
            let (_, n) = w.dims();
            self.product(*w, y, false);
            if let Some((u, b)) = rest.term {
                let dims = Dims { m: self.m, n, k: u.len() / self.m.max(1) };
                nt(y, u, b, dims, Write::Add(1.0));
            }
            let rest = Rest { term: None, ..*rest };
            let step = parts::rows_per_task(n);
            let y = Disjoint::new(y);
            crate::pool::for_each(self.m.div_ceil(step), |i| {
                rest.finish(&y, (i * step..self.m.min((i + 1) * step), 0..n), n);
            });
        }
    }

    /// Whether the rows were few enough.
    #[cfg(target_arch = "x86_64")]
    fn few_rows(&self, targets: &mut [Target<'_>]) -> bool {
        let Some(few) = self.few(targets) else { return false };
        let ws: Vec<Matrix<'_>> = targets.iter().map(|target| target.w.w).collect();
        let rests: Vec<Rest<'_>> = targets.iter().map(|target| target.rest).collect();
        let ys: Vec<_> = targets.iter_mut().map(|target| Disjoint::new(target.y)).collect();
        let finish =
            |i: usize, columns: Range<usize>| rests[i].finish(&ys[i], (0..self.m, columns), ws[i].rows);
        // SAFETY: each is there only where its instructions exist.
        unsafe {
            match few {
                Few::Avx2(x) => avx2::few_rows(x, (&ws, &ys), false, &finish),
                Few::Avx512(x) => avx512::few_rows(&x, (&ws, &ys), false, &finish),
                Few::Pairs(x) => avx512::few_rows(x, (&ws, &ys), false, &finish),
            }
        }
        true
    }

    /// The left operand, where its rows are few and there are kernels for them.
    #[cfg(target_arch = "x86_64")]
    fn few(&self, targets: &[Target<'_>]) -> Option<Few<'_>> {
        if targets.iter().any(|target| target.w.direction == Direction::Backward) {
            return None;
        }
        if let Some(x) = self.in_avx2() {
            return avx2::are_few(&x, Direction::Forward).then_some(Few::Avx2(x));
        }
        if let Left::Pairs(x) = &self.left {
            return avx512::are_few(x, Direction::Forward).then_some(Few::Pairs(x));
        }
        // One that is not of bf16 decides for all.
        let plain = |target: &&Target<'_>| target.w.w.stored != Stored::Bf16;
        let x =
            self.in_avx512(targets.iter().find(plain).map_or(Stored::Bf16, |target| target.w.w.stored))?;
        avx512::are_few(&x, Direction::Forward).then_some(Few::Avx512(x))
    }
}

/// A left operand of few rows, by the kernels that take it.
#[cfg(target_arch = "x86_64")]
enum Few<'a> {
    Avx2(avx2::Left<'a>),
    Avx512(avx512::Left<'a>),
    Pairs(&'a avx512::Left<'a>),
}

type Part = (std::ops::Range<usize>, std::ops::Range<usize>);

impl Rest<'_> {
    /// Finishes the rows and columns of `y` `(m, n)` in `part`, which are the caller's alone.
    fn finish(&self, y: &Disjoint<'_, f32>, (rows, columns): Part, n: usize) {
        let low = self.low_rank(&rows, &columns);
        for (i, row) in rows.enumerate() {
            let at = row * n + columns.start..row * n + columns.end;
            // SAFETY: the caller's alone.
            let y = unsafe { y.get(at.clone()) };
            let count = columns.len();
            add(y, low.get(i * count..(i + 1) * count));
            if let Some(gain) = self.gain {
                y.iter_mut().zip(&gain[columns.clone()]).for_each(|(y, gain)| *y *= gain);
            }
            add(y, self.bias.map(|bias| &bias[columns.clone()]));
            add(y, self.onto.map(|onto| &onto[at]));
        }
    }

    /// `u Bᵀ` of some rows and columns, or nothing.
    fn low_rank(&self, rows: &std::ops::Range<usize>, columns: &std::ops::Range<usize>) -> Vec<f32> {
        let Some((u, b)) = self.term else { return Vec::new() };
        let dims = Dims { m: rows.len(), n: columns.len(), k: u.len() / rows.len().max(1) };
        let mut low = vec![0.0; dims.m * dims.n];
        nt(&mut low, u, &b[columns.start * dims.k..columns.end * dims.k], dims, Write::Set(1.0));
        low
    }
}

fn add(y: &mut [f32], more: Option<&[f32]>) {
    if let Some(more) = more {
        y.iter_mut().zip(more).for_each(|(y, more)| *y += more);
    }
}
