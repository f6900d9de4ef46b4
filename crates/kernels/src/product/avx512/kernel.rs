//! The inner loop: a tile of C, held in registers, over one block of the contraction.

use std::arch::x86_64::*;

use super::{mask16, step};

/// Steps before whose last ones the place of a tile is fetched: before all of them, it would leave the L1 cache again.
const LAST: usize = 64;

/// What one call multiplies. Units of strides are words.
pub(super) struct Tile {
    pub(super) main: Factors,
    /// Factors that it multiplies too.
    pub(super) term: Option<Factors>,
    pub(super) c: *mut f32,
    pub(super) ldc: usize,
    /// Columns of C, at most 16 a vector.
    pub(super) cols: usize,
    /// Whether it is added to what C has.
    pub(super) add: bool,
    pub(super) rest: Rest,
}

/// Rows of A and a panel of B.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    pub(super) steps: usize,
    /// Rows of A: word `s` of row `i` at `i · lda + s`.
    pub(super) a: *const u32,
    pub(super) lda: usize,
    /// The panel of B: the vectors of step `s` at `s · ldb`.
    pub(super) b: *const u32,
    pub(super) ldb: usize,
}

impl Factors {
    /// The first steps and the `last`.
    fn split(&self, last: usize) -> (Self, Self) {
        let last = last.min(self.steps);
        let first = self.steps - last;
        let (a, b) = (self.a.wrapping_add(first), self.b.wrapping_add(first * self.ldb));
        (Self { steps: first, ..*self }, Self { steps: last, a, b, ..*self })
    }
}

/// What then becomes of it: a factor and a summand of each column, and what it is added to, which lies as C does.
#[derive(Clone, Copy, Default)]
pub(super) struct Rest {
    pub(super) gain: Option<*const f32>,
    pub(super) bias: Option<*const f32>,
    pub(super) onto: Option<*const f32>,
}

/// A kernel for tiles of some number of rows and vectors.
///
/// # Safety
/// Its instructions exist; each A holds `rows x steps` words, each B `steps` times as many vectors as the tile is wide, C is
/// `rows x cols` and nobody else uses it, and the rest has as many rows and columns.
pub(super) type Kernel = unsafe fn(&Tile);

/// Rows of a full tile that is `vectors` wide: 24, 20 and 12 accumulators.
pub(super) fn full_rows(vectors: usize) -> usize {
    match vectors {
        1 => 12,
        2 => 10,
        _ => 6,
    }
}

/// The kernel of tiles of `rows x vectors`.
pub(super) fn kernel(pairs: bool, rows: usize, vectors: usize) -> Kernel {
    macro_rules! pick {
        ($f:ident, $v:literal: $($n:literal)* | $last:literal) => {
            match rows { $($n => $f::<$n, $v>,)* _ => $f::<$last, $v> }
        };
    }
    debug_assert!((1..=full_rows(vectors)).contains(&rows));
    match (pairs, vectors) {
        (true, 1) => pick!(of_pairs, 1: 1 2 3 4 5 6 7 8 9 10 11 | 12),
        (true, 2) => pick!(of_pairs, 2: 1 2 3 4 5 6 7 8 9 | 10),
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
    let &Tile { ref main, ref term, c, ldc, cols, add, rest } = tile;
    // SAFETY: A, B and C hold what `Kernel` says.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); V]; M];
        let (first, last) = main.split(LAST);
        sums = steps::<PAIRS, M, V>(&first, sums);
        prefetch::<M, V>(tile);
        sums = steps::<PAIRS, M, V>(&last, sums);
        if let Some(term) = term {
            sums = steps::<PAIRS, M, V>(term, sums);
        }
        let masks: [__mmask16; V] = std::array::from_fn(|v| mask16(cols.saturating_sub(16 * v)));
        let at = |p: *const f32, i: usize, v: usize| {
            _mm512_maskz_loadu_ps(masks[v], p.wrapping_add(i * ldc + 16 * v))
        };
        if add {
            each(&mut sums, |i, v, sum| _mm512_add_ps(sum, at(c, i, v)));
        }
        if let Some(gain) = rest.gain {
            each(&mut sums, |_, v, sum| _mm512_mul_ps(sum, at(gain, 0, v)));
        }
        if let Some(bias) = rest.bias {
            each(&mut sums, |_, v, sum| _mm512_add_ps(sum, at(bias, 0, v)));
        }
        if let Some(onto) = rest.onto {
            each(&mut sums, |i, v, sum| _mm512_add_ps(sum, at(onto, i, v)));
        }
        each(&mut sums, |i, v, sum| {
            _mm512_mask_storeu_ps(c.wrapping_add(i * ldc + 16 * v), masks[v], sum);
            sum
        });
    }
}

/// Fetches what a tile is written to, and added to.
#[inline(always)]
fn prefetch<const M: usize, const V: usize>(tile: &Tile) {
    for i in 0..M {
        for v in 0..V {
            let at = i * tile.ldc + 16 * v;
            // SAFETY: a prefetch of any address is harmless.
            unsafe {
                _mm_prefetch::<_MM_HINT_ET0>(tile.c.wrapping_add(at).cast());
                if let Some(onto) = tile.rest.onto {
                    _mm_prefetch::<_MM_HINT_T0>(onto.wrapping_add(at).cast());
                }
            }
        }
    }
}

/// Makes of each sum, by its row and vector, another.
#[inline(always)]
fn each<const M: usize, const V: usize>(
    sums: &mut [[__m512; V]; M],
    of: impl Fn(usize, usize, __m512) -> __m512,
) {
    for (i, sums) in sums.iter_mut().enumerate() {
        for (v, sum) in sums.iter_mut().enumerate() {
            *sum = of(i, v, *sum);
        }
    }
}

/// The sums, with the products of all steps. (By value: behind a reference they are stored at each step.)
///
/// # Safety
/// As [`Kernel`].
#[inline(always)]
unsafe fn steps<const PAIRS: bool, const M: usize, const V: usize>(
    &Factors { steps, a, lda, b, ldb }: &Factors,
    mut sums: [[__m512; V]; M],
) -> [[__m512; V]; M] {
    let (mut a, mut b) = (a.cast::<i32>(), b.cast::<i32>());
    // SAFETY: the caller's.
    unsafe {
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
    }
    sums
}
