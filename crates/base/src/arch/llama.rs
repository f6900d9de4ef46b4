//! Llama 1 to 3.x and everything that calls itself one. arXiv:2302.13971; transformers `modeling_llama.py` (5.23).

use serde::Deserialize;
use serde_json::Value;

use crate::Error;
use crate::decoder::DecoderConfig;

#[derive(Deserialize)]
struct Llama {
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

pub(super) fn facts(config: &Value) -> Result<DecoderConfig, Error> {
    let Llama { attention_bias, mlp_bias } = super::read(config)?;
    Ok(DecoderConfig { qkv_bias: attention_bias, o_bias: attention_bias, mlp_bias, ..super::common(config)? })
}
