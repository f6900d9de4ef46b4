//! Dropout as an operation of its own, for DoRA, whose frozen product sees the dropped input too.

use candle_core::{Result, Tensor};
use taper_kernels::Dropout;

/// `x` with each element dropped with probability `p` and the rest scaled by `1/(1 - p)`; the gradient goes the same way.
pub(crate) fn apply(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    let threshold = (f64::from(dropout.p) * 2f64.powi(32)) as u64;
    let factor = 1.0 / (1.0 - dropout.p);
    let keep = |i: u64| mix(dropout.seed, i) >> 32 >= threshold;
    let mask: Vec<f32> = (0..x.elem_count() as u64).map(|i| if keep(i) { factor } else { 0.0 }).collect();
    x * Tensor::from_vec(mask, x.shape(), x.device())?
}

/// 64 well-mixed bits for item `i` of a seed: splitmix64.
pub(crate) fn mix(seed: u64, i: u64) -> u64 {
    let mut z = seed.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
