//! SmolLM3: Llama in which some layers do not rotate. arXiv:2501.18795 (NoPE layers); transformers `modeling_smollm3.py` (5.23).

use serde::Deserialize;
use serde_json::Value;

use crate::Error;
use crate::decoder::DecoderConfig;

#[derive(Deserialize)]
struct SmolLm3 {
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    /// 1 for a layer that rotates, 0 for one that does not.
    #[serde(default)]
    no_rope_layers: Option<Vec<u8>>,
    #[serde(default = "no_rope_layer_interval")]
    no_rope_layer_interval: usize,
}

fn no_rope_layer_interval() -> usize {
    4
}

pub(super) fn facts(config: &Value) -> Result<DecoderConfig, Error> {
    let own: SmolLm3 = super::read(config)?;
    let mut facts = DecoderConfig {
        qkv_bias: own.attention_bias,
        o_bias: own.attention_bias,
        mlp_bias: own.mlp_bias,
        ..super::common(config)?
    };
    let interval = own.no_rope_layer_interval.max(1);
    let rotates: Vec<bool> = match &own.no_rope_layers {
        Some(layers) => layers.iter().map(|&rope| rope != 0).collect(),
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
    if own.use_sliding_window {
        super::windows(config, &mut facts, |i| !rotates[i])?;
    }
    Ok(facts)
}
