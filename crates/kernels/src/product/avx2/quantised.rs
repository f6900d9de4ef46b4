//! Few rows of x by quantised rows of `W`, whose integers are summed up before they are scaled.

use std::arch::x86_64::*;
use std::array::from_fn;

use super::LANES;
use super::super_blocks::Numbers;
use crate::Stored;
use crate::quantised::{Blocks, GROUP, Q4_0, Q8_0};

/// Rows of x as the products with some types need them.
pub(super) struct Rows {
    groups: Option<Groups>,
    numbers: Option<Numbers>,
}

impl Rows {
    /// Of `x`, in rows of `k`, for these types: `k` is whole blocks of each. With `round`, only such as may stand for values
    /// rounded to bf16.
    ///
    /// # Safety
    /// AVX2 and FMA, and AVX-512 VNNI and VL with `vnni`.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn new(x: &[f32], k: usize, types: &[Stored], (round, vnni): (bool, bool)) -> Self {
        let any = |block: usize| types.iter().any(|t| t.size().is_none() && t.block() == block);
        Self {
            groups: (any(GROUP) && !round).then(|| Groups::new(x, k)),
            numbers: any(256).then(|| Numbers::new(x, k, (round, vnni))).flatten(),
        }
    }

    /// Whether rows of W that are so `stored` can be multiplied.
    pub(super) fn fit(&self, stored: Stored) -> bool {
        match stored {
            Stored::Q8_0 | Stored::Q4_0 => self.groups.is_some(),
            Stored::Q4_K | Stored::Q5_K | Stored::Q6_K => self.numbers.is_some(),
            Stored::F32 | Stored::F16 | Stored::Bf16 => false,
        }
    }

    /// The products of `M` rows from `first` on with a row of W that is `stored` as `line`, and fits.
    ///
    /// # Safety
    /// AVX2, FMA and F16C.
    pub(super) unsafe fn dots<const M: usize>(&self, first: usize, line: &[u8], stored: Stored) -> [f32; M] {
        // SAFETY: the caller's.
        unsafe {
            match (&self.groups, &self.numbers) {
                (Some(groups), _) if stored == Stored::Q8_0 => groups.dots::<Q8_0, M>(first, line),
                (Some(groups), _) if stored == Stored::Q4_0 => groups.dots::<Q4_0, M>(first, line),
                (_, Some(numbers)) => numbers.dots(first, line, stored),
                _ => unreachable!("a type that does not fit"),
            }
        }
    }
}

/// Integers lie in the highest byte of 32 bits, so that they are 2^24 times as large.
const UNIT: f32 = 1.0 / (1 << 24) as f32;

/// Rows of x, the values of each group in the order in which a vector's shifts bring its bytes up: every fourth from the
/// first on, from the second, the third and the fourth.
struct Groups {
    k: usize,
    /// Times [`UNIT`].
    values: Vec<f32>,
}

impl Groups {
    fn new(x: &[f32], k: usize) -> Self {
        let (groups, _) = x.as_chunks::<GROUP>();
        let reordered =
            |group: &[f32; GROUP]| -> [f32; GROUP] { from_fn(|i| UNIT * group[i % LANES * 4 + i / LANES]) };
        Self { k, values: groups.iter().flat_map(reordered).collect() }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn dots<T: Blocks, const M: usize>(&self, first: usize, line: &[u8]) -> [f32; M] {
        let bytes = T::STORED.block_bytes();
        assert_eq!(line.len(), self.k / GROUP * bytes);
        let values = &self.values[first * self.k..][..M * self.k];
        let mut sums = [_mm256_setzero_ps(); M];
        for (g, block) in line.chunks_exact(bytes).enumerate() {
            super::fetch_ahead::<T>(block);
            let levels = T::levels(block, 0);
            // SAFETY: 32 bytes.
            let levels = unsafe { _mm256_loadu_si256(levels.as_ptr().cast()) };
            let mut parts = [_mm256_setzero_ps(); M];
            for (q, levels) in raised(levels).into_iter().enumerate() {
                let levels = _mm256_cvtepi32_ps(levels);
                for (m, part) in parts.iter_mut().enumerate() {
                    let x = values.as_ptr().wrapping_add(m * self.k + g * GROUP + q * LANES);
                    // SAFETY: the line has as many groups as each row of x.
                    *part = _mm256_fmadd_ps(levels, unsafe { _mm256_loadu_ps(x) }, *part);
                }
            }
            let [d, _] = super::halves(T::scales(block).units);
            for m in 0..M {
                sums[m] = _mm256_fmadd_ps(parts[m], d, sums[m]);
            }
        }
        sums.map(|sum| super::rows::total(sum))
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
