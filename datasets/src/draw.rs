//! Seeded choices. Only integers and exact sums are used, so a seed means the same bytes on every platform.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A stream of choices that depends on nothing but its seed.
#[derive(Debug)]
pub struct Draw(ChaCha8Rng);

impl Draw {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A whole number in `0..n`; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    /// True in `percent` of 100 draws.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of `items`, or none of an empty slice.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        let index = self.below(items.len());
        items.get(index)
    }

    /// Puts `items` into a random order (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last + 1);
            items.swap(last, other);
        }
    }

    /// A sample of the standard normal distribution, as the centred sum of twelve uniform ones (Irwin-Hall): no
    /// logarithm, whose last bit differs between platforms.
    pub fn normal(&mut self) -> f64 {
        let sum: u64 = (0..12).map(|_| u64::from(self.0.next_u32())).sum();
        sum as f64 / 2f64.powi(32) - 6.0
    }
}

/// A stable hash of `text` (FNV-1a, 64 bits), by which word combinations are held out of the training split.
pub fn stable_hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Whether the combination `parts` belongs to the test split alone: `percent` of all combinations do.
pub fn held_out(parts: &[&str], percent: u64) -> bool {
    // The low bits of FNV-1a are weak on short texts; fold the high ones in.
    let hash = stable_hash(&parts.join("|"));
    (hash ^ (hash >> 32)) % 100 < percent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_stream() {
        let draws = |seed| {
            let mut draw = Draw::new(seed);
            (0..50).map(|_| draw.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draws(0), draws(0));
        assert_ne!(draws(0), draws(1));
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let mut draw = Draw::new(3);
        let samples: Vec<f64> = (0..20_000).map(|_| draw.normal()).collect();
        let mean = samples.iter().sum::<f64>() / 20_000.0;
        let variance = samples.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }

    #[test]
    fn held_out_is_close_to_its_share() {
        let held = (0..10_000).filter(|n| held_out(&["noun", &n.to_string()], 12)).count();
        assert!((1000..1400).contains(&held), "{held}");
    }
}
