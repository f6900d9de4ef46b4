//! Every set of kernels that this machine runs, against f64.

#![expect(clippy::float_cmp, reason = "same bits")]

mod blocks;

use half::bf16;

use super::dense::{Dims, Write};
use super::targets::Target;
use super::*;
use crate::{Compute, pool};

/// m, k and n.
type Size = (usize, usize, usize);

/// Relative to the sum of magnitudes: f32 rounding of a sum of up to 5000 terms in some 16 chains.
const TOLERANCE: f64 = 1e-6;

const SIZES: [(usize, usize, usize); 16] = [
    (1, 1, 1),
    (1, 100, 37),
    (2, 33, 64),
    (3, 31, 65),
    (4, 577, 96),
    (7, 129, 70),
    (8, 1100, 50),
    (9, 1, 16),
    (13, 32, 3),
    (19, 300, 33),
    (25, 67, 1031),
    (40, 1031, 67),
    (19, 2, 200),
    (128, 129, 577),
    (530, 70, 100),
    (33, 2100, 66),
];

/// The set that `TAPER_KERNELS` names: all tests of this crate run with it, and with no other.
pub(super) fn named() -> Option<Kernels> {
    let name = std::env::var("TAPER_KERNELS").ok()?;
    let set = Kernels::NAMES.into_iter().find(|(known, _)| *known == name);
    Some(set.unwrap_or_else(|| panic!("TAPER_KERNELS is {name}")).1)
}

fn all_kernels() -> impl Iterator<Item = Kernels> {
    let (named, best) = (named(), Kernels::best());
    let all = Kernels::NAMES.into_iter().map(|(_, kernels)| kernels);
    all.filter(move |k| *k <= best && named.is_none_or(|named| named == *k))
}

/// Values in [-1, 1) that neither f16 nor bf16 holds exactly.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f32 / (1u64 << 30) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// `values` as stored bytes, at an odd address, and what they are as f32.
fn stored(values: &[f32], stored: Stored) -> (Vec<u8>, Vec<f32>) {
    if stored.size().is_none() {
        let mut bytes = vec![0; 1 + stored.bytes(values.len()).unwrap()];
        assert!(quantised::encode(values, stored, &mut bytes[1..]));
        let mut exact = vec![0.0; values.len()];
        quantised::read(&bytes[1..], stored, 0, &mut exact);
        return (bytes, exact);
    }
    let mut bytes = vec![0];
    let mut exact = Vec::new();
    for &v in values {
        match stored {
            Stored::F32 => bytes.extend(v.to_le_bytes()),
            Stored::F16 => bytes.extend(half::f16::from_f32(v).to_le_bytes()),
            _ => bytes.extend(bf16::from_f32(v).to_le_bytes()),
        }
        exact.push(match stored {
            Stored::F32 => v,
            Stored::F16 => half::f16::from_f32(v).to_f32(),
            _ => bf16::from_f32(v).to_f32(),
        });
    }
    (bytes, exact)
}

/// `C` in f64, and the sums of magnitudes.
fn reference(
    a: &[f32],
    w: &[f32],
    (m, k, n): (usize, usize, usize),
    direction: Direction,
) -> Vec<(f64, f64)> {
    let at = |l: usize, j: usize| match direction {
        Direction::Forward => j * k + l,
        Direction::Backward => l * n + j,
    };
    let term = |i: usize, j: usize, l: usize| f64::from(a[i * k + l]) * f64::from(w[at(l, j)]);
    let sums = |i, j| (0..k).map(|l| term(i, j, l)).fold((0.0, 0.0), |s, t| (s.0 + t, s.1 + t.abs()));
    (0..m * n).map(|at| sums(at / n, at % n)).collect()
}

fn round(x: &[f32], compute: Compute) -> Vec<f32> {
    let to = |x: &f32| if compute == Compute::Bf16 { bf16::from_f32(*x).to_f32() } else { *x };
    x.iter().map(to).collect()
}

fn check(
    kernels: Kernels,
    size: Size,
    (kind, order): (Stored, RowOrder),
    direction: Direction,
    compute: Compute,
) {
    let (m, k, n) = size;
    let (rows, cols) = if direction == Direction::Forward { (n, k) } else { (k, n) };
    let (bytes, lying) = stored(&values(n * k, 3), kind);
    let exact: Vec<f32> =
        (0..rows).flat_map(|row| lying[order.stored(row) * cols..][..cols].iter().copied()).collect();
    let a = values(m * k, 5);
    let right = Right::new(Matrix::new(&bytes[1..], kind, rows, cols).in_order(order), direction);
    let mut c = vec![f32::NAN; m * n];
    kernels.prepare(compute, &a, k).product(right, &mut c, false);
    let short = compute == Compute::Bf16 && blocks::as_numbers(kernels, m, kind, direction);
    let operands = if short { Compute::F32 } else { compute };
    let expected = reference(&round(&a, operands), &round(&exact, operands), size, direction);
    for (i, (c, (sum, scale))) in c.iter().zip(expected).enumerate() {
        let error = (f64::from(*c) - sum).abs();
        let rounded =
            if short { blocks::half_units(&a[i / n * k..][..k], &exact[i % n * k..][..k], 2) } else { 0.0 };
        assert!(
            error <= TOLERANCE * scale + rounded,
            "{kernels:?} {size:?} {kind:?} {direction:?} {compute:?} at {i}: {c} for {sum}"
        );
    }
    let mut alone = vec![f32::NAN; m * n];
    pool::alone(|| kernels.prepare(compute, &a, k).product(right, &mut alone, false));
    assert!(alone == c, "{kernels:?} {size:?} {kind:?} {direction:?} {compute:?}: threads change the result");
    let mut twice = c.clone();
    kernels.prepare(compute, &a, k).product(right, &mut twice, true);
    for (twice, c) in twice.iter().zip(&c) {
        assert!(
            (twice - 2.0 * c).abs() <= 1e-4 * (1.0 + c.abs()),
            "{kernels:?} {size:?}: {twice} for twice {c}"
        );
    }
    finished(kernels, (right, size), (&a, compute), &c);
}

/// How low-rank terms beside products by tiles are computed: with bf16's instructions, as the products are.
fn rounding_of_terms(a: &Prepared<'_>, right: Right<'_>) -> Compute {
    #[cfg(target_arch = "x86_64")]
    if matches!(a.left, Left::Pairs(_)) && matches!(a.tiles(right), Some(Simd::Avx512(_))) {
        return Compute::Bf16;
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (a, right);
    Compute::F32
}

/// That a product `c` finished as it is made is what finishing it makes of it.
fn finished(kernels: Kernels, (right, size): (Right<'_>, Size), (a, compute): (&[f32], Compute), c: &[f32]) {
    let (m, k, n) = size;
    let of_term = rounding_of_terms(&kernels.prepare(compute, a, k), right);
    for (rank, direction) in [(1, Direction::Forward), (5, Direction::Backward), (19, Direction::Forward)] {
        let [u, b, gain, bias, onto] =
            [m * rank, n * rank, n, n, m * n].map(|len| values(len, len as u64 + 7));
        let low = reference(&round(&u, of_term), &round(&b, of_term), (m, rank, n), direction);
        for mask in 0..16 {
            let given = |bit: usize| mask >> bit & 1 == 1;
            let rest = Rest {
                term: given(0).then_some(Term { u: &u, b: &b, rank, direction }),
                gain: given(1).then_some(&gain),
                bias: given(2).then_some(&bias),
                onto: given(3).then_some(&onto),
            };
            let found = kernels.prepare(compute, a, k).finished(right, &rest);
            let mut added = onto.clone();
            kernels.prepare(compute, a, k).add_to(right, &mut added, rest.term);
            assert_eq!(found.len(), c.len());
            for (i, c) in c.iter().enumerate() {
                let (low, scale) = if given(0) { low[i] } else { (0.0, 0.0) };
                let sum = f64::from(*c) + low;
                let of = |values: Option<&[f32]>, i: usize| values.map(|values| f64::from(values[i]));
                let expected = sum * of(rest.gain, i % n).unwrap_or(1.0)
                    + of(rest.bias, i % n).unwrap_or(0.0)
                    + of(rest.onto, i).unwrap_or(0.0);
                let room = 2e-6 * (4.0 + f64::from(c.abs()) + scale);
                for (found, expected) in [(found[i], expected), (added[i], sum + f64::from(onto[i]))] {
                    assert!(
                        (f64::from(found) - expected).abs() <= room,
                        "{kernels:?} {size:?} {mask:#b} at {i}: {found} for {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn products_of_all_kinds() {
    pool::set_threads(2);
    for kernels in all_kernels() {
        for size in SIZES {
            for kind in [Stored::F32, Stored::F16, Stored::Bf16] {
                for direction in [Direction::Forward, Direction::Backward] {
                    for compute in [Compute::F32, Compute::Bf16] {
                        check(kernels, size, (kind, RowOrder::Plain), direction, compute);
                    }
                }
            }
        }
    }
}

#[test]
fn products_of_rows_in_pairs() {
    for kernels in all_kernels() {
        for kind in [Stored::F32, Stored::Bf16, Stored::F16, Stored::Q4_K, Stored::Q8_0] {
            for (m, head) in [(1, 10), (5, 24), (140, 60)] {
                for (direction, k, n) in [(Direction::Forward, 256, 120), (Direction::Backward, 120, 256)] {
                    for compute in [Compute::F32, Compute::Bf16] {
                        check(kernels, (m, k, n), (kind, RowOrder::Paired { head }), direction, compute);
                    }
                }
            }
        }
    }
}

fn check_dense(kernels: Kernels, (m, n, k): (usize, usize, usize), transposed: (bool, bool), write: Write) {
    let (a, b) = (values(m * k, 1), values(n * k, 2));
    let mut c = vec![1.5; m * n];
    kernels.dense(Compute::F32, (&mut c, &a, &b), transposed, (Dims { m, n, k }, write));
    for (at, c) in c.iter().enumerate() {
        let (i, j) = (at / n, at % n);
        let a = |l| f64::from(if transposed.0 { a[l * m + i] } else { a[i * k + l] });
        let b = |l| f64::from(if transposed.1 { b[j * k + l] } else { b[l * n + j] });
        let sum: f64 = (0..k).map(|l| a(l) * b(l)).sum();
        let exact = match write {
            Write::Set(alpha) => f64::from(alpha) * sum,
            Write::Add(alpha) => 1.5 + f64::from(alpha) * sum,
        };
        let error = (f64::from(*c) - exact).abs();
        let what = (kernels, (m, n, k), transposed, write);
        assert!(error <= TOLERANCE * (k as f64 + 4.0), "{what:?} at {i}, {j}: {c} for {exact}");
    }
    let mut alone = vec![1.5; m * n];
    pool::alone(|| kernels.dense(Compute::F32, (&mut alone, &a, &b), transposed, (Dims { m, n, k }, write)));
    assert!(alone == c, "{kernels:?} {m} {n} {k}: threads change the result");
}

#[test]
fn dense_products() {
    let sizes = [
        (1, 1, 1),
        (5, 3, 7),
        (1, 40, 576),
        (530, 16, 100),
        (16, 1031, 67),
        (40, 33, 130),
        (70, 65, 0),
        (3, 0, 4),
    ];
    for kernels in all_kernels() {
        for (m, n, k) in sizes {
            for transposed in [(false, true), (false, false), (true, false)] {
                for write in [Write::Set(1.0), Write::Set(0.5), Write::Add(-2.0)] {
                    check_dense(kernels, (m, n, k), transposed, write);
                }
            }
        }
    }
}

/// A row of A with a NaN gives a row of NaN; a row or column of W with an infinity gives infinities where A is positive,
/// and NaN where A is zero.
#[test]
fn nan_and_infinity_reach_the_result() {
    let (k, n) = (70, 67);
    for kernels in all_kernels() {
        for (m, kind) in [(3, Stored::F32), (3, Stored::F16), (40, Stored::Bf16), (40, Stored::F32)] {
            for direction in [Direction::Forward, Direction::Backward] {
                let forward = direction == Direction::Forward;
                let mut w = values(n * k, 3);
                w[if forward { 60 * k + 11 } else { 11 * n + 60 }] = f32::INFINITY;
                let mut a: Vec<f32> = values(m * k, 4).iter().map(|a| a.abs() + 0.1).collect();
                (a[k + 20], a[2 * k + 11]) = (f32::NAN, 0.0);
                let (bytes, _) = stored(&w, kind);
                let (rows, cols) = if forward { (n, k) } else { (k, n) };
                let right = Right::new(Matrix::new(&bytes[1..], kind, rows, cols), direction);
                let mut c = vec![0.0; m * n];
                kernels.prepare(Compute::F32, &a, k).product(right, &mut c, false);
                for (at, c) in c.iter().enumerate() {
                    let what = (kernels, kind, direction, at);
                    match (at / n, at % n) {
                        (1, _) | (2, 60) => assert!(c.is_nan(), "{what:?}: {c}"),
                        (_, 60) => assert!(*c == f32::INFINITY, "{what:?}: {c}"),
                        _ => assert!(c.is_finite(), "{what:?}: {c}"),
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_by_nothing() {
    let empty = Right::new(Matrix::new(&[], Stored::Bf16, 3, 0), Direction::Forward);
    let mut c = [1.0; 6];
    Prepared::new(Compute::Bf16, &[], 0).product(empty, &mut c, false);
    assert_eq!(c, [0.0; 6]);
    let none = Right::new(Matrix::new(&[0; 12], Stored::F32, 3, 1), Direction::Forward);
    Prepared::new(Compute::F32, &[], 1).product(none, &mut [], false);
    let empty = Right::new(Matrix::new(&[], Stored::F32, 0, 4), Direction::Forward);
    Prepared::new(Compute::F32, &[1.0; 8], 4).product(empty, &mut [], false);
}

#[test]
fn rounding_is_that_of_half() {
    let mut x = values(1000, 9);
    x.extend([0.0, -0.0, f32::INFINITY, f32::MAX, 1e-40, 1.003_906_3, 1.011_718_8, f32::MIN_POSITIVE]);
    let mut rounded = x.clone();
    portable::to_bf16(&mut rounded);
    let expected = x.iter().map(|&x| bf16::from_f32(x).to_f32().to_bits());
    assert!(rounded.iter().map(|r| r.to_bits()).eq(expected));
    let mut nan = [f32::from_bits(0x7f80_0001)];
    portable::to_bf16(&mut nan);
    assert!(nan[0].is_nan());
}

#[test]
fn targets_are_finished_products() {
    let (k, rank) = (577, 5);
    for kernels in all_kernels() {
        for (m, compute) in [1, 3, 8, 33].into_iter().flat_map(|m| [(m, Compute::F32), (m, Compute::Bf16)]) {
            let x = values(m * k, 5);
            let mut expected = Vec::new();
            let parts: Vec<_> = [(700, Stored::Bf16), (3, Stored::F32)]
                .map(|(n, kind)| {
                    let (bytes, exact) = stored(&values(n * k, 3), kind);
                    let sums = reference(
                        &round(&x, compute),
                        &round(&exact, compute),
                        (m, k, n),
                        Direction::Forward,
                    );
                    let more = [m * rank, n * rank, n, n, m * n].map(|len| values(len, len as u64));
                    let [u, b, gain, bias, onto] = &more;
                    let right = Right::new(Matrix::new(&bytes[1..], kind, n, k), Direction::Forward);
                    let of_term = rounding_of_terms(&kernels.prepare(compute, &x, k), right);
                    let (u, b) = (round(u, of_term), round(b, of_term));
                    let low = reference(&u, &b, (m, rank, n), Direction::Forward);
                    expected.push(
                        (0..m * n)
                            .map(|at| {
                                let value = (sums[at].0 + low[at].0) * f64::from(gain[at % n]);
                                (
                                    value + f64::from(bias[at % n]) + f64::from(onto[at]),
                                    2.0 + sums[at].1 + low[at].1,
                                )
                            })
                            .collect::<Vec<_>>(),
                    );
                    (bytes, kind, n, more)
                })
                .into();
            let mut ys: Vec<_> = parts.iter().map(|(_, _, n, _)| vec![f32::NAN; m * n]).collect();
            let mut targets: Vec<_> = parts
                .iter()
                .zip(&mut ys)
                .map(|((bytes, kind, n, [u, b, gain, bias, onto]), y)| Target {
                    w: Right::new(Matrix::new(&bytes[1..], *kind, *n, k), Direction::Forward),
                    rest: Rest {
                        term: Some(Term { u, b, rank, direction: Direction::Forward }),
                        gain: Some(gain),
                        bias: Some(bias),
                        onto: Some(onto),
                    },
                    y,
                })
                .collect();
            kernels.prepare(compute, &x, k).targets(&mut targets);
            for (y, expected) in ys.iter().zip(&expected) {
                for (y, (value, scale)) in y.iter().zip(expected) {
                    let error = (f64::from(*y) - value).abs();
                    assert!(error <= TOLERANCE * scale, "{kernels:?} {m} {compute:?}: {y} for {value}");
                }
            }
        }
    }
}
