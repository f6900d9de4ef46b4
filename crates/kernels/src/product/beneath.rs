//! What a product is added to, as it is made.

#[cfg(target_arch = "x86_64")]
use std::ops::Range;

use crate::buffers::{copied, repeated};
use crate::{parts, pool, vector};

/// What a new product is added to: nothing, a `matrix` of its size, a `row` added to each of its rows, or both.
#[derive(Clone, Copy, Default)]
pub(crate) struct Beneath<'a> {
    pub(crate) matrix: Option<&'a [f32]>,
    pub(crate) row: Option<&'a [f32]>,
}

impl Beneath<'_> {
    /// That it fits a product of `m` rows and `n` columns.
    pub(super) fn check(&self, m: usize, n: usize) {
        let fits = |values: Option<&[f32]>, len| values.is_none_or(|values| values.len() == len);
        assert!(fits(self.matrix, m * n) && fits(self.row, n), "what is beneath a product of {m} x {n}");
    }

    /// Its values, `len` in all; none where it is nothing.
    pub(super) fn values(&self, len: usize) -> Option<Vec<f32>> {
        match (self.matrix, self.row) {
            (None, None) => None,
            (Some(matrix), None) => Some(copied(matrix)),
            (None, Some(row)) => Some(repeated(row, len)),
            (Some(matrix), Some(row)) => {
                let mut sum = copied(matrix);
                add_to_rows(&mut sum, row);
                Some(sum)
            }
        }
    }
}

/// What a product that is written into C is added to.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) enum Onto<'a> {
    /// What C has.
    Itself,
    Other(Beneath<'a>),
}

#[cfg(target_arch = "x86_64")]
impl Onto<'_> {
    /// That it fits a product of `m` rows and `n` columns.
    pub(super) fn check(&self, m: usize, n: usize) {
        if let Self::Other(beneath) = self {
            beneath.check(m, n);
        }
    }

    /// What some `columns` of rows of C, whose first value is at `start` and at `c`, are added to: rows that lie as those of C
    /// do, and one row that each is added to. A later block of the contraction is added to what the `first` one has made.
    pub(super) fn at(
        &self,
        (c, start): (*const f32, usize),
        columns: Range<usize>,
        first: bool,
    ) -> (Option<*const f32>, Option<&[f32]>) {
        match self {
            Self::Other(Beneath { matrix, row }) if first => {
                (matrix.map(|matrix| matrix.as_ptr().wrapping_add(start)), row.map(|row| &row[columns]))
            }
            _ => (Some(c), None),
        }
    }
}

/// `c += row`, row by row.
pub(crate) fn add_to_rows(c: &mut [f32], row: &[f32]) {
    let chunk = parts::rows_per_task(row.len()) * row.len().max(1);
    pool::for_each_chunk(c, chunk, |_, rows| {
        for c in rows.chunks_exact_mut(row.len()) {
            vector::axpy(1.0, row, c);
        }
    });
}
