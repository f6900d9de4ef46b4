//! Qwen3 dense: Llama with an RMS norm on each q and k head. arXiv:2505.09388 §2; transformers `modeling_qwen3.py` (5.23).

use serde_json::{Value, json};

use crate::Error;
use crate::decoder::DecoderConfig;

pub(super) fn facts(config: &Value) -> Result<DecoderConfig, Error> {
    let config = &super::with_defaults(config, super::qwen2::defaults());
    let config = &super::with_defaults(config, json!({ "head_dim": 128 }));
    let attention_bias = super::flag(config, "attention_bias", false)?;
    let mut facts = DecoderConfig {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        qk_norm: true,
        ..super::common(config)?
    };
    if config["head_dim"].is_null() {
        return Err(super::unsupported("config.json: `head_dim` is null, which qwen3 needs".into()));
    }
    super::qwen2::upper_windows(config, &mut facts)?;
    Ok(facts)
}
