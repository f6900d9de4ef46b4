//! Products of dense `f32` matrices of which one dimension is small, row-major and contiguous: what a low-rank term and
//! its gradients need.
//!
//! Exact in f32, or with operands rounded to bf16 where the machine multiplies those and that is asked for. The result does not
//! depend on the number of threads.

use super::portable::{self, Strided};
use super::{Direction, Kernels, Prepared};
#[cfg(target_arch = "x86_64")]
use super::{Left, Matrix, Right, Simd, avx2, avx512};
use crate::Compute;
use crate::buffers::zeros;

/// Rows of C from which B is worth a copy into panels.
#[cfg(target_arch = "x86_64")]
const AVX2_ROWS: usize = 12;

/// C, A and B.
pub(crate) type Operands<'a> = (&'a mut [f32], &'a [f32], &'a [f32]);

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

/// `C (m, n) (+)= alpha · A (m, k) · B (n, k)ᵀ`.
pub(crate) fn nt(compute: Compute, operands: Operands<'_>, dims: Dims, write: Write) {
    Kernels::in_force().dense(compute, operands, (false, true), (dims, write));
}

/// `C (m, n) (+)= alpha · A (m, k) · B (k, n)`.
pub(crate) fn nn(compute: Compute, operands: Operands<'_>, dims: Dims, write: Write) {
    Kernels::in_force().dense(compute, operands, (false, false), (dims, write));
}

/// `C (m, n) (+)= alpha · A (k, m)ᵀ · B (k, n)`.
pub(crate) fn tn(compute: Compute, operands: Operands<'_>, dims: Dims, write: Write) {
    Kernels::in_force().dense(compute, operands, (true, false), (dims, write));
}

impl Kernels {
    /// `C (+)= alpha · A · B`, with A, B or none of them `transposed` in its slice.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(clippy::unused_self, unused_variables, reason = "there is one set of kernels")
    )]
    pub(super) fn dense(
        self,
        compute: Compute,
        (c, a, b): Operands<'_>,
        transposed: (bool, bool),
        (dims, write): (Dims, Write),
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
            let pairs = self == Self::Avx512Bf16 && compute == Compute::Bf16;
            return with_avx512(pairs, (c, a, b), transposed, dims, (alpha, add));
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

impl Prepared<'_> {
    /// `A Bᵀ` of a small `B (n, k)`, or `A B` of `B (k, n)`; in bf16 where A is held so.
    pub(crate) fn times(&self, b: &[f32], direction: Direction) -> Vec<f32> {
        let (m, k) = (self.m, self.k);
        let n = b.len() / k;
        let mut c = zeros(m * n);
        if c.is_empty() {
            return c;
        }
        #[cfg(target_arch = "x86_64")]
        if let Left::Pairs(left) = &self.left {
            let (rows, cols) = if direction == Direction::Forward { (n, k) } else { (k, n) };
            let right = Right::new(Matrix::dense(b, rows, cols), direction);
            Simd::Avx512(left.borrowed()).product(right, &mut c, false);
            return c;
        }
        let transposed = (false, direction == Direction::Forward);
        let values = (c.as_mut_slice(), self.exact(), b);
        self.kernels.dense(Compute::F32, values, transposed, (Dims { m, n, k }, Write::Set(1.0)));
        c
    }

    /// `C (r, k) += Uᵀ A` of a small `U (m, r)`; in bf16 where A is held so.
    pub(crate) fn add_beneath(&self, u: &[f32], c: &mut [f32]) {
        if u.is_empty() {
            return;
        }
        let (m, n, k) = (u.len() / self.m, self.k, self.m);
        #[cfg(target_arch = "x86_64")]
        if let Left::Pairs(left) = &self.left {
            return with_avx512_across((true, 1.0), (u, m), left.matrix(), (c, true, false));
        }
        let values = (c, u, self.exact());
        self.kernels.dense(Compute::F32, values, (true, false), (Dims { m, n, k }, Write::Add(1.0)));
    }

    /// `C (k, r) += Aᵀ U`; in bf16 where A is held so.
    pub(crate) fn add_transposed(&self, u: &[f32], c: &mut [f32]) {
        if u.is_empty() {
            return;
        }
        let (m, n, k) = (self.k, u.len() / self.m, self.m);
        #[cfg(target_arch = "x86_64")]
        if let Left::Pairs(left) = &self.left {
            return with_avx512_across((true, 1.0), (u, n), left.matrix(), (c, true, true));
        }
        let values = (c, self.exact(), u);
        self.kernels.dense(Compute::F32, values, (true, false), (Dims { m, n, k }, Write::Add(1.0)));
    }
}

/// The same in AVX-512, which the caller has found to exist.
#[cfg(target_arch = "x86_64")]
fn with_avx512(
    pairs: bool,
    (c, a, b): Operands<'_>,
    transposed: (bool, bool),
    Dims { m, n, k }: Dims,
    (alpha, add): (f32, bool),
) {
    let left = || avx512::Left::scaled(alpha, a, m, k);
    let right = |rows, cols, direction| Right::new(Matrix::dense(b, rows, cols), direction);
    match transposed {
        (false, true) => in_avx512(pairs, left(), right(n, k, Direction::Forward), c, add),
        (false, false) => in_avx512(pairs, left(), right(k, n, Direction::Backward), c, add),
        _ if m <= n => with_avx512_across((pairs, alpha), (a, m), Matrix::dense(b, k, n), (c, add, false)),
        // The longer side is the one that the kernels run along: Cᵀ = Bᵀ A.
        _ => with_avx512_across((pairs, alpha), (b, n), Matrix::dense(a, k, m), (c, add, true)),
    }
}

/// `C (+)= alpha · Uᵀ A` of `U (k, r)` and `A (k, n)`, or with `flipped` the transpose of that.
#[cfg(target_arch = "x86_64")]
fn with_avx512_across(
    (pairs, alpha): (bool, f32),
    (u, r): (&[f32], usize),
    a: Matrix<'_>,
    (c, add, flipped): (&mut [f32], bool, bool),
) {
    let left = avx512::Left::transposed(alpha, u, r, a.rows);
    let right = Right::new(a, Direction::Backward);
    if !flipped {
        return in_avx512(pairs, left, right, c, add);
    }
    let mut found = zeros(r * a.cols);
    in_avx512(pairs, left, right, &mut found, false);
    avx512::transpose(&found, right.w.cols, c, |c, value| *c = if add { *c } else { 0.0 } + value);
}

#[cfg(target_arch = "x86_64")]
fn in_avx512(pairs: bool, left: avx512::Left<'_>, right: Right<'_>, c: &mut [f32], add: bool) {
    // SAFETY: pairs are asked for only where bf16's instructions are.
    let left = if pairs { unsafe { left.in_pairs() } } else { left };
    Simd::Avx512(left).product(right, c, add);
}
