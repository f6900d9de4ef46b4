//! Products of dense `f32` matrices of which one dimension is small, row-major and contiguous: what a low-rank term and
//! its gradients need.
//!
//! Exact in f32. The result does not depend on the number of threads.

use super::Kernels;
use super::portable::{self, Strided};
#[cfg(target_arch = "x86_64")]
use super::{Direction, Matrix, Right, Simd, avx2, avx512};
#[cfg(target_arch = "x86_64")]
use crate::buffers::zeros;

/// Rows of C from which B is worth a copy into panels.
#[cfg(target_arch = "x86_64")]
const AVX2_ROWS: usize = 12;

/// Sizes of `C (m, n)`, and the contraction's length `k`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

/// What a product does to `C`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Write {
    /// `C = alpha · product`; what `C` held is not read.
    Set(f32),
    /// `C += alpha · product`.
    Add(f32),
}

/// `C (m, n) (+)= alpha · A (m, k) · B (n, k)ᵀ`: `u = x Aᵀ`.
pub(crate) fn nt(c: &mut [f32], a: &[f32], b: &[f32], dims: Dims, write: Write) {
    Kernels::in_force().dense((c, a, b), (false, true), dims, write);
}

/// `C (m, n) (+)= alpha · A (m, k) · B (k, n)`: `dx += v A`, `v = g B`.
pub(crate) fn nn(c: &mut [f32], a: &[f32], b: &[f32], dims: Dims, write: Write) {
    Kernels::in_force().dense((c, a, b), (false, false), dims, write);
}

/// `C (m, n) (+)= alpha · A (k, m)ᵀ · B (k, n)`: `dA = vᵀ x`, `dB = gᵀ u`.
pub(crate) fn tn(c: &mut [f32], a: &[f32], b: &[f32], dims: Dims, write: Write) {
    Kernels::in_force().dense((c, a, b), (true, false), dims, write);
}

impl Kernels {
    /// `C (+)= alpha · A · B`, with A, B or none of them `transposed` in its slice.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(clippy::unused_self, reason = "there is one set of kernels")
    )]
    pub(super) fn dense(
        self,
        (c, a, b): (&mut [f32], &[f32], &[f32]),
        transposed: (bool, bool),
        dims: Dims,
        write: Write,
    ) {
        let Dims { m, n, k } = dims;
        assert!(c.len() == m * n && a.len() == m * k && b.len() == k * n, "slices against {dims:?}");
        let (alpha, add) = match write {
            Write::Set(alpha) => (alpha, false),
            Write::Add(alpha) => (alpha, true),
        };
        if c.is_empty() || k == 0 {
            if !add {
                c.fill(0.0);
            }
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if self >= Self::Avx512 {
            return with_avx512((c, a, b), transposed, dims, (alpha, add));
        }
        #[cfg(target_arch = "x86_64")]
        if self == Self::Avx2 && !transposed.0 {
            let left = Simd::Avx2(avx2::Left { values: a, m, k, round: false, alpha, vnni: false });
            let right = if transposed.1 {
                Right::new(Matrix::dense(b, n, k), Direction::Forward)
            } else {
                Right::new(Matrix::dense(b, k, n), Direction::Backward)
            };
            if m >= AVX2_ROWS || left.are_few(right.direction) {
                return left.product(right, c, add);
            }
        }
        let strided = |values, transposed, rows, cols| {
            if transposed { Strided(values, 1, rows) } else { Strided(values, cols, 1) }
        };
        let (a, b) = (strided(a, transposed.0, m, k), strided(b, transposed.1, k, n));
        portable::tiles(c, (a, b), dims, (alpha, add));
    }
}

/// The same in AVX-512, which the caller has found to exist.
#[cfg(target_arch = "x86_64")]
fn with_avx512(
    (c, a, b): (&mut [f32], &[f32], &[f32]),
    transposed: (bool, bool),
    Dims { m, n, k }: Dims,
    (alpha, add): (f32, bool),
) {
    let right = |values, rows, cols, direction| Right::new(Matrix::dense(values, rows, cols), direction);
    let of = |left, right, c: &mut [f32], add| Simd::Avx512(left).product(right, c, add);
    let scaled = || avx512::Left::scaled(alpha, a, m, k);
    match transposed {
        (false, true) => of(scaled(), right(b, n, k, Direction::Forward), c, add),
        (false, false) => of(scaled(), right(b, k, n, Direction::Backward), c, add),
        _ if m <= n => {
            let left = avx512::Left::transposed(alpha, a, m, k);
            of(left, right(b, k, n, Direction::Backward), c, add);
        }
        // The longer side is the one that the kernels run along: Cᵀ = Bᵀ A.
        _ => {
            let left = avx512::Left::transposed(alpha, b, n, k);
            let mut flipped = zeros(m * n);
            of(left, right(a, k, m, Direction::Backward), &mut flipped, false);
            avx512::transpose(&flipped, m, c, |c, value| *c = if add { *c } else { 0.0 } + value);
        }
    }
}
