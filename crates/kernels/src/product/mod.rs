//! The products behind [`Weight`](crate::Weight), and those of small dense matrices: AVX-512 where the machine has it, the
//! `gemm` crate elsewhere.
//!
//! No product makes a second copy of `W`, not even of a large part of it, and none depends on the number of threads.
//! Exact products follow IEEE 754: NaN and infinities in either operand reach the result.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls kernels whose instructions it has found to exist")
)]

#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod dense;
mod portable;
#[cfg(test)]
mod tests;

pub(crate) use portable::widen;

use crate::{Compute, Stored};

/// A matrix as it is stored: `rows x cols` little-endian values, row-major, at any alignment.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    bytes: &'a [u8],
    stored: Stored,
    rows: usize,
    cols: usize,
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
        assert_eq!(bytes.len(), rows * cols * stored.size(), "bytes of {rows} x {cols} values");
        Self { bytes, stored, rows, cols }
    }

    #[cfg(target_arch = "x86_64")]
    fn dense(values: &'a [f32], rows: usize, cols: usize) -> Self {
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

/// The sets of kernels, by the instructions they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(
    all(not(test), not(target_arch = "x86_64")),
    expect(dead_code, reason = "other machines have no AVX-512")
)]
enum Kernels {
    Portable,
    /// AVX-512 F, BW, VL.
    Avx512,
    /// And BF16.
    Avx512Bf16,
}

impl Kernels {
    /// The best that this machine runs.
    #[cfg(target_arch = "x86_64")]
    fn detect() -> Self {
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl");
        match avx512 {
            true if is_x86_feature_detected!("avx512bf16") => Self::Avx512Bf16,
            true => Self::Avx512,
            false => Self::Portable,
        }
    }

    /// The best that this machine runs.
    #[cfg(not(target_arch = "x86_64"))]
    fn detect() -> Self {
        Self::Portable
    }

    /// See [`product`].
    fn product(self, right: Right<'_>, compute: Compute, a: &[f32], c: &mut [f32]) {
        let (k, n) = right.dims();
        let m = c.len().checked_div(n).unwrap_or(0);
        assert!(
            c.len() == m * n && (n == 0 || a.len() == m * k),
            "{} and {} values in rows of {k} and {n}",
            a.len(),
            c.len()
        );
        if c.is_empty() || k == 0 {
            return c.fill(0.0);
        }
        let rounded: Vec<f32>;
        let (a, round) = match compute {
            Compute::Bf16 if self != Self::Avx512Bf16 => {
                let mut copy = a.to_vec();
                portable::to_bf16(&mut copy);
                rounded = copy;
                (&*rounded, right.w.stored != Stored::Bf16)
            }
            _ => (a, false),
        };
        #[cfg(target_arch = "x86_64")]
        if self != Self::Portable && !round {
            // SAFETY: `self` says that the instructions exist.
            return unsafe {
                let left = match compute {
                    Compute::Bf16 if self == Self::Avx512Bf16 => avx512::Left::rounded(a, m, k),
                    _ => avx512::Left::exact(a, m, k),
                };
                avx512::product(&left, right, c, false);
            };
        }
        portable::product(right, round, a, c);
    }
}

/// `C = A Wᵀ` or `C = A W`; the number of rows follows from `c`. `C` is overwritten.
pub(crate) fn product(right: Right<'_>, compute: Compute, a: &[f32], c: &mut [f32]) {
    Kernels::detect().product(right, compute, a, c);
}
