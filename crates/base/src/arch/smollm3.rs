//! SmolLM3: Llama in which some layers do not rotate. arXiv:2501.18795 (NoPE layers); transformers `modeling_smollm3.py` (5.23).

use serde_json::{Value, json};

use crate::Error;
use crate::decoder::DecoderConfig;

pub(super) fn facts(config: &Value) -> Result<DecoderConfig, Error> {
    // The defaults of `SmolLM3Config`; transformers leaves `tie_word_embeddings` out where it is true.
    let defaults = json!({
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "rope_theta": 2_000_000.0,
        "tie_word_embeddings": true,
    });
    let config = &super::with_defaults(config, defaults);
    let attention_bias = super::flag(config, "attention_bias", false)?;
    let mut facts = DecoderConfig {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: super::flag(config, "mlp_bias", false)?,
        ..super::common(config)?
    };
    let interval = super::optional(config, "no_rope_layer_interval")?.unwrap_or(4);
    // 1 for a layer that rotates, 0 for one that does not.
    let rotates: Vec<bool> = match super::numbers(config, "no_rope_layers")? {
        Some(layers) => layers.iter().map(|&rope| rope != 0.0).collect(),
        None => (1..=facts.sizes.num_hidden_layers).map(|i| i % interval != 0).collect(),
    };
    if rotates.len() != facts.sizes.num_hidden_layers {
        let what = format!(
            "config.json: `no_rope_layers` has {} entries for {} layers",
            rotates.len(),
            facts.sizes.num_hidden_layers
        );
        return Err(super::unsupported(what));
    }
    for (layer, &rope) in facts.layers.iter_mut().zip(&rotates) {
        layer.rope = rope.then_some(0);
    }
    if super::flag(config, "use_sliding_window", false)? {
        super::windows(config, &mut facts, |i| !rotates[i])?;
    }
    Ok(facts)
}
