//! Stored values to f32 and back: exact one way, one rounding to nearest-even the other.

use half::f16;
use half::slice::HalfFloatSliceExt;
use safetensors::Dtype;
use taper_base::ValueType;
use taper_kernels::decode;

/// Values that are rounded to F16 at a time.
const RUN: usize = 64;

/// Bytes of one value of a type that can be merged into; none for any other type.
pub(crate) fn size(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        _ => None,
    }
}

/// The little-endian values in `bytes`, of a type that [`size`] knows, as f32.
pub(crate) fn widen(bytes: &[u8], dtype: Dtype, out: &mut [f32]) {
    if let Some(stored) = ValueType::Plain(dtype).stored() {
        decode(bytes, stored, out);
    }
}

/// Writes `values` as little-endian values of `dtype`, a type that [`size`] knows, each rounded to the nearest (ties to
/// even). False if one is not finite, before or after.
///
/// `taper_kernels::encode` takes the values one by one, goes through them twice, and refuses those that round down to the
/// largest bf16.
pub(crate) fn round(values: &[f32], dtype: Dtype, out: &mut [u8]) -> bool {
    match dtype {
        Dtype::BF16 => {
            let mut bad = 0;
            for (value, out) in values.iter().zip(out.as_chunks_mut::<2>().0) {
                let bits = value.to_bits();
                let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
                bad |= infinite_or_nan(bits) | infinite_or_nan(rounded);
                *out = ((rounded >> 16) as u16).to_le_bytes();
            }
            bad == 0
        }
        Dtype::F16 => {
            let (mut run, mut bad) = ([f16::ZERO; RUN], false);
            for (values, out) in values.chunks(RUN).zip(out.chunks_mut(2 * RUN)) {
                run[..values.len()].convert_from_f32_slice(values);
                for (value, out) in run.iter().zip(out.as_chunks_mut::<2>().0) {
                    bad |= value.to_bits() & 0x7c00 == 0x7c00;
                    *out = value.to_le_bytes();
                }
            }
            !bad
        }
        _ => {
            let mut bad = 0;
            for (value, out) in values.iter().zip(out.as_chunks_mut::<4>().0) {
                bad |= infinite_or_nan(value.to_bits());
                *out = value.to_le_bytes();
            }
            bad == 0
        }
    }
}

/// 1 where every bit of the exponent is set.
fn infinite_or_nan(bits: u32) -> u32 {
    u32::from(bits & 0x7f80_0000 == 0x7f80_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

    fn round_trip(values: &[f32], dtype: Dtype) -> (bool, Vec<f32>) {
        let mut bytes = vec![0; values.len() * size(dtype).unwrap()];
        let finite = round(values, dtype, &mut bytes);
        let mut back = vec![0.0; values.len()];
        widen(&bytes, dtype, &mut back);
        (finite, back)
    }

    #[test]
    fn every_half_survives_and_ties_go_to_even() {
        for bits in 0..=u16::MAX {
            let (b, f) = (half::bf16::from_bits(bits), f16::from_bits(bits));
            for (value, dtype) in [(b.to_f32(), Dtype::BF16), (f.to_f32(), Dtype::F16)] {
                let (finite, back) = round_trip(&[value], dtype);
                assert_eq!(finite, value.is_finite());
                assert!(!finite || back[0].to_bits() == value.to_bits(), "{value} {dtype:?}");
            }
        }
        let one = 1f32.to_bits();
        let values = [one + 0x8000, one + 0x8001, one + 0x1_8000, one + 0x7fff].map(f32::from_bits);
        let expected: Vec<f32> = values.iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect();
        assert_eq!(round_trip(&values, Dtype::BF16).1, expected);
    }

    #[test]
    fn long_runs_equal_the_half_crate() {
        let values: Vec<f32> = (0..1000).map(|i| ((i * 7919 % 2003) as f32 - 1000.0) * 0.013_7).collect();
        for dtype in TYPES {
            let expected: Vec<f32> = values
                .iter()
                .map(|&v| match dtype {
                    Dtype::F16 => f16::from_f32(v).to_f32(),
                    Dtype::BF16 => half::bf16::from_f32(v).to_f32(),
                    _ => v,
                })
                .collect();
            assert_eq!(round_trip(&values, dtype), (true, expected));
        }
    }

    #[test]
    fn what_is_not_finite_after_rounding_is_reported() {
        for (value, dtype) in [(f32::MAX, Dtype::BF16), (65_520.0, Dtype::F16), (f32::NAN, Dtype::F32)] {
            assert!(!round_trip(&[1.0, value], dtype).0, "{value} {dtype:?}");
        }
        // The largest that still rounds to a number.
        let (finite, back) = round_trip(&[f32::from_bits(0x7f7f_7fff)], Dtype::BF16);
        assert!(finite && back[0].to_bits() == 0x7f7f_0000);
        let quiet = f32::from_bits(0x7fff_ffff);
        assert!(TYPES.iter().all(|&dtype| !round_trip(&[quiet, f32::INFINITY], dtype).0));
    }
}
