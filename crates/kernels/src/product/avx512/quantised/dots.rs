//! Few rows of x by quantised rows of `W`, which are widened in registers.

use std::arch::x86_64::*;

use super::super::rows::Part;
use super::super::{Q4_0, Q4_K, Q5_K, Q6_K, Q8_0, step};
use super::by_quantised;
use super::groups::each_group;
use crate::Stored;

/// The instance for `m` rows of x, of the products that [`rows`](super::super::rows) describes.
pub(in super::super) fn dots(stored: Stored, pairs: bool, m: usize) -> unsafe fn(&Part<'_>) {
    match (pairs, m) {
        (false, 1) => by_quantised!(stored, of_f32, 1, 2),
        (false, 2) => by_quantised!(stored, of_f32, 2, 2),
        (false, _) => by_quantised!(stored, of_f32, 4, 2),
        (true, 1) => by_quantised!(stored, of_pairs, 1, 2),
        (true, 2) => by_quantised!(stored, of_pairs, 2, 2),
        (true, 4) => by_quantised!(stored, of_pairs, 4, 2),
        (true, _) => by_quantised!(stored, of_pairs, 8, 2),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn of_f32<const S: u8, const M: usize, const U: usize>(part: &Part<'_>) {
    // SAFETY: the caller's.
    unsafe { body::<S, false, M, U>(part) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn of_pairs<const S: u8, const M: usize, const U: usize>(part: &Part<'_>) {
    // SAFETY: the caller's.
    unsafe { body::<S, true, M, U>(part) }
}

/// A row of W at a time against `M` rows of x; `U` groups in turn have sums of their own, f32 of their halves too.
#[inline(always)]
unsafe fn body<const S: u8, const PAIRS: bool, const M: usize, const U: usize>(part: &Part<'_>) {
    let (w, group) = (&part.w, part.group);
    let lines = if PAIRS { 1 } else { 2 };
    let x = group.runs.as_ptr();
    for r in 0..w.rows {
        // SAFETY: a row of the region; x has as many runs as it has groups.
        unsafe {
            let mut sums = [[[_mm512_setzero_ps(); 2]; M]; U];
            each_group::<S, PAIRS>(
                w.row(r),
                (0, w.cols),
                #[inline(always)]
                |i, turn, values| {
                    let x = x.wrapping_add(i * M * lines);
                    #[expect(clippy::needless_range_loop, reason = "the index is of an inner dimension")]
                    for m in 0..M {
                        for half in 0..lines {
                            let x = _mm512_load_si512(x.wrapping_add(m * lines + half).cast());
                            let sum = &mut sums[turn % U][m][half];
                            *sum = step::<PAIRS>(*sum, values[half], x);
                        }
                    }
                },
            );
            // Bounds that are constants keep the sums in registers.
            for m in 0..M {
                let mut sum = _mm512_setzero_ps();
                for sums in &sums {
                    sum = _mm512_add_ps(sum, _mm512_add_ps(sums[m][0], sums[m][1]));
                }
                if m < group.rows.1 {
                    part.put(r, m, _mm512_reduce_add_ps(sum));
                }
            }
        }
    }
}
