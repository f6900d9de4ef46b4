//! Few rows of x by rows of `W` in super-blocks of 256 values, whose integers are multiplied as such.
//!
//! x is written in numbers of 24 bits, each three signed bytes, with one unit to a block: a product of bytes takes 32 values at
//! a time, and the sums of a block are exact. x is rounded by 2^-24 of its block's largest, as any sum in f32 is at each step
//! after it has met that value.

#![expect(
    clippy::inline_always,
    reason = "a body must be compiled inside the function that enables its instructions"
)]

use std::arch::asm;
use std::arch::x86_64::*;
use std::array::from_fn;

use super::rows::total;
use crate::Stored;
use crate::quantised::{Blocks, GROUP, Q4_K, Q5_K, Q6_K};

/// Values and groups of a block.
const BLOCK: usize = 256;
const GROUPS: usize = BLOCK / GROUP;
/// Values of half a group.
const HALF: usize = GROUP / 2;

/// Bytes of a number.
const DIGITS: usize = 3;
/// The largest number, about: its first byte is in range whatever the others are.
const LARGEST: f32 = (127 << 16) as f32;
/// The least magnitude, about, whose unit is not subnormal.
const LEAST: f32 = 1e-30;

/// Rows of x as numbers.
pub(super) struct Numbers {
    /// Of a row.
    blocks: usize,
    /// Whether VNNI adds the products up.
    vnni: bool,
    /// Of each group the first bytes, then the second ones, then the third.
    digits: Vec<i8>,
    /// Of each block.
    units: Vec<f32>,
    /// The sums of x, of each block those of its groups' first halves, and of their second ones.
    halves: Vec<[[f32; GROUPS]; 2]>,
}

impl Numbers {
    /// Of `x`, in rows of `k`, which are whole blocks. None where a block has something not finite, or nothing large enough for
    /// a unit.
    ///
    /// # Safety
    /// AVX2 and FMA; with `vnni`, AVX-512 VNNI and VL exist too.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn new(x: &[f32], k: usize, vnni: bool) -> Option<Self> {
        let (blocks, _) = x.as_chunks::<BLOCK>();
        let mut numbers = Self {
            blocks: k / BLOCK,
            vnni,
            digits: vec![0; x.len() * DIGITS],
            units: Vec::with_capacity(blocks.len()),
            halves: Vec::with_capacity(blocks.len()),
        };
        for (block, digits) in blocks.iter().zip(numbers.digits.chunks_exact_mut(BLOCK * DIGITS)) {
            let largest = block.iter().fold(0.0, |max: f32, x| if x.abs() <= max { max } else { x.abs() });
            if largest != 0.0 && !(LEAST..f32::INFINITY).contains(&largest) {
                return None;
            }
            let unit = largest.max(LEAST) / LARGEST;
            for (group, digits) in block.chunks_exact(GROUP).zip(digits.chunks_exact_mut(GROUP * DIGITS)) {
                let mut numbers: [i32; GROUP] = from_fn(|i| (group[i] / unit).round_ties_even() as i32);
                for digits in digits.chunks_exact_mut(GROUP).rev() {
                    for (digit, number) in digits.iter_mut().zip(&mut numbers) {
                        *digit = *number as i8;
                        *number = (*number - i32::from(*digit)) >> 8;
                    }
                }
            }
            numbers.units.push(unit);
            let sum = |at: usize| block[at..][..HALF].iter().sum();
            numbers.halves.push([0, HALF].map(|half| from_fn(|g| sum(g * GROUP + half))));
        }
        Some(numbers)
    }

    /// The products of `M` rows from `first` on with a row of W that is `stored` as `line`.
    ///
    /// # Safety
    /// AVX2, FMA and F16C.
    pub(super) unsafe fn dots<const M: usize>(&self, first: usize, line: &[u8], stored: Stored) -> [f32; M] {
        // SAFETY: the caller's.
        unsafe {
            match (stored, self.vnni) {
                (Stored::Q4_K, false) => self.dots_of::<Q4_K, M>(first, line),
                (Stored::Q5_K, false) => self.dots_of::<Q5_K, M>(first, line),
                (Stored::Q6_K, false) => self.dots_of::<Q6_K, M>(first, line),
                (Stored::Q4_K, true) => self.dots_with_vnni::<Q4_K, M>(first, line),
                (Stored::Q5_K, true) => self.dots_with_vnni::<Q5_K, M>(first, line),
                (Stored::Q6_K, true) => self.dots_with_vnni::<Q6_K, M>(first, line),
                _ => unreachable!("not in super-blocks"),
            }
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn dots_of<T: SuperBlocks, const M: usize>(&self, first: usize, line: &[u8]) -> [f32; M] {
        // SAFETY: the instructions exist.
        unsafe { self.dots_by::<T, M, false>(first, line) }
    }

    #[target_feature(enable = "avx2,fma,f16c,avx512vl,avx512vnni")]
    fn dots_with_vnni<T: SuperBlocks, const M: usize>(&self, first: usize, line: &[u8]) -> [f32; M] {
        // SAFETY: the instructions exist.
        unsafe { self.dots_by::<T, M, true>(first, line) }
    }

    /// # Safety
    /// AVX2, FMA and F16C, and with `VNNI` AVX-512 VNNI and VL.
    #[inline(always)]
    unsafe fn dots_by<T: SuperBlocks, const M: usize, const VNNI: bool>(
        &self,
        first: usize,
        line: &[u8],
    ) -> [f32; M] {
        let bytes = T::STORED.block_bytes();
        assert_eq!(line.len(), self.blocks * bytes);
        let digits = &self.digits[first * self.blocks * BLOCK * DIGITS..];
        assert!(digits.len() >= M * self.blocks * BLOCK * DIGITS);
        // SAFETY: the caller's; a block at a time, all of whose groups each row of x has.
        unsafe {
            let next = _mm256_set1_ps(256.0);
            let mut sums = [_mm256_setzero_ps(); M];
            for (i, block) in line.chunks_exact(bytes).enumerate() {
                super::fetch_ahead::<T>(block);
                let scales = T::vectors(block);
                let mut parts = [[_mm256_setzero_si256(); DIGITS]; M];
                let x = digits.as_ptr().wrapping_add(i * BLOCK * DIGITS);
                self.add_four::<T, M, VNNI>(&mut parts, (block, scales.numbers, 0), x);
                self.add_four::<T, M, VNNI>(&mut parts, (block, scales.numbers, 4), x);
                for m in 0..M {
                    let at = (first + m) * self.blocks + i;
                    let [high, middle, low] = parts[m].map(
                        #[inline(always)]
                        |part| _mm256_cvtepi32_ps(part),
                    );
                    let value = _mm256_fmadd_ps(_mm256_fmadd_ps(high, next, middle), next, low);
                    let unit = _mm256_mul_ps(scales.unit, _mm256_set1_ps(self.units[at]));
                    sums[m] = _mm256_fmadd_ps(value, unit, sums[m]);
                    for half in 0..2 {
                        sums[m] = _mm256_fnmadd_ps(
                            scales.taken[half],
                            super::load(&self.halves[at][half]),
                            sums[m],
                        );
                    }
                }
            }
            let mut dots = [0.0; M];
            for m in 0..M {
                dots[m] = total(sums[m]);
            }
            dots
        }
    }

    /// [`Self::add_group`] of four groups from `first` on, whose numbers, which say where their integers lie, are constants.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn add_four<T: SuperBlocks, const M: usize, const VNNI: bool>(
        &self,
        parts: &mut [[__m256i; DIGITS]; M],
        (block, numbers, first): (&[u8], __m256i, usize),
        x: *const i8,
    ) {
        // SAFETY: the caller's.
        unsafe {
            self.add_group::<T, M, VNNI>(parts, (block, numbers, first), x);
            self.add_group::<T, M, VNNI>(parts, (block, numbers, first + 1), x);
            self.add_group::<T, M, VNNI>(parts, (block, numbers, first + 2), x);
            self.add_group::<T, M, VNNI>(parts, (block, numbers, first + 3), x);
        }
    }

    /// Adds the products of group `g` of a block, each digit's to its own sums; the digits of the first row's block are at `x`.
    ///
    /// # Safety
    /// AVX2, and with `VNNI` AVX-512 VNNI and VL; all `M` rows of x have this block.
    #[inline(always)]
    unsafe fn add_group<T: SuperBlocks, const M: usize, const VNNI: bool>(
        &self,
        parts: &mut [[__m256i; DIGITS]; M],
        (block, numbers, g): (&[u8], __m256i, usize),
        x: *const i8,
    ) {
        // Bytes without a sign.
        let levels = T::levels(block, g).map(|level| level.wrapping_sub(T::LEAST));
        // SAFETY: the caller's; 32 bytes of levels.
        unsafe {
            let levels = _mm256_loadu_si256(levels.as_ptr().cast());
            let place = _mm256_set1_epi16((2 * g) as i16 | ((2 * g + 1) << 8) as i16);
            let number = _mm256_shuffle_epi8(numbers, place);
            for (m, parts) in parts.iter_mut().enumerate() {
                let x = x.wrapping_add((m * self.blocks * GROUPS + g) * GROUP * DIGITS);
                for (digit, part) in parts.iter_mut().enumerate() {
                    let x = _mm256_loadu_si256(x.wrapping_add(digit * GROUP).cast());
                    // 2 · 63 · 128 at most, and then 2 · 128 · 8 times as much.
                    let pairs = _mm256_maddubs_epi16(levels, x);
                    *part = settled(if VNNI {
                        _mm256_dpwssd_epi32(*part, pairs, number)
                    } else {
                        _mm256_add_epi32(*part, _mm256_madd_epi16(pairs, number))
                    });
                }
            }
        }
    }
}

/// [`Scales`](crate::quantised::Scales) in vectors, whose lower lane is for the first halves of the groups, the upper one for
/// the second.
struct Scales {
    /// d.
    unit: __m256,
    /// What the integers are multiplied by, in 16 bits.
    numbers: __m256i,
    /// What is taken off the value of each group's halves.
    taken: [__m256; 2],
}

trait SuperBlocks: Blocks {
    /// # Safety
    /// AVX2 and F16C; a whole block.
    unsafe fn vectors(block: &[u8]) -> Scales;
}

impl SuperBlocks for Q4_K {
    #[inline(always)]
    unsafe fn vectors(block: &[u8]) -> Scales {
        // SAFETY: the caller's.
        unsafe { with_minima(block) }
    }
}

impl SuperBlocks for Q5_K {
    #[inline(always)]
    unsafe fn vectors(block: &[u8]) -> Scales {
        // SAFETY: the caller's.
        unsafe { with_minima(block) }
    }
}

impl SuperBlocks for Q6_K {
    #[inline(always)]
    unsafe fn vectors(block: &[u8]) -> Scales {
        // SAFETY: the caller's; 16 bytes, and two.
        unsafe {
            let [unit, _] = super::halves([u16::from_le_bytes([block[208], block[209]]), 0]);
            let numbers = _mm_loadu_si128(block[192..208].as_ptr().cast());
            let evens_first = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
            let numbers = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(numbers, evens_first));
            let least = _mm256_mul_ps(unit, _mm256_set1_ps(-f32::from(Self::LEAST)));
            let taken = [_mm256_castsi256_si128(numbers), _mm256_extracti128_si256::<1>(numbers)]
                .map(|eight| _mm256_mul_ps(least, _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(eight))));
            Scales { unit, numbers, taken }
        }
    }
}

/// Of a block that starts with d, dmin and 6-bit numbers, packed: four bytes with the first four scales, four with the first
/// four minima, in whose upper bits are those of the others, and four with the lower bits of these.
///
/// # Safety
/// AVX2 and F16C; a whole block.
#[inline(always)]
unsafe fn with_minima(block: &[u8]) -> Scales {
    const NONE: i32 = -1;
    const SCALES: i32 = 0x0706_0504;
    const MINIMA: i32 = 0x0b0a_0908;
    const LOWER: i32 = 0x0f0e_0d0c;
    // SAFETY: the caller's; 16 bytes.
    unsafe {
        let head = _mm_loadu_si128(block[..16].as_ptr().cast());
        let bits = _mm_shuffle_epi8(head, _mm_setr_epi32(SCALES, LOWER, MINIMA, LOWER));
        let bits = _mm_srlv_epi32(bits, _mm_setr_epi32(0, 0, 0, 4));
        let bits = _mm_and_si128(bits, _mm_setr_epi32(0x3f3f_3f3f, 0x0f0f_0f0f, 0x3f3f_3f3f, 0x0f0f_0f0f));
        let upper = _mm_shuffle_epi8(head, _mm_setr_epi32(NONE, SCALES, NONE, MINIMA));
        let upper = _mm_and_si128(_mm_srli_epi32::<2>(upper), _mm_set1_epi32(0x3030_3030));
        let both = _mm_or_si128(bits, upper);
        let units = _mm_cvtph_ps(head);
        let minima = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(both, both)));
        let taken = _mm256_mul_ps(_mm256_broadcastss_ps(_mm_movehdup_ps(units)), minima);
        Scales {
            unit: _mm256_broadcastss_ps(units),
            numbers: _mm256_cvtepu8_epi16(_mm_unpacklo_epi64(both, both)),
            taken: [taken, taken],
        }
    }
}

/// The same vector, of which the compiler knows nothing: else it takes the sums of a block in an order of its own, in more
/// registers than there are.
#[inline]
#[target_feature(enable = "avx2")]
fn settled(mut v: __m256i) -> __m256i {
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", inout(ymm_reg) v, options(pure, nomem, nostack, preserves_flags)) };
    v
}
