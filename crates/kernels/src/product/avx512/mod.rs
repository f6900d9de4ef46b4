//! Products in AVX-512, straight from stored weights: blocks of packed panels for many rows, a stream of dot products for few.
//!
//! `C = A · B`, where `B` is `W` or its transpose. `A` is used as it is, or converted to bf16 once a call; `B` is packed one
//! panel of at most 64 columns at a time, just before the panel is used, so no second copy of `W` ever exists. Packed
//! values are a stream of 32-bit words, one a *step* of the contraction: an `f32`, or a pair of bf16, two contraction
//! indices to a step. So blocks, threads and the shape of the kernel are the same for both.
//!
//! Everything `unsafe` here is so for two reasons: pointers, whose bounds each function states, and instructions, which
//! [`super::Kernels`] has found to exist. A function body that is compiled with and without the bf16 instructions is
//! `inline(always)` into one wrapper for each.

#![cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "intrinsics, whose names say where they are from")
)]
#![expect(unsafe_code, reason = "vector instructions on pointers into slices")]
#![expect(
    clippy::inline_always,
    reason = "a body must be compiled inside the wrapper that enables its instructions"
)]

mod blocked;
mod kernel;
mod left;
mod packing;
mod quantised;
mod right;
mod rows;

use std::arch::x86_64::*;

pub(super) use blocked::tiles;
pub(super) use left::{Left, transpose};
pub(super) use rows::few_rows;

use super::{Direction, Matrix};
use crate::RowOrder;

/// Whether [`few_rows`] is the faster way: a dot product ends in a sum across lanes, which is not worth it for a short
/// contraction.
pub(super) fn are_few(a: &Left<'_>, direction: Direction) -> bool {
    direction == Direction::Forward && a.m <= rows::FEW && a.k >= 16 * a.m.min(16)
}

/// A cache line of words.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

/// `Stored` as a const parameter.
const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;
const Q8_0: u8 = 3;
const Q4_0: u8 = 4;
const Q4_K: u8 = 5;
const Q5_K: u8 = 6;
const Q6_K: u8 = 7;

/// A part of a stored matrix.
#[derive(Clone, Copy)]
struct Region {
    /// The matrix's first row, from the first column of the region on; from its first block on, of a quantised one.
    start: *const u8,
    /// Bytes from stored row to stored row.
    stride: usize,
    order: RowOrder,
    /// First row and column.
    at: (usize, usize),
    rows: usize,
    cols: usize,
}

impl Region {
    /// The part of `w` at row and column `at`, of `shape`, which must lie inside it.
    fn new(w: &Matrix<'_>, at: (usize, usize), shape: (usize, usize)) -> Self {
        debug_assert!(at.0 + shape.0 <= w.rows && at.1 + shape.1 <= w.cols);
        let start = w.bytes.as_ptr().wrapping_add(at.1 * w.stored.size().unwrap_or(0));
        Self { start, stride: w.stride, order: w.order, at, rows: shape.0, cols: shape.1 }
    }

    /// Where row `i` of the region starts.
    #[inline(always)]
    fn row(&self, i: usize) -> *const u8 {
        self.start.wrapping_add(self.order.stored(self.at.0 + i) * self.stride)
    }
}

/// Picks the instance of a function for a stored type.
macro_rules! by_stored {
    ($stored:expr, $f:ident $(, $rest:tt)*) => {
        match $stored {
            Stored::F32 => $f::<F32 $(, $rest)*>,
            Stored::F16 => $f::<F16 $(, $rest)*>,
            Stored::Bf16 => $f::<BF16 $(, $rest)*>,
            Stored::Q8_0 => $f::<Q8_0 $(, $rest)*>,
            Stored::Q4_0 => $f::<Q4_0 $(, $rest)*>,
            Stored::Q4_K => $f::<Q4_K $(, $rest)*>,
            Stored::Q5_K => $f::<Q5_K $(, $rest)*>,
            Stored::Q6_K => $f::<Q6_K $(, $rest)*>,
        }
    };
}
use by_stored;

/// The lowest `n` of 16 lanes.
fn mask16(n: usize) -> __mmask16 {
    if n >= 16 { !0 } else { (1 << n) - 1 }
}

/// The lowest `n` of 32 lanes.
fn mask32(n: usize) -> __mmask32 {
    if n >= 32 { !0 } else { (1 << n) - 1 }
}

/// Sixteen values of type `S` at `p`, those in `mask`, as f32.
///
/// # Safety
/// AVX-512 F, BW, VL; the values in `mask` are readable.
#[inline(always)]
unsafe fn load16<const S: u8>(p: *const u8, mask: __mmask16) -> __m512 {
    // SAFETY: as above; the loads are masked.
    unsafe {
        match S {
            F32 => _mm512_maskz_loadu_ps(mask, p.cast()),
            F16 => _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p.cast())),
            _ => {
                let words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
            }
        }
    }
}

/// Thirty-two values of type `S` at `p`, the first `n` of them, as bf16 in order.
///
/// # Safety
/// AVX-512 F, BW, VL, and BF16 unless `S` is bf16; the first `n` values are readable.
#[inline(always)]
unsafe fn load_bf16<const S: u8>(p: *const u8, n: usize) -> __m512i {
    // SAFETY: as above; the loads are masked.
    unsafe {
        match S {
            F32 => {
                let low = _mm512_maskz_loadu_ps(mask16(n), p.cast());
                let high = _mm512_maskz_loadu_ps(mask16(n.saturating_sub(16)), p.wrapping_add(64).cast());
                round(low, high)
            }
            F16 => {
                let halves = _mm512_maskz_loadu_epi16(mask32(n), p.cast());
                let low = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
                round(low, _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(halves)))
            }
            _ => _mm512_maskz_loadu_epi16(mask32(n), p.cast()),
        }
    }
}

/// Both rounded to bf16, `low` in the lower half.
///
/// # Safety
/// AVX-512 F and BF16.
#[inline(always)]
unsafe fn round(low: __m512, high: __m512) -> __m512i {
    // SAFETY: the instructions exist, and any bits are an integer vector.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

/// `sum + a · b` of one step: a product of f32 words, or the two products of bf16 pairs.
///
/// # Safety
/// AVX-512 F, and BF16 for `PAIRS`.
#[inline(always)]
unsafe fn step<const PAIRS: bool>(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: the instructions exist, and any bits are a vector of bf16.
    unsafe {
        if PAIRS {
            let pairs = |v| std::mem::transmute::<__m512i, __m512bh>(v);
            _mm512_dpbf16_ps(sum, pairs(a), pairs(b))
        } else {
            _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum)
        }
    }
}
