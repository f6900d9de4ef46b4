//! Qwen2 and 2.5: Llama with biases on q, k and v. arXiv:2407.10671 §2.2; transformers `modeling_qwen2.py` (5.23).

use serde::Deserialize;
use serde_json::Value;

use crate::Error;
use crate::decoder::DecoderConfig;

/// When the upper layers slide, from config.json.
#[derive(Deserialize)]
pub(super) struct Sliding {
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default = "max_window_layers")]
    max_window_layers: usize,
}

fn max_window_layers() -> usize {
    28
}

pub(super) fn facts(config: &Value) -> Result<DecoderConfig, Error> {
    let mut facts = DecoderConfig { qkv_bias: true, ..super::common(config)? };
    upper_windows(config, &mut facts)?;
    Ok(facts)
}

/// Layers from `max_window_layers` on slide, if `use_sliding_window` says so.
pub(super) fn upper_windows(config: &Value, facts: &mut DecoderConfig) -> Result<(), Error> {
    let Sliding { use_sliding_window, max_window_layers } = super::read(config)?;
    if use_sliding_window { super::windows(config, facts, |i| i >= max_window_layers) } else { Ok(()) }
}
