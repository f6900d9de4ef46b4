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
use std::hint::black_box;

use super::rows::total;
use crate::Stored;
use crate::quantised::{Blocks, GROUP, Q4_K, Q5_K, Q6_K};

/// Values and groups of a block.
const BLOCK: usize = 256;
const GROUPS: usize = BLOCK / GROUP;
/// Values of half a group, and what a block has of them.
const HALF: usize = GROUP / 2;
const HALVES: usize = BLOCK / HALF;

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
    /// Of each group the first bytes, then the second ones, then the third.
    digits: Vec<i8>,
    /// Of each block.
    units: Vec<f32>,
    /// The sums of x, of each block those of its groups.
    groups: Vec<[f32; GROUPS]>,
    /// And of their halves.
    halves: Vec<[f32; HALVES]>,
}

impl Numbers {
    /// Of `x`, in rows of `k`, which are whole blocks. None where a block has something not finite, or nothing large enough for
    /// a unit.
    ///
    /// # Safety
    /// AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn new(x: &[f32], k: usize) -> Option<Self> {
        let (blocks, _) = x.as_chunks::<BLOCK>();
        let mut numbers = Self {
            blocks: k / BLOCK,
            digits: vec![0; x.len() * DIGITS],
            units: Vec::with_capacity(blocks.len()),
            groups: Vec::with_capacity(blocks.len()),
            halves: Vec::with_capacity(blocks.len()),
        };
        for (block, digits) in blocks.iter().zip(numbers.digits.chunks_exact_mut(BLOCK * DIGITS)) {
            let largest = block.iter().fold(0.0, |max: f32, x| if x.abs() <= max { max } else { x.abs() });
            if largest != 0.0 && !(LEAST..f32::INFINITY).contains(&largest) {
                return None;
            }
            let unit = largest.max(LEAST) / LARGEST;
            for (group, digits) in block.chunks_exact(GROUP).zip(digits.chunks_exact_mut(GROUP * DIGITS)) {
                for (i, x) in group.iter().enumerate() {
                    let mut number = (x / unit).round_ties_even() as i32;
                    for digit in (0..DIGITS).rev() {
                        let low = number as i8;
                        digits[digit * GROUP + i] = low;
                        number = (number - i32::from(low)) >> 8;
                    }
                }
            }
            let halves: [f32; HALVES] = from_fn(|i| block[i * HALF..][..HALF].iter().sum());
            numbers.units.push(unit);
            numbers.groups.push(from_fn(|g| halves[2 * g] + halves[2 * g + 1]));
            numbers.halves.push(halves);
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
                Stored::Q4_K => self.dots_of::<Q4_K, M>(first, line),
                Stored::Q5_K => self.dots_of::<Q5_K, M>(first, line),
                Stored::Q6_K => self.dots_of::<Q6_K, M>(first, line),
                _ => unreachable!("not in super-blocks"),
            }
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn dots_of<T: Blocks, const M: usize>(&self, first: usize, line: &[u8]) -> [f32; M] {
        let bytes = T::STORED.block_bytes();
        assert_eq!(line.len(), self.blocks * bytes);
        let digits = &self.digits[first * self.blocks * BLOCK * DIGITS..];
        assert!(digits.len() >= M * self.blocks * BLOCK * DIGITS);
        let next = _mm256_set1_ps(256.0);
        let mut sums = [_mm256_setzero_ps(); M];
        for (i, block) in line.chunks_exact(bytes).enumerate() {
            let scales = T::scales(block);
            let twice = scales.numbers.map(|n| (u32::from(n.cast_unsigned()) * 0x1_0001).cast_signed());
            // In memory, from where a number is loaded into all places at once.
            let twice = black_box(&twice);
            let mut parts = [[_mm256_setzero_si256(); DIGITS]; M];
            let x = digits.as_ptr().wrapping_add(i * BLOCK * DIGITS);
            // SAFETY: all groups of a block that each row has.
            unsafe {
                self.add_four::<T, M>(&mut parts, (block, twice, 0), x);
                self.add_four::<T, M>(&mut parts, (block, twice, 4), x);
            }
            let [d, dmin] = super::halves(scales.units);
            for m in 0..M {
                let at = (first + m) * self.blocks + i;
                let [high, middle, low] = parts[m].map(|part| _mm256_cvtepi32_ps(part));
                let value = _mm256_fmadd_ps(_mm256_fmadd_ps(high, next, middle), next, low);
                sums[m] = _mm256_fmadd_ps(value, _mm256_mul_ps(d, _mm256_set1_ps(self.units[at])), sums[m]);
                sums[m] = if T::LEAST == 0 {
                    let minima = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(scales.minima)));
                    let groups = _mm256_mul_ps(dmin, super::load(&self.groups[at]));
                    _mm256_fnmadd_ps(_mm256_cvtepi32_ps(minima), groups, sums[m])
                } else {
                    let least = _mm256_mul_ps(d, _mm256_set1_ps(f32::from(T::LEAST)));
                    let mut total = _mm256_setzero_ps();
                    for (numbers, halves) in
                        scales.numbers.as_chunks().0.iter().zip(self.halves[at].chunks_exact(8))
                    {
                        total = _mm256_fmadd_ps(eight(numbers), super::load(halves), total);
                    }
                    _mm256_fmadd_ps(least, total, sums[m])
                };
            }
        }
        let mut dots = [0.0; M];
        for m in 0..M {
            dots[m] = total(sums[m]);
        }
        dots
    }

    /// [`Self::add_group`] of four groups from `first` on, whose numbers, which say where their integers lie, are constants.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn add_four<T: Blocks, const M: usize>(
        &self,
        parts: &mut [[__m256i; DIGITS]; M],
        (block, twice, first): (&[u8], &[i32; 16], usize),
        x: *const i8,
    ) {
        // SAFETY: the caller's.
        unsafe {
            self.add_group::<T, M>(parts, (block, twice, first), x);
            self.add_group::<T, M>(parts, (block, twice, first + 1), x);
            self.add_group::<T, M>(parts, (block, twice, first + 2), x);
            self.add_group::<T, M>(parts, (block, twice, first + 3), x);
        }
    }

    /// Adds the products of group `g` of a block, each digit's to its own sums; the digits of the first row's block are at `x`.
    ///
    /// # Safety
    /// AVX2; all `M` rows of x have this block.
    #[inline(always)]
    unsafe fn add_group<T: Blocks, const M: usize>(
        &self,
        parts: &mut [[__m256i; DIGITS]; M],
        (block, twice, g): (&[u8], &[i32; 16], usize),
        x: *const i8,
    ) {
        // Bytes without a sign.
        let levels = T::levels(block, g).map(|level| level.wrapping_sub(T::LEAST));
        // SAFETY: the caller's; 32 bytes of levels.
        unsafe {
            let levels = _mm256_loadu_si256(levels.as_ptr().cast());
            let number = if T::HALVES {
                let index = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
                let both = twice.as_ptr().add(2 * g).cast::<i64>().read_unaligned();
                _mm256_permutevar8x32_epi32(_mm256_set1_epi64x(both), index)
            } else {
                _mm256_set1_epi32(twice[g])
            };
            for (m, parts) in parts.iter_mut().enumerate() {
                let x = x.wrapping_add((m * self.blocks * GROUPS + g) * GROUP * DIGITS);
                for (digit, part) in parts.iter_mut().enumerate() {
                    let x = _mm256_loadu_si256(x.wrapping_add(digit * GROUP).cast());
                    // 2 · 63 · 128 at most, and then 2 · 128 · 8 times as much.
                    let pairs = _mm256_maddubs_epi16(levels, x);
                    *part = settled(_mm256_add_epi32(*part, _mm256_madd_epi16(pairs, number)));
                }
            }
        }
    }
}

/// Eight integers as f32.
#[inline]
#[target_feature(enable = "avx2")]
fn eight(numbers: &[i16; 8]) -> __m256 {
    // SAFETY: 16 bytes.
    let numbers = unsafe { _mm_loadu_si128(numbers.as_ptr().cast()) };
    _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(numbers))
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
