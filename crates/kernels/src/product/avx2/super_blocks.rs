//! Few rows of x by rows of `W` in super-blocks of 256 values, whose integers are multiplied as such.
//!
//! x is written in numbers of 24 bits, each three signed bytes, with one unit to a block: a product of bytes takes 32 values at
//! a time, and the sums of a block are exact; with VNNI ([`vnni`](super::vnni)) those of four values. x is rounded by 2^-24 of
//! its block's largest, as any sum in f32 is at each step after it has met that value. Where it may be rounded to bf16, two
//! bytes do: 2^-16 of the largest, less than bf16 of all.

#![expect(
    clippy::inline_always,
    reason = "a body must be compiled inside the function that enables its instructions"
)]

use std::arch::asm;
use std::arch::x86_64::*;

use super::rows::total;
use super::{LANES, fetch_ahead, halves, load};
use crate::Stored;
use crate::quantised::{Blocks, GROUP, Q4_K, Q5_K, Q6_K};

/// Values and groups of a block.
const BLOCK: usize = 256;
pub(super) const GROUPS: usize = BLOCK / GROUP;
/// Values of half a group.
const HALF: usize = GROUP / 2;

/// Bytes of a number: as exact as f32, or more so than bf16.
const EXACT: usize = 3;
pub(super) const SHORT: usize = 2;
/// The least magnitude, about, whose unit is not subnormal.
const LEAST: f32 = 1e-30;

/// A byte of each number of a group. Aligned, as a load across cache lines takes two.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(super) struct Digits([i8; GROUP]);

/// Rows of x as numbers.
pub(super) struct Numbers {
    /// Of a row.
    pub(super) blocks: usize,
    /// Whether VNNI adds the products up.
    vnni: bool,
    /// Bytes of a number.
    count: usize,
    /// Of each group the first bytes, then the second ones, then the third.
    digits: Vec<Digits>,
    /// Of each block.
    pub(super) units: Vec<f32>,
    /// The sums of x, of each block those of its groups' first halves, and of their second ones.
    pub(super) halves: Vec<[[f32; GROUPS]; 2]>,
    /// The sums of the numbers of each block's groups; of short ones.
    pub(super) sums: Vec<[i32; GROUPS]>,
}

impl Numbers {
    /// Of `x`, in rows of `k`, which are whole blocks; `short` ones of 16 bits. None where a block has something not finite, or
    /// nothing large enough for a unit.
    ///
    /// # Safety
    /// AVX2 and FMA; with `vnni`, AVX-512 VNNI and VL exist too.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn new(x: &[f32], k: usize, (short, vnni): (bool, bool)) -> Option<Self> {
        let (blocks, _) = x.as_chunks::<BLOCK>();
        let count = if short { SHORT } else { EXACT };
        // About: its first byte is in range whatever the others are.
        let largest_number = (127 << (8 * (count - 1))) as f32;
        let mut numbers = Self {
            blocks: k / BLOCK,
            vnni,
            count,
            digits: vec![Digits([0; GROUP]); blocks.len() * GROUPS * count],
            units: Vec::with_capacity(blocks.len()),
            halves: Vec::with_capacity(blocks.len()),
            sums: Vec::with_capacity(blocks.len()),
        };
        for (block, digits) in blocks.iter().zip(numbers.digits.chunks_exact_mut(GROUPS * count)) {
            let largest = largest(block);
            if largest != 0.0 && !(LEAST..f32::INFINITY).contains(&largest) {
                return None;
            }
            let unit = largest.max(LEAST) / largest_number;
            let (groups, _) = block.as_chunks::<GROUP>();
            let mut sums = [0; GROUPS];
            for ((group, digits), sum) in groups.iter().zip(digits.chunks_exact_mut(count)).zip(&mut sums) {
                *sum = write(group, unit, digits);
            }
            numbers.sums.push(sums);
            numbers.units.push(unit);
            numbers.halves.push(halves_of(block));
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
            match stored {
                Stored::Q4_K => self.dots_beside::<Q4_K, M>(first, line),
                Stored::Q5_K => self.dots_beside::<Q5_K, M>(first, line),
                Stored::Q6_K => self.dots_beside::<Q6_K, M>(first, line),
                _ => unreachable!("not in super-blocks"),
            }
        }
    }

    /// # Safety
    /// AVX2, FMA and F16C.
    #[inline(always)]
    unsafe fn dots_beside<T: SuperBlocks, const M: usize>(&self, first: usize, line: &[u8]) -> [f32; M] {
        assert_eq!(line.len(), self.blocks * T::STORED.block_bytes());
        // SAFETY: the caller's, and `vnni` says what else there is.
        unsafe {
            match (self.count, self.vnni) {
                (SHORT, true) if !T::HALVES => self.dots_in_integers::<T, M>(first, line),
                (SHORT, true) => self.dots_with_vnni::<T, M, SHORT>(first, line),
                (_, true) => self.dots_with_vnni::<T, M, EXACT>(first, line),
                (SHORT, false) => self.dots_of::<T, M, SHORT>(first, line),
                (_, false) => self.dots_of::<T, M, EXACT>(first, line),
            }
        }
    }

    /// The digits of block `i` of the row `first`, which the other ones of `M` rows come after.
    #[inline(always)]
    pub(super) fn at<const M: usize, const N: usize>(&self, first: usize, i: usize) -> *const Digits {
        let row = self.blocks * GROUPS * N;
        self.digits[first * row..][..M * row].as_ptr().wrapping_add(i * GROUPS * N)
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn dots_of<T: SuperBlocks, const M: usize, const N: usize>(&self, first: usize, line: &[u8]) -> [f32; M] {
        // SAFETY: the instructions exist; a block at a time, all of whose groups each row of x has.
        unsafe {
            let next = _mm256_set1_ps(256.0);
            let mut sums = [_mm256_setzero_ps(); M];
            for (i, block) in line.chunks_exact(T::STORED.block_bytes()).enumerate() {
                fetch_ahead::<T>(block);
                let scales = T::vectors(block);
                let mut parts = [[_mm256_setzero_si256(); N]; M];
                let x = self.at::<M, N>(first, i);
                self.add_four::<T, M, N>(&mut parts, (block, scales.numbers, 0), x);
                self.add_four::<T, M, N>(&mut parts, (block, scales.numbers, 4), x);
                for m in 0..M {
                    let at = (first + m) * self.blocks + i;
                    let mut value = _mm256_cvtepi32_ps(parts[m][0]);
                    for part in &parts[m][1..] {
                        value = _mm256_fmadd_ps(value, next, _mm256_cvtepi32_ps(*part));
                    }
                    let unit = _mm256_mul_ps(scales.unit, _mm256_set1_ps(self.units[at]));
                    sums[m] = _mm256_fmadd_ps(value, unit, sums[m]);
                    for half in 0..2 {
                        sums[m] = _mm256_fnmadd_ps(scales.taken[half], load(&self.halves[at][half]), sums[m]);
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
    unsafe fn add_four<T: SuperBlocks, const M: usize, const N: usize>(
        &self,
        parts: &mut [[__m256i; N]; M],
        (block, numbers, first): (&[u8], __m256i, usize),
        x: *const Digits,
    ) {
        // SAFETY: the caller's.
        unsafe {
            self.add_group::<T, M, N>(parts, (block, numbers, first), x);
            self.add_group::<T, M, N>(parts, (block, numbers, first + 1), x);
            self.add_group::<T, M, N>(parts, (block, numbers, first + 2), x);
            self.add_group::<T, M, N>(parts, (block, numbers, first + 3), x);
        }
    }

    /// Adds the products of group `g` of a block, each of `N` digits' to its own sums; the digits of the first row's block are at `x`.
    ///
    /// # Safety
    /// AVX2; all `M` rows of x have this block.
    #[inline(always)]
    unsafe fn add_group<T: SuperBlocks, const M: usize, const N: usize>(
        &self,
        parts: &mut [[__m256i; N]; M],
        (block, numbers, g): (&[u8], __m256i, usize),
        x: *const Digits,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let levels = T::bytes(block, g);
            let place = _mm256_set1_epi16((2 * g) as i16 | ((2 * g + 1) << 8) as i16);
            let number = _mm256_shuffle_epi8(numbers, place);
            for (m, parts) in parts.iter_mut().enumerate() {
                let x = x.wrapping_add((m * self.blocks * GROUPS + g) * N);
                for (digit, part) in parts.iter_mut().enumerate() {
                    let x = _mm256_load_si256(x.wrapping_add(digit).cast());
                    // 2 · 63 · 128 at most, and then 2 · 128 · 8 times as much.
                    let pairs = _mm256_maddubs_epi16(levels, x);
                    *part = settled(_mm256_add_epi32(*part, _mm256_madd_epi16(pairs, number)));
                }
            }
        }
    }
}

/// The largest magnitude; NaN where there is one.
#[target_feature(enable = "avx2")]
fn largest(block: &[f32; BLOCK]) -> f32 {
    let mut most = 0;
    for x in block {
        // Bits of magnitudes are in their order, and NaN after all of them.
        most = x.abs().to_bits().max(most);
    }
    f32::from_bits(most)
}

/// Writes `x` in numbers of `unit`, the first byte of each to the first of `digits`, the next to the next; their sum.
#[target_feature(enable = "avx2")]
fn write(x: &[f32; GROUP], unit: f32, digits: &mut [Digits]) -> i32 {
    let mut numbers = [0; GROUP];
    for (x, numbers) in x.chunks_exact(LANES).zip(numbers.chunks_exact_mut(LANES)) {
        let nearest = _mm256_cvtps_epi32(_mm256_div_ps(load(x), _mm256_set1_ps(unit)));
        // SAFETY: eight places.
        unsafe { _mm256_storeu_si256(numbers.as_mut_ptr().cast(), nearest) };
    }
    let mut sum = 0i32;
    for number in numbers {
        sum = sum.wrapping_add(number);
    }
    for Digits(digits) in digits.iter_mut().rev() {
        for i in 0..GROUP {
            digits[i] = numbers[i] as i8;
            numbers[i] = (numbers[i] - i32::from(digits[i])) >> 8;
        }
    }
    sum
}

#[target_feature(enable = "avx2")]
fn halves_of(block: &[f32; BLOCK]) -> [[f32; GROUPS]; 2] {
    let mut halves = [[0.0; GROUPS]; 2];
    for g in 0..GROUPS {
        for half in 0..2 {
            let values = &block[g * GROUP + half * HALF..][..HALF];
            halves[half][g] = total(_mm256_add_ps(load(values), load(&values[LANES..])));
        }
    }
    halves
}

/// [`Scales`](crate::quantised::Scales) in vectors, whose lower lane is for the first halves of the groups, the upper one for
/// the second.
pub(super) struct Scales {
    /// d.
    pub(super) unit: __m256,
    /// What the integers are multiplied by, in 16 bits.
    pub(super) numbers: __m256i,
    /// What is taken off the value of each group's halves.
    pub(super) taken: [__m256; 2],
}

pub(super) trait SuperBlocks: Blocks {
    /// # Safety
    /// AVX2 and F16C; a whole block.
    unsafe fn vectors(block: &[u8]) -> Scales;

    /// [`Blocks::levels`] of group `g`, counted from the least: bytes without a sign. `g` is a constant where it matters.
    ///
    /// # Safety
    /// AVX2; a whole block.
    unsafe fn bytes(block: &[u8], g: usize) -> __m256i;
}

/// The bits in `mask` of 32 bytes from `at` on, once they are shifted to the right.
///
/// # Safety
/// AVX2; so many bytes.
#[inline(always)]
unsafe fn bits(block: &[u8], at: usize, shift: usize, mask: i8) -> __m256i {
    // SAFETY: the caller's. Bits of a byte come to its neighbour where the mask has none.
    unsafe {
        let bytes = _mm256_loadu_si256(block[at..at + GROUP].as_ptr().cast());
        let shifted = _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(shift as i32));
        _mm256_and_si256(shifted, _mm256_set1_epi8(mask))
    }
}

impl SuperBlocks for Q4_K {
    #[inline(always)]
    unsafe fn vectors(block: &[u8]) -> Scales {
        // SAFETY: the caller's.
        unsafe { with_minima(block) }
    }

    #[inline(always)]
    unsafe fn bytes(block: &[u8], g: usize) -> __m256i {
        // SAFETY: the caller's.
        unsafe { bits(block, 16 + g / 2 * GROUP, g % 2 * 4, 15) }
    }
}

impl SuperBlocks for Q5_K {
    #[inline(always)]
    unsafe fn vectors(block: &[u8]) -> Scales {
        // SAFETY: the caller's.
        unsafe { with_minima(block) }
    }

    #[inline(always)]
    unsafe fn bytes(block: &[u8], g: usize) -> __m256i {
        // SAFETY: the caller's.
        unsafe {
            let fifth = _mm256_slli_epi16::<4>(bits(block, 16, g, 1));
            _mm256_or_si256(bits(block, 48 + g / 2 * GROUP, g % 2 * 4, 15), fifth)
        }
    }
}

impl SuperBlocks for Q6_K {
    #[inline(always)]
    unsafe fn vectors(block: &[u8]) -> Scales {
        // SAFETY: the caller's; 16 bytes, and two.
        unsafe {
            let [unit, _] = halves([u16::from_le_bytes([block[208], block[209]]), 0]);
            let numbers = _mm_loadu_si128(block[192..208].as_ptr().cast());
            let evens_first = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
            let numbers = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(numbers, evens_first));
            let least = _mm256_mul_ps(unit, _mm256_set1_ps(-f32::from(Self::LEAST)));
            let taken = [_mm256_castsi256_si128(numbers), _mm256_extracti128_si256::<1>(numbers)]
                .map(|eight| _mm256_mul_ps(least, _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(eight))));
            Scales { unit, numbers, taken }
        }
    }

    #[inline(always)]
    unsafe fn bytes(block: &[u8], g: usize) -> __m256i {
        let (side, part) = (g / 4, g % 4);
        // SAFETY: the caller's.
        unsafe {
            let high = _mm256_slli_epi16::<4>(bits(block, 128 + side * GROUP, 2 * part, 3));
            _mm256_or_si256(bits(block, 64 * side + part % 2 * GROUP, part / 2 * 4, 15), high)
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
