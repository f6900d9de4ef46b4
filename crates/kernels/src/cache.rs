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

/// Rows of keys or values `(T, K·E)`, those of each head side by side. Products with them are in f32.
#[derive(Clone, Debug)]
pub struct CacheRows {
    dtype: CacheDtype,
    head_dim: usize,
    /// `(T, E)` of each head.
    heads: Vec<Vec<u8>>,
}

impl CacheRows {
    /// No rows yet, of K heads and E values of each.
    pub fn new((heads, head_dim): (usize, usize), dtype: CacheDtype) -> Self {
        Self { dtype, head_dim, heads: vec![Vec::new(); heads] }
    }

    /// What they are rounded to.
    pub fn dtype(&self) -> CacheDtype {
        self.dtype
    }

    /// T.
    pub fn rows(&self) -> usize {
        self.heads.first().map_or(0, Vec::len) / self.row().max(1)
    }

    /// Makes room for `rows` in all, so that they are not moved while it fills.
    pub fn reserve(&mut self, rows: usize) {
        let bytes = rows.saturating_mul(self.row());
        self.heads.iter_mut().for_each(|head| head.reserve_exact(bytes.saturating_sub(head.len())));
    }

    /// Forgets all rows from `rows` on.
    pub fn truncate(&mut self, rows: usize) {
        let bytes = rows.saturating_mul(self.row());
        self.heads.iter_mut().for_each(|head| head.truncate(bytes));
    }

    /// Appends whole rows.
    pub fn append(&mut self, rows: &[f32]) {
        match self.dtype {
            CacheDtype::F32 => self.append_bytes(bytemuck::cast_slice(rows)),
            CacheDtype::F16 => {
                let mut rounded = vec![f16::ZERO; rows.len()];
                rounded.convert_from_f32_slice(rows);
                self.append_bytes(bytemuck::cast_slice(&rounded));
            }
            CacheDtype::Bf16 => {
                let mut rounded = vec![bf16::ZERO; rows.len()];
                rounded.convert_from_f32_slice(rows);
                self.append_bytes(bytemuck::cast_slice(&rounded));
            }
        }
    }

    fn append_bytes(&mut self, rows: &[u8]) {
        let size = self.row();
        for row in rows.chunks_exact((size * self.heads.len()).max(1)) {
            for (head, part) in self.heads.iter_mut().zip(row.chunks_exact(size)) {
                head.extend_from_slice(part);
            }
        }
    }

    /// Those in `rows` of head `head`, side by side: where they lie, or widened into `buffer`.
    pub(crate) fn head<'b>(&'b self, head: usize, rows: Range<usize>, buffer: &'b mut Vec<f32>) -> &'b [f32] {
        let bytes = &self.heads[head][rows.start * self.row()..rows.end * self.row()];
        match bytemuck::try_cast_slice(bytes) {
            Ok(values) if self.dtype == CacheDtype::F32 => values,
            _ => {
                buffer.resize(rows.len() * self.head_dim, 0.0);
                widen(bytes, self.dtype.stored(), buffer);
                buffer
            }
        }
    }

    /// K and E.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.heads.len(), self.head_dim)
    }

    /// Bytes of a row of one head.
    fn row(&self) -> usize {
        self.head_dim * self.dtype.size()
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
            let mut rows = CacheRows::new((2, 2), dtype);
            rows.reserve(3);
            rows.append(&values[..4]);
            rows.append(&values[..4]);
            rows.truncate(1);
            rows.append(&values[4..]);
            assert_eq!(rows.rows(), 2);
            for (head, found) in [(0, [0, 1, 4, 5]), (1, [2, 3, 6, 7])] {
                assert_eq!(rows.head(head, 0..2, &mut Vec::new()), found.map(|i| round(values[i])));
                assert_eq!(rows.head(head, 1..2, &mut vec![9.0; 7]), [2, 3].map(|i| round(values[found[i]])));
            }
        }
    }
}
