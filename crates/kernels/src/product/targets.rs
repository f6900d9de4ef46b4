//! Several products of the same rows, each with what is added to it: what the layers that share an input make of it.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "parts of a result that tasks have to themselves")
)]

#[cfg(target_arch = "x86_64")]
use super::{Direction, Matrix};
use super::{Prepared, Rest, Right};
#[cfg(target_arch = "x86_64")]
use crate::Stored;
#[cfg(target_arch = "x86_64")]
use crate::pool::Disjoint;

/// A product of some rows and what else belongs to it.
pub(crate) struct Target<'a> {
    /// `Wᵀ`, of `W` `(n, k)`.
    pub(crate) w: Right<'a>,
    pub(crate) rest: Rest<'a>,
    /// `(m, n)`; what it held is not read.
    pub(crate) y: &'a mut [f32],
}

impl Prepared<'_> {
    /// Makes every target's `y`. With few rows, all in one job, each part of a result finished where it was made.
    pub(crate) fn targets(&self, targets: &mut [Target<'_>]) {
        #[cfg(target_arch = "x86_64")]
        if self.few_rows(targets) {
            return;
        }
        for Target { w, rest, y } in targets {
            self.finished_into(*w, y, rest);
        }
    }

    /// Whether the rows were few enough.
    #[cfg(target_arch = "x86_64")]
    fn few_rows(&self, targets: &mut [Target<'_>]) -> bool {
        if targets.iter().any(|target| target.w.direction == Direction::Backward) {
            return false;
        }
        // One of blocks, or at least not of bf16, decides for all.
        let rank = |stored: &Stored| (stored.block(), *stored != Stored::Bf16);
        let stored = targets.iter().map(|target| target.w.w.stored).max_by_key(rank);
        let simd = stored.and_then(|stored| self.simd(stored, Direction::Forward));
        let Some(simd) = simd.filter(|simd| simd.are_few(Direction::Forward)) else { return false };
        let ws: Vec<Matrix<'_>> = targets.iter().map(|target| target.w.w).collect();
        let rests: Vec<Rest<'_>> = targets.iter().map(|target| target.rest).collect();
        for (rest, w) in rests.iter().zip(&ws) {
            rest.check(self.m, w.rows);
        }
        let ys: Vec<_> = targets.iter_mut().map(|target| Disjoint::new(target.y)).collect();
        simd.few_rows((&ws, &ys), false, &|i, columns| {
            // SAFETY: these columns are this call's alone.
            unsafe { rests[i].finish_part(ws[i].rows, &ys[i], (0..self.m, columns)) }
        });
        true
    }
}
