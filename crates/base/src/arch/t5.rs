//! T5 in both forms: the first (relu, one matrix for the embedding and the head) and 1.1, of which Flan-T5 is one (gated
//! gelu, a head of its own). arXiv:1910.10683; transformers `modeling_t5.py`, `configuration_t5.py` (5.23).

use serde_json::Value;
use taper_kernels::Activation;

use crate::network::Sizes;
use crate::t5::{Buckets, T5Config};
use crate::{Checkpoint, Error};

/// Tokens that transformers' `T5Config` takes its models to be made for.
pub(super) const POSITIONS: usize = 512;

/// Its own dropout is not applied in training: the adapter's is `lora_dropout`.
///
/// `tie_word_embeddings` is false in version 1.1, which also leaves the decoder's rows unscaled; transformers 5 writes true
/// always, and `scale_decoder_outputs` instead. A head of version 1.1 that no file holds is the embedding's matrix.
pub(super) fn facts(config: &Value, checkpoint: &Checkpoint) -> Result<T5Config, Error> {
    super::refuse_unhonoured(config)?;
    let feed = super::text(config, "feed_forward_proj")?.unwrap_or("relu");
    let tied = super::flag(config, "tie_word_embeddings", true)?;
    let scaled = super::flag(config, "scale_decoder_outputs", tied)?;
    let heads = super::size(config, "num_heads")?;
    let layers = super::layers(config, "num_layers")?;
    Ok(T5Config {
        sizes: Sizes {
            hidden_size: super::size(config, "d_model")?,
            intermediate_size: super::size(config, "d_ff")?,
            num_hidden_layers: super::optional_layers(config, "num_decoder_layers")?.unwrap_or(layers),
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim: super::size(config, "d_kv")?,
            vocab_size: super::size(config, "vocab_size")?,
            // No place is beyond it, as only distances count; it is what the published models were trained on.
            max_position_embeddings: super::optional(config, "n_positions")?.unwrap_or(POSITIONS),
            tie_word_embeddings: scaled || checkpoint.info("lm_head.weight").is_none(),
        },
        encoder_layers: layers,
        eps: super::number(config, "layer_norm_epsilon")?.unwrap_or(1e-6),
        gated: feed.starts_with("gated-"),
        activation: activation(feed)?,
        buckets: Buckets {
            count: super::optional(config, "relative_attention_num_buckets")?.unwrap_or(32),
            reach: super::optional(config, "relative_attention_max_distance")?.unwrap_or(128),
        }
        .checked()?,
        scaled,
        decoder_start: decoder_start(config)?,
        head_deviation: super::number(config, "initializer_factor")?.unwrap_or(1.0)
            / (super::size(config, "d_model")? as f64).sqrt(),
    })
}

/// The function in `feed_forward_proj`; the gated gelu is the approximate one.
fn activation(feed: &str) -> Result<Activation, Error> {
    let name = if feed == "gated-gelu" { "gelu_new" } else { feed.trim_start_matches("gated-") };
    Activation::named(name).ok_or_else(|| {
        super::unsupported(format!(
            "config.json: `feed_forward_proj` is `{feed}`, taper computes relu, gelu, silu and gated-gelu, gated-silu"
        ))
    })
}

/// The first token of what is written: the padding token where config.json names none.
pub(super) fn decoder_start(config: &Value) -> Result<u32, Error> {
    let id = |field| super::whole(config, field);
    Ok(id("decoder_start_token_id")?.or(id("pad_token_id")?).unwrap_or(0))
}
