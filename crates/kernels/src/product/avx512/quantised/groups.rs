//! Groups of 32 quantised values, widened in registers: to f32, or rounded to bf16.
//!
//! Beware of closures and of what takes them (`from_fn`, `map`, `fold`): where such a call is not inlined, its body is compiled
//! without these instructions, and each of them becomes a call.

use std::arch::x86_64::*;

use super::super::{Q4_0, Q4_K, Q5_K, Q8_0, round};
use crate::quantised::GROUP;

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
                let words = block.add(4).cast::<[u32; 3]>().read_unaligned();
                let [low, high] = numbers(words);
                let d = _mm256_mul_ps(_mm256_set1_ps(half(block)), low);
                let min = _mm256_mul_ps(_mm256_set1_ps(half(block.add(2))), high);
                _mm256_storeu_ps(scales.d.as_mut_ptr(), d);
                _mm256_storeu_ps(scales.min.as_mut_ptr(), min);
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

/// Eight scales and eight minima of six bits, as `Q4_K` and `Q5_K` pack them.
#[inline(always)]
unsafe fn numbers([scales, mins, rest]: [u32; 3]) -> [__m256; 2] {
    const SIX: u32 = 0x3f3f_3f3f;
    const FOUR: u32 = 0x0f0f_0f0f;
    const TWO: u32 = 0x0303_0303;
    // SAFETY: the caller has AVX-512 VL.
    unsafe {
        [
            eight([scales & SIX, rest & FOUR | (scales >> 6 & TWO) << 4]),
            eight([mins & SIX, rest >> 4 & FOUR | (mins >> 6 & TWO) << 4]),
        ]
    }
}

/// Eight bytes as f32.
#[inline(always)]
unsafe fn eight([low, high]: [u32; 2]) -> __m256 {
    // SAFETY: the caller has AVX-512 VL.
    unsafe {
        let bytes = _mm_set_epi64x(0, (u64::from(low) | u64::from(high) << 32).cast_signed());
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))
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

/// Group `g` of a block: two vectors of f32, or one of bf16 in order and one that means nothing.
///
/// # Safety
/// AVX-512 F, BW, VL, and BF16 for `PAIRS`; the block is readable.
#[inline(always)]
unsafe fn group<const S: u8, const PAIRS: bool>(block: *const u8, scales: &Scales, g: usize) -> [__m512i; 2] {
    // SAFETY: the caller's.
    unsafe {
        if PAIRS && matches!(S, Q4_K | Q5_K) {
            return [looked_up::<S>(block, scales, g), _mm512_setzero_si512()];
        }
        let [low, high] = match S {
            Q8_0 => eight_bits(block, scales),
            Q4_0 => four_bits(block, scales),
            Q4_K | Q5_K => levels_f32::<S>(block, scales, g),
            _ => six_bits(block, scales, g),
        };
        if PAIRS {
            [round(low, high), _mm512_setzero_si512()]
        } else {
            [_mm512_castps_si512(low), _mm512_castps_si512(high)]
        }
    }
}

/// [`group`] of `Q8_0`.
#[inline(always)]
unsafe fn eight_bits(block: *const u8, scales: &Scales) -> [__m512; 2] {
    // SAFETY: the caller's: the bytes are in the block.
    unsafe {
        let d = _mm512_set1_ps(scales.d[0]);
        let low = _mm512_cvtepi8_epi32(_mm_loadu_si128(block.add(2).cast()));
        let high = _mm512_cvtepi8_epi32(_mm_loadu_si128(block.add(18).cast()));
        [_mm512_mul_ps(d, _mm512_cvtepi32_ps(low)), _mm512_mul_ps(d, _mm512_cvtepi32_ps(high))]
    }
}

/// [`group`] of `Q4_0`: looked up in a table of what four bits stand for.
#[inline(always)]
unsafe fn four_bits(block: *const u8, scales: &Scales) -> [__m512; 2] {
    // SAFETY: the caller's: the bytes are in the block.
    unsafe {
        let levels = _mm512_sub_ps(sixteen(), _mm512_set1_ps(8.0));
        let table = _mm512_mul_ps(_mm512_set1_ps(scales.d[0]), levels);
        let both = words(block.add(2));
        [_mm512_permutexvar_ps(both, table), _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(both), table)]
    }
}

/// What the 16 or 32 levels of group `g` of `Q4_K` or `Q5_K` stand for; the 16 twice.
#[inline(always)]
unsafe fn tables<const S: u8>(scales: &Scales, g: usize) -> [__m512; 2] {
    // SAFETY: the caller has AVX-512 F.
    unsafe {
        let (d, min) = (_mm512_set1_ps(scales.d[g]), _mm512_set1_ps(scales.min[g]));
        let low = _mm512_sub_ps(_mm512_mul_ps(d, sixteen()), min);
        if S == Q4_K {
            return [low, low];
        }
        let upper = _mm512_add_ps(sixteen(), _mm512_set1_ps(16.0));
        [low, _mm512_sub_ps(_mm512_mul_ps(d, upper), min)]
    }
}

/// [`group`] of `Q4_K` or `Q5_K` as f32.
#[inline(always)]
unsafe fn levels_f32<const S: u8>(block: *const u8, scales: &Scales, g: usize) -> [__m512; 2] {
    // SAFETY: the caller's: the bytes are in the block.
    unsafe {
        let [low, high] = tables::<S>(scales, g);
        let shift = _mm_set_epi64x(0, (g % 2 * 4) as i64);
        let mut values = [_mm512_setzero_ps(); 2];
        for (i, values) in values.iter_mut().enumerate() {
            let at = if S == Q4_K { 16 } else { 48 } + g / 2 * 32 + 16 * i;
            let index = _mm512_srl_epi32(words(block.add(at)), shift);
            if S == Q4_K {
                *values = _mm512_permutexvar_ps(index, low);
            } else {
                let fifth = _mm512_srl_epi32(words(block.add(16 + 16 * i)), _mm_set_epi64x(0, g as i64));
                let fifth = _mm512_and_si512(_mm512_slli_epi32::<4>(fifth), _mm512_set1_epi32(16));
                let index = _mm512_or_si512(_mm512_and_si512(index, _mm512_set1_epi32(15)), fifth);
                *values = _mm512_permutex2var_ps(low, index, high);
            }
        }
        values
    }
}

/// The 32 bytes from `at` on, 16 bits each.
#[inline(always)]
unsafe fn shorts(block: *const u8, at: usize) -> __m512i {
    // SAFETY: the caller has AVX-512 BW and the bytes.
    unsafe { _mm512_cvtepu8_epi16(_mm256_loadu_si256(block.add(at).cast())) }
}

/// [`group`] of `Q4_K` or `Q5_K` as bf16: five bits are the index into a table of 32, in which 16 levels lie twice.
#[inline(always)]
unsafe fn looked_up<const S: u8>(block: *const u8, scales: &Scales, g: usize) -> __m512i {
    // SAFETY: the caller's: the bytes are in the block.
    unsafe {
        let [low, high] = tables::<S>(scales, g);
        let table = round(low, high);
        let shift = _mm_set_epi64x(0, (g % 2 * 4) as i64);
        if S == Q4_K {
            let index = _mm512_srl_epi16(shorts(block, 16 + g / 2 * 32), shift);
            return _mm512_permutexvar_epi16(index, table);
        }
        let index =
            _mm512_and_si512(_mm512_srl_epi16(shorts(block, 48 + g / 2 * 32), shift), _mm512_set1_epi16(15));
        let fifth = _mm512_srl_epi16(shorts(block, 16), _mm_set_epi64x(0, g as i64));
        let fifth = _mm512_and_si512(_mm512_slli_epi16::<4>(fifth), _mm512_set1_epi16(16));
        _mm512_permutexvar_epi16(_mm512_or_si512(index, fifth), table)
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
        let mut values = [_mm512_setzero_ps(); 2];
        for (i, values) in values.iter_mut().enumerate() {
            let low = words(block.add(64 * side + 32 * (part % 2) + 16 * i));
            let high = words(block.add(128 + 32 * side + 16 * i));
            let low = _mm512_and_si512(_mm512_srl_epi32(low, shift), _mm512_set1_epi32(15));
            let high = _mm512_and_si512(_mm512_srl_epi32(high, up), _mm512_set1_epi32(3));
            let level = _mm512_or_si512(low, _mm512_slli_epi32::<4>(high));
            let number = _mm512_cvtepi32_ps(_mm512_sub_epi32(level, _mm512_set1_epi32(32)));
            *values = _mm512_mul_ps(_mm512_set1_ps(scales.d[2 * g + i]), number);
        }
        values
    }
}

/// Calls `f` with every group of `row` that columns `first..first + count` are: its number among them, 0 or 1 so that a
/// run of groups alternates, and its values.
///
/// The alternation is a constant wherever `f` is called, so that what it indexes stays in registers.
///
/// # Safety
/// As for [`group`]; the row is readable; first and count are whole groups.
#[inline(always)]
pub(super) unsafe fn each_group<const S: u8, const PAIRS: bool>(
    row: *const u8,
    (first, count): (usize, usize),
    mut f: impl FnMut(usize, usize, [__m512i; 2]),
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
                for g in [0, 2, 4, 6] {
                    let two = [group::<S, PAIRS>(p, &scales, g), group::<S, PAIRS>(p, &scales, g + 1)];
                    f(at - start + g, 0, two[0]);
                    f(at - start + g + 1, 1, two[1]);
                }
                at += 8;
            } else if groups == 1 && at + 2 <= end {
                let next = p.wrapping_add(bytes);
                f(at - start, 0, group::<S, PAIRS>(p, &scales, 0));
                f(at - start + 1, 1, group::<S, PAIRS>(next, &self::scales::<S>(next), 0));
                at += 2;
            } else {
                let until = end.min(at + groups - at % groups);
                for i in at..until {
                    f(i - start, 0, group::<S, PAIRS>(p, &scales, i % groups));
                }
                at = until;
            }
        }
    }
}
