//! Few rows: `W` is streamed once, some of its rows at a time, and multiplied with all of x.

use std::arch::x86_64::*;
use std::array::from_fn;
use std::cell::RefCell;
use std::ops::Range;

use super::quantised;
use super::{LANES, Left, widened};
use crate::Stored;
use crate::pool::{self, Disjoint};
use crate::product::Matrix;
use crate::product::portable::to_bf16;

/// Rows of x up to which streaming W beats packing it.
pub(super) const FEW: usize = 32;

/// Rows of x up to which quantised rows of W are multiplied as integers. More rows of x do not stay in the L1 cache while a
/// single row of W passes: some rows of W are then widened, and multiplied together.
pub(in crate::product) const AS_INTEGERS: usize = 4;
/// Bytes of W to a task, about: they stay in the L2 cache.
const TASK: usize = 128 * 1024;

thread_local! {
    /// Rows of W that cannot be multiplied as they lie.
    static LINES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `y (m, w.rows) = alpha · x (m, w.cols) · Wᵀ`, or added to y, for each of some `ws` and their `ys`: all in one job. After
/// some columns of result `i` are there, `finish(i, columns)` has them to itself.
///
/// # Safety
/// AVX2, FMA and F16C.
pub(in crate::product) unsafe fn few_rows(
    x: Left<'_>,
    (ws, ys): (&[Matrix<'_>], &[Disjoint<'_, f32>]),
    add: bool,
    finish: &(dyn Fn(usize, Range<usize>) + Sync),
) {
    let mut tasks = Vec::new();
    for (i, w) in ws.iter().enumerate() {
        assert!(x.k == w.cols && x.values.len() == x.m * x.k && ys[i].len() == x.m * w.rows);
        let per_task = (TASK / w.stride).next_multiple_of(6).max(6);
        tasks.extend((0..w.rows).step_by(per_task).map(|first| (i, first..w.rows.min(first + per_task))));
    }
    let types: Vec<_> = ws.iter().map(|w| w.stored).collect();
    let as_integers = x.m <= AS_INTEGERS;
    // SAFETY: the caller's.
    let xs = as_integers.then(|| unsafe { quantised::Rows::new(x.values, x.k, &types, (x.round, x.vnni)) });
    pool::for_each(tasks.len(), |task| {
        let (i, rows) = &tasks[task];
        let part = Part { x, w: &ws[*i], y: &ys[*i], add };
        // SAFETY: the caller's; these columns of y belong to this task.
        unsafe {
            match &xs {
                Some(xs) if xs.fit(part.w.stored) => part.quantised(rows, xs),
                _ => LINES.with_borrow_mut(|lines| part.rows(rows, lines)),
            }
        }
        finish(*i, rows.clone());
    });
}

struct Part<'a> {
    x: Left<'a>,
    w: &'a Matrix<'a>,
    y: &'a Disjoint<'a, f32>,
    add: bool,
}

impl Part<'_> {
    /// The columns of y that `rows` of W make.
    ///
    /// # Safety
    /// The instructions exist; the columns are the caller's alone.
    unsafe fn rows(&self, rows: &Range<usize>, lines: &mut Vec<f32>) {
        let as_it_lies = !self.x.round || self.w.stored == Stored::Bf16;
        // SAFETY: the caller's.
        unsafe {
            match (self.w.stored, as_it_lies) {
                (Stored::F32, true) => self.rows_of::<{ Stored::F32 as u8 }>(rows, None),
                (Stored::F16, true) => self.rows_of::<{ Stored::F16 as u8 }>(rows, None),
                (Stored::Bf16, _) => self.rows_of::<{ Stored::Bf16 as u8 }>(rows, None),
                _ => self.rows_of::<{ Stored::F32 as u8 }>(rows, Some(lines)),
            }
        }
    }

    /// The same, of values of type `S` where they lie, or in `lines` first.
    ///
    /// # Safety
    /// As above.
    unsafe fn rows_of<const S: u8>(&self, rows: &Range<usize>, lines: Option<&mut Vec<f32>>) {
        // SAFETY: the caller's.
        unsafe {
            if self.x.m < 4 {
                self.together::<S, 2>(rows, lines);
            } else {
                self.together::<S, 3>(rows, lines);
            }
        }
    }

    /// The same, `R` rows at a time.
    ///
    /// # Safety
    /// As above.
    unsafe fn together<const S: u8, const R: usize>(
        &self,
        rows: &Range<usize>,
        mut lines: Option<&mut Vec<f32>>,
    ) {
        let k = self.x.k;
        for row in rows.clone().step_by(R) {
            let there = R.min(rows.end - row);
            // Surplus rows repeat the last one.
            let at = |i: usize| row + i.min(there - 1);
            let ws: [*const u8; R] = if let Some(lines) = &mut lines {
                lines.resize(R * k, 0.0);
                for (i, line) in lines.chunks_exact_mut(k).enumerate() {
                    self.w.read(at(i), 0, line);
                    if self.x.round {
                        to_bf16(line);
                    }
                }
                from_fn(|i| lines[i * k..].as_ptr().cast())
            } else {
                from_fn(|i| self.w.row(at(i)).as_ptr())
            };
            let ws = Rows { ws, first: row, there };
            let mut first = 0;
            while first < self.x.m {
                // SAFETY: the caller's; each row of W has `k` values, and there are as many rows of x.
                first += unsafe {
                    match self.x.m - first {
                        1 => self.dots::<S, R, 1, 4>(&ws, first),
                        2 | 3 => self.dots::<S, R, 2, 2>(&ws, first),
                        _ => self.dots::<S, R, 4, 1>(&ws, first),
                    }
                };
            }
        }
    }

    /// The products of `R` rows of W with `M` rows of x from `first` on, in `U` runs of columns with sums of their own: a
    /// chain of dependent sums is slower than memory. Gives `M`.
    ///
    /// # Safety
    /// As above; each row of W has as many values as x, and x so many rows.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dots<const S: u8, const R: usize, const M: usize, const U: usize>(
        &self,
        rows: &Rows<R>,
        first: usize,
    ) -> usize {
        let (k, ws) = (self.x.k, rows.ws);
        let xs: [*const f32; M] = from_fn(|m| self.x.values[(first + m) * k..][..k].as_ptr());
        // The first rows of x bring W nearer.
        let ahead = if first == 0 { R * self.w.stride } else { 0 };
        let mut sums = [[[_mm256_setzero_ps(); R]; M]; U];
        let (runs, whole) = (k - k % (U * LANES), k - k % LANES);
        // SAFETY: all these columns are there.
        unsafe {
            for at in (0..runs).step_by(U * LANES) {
                for (u, sums) in sums.iter_mut().enumerate() {
                    add_run::<S, R, M>(sums, ws, xs, at + u * LANES, ahead);
                }
            }
            for at in (runs..whole).step_by(LANES) {
                add_run::<S, R, M>(&mut sums[0], ws, xs, at, ahead);
            }
        }
        if whole < k {
            let mut last = ([[0u8; 4 * LANES]; R], [[0.0f32; LANES]; M]);
            // SAFETY: as above; as many as are left are copied, and eight, then, are there.
            unsafe {
                for (last, w) in last.0.iter_mut().zip(ws) {
                    let size = size::<S>();
                    w.add(whole * size).copy_to_nonoverlapping(last.as_mut_ptr(), (k - whole) * size);
                }
                for (last, x) in last.1.iter_mut().zip(xs) {
                    x.add(whole).copy_to_nonoverlapping(last.as_mut_ptr(), k - whole);
                }
                let (ws, xs) = (last.0.each_ref().map(|w| w.as_ptr()), last.1.each_ref().map(|x| x.as_ptr()));
                add_run::<S, R, M>(&mut sums[0], ws, xs, 0, 0);
            }
        }
        for m in 0..M {
            for r in 0..rows.there {
                let sum = sums[1..].iter().fold(sums[0][m][r], |sum, s| _mm256_add_ps(sum, s[m][r]));
                // SAFETY: the caller's.
                unsafe { self.put((first + m) * self.w.rows + rows.first + r, total(sum)) };
            }
        }
        M
    }

    /// The columns of y that `rows` of a quantised W make with `xs`, the rows of x.
    ///
    /// # Safety
    /// As [`Part::rows`].
    unsafe fn quantised(&self, rows: &Range<usize>, xs: &quantised::Rows) {
        for row in rows.clone() {
            let mut first = 0;
            while first < self.x.m {
                // SAFETY: the caller's.
                first += unsafe {
                    match self.x.m - first {
                        1 => self.quantised_row::<1>(row, xs, first),
                        2 | 3 => self.quantised_row::<2>(row, xs, first),
                        _ => self.quantised_row::<4>(row, xs, first),
                    }
                };
            }
        }
    }

    /// The same of one row of W and `M` rows of x from `first` on. Gives `M`.
    ///
    /// # Safety
    /// As above.
    unsafe fn quantised_row<const M: usize>(&self, row: usize, xs: &quantised::Rows, first: usize) -> usize {
        // SAFETY: the caller's.
        unsafe {
            let dots = xs.dots::<M>(first, self.w.row(row), self.w.stored);
            for (m, dot) in dots.into_iter().enumerate() {
                self.put((first + m) * self.w.rows + row, dot);
            }
        }
        M
    }

    /// Writes a product to a place of y.
    ///
    /// # Safety
    /// It is the caller's alone.
    unsafe fn put(&self, at: usize, sum: f32) {
        // SAFETY: the caller's.
        let to = unsafe { &mut self.y.get(at..at + 1)[0] };
        *to = if self.add { *to } else { 0.0 } + self.x.alpha * sum;
    }
}

/// Rows of W that are multiplied together.
struct Rows<const R: usize> {
    ws: [*const u8; R],
    /// The number of the first, and how many are there.
    first: usize,
    there: usize,
}

/// Bytes of a value of type `S`.
const fn size<const S: u8>() -> usize {
    if S == Stored::F32 as u8 { 4 } else { 2 }
}

/// Adds the products of eight columns; W is fetched from `ahead` bytes on.
///
/// # Safety
/// AVX2, FMA and F16C; the eight columns from `at` on are there.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_run<const S: u8, const R: usize, const M: usize>(
    sums: &mut [[__m256; R]; M],
    ws: [*const u8; R],
    xs: [*const f32; M],
    at: usize,
    ahead: usize,
) {
    let ws = ws.map(|w| {
        let w = w.wrapping_add(at * size::<S>());
        _mm_prefetch::<_MM_HINT_T1>(w.wrapping_add(ahead).cast());
        // SAFETY: the caller's.
        value::<S>(unsafe { std::slice::from_raw_parts(w, LANES * size::<S>()) })
    });
    for (sums, x) in sums.iter_mut().zip(xs) {
        // SAFETY: the caller's.
        let x = unsafe { _mm256_loadu_ps(x.add(at)) };
        for (sum, w) in sums.iter_mut().zip(ws) {
            *sum = _mm256_fmadd_ps(w, x, *sum);
        }
    }
}

/// Eight values of type `S`, widened.
#[target_feature(enable = "avx2,f16c")]
fn value<const S: u8>(bytes: &[u8]) -> __m256 {
    if S == Stored::F32 as u8 {
        widened(Stored::F32, bytes)
    } else if S == Stored::F16 as u8 {
        widened(Stored::F16, bytes)
    } else {
        widened(Stored::Bf16, bytes)
    }
}

/// The sum of all lanes.
#[target_feature(enable = "avx2")]
pub(super) fn total(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}
