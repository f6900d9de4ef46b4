//! Few rows: `W` is streamed once, some of its rows at a time, and multiplied with all of x.

use std::arch::x86_64::*;
use std::array::from_fn;
use std::ops::Range;

use super::{BF16, F16, F32, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0};
use super::{Left, Line, Region, by_stored, load_bf16, load16, mask16, quantised, step};
use crate::Stored;
use crate::pool::{self, Disjoint};
use crate::product::Matrix;

/// Rows of x up to which streaming W, once from memory and again from cache for more rows than are taken at a time,
/// beats packing it.
pub(super) const FEW: usize = 32;

/// Columns that are multiplied at a time.
const RUN: usize = 32;
/// Bytes of W to a task: they stay in the L2 cache.
const TASK: usize = 128 * 1024;

/// `y (m, w.rows) = x (m, w.cols) · Wᵀ`, or added to y, for each of some `ws` and their `ys`: all in one job. After some
/// columns of result `i` are there, `finish(i, columns)` has them to itself.
///
/// # Safety
/// AVX-512 F, BW, VL, and BF16 if x is of pairs.
pub(in crate::product) unsafe fn few_rows(
    x: &Left<'_>,
    (ws, ys): (&[Matrix<'_>], &[Disjoint<'_, f32>]),
    add: bool,
    finish: &(dyn Fn(usize, Range<usize>) + Sync),
) {
    let mut tasks = Vec::new();
    let mut groups = Vec::with_capacity(ws.len());
    for (i, w) in ws.iter().enumerate() {
        assert!(x.k == w.cols && ys[i].len() == x.m * w.rows);
        let per_task = (TASK / w.stride).next_multiple_of(12).max(12);
        tasks.extend((0..w.rows).step_by(per_task).map(|first| (i, first..w.rows.min(first + per_task))));
        groups.push(Group::all(x, w.stored));
    }
    pool::for_each(tasks.len(), |task| {
        let (i, rows) = &tasks[task];
        let (w, y) = (&ws[*i], &ys[*i]);
        let part = Region::new(w, (rows.start, 0), (rows.len(), w.cols));
        for group in &groups[*i] {
            let part = Part { w: part, group, y, ldy: w.rows, column: rows.start, add };
            // SAFETY: the caller's; these columns of y belong to this task.
            unsafe { (group.dots)(&part) }
        }
        finish(*i, rows.clone());
    });
}

/// Rows of x that are multiplied together.
pub(super) struct Group {
    /// The first, and how many there are.
    pub(super) rows: (usize, usize),
    /// Run by run of their columns, row by row; what they lack in rows or columns is zero.
    pub(super) runs: Vec<Line>,
    dots: unsafe fn(&Part<'_>),
}

impl Group {
    /// All rows of x.
    fn all(x: &Left<'_>, stored: Stored) -> Vec<Self> {
        // All are read again for each quantised row of W, so in f32 fewer, for the L1 cache to hold them.
        let together = if x.pairs || stored.size().is_some() { 8 } else { 4 };
        let firsts = (0..x.m).step_by(together);
        firsts.map(|first| Self::new(x, (first, together.min(x.m - first)), stored)).collect()
    }

    fn new(x: &Left<'_>, rows: (usize, usize), stored: Stored) -> Self {
        let lines = if x.pairs { 1 } else { 2 };
        let m = rows.1.next_power_of_two();
        let mut runs = vec![Line([0; 16]); x.k.div_ceil(RUN) * m * lines];
        for row in 0..rows.1 {
            for (i, words) in x.row(rows.0 + row).chunks(16).enumerate() {
                runs[(i / lines * m + row) * lines + i % lines].0[..words.len()].copy_from_slice(words);
            }
        }
        Self { rows, runs, dots: dots(stored, x.pairs, m) }
    }
}

/// Some rows of W against a group of rows of x.
pub(super) struct Part<'a> {
    pub(super) w: Region,
    pub(super) group: &'a Group,
    pub(super) y: &'a Disjoint<'a, f32>,
    ldy: usize,
    /// The column of y that the first row makes.
    column: usize,
    add: bool,
}

impl Part<'_> {
    /// Writes the product of row `row` of W and row `m` of the group.
    ///
    /// # Safety
    /// Both are there, and nobody else has this column.
    #[inline(always)]
    pub(super) unsafe fn put(&self, row: usize, m: usize, value: f32) {
        let at = (self.group.rows.0 + m) * self.ldy + self.column + row;
        // SAFETY: the caller's.
        let to = unsafe { &mut self.y.get(at..at + 1)[0] };
        *to = if self.add { *to } else { 0.0 } + value;
    }
}

/// The instance for `m` rows of x.
fn dots(stored: Stored, pairs: bool, m: usize) -> unsafe fn(&Part<'_>) {
    if stored.size().is_none() {
        return quantised::dots(stored, pairs, m);
    }
    match (pairs, m) {
        (false, 1) => by_stored!(stored, of_f32, 1, 1, 4),
        (false, 2) => by_stored!(stored, of_f32, 2, 2, 2),
        (false, 4) => by_stored!(stored, of_f32, 4, 3, 1),
        (false, _) => by_stored!(stored, of_f32, 8, 3, 1),
        (true, 1) => by_stored!(stored, of_pairs, 1, 1, 4),
        (true, 2) => by_stored!(stored, of_pairs, 2, 2, 2),
        (true, 4) => by_stored!(stored, of_pairs, 4, 3, 1),
        (true, _) => by_stored!(stored, of_pairs, 8, 3, 1),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn of_f32<const S: u8, const M: usize, const R: usize, const U: usize>(part: &Part<'_>) {
    // SAFETY: the caller's.
    unsafe { body::<S, false, M, R, U>(part) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn of_pairs<const S: u8, const M: usize, const R: usize, const U: usize>(part: &Part<'_>) {
    // SAFETY: the caller's.
    unsafe { body::<S, true, M, R, U>(part) }
}

/// `R` rows of W at a time against `M` rows of x, in `U` runs of columns with sums of their own: a chain of dependent
/// sums is slower than memory.
#[inline(always)]
unsafe fn body<const S: u8, const PAIRS: bool, const M: usize, const R: usize, const U: usize>(
    part: &Part<'_>,
) {
    let &Part { ref w, group, .. } = part;
    let there = group.rows.1;
    let size = if S == F32 { 4 } else { 2 };
    let lines = if PAIRS { M } else { 2 * M };
    // The last rows are prefetched of nothing.
    let next = if M > 1 { R * w.stride } else { 0 };
    for r in (0..w.rows).step_by(R) {
        // Surplus rows repeat the last one.
        let mut ws: [*const u8; R] = from_fn(|i| w.row((r + i).min(w.rows - 1)));
        let mut x = group.runs.as_ptr();
        let mut left = w.cols;
        // SAFETY: whole runs, then what is left of the columns; x has the same runs.
        unsafe {
            let mut sums = [[[_mm512_setzero_ps(); M]; R]; U];
            while left >= U * RUN {
                for (u, sums) in sums.iter_mut().enumerate() {
                    let ws = ws.map(|w| w.wrapping_add(u * RUN * size));
                    add_run::<S, PAIRS, M, R>(sums, ws, x.wrapping_add(u * lines), (RUN, next));
                }
                ws = ws.map(|w| w.wrapping_add(U * RUN * size));
                x = x.wrapping_add(U * lines);
                left -= U * RUN;
            }
            while left > 0 {
                let n = left.min(RUN);
                add_run::<S, PAIRS, M, R>(&mut sums[0], ws, x, (n, next));
                ws = ws.map(|w| w.wrapping_add(RUN * size));
                x = x.wrapping_add(lines);
                left -= n;
            }
            // A loop this short is unrolled, and leaves the sums in registers until here.
            let mut lanes = [[Line([0; 16]); M]; R];
            for i in 0..R {
                for m in 0..M {
                    let sum = sums[1..].iter().fold(sums[0][i][m], |sum, s| _mm512_add_ps(sum, s[i][m]));
                    _mm512_store_ps(lanes[i][m].0.as_mut_ptr().cast(), sum);
                }
            }
            for (i, lanes) in lanes.iter().enumerate().take(w.rows - r) {
                for (m, lanes) in lanes.iter().enumerate().take(there) {
                    part.put(r + i, m, _mm512_reduce_add_ps(_mm512_load_ps(lanes.0.as_ptr().cast())));
                }
            }
        }
    }
}

/// Adds the products of `n` columns; of the same columns `next` bytes on, the lines are prefetched, to the L2 cache: it waits for
/// more of them at once than the L1 cache can.
#[inline(always)]
unsafe fn add_run<const S: u8, const PAIRS: bool, const M: usize, const R: usize>(
    sums: &mut [[__m512; M]; R],
    ws: [*const u8; R],
    x: *const Line,
    (n, next): (usize, usize),
) {
    let size = if S == F32 { 4 } else { 2 };
    // SAFETY: masked to the readable columns; x has a whole run of M rows.
    unsafe {
        let mut values = [[_mm512_setzero_si512(); 2]; R];
        for (values, w) in values.iter_mut().zip(ws) {
            if M > 1 {
                _mm_prefetch::<_MM_HINT_T1>(w.wrapping_add(next).cast());
            }
            if M > 1 && S == F32 {
                _mm_prefetch::<_MM_HINT_T1>(w.wrapping_add(next + 64).cast());
            }
            if PAIRS {
                values[0] = load_bf16::<S>(w, n);
            } else {
                let high = mask16(n.saturating_sub(16));
                values[0] = _mm512_castps_si512(load16::<S>(w, mask16(n)));
                values[1] = _mm512_castps_si512(load16::<S>(w.wrapping_add(16 * size), high));
            }
        }
        #[expect(clippy::needless_range_loop, reason = "the index is of an inner dimension")]
        for m in 0..M {
            if PAIRS {
                let x = _mm512_load_si512(x.wrapping_add(m).cast());
                for i in 0..R {
                    sums[i][m] = step::<true>(sums[i][m], values[i][0], x);
                }
            } else {
                let low = _mm512_load_si512(x.wrapping_add(2 * m).cast());
                let high = _mm512_load_si512(x.wrapping_add(2 * m + 1).cast());
                for i in 0..R {
                    let sum = step::<false>(sums[i][m], values[i][0], low);
                    sums[i][m] = step::<false>(sum, values[i][1], high);
                }
            }
        }
    }
}
