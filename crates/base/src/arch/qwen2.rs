//! Qwen2 and 2.5: Llama with biases on q, k and v. arXiv:2407.10671 §2.2; transformers `modeling_qwen2.py` (5.23).

use serde_json::{Value, json};

use crate::Error;
use crate::decoder::DecoderConfig;

pub(super) fn facts(config: &Value) -> Result<DecoderConfig, Error> {
    let config = &super::with_defaults(config, defaults());
    let mut facts = DecoderConfig { qkv_bias: true, ..super::common(config)? };
    upper_windows(config, &mut facts)?;
    Ok(facts)
}

/// What `Qwen2Config` and `Qwen3Config` have in the place of what a file leaves out.
pub(super) fn defaults() -> Value {
    json!({ "num_key_value_heads": 32, "max_position_embeddings": 32_768, "sliding_window": 4096 })
}

/// Layers from `max_window_layers` on slide, if `use_sliding_window` says so.
pub(super) fn upper_windows(config: &Value, facts: &mut DecoderConfig) -> Result<(), Error> {
    if !super::flag(config, "use_sliding_window", false)? {
        return Ok(());
    }
    let full = super::whole(config, "max_window_layers")?.unwrap_or(28) as usize;
    super::windows(config, facts, |i| i >= full)
}
