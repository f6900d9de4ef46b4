//! What a product becomes as it is made: its low-rank term, gain, bias, and what it is added to.

#![expect(unsafe_code, reason = "parts of a result that tasks have to themselves")]

use std::ops::Range;

use super::Direction;
use super::dense::{Dims, Write, nn, nt};
#[cfg(target_arch = "x86_64")]
use super::{Matrix, Right};
use crate::pool::{self, Disjoint};
use crate::{Compute, parts, vector};

/// Rows of `u` up to which short dot products are faster than a product by tiles, which costs more to begin.
const DOTS: usize = 4;

/// What else belongs to a result `y = gain ⊙ (p + u B) + bias + onto` of a product `p` `(m, n)`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Rest<'a> {
    pub(crate) term: Option<Term<'a>>,
    /// `(n,)`.
    pub(crate) gain: Option<&'a [f32]>,
    /// `(n,)`.
    pub(crate) bias: Option<&'a [f32]>,
    /// `(m, n)`.
    pub(crate) onto: Option<&'a [f32]>,
}

/// A low-rank term `u B`: of bf16 in tiles of those, else exact in f32.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a> {
    /// `(m, R)`.
    pub(crate) u: &'a [f32],
    /// `B` `(R, n)`, or where the direction is forward, its transpose `(n, R)`.
    pub(crate) b: &'a [f32],
    /// R.
    pub(crate) rank: usize,
    pub(crate) direction: Direction,
}

impl Term<'_> {
    /// `c += u B`, of `m` rows.
    fn add_to(&self, m: usize, c: &mut [f32]) {
        let dims = Dims { m, n: c.len() / m, k: self.rank };
        match self.direction {
            Direction::Forward => nt(Compute::F32, (c, self.u, self.b), dims, Write::Add(1.0)),
            Direction::Backward => nn(Compute::F32, (c, self.u, self.b), dims, Write::Add(1.0)),
        }
    }

    /// Some `rows` and `columns` of `u B`, which has `n` columns in all.
    fn part(&self, rows: &Range<usize>, columns: &Range<usize>, n: usize) -> Vec<f32> {
        let Self { b, rank, .. } = *self;
        let u = &self.u[rows.start * rank..rows.end * rank];
        let dims = Dims { m: rows.len(), n: columns.len(), k: rank };
        let mut part = vec![0.0; dims.m * dims.n];
        match self.direction {
            Direction::Forward => {
                let b = &b[columns.start * rank..columns.end * rank];
                if dims.m > DOTS {
                    nt(Compute::F32, (&mut part, u, b), dims, Write::Set(1.0));
                    return part;
                }
                for (u, part) in u.chunks_exact(rank).zip(part.chunks_exact_mut(dims.n)) {
                    vector::dots(u, b, part);
                }
            }
            Direction::Backward => {
                for (u, part) in u.chunks_exact(rank).zip(part.chunks_exact_mut(dims.n)) {
                    for (u, b) in u.iter().zip(b.chunks_exact(n)) {
                        vector::axpy(*u, &b[columns.clone()], part);
                    }
                }
            }
        }
        part
    }
}

#[cfg(target_arch = "x86_64")]
impl<'a> Term<'a> {
    /// `B` as the right operand of a product of `n` columns.
    pub(super) fn right(&self, n: usize) -> Right<'a> {
        let (rows, cols) = if self.direction == Direction::Forward { (n, self.rank) } else { (self.rank, n) };
        Right::new(Matrix::dense(self.b, rows, cols), self.direction)
    }
}

impl Rest<'_> {
    /// That it fits a product of `m` rows and `n` columns.
    pub(super) fn check(&self, m: usize, n: usize) {
        let fits = |values: Option<&[f32]>, len| values.is_none_or(|values| values.len() == len);
        let fits = fits(self.onto, m * n) && fits(self.bias, n) && fits(self.gain, n);
        let term = self.term.is_none_or(|Term { u, b, rank, .. }| u.len() == m * rank && b.len() == n * rank);
        assert!(fits && term, "what belongs to a product of {m} x {n}");
    }

    /// Makes a product `y` of `m` rows what it is to be.
    pub(super) fn finish(&self, m: usize, y: &mut [f32]) {
        if y.is_empty() {
            return;
        }
        if let Some(term) = self.term {
            term.add_to(m, y);
        }
        let rest = Rest { term: None, ..*self };
        let n = y.len() / m;
        let step = parts::rows_per_task(n);
        let y = Disjoint::new(y);
        if rest.gain.or(rest.bias).or(rest.onto).is_some() {
            pool::for_each(m.div_ceil(step), |i| {
                // SAFETY: each task has its own rows.
                unsafe { rest.finish_part(n, &y, (i * step..m.min((i + 1) * step), 0..n)) }
            });
        }
    }

    /// Finishes some rows and columns of `y`, which has `n` columns in all.
    ///
    /// # Safety
    /// They are the caller's alone.
    pub(super) unsafe fn finish_part(
        &self,
        n: usize,
        y: &Disjoint<'_, f32>,
        (rows, columns): (Range<usize>, Range<usize>),
    ) {
        let low = self.term.map(|term| term.part(&rows, &columns, n)).unwrap_or_default();
        let count = columns.len();
        for (i, row) in rows.enumerate() {
            let at = row * n + columns.start..row * n + columns.end;
            // SAFETY: the caller's.
            let y = unsafe { y.get(at.clone()) };
            add(y, low.get(i * count..(i + 1) * count));
            if let Some(gain) = self.gain {
                y.iter_mut().zip(&gain[columns.clone()]).for_each(|(y, gain)| *y *= gain);
            }
            add(y, self.bias.map(|bias| &bias[columns.clone()]));
            add(y, self.onto.map(|onto| &onto[at]));
        }
    }
}

fn add(y: &mut [f32], more: Option<&[f32]>) {
    if let Some(more) = more {
        y.iter_mut().zip(more).for_each(|(y, more)| *y += more);
    }
}
