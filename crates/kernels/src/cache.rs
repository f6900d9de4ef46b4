//! Keys or values of one layer of one sequence, growing token by token. Which sequence, and which tokens, is its owner's.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::Stored;
use crate::product::widen;

/// What a cache rounds its values to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheDtype {
    /// Nothing: as they were computed.
    #[default]
    F32,
    /// IEEE binary16: half the memory, 11 significant bits; a value beyond 65504 becomes infinite.
    F16,
    /// bfloat16: half the memory, 8 significant bits.
    Bf16,
}

impl CacheDtype {
    fn stored(self) -> Stored {
        match self {
            Self::F32 => Stored::F32,
            Self::F16 => Stored::F16,
            Self::Bf16 => Stored::Bf16,
        }
    }

    fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }
}

/// Rows of keys or values `(T, K·E)`. Products with them are in f32.
#[derive(Clone, Debug)]
pub struct CacheRows {
    dtype: CacheDtype,
    width: usize,
    bytes: Vec<u8>,
}

impl CacheRows {
    /// No rows yet, of `width` values each.
    pub fn new(width: usize, dtype: CacheDtype) -> Self {
        Self { dtype, width, bytes: Vec::new() }
    }

    /// What they are rounded to.
    pub fn dtype(&self) -> CacheDtype {
        self.dtype
    }

    /// T.
    pub fn rows(&self) -> usize {
        self.bytes.len() / self.row().max(1)
    }

    /// Makes room for `rows` in all, so that they are not moved while it fills.
    pub fn reserve(&mut self, rows: usize) {
        let bytes = rows.saturating_mul(self.row());
        self.bytes.reserve_exact(bytes.saturating_sub(self.bytes.len()));
    }

    /// Forgets all rows from `rows` on.
    pub fn truncate(&mut self, rows: usize) {
        self.bytes.truncate(rows.saturating_mul(self.row()));
    }

    /// Appends whole rows.
    pub fn append(&mut self, rows: &[f32]) {
        let start = self.bytes.len();
        self.bytes.resize(start + rows.len() * self.dtype.size(), 0);
        let to = &mut self.bytes[start..];
        match self.dtype {
            CacheDtype::F32 => to.copy_from_slice(bytemuck::cast_slice(rows)),
            CacheDtype::F16 => {
                let mut rounded = vec![f16::ZERO; rows.len()];
                rounded.convert_from_f32_slice(rows);
                to.copy_from_slice(bytemuck::cast_slice(&rounded));
            }
            CacheDtype::Bf16 => {
                let mut rounded = vec![bf16::ZERO; rows.len()];
                rounded.convert_from_f32_slice(rows);
                to.copy_from_slice(bytemuck::cast_slice(&rounded));
            }
        }
    }

    /// `columns` of the rows in `rows`, side by side, into `to`.
    pub(crate) fn gather(&self, rows: Range<usize>, columns: Range<usize>, to: &mut Vec<f32>) {
        let (size, stored) = (self.dtype.size(), self.dtype.stored());
        to.resize(rows.len() * columns.len(), 0.0);
        for (row, to) in rows.zip(to.chunks_exact_mut(columns.len())) {
            let start = row * self.row() + columns.start * size;
            widen(&self.bytes[start..start + columns.len() * size], stored, to);
        }
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Bytes of a row.
    fn row(&self) -> usize {
        self.width * self.dtype.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_rounded_to_their_dtype() {
        let values = [1.0, -2.5, 1.0 + 1.0 / 1024.0, 3e4, 1e-3, -0.1, 7.25, 1e5];
        let round = [
            (CacheDtype::F32, (|v| v) as fn(f32) -> f32),
            (CacheDtype::F16, |v| f16::from_f32(v).to_f32()),
            (CacheDtype::Bf16, |v| bf16::from_f32(v).to_f32()),
        ];
        for (dtype, round) in round {
            let mut rows = CacheRows::new(4, dtype);
            rows.reserve(3);
            rows.append(&values[..4]);
            rows.append(&values[..4]);
            rows.truncate(1);
            rows.append(&values[4..]);
            assert_eq!(rows.rows(), 2);
            let mut found = Vec::new();
            rows.gather(0..2, 1..4, &mut found);
            assert_eq!(found, [1, 2, 3, 5, 6, 7].map(|i| round(values[i])));
        }
    }
}
