//! f32 values to stored ones.
//!
//! The types of ggml are filled as its reference quantisers fill them (`quantize_row_*_ref` in `ggml-quants.c`): the scale of
//! a group is the best, by weighted squares, of a few candidates.

use half::{bf16, f16};

use crate::Stored;
use crate::vector::wide;

/// Writes `values`, whole blocks of them, as `stored`; false where one is, or becomes, infinite or not a number.
pub fn encode(values: &[f32], stored: Stored, out: &mut [u8]) -> bool {
    assert_eq!(Some(out.len()), stored.bytes(values.len()));
    match stored {
        Stored::F32 => each(values, stored, out, |x, out| out.copy_from_slice(&x[0].to_le_bytes())),
        Stored::F16 => {
            each(values, stored, out, |x, out| out.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes()));
        }
        Stored::Bf16 => {
            each(values, stored, out, |x, out| out.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes()));
        }
        Stored::Q8_0 => each(values, stored, out, q8_0),
        Stored::Q4_0 => each(values, stored, out, q4_0),
        Stored::Q4_K => each(values, stored, out, q4_k),
        Stored::Q5_K => each(values, stored, out, q5_k),
        Stored::Q6_K => each(values, stored, out, q6_k),
    }
    let limit = match stored {
        Stored::F32 => f32::MAX,
        Stored::Bf16 => bf16::MAX.to_f32(),
        // The least value that rounds to infinity is 65520. Quantised scales are smaller than the values.
        _ => 65_519.99,
    };
    values.iter().all(|x| x.abs() <= limit)
}

/// Fills block after block.
fn each(values: &[f32], stored: Stored, out: &mut [u8], fill: impl Fn(&[f32], &mut [u8])) {
    let blocks = values.chunks_exact(stored.block()).zip(out.chunks_exact_mut(stored.block_bytes()));
    wide(
        #[inline(always)]
        || blocks.for_each(|(values, out)| fill(values, out)),
    );
}

fn put_half(out: &mut [u8], at: usize, value: f32) -> f32 {
    let value = f16::from_f32(value);
    out[at..at + 2].copy_from_slice(&value.to_le_bytes());
    value.to_f32()
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

#[inline(always)]
fn q8_0(x: &[f32], out: &mut [u8]) {
    let d = x.iter().fold(0f32, |max, x| max.max(x.abs())) / 127.0;
    put_half(out, 0, d);
    let inverse = inverse(d);
    for (out, x) in out[2..].iter_mut().zip(x) {
        *out = ((x * inverse).round() as i8).cast_unsigned();
    }
}

#[inline(always)]
fn q4_0(x: &[f32], out: &mut [u8]) {
    let d = furthest(x) / -8.0;
    put_half(out, 0, d);
    let inverse = inverse(d);
    let level = |x: f32| (x * inverse + 8.5).clamp(0.0, 15.0) as u8;
    for i in 0..16 {
        out[2 + i] = level(x[i]) | level(x[i + 16]) << 4;
    }
}

/// The value of the largest magnitude.
fn furthest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |max: f32, &x| if x.abs() > max.abs() { x } else { max })
}

#[inline(always)]
fn q4_k(x: &[f32], out: &mut [u8]) {
    let levels = with_minima::<15>(x, out, (-1.0, 20));
    for (pair, out) in levels.chunks_exact(64).zip(out[16..].chunks_exact_mut(32)) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = pair[i] | pair[i + 32] << 4;
        }
    }
}

#[inline(always)]
fn q5_k(x: &[f32], out: &mut [u8]) {
    let levels = with_minima::<31>(x, out, (-0.5, 15));
    out[16..48].fill(0);
    for (p, pair) in levels.chunks_exact(64).enumerate() {
        for i in 0..32 {
            let (low, high) = (pair[i], pair[i + 32]);
            out[48 + 32 * p + i] = low & 15 | high << 4;
            out[16 + i] |= (low >> 4) << (2 * p) | (high >> 4) << (2 * p + 1);
        }
    }
}

/// Scales and minima of 8 groups of 32 into the first 16 bytes of `out`; returns the levels, at most `TOP`.
#[inline(always)]
fn with_minima<const TOP: u8>(x: &[f32], out: &mut [u8], candidates: (f32, u8)) -> [u8; 256] {
    let mut fits = [Fit::default(); 8];
    for (fit, x) in fits.iter_mut().zip(x.chunks_exact(32)) {
        *fit = Fit::of(x, f32::from(TOP), candidates);
    }
    let most = |of: fn(&Fit) -> f32| fits.iter().map(of).fold(0f32, f32::max);
    let (d, m) = (most(|fit| fit.scale), most(|fit| fit.min));
    let six = |x: f32, most: f32| (63.0 * inverse(most) * x).round_ties_even().min(63.0) as u8;
    let packed: [(u8, u8); 8] = fits.map(|fit| (six(fit.scale, d), six(fit.min, m)));
    let (d, m) = (put_half(out, 0, d / 63.0), put_half(out, 2, m / 63.0));
    out[4..16].fill(0);
    let mut levels = [0; 256];
    for (g, &(scale, min)) in packed.iter().enumerate() {
        if g < 4 {
            (out[4 + g], out[8 + g]) = (scale, min);
        } else {
            out[8 + g] = scale & 15 | min << 4;
            out[g] |= scale >> 4 << 6;
            out[4 + g] |= min >> 4 << 6;
        }
        let (scale, min) = (inverse(d * f32::from(scale)), m * f32::from(min));
        let range = 32 * g..32 * (g + 1);
        for (level, x) in levels[range.clone()].iter_mut().zip(&x[range]) {
            *level = nearest(((x + min) * scale).clamp(0.0, f32::from(TOP))) as u8;
        }
    }
    levels
}

/// The nearest whole number, even ones of two, of `|x| < 2²²`.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³
    (x + ROUND) - ROUND
}

/// `Σ f(i)` for `i` below 32, in the lanes of a vector.
#[inline(always)]
fn sum(f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; 8];
    for i in 0..4 {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(8 * i + lane);
        }
    }
    lanes.iter().sum()
}

/// `x ≈ scale · level - min` of a group.
#[derive(Clone, Copy, Debug, Default)]
struct Fit {
    scale: f32,
    min: f32,
}

impl Fit {
    /// Levels `0..=top` are laid out by slightly different scales, from `top + first` levels over the range on in steps of
    /// a tenth; for each, scale and minimum are the least squares' own. A value's weight grows with its magnitude.
    #[inline(always)]
    fn of(x: &[f32], top: f32, (first, steps): (f32, u8)) -> Self {
        let x: &[f32; 32] = x.try_into().unwrap_or(&[0.0; 32]);
        let spread = (sum(|i| x[i] * x[i]) / 32.0).sqrt();
        let weights = x.map(|x| spread + x.abs());
        // Zero is in the range, so that a minimum is never above it.
        let low = x.iter().copied().fold(0f32, f32::min);
        let high = x.iter().copied().fold(low, f32::max);
        if high <= low {
            return Self { scale: 0.0, min: -low };
        }
        let levels = |low: f32, by: f32| x.map(|x| nearest((by * (x - low)).clamp(0.0, top)));
        let error = |fit: Self, levels: &[f32; 32]| {
            sum(|i| {
                let off = fit.scale * levels[i] - fit.min - x[i];
                weights[i] * off * off
            })
        };
        let plain = Self { scale: (high - low) / top, min: -low };
        let mut best = (error(plain, &levels(low, top / (high - low))), plain);
        for step in 0..=steps {
            // As in ggml, levels are counted from the best minimum so far.
            let low = -best.1.min;
            let levels = levels(low, (first + 0.1 * f32::from(step) + top) / (high - low));
            if let Some(fit) = Self::least_squares(x, &weights, &levels) {
                let error = error(fit, &levels);
                if error < best.0 {
                    best = (error, fit);
                }
            }
        }
        best.1
    }

    /// None where all levels are one.
    #[inline(always)]
    fn least_squares(x: &[f32; 32], weights: &[f32; 32], levels: &[f32; 32]) -> Option<Self> {
        let w = sum(|i| weights[i]);
        let l = sum(|i| weights[i] * levels[i]);
        let ll = sum(|i| weights[i] * levels[i] * levels[i]);
        let xl = sum(|i| weights[i] * x[i] * levels[i]);
        let x = sum(|i| weights[i] * x[i]);
        let determinant = w * ll - l * l;
        if determinant <= 0.0 {
            return None;
        }
        let min = (l * xl - ll * x) / determinant;
        // A positive minimum cannot be stored.
        Some(if min < 0.0 {
            Self { scale: xl / ll, min: 0.0 }
        } else {
            Self { scale: (w * xl - x * l) / determinant, min }
        })
    }
}

#[inline(always)]
fn q6_k(x: &[f32], out: &mut [u8]) {
    let mut scales = [0f32; 16];
    for (scale, x) in scales.iter_mut().zip(x.chunks_exact(16)) {
        *scale = symmetric_scale(x);
    }
    let d = furthest(&scales) / -128.0;
    let by = inverse(d);
    let d = put_half(out, 208, d);
    let mut levels = [0u8; 256];
    for (g, x) in x.chunks_exact(16).enumerate() {
        let scale = (scales[g] * by).round_ties_even().min(127.0) as i8;
        out[192 + g] = scale.cast_unsigned();
        let by = inverse(d * f32::from(scale));
        for (level, x) in levels[16 * g..].iter_mut().zip(x) {
            *level = (nearest((x * by).clamp(-32.0, 31.0)) + 32.0) as u8;
        }
    }
    for (side, levels) in levels.chunks_exact(128).enumerate() {
        for i in 0..32 {
            let [a, b, c, d] = [0, 32, 64, 96].map(|part| levels[part + i]);
            out[64 * side + i] = a & 15 | c << 4;
            out[64 * side + 32 + i] = b & 15 | d << 4;
            out[128 + 32 * side + i] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
        }
    }
}

/// The scale by which levels -32 to 31 fit 16 values best, weighted by their squares.
#[inline(always)]
fn symmetric_scale(x: &[f32]) -> f32 {
    let most = furthest(x);
    if most.abs() < 1e-15 {
        return 0.0;
    }
    let candidate = |step: i8| {
        let by = -(32.0 + 0.1 * f32::from(step)) / most;
        let (mut xl, mut ll) = (0.0, 0.0);
        for &x in x {
            let level = nearest((by * x).clamp(-32.0, 31.0));
            xl += x * x * x * level;
            ll += x * x * level * level;
        }
        if ll > 0.0 { (xl * xl / ll, xl / ll) } else { (0.0, 0.0) }
    };
    let better = |best: (f32, f32), next: (f32, f32)| if next.0 > best.0 { next } else { best };
    let others = (-9..=9).filter(|&step| step != 0).map(candidate);
    others.fold(candidate(0), better).1
}
