//! Weights in blocks.

use super::*;

const QUANTISED: [Stored; 5] = [Stored::Q8_0, Stored::Q4_0, Stored::Q4_K, Stored::Q5_K, Stored::Q6_K];

#[test]
fn products_of_quantised_weights() {
    pool::set_threads(2);
    for kernels in all_kernels() {
        // Rows of A; rows and columns of W.
        for (m, rows, cols) in
            [(1, 30, 512), (3, 65, 256), (4, 9, 1024), (7, 5, 1280), (40, 70, 768), (130, 96, 2304)]
        {
            for kind in QUANTISED {
                for (direction, k, n) in [(Direction::Forward, cols, rows), (Direction::Backward, rows, cols)]
                {
                    for compute in [Compute::F32, Compute::Bf16] {
                        check(kernels, (m, k, n), (kind, RowOrder::Plain), direction, compute);
                    }
                }
            }
        }
        for kind in [Stored::Q8_0, Stored::Q4_0] {
            check(kernels, (20, 96, 33), (kind, RowOrder::Plain), Direction::Forward, Compute::Bf16);
            check(kernels, (20, 33, 96), (kind, RowOrder::Plain), Direction::Backward, Compute::F32);
            check(kernels, (70, 1632, 33), (kind, RowOrder::Plain), Direction::Forward, Compute::F32);
        }
    }
}

/// What is read does not depend on where reading starts.
#[test]
fn parts_of_quantised_rows() {
    for kind in QUANTISED {
        let (bytes, exact) = stored(&values(768, 6), kind);
        for (first, count) in [(0, 768), (5, 1), (31, 2), (250, 300), (767, 1), (768, 0)] {
            let mut out = vec![0.0; count];
            Matrix::new(&bytes[1..], kind, 1, 768).read(0, first, &mut out);
            assert!(out == exact[first..first + count], "{kind:?} {first} {count}");
        }
    }
}

/// Integers of a block are summed up in 32 bits: the largest there are. Where W is rounded to bf16, it is off by 2^-9.
#[test]
fn the_largest_levels_by_the_largest_numbers() {
    let unit = half::f16::from_f32(0.5).to_le_bytes();
    for (kind, level) in [(Stored::Q4_K, 15.0), (Stored::Q5_K, 31.0)] {
        let mut bytes = vec![0xff; kind.bytes(256).unwrap()];
        bytes[..2].copy_from_slice(&unit);
        bytes[2..4].fill(0);
        let w = Matrix::new(&bytes, kind, 1, 256);
        for (kernels, m) in all_kernels().flat_map(|kernels| [(kernels, 1), (kernels, 4)]) {
            for (compute, x) in [(Compute::F32, 3.0), (Compute::Bf16, 3.0), (Compute::Bf16, -3.0)] {
                let mut y = vec![0.0; m];
                let x = kernels.prepare(compute, vec![x; m * 256], 256);
                x.product(Right::new(w, Direction::Forward), &mut y, false);
                let expected = 0.5 * 63.0 * level * x.values()[0] * 256.0;
                for y in y {
                    assert!(
                        (y / expected - 1.0).abs() <= 4e-3,
                        "{kernels:?} {kind:?} {compute:?}: {y}, {expected}"
                    );
                }
            }
        }
    }
}

/// Few rows of A whose values lie far apart, are all zero, or so small that their products are; and one that is not finite.
///
/// As numbers, from AVX2 on beside blocks of 256, values are rounded by half a unit, which follows the largest of their block.
#[test]
fn quantised_rows_by_rows_of_any_magnitude() {
    let (k, n) = (512, 9);
    for kernels in all_kernels() {
        for kind in QUANTISED {
            let (bytes, exact) = stored(&values(n * k, 3), kind);
            let right = Right::new(Matrix::new(&bytes[1..], kind, n, k), Direction::Forward);
            let as_numbers = as_numbers(kernels, 2, kind, Direction::Forward);
            for (scale, peak) in
                [(1.0, 30.0), (1.0, 1000.0), (1e-3, 30.0), (1e6, 30.0), (1e-25, 30.0), (1e-32, 30.0)]
            {
                let mut a = values(2 * k, 5);
                for (i, a) in a.iter_mut().enumerate() {
                    *a *= scale * if i % 100 == 7 { peak } else { 1.0 };
                }
                a[..256].fill(0.0);
                let mut c = vec![f32::NAN; 2 * n];
                kernels.prepare(Compute::F32, &a, k).product(right, &mut c, false);
                let expected = reference(&a, &exact, (2, k, n), Direction::Forward);
                for (at, (c, (sum, magnitude))) in c.iter().zip(expected).enumerate() {
                    let rounded = if as_numbers && peak > 30.0 {
                        half_units(&a[at / n * k..][..k], &exact[at % n * k..][..k], 3)
                    } else {
                        0.0
                    };
                    // 1e-37: where f32 ends.
                    let allowed = TOLERANCE * magnitude + rounded + 1e-37;
                    let error = (f64::from(*c) - sum).abs();
                    assert!(error <= allowed, "{kernels:?} {kind:?} {scale} {peak}: {c} for {sum}");
                }
            }
            let mut a = values(2 * k, 5);
            (a[300], a[k + 2]) = (f32::INFINITY, f32::NAN);
            let mut c = vec![0.0; 2 * n];
            kernels.prepare(Compute::F32, &a, k).product(right, &mut c, false);
            assert!(
                c.iter().all(|c| !c.is_finite()) && c[n..].iter().all(|c| c.is_nan()),
                "{kernels:?} {kind:?}"
            );
        }
    }
}

/// Whether `m` rows are multiplied as numbers with a unit to each block.
pub(super) fn as_numbers(kernels: Kernels, m: usize, kind: Stored, direction: Direction) -> bool {
    kernels >= Kernels::Avx2 && kind.block() == 256 && m <= 4 && direction == Direction::Forward
}

/// The most that a product of `a` and `w` changes where each value of `a` does by half of its block's unit, in numbers of so many
/// bytes.
pub(super) fn half_units(a: &[f32], w: &[f32], bytes: u32) -> f64 {
    let blocks = a.chunks(256).zip(w.chunks(256));
    let changed = blocks.map(|(a, w)| {
        let largest = a.iter().fold(0.0f32, |largest, a| largest.max(a.abs()));
        let weights: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
        f64::from(largest) / f64::from(127 << (8 * (bytes - 1))) / 2.0 * weights
    });
    changed.sum()
}
