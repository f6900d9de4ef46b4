//! Products in the vector instructions that this machine has: by tiles for many rows, as a stream of dot products for few.

#![expect(unsafe_code, reason = "calls kernels whose instructions it has found to exist")]

use std::mem::MaybeUninit;
use std::ops::Range;

use super::{Direction, Kernels, Left, Matrix, Prepared, Rest, Right, avx2, avx512};
use crate::Stored;
use crate::pool::Disjoint;

/// The left operand, by the kernels that take it. Each is there only where its instructions are.
pub(super) enum Simd<'a> {
    Avx2(avx2::Left<'a>),
    Avx512(avx512::Left<'a>),
}

impl Prepared<'_> {
    /// The operand of products with a `stored` W, where there are such kernels for them and there is anything to multiply.
    pub(super) fn simd(&self, stored: Stored, direction: Direction) -> Option<Simd<'_>> {
        let Self { kernels, m, k, .. } = *self;
        let values = self.exact();
        if m == 0 || k == 0 || kernels == Kernels::Portable {
            return None;
        }
        let round = !matches!(self.left, Left::Exact);
        let vnni = kernels == Kernels::Avx512Bf16;
        let avx2 = |values| avx2::Left { values, m, k, round, alpha: 1.0, vnni };
        // Integers are multiplied as such there alone.
        if avx2::as_integers(m, stored, direction) && values.len() == m * k {
            return Some(Simd::Avx2(avx2(values)));
        }
        match (&self.left, kernels) {
            (Left::Pairs(pairs), _) => Some(Simd::Avx512(pairs.borrowed())),
            (Left::Exact, Kernels::Avx2) => Some(Simd::Avx2(avx2(values))),
            (Left::Rounded(values), Kernels::Avx2) => Some(Simd::Avx2(avx2(values))),
            (Left::Exact, _) => Some(Simd::Avx512(avx512::Left::exact(values, m, k))),
            (Left::Rounded(values), _) if stored == Stored::Bf16 => {
                Some(Simd::Avx512(avx512::Left::exact(values, m, k)))
            }
            // What W has is not rounded here.
            (Left::Rounded(_), _) => None,
        }
    }
}

impl Simd<'_> {
    /// Whether [`Simd::few_rows`] is the faster way.
    pub(super) fn are_few(&self, direction: Direction) -> bool {
        match self {
            Self::Avx2(left) => avx2::are_few(left, direction),
            Self::Avx512(left) => avx512::are_few(left, direction),
        }
    }

    /// `c = A · B`, or `c += A · B` where `add`.
    pub(super) fn product(&self, right: Right<'_>, c: &mut [f32], add: bool) {
        if self.are_few(right.direction) {
            return self.few_rows((&[right.w], &[Disjoint::new(c)]), add, &|_, _| ());
        }
        self.add_tiles(right, c, add, &Rest::default());
    }

    /// `c = rest(A · B)`, or `c += rest(A · B)` where `add`, and then without a gain.
    pub(super) fn add_tiles(&self, right: Right<'_>, c: &mut [f32], add: bool, rest: &Rest<'_>) {
        // SAFETY: what is written there are values.
        let c = unsafe { std::slice::from_raw_parts_mut(c.as_mut_ptr().cast(), c.len()) };
        // SAFETY: it has values.
        unsafe { self.tiles(right, c, add, rest) }
    }

    /// The same into memory that need not be set where nothing is added to it; writes all of it.
    ///
    /// # Safety
    /// `c` has values where it is added to.
    pub(super) unsafe fn tiles(
        &self,
        right: Right<'_>,
        c: &mut [MaybeUninit<f32>],
        add: bool,
        rest: &Rest<'_>,
    ) {
        assert!(!add || rest.gain.is_none(), "a gain on what a product is added to");
        // SAFETY: the instructions exist; the caller's.
        unsafe {
            match self {
                Self::Avx2(left) => avx2::tiles(*left, right, c, (add, rest)),
                Self::Avx512(left) => avx512::tiles(left, right, c, (add, rest)),
            }
        }
    }

    /// `y = A Wᵀ`, or added to y, for each of some `ws` and their `ys`: all in one job. After some columns of result `i` are
    /// there, `finish(i, columns)` has them to itself.
    pub(super) fn few_rows(
        &self,
        products: (&[Matrix<'_>], &[Disjoint<'_, f32>]),
        add: bool,
        finish: &(dyn Fn(usize, Range<usize>) + Sync),
    ) {
        // SAFETY: the instructions exist.
        unsafe {
            match self {
                Self::Avx2(left) => avx2::few_rows(*left, products, add, finish),
                Self::Avx512(left) => avx512::few_rows(left, products, add, finish),
            }
        }
    }
}
