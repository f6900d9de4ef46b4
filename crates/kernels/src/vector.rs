//! Loops over slices of `f32` in the machine's widest registers: exponentials, sums, dot products.
//!
//! Element-wise loops are plain code that the compiler vectorises, compiled once for each instruction set by [`wide`].
//! Functions fuse their products and sums ([`f32::mul_add`]), which is slow where a machine cannot: on x86-64 before AVX2.
//! Sums name their vectors: the compiler may not reorder a sum by itself. The order depends on the machine's vectors and
//! on the length alone.

#![expect(
    clippy::inline_always,
    reason = "a body must be compiled inside the function that enables its instructions"
)]

use pulp::{Arch, Simd, WithSimd};

/// Independent sums, so that one need not wait for the one before.
const CHAINS: usize = 4;

/// Runs `body` compiled for the widest vectors this machine has. Pass a closure marked `#[inline(always)]`, which calls
/// only functions marked so, or it may be compiled for the narrowest: `for` loops, as the standard library's `for_each` over
/// several slices is a function of its own where its body is large.
#[inline]
pub(crate) fn wide<R>(body: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(body)
}

/// `eˣ` to 2e-7 relative, branch-free so that a loop over it vectorises: 0 for -inf, inf where it overflows, NaN for NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it leaves the nearest integer in the low bits.
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    // Beyond these the result is 0 or inf. A NaN passes both comparisons.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let whole = shifted - ROUND;
    let r = whole.mul_add(-LN_2.1, whole.mul_add(-LN_2.0, x));
    // Cephes expf.
    let p =
        polynomial([1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5], r);
    let p = p.mul_add(r * r, r) + 1.0;
    // In two factors, so that results near and below the smallest normal number, and near the largest, come out right.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// `2ⁿ` for -127 < n < 128.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23) as u32)
}

/// `Σ aᵢ xⁿ⁻ⁱ`, highest power first.
#[inline(always)]
fn polynomial<const N: usize>(a: [f32; N], x: f32) -> f32 {
    let mut y = a[0];
    let mut i = 1;
    while i < N {
        y = y.mul_add(x, a[i]);
        i += 1;
    }
    y
}

/// `1 / (1 + e⁻ˣ)`, branch-free.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh x` to 3e-7 of itself, branch-free: Cephes tanhf.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let s = x * x;
    let p = polynomial([-5.704_988_7e-3, 2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -0.333_332_8], s);
    let near = x + x * s * p;
    let far = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    if x.abs() < 0.625 { near } else { far.copysign(x) }
}

/// `x = cap·tanh(x/cap)`.
pub(crate) fn soft_cap(x: &mut [f32], cap: f32) {
    wide(
        #[inline(always)]
        || x.iter_mut().for_each(|x| *x = cap * tanh(*x / cap)),
    );
}

/// `1 - erf(x)` to 5e-7 of itself where `x` is not large, and `exp(-x²)`, branch-free: `erfc(x) exp(x²) / t` is smooth in
/// `t = 1/(1 + 2x/5)`, here a polynomial fitted to scipy's `erfcx` with the least relative error.
#[inline(always)]
pub(crate) fn erfc(x: f32) -> (f32, f32) {
    const FIT: [f32; 9] = [
        0.050_256_59,
        -0.182_881_6,
        0.169_056_83,
        -0.005_586_383_4,
        0.141_422_91,
        0.168_543_82,
        0.207_842_51,
        0.225_669_6,
        0.225_675_87,
    ];
    let t = 1.0 / x.abs().mul_add(0.4, 1.0);
    let bell = exp(-x * x);
    let tail = t * polynomial(FIT, t) * bell;
    (if x < 0.0 { 2.0 - tail } else { tail }, bell)
}

/// `Σ x`.
pub(crate) fn sum(x: &[f32]) -> f32 {
    Arch::new().dispatch(Sum(x))
}

/// `x = exp(x - max)`; returns the sum of the results.
pub(crate) fn exp_sub_sum(x: &mut [f32], max: f32) -> f32 {
    // Each run is summed while it is in the L1 cache.
    x.chunks_mut(2048)
        .map(|run| {
            wide(
                #[inline(always)]
                || run.iter_mut().for_each(|x| *x = exp(*x - max)),
            );
            Arch::new().dispatch(Sum(run))
        })
        .sum()
}

/// The largest value, or -inf of none; whether a NaN counts depends on where it is.
pub(crate) fn max(x: &[f32]) -> f32 {
    Arch::new().dispatch(Max(x))
}

/// `Σ a·b`.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    Arch::new().dispatch(Dot(a, b))
}

/// `y = Σ u·row` for each value of y, of `rows` as short as `u`, one after the other.
pub(crate) fn dots(u: &[f32], rows: &[f32], y: &mut [f32]) {
    const LANES: usize = 16;
    assert_eq!(rows.len(), u.len() * y.len());
    wide(
        #[inline(always)]
        || {
            let (runs, rest) = u.as_chunks::<LANES>();
            for (y, row) in y.iter_mut().zip(rows.chunks_exact(u.len())) {
                let (row, more) = row.as_chunks::<LANES>();
                let mut sums = [0.0; LANES];
                for (u, b) in runs.iter().zip(row) {
                    for i in 0..LANES {
                        sums[i] = u[i].mul_add(b[i], sums[i]);
                    }
                }
                let mut width = LANES / 2;
                while width > 0 {
                    for i in 0..width {
                        sums[i] += sums[i + width];
                    }
                    width /= 2;
                }
                let mut sum = sums[0];
                for (u, b) in rest.iter().zip(more) {
                    sum = u.mul_add(*b, sum);
                }
                *y = sum;
            }
        },
    );
}

/// `y += alpha · x`.
pub(crate) fn axpy(alpha: f32, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    wide(
        #[inline(always)]
        || {
            for (y, x) in y.iter_mut().zip(x) {
                *y += alpha * x;
            }
        },
    );
}

/// `y += Σ factor · row`, of rows as long as `y`, one after the other in `rows`.
pub(crate) fn add_rows(factors: &[f32], rows: &[f32], y: &mut [f32]) {
    assert_eq!(rows.len(), factors.len() * y.len());
    let &[a, b, c, d] = factors else {
        let rows = rows.chunks_exact(y.len());
        return factors.iter().zip(rows).for_each(|(factor, row)| axpy(*factor, row, y));
    };
    let ((p, q), (r, s)) = {
        let (low, high) = rows.split_at(2 * y.len());
        (low.split_at(y.len()), high.split_at(y.len()))
    };
    wide(
        #[inline(always)]
        || {
            for ((((y, p), q), r), s) in y.iter_mut().zip(p).zip(q).zip(r).zip(s) {
                *y += (a * p + b * q) + (c * r + d * s);
            }
        },
    );
}

struct Sum<'a>(&'a [f32]);

impl WithSimd for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let zero = simd.splat_f32s(0.0);
        let (x, rest) = S::as_simd_f32s(self.0);
        let (runs, single) = x.as_chunks::<CHAINS>();
        let mut sums = [zero; CHAINS];
        for run in runs {
            for (sum, &x) in sums.iter_mut().zip(run) {
                *sum = simd.add_f32s(*sum, x);
            }
        }
        for &x in single {
            sums[0] = simd.add_f32s(sums[0], x);
        }
        sums[1] = simd.add_f32s(sums[1], simd.partial_load_f32s(rest));
        simd.reduce_sum_f32s(join(sums, |a, b| simd.add_f32s(a, b)))
    }
}

struct Dot<'a>(&'a [f32], &'a [f32]);

impl WithSimd for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let zero = simd.splat_f32s(0.0);
        let (a, b) = (S::as_simd_f32s(self.0), S::as_simd_f32s(self.1));
        let (a_runs, b_runs) = (a.0.as_chunks::<CHAINS>(), b.0.as_chunks::<CHAINS>());
        let mut sums = [zero; CHAINS];
        for (a, b) in a_runs.0.iter().zip(b_runs.0) {
            for (sum, (&a, &b)) in sums.iter_mut().zip(a.iter().zip(b)) {
                *sum = simd.mul_add_e_f32s(a, b, *sum);
            }
        }
        for (&a, &b) in a_runs.1.iter().zip(b_runs.1) {
            sums[0] = simd.mul_add_e_f32s(a, b, sums[0]);
        }
        let (a, b) = (simd.partial_load_f32s(a.1), simd.partial_load_f32s(b.1));
        sums[1] = simd.mul_add_e_f32s(a, b, sums[1]);
        simd.reduce_sum_f32s(join(sums, |a, b| simd.add_f32s(a, b)))
    }
}

struct Max<'a>(&'a [f32]);

impl WithSimd for Max<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let least = simd.splat_f32s(f32::NEG_INFINITY);
        let (x, rest) = S::as_simd_f32s(self.0);
        let (runs, single) = x.as_chunks::<CHAINS>();
        let mut tops = [least; CHAINS];
        for run in runs {
            for (top, &x) in tops.iter_mut().zip(run) {
                *top = simd.max_f32s(x, *top);
            }
        }
        for &x in single {
            tops[0] = simd.max_f32s(x, tops[0]);
        }
        let top = simd.reduce_max_f32s(join(tops, |a, b| simd.max_f32s(a, b)));
        rest.iter().fold(top, |top, &x| top.max(x))
    }
}

/// The chains in one, in a fixed order.
#[inline(always)]
fn join<T: Copy>([a, b, c, d]: [T; CHAINS], with: impl Fn(T, T) -> T) -> T {
    with(with(a, b), with(c, d))
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "exact by definition")]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_its_range() {
        let mut worst = 0f64;
        for i in 0..2_000_000 {
            let x = -87.0 + 175.0 * (i as f32 / 2e6);
            let exact = f64::from(x).exp();
            if exact < f64::from(f32::MAX) {
                worst = worst.max((f64::from(exp(x)) / exact - 1.0).abs());
            }
        }
        assert!(worst < 2e-7, "{worst:e}");
    }

    #[test]
    fn exp_keeps_to_the_edges() {
        let inf = f32::INFINITY;
        let mut x = [-inf, inf, f32::NAN, 0.0, -0.0, 88.73, 88.72, -103.9, -104.5, -95.0, f32::MAX, f32::MIN];
        x = x.map(exp);
        assert_eq!(x[..2], [0.0, inf]);
        assert!(x[2].is_nan());
        assert_eq!(x[3..6], [1.0, 1.0, inf]);
        assert!(x[6].is_finite());
        assert_eq!(x[7..9], [f32::from_bits(1), 0.0]);
        assert!((f64::from(x[9]) / (-95f64).exp() - 1.0).abs() < 1e-3); // 40 units of the smallest number
        assert_eq!(x[10..], [inf, 0.0]);
    }

    #[test]
    fn tanh_is_accurate_over_its_range() {
        for i in 0..200_000 {
            let x = -12.0 + 24.0 * (i as f32 / 2e5);
            let exact = f64::from(x).tanh();
            assert!((f64::from(tanh(x)) - exact).abs() <= 3e-7 * exact.abs(), "tanh({x})");
        }
        assert_eq!([tanh(0.0), tanh(f32::INFINITY), tanh(-100.0)], [0.0, 1.0, -1.0]);
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn erfc_is_that_of_scipy() {
        // scipy.special.erfc, 1.17.
        let expected = [
            (0.0, 1.0),
            (0.1, 0.887_537_083_981_715_2),
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_13),
            (2.0, 0.004_677_734_981_047_266),
            (3.0, 2.209_049_699_858_543_8e-5),
            (-0.5, 1.520_499_877_813_046_5),
            (-3.0, 1.999_977_909_503_001_5),
        ];
        for (x, expected) in expected {
            let (found, bell) = erfc(x);
            let error = (f64::from(found) / expected - 1.0).abs();
            assert!(error < 8e-7, "erfc({x}): off by {error:e}");
            let exact = (-f64::from(x * x)).exp();
            assert!((f64::from(bell) - exact).abs() < 1e-6 * exact, "exp(-{x}²)");
        }
    }

    #[test]
    fn sums_and_products_of_any_length() {
        for n in [0, 1, 31, 32, 33, 64, 1000] {
            let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
            let b: Vec<f32> = (0..n).map(|i| (i as f32 * 0.11).cos()).collect();
            let exact: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((f64::from(dot(&a, &b)) - exact).abs() < 1e-4, "{n}");
            assert_eq!(max(&a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max));

            let mut e = a.clone();
            let sum = exp_sub_sum(&mut e, 2.0);
            let exact: f64 = a.iter().map(|a| (f64::from(*a) - 2.0).exp()).sum();
            assert!((f64::from(sum) - exact).abs() <= 1e-6 * exact);
            assert!(e.iter().zip(&a).all(|(e, a)| (e - (a - 2.0).exp()).abs() <= 3e-7 * e));

            let mut y = b.clone();
            axpy(2.0, &a, &mut y);
            for i in 0..n {
                assert!((y[i] - (b[i] + 2.0 * a[i])).abs() < 1e-6);
                let exact = 1.0 / (1.0 + (-f64::from(a[i])).exp());
                assert!((f64::from(sigmoid(a[i])) - exact).abs() <= 5e-7 * exact);
            }
        }
    }

    #[test]
    fn nan_passes_through_the_sums() {
        let mut x = [0.5; 70];
        x[40] = f32::NAN;
        assert!(dot(&x, &[1.0; 70]).is_nan());
        assert!(exp_sub_sum(&mut x, 0.5).is_nan());
    }
}
