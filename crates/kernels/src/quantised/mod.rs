//! Blocks of quantised values, as ggml defines them (`ggml-common.h`, `ggml-quants.c`): to f32 and back.
//!
//! Values are read in groups of 32, the smallest run that shares a scale in most types. The arithmetic is ggml's reference,
//! `d·q` or `d·q - m`, each product and difference rounded once: every set of kernels gives the same bits.

#![expect(
    clippy::inline_always,
    reason = "a body must be compiled inside the function that enables its instructions"
)]
#![expect(
    clippy::needless_range_loop,
    reason = "loops over the same places of several arrays, which become vectors as they are"
)]
#![expect(non_camel_case_types, reason = "the names that ggml gives its types")]

mod encode;

pub use encode::encode;

use crate::Stored;
use crate::vector::wide;

/// Values that are read together.
pub(crate) const GROUP: usize = 32;

/// The values that `bytes`, whole blocks, hold: the inverse of [`encode`] but for its rounding.
pub fn decode(bytes: &[u8], stored: Stored, out: &mut [f32]) {
    match stored.size() {
        Some(_) => crate::product::widen(bytes, stored, out),
        None => read(bytes, stored, 0, out),
    }
}

/// Values from column `first` on of a row that is stored as `line`.
pub(crate) fn read(line: &[u8], stored: Stored, first: usize, out: &mut [f32]) {
    assert!(first + out.len() <= line.len() / stored.block_bytes() * stored.block());
    wide(
        #[inline(always)]
        || match stored {
            Stored::Q8_0 => read_by::<Q8_0>(line, first, out),
            Stored::Q4_0 => read_by::<Q4_0>(line, first, out),
            Stored::Q4_K => read_by::<Q4_K>(line, first, out),
            Stored::Q5_K => read_by::<Q5_K>(line, first, out),
            Stored::Q6_K => read_by::<Q6_K>(line, first, out),
            Stored::F32 | Stored::F16 | Stored::Bf16 => {}
        },
    );
}

/// A type of block. (Functions that were passed as values would not be inlined into what enables the instructions.)
pub(crate) trait Blocks {
    const STORED: Stored;
    /// The least integer.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AVX2 has a use for it"))]
    const LEAST: i8;
    /// Whether the halves of a group have scales of their own.
    const HALVES: bool = false;

    fn scales(block: &[u8]) -> Scales;

    /// The integers of group `g` of a block.
    fn levels(block: &[u8], g: usize) -> [i8; GROUP];
}

/// What makes values of a block's integers, as it lies there.
pub(crate) struct Scales {
    /// The f16 d and dmin, as bits: the units of what follows.
    pub(crate) units: [u16; 2],
    /// What the integers of each group are multiplied by or, of [`Blocks::HALVES`], those of each half of each.
    pub(crate) numbers: [i16; 16],
    /// What is then taken off those of each group.
    pub(crate) minima: [u8; 8],
}

impl Scales {
    /// d alone, which starts at `at`.
    #[inline(always)]
    fn one(block: &[u8], at: usize) -> Self {
        Self { units: [u16::from_le_bytes(bytes(block, at)), 0], numbers: [1; 16], minima: [0; 8] }
    }

    /// Of a block that starts with d, dmin and 6-bit numbers, packed.
    #[inline(always)]
    fn with_minima(block: &[u8]) -> Self {
        const SIX: u32 = 0x3f3f_3f3f;
        const FOUR: u32 = 0x0f0f_0f0f;
        const UPPER: u32 = 0x3030_3030;
        let word = |at| u32::from_le_bytes(bytes(block, at));
        let (scales, mins, both) = (word(4), word(8), word(12));
        let eight = |low: u32, high: u32| (u64::from(low) | u64::from(high) << 32).to_le_bytes();
        let scales = eight(scales & SIX, both & FOUR | scales >> 2 & UPPER);
        let minima = eight(mins & SIX, both >> 4 & FOUR | mins >> 2 & UPPER);
        let units = [0, 2].map(|at| u16::from_le_bytes(bytes(block, at)));
        let mut numbers = [0; 16];
        for g in 0..8 {
            numbers[g] = i16::from(scales[g]);
        }
        Self { units, numbers, minima }
    }

    /// What the integers of each half of a group are multiplied by, and what is taken off those of a group.
    #[inline(always)]
    fn values<T: Blocks>(&self) -> ([[f32; 2]; 8], [f32; 8]) {
        let (d, dmin) = (half(self.units[0]), half(self.units[1]));
        let (mut factors, mut minima) = ([[0.0; 2]; 8], [0.0; 8]);
        for g in 0..8 {
            let at = if T::HALVES { [2 * g, 2 * g + 1] } else { [g, g] };
            for half in 0..2 {
                factors[g][half] = d * f32::from(self.numbers[at[half]]);
            }
            minima[g] = dmin * f32::from(self.minima[g]);
        }
        (factors, minima)
    }
}

#[inline(always)]
fn read_by<T: Blocks>(line: &[u8], first: usize, out: &mut [f32]) {
    let (values, bytes) = (T::STORED.block(), T::STORED.block_bytes());
    let mut at = first;
    let mut rest = out;
    while !rest.is_empty() {
        let block = &line[at / values * bytes..][..bytes];
        let scales = T::scales(block);
        let (factors, minima) = scales.values::<T>();
        let end = (at - at % values + values).min(at + rest.len());
        while at < end {
            let count = (GROUP - at % GROUP).min(end - at);
            let (now, later) = std::mem::take(&mut rest).split_at_mut(count);
            let g = at % values / GROUP;
            if let Ok(now) = now.try_into() {
                read_group::<T>(block, (&factors, &minima), g, now);
            } else {
                let mut all = [0.0; GROUP];
                read_group::<T>(block, (&factors, &minima), g, &mut all);
                now.copy_from_slice(&all[at % GROUP..][..count]);
            }
            (at, rest) = (at + count, later);
        }
    }
}

#[inline(always)]
fn read_group<T: Blocks>(
    block: &[u8],
    (factors, minima): (&[[f32; 2]; 8], &[f32; 8]),
    g: usize,
    out: &mut [f32; GROUP],
) {
    let levels = T::levels(block, g);
    for i in 0..GROUP {
        out[i] = factors[g][i / 16] * f32::from(levels[i]) - minima[g];
    }
}

/// A copy of `N` bytes: what is written cannot lie over them, so that loops become vectors.
#[inline(always)]
fn bytes<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let mut copy = [0; N];
    copy.copy_from_slice(&block[at..at + N]);
    copy
}

/// An f16, without the branches of [`half::f16`]: scales are as often subnormal as not.
#[inline(always)]
fn half(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let magnitude = bits & 0x7fff;
    let subnormal = magnitude as f32 * (1.0 / (1 << 24) as f32);
    let exponent = if magnitude < 0x7c00 { 127 - 15 } else { 255 - 31 };
    let normal = f32::from_bits((magnitude << 13) + (exponent << 23));
    let value = if magnitude < 0x400 { subnormal } else { normal };
    f32::from_bits(value.to_bits() | (bits & 0x8000) << 16)
}

/// d, then 32 signed bytes.
pub(crate) struct Q8_0;

impl Blocks for Q8_0 {
    const STORED: Stored = Stored::Q8_0;
    const LEAST: i8 = -128;

    #[inline(always)]
    fn scales(block: &[u8]) -> Scales {
        Scales::one(block, 0)
    }

    #[inline(always)]
    fn levels(block: &[u8], _: usize) -> [i8; GROUP] {
        bytes::<GROUP>(block, 2).map(u8::cast_signed)
    }
}

/// d, then 16 bytes: the low nibbles are the first half, the high ones the second.
pub(crate) struct Q4_0;

impl Blocks for Q4_0 {
    const STORED: Stored = Stored::Q4_0;
    const LEAST: i8 = -8;

    #[inline(always)]
    fn scales(block: &[u8]) -> Scales {
        Scales::one(block, 0)
    }

    #[inline(always)]
    fn levels(block: &[u8], _: usize) -> [i8; GROUP] {
        let both: [u8; 16] = bytes(block, 2);
        let mut levels = [0; GROUP];
        for i in 0..16 {
            levels[i] = (both[i] & 15).cast_signed() - 8;
            levels[i + 16] = (both[i] >> 4).cast_signed() - 8;
        }
        levels
    }
}

/// d, dmin, 12 bytes of scales and minima, then four runs of 32 bytes: low nibbles are one group, high ones the next.
pub(crate) struct Q4_K;

impl Blocks for Q4_K {
    const STORED: Stored = Stored::Q4_K;
    const LEAST: i8 = 0;

    #[inline(always)]
    fn scales(block: &[u8]) -> Scales {
        Scales::with_minima(block)
    }

    #[inline(always)]
    fn levels(block: &[u8], g: usize) -> [i8; GROUP] {
        let both: [u8; 32] = bytes(block, 16 + g / 2 * 32);
        let mut levels = [0; GROUP];
        for i in 0..GROUP {
            levels[i] = (both[i] >> (g % 2 * 4) & 15).cast_signed();
        }
        levels
    }
}

/// As [`Q4_K`], with 32 bytes before the nibbles whose bit `g` is the fifth of group `g`.
pub(crate) struct Q5_K;

impl Blocks for Q5_K {
    const STORED: Stored = Stored::Q5_K;
    const LEAST: i8 = 0;

    #[inline(always)]
    fn scales(block: &[u8]) -> Scales {
        Scales::with_minima(block)
    }

    #[inline(always)]
    fn levels(block: &[u8], g: usize) -> [i8; GROUP] {
        let (low, high): ([u8; 32], [u8; 32]) = (bytes(block, 48 + g / 2 * 32), bytes(block, 16));
        let mut levels = [0; GROUP];
        for i in 0..GROUP {
            levels[i] = (low[i] >> (g % 2 * 4) & 15 | (high[i] >> g & 1) << 4).cast_signed();
        }
        levels
    }
}

/// 128 bytes of low nibbles, 64 of high pairs of bits, 16 signed scales, d.
pub(crate) struct Q6_K;

impl Blocks for Q6_K {
    const STORED: Stored = Stored::Q6_K;
    const LEAST: i8 = -32;
    const HALVES: bool = true;

    #[inline(always)]
    fn scales(block: &[u8]) -> Scales {
        let numbers: [u8; 16] = bytes(block, 192);
        let mut scales = Scales::one(block, 208);
        for i in 0..16 {
            scales.numbers[i] = i16::from(numbers[i].cast_signed());
        }
        scales
    }

    #[inline(always)]
    fn levels(block: &[u8], g: usize) -> [i8; GROUP] {
        let (side, part) = (g / 4, g % 4);
        let low: [u8; 32] = bytes(block, 64 * side + 32 * (part % 2));
        let high: [u8; 32] = bytes(block, 128 + 32 * side);
        let mut levels = [0; GROUP];
        for i in 0..GROUP {
            let level = low[i] >> (part / 2 * 4) & 15 | (high[i] >> (2 * part) & 3) << 4;
            levels[i] = level.cast_signed() - 32;
        }
        levels
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "same bits")]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::{Device, Tensor};

    use super::*;

    const TYPES: [(&str, Stored); 5] = [
        ("Q8_0", Stored::Q8_0),
        ("Q4_0", Stored::Q4_0),
        ("Q4_K", Stored::Q4_K),
        ("Q5_K", Stored::Q5_K),
        ("Q6_K", Stored::Q6_K),
    ];

    /// Made by `tests/oracle/make_gguf_blocks.py`.
    fn fixture() -> BTreeMap<String, Tensor> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/gguf/blocks.safetensors");
        candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect()
    }

    #[test]
    fn blocks_hold_what_ggml_reads_in_them() {
        let all = fixture();
        for (name, stored) in TYPES {
            let blocks = all[&format!("{name}.blocks")].to_vec1::<u8>().unwrap();
            let expected = all[&format!("{name}.values")].to_vec1::<f32>().unwrap();
            let mut values = vec![0.0; expected.len()];
            read(&blocks, stored, 0, &mut values);
            assert_eq!(values, expected, "{name}");
        }
    }

    /// Sums are not taken in ggml's order, so that here and there a scale of k-quants is the next one: the errors are the same.
    #[test]
    fn values_become_the_blocks_that_ggml_makes() {
        let all = fixture();
        let plain = all["plain"].to_vec1::<f32>().unwrap();
        for (name, stored) in TYPES {
            let expected = all[&format!("{name}.encoded")].to_vec1::<u8>().unwrap();
            let mut bytes = vec![0; expected.len()];
            assert!(encode(&plain, stored, &mut bytes));
            let same = bytes.iter().zip(&expected).filter(|(a, b)| a == b).count();
            let error = |bytes: &[u8]| -> f64 {
                let mut values = vec![0.0; plain.len()];
                read(bytes, stored, 0, &mut values);
                values.iter().zip(&plain).map(|(v, p)| f64::from(v - p).powi(2)).sum()
            };
            let (ours, theirs) = (error(&bytes), error(&expected));
            assert!(ours <= 1.001 * theirs, "{name}: {ours} for {theirs}, {same} of {} bytes", bytes.len());
            let all_same = bytes == expected;
            assert!(all_same || stored.block() == 256 && same * 10 > bytes.len() * 9, "{name}: {same}");
        }
    }

    #[test]
    fn zeros_stay_and_what_is_not_finite_is_told() {
        for (_, stored) in TYPES {
            let mut bytes = vec![1; stored.bytes(512).unwrap()];
            assert!(encode(&[0.0; 512], stored, &mut bytes));
            let mut values = [1.0; 512];
            read(&bytes, stored, 0, &mut values);
            assert_eq!(values, [0.0; 512], "{stored:?}");
            for bad in [f32::NAN, f32::INFINITY, 1e30] {
                values[300] = bad;
                assert!(!encode(&values, stored, &mut bytes), "{stored:?} {bad}");
            }
        }
    }
}
