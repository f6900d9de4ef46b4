//! One row of x by quantised rows of `W`, whose integers are summed up before they are scaled.

use std::arch::x86_64::*;

use super::LANES;
use crate::Stored;
use crate::quantised::{Blocks, GROUP, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0};

/// A row of x, and the sum of each of its groups.
pub(super) struct Row<'a> {
    x: &'a [f32],
    totals: Vec<f32>,
}

impl<'a> Row<'a> {
    pub(super) fn new(x: &'a [f32]) -> Self {
        Self { x, totals: x.chunks(GROUP).map(|group| group.iter().sum()).collect() }
    }

    /// Its product with a row of W that is `stored` as `line`, and as long.
    ///
    /// # Safety
    /// AVX2 and FMA.
    pub(super) unsafe fn dot(&self, line: &[u8], stored: Stored) -> f32 {
        // SAFETY: the caller's.
        unsafe {
            match stored {
                Stored::Q8_0 => self.dot_of::<Q8_0>(line),
                Stored::Q4_0 => self.dot_of::<Q4_0>(line),
                Stored::Q4_K => self.dot_of::<Q4_K>(line),
                Stored::Q5_K => self.dot_of::<Q5_K>(line),
                Stored::Q6_K => self.dot_of::<Q6_K>(line),
                Stored::F32 | Stored::F16 | Stored::Bf16 => unreachable!("a plain type"),
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn dot_of<T: Blocks>(&self, line: &[u8]) -> f32 {
        let (values, bytes) = (T::STORED.block(), T::STORED.block_bytes());
        let mut sums = [_mm256_setzero_ps(); 2];
        let mut taken = [0.0f32; 8];
        let blocks = line.chunks_exact(bytes).zip(self.x.chunks_exact(values));
        for ((block, x), totals) in blocks.zip(self.totals.chunks_exact(values / GROUP)) {
            let scales = T::scales(block);
            for g in 0..values / GROUP {
                let levels = T::levels(block, g);
                let x = &x[g * GROUP..][..GROUP];
                for (half, sum) in sums.iter_mut().enumerate() {
                    let mut part = _mm256_setzero_ps();
                    for i in [16 * half, 16 * half + LANES] {
                        // SAFETY: eight of 32 values each.
                        let (levels, x) = unsafe {
                            (
                                _mm_loadl_epi64(levels.as_ptr().add(i).cast()),
                                _mm256_loadu_ps(x.as_ptr().add(i)),
                            )
                        };
                        part = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(levels)), x, part);
                    }
                    *sum = _mm256_fmadd_ps(_mm256_set1_ps(scales.d[2 * g + half]), part, *sum);
                }
            }
            for g in 0..values / GROUP {
                taken[g] = totals[g].mul_add(scales.m[g], taken[g]);
            }
        }
        super::rows::total(_mm256_add_ps(sums[0], sums[1])) - taken.iter().sum::<f32>()
    }
}
