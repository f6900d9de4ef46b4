//! Blocks of quantised values, as ggml defines them (`ggml-common.h`, `ggml-quants.c`): to f32 and back.
//!
//! Values are read in groups of 32, the smallest run that shares a scale in most types. The arithmetic is ggml's reference,
//! `d·q` or `d·q - m`, each product and difference rounded once: every set of kernels gives the same bits.

#![expect(
    clippy::inline_always,
    reason = "a body must be compiled inside the function that enables its instructions"
)]

mod encode;

pub use encode::encode;

use half::f16;

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
            Stored::Q8_0 => read_by(line, stored, first, out, q8_0),
            Stored::Q4_0 => read_by(line, stored, first, out, q4_0),
            Stored::Q4_K => read_by(line, stored, first, out, q4_k),
            Stored::Q5_K => read_by(line, stored, first, out, q5_k),
            Stored::Q6_K => read_by(line, stored, first, out, q6_k),
            Stored::F32 | Stored::F16 | Stored::Bf16 => {}
        },
    );
}

/// `group` gives group `g` of a block.
#[inline(always)]
fn read_by(
    line: &[u8],
    stored: Stored,
    first: usize,
    out: &mut [f32],
    group: impl Fn(&[u8], usize) -> [f32; GROUP],
) {
    let (block, bytes) = (stored.block(), stored.block_bytes());
    let mut at = first;
    let mut rest = out;
    while !rest.is_empty() {
        let values = group(&line[at / block * bytes..][..bytes], at % block / GROUP);
        let count = (GROUP - at % GROUP).min(rest.len());
        let (now, later) = std::mem::take(&mut rest).split_at_mut(count);
        now.copy_from_slice(&values[at % GROUP..][..count]);
        (at, rest) = (at + count, later);
    }
}

#[inline(always)]
fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// d, then 32 signed bytes.
#[inline(always)]
fn q8_0(block: &[u8], _: usize) -> [f32; GROUP] {
    let d = half(block, 0);
    let mut out = [0.0; GROUP];
    for (out, &q) in out.iter_mut().zip(&block[2..34]) {
        *out = d * f32::from(q.cast_signed());
    }
    out
}

/// d, then 16 bytes: the low nibbles are the first half, the high ones the second.
#[inline(always)]
fn q4_0(block: &[u8], _: usize) -> [f32; GROUP] {
    let d = half(block, 0);
    let mut out = [0.0; GROUP];
    for (i, &q) in block[2..18].iter().enumerate() {
        out[i] = d * f32::from((q & 15).cast_signed() - 8);
        out[i + 16] = d * f32::from((q >> 4).cast_signed() - 8);
    }
    out
}

/// d, dmin, 12 bytes of scales and minima, then four runs of 32 bytes: low nibbles are one group, high ones the next.
#[inline(always)]
fn q4_k(block: &[u8], g: usize) -> [f32; GROUP] {
    let (d, m) = scale_min(block, g);
    let mut out = [0.0; GROUP];
    for (out, &q) in out.iter_mut().zip(&block[16 + g / 2 * 32..][..32]) {
        *out = d * f32::from(q >> (g % 2 * 4) & 15) - m;
    }
    out
}

/// As `q4_k`, with 32 bytes before the nibbles whose bit `g` is the fifth of group `g`.
#[inline(always)]
fn q5_k(block: &[u8], g: usize) -> [f32; GROUP] {
    let (d, m) = scale_min(block, g);
    let mut out = [0.0; GROUP];
    let low = &block[48 + g / 2 * 32..][..32];
    for ((out, &low), &high) in out.iter_mut().zip(low).zip(&block[16..48]) {
        *out = d * f32::from(low >> (g % 2 * 4) & 15 | (high >> g & 1) << 4) - m;
    }
    out
}

/// 128 bytes of low nibbles, 64 of high pairs of bits, 16 signed scales, d.
#[inline(always)]
fn q6_k(block: &[u8], g: usize) -> [f32; GROUP] {
    let d = half(block, 208);
    let (side, part) = (g / 4, g % 4);
    let low = &block[64 * side + 32 * (part % 2)..][..32];
    let high = &block[128 + 32 * side..][..32];
    let scales = [2 * g, 2 * g + 1].map(|i| d * f32::from(block[192 + i].cast_signed()));
    let mut out = [0.0; GROUP];
    for (i, ((out, &low), &high)) in out.iter_mut().zip(low).zip(high).enumerate() {
        let q = low >> (part / 2 * 4) & 15 | (high >> (2 * part) & 3) << 4;
        *out = scales[i / 16] * f32::from(q.cast_signed() - 32);
    }
    out
}

/// The scale and the minimum of group `g` in a block that starts with d, dmin and the packed 6-bit numbers.
#[inline(always)]
fn scale_min(block: &[u8], g: usize) -> (f32, f32) {
    let packed = &block[4..16];
    let (scale, min) = if g < 4 {
        (packed[g] & 63, packed[g + 4] & 63)
    } else {
        let both = packed[g + 4];
        (both & 15 | packed[g - 4] >> 6 << 4, both >> 4 | packed[g] >> 6 << 4)
    };
    (half(block, 0) * f32::from(scale), half(block, 2) * f32::from(min))
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
