//! A tile of C: the innermost loop.

use std::arch::x86_64::*;

use super::{COLUMNS, LANES, ROWS, load, store};

/// Where a tile goes, its rows `stride` values apart, and what belongs to it.
pub(super) struct Place<'a> {
    pub(super) c: *mut f32,
    pub(super) alpha: f32,
    /// Whether it is added to what C has.
    pub(super) add: bool,
    /// A factor and a summand of each column.
    pub(super) gain: Option<&'a [f32]>,
    pub(super) bias: Option<&'a [f32]>,
    /// What it is added to, laid out as C is.
    pub(super) onto: Option<*const f32>,
    pub(super) stride: usize,
    /// How many are in C.
    pub(super) rows: usize,
    pub(super) columns: usize,
}

/// Rows of A, and a panel of B.
type Factors<'a> = ([*const f32; ROWS], &'a [f32]);

/// Writes a tile of `A · B`, and of a low-rank term, to its place.
///
/// # Safety
/// AVX2 and FMA; each row has as many values as its panel has steps; the rows and columns of C are the caller's alone, and
/// what belongs to them has as many.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn tile(main: Factors<'_>, term: Option<Factors<'_>>, place: &Place<'_>) {
    // While the sums are made, what they are added to and their place come nearer.
    for i in 0..place.rows {
        for at in [0, place.columns - 1] {
            let at = i * place.stride + at;
            let to = place.onto.unwrap_or(place.c).wrapping_add(at);
            _mm_prefetch::<_MM_HINT_T0>(to.cast());
        }
    }
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    // SAFETY: the caller's.
    unsafe {
        sums = steps(main, sums);
        if let Some(term) = term {
            sums = steps(term, sums);
        }
    }
    let alpha = _mm256_set1_ps(place.alpha);
    for (i, sums) in sums.into_iter().enumerate().take(place.rows) {
        let at = i * place.stride;
        let sums = [_mm256_mul_ps(alpha, sums[0]), _mm256_mul_ps(alpha, sums[1])];
        if place.columns < COLUMNS {
            // SAFETY: the caller's.
            unsafe { put_some(sums, at, place) };
            continue;
        }
        for (half, mut sum) in sums.into_iter().enumerate() {
            let at = at + half * LANES;
            // SAFETY: the caller's.
            unsafe {
                if place.add {
                    sum = _mm256_add_ps(sum, _mm256_loadu_ps(place.c.add(at)));
                }
                if let Some(gain) = place.gain {
                    sum = _mm256_mul_ps(sum, load(&gain[half * LANES..]));
                }
                if let Some(bias) = place.bias {
                    sum = _mm256_add_ps(sum, load(&bias[half * LANES..]));
                }
                if let Some(onto) = place.onto {
                    sum = _mm256_add_ps(sum, _mm256_loadu_ps(onto.add(at)));
                }
                _mm256_storeu_ps(place.c.add(at), sum);
            }
        }
    }
}

/// The sums, with the products of all steps.
///
/// # Safety
/// AVX2 and FMA; each row has as many values as the panel has steps.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn steps((a, b): Factors<'_>, mut sums: [[__m256; 2]; ROWS]) -> [[__m256; 2]; ROWS] {
    for (step, b) in b.as_chunks::<COLUMNS>().0.iter().enumerate() {
        let b = [load(&b[..LANES]), load(&b[LANES..])];
        for (sums, a) in sums.iter_mut().zip(a) {
            // SAFETY: the caller's.
            let a = _mm256_set1_ps(unsafe { *a.add(step) });
            sums[0] = _mm256_fmadd_ps(a, b[0], sums[0]);
            sums[1] = _mm256_fmadd_ps(a, b[1], sums[1]);
        }
    }
    sums
}

/// Writes the columns of a row, `at` values from the first, that are in C.
///
/// # Safety
/// As [`tile`].
#[target_feature(enable = "avx2")]
unsafe fn put_some(sums: [__m256; 2], at: usize, place: &Place<'_>) {
    let mut line = [0.0; COLUMNS];
    store(&mut line[..LANES], sums[0]);
    store(&mut line[LANES..], sums[1]);
    for (j, mut sum) in line.into_iter().enumerate().take(place.columns) {
        // SAFETY: the caller's.
        unsafe {
            if place.add {
                sum += *place.c.add(at + j);
            }
            sum = sum * place.gain.map_or(1.0, |gain| gain[j]) + place.bias.map_or(0.0, |bias| bias[j]);
            sum += place.onto.map_or(0.0, |onto| *onto.add(at + j));
            place.c.add(at + j).write(sum);
        }
    }
}
