//! GPT-2: learned positions, layers stored `(in, out)`, a tied head. Radford et al. 2019; transformers `modeling_gpt2.py`
//! (5.23).

use serde_json::Value;
use taper_kernels::Order;

use crate::Error;
use crate::gpt::{GptConfig, Names, Positions};
use crate::network::Sizes;

const NAMES: Names = Names {
    embedding: "transformer.wte",
    blocks: "transformer.h",
    attention_norm: "ln_1",
    qkv: "attn.c_attn",
    out: "attn.c_proj",
    mlp_norm: "ln_2",
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    norm: "transformer.ln_f",
    head: "lm_head",
};

/// Its own dropout is not applied in training: the adapter's is `lora_dropout`.
pub(super) fn facts(config: &Value) -> Result<GptConfig, Error> {
    if super::flag(config, "add_cross_attention", false)? {
        return Err(super::unsupported(
            "config.json: `add_cross_attention` is true; taper runs gpt2 as a decoder alone".into(),
        ));
    }
    let hidden_size = super::size(config, "n_embd")?;
    let heads = super::size(config, "n_head")?;
    let max_position_embeddings = super::size(config, "n_positions")?;
    let num_hidden_layers = super::layers(config, "n_layer")?;
    let head_dim = super::divided(hidden_size, heads)?;
    let scaled = super::flag(config, "scale_attn_weights", true)?;
    let by_layer = super::flag(config, "scale_attn_by_inverse_layer_idx", false)?;
    let scale = if scaled { 1.0 / (head_dim as f32).sqrt() } else { 1.0 };
    let scale_of = |layer: usize| if by_layer { scale / (layer + 1) as f32 } else { scale };
    Ok(GptConfig {
        sizes: Sizes {
            hidden_size,
            intermediate_size: super::optional(config, "n_inner")?.unwrap_or(4 * hidden_size),
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim,
            vocab_size: super::size(config, "vocab_size")?,
            max_position_embeddings,
            tie_word_embeddings: super::flag(config, "tie_word_embeddings", true)?,
        },
        names: NAMES,
        eps: super::number(config, "layer_norm_epsilon")?.unwrap_or(1e-5),
        activation: super::activation(config, "activation_function", "gelu_new")?,
        positions: Positions::Learned("transformer.wpe"),
        order: Order::Whole,
        conv1d: true,
        attention_bias: true,
        parallel: false,
        scales: (0..num_hidden_layers).map(scale_of).collect(),
    })
}
