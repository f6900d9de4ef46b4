//! What a product becomes as it is made: its low-rank term, gain, bias, and what it is added to.

#![expect(unsafe_code, reason = "parts of a result that tasks have to themselves")]

use std::ops::Range;

use super::Direction;
use super::dense::{Dims, Write, nn, nt};
#[cfg(target_arch = "x86_64")]
use super::{Matrix, Right};
use crate::parts;
use crate::pool::{self, Disjoint};

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

/// A low-rank term `u B`, exact in f32.
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
    pub(super) fn add_to(&self, m: usize, c: &mut [f32]) {
        self.write(m, self.b, c, Write::Add(1.0));
    }

    fn write(&self, m: usize, b: &[f32], c: &mut [f32], write: Write) {
        let dims = Dims { m, n: c.len() / m, k: self.rank };
        match self.direction {
            Direction::Forward => nt(c, self.u, b, dims, write),
            Direction::Backward => nn(c, self.u, b, dims, write),
        }
    }

    /// Some `columns` of `u B`, which has `m` rows and `n` columns in all.
    fn columns(&self, m: usize, n: usize, columns: &Range<usize>) -> Vec<f32> {
        let mut low = vec![0.0; m * columns.len()];
        match self.direction {
            Direction::Forward => {
                let rank = self.rank;
                self.write(m, &self.b[columns.start * rank..columns.end * rank], &mut low, Write::Set(1.0));
            }
            Direction::Backward => {
                let rows = self.b.chunks_exact(n).flat_map(|row| &row[columns.clone()]);
                self.write(m, &rows.copied().collect::<Vec<_>>(), &mut low, Write::Set(1.0));
            }
        }
        low
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
                unsafe { rest.finish_part((m, n), &y, (i * step..m.min((i + 1) * step), 0..n)) }
            });
        }
    }

    /// Finishes some rows and columns of `y` `(m, n)`; all rows where there is a term.
    ///
    /// # Safety
    /// They are the caller's alone.
    pub(super) unsafe fn finish_part(
        &self,
        (m, n): (usize, usize),
        y: &Disjoint<'_, f32>,
        (rows, columns): (Range<usize>, Range<usize>),
    ) {
        let low = self.term.map(|term| term.columns(m, n, &columns)).unwrap_or_default();
        for (i, row) in rows.enumerate() {
            let at = row * n + columns.start..row * n + columns.end;
            // SAFETY: the caller's.
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
}

fn add(y: &mut [f32], more: Option<&[f32]>) {
    if let Some(more) = more {
        y.iter_mut().zip(more).for_each(|(y, more)| *y += more);
    }
}
