//! Few rows of x by quantised rows of `W`, whose integers are summed up before they are scaled.

use std::arch::x86_64::*;
use std::array::from_fn;

use super::LANES;
use crate::Stored;
use crate::quantised::{Blocks, GROUP, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0, Scales};

/// Integers lie in the highest byte of 32 bits, so that they are 2^24 times as large.
const UNIT: f32 = 1.0 / (1 << 24) as f32;

/// Rows of x, the values of each group in the order in which a vector's shifts bring its bytes up: every fourth from the
/// first on, from the second, the third and the fourth.
pub(super) struct Rows {
    k: usize,
    /// Times [`UNIT`].
    values: Vec<f32>,
    /// The sum of each group.
    totals: Vec<f32>,
}

impl Rows {
    /// Of `x`, in rows of `k`: whole groups.
    pub(super) fn new(x: &[f32], k: usize) -> Self {
        let (groups, _) = x.as_chunks::<GROUP>();
        let reordered =
            |group: &[f32; GROUP]| -> [f32; GROUP] { from_fn(|i| UNIT * group[i % LANES * 4 + i / LANES]) };
        Self {
            k,
            values: groups.iter().flat_map(reordered).collect(),
            totals: groups.iter().map(|group| group.iter().sum()).collect(),
        }
    }

    /// The products of `M` rows from `first` on with a row of W that is `stored` as `line`.
    ///
    /// # Safety
    /// AVX2 and FMA.
    pub(super) unsafe fn dots<const M: usize>(&self, first: usize, line: &[u8], stored: Stored) -> [f32; M] {
        // SAFETY: the caller's.
        unsafe {
            match stored {
                Stored::Q8_0 => self.dots_of::<Q8_0, M>(first, line),
                Stored::Q4_0 => self.dots_of::<Q4_0, M>(first, line),
                Stored::Q4_K => self.dots_of::<Q4_K, M>(first, line),
                Stored::Q5_K => self.dots_of::<Q5_K, M>(first, line),
                Stored::Q6_K => self.dots_of::<Q6_K, M>(first, line),
                Stored::F32 | Stored::F16 | Stored::Bf16 => unreachable!("a plain type"),
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    fn dots_of<T: Blocks, const M: usize>(&self, first: usize, line: &[u8]) -> [f32; M] {
        let (count, bytes) = (T::STORED.block() / GROUP, T::STORED.block_bytes());
        let groups = self.k / GROUP;
        assert_eq!(line.len(), groups / count * bytes);
        let values = &self.values[first * self.k..][..M * self.k];
        let totals = &self.totals[first * groups..][..M * groups];
        let mut sums = [_mm256_setzero_ps(); M];
        let mut taken = [_mm256_setzero_ps(); M];
        for (i, block) in line.chunks_exact(bytes).enumerate() {
            let scales = T::scales(block);
            let values = values.as_ptr().wrapping_add(i * count * GROUP);
            // Which bits a group's levels have depends on its number in four: a constant here, but where the sums of four rows
            // leave too few registers for more than a group at a time.
            let together = if count == 1 || M > 2 { 1 } else { 4 };
            for first in (0..count).step_by(together) {
                // SAFETY: the line has as many values as a row of x.
                unsafe {
                    if together == 1 {
                        self.add_group::<T, M>(&mut sums, (block, &scales, first), values);
                    } else {
                        let four = first / 4 * 4;
                        self.add_group::<T, M>(&mut sums, (block, &scales, four), values);
                        self.add_group::<T, M>(&mut sums, (block, &scales, four + 1), values);
                        self.add_group::<T, M>(&mut sums, (block, &scales, four + 2), values);
                        self.add_group::<T, M>(&mut sums, (block, &scales, four + 3), values);
                    }
                }
            }
            if T::MINIMA {
                let minima = super::load(&scales.m);
                for m in 0..M {
                    let totals = super::load(&totals[m * groups + i * count..]);
                    taken[m] = _mm256_fmadd_ps(totals, minima, taken[m]);
                }
            }
        }
        let mut dots = [0.0; M];
        for m in 0..M {
            dots[m] = super::rows::total(_mm256_sub_ps(sums[m], taken[m]));
        }
        dots
    }

    /// Adds the products of group `g` of a block, whose first values of the first row of x are at `values`.
    ///
    /// # Safety
    /// AVX2 and FMA; all `M` rows of x have these values.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn add_group<T: Blocks, const M: usize>(
        &self,
        sums: &mut [__m256; M],
        (block, scales, g): (&[u8], &Scales, usize),
        values: *const f32,
    ) {
        let levels = T::levels(block, g);
        // SAFETY: 32 bytes.
        let levels = unsafe { _mm256_loadu_si256(levels.as_ptr().cast()) };
        let mut parts = [_mm256_setzero_ps(); M];
        for (q, levels) in raised(levels).into_iter().enumerate() {
            let levels = _mm256_cvtepi32_ps(levels);
            for (m, part) in parts.iter_mut().enumerate() {
                // SAFETY: the caller's.
                let x = unsafe { _mm256_loadu_ps(values.add(m * self.k + g * GROUP + q * LANES)) };
                *part = _mm256_fmadd_ps(levels, x, *part);
            }
        }
        let mut d = _mm256_set1_ps(scales.d[0][g]);
        if T::HALVES {
            d = _mm256_blend_ps::<0b1111_0000>(d, _mm256_set1_ps(scales.d[1][g]));
        }
        for m in 0..M {
            sums[m] = _mm256_fmadd_ps(parts[m], d, sums[m]);
        }
    }
}

/// The first to fourth byte of each 32 bits, signed, in the place of the fourth.
#[target_feature(enable = "avx2")]
fn raised(bytes: __m256i) -> [__m256i; 4] {
    let fourth = _mm256_set1_epi32(0xff << 24);
    [
        _mm256_slli_epi32::<24>(bytes),
        _mm256_and_si256(_mm256_slli_epi32::<16>(bytes), fourth),
        _mm256_and_si256(_mm256_slli_epi32::<8>(bytes), fourth),
        _mm256_and_si256(bytes, fourth),
    ]
}
