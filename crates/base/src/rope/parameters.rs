//! What config.json says of a rope.

use serde_json::Value;

use crate::Error;
use crate::fields;

/// `rope_parameters` (transformers 5) or `rope_scaling` with `rope_theta` (transformers 4) of config.json.
#[derive(Debug)]
pub(super) struct Parameters {
    pub(super) rope_type: Option<String>,
    pub(super) rope_theta: Option<f32>,
    pub(super) factor: Option<f32>,
    pub(super) low_freq_factor: Option<f32>,
    pub(super) high_freq_factor: Option<f32>,
    pub(super) original_max_position_embeddings: Option<usize>,
    pub(super) attention_factor: Option<f32>,
    pub(super) mscale: Option<f32>,
    pub(super) mscale_all_dim: Option<f32>,
    pub(super) beta_fast: Option<f32>,
    pub(super) beta_slow: Option<f32>,
    pub(super) truncate: bool,
    pub(super) partial_rotary_factor: Option<f32>,
    pub(super) factors: Option<Vec<f32>>,
    pub(super) short_factor: Option<Vec<f32>>,
    pub(super) long_factor: Option<Vec<f32>>,
}

impl Parameters {
    /// Of a whole config.json.
    pub(super) fn of(config: &Value) -> Result<Self, Error> {
        let newer = fields::object(config, "rope_parameters")?.is_some();
        let field = if newer { "rope_parameters" } else { "rope_scaling" };
        fields::object(config, field)?;
        let parameters = Self::read(&config[field])?;
        let outer = |field| Ok::<_, Error>(fields::positive(config, field)?.map(|x| x as f32));
        Ok(Self {
            rope_theta: parameters.rope_theta.or(outer("rope_theta")?),
            partial_rotary_factor: parameters.partial_rotary_factor.or(outer("partial_rotary_factor")?),
            original_max_position_embeddings: fields::optional(config, "original_max_position_embeddings")?
                .or(parameters.original_max_position_embeddings),
            ..parameters
        })
    }

    /// Of the object that describes the rope. `type` is the older name of `rope_type`, which newer files write beside it.
    fn read(rope: &Value) -> Result<Self, Error> {
        let number = |field| Ok::<_, Error>(fields::number(rope, field)?.map(|x| x as f32));
        let positive = |field| Ok::<_, Error>(fields::positive(rope, field)?.map(|x| x as f32));
        let kind = fields::text(rope, "rope_type")?.or(fields::text(rope, "type")?);
        Ok(Self {
            rope_type: kind.map(str::to_owned),
            rope_theta: positive("rope_theta")?,
            factor: positive("factor")?,
            low_freq_factor: positive("low_freq_factor")?,
            high_freq_factor: positive("high_freq_factor")?,
            original_max_position_embeddings: fields::optional(rope, "original_max_position_embeddings")?,
            attention_factor: positive("attention_factor")?,
            mscale: number("mscale")?,
            mscale_all_dim: number("mscale_all_dim")?,
            beta_fast: number("beta_fast")?,
            beta_slow: number("beta_slow")?,
            truncate: fields::flag(rope, "truncate", true)?,
            partial_rotary_factor: positive("partial_rotary_factor")?,
            factors: fields::numbers(rope, "factors")?,
            short_factor: fields::numbers(rope, "short_factor")?,
            long_factor: fields::numbers(rope, "long_factor")?,
        })
    }
}
