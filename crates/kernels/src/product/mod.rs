//! The products behind [`Weight`](crate::Weight), and those of small dense matrices: AVX-512 or AVX2 where the machine has
//! them, the `gemm` crate elsewhere.
//!
//! No product makes a second copy of `W`, not even of a large part of it, and none depends on the number of threads.
//! Exact products follow IEEE 754: NaN and infinities in either operand reach the result.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls kernels whose instructions it has found to exist")
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod dense;
#[cfg(target_arch = "x86_64")]
mod plan;
mod portable;
mod prepared;
mod rest;
#[cfg(target_arch = "x86_64")]
mod simd;
pub(crate) mod targets;
#[cfg(test)]
mod tests;

pub(crate) use portable::widen;
#[cfg(target_arch = "x86_64")]
use prepared::Left;
pub(crate) use prepared::{Made, Prepared, Row};
pub(crate) use rest::{Rest, Term};
#[cfg(target_arch = "x86_64")]
use simd::Simd;

use std::sync::OnceLock;

use crate::{RowOrder, Stored, quantised};

/// A matrix as it is stored: `rows x cols` little-endian values or blocks of them, row-major, at any alignment.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    bytes: &'a [u8],
    stored: Stored,
    order: RowOrder,
    rows: usize,
    cols: usize,
    /// Bytes from row to row.
    stride: usize,
}

/// Which side of `W` the contraction runs along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// `C = A Wᵀ`: along its rows.
    Forward,
    /// `C = A W`: across its rows.
    Backward,
}

impl<'a> Matrix<'a> {
    /// The matrix that fills `bytes`.
    pub(crate) fn new(bytes: &'a [u8], stored: Stored, rows: usize, cols: usize) -> Self {
        let whole = stored.bytes(cols).and_then(|row| row.checked_mul(rows));
        assert_eq!(Some(bytes.len()), whole, "bytes of {rows} x {cols} values");
        let stride = bytes.len() / rows.max(1);
        Self { bytes, stored, order: RowOrder::default(), rows, cols, stride }
    }

    /// The same bytes with their rows in `order`.
    pub(crate) fn in_order(self, order: RowOrder) -> Self {
        Self { order, ..self }
    }

    /// The bytes of row `row`.
    #[inline]
    fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[self.order.stored(row) * self.stride..][..self.stride]
    }

    /// Values of row `row` from column `first` on, widened exactly.
    pub(crate) fn read(&self, row: usize, first: usize, out: &mut [f32]) {
        let line = self.row(row);
        match self.stored.size() {
            Some(size) => portable::widen(&line[first * size..][..out.len() * size], self.stored, out),
            None => quantised::read(line, self.stored, first, out),
        }
    }

    /// `values`, row-major.
    pub(crate) fn dense(values: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::new(bytemuck::cast_slice(values), Stored::F32, rows, cols)
    }
}

/// `W` as the right operand of a product.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    w: Matrix<'a>,
    direction: Direction,
}

impl<'a> Right<'a> {
    /// `Wᵀ` or `W`.
    pub(crate) fn new(w: Matrix<'a>, direction: Direction) -> Self {
        Self { w, direction }
    }

    /// (contraction length, columns of the product)
    fn dims(&self) -> (usize, usize) {
        match self.direction {
            Direction::Forward => (self.w.cols, self.w.rows),
            Direction::Backward => (self.w.rows, self.w.cols),
        }
    }
}

/// The sets of kernels for products, by the instructions they need; each has all that the ones before it have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kernels {
    /// Any machine's: the `gemm` crate, with NEON where it is.
    Portable,
    /// AVX2, FMA and F16C; where a small matrix is transposed, still the `gemm` crate.
    Avx2,
    /// AVX-512 F, BW and VL.
    Avx512,
    /// And BF16, and VNNI, which every processor with BF16 has.
    Avx512Bf16,
}

static IN_FORCE: OnceLock<Kernels> = OnceLock::new();

impl Kernels {
    /// Every set and its name.
    pub const NAMES: [(&str, Self); 4] = [
        ("portable", Self::Portable),
        ("avx2", Self::Avx2),
        ("avx512", Self::Avx512),
        ("avx512-bf16", Self::Avx512Bf16),
    ];

    /// Has products computed by these, or by the best that the machine runs where it lacks the instructions. The first call
    /// wins; a later one, or one after the first product, changes nothing.
    pub fn choose(self) {
        IN_FORCE.get_or_init(|| self.min(Self::best()));
    }

    /// Those chosen, or the best that this machine runs.
    fn in_force() -> Self {
        #[cfg(test)]
        tests::named().into_iter().for_each(Self::choose);
        *IN_FORCE.get_or_init(Self::best)
    }

    /// The best that this machine runs.
    #[cfg(target_arch = "x86_64")]
    fn best() -> Self {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl");
        let bf16 = is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vnni");
        match (avx2, avx512) {
            (true, true) if bf16 => Self::Avx512Bf16,
            (true, true) => Self::Avx512,
            (true, false) => Self::Avx2,
            (false, _) => Self::Portable,
        }
    }

    /// The best that this machine runs.
    #[cfg(not(target_arch = "x86_64"))]
    fn best() -> Self {
        Self::Portable
    }
}
