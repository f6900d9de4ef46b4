//! Llama 1 to 3.x and everything that calls itself one. arXiv:2302.13971; transformers `modeling_llama.py` (5.23).

use serde_json::Value;

use crate::Error;
use crate::decoder::DecoderConfig;

pub(super) fn facts(config: &Value) -> Result<DecoderConfig, Error> {
    let attention_bias = super::flag(config, "attention_bias", false)?;
    let mlp_bias = super::flag(config, "mlp_bias", false)?;
    Ok(DecoderConfig { qkv_bias: attention_bias, o_bias: attention_bias, mlp_bias, ..super::common(config)? })
}
