//! The right operand: packs a panel of `W`, at most 64 columns of B by one block of the contraction.
//!
//! A panel is, step by step, `vectors` vectors of 16 words, one word a column of B; columns that W lacks are zero.

use std::arch::x86_64::*;

use super::{BF16, F16, F32, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0};
use super::{Region, by_stored, load_bf16, load16, mask16, mask32, quantised, round};
use crate::Stored;
use crate::product::Direction;

/// Steps that a packer may write beyond those it was asked for.
pub(super) const SURPLUS: usize = 32;

/// Packs a region for panels of some number of vectors.
///
/// # Safety
/// Its instructions exist; the region is readable; the panel has room for the steps and `SURPLUS` more, and is
/// aligned to 64 bytes.
pub(super) type Packer = unsafe fn(&Region, vectors: usize, panel: *mut u32);

/// The packer of `stored` values seen in `direction`, into f32 words or pairs.
pub(super) fn packer(stored: Stored, direction: Direction, pairs: bool) -> Packer {
    if stored.size().is_none() {
        return quantised::packer(stored, direction, pairs);
    }
    match (direction, pairs) {
        (Direction::Forward, false) => by_stored!(stored, along_f32),
        (Direction::Forward, true) => by_stored!(stored, along_pairs),
        (Direction::Backward, false) => by_stored!(stored, across_f32),
        (Direction::Backward, true) => by_stored!(stored, across_pairs),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn along_f32<const S: u8>(w: &Region, vectors: usize, panel: *mut u32) {
    // SAFETY: the caller's.
    unsafe { along::<S, false>(w, vectors, panel) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn along_pairs<const S: u8>(w: &Region, vectors: usize, panel: *mut u32) {
    // SAFETY: the caller's.
    unsafe { along::<S, true>(w, vectors, panel) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn across_f32<const S: u8>(w: &Region, vectors: usize, panel: *mut u32) {
    // SAFETY: the caller's.
    unsafe { across::<S, false>(w, vectors, panel) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn across_pairs<const S: u8>(w: &Region, vectors: usize, panel: *mut u32) {
    // SAFETY: the caller's.
    unsafe { across::<S, true>(w, vectors, panel) }
}

/// Columns of B are rows of the region.
#[inline(always)]
unsafe fn along<const S: u8, const PAIRS: bool>(w: &Region, vectors: usize, panel: *mut u32) {
    for v in 0..vectors {
        let there = w.rows.saturating_sub(16 * v).min(16);
        let rows = std::array::from_fn(|i| w.row(16 * v + i.min(there.saturating_sub(1))));
        // SAFETY: the caller's.
        unsafe { transposed::<S, PAIRS>((&rows, there), w.cols, panel.wrapping_add(16 * v), vectors * 16) }
    }
}

/// One vector of a panel, whose vectors are `stride` words apart: 16 rows, of which `there` exist, by 16 words are
/// transposed at a time.
///
/// # Safety
/// As for `Packer`.
#[inline(always)]
pub(super) unsafe fn transposed<const S: u8, const PAIRS: bool>(
    (rows, there): (&[*const u8; 16], usize),
    cols: usize,
    to: *mut u32,
    stride: usize,
) {
    let (size, run) = match (S, PAIRS) {
        (F32, false) => (4, 16),
        (F32, true) => (4, 32),
        _ => (2, 32),
    };
    for k in (0..cols).step_by(run) {
        let left = cols - k;
        let at = if PAIRS { k / 2 } else { k };
        // SAFETY: rows and columns of the region; room for the panel.
        unsafe {
            let mut words = [_mm512_setzero_si512(); 16];
            if there == 16 {
                for (words, row) in words.iter_mut().zip(rows) {
                    *words = row_words::<S, PAIRS>(row.wrapping_add(k * size), left);
                }
            } else {
                for (words, row) in words.iter_mut().zip(rows).take(there) {
                    *words = row_words::<S, PAIRS>(row.wrapping_add(k * size), left);
                }
            }
            transpose(&mut words);
            store::<S, PAIRS>(&words, to.add(at * stride), stride);
        }
    }
}

/// Sixteen words of a row: f32, pairs of bf16, or pairs of 16-bit values as they are stored.
#[inline(always)]
unsafe fn row_words<const S: u8, const PAIRS: bool>(p: *const u8, left: usize) -> __m512i {
    // SAFETY: masked to the `left` readable values.
    unsafe {
        match (S, PAIRS) {
            (F32, false) => _mm512_maskz_loadu_epi32(mask16(left), p.cast()),
            (_, true) => load_bf16::<S>(p, left),
            (_, false) => _mm512_maskz_loadu_epi16(mask32(left), p.cast()),
        }
    }
}

/// Stores transposed words, `stride` words apart; pairs of 16-bit values that are to be f32 make two words each.
#[inline(always)]
unsafe fn store<const S: u8, const PAIRS: bool>(words: &[__m512i; 16], to: *mut u32, stride: usize) {
    // SAFETY: there is room for all of them.
    unsafe {
        for (i, &word) in words.iter().enumerate() {
            if PAIRS || S == F32 {
                _mm512_store_si512(to.add(i * stride).cast(), word);
            } else {
                let (low, high) = widen::<S>(word);
                _mm512_store_si512(to.add(2 * i * stride).cast(), low);
                _mm512_store_si512(to.add((2 * i + 1) * stride).cast(), high);
            }
        }
    }
}

/// The low and the high 16-bit value of each word as f32.
#[inline(always)]
unsafe fn widen<const S: u8>(word: __m512i) -> (__m512i, __m512i) {
    // SAFETY: the caller has AVX-512 F.
    unsafe {
        if S == F16 {
            let f32s = |v| _mm512_castps_si512(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)));
            (f32s(word), f32s(_mm512_srli_epi32::<16>(word)))
        } else {
            let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            (_mm512_slli_epi32::<16>(word), _mm512_and_si512(word, high))
        }
    }
}

/// Transposes 16 x 16 words.
#[inline(always)]
unsafe fn transpose(r: &mut [__m512i; 16]) {
    // SAFETY: the caller has AVX-512 F.
    unsafe {
        let mut t = *r;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        for i in 0..4 {
            r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
            r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
            r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
            r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
        }
        for i in 0..4 {
            t[i] = _mm512_shuffle_i32x4::<0x88>(r[i], r[i + 4]);
            t[i + 4] = _mm512_shuffle_i32x4::<0xdd>(r[i], r[i + 4]);
            t[i + 8] = _mm512_shuffle_i32x4::<0x88>(r[i + 8], r[i + 12]);
            t[i + 12] = _mm512_shuffle_i32x4::<0xdd>(r[i + 8], r[i + 12]);
        }
        for i in 0..8 {
            r[i] = _mm512_shuffle_i32x4::<0x88>(t[i], t[i + 8]);
            r[i + 8] = _mm512_shuffle_i32x4::<0xdd>(t[i], t[i + 8]);
        }
    }
}

/// Columns of B are columns of the region: rows are copied, for pairs two at a time, interleaved.
///
/// # Safety
/// As for `Packer`.
#[inline(always)]
pub(super) unsafe fn across<const S: u8, const PAIRS: bool>(w: &Region, vectors: usize, panel: *mut u32) {
    let size = if S == F32 { 4 } else { 2 };
    let mut to = panel;
    for k in (0..w.rows).step_by(if PAIRS { 2 } else { 1 }) {
        let row = w.row(k);
        // A second row that is not there is not read.
        let next = if PAIRS && k + 1 < w.rows { w.row(k + 1) } else { row };
        for v in 0..vectors {
            let mask = mask16(w.cols.saturating_sub(16 * v));
            let p = row.wrapping_add(16 * v * size);
            // SAFETY: masked to the columns and rows of the region; room for the panel.
            unsafe {
                let word = if PAIRS {
                    let second = if k + 1 < w.rows { mask } else { 0 };
                    two_rows::<S>((p, mask), (next.wrapping_add(16 * v * size), second))
                } else {
                    _mm512_castps_si512(load16::<S>(p, mask))
                };
                _mm512_store_si512(to.add(16 * v).cast(), word);
            }
        }
        to = to.wrapping_add(16 * vectors);
    }
}

/// Sixteen values of two rows, as pairs of bf16.
#[inline(always)]
unsafe fn two_rows<const S: u8>(first: (*const u8, __mmask16), second: (*const u8, __mmask16)) -> __m512i {
    // SAFETY: masked to the readable values.
    unsafe {
        if S == BF16 {
            let low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first.1, first.0.cast()));
            let high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second.1, second.0.cast()));
            _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
        } else {
            let both = round(load16::<S>(first.0, first.1), load16::<S>(second.0, second.1));
            let low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
            let high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(both));
            _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
        }
    }
}
