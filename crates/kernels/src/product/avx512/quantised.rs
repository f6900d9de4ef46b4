//! Quantised rows of `W`: groups of 32 values are widened in registers, for dot products or on the way into a panel.

use std::arch::x86_64::*;
use std::array::from_fn;
use std::mem::MaybeUninit;

use super::right::{Packer, across, transposed};
use super::rows::Part;
use super::{F32, Line, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0, Region, round, step};
use crate::product::Direction;
use crate::quantised::GROUP;
use crate::{RowOrder, Stored};

/// Picks the instance of a function for a quantised type.
macro_rules! by_quantised {
    ($stored:expr, $f:ident $(, $rest:tt)*) => {
        match $stored {
            Stored::Q8_0 => $f::<Q8_0 $(, $rest)*>,
            Stored::Q4_0 => $f::<Q4_0 $(, $rest)*>,
            Stored::Q4_K => $f::<Q4_K $(, $rest)*>,
            Stored::Q5_K => $f::<Q5_K $(, $rest)*>,
            _ => $f::<Q6_K $(, $rest)*>,
        }
    };
}

/// Groups and bytes of a block.
const fn block(stored: u8) -> (usize, usize) {
    match stored {
        Q8_0 => (1, 34),
        Q4_0 => (1, 18),
        Q4_K => (8, 144),
        Q5_K => (8, 176),
        _ => (8, 210),
    }
}

/// What the groups of a block are scaled by: one factor to 32 values or, of `Q6_K`, to 16; and what is taken off.
struct Scales {
    d: [f32; 16],
    min: [f32; 8],
}

/// # Safety
/// AVX-512 F, BW, VL; the block is readable.
#[inline(always)]
unsafe fn scales<const S: u8>(block: *const u8) -> Scales {
    // SAFETY: the caller's: the bytes are in the block.
    unsafe {
        let mut scales = Scales { d: [0.0; 16], min: [0.0; 8] };
        match S {
            Q8_0 | Q4_0 => scales.d[0] = half(block),
            Q4_K | Q5_K => {
                let words: [u32; 3] = from_fn(|i| block.add(4 + 4 * i).cast::<u32>().read_unaligned());
                let high = |word: u32| (word >> 6 & 0x0303_0303) << 4;
                let numbers = [
                    [words[0] & 0x3f3f_3f3f, words[2] & 0x0f0f_0f0f | high(words[0])],
                    [words[1] & 0x3f3f_3f3f, words[2] >> 4 & 0x0f0f_0f0f | high(words[1])],
                ];
                let times = |[low, high]: [u32; 2], by: f32| {
                    let bytes = _mm_set_epi64x(0, (u64::from(low) | u64::from(high) << 32).cast_signed());
                    _mm256_mul_ps(_mm256_set1_ps(by), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)))
                };
                _mm256_storeu_ps(scales.d.as_mut_ptr(), times(numbers[0], half(block)));
                _mm256_storeu_ps(scales.min.as_mut_ptr(), times(numbers[1], half(block.add(2))));
            }
            _ => {
                let bytes = _mm_loadu_si128(block.add(192).cast());
                let numbers = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
                let d = _mm512_mul_ps(_mm512_set1_ps(half(block.add(208))), numbers);
                _mm512_storeu_ps(scales.d.as_mut_ptr(), d);
            }
        }
        scales
    }
}

/// The f16 at `p`.
#[inline(always)]
unsafe fn half(p: *const u8) -> f32 {
    // SAFETY: the caller has AVX-512 VL and two bytes.
    unsafe {
        let bits = _mm_cvtsi32_si128(i32::from(p.cast::<u16>().read_unaligned()));
        _mm_cvtss_f32(_mm_maskz_cvtph_ps(1, bits))
    }
}

/// Sixteen bytes at `p`, a word each.
#[inline(always)]
unsafe fn words(p: *const u8) -> __m512i {
    // SAFETY: the caller's.
    unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())) }
}

/// The integers 0 to 15.
#[inline(always)]
unsafe fn sixteen() -> __m512 {
    // SAFETY: the caller has AVX-512 F.
    unsafe { _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.) }
}

/// Group `g` of a block. Four and five bits are looked up in a table of the values that they may stand for.
///
/// # Safety
/// AVX-512 F, BW, VL; the block is readable.
#[inline(always)]
unsafe fn group<const S: u8>(block: *const u8, scales: &Scales, g: usize) -> [__m512; 2] {
    // SAFETY: the caller's: the bytes are in the block.
    unsafe {
        let shift = _mm_set_epi64x(0, (g % 2 * 4) as i64);
        match S {
            Q8_0 => [0, 16].map(
                #[inline(always)]
                |i| {
                    let numbers = _mm512_cvtepi8_epi32(_mm_loadu_si128(block.add(2 + i).cast()));
                    _mm512_mul_ps(_mm512_set1_ps(scales.d[0]), _mm512_cvtepi32_ps(numbers))
                },
            ),
            Q4_0 => {
                let levels = _mm512_sub_ps(sixteen(), _mm512_set1_ps(8.0));
                let table = _mm512_mul_ps(_mm512_set1_ps(scales.d[0]), levels);
                let low = words(block.add(2));
                [low, _mm512_srli_epi32::<4>(low)].map(
                    #[inline(always)]
                    |index| _mm512_permutexvar_ps(index, table),
                )
            }
            Q4_K => {
                let table = levels(scales, g, sixteen());
                [0, 16].map(
                    #[inline(always)]
                    |i| {
                        let index = _mm512_srl_epi32(words(block.add(16 + g / 2 * 32 + i)), shift);
                        _mm512_permutexvar_ps(index, table)
                    },
                )
            }
            Q5_K => five_bits(block, scales, g),
            _ => six_bits(block, scales, g),
        }
    }
}

/// [`group`] of `Q5_K`.
#[inline(always)]
unsafe fn five_bits(block: *const u8, scales: &Scales, g: usize) -> [__m512; 2] {
    // SAFETY: the caller's: the bytes are in the block.
    unsafe {
        let shift = _mm_set_epi64x(0, (g % 2 * 4) as i64);
        let low = levels(scales, g, sixteen());
        let high = levels(scales, g, _mm512_add_ps(sixteen(), _mm512_set1_ps(16.0)));
        let (fifth, nibble) = (_mm512_set1_epi32(16), _mm512_set1_epi32(15));
        let up = _mm_set_epi64x(0, g as i64);
        [0, 16].map(
            #[inline(always)]
            |i| {
                let index = _mm512_srl_epi32(words(block.add(48 + g / 2 * 32 + i)), shift);
                let bit = _mm512_slli_epi32::<4>(_mm512_srl_epi32(words(block.add(16 + i)), up));
                let index = _mm512_or_si512(_mm512_and_si512(index, nibble), _mm512_and_si512(bit, fifth));
                _mm512_permutex2var_ps(low, index, high)
            },
        )
    }
}

/// [`group`] of `Q6_K`.
#[inline(always)]
unsafe fn six_bits(block: *const u8, scales: &Scales, g: usize) -> [__m512; 2] {
    // SAFETY: the caller's: the bytes are in the block.
    unsafe {
        let (side, part) = (g / 4, g % 4);
        let shift = _mm_set_epi64x(0, (part / 2 * 4) as i64);
        let up = _mm_set_epi64x(0, (2 * part) as i64);
        from_fn(
            #[inline(always)]
            |i| {
                let low = words(block.add(64 * side + 32 * (part % 2) + 16 * i));
                let high = words(block.add(128 + 32 * side + 16 * i));
                let low = _mm512_and_si512(_mm512_srl_epi32(low, shift), _mm512_set1_epi32(15));
                let high = _mm512_and_si512(_mm512_srl_epi32(high, up), _mm512_set1_epi32(3));
                let level = _mm512_or_si512(low, _mm512_slli_epi32::<4>(high));
                let number = _mm512_cvtepi32_ps(_mm512_sub_epi32(level, _mm512_set1_epi32(32)));
                _mm512_mul_ps(_mm512_set1_ps(scales.d[2 * g + i]), number)
            },
        )
    }
}

/// What `levels` stand for in group `g`.
#[inline(always)]
unsafe fn levels(scales: &Scales, g: usize, levels: __m512) -> __m512 {
    // SAFETY: the caller has AVX-512 F.
    unsafe {
        let scaled = _mm512_mul_ps(_mm512_set1_ps(scales.d[g]), levels);
        _mm512_sub_ps(scaled, _mm512_set1_ps(scales.min[g]))
    }
}

/// Calls `f` with every group of `row` that columns `first..first + count` are, and its number among them.
///
/// # Safety
/// AVX-512 F, BW, VL; the row is readable; first and count are whole groups.
#[inline(always)]
unsafe fn each_group<const S: u8>(
    row: *const u8,
    (first, count): (usize, usize),
    mut f: impl FnMut(usize, [__m512; 2]),
) {
    let (groups, bytes) = block(S);
    let (start, end) = (first / GROUP, (first + count) / GROUP);
    let mut at = start;
    while at < end {
        let p = row.wrapping_add(at / groups * bytes);
        // SAFETY: the caller's.
        unsafe {
            let scales = scales::<S>(p);
            if groups == 8 && at % 8 == 0 && at + 8 <= end {
                // Shifts are constants here.
                for g in 0..8 {
                    f(at - start + g, group::<S>(p, &scales, g));
                }
                at += 8;
            } else {
                let until = end.min(at + groups - at % groups);
                for i in at..until {
                    f(i - start, group::<S>(p, &scales, i % groups));
                }
                at = until;
            }
        }
    }
}

/// Widens a part of a row into f32.
#[inline(always)]
unsafe fn widen<const S: u8>(row: *const u8, columns: (usize, usize), to: *mut f32) {
    // SAFETY: the caller's, who has room for the values.
    unsafe {
        each_group::<S>(
            row,
            columns,
            #[inline(always)]
            |i, [low, high]| {
                _mm512_storeu_ps(to.add(GROUP * i), low);
                _mm512_storeu_ps(to.add(GROUP * i + 16), high);
            },
        );
    }
}

/// The packer of `stored` values seen in `direction`, into f32 words or pairs.
pub(super) fn packer(stored: Stored, direction: Direction, pairs: bool) -> Packer {
    match (direction, pairs) {
        (Direction::Forward, false) => by_quantised!(stored, along_f32),
        (Direction::Forward, true) => by_quantised!(stored, along_pairs),
        (Direction::Backward, false) => by_quantised!(stored, across_f32),
        (Direction::Backward, true) => by_quantised!(stored, across_pairs),
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
    unsafe { down::<S, false>(w, vectors, panel) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn across_pairs<const S: u8>(w: &Region, vectors: usize, panel: *mut u32) {
    // SAFETY: the caller's.
    unsafe { down::<S, true>(w, vectors, panel) }
}

/// Values of a row that are widened before they are packed: 16 rows of them stay in the L1 cache.
const RUN: usize = 256;

/// Columns of B are rows of the region: 16 rows of a run are widened, then transposed as f32.
#[inline(always)]
unsafe fn along<const S: u8, const PAIRS: bool>(w: &Region, vectors: usize, panel: *mut u32) {
    let mut scratch = [const { MaybeUninit::<Line>::uninit() }; RUN];
    let scratch: *mut f32 = scratch.as_mut_ptr().cast();
    let lines = from_fn(|i| scratch.wrapping_add(i * RUN).cast::<u8>().cast_const());
    for v in 0..vectors {
        let there = w.rows.saturating_sub(16 * v).min(16);
        let to = panel.wrapping_add(16 * v);
        let end = w.at.1 + w.cols;
        let mut first = w.at.1;
        while first < end {
            // Runs end where blocks do.
            let count = (RUN - first % RUN).min(end - first);
            let done = first - w.at.1;
            let at = if PAIRS { done / 2 } else { done };
            // SAFETY: rows and columns of the region; the scratch holds a run of 16 rows, the panel has room.
            unsafe {
                for i in 0..there {
                    widen::<S>(w.row(16 * v + i), (first, count), scratch.add(i * RUN));
                }
                transposed::<F32, PAIRS>(
                    (&lines, there),
                    count,
                    to.wrapping_add(at * vectors * 16),
                    vectors * 16,
                );
            }
            first += count;
        }
    }
}

/// Rows that are widened before they are packed.
const TALL: usize = 16;

/// Columns of B are columns of the region: some rows are widened, then packed as f32.
#[inline(always)]
unsafe fn down<const S: u8, const PAIRS: bool>(w: &Region, vectors: usize, panel: *mut u32) {
    let mut scratch = [const { MaybeUninit::<Line>::uninit() }; TALL * 4];
    let scratch: *mut f32 = scratch.as_mut_ptr().cast();
    for first in (0..w.rows).step_by(TALL) {
        let rows = TALL.min(w.rows - first);
        let widened = Region {
            start: scratch.cast::<u8>().cast_const(),
            stride: 4 * 64,
            order: RowOrder::Plain,
            at: (0, 0),
            rows,
            cols: w.cols,
        };
        let done = if PAIRS { first / 2 } else { first };
        // SAFETY: rows and columns of the region, at most 64 of these; the panel has room.
        unsafe {
            for i in 0..rows {
                widen::<S>(w.row(first + i), (w.at.1, w.cols), scratch.add(i * 64));
            }
            across::<F32, PAIRS>(&widened, vectors, panel.wrapping_add(done * vectors * 16));
        }
    }
}

/// The instance for `m` rows of x, of the products that [`super::rows`] describes.
pub(super) fn dots(stored: Stored, pairs: bool, m: usize) -> unsafe fn(&Part<'_>) {
    match (pairs, m) {
        (false, 1) => by_quantised!(stored, of_f32, 1, 2),
        (false, 2) => by_quantised!(stored, of_f32, 2, 2),
        (false, _) => by_quantised!(stored, of_f32, 4, 1),
        (true, 1) => by_quantised!(stored, of_pairs, 1, 4),
        (true, 2) => by_quantised!(stored, of_pairs, 2, 2),
        (true, 4) => by_quantised!(stored, of_pairs, 4, 1),
        (true, _) => by_quantised!(stored, of_pairs, 8, 1),
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

/// A row of W at a time against `M` rows of x; `U` groups in turn have sums of their own.
#[inline(always)]
unsafe fn body<const S: u8, const PAIRS: bool, const M: usize, const U: usize>(part: &Part<'_>) {
    let (w, group) = (&part.w, part.group);
    let lines = if PAIRS { M } else { 2 * M };
    for r in 0..w.rows {
        // SAFETY: a row of the region; x has as many runs as it has groups.
        unsafe {
            let mut sums = [[[_mm512_setzero_ps(); 2]; M]; U];
            each_group::<S>(
                w.row(r),
                (0, w.cols),
                #[inline(always)]
                |i, [low, high]| {
                    let x = group.runs.as_ptr().wrapping_add(i * lines);
                    let pair = if PAIRS { round(low, high) } else { _mm512_setzero_si512() };
                    for (m, sum) in sums[i % U].iter_mut().enumerate() {
                        let load = |line: usize| _mm512_load_si512(x.wrapping_add(line).cast());
                        if PAIRS {
                            sum[0] = step::<true>(sum[0], pair, load(m));
                        } else {
                            sum[0] = step::<false>(sum[0], _mm512_castps_si512(low), load(2 * m));
                            sum[1] = step::<false>(sum[1], _mm512_castps_si512(high), load(2 * m + 1));
                        }
                    }
                },
            );
            for m in 0..M.min(group.rows.1) {
                let sum = sums
                    .iter()
                    .flat_map(|sums| sums[m])
                    .fold(_mm512_setzero_ps(), |s, t| _mm512_add_ps(s, t));
                part.put(r, m, _mm512_reduce_add_ps(sum));
            }
        }
    }
}
