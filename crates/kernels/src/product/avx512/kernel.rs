//! The inner loop: a tile of C, held in registers, over one block of the contraction.

use std::arch::x86_64::*;

use super::{mask16, step};

/// What one call multiplies. Units of strides are words.
pub(super) struct Tile {
    pub(super) steps: usize,
    /// Rows of A: word `s` of row `i` at `i · lda + s`.
    pub(super) a: *const u32,
    pub(super) lda: usize,
    /// The panel of B: the vectors of step `s` at `s · ldb`.
    pub(super) b: *const u32,
    pub(super) ldb: usize,
    pub(super) c: *mut f32,
    pub(super) ldc: usize,
    /// Columns of C, at most 16 a vector.
    pub(super) cols: usize,
    /// What the tile is added to: rows that lie as those of C do, and one that each row is added to.
    pub(super) onto: Option<*const f32>,
    pub(super) bias: Option<*const f32>,
}

/// A kernel for tiles of some number of rows and vectors.
///
/// # Safety
/// Its instructions exist; A holds `rows x steps` words, B `steps` times as many vectors as the tile is wide, C is
/// `rows x cols` and nobody else uses it, and what it is added to has as many.
pub(super) type Kernel = unsafe fn(&Tile);

/// Rows of a full tile that is `vectors` wide: 24, 20 and 12 accumulators.
pub(super) fn full_rows(vectors: usize) -> usize {
    match vectors {
        1 => 12,
        2 => 10,
        _ => 6,
    }
}

/// The kernel of tiles of `rows x vectors`; tiles of bf16 pairs are 4 vectors wide.
pub(super) fn kernel(pairs: bool, rows: usize, vectors: usize) -> Kernel {
    macro_rules! pick {
        ($f:ident, $v:literal: $($n:literal)* | $last:literal) => {
            match rows { $($n => $f::<$n, $v>,)* _ => $f::<$last, $v> }
        };
    }
    debug_assert!((1..=full_rows(vectors)).contains(&rows) && (!pairs || vectors == 4));
    match (pairs, vectors) {
        (true, _) => pick!(of_pairs, 4: 1 2 3 4 5 | 6),
        (false, 1) => pick!(of_f32, 1: 1 2 3 4 5 6 7 8 9 10 11 | 12),
        (false, 2) => pick!(of_f32, 2: 1 2 3 4 5 6 7 8 9 | 10),
        (false, _) => pick!(of_f32, 4: 1 2 3 4 5 | 6),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn of_f32<const M: usize, const V: usize>(tile: &Tile) {
    // SAFETY: the caller's.
    unsafe { body::<false, M, V>(tile) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn of_pairs<const M: usize, const V: usize>(tile: &Tile) {
    // SAFETY: the caller's.
    unsafe { body::<true, M, V>(tile) }
}

#[inline(always)]
unsafe fn body<const PAIRS: bool, const M: usize, const V: usize>(tile: &Tile) {
    let &Tile { steps, lda, ldb, c, ldc, cols, onto, bias, .. } = tile;
    let (mut a, mut b) = (tile.a.cast::<i32>(), tile.b.cast::<i32>());
    // SAFETY: A, B and C hold what `Kernel` says; a prefetch of any address is harmless.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); V]; M];
        for i in 0..M {
            for v in 0..V {
                let at = i * ldc + 16 * v;
                _mm_prefetch::<_MM_HINT_ET0>(c.wrapping_add(at).cast());
                if let Some(onto) = onto {
                    _mm_prefetch::<_MM_HINT_T0>(onto.wrapping_add(at).cast());
                }
            }
        }
        for _ in 0..steps {
            let mut bs = [_mm512_setzero_si512(); V];
            for (v, bs) in bs.iter_mut().enumerate() {
                *bs = _mm512_loadu_epi32(b.add(16 * v));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(*a.add(i * lda));
                for (sum, bs) in sums.iter_mut().zip(bs) {
                    *sum = step::<PAIRS>(*sum, x, bs);
                }
            }
            a = a.add(1);
            b = b.wrapping_add(ldb);
        }
        for (i, sums) in sums.iter().enumerate() {
            for (v, &(mut sum)) in sums.iter().enumerate() {
                let (at, mask) = (i * ldc + 16 * v, mask16(cols.saturating_sub(16 * v)));
                if let Some(bias) = bias {
                    sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, bias.wrapping_add(16 * v)));
                }
                if let Some(onto) = onto {
                    sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, onto.wrapping_add(at)));
                }
                _mm512_mask_storeu_ps(c.wrapping_add(at), mask, sum);
            }
        }
    }
}
