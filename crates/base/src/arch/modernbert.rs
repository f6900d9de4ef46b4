//! `ModernBERT`: windows in two of three layers, in which positions turn faster. arXiv:2412.13663 §2; transformers
//! `configuration_modernbert.py` (5.23).

use serde_json::{Value, json};

use crate::decoder::LayerFacts;
use crate::modernbert::{ModernBertConfig, Pooling};
use crate::rope::Rope;
use crate::{Error, Sizes};

/// Facts that other versions of the files leave out have the defaults of `ModernBertConfig`.
pub(super) fn facts(config: &Value) -> Result<ModernBertConfig, Error> {
    super::refuse_unhonoured(config)?;
    let hidden_size = super::size(config, "hidden_size")?;
    let num_attention_heads = super::size(config, "num_attention_heads")?;
    let head_dim = super::rotatable(super::divided(hidden_size, num_attention_heads)?)?;
    let fact = |field: &str| super::flag(config, field, false);
    let sizes = Sizes {
        hidden_size,
        intermediate_size: super::size(config, "intermediate_size")?,
        num_hidden_layers: super::layers(config, "num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads: num_attention_heads,
        head_dim,
        vocab_size: super::size(config, "vocab_size")?,
        max_position_embeddings: super::optional(config, "max_position_embeddings")?.unwrap_or(8192),
        tie_word_embeddings: false,
    };
    Ok(ModernBertConfig {
        layers: layers(config, sizes.num_hidden_layers)?,
        ropes: ropes(config, &sizes)?,
        sizes,
        eps: super::number(config, "norm_eps")?.unwrap_or(1e-5),
        norm_bias: fact("norm_bias")?,
        attention_bias: fact("attention_bias")?,
        mlp_bias: fact("mlp_bias")?,
        head_bias: fact("classifier_bias")?,
        activation: super::activation(config, "hidden_activation", "gelu")?,
        head_activation: super::activation(config, "classifier_activation", "gelu")?,
        pooling: pooling(config)?,
        initializer_range: super::number(config, "initializer_range")?.unwrap_or(0.02),
    })
}

fn pooling(config: &Value) -> Result<Pooling, Error> {
    match super::text(config, "classifier_pooling")?.unwrap_or("cls") {
        "cls" => Ok(Pooling::First),
        "mean" => Ok(Pooling::Mean),
        other => Err(super::unsupported(format!(
            "config.json: `classifier_pooling` is `{other}`, taper computes cls and mean"
        ))),
    }
}

/// A layer that slides sees `local_attention / 2` tokens on either side.
fn layers(config: &Value, count: usize) -> Result<Vec<LayerFacts>, Error> {
    let every = super::optional(config, "global_attn_every_n_layers")?.unwrap_or(3);
    let window = super::optional(config, "local_attention")?.unwrap_or(128) / 2 + 1;
    let layer =
        |slides: bool| LayerFacts { rope: Some(usize::from(slides)), window: slides.then_some(window) };
    Ok(super::slides(config, count, |i| i % every != 0)?.into_iter().map(layer).collect())
}

/// The ropes of the layers that see all, and of those that slide.
fn ropes(config: &Value, sizes: &Sizes) -> Result<Vec<Rope>, Error> {
    let theta =
        |field: &str, default: f64| super::positive(config, field).map(|theta| theta.unwrap_or(default));
    let all = theta("global_rope_theta", 160_000.0)?;
    // In files of transformers 4 a null is the other one.
    let is_null = config.get("local_rope_theta").is_some_and(Value::is_null);
    let local = theta("local_rope_theta", if is_null { all } else { 10_000.0 })?;
    let older =
        [all, local].map(|theta| json!({ "rope_scaling": config["rope_scaling"], "rope_theta": theta }));
    super::ropes(config, older, (sizes.head_dim, sizes.max_position_embeddings))
}
