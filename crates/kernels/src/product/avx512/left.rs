//! The left operand: row-major words, an f32 each, or a pair of bf16.

use std::arch::x86_64::*;
use std::borrow::Cow;
use std::mem::MaybeUninit;

use half::bf16;

use super::{mask16, round};
use crate::buffers::{by_chunk, made, made_by_chunks, zeros};
use crate::product::{Made, Matrix, widen};
use crate::quantised::GROUP;
use crate::{RowOrder, Stored, parts, pool};

/// Longest block of the contraction, in steps: a panel of 64 columns is then 128 KiB.
const BLOCK: usize = 512;

/// Rows to a task that rounds some.
const ROWS: usize = 8;

/// Activations `(m, k)`, ready to multiply.
pub(in crate::product) struct Left<'a> {
    words: Cow<'a, [u32]>,
    pub(super) m: usize,
    pub(super) k: usize,
    pub(super) pairs: bool,
    /// Words that are read of a row; there may be more between its start and the next one's.
    steps: usize,
    /// Steps of a block; the last may be shorter.
    block: usize,
}

/// One block of the contraction.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// First index of the contraction, and how many.
    pub(super) k0: usize,
    pub(super) k: usize,
    pub(super) steps: usize,
}

impl<'a> Left<'a> {
    /// `a (m, k)` as it is.
    pub(in crate::product) fn exact(a: &'a [f32], m: usize, k: usize) -> Self {
        Self::new(Cow::Borrowed(bytemuck::cast_slice(a)), m, k, false)
    }

    /// The same in one block.
    pub(super) fn whole(self) -> Self {
        Self { block: self.steps, ..self }
    }

    /// The same words.
    pub(in crate::product) fn borrowed(&self) -> Left<'_> {
        Left { words: Cow::Borrowed(&self.words), ..*self }
    }

    /// The same words, its own.
    pub(in crate::product) fn into_owned(self) -> Left<'static> {
        Left { words: Cow::Owned(self.words.into_owned()), ..self }
    }

    /// `alpha · a (m, k)`.
    pub(in crate::product) fn scaled(alpha: f32, a: &'a [f32], m: usize, k: usize) -> Self {
        if alpha.to_bits() == 1f32.to_bits() {
            return Self::exact(a, m, k);
        }
        let words = a.iter().map(|a| (alpha * a).to_bits()).collect();
        Self::new(Cow::Owned(words), m, k, false)
    }

    /// `alpha · aᵀ (m, k)` of `a (k, m)`.
    pub(in crate::product) fn transposed(alpha: f32, a: &[f32], m: usize, k: usize) -> Self {
        let mut words = zeros(m * k);
        transpose(a, m, &mut words, |word, a| *word = (alpha * a).to_bits());
        Self::new(Cow::Owned(words), m, k, false)
    }

    /// `a (m, k)` rounded to bf16.
    ///
    /// # Safety
    /// AVX-512 F, BW, VL and BF16.
    pub(in crate::product) unsafe fn rounded(a: &[f32], m: usize, k: usize) -> Self {
        let steps = k.div_ceil(2);
        let write = |words: &mut [MaybeUninit<u32>]| {
            pool::for_each_chunk(words, ROWS * steps, |i, words| {
                for (a, words) in a[i * ROWS * k..].chunks_exact(k).zip(words.chunks_exact_mut(steps)) {
                    // SAFETY: the caller's; `words` has half as many words as `a` has values.
                    unsafe { round_row((a.as_ptr(), k), words.as_mut_ptr().cast()) }
                }
            });
        };
        // SAFETY: every row is written.
        let words = unsafe { made(m * steps, write) };
        Self::new(Cow::Owned(words), m, k, true)
    }

    /// See [`Made`](crate::product::Made); all rounded to bf16.
    ///
    /// # Safety
    /// AVX-512 F, BW, VL and BF16.
    pub(in crate::product) unsafe fn made(
        Made { count, m, k, besides }: Made<'_>,
        write: impl Fn(usize, &mut [&mut [f32]]) + Sync,
    ) -> Vec<Self> {
        let (steps, rows) = (k.div_ceil(2), parts::rows_per_task(k).max(ROWS));
        let fill = |i: usize, words: &mut [&mut [MaybeUninit<u32>]]| {
            let mut buffer = vec![0.0; count * k];
            let mut made: Vec<_> = buffer.chunks_exact_mut(k).collect();
            for row in 0..words[0].len() / steps {
                let number = i * rows + row;
                write(number, &mut made);
                let besides = besides.iter().map(|values| &values[number * k..][..k]);
                for (values, words) in made.iter().map(|row| &**row).chain(besides).zip(words.iter_mut()) {
                    let words = &mut words[row * steps..][..steps];
                    // SAFETY: the caller's; there are half as many words as values.
                    unsafe { round_row((values.as_ptr(), k), words.as_mut_ptr().cast()) }
                }
            }
        };
        let all = (count + besides.len(), m * steps);
        // SAFETY: every row is written.
        let words = unsafe { made_by_chunks(all, rows * steps, fill) };
        words.into_iter().map(|words| Self::new(Cow::Owned(words), m, k, true)).collect()
    }

    /// Of each row of `values (m, k)` what `make` makes of it, rounded to bf16 in the row's own first half; what it gives for row
    /// `i` becomes `given[i]`.
    ///
    /// # Safety
    /// AVX-512 F, BW, VL and BF16.
    pub(in crate::product) unsafe fn within(
        values: &'a mut [f32],
        given: &mut [f32],
        make: impl Fn(usize, &mut [f32]) -> f32 + Sync,
    ) -> Self {
        let (m, k) = (given.len(), values.len() / given.len());
        parts::for_each_row(values, given, |i, row| {
            let given = make(i, row);
            let row = row.as_mut_ptr();
            // SAFETY: the caller's; a row has more words than pairs.
            unsafe { round_row((row, k), row.cast()) }
            given
        });
        Self::strided(Cow::Borrowed(bytemuck::cast_slice(values)), m, k, true)
    }

    /// The values of row `row`; of pairs.
    pub(in crate::product) fn values(&self, row: usize) -> &[bf16] {
        debug_assert!(self.pairs);
        &bytemuck::cast_slice(self.row(row))[..self.k]
    }

    /// The same of f32 words, rounded to bf16.
    ///
    /// # Safety
    /// AVX-512 F, BW, VL and BF16.
    pub(in crate::product) unsafe fn in_pairs(&self) -> Left<'static> {
        debug_assert!(!self.pairs);
        // SAFETY: the caller's.
        unsafe { Left::rounded(bytemuck::cast_slice(&self.words), self.m, self.k) }
    }

    /// All values, as f32; of pairs.
    pub(in crate::product) fn widened(&self) -> Vec<f32> {
        by_chunk(self.m * self.k, ROWS * self.k, |i, part| {
            for (j, row) in part.chunks_exact_mut(self.k).enumerate() {
                widen(bytemuck::cast_slice(self.values(i * ROWS + j)), Stored::Bf16, row);
            }
        })
    }

    fn new(words: Cow<'a, [u32]>, m: usize, k: usize, pairs: bool) -> Self {
        let left = Self::strided(words, m, k, pairs);
        assert!(left.words.len() == m * left.steps);
        left
    }

    /// Rows with some words between them.
    fn strided(words: Cow<'a, [u32]>, m: usize, k: usize, pairs: bool) -> Self {
        let steps = if pairs { k.div_ceil(2) } else { k };
        assert!(m > 0 && k > 0 && words.len().is_multiple_of(m) && words.len() >= m * steps);
        // Blocks of almost equal length, whole groups of quantised values.
        let block = steps.div_ceil(steps.div_ceil(BLOCK)).next_multiple_of(GROUP);
        Self { words, m, k, pairs, steps, block }
    }

    /// The same as a right operand; of pairs.
    pub(in crate::product) fn matrix(&self) -> Matrix<'_> {
        debug_assert!(self.pairs);
        Matrix {
            bytes: bytemuck::cast_slice(&self.words),
            stored: Stored::Bf16,
            order: RowOrder::Plain,
            rows: self.m,
            cols: self.k,
            stride: 4 * self.stride(),
        }
    }

    /// Words from the start of a row to that of the next.
    pub(super) fn stride(&self) -> usize {
        self.words.len() / self.m
    }

    /// Words of row `row`.
    pub(super) fn row(&self, row: usize) -> &[u32] {
        &self.words[row * self.stride()..][..self.steps]
    }

    /// Words of row `row`, from the start of block `block` on.
    pub(super) fn at(&self, row: usize, block: usize) -> *const u32 {
        self.words[row * self.stride() + block * self.block..].as_ptr()
    }

    pub(super) fn blocks(&self) -> usize {
        self.steps.div_ceil(self.block)
    }

    /// Block `b`; one of no steps beyond the last.
    pub(super) fn block(&self, b: usize) -> Block {
        let per_step = if self.pairs { 2 } else { 1 };
        let start = (b * self.block).min(self.steps);
        let steps = self.block.min(self.steps - start);
        let k0 = (start * per_step).min(self.k);
        Block { k0, k: (steps * per_step).min(self.k - k0), steps }
    }

    /// Steps of the longest block.
    pub(super) fn longest(&self) -> usize {
        self.block.min(self.steps)
    }
}

/// Hands element `(i, j)` of `b` and `(j, i)` of `a`, which has rows of `width` values, to `write`; on the pool.
pub(in crate::product) fn transpose<T: Send>(
    a: &[f32],
    width: usize,
    b: &mut [T],
    write: impl Fn(&mut T, f32) + Sync,
) {
    // Values of a cache line: so many columns of `a` are read while a line of it is in cache.
    const LINE: usize = 16;
    let height = a.len() / width;
    pool::for_each_chunk(b, LINE * height, |strip, b| {
        for first in (0..height).step_by(LINE) {
            for (i, b) in b.chunks_exact_mut(height).enumerate() {
                let column = strip * LINE + i;
                for (j, b) in b.iter_mut().enumerate().skip(first).take(LINE) {
                    write(b, a[j * width + column]);
                }
            }
        }
    });
}

/// Rounds `k` values to half as many words. Those may lie where the values do, from the same start on: values are read before
/// words reach them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn round_row((values, k): (*const f32, usize), words: *mut u32) {
    for at in (0..k).step_by(32) {
        let there = k - at;
        // SAFETY: masked to the values, and to the words they become.
        unsafe {
            let low = _mm512_maskz_loadu_ps(mask16(there), values.add(at));
            let high = _mm512_maskz_loadu_ps(mask16(there.saturating_sub(16)), values.wrapping_add(at + 16));
            let to = mask16(there.div_ceil(2));
            _mm512_mask_storeu_epi32(words.add(at / 2).cast(), to, round(low, high));
        }
    }
}
