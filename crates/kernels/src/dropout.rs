//! Seeded dropout whose mask is a function of (seed, element index), so that backward needs no saved mask.

use crate::vector;

/// Dropout of an adapter's input: each element is zeroed with probability `p`, the rest scaled by `1 / (1 - p)`.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Probability that an element is dropped, in `[0, 1)`.
    pub p: f32,
    /// Seed of the mask: another for every layer, micro-batch and step.
    pub seed: u64,
}

/// Elements that share a pair of keys.
const RUN: usize = 1 << 16;

impl Dropout {
    /// Whether the mask changes nothing.
    pub(crate) fn is_identity(self) -> bool {
        self.p <= 0.0
    }

    /// Applies the mask to `values`, the first of which is element `first` of the tensor.
    pub fn apply(self, values: &mut [f32], first: usize) {
        if self.is_identity() {
            return;
        }
        let mut done = 0;
        while done < values.len() {
            let index = first + done;
            let len = (RUN - index % RUN).min(values.len() - done);
            self.apply_run(&mut values[done..done + len], index);
            done += len;
        }
    }

    /// `apply` inside one run.
    fn apply_run(self, values: &mut [f32], first: usize) {
        let key = mix(self.seed ^ mix((first / RUN) as u64));
        let (low, high) = (key as u32, (key >> 32) as u32);
        // p = 1 would divide by zero; the product with 2³² saturates.
        let threshold = (f64::from(self.p) * 4_294_967_296.0) as u32;
        let factor = 1.0 / (1.0 - self.p);
        let offset = (first % RUN) as u32;
        vector::wide(
            #[inline(always)]
            || {
                for (i, value) in (offset..).zip(values) {
                    let keep = hash(i, low, high) >= threshold;
                    *value = if keep { *value * factor } else { 0.0 };
                }
            },
        );
    }
}

/// 32 well-mixed bits for an element (two rounds of multiply and shift, constants of Wellons's hash prospector).
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "must be compiled inside the function that enables its instructions"
)]
fn hash(index: u32, low: u32, high: u32) -> u32 {
    let mut x = index.wrapping_mul(0x9e37_79b9) ^ low;
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d).wrapping_add(high);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// The finaliser of splitmix64.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(p: f32, seed: u64, first: usize, len: usize) -> Vec<f32> {
        let mut ones = vec![1.0; len];
        Dropout { p, seed }.apply(&mut ones, first);
        ones
    }

    #[test]
    fn zero_probability_changes_nothing() {
        assert_eq!(mask(0.0, 7, 3, 50), vec![1.0; 50]);
    }

    #[test]
    fn an_element_does_not_depend_on_where_the_slice_starts() {
        let whole = mask(0.3, 1, 0, RUN + 500);
        for (first, len) in [(1, 77), (RUN - 5, 12), (RUN, 300)] {
            assert_eq!(mask(0.3, 1, first, len), whole[first..first + len]);
        }
    }

    #[test]
    fn keeps_the_expectation_and_drops_p_of_the_elements() {
        for (p, seed) in [(0.05, 0), (0.5, 1), (0.9, 2)] {
            let n = 400_000;
            let values = mask(p, seed, 123, n);
            let dropped = values.iter().filter(|v| **v <= 0.0).count() as f64 / n as f64;
            // Six standard deviations of a proportion.
            let tolerance = 6.0 * (f64::from(p) * (1.0 - f64::from(p)) / n as f64).sqrt();
            assert!((dropped - f64::from(p)).abs() < tolerance, "{p}: {dropped}");
            assert!(values.iter().all(|v| [0.0, 1.0 / (1.0 - p)].contains(v)));
        }
    }

    #[test]
    fn neighbours_rows_and_seeds_are_independent() {
        let n = 200_000;
        let (a, b) = (mask(0.5, 4, 0, n + 576), mask(0.5, 5, 0, n));
        let agree = |x: &[f32], y: &[f32]| {
            x.iter().zip(y).filter(|(x, y)| (**x > 0.0) == (**y > 0.0)).count() as f64 / n as f64
        };
        for share in [agree(&a[..n], &b), agree(&a[..n], &a[1..=n]), agree(&a[..n], &a[576..n + 576])] {
            assert!((share - 0.5).abs() < 0.01, "{share}");
        }
    }
}
