//! GPT-NeoX and Pythia: part of each head rotated, attention and feed-forward layer side by side. arXiv:2204.06745 §2.1;
//! transformers `modeling_gpt_neox.py` (5.23).

use serde_json::{Value, json};
use taper_kernels::Order;

use crate::Error;
use crate::gpt::{GptConfig, Names, Positions};
use crate::network::Sizes;
use crate::rope::Rope;

const NAMES: Names = Names {
    embedding: "gpt_neox.embed_in",
    blocks: "gpt_neox.layers",
    attention_norm: "input_layernorm",
    qkv: "attention.query_key_value",
    out: "attention.dense",
    mlp_norm: "post_attention_layernorm",
    up: "mlp.dense_h_to_4h",
    down: "mlp.dense_4h_to_h",
    norm: "gpt_neox.final_layer_norm",
    head: "lm_head",
};

/// Its own dropout is not applied in training: the adapter's is `lora_dropout`.
pub(super) fn facts(config: &Value) -> Result<GptConfig, Error> {
    let hidden_size = super::size(config, "hidden_size")?;
    let heads = super::size(config, "num_attention_heads")?;
    let num_hidden_layers = super::layers(config, "num_hidden_layers")?;
    let max_position_embeddings = super::optional(config, "max_position_embeddings")?.unwrap_or(2048);
    let head_dim = super::divided(hidden_size, heads)?;
    Ok(GptConfig {
        sizes: Sizes {
            hidden_size,
            intermediate_size: super::size(config, "intermediate_size")?,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim,
            vocab_size: super::size(config, "vocab_size")?,
            max_position_embeddings,
            tie_word_embeddings: super::flag(config, "tie_word_embeddings", false)?,
        },
        names: NAMES,
        eps: super::number(config, "layer_norm_eps")?.unwrap_or(1e-5),
        activation: super::activation(config, "hidden_act", "gelu")?,
        positions: Positions::Rotary(Rope::read(
            &with_older_names(config)?,
            head_dim,
            max_position_embeddings,
        )?),
        order: Order::ByHead,
        conv1d: false,
        attention_bias: super::flag(config, "attention_bias", true)?,
        parallel: super::flag(config, "use_parallel_residual", true)?,
        scales: vec![1.0 / (head_dim as f32).sqrt(); num_hidden_layers],
    })
}

/// `rotary_pct` and `rotary_emb_base`, the model's own names, as the others call them.
fn with_older_names(config: &Value) -> Result<Value, Error> {
    let defaults = json!({
        "partial_rotary_factor": super::positive(config, "rotary_pct")?.unwrap_or(0.25),
        "rope_theta": super::positive(config, "rotary_emb_base")?.unwrap_or(10_000.0),
    });
    Ok(super::with_defaults(config, defaults))
}
