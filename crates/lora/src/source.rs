//! Where an adapter's tensors come from: made from a seed, or taken from a folder. Variants are written once, over both.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::Error;

/// How a tensor starts in a fresh adapter.
pub(crate) enum Start<'a> {
    /// Zeros.
    Zeros,
    /// Uniform in ±bound.
    Uniform(f64),
    /// Normal with that standard deviation.
    Normal(f64),
    /// Made from the base or from other tensors.
    Values(&'a dyn Fn() -> candle_core::Result<Vec<f32>>),
}

/// Yields an adapter's tensors by their PEFT key, prefix included.
pub(crate) trait Source {
    /// The tensor `key` of `shape`, f32 on the CPU.
    fn tensor(&mut self, key: &str, shape: &[usize], start: Start<'_>) -> Result<Tensor, Error>;
}

/// Makes trainable tensors, each from a random stream of its own.
#[derive(Debug)]
pub(crate) struct Fresh {
    seed: u64,
    pub(crate) vars: BTreeMap<String, Var>,
}

impl Fresh {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, vars: BTreeMap::new() }
    }
}

impl Source for Fresh {
    fn tensor(&mut self, key: &str, shape: &[usize], start: Start<'_>) -> Result<Tensor, Error> {
        let count = shape.iter().product();
        let mut rng = stream(self.seed, key);
        let values = match start {
            Start::Zeros => vec![0.0; count],
            Start::Uniform(bound) => {
                (0..count).map(|_| (bound * (2.0 * unit(&mut rng) - 1.0)) as f32).collect()
            }
            Start::Normal(deviation) => normals(&mut rng, count, deviation),
            Start::Values(make) => make()?,
        };
        let var = Var::from_vec(values, shape, &Device::Cpu)?;
        self.vars.insert(key.to_owned(), var.clone());
        Ok(var.into_inner())
    }
}

/// The random stream of one tensor.
fn stream(seed: u64, key: &str) -> ChaCha8Rng {
    let mut bytes = *b"taper adapter initialisation    ";
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&fingerprint(key).to_le_bytes());
    ChaCha8Rng::from_seed(bytes)
}

/// FNV-1a, 64 bits: a number for a name, the same on every machine and in every release.
pub(crate) fn fingerprint(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Uniform in [0, 1), 53 bits.
fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// `count` normal values, by Box and Muller.
fn normals(rng: &mut ChaCha8Rng, count: usize, deviation: f64) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let radius = deviation * (-2.0 * (1.0 - unit(rng)).ln()).sqrt();
        let angle = std::f64::consts::TAU * unit(rng);
        values.extend([(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]);
    }
    values.truncate(count);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(seed: u64, key: &str, start: Start<'_>) -> Vec<f32> {
        let tensor = Fresh::new(seed).tensor(key, &[100, 300], start).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn each_key_and_seed_has_its_own_stream() {
        let a = draw(0, "a", Start::Uniform(1.0));
        assert_eq!(a, draw(0, "a", Start::Uniform(1.0)));
        assert_ne!(a, draw(0, "b", Start::Uniform(1.0)));
        assert_ne!(a, draw(1, "a", Start::Uniform(1.0)));
    }

    #[test]
    fn distributions_have_their_mean_and_deviation() {
        // Standard error of a mean of 30000 values is 0.6 % of the deviation; five of them.
        for (start, deviation) in [(Start::Uniform(0.3), 0.3 / 3f64.sqrt()), (Start::Normal(0.25), 0.25)] {
            let values = draw(7, "x", start);
            let n = values.len() as f64;
            let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
            let spread = (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n).sqrt();
            assert!(mean.abs() < 0.03 * deviation, "mean {mean}");
            assert!((spread / deviation - 1.0).abs() < 0.03, "deviation {spread}");
        }
        assert!(draw(7, "x", Start::Uniform(0.3)).iter().all(|v| v.abs() <= 0.3));
    }
}
