//! Rotary frequencies of every rope type, as `transformers/modeling_rope_utils.py` (5.23) computes them.

mod parameters;

use std::borrow::Cow;
use std::f32::consts::PI;
use std::ops::Range;

use serde_json::Value;
use taper_kernels::RopeTable;

use self::parameters::Parameters;
use crate::Error;
use crate::fields::unsupported;

/// Values of a head at most: frequencies are made before any weight is looked at, and the widest heads have some hundreds.
const MAX_HEAD: usize = 1 << 16;

/// Rotary embedding of a model: which angles a position turns its heads by.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    /// One frequency a pair of dimensions.
    inv_freq: Vec<f32>,
    /// Factor on cosines and sines.
    attention_factor: f32,
    longer: Option<Longer>,
}

/// The frequencies of sequences that are longer than a model was first trained for.
#[derive(Clone, Debug)]
enum Longer {
    /// Dynamic NTK scaling: the base grows with sequences longer than `max_positions`.
    Dynamic { theta: f32, factor: f32, max_positions: usize },
    /// Longrope (arXiv:2402.13753): other factors beyond `original` tokens.
    Long { inv_freq: Vec<f32>, original: usize },
}

impl Rope {
    /// Reads the rope facts of `config` for heads of `head_dim` and a context of `max_positions`.
    pub(crate) fn read(config: &Value, head_dim: usize, max_positions: usize) -> Result<Self, Error> {
        Self::new(&Parameters::of(config)?, head_dim, max_positions)
    }

    /// The rope that `parameters` describe.
    fn new(parameters: &Parameters, head_dim: usize, max_positions: usize) -> Result<Self, Error> {
        let theta = parameters.rope_theta.unwrap_or(10_000.0);
        let dim = rotated(parameters.partial_rotary_factor.unwrap_or(1.0), head_dim)?;
        let original = parameters.original_max_position_embeddings.unwrap_or(max_positions);
        let plain = frequencies(theta, dim);
        let kind = parameters.rope_type.as_deref().unwrap_or("default");
        let (inv_freq, attention_factor, longer) = match kind {
            "default" => (plain, 1.0, None),
            "linear" => {
                let factor = need(parameters.factor, kind, "factor")?;
                (plain.iter().map(|f| f / factor).collect(), 1.0, None)
            }
            "dynamic" => {
                let factor = need(parameters.factor, kind, "factor")?;
                (plain, 1.0, Some(Longer::Dynamic { theta, factor, max_positions }))
            }
            // Not of transformers: the factors of a GGUF file, one a frequency.
            "factors" => {
                let factors = parameters.factors.clone().filter(|factors| factors.len() == plain.len());
                let factors = need(factors, kind, "factors, one for each frequency,")?;
                (plain.iter().zip(factors).map(|(f, factor)| f / factor).collect(), 1.0, None)
            }
            "llama3" => (llama3(&plain, parameters, original)?, 1.0, None),
            "yarn" => {
                let (inv_freq, attention_factor) = yarn(parameters, theta, dim, (max_positions, original));
                (inv_freq, attention_factor, None)
            }
            "longrope" | "su" => {
                let short = divided(&plain, parameters.short_factor.as_ref(), "short_factor")?;
                let long = divided(&plain, parameters.long_factor.as_ref(), "long_factor")?;
                let factor = long_attention_factor(parameters, max_positions, original);
                (short, factor, Some(Longer::Long { inv_freq: long, original }))
            }
            other => {
                let what = format!(
                    "rope type `{other}` is not supported: taper knows default, linear, dynamic, llama3, yarn and longrope"
                );
                return Err(Error::Unsupported { what });
            }
        };
        Ok(Self { inv_freq, attention_factor, longer })
    }

    /// What a sequence of `len` tokens is turned by: two lengths with the same value have the same angles.
    pub(crate) fn turning(&self, len: usize) -> usize {
        match &self.longer {
            None => 0,
            Some(Longer::Dynamic { max_positions, .. }) => len.max(*max_positions),
            Some(Longer::Long { original, .. }) => usize::from(len > *original),
        }
    }

    /// One frequency a pair of dimensions, at any length but beyond a dynamic rope's.
    pub(crate) fn inv_freq(&self) -> &[f32] {
        &self.inv_freq
    }

    /// Cosines and sines of every row: `segments` gives each sequence's positions.
    ///
    /// A sequence longer than the trained context of a dynamic rope turns all its rows by the frequencies of its end; so does one
    /// longer than a longrope was first trained for by that rope's other frequencies.
    pub(crate) fn table(&self, segments: &[Range<usize>]) -> RopeTable {
        let half = self.inv_freq.len();
        let rows: usize = segments.iter().map(ExactSizeIterator::len).sum();
        let (mut cos, mut sin) = (Vec::with_capacity(rows * half), Vec::with_capacity(rows * half));
        for positions in segments {
            let longer = self.longer.as_ref().and_then(|longer| longer.frequencies(positions.end, 2 * half));
            let inv_freq = longer.as_deref().unwrap_or(&self.inv_freq);
            for position in positions.clone() {
                for frequency in inv_freq {
                    let (s, c) = (position as f32 * frequency).sin_cos();
                    cos.push(c * self.attention_factor);
                    sin.push(s * self.attention_factor);
                }
            }
        }
        RopeTable { cos, sin, half }
    }
}

impl Longer {
    /// Frequencies for a sequence of `len` tokens, if it is longer than those of the rope itself are for.
    fn frequencies(&self, len: usize, dim: usize) -> Option<Cow<'_, [f32]>> {
        match self {
            Self::Dynamic { theta, factor, max_positions } => {
                let growth = factor * len as f32 / *max_positions as f32 - (factor - 1.0);
                let exponent = dim as f32 / (dim as f32 - 2.0);
                (len > *max_positions).then(|| Cow::Owned(frequencies(theta * growth.powf(exponent), dim)))
            }
            Self::Long { inv_freq, original } => (len > *original).then_some(Cow::Borrowed(inv_freq)),
        }
    }
}

/// `plain`, each divided by its factor of `field`.
fn divided(plain: &[f32], factors: Option<&Vec<f32>>, field: &str) -> Result<Vec<f32>, Error> {
    match factors {
        Some(factors) if factors.len() == plain.len() => {
            Ok(plain.iter().zip(factors).map(|(f, factor)| f / factor).collect())
        }
        other => Err(Error::Unsupported {
            what: format!(
                "rope type `longrope` needs {} values of `{field}` in config.json, found {}",
                plain.len(),
                other.map_or(0, Vec::len)
            ),
        }),
    }
}

/// Longrope's factor on cosines and sines: `sqrt(1 + ln s / ln original)` for a context `s` times as long.
fn long_attention_factor(parameters: &Parameters, max_positions: usize, original: usize) -> f32 {
    let stretch = parameters.factor.unwrap_or(max_positions as f32 / original as f32);
    let inferred = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / (original as f32).ln()).sqrt() };
    parameters.attention_factor.unwrap_or(inferred)
}

/// `theta^(-2i/dim)`.
fn frequencies(theta: f32, dim: usize) -> Vec<f32> {
    (0..dim).step_by(2).map(|i| 1.0 / theta.powf(i as f32 / dim as f32)).collect()
}

/// Llama 3.1: long wavelengths are divided by `factor`, short ones kept, those between interpolated.
fn llama3(plain: &[f32], parameters: &Parameters, original: usize) -> Result<Vec<f32>, Error> {
    let factor = need(parameters.factor, "llama3", "factor")?;
    let low = need(parameters.low_freq_factor, "llama3", "low_freq_factor")?;
    let high = need(parameters.high_freq_factor, "llama3", "high_freq_factor")?;
    let original = original as f32;
    let scale = |&frequency: &f32| {
        let wavelength = 2.0 * PI / frequency;
        if wavelength < original / high {
            frequency
        } else if wavelength > original / low {
            frequency / factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    };
    Ok(plain.iter().map(scale).collect())
}

/// YaRN (arXiv:2309.00071 §3.2 and §3.4): frequencies and attention factor.
fn yarn(parameters: &Parameters, theta: f32, dim: usize, (max, original): (usize, usize)) -> (Vec<f32>, f32) {
    let factor = parameters.factor.unwrap_or(max as f32 / original as f32);
    let mscale = |scale: f32, m: f32| if scale <= 1.0 { 1.0 } else { 0.1 * m * scale.ln() + 1.0 };
    let nonzero = |value: Option<f32>| value.filter(|&v| v != 0.0);
    let attention_factor = parameters.attention_factor.unwrap_or_else(|| {
        match (nonzero(parameters.mscale), nonzero(parameters.mscale_all_dim)) {
            (Some(m), Some(all)) => mscale(factor, m) / mscale(factor, all),
            _ => mscale(factor, 1.0),
        }
    });
    let correction =
        |rotations: f32| dim as f32 * (original as f32 / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let mut low = correction(nonzero(parameters.beta_fast).unwrap_or(32.0));
    let mut high = correction(nonzero(parameters.beta_slow).unwrap_or(1.0));
    if parameters.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(dim as f32 - 1.0));
    if high <= low {
        high = low + 0.001;
    }
    let blend = |(i, frequency): (usize, f32)| {
        let keep = 1.0 - ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
        frequency / factor * (1.0 - keep) + frequency * keep
    };
    (frequencies(theta, dim).into_iter().enumerate().map(blend).collect(), attention_factor)
}

fn need<T>(value: Option<T>, kind: &str, field: &str) -> Result<T, Error> {
    value.ok_or_else(|| Error::Unsupported {
        what: format!("rope type `{kind}` needs `{field}` in config.json"),
    })
}

/// The values of a head that are turned.
fn rotated(partial: f32, head_dim: usize) -> Result<usize, Error> {
    if head_dim > MAX_HEAD {
        let what = format!("config.json: heads of {head_dim} values, expected at most {MAX_HEAD}");
        return Err(unsupported(what));
    }
    let dim = (head_dim as f32 * partial) as usize;
    // An odd number counts as the even one above it.
    if partial > 1.0 || dim == 0 || dim.next_multiple_of(2) > head_dim {
        return Err(unsupported(format!(
            "config.json: `partial_rotary_factor` is {partial}, which turns {dim} of the {head_dim} values of a head: expected a \
             number above 0 and at most 1 that leaves some to turn, in pairs"
        )));
    }
    Ok(dim)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Rope;

    // transformers 5.23, head_dim 16, position 65535 (8191 for `dynamic`, in a sequence of 8192):
    //   LlamaRotaryEmbedding(LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=16,
    //       max_position_embeddings=..., rope_parameters=...))(torch.zeros(1, 1, 64), torch.tensor([[65535]]))[0][0, -1, :8]
    fn cosines(parameters: &serde_json::Value, max_positions: usize, position: usize) -> Vec<f32> {
        let rope =
            Rope::read(&json!({ "rope_parameters": parameters }), 16, max_positions).expect("a known rope");
        rope.table(std::slice::from_ref(&(position..position + 1))).cos
    }

    fn assert_close(found: &[f32], expected: [f32; 8]) {
        // At position 65535 one unit in the last place of a frequency near 1 is an angle of 4e-3.
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 4e-3, "{found} for {expected}");
        }
    }

    #[test]
    fn trap_t7_rope_scaling_matches_transformers_at_long_positions() {
        let plain = cosines(&json!({"rope_type": "default", "rope_theta": 500000.0}), 4096, 65535);
        assert_close(
            &plain,
            [0.192344, -0.55265, 0.068153, 0.919998, 0.003498, 0.63969, -0.941497, 0.780152],
        );
        let linear =
            cosines(&json!({"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}), 65536, 65535);
        assert_close(
            &linear,
            [-0.941308, -0.8726, 0.034424, -0.965584, 0.889441, 0.026305, -0.780214, 0.451645],
        );
        let llama3 = json!({"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
        let expected = [0.192344, -0.55265, 0.068153, 0.919998, -0.986949, -0.62553, 0.906588, 0.996433];
        assert_close(&cosines(&llama3, 131_072, 65535), expected);
        let yarn = json!({"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 32768});
        let expected = [0.219009, 0.244206, 0.564108, 1.136416, 0.247617, -1.109135, 0.989198, 1.1338];
        assert_close(&cosines(&yarn, 131_072, 65535), expected);
        let mscale = json!({"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.8,
            "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096});
        let expected = [0.203301, -0.479052, 1.046958, -0.97218, -1.014756, 0.695234, -0.071374, 0.918252];
        assert_close(&cosines(&mscale, 163_840, 65535), expected);
        let dynamic =
            cosines(&json!({"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}), 4096, 8191);
        assert_close(
            &dynamic,
            [-0.64639, -0.676928, 0.038942, -0.037512, 0.966215, 0.732651, -0.998611, 0.649852],
        );
    }

    #[test]
    fn the_older_spelling_of_config_json_means_the_same() {
        let old = json!({"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}});
        let old = Rope::read(&old, 16, 65536).expect("a known rope").table(std::slice::from_ref(&(7..9)));
        let new = json!({"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}});
        assert_eq!(
            old.cos,
            Rope::read(&new, 16, 65536).expect("a known rope").table(std::slice::from_ref(&(7..9))).cos
        );
    }

    #[test]
    fn rope_type_wins_over_the_older_name_beside_it() {
        let rope = |rope: serde_json::Value| {
            let config = json!({"rope_theta": 10000.0, "rope_scaling": rope});
            Rope::read(&config, 16, 65536).expect("a known rope").table(std::slice::from_ref(&(7..9))).cos
        };
        let linear = rope(json!({"rope_type": "linear", "factor": 4.0}));
        for older in ["linear", "dynamic"] {
            assert_eq!(rope(json!({"rope_type": "linear", "type": older, "factor": 4.0})), linear);
        }
        assert_eq!(rope(json!({"rope_type": null, "type": "linear", "factor": 4.0})), linear);
    }

    #[test]
    fn what_would_turn_no_values_or_too_many_is_refused() {
        let refused = |config: serde_json::Value, head_dim| {
            Rope::read(&config, head_dim, 64).expect_err("refused").to_string()
        };
        for partial in [1e30, 1.5, 0.01] {
            let error = refused(json!({ "partial_rotary_factor": partial }), 16);
            assert!(error.contains("`partial_rotary_factor`") && error.contains("at most 1"), "{error}");
        }
        let error = refused(json!({"rope_parameters": {"partial_rotary_factor": 0}}), 16);
        assert!(error.contains("`partial_rotary_factor` is 0, expected a positive number"), "{error}");
        assert!(refused(json!({}), 7).contains("7 of the 7 values"));
        assert!(refused(json!({}), 1 << 31).contains("heads of 2147483648 values"));
        let error = refused(json!({"rope_scaling": {"rope_type": "linear", "factor": "4"}}), 16);
        assert!(error.contains(r#"`factor` is "4", expected a positive number"#), "{error}");
        assert!(refused(json!({"rope_parameters": "linear"}), 16).contains("expected an object"));
    }

    #[test]
    fn an_unknown_rope_type_is_refused_by_name() {
        let error =
            Rope::read(&json!({"rope_scaling": {"rope_type": "longrope"}}), 16, 64).expect_err("unknown");
        assert!(error.to_string().contains("longrope"), "{error}");
    }
}
