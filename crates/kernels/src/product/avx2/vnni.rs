//! [`Numbers`] by rows of `W`, with the instruction that adds up four products of bytes.
//!
//! Digits are summed up from the highest down, `256 · sum + next`, so that the sums of four values are exact integers, one
//! multiplication scales each, and no sum waits long for another.

#![expect(
    clippy::inline_always,
    reason = "a body must be compiled inside the function that enables its instructions"
)]

use std::arch::x86_64::*;

use super::rows::total;
use super::super_blocks::{Digits, GROUPS, Numbers, SHORT, Scales, SuperBlocks};
use super::{fetch_ahead, load};

/// Sums of a row by a row: in fewer, a block's products wait for each other.
const SUMS: usize = 4;

/// A number of each group. Aligned, as it is written and read at once.
#[repr(C, align(32))]
struct Each([i32; GROUPS]);

impl Numbers {
    /// The products of `M` rows from `first` on, in numbers of `N` bytes, with a whole row of W.
    #[target_feature(enable = "avx2,fma,f16c,avx512vl,avx512vnni")]
    pub(super) fn dots_with_vnni<T: SuperBlocks, const M: usize, const N: usize>(
        &self,
        first: usize,
        line: &[u8],
    ) -> [f32; M] {
        let mut sums = [[_mm256_setzero_ps(); SUMS]; M];
        for (i, block) in line.chunks_exact(T::STORED.block_bytes()).enumerate() {
            let mut factors = [[_mm256_setzero_ps(); 2]; M];
            // SAFETY: the instructions exist; a whole block.
            unsafe {
                fetch_ahead::<T>(block);
                let scales = T::vectors(block);
                let numbers = numbers::<T>(&scales);
                for m in 0..M {
                    let at = (first + m) * self.blocks + i;
                    let unit = _mm256_mul_ps(scales.unit, _mm256_set1_ps(self.units[at]));
                    factors[m] = [_mm256_mul_ps(numbers[0], unit), _mm256_mul_ps(numbers[1], unit)];
                    take::<T>(&scales, &self.halves[at], &mut sums[m]);
                }
                let x = self.at::<M, N>(first, i);
                // One by one, as where the integers lie must be constants.
                self.add::<T, M, N>(&mut sums, (block, &factors, 0), x);
                self.add::<T, M, N>(&mut sums, (block, &factors, 1), x);
                self.add::<T, M, N>(&mut sums, (block, &factors, 2), x);
                self.add::<T, M, N>(&mut sums, (block, &factors, 3), x);
                self.add::<T, M, N>(&mut sums, (block, &factors, 4), x);
                self.add::<T, M, N>(&mut sums, (block, &factors, 5), x);
                self.add::<T, M, N>(&mut sums, (block, &factors, 6), x);
                self.add::<T, M, N>(&mut sums, (block, &factors, 7), x);
            }
        }
        let mut dots = [0.0; M];
        for m in 0..M {
            let [a, b, c, d] = sums[m];
            dots[m] = total(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d)));
        }
        dots
    }

    /// The same of short numbers and blocks with minima: the scales are integers too, and a block's sum is exact.
    #[target_feature(enable = "avx2,fma,f16c,avx512vl,avx512vnni")]
    pub(super) fn dots_in_integers<T: SuperBlocks, const M: usize>(
        &self,
        first: usize,
        line: &[u8],
    ) -> [f32; M] {
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        for (i, block) in line.chunks_exact(T::STORED.block_bytes()).enumerate() {
            // SAFETY: the instructions exist; a whole block.
            unsafe {
                fetch_ahead::<T>(block);
                let [scales, minima] =
                    packed(block).map(|bytes| _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes as i64)));
                let mut each = Each([0; GROUPS]);
                _mm256_store_si256((&raw mut each).cast(), scales);
                // From memory, a number is everywhere in a vector without an instruction.
                let each = &std::hint::black_box(&each).0;
                let units = _mm_cvtph_ps(_mm_loadu_si64(block.as_ptr()));
                let x = self.at::<M, SHORT>(first, i);
                let mut parts = [[_mm256_setzero_si256(); 2]; M];
                // One by one, as where the integers lie must be constants.
                self.add_integers::<T, M>(&mut parts, (block, each, 0), x);
                self.add_integers::<T, M>(&mut parts, (block, each, 1), x);
                self.add_integers::<T, M>(&mut parts, (block, each, 2), x);
                self.add_integers::<T, M>(&mut parts, (block, each, 3), x);
                self.add_integers::<T, M>(&mut parts, (block, each, 4), x);
                self.add_integers::<T, M>(&mut parts, (block, each, 5), x);
                self.add_integers::<T, M>(&mut parts, (block, each, 6), x);
                self.add_integers::<T, M>(&mut parts, (block, each, 7), x);
                for (m, ([a, b], parts)) in sums.iter_mut().zip(&parts).enumerate() {
                    let at = (first + m) * self.blocks + i;
                    let units = _mm_mul_ps(units, _mm_set1_ps(self.units[at]));
                    let of_levels = _mm256_add_epi32(parts[0], parts[1]);
                    let of_x = _mm256_loadu_si256(self.sums[at].as_ptr().cast());
                    let of_minima = _mm256_mullo_epi32(minima, of_x);
                    *a = _mm256_fmadd_ps(_mm256_cvtepi32_ps(of_levels), _mm256_broadcastss_ps(units), *a);
                    let least = _mm256_broadcastss_ps(_mm_movehdup_ps(units));
                    *b = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(of_minima), least, *b);
                }
            }
        }
        let mut dots = [0.0; M];
        for m in 0..M {
            dots[m] = total(_mm256_add_ps(sums[m][0], sums[m][1]));
        }
        dots
    }

    /// Adds the products of group `g` of a block, times its scale; the digits of the first row's block are at `x`.
    ///
    /// # Safety
    /// AVX2, AVX-512 VNNI and VL; all `M` rows of x have this block.
    #[inline(always)]
    unsafe fn add_integers<T: SuperBlocks, const M: usize>(
        &self,
        parts: &mut [[__m256i; 2]; M],
        (block, scales, g): (&[u8], &[i32; GROUPS], usize),
        x: *const Digits,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let (levels, scale) = (T::bytes(block, g), _mm256_set1_epi32(scales[g]));
            for (m, parts) in parts.iter_mut().enumerate() {
                let x = x.wrapping_add((m * self.blocks * GROUPS + g) * SHORT);
                let (high, low) = (_mm256_load_si256(x.cast()), _mm256_load_si256(x.wrapping_add(1).cast()));
                // 4 · 31 · (2^15 + 2^7) at most, times 63, and of four groups.
                let dot = _mm256_dpbusd_epi32(_mm256_setzero_si256(), levels, high);
                let dot = _mm256_dpbusd_epi32(_mm256_slli_epi32::<8>(dot), levels, low);
                parts[g % 2] = _mm256_add_epi32(parts[g % 2], _mm256_mullo_epi32(dot, scale));
            }
        }
    }

    /// Adds the products of group `g` of a block; the digits of the first row's block are at `x`.
    ///
    /// # Safety
    /// AVX2, FMA, AVX-512 VNNI and VL; all `M` rows of x have this block.
    #[inline(always)]
    unsafe fn add<T: SuperBlocks, const M: usize, const N: usize>(
        &self,
        sums: &mut [[__m256; SUMS]; M],
        (block, factors, g): (&[u8], &[[__m256; 2]; M], usize),
        x: *const Digits,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let levels = T::bytes(block, g);
            for m in 0..M {
                let x = x.wrapping_add((m * self.blocks * GROUPS + g) * N);
                // 4 · 63 · 127 · 2^16 at most.
                let mut dot = _mm256_setzero_si256();
                for n in 0..N {
                    let digits = _mm256_load_si256(x.wrapping_add(n).cast());
                    dot = _mm256_dpbusd_epi32(_mm256_slli_epi32::<8>(dot), levels, digits);
                }
                let factor = spread(factors[m][g / 4], g % 4);
                sums[m][g % SUMS] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), factor, sums[m][g % SUMS]);
            }
        }
    }
}

/// The scales and the minima of a block that has minima, a byte each, in general registers: vector ones have enough to do.
#[inline(always)]
fn packed(block: &[u8]) -> [u64; 2] {
    let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (scales, minima, lower) = (word(4), word(8), word(12));
    let join = |first: u32, lower: u32| {
        let others = lower & 0x0f0f_0f0f | first >> 2 & 0x3030_3030;
        u64::from(first & 0x3f3f_3f3f) | u64::from(others) << 32
    };
    [join(scales, lower), join(minima, lower >> 4)]
}

/// Number `n` of each lane, everywhere in it.
///
/// # Safety
/// AVX.
#[inline(always)]
unsafe fn spread(lanes: __m256, n: usize) -> __m256 {
    // SAFETY: the caller's.
    unsafe {
        match n {
            0 => _mm256_permute_ps::<0x00>(lanes),
            1 => _mm256_permute_ps::<0x55>(lanes),
            2 => _mm256_permute_ps::<0xaa>(lanes),
            _ => _mm256_permute_ps::<0xff>(lanes),
        }
    }
}

/// What the integers of groups 0 to 3 and 4 to 7 are multiplied by, beside d: a lane for the first halves of the groups, the
/// other for the second.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn numbers<T: SuperBlocks>(scales: &Scales) -> [__m256; 2] {
    let numbers = scales.numbers;
    // SAFETY: the caller's.
    unsafe {
        if T::HALVES {
            let low = _mm256_srai_epi32::<16>(_mm256_unpacklo_epi16(numbers, numbers));
            let high = _mm256_srai_epi32::<16>(_mm256_unpackhi_epi16(numbers, numbers));
            return [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)];
        }
        let all = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(numbers)));
        [_mm256_permute2f128_ps::<0x00>(all, all), _mm256_permute2f128_ps::<0x11>(all, all)]
    }
}

/// Takes off the sums what is taken off the groups' values, of whose x the sums by halves are given.
///
/// # Safety
/// AVX2 and FMA.
#[inline(always)]
unsafe fn take<T: SuperBlocks>(scales: &Scales, [a, b]: &[[f32; GROUPS]; 2], sums: &mut [__m256; SUMS]) {
    // SAFETY: the caller's.
    unsafe {
        if T::HALVES {
            sums[0] = _mm256_fnmadd_ps(scales.taken[0], load(a), sums[0]);
            sums[1] = _mm256_fnmadd_ps(scales.taken[1], load(b), sums[1]);
        } else {
            sums[1] = _mm256_fnmadd_ps(scales.taken[0], _mm256_add_ps(load(a), load(b)), sums[1]);
        }
    }
}
