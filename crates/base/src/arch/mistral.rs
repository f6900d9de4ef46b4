//! Mistral: Llama with a sliding window in every layer. arXiv:2310.06825 §2; transformers `modeling_mistral.py` (5.23).

use serde_json::{Value, json};

use crate::Error;
use crate::decoder::DecoderConfig;

pub(super) fn facts(config: &Value) -> Result<DecoderConfig, Error> {
    // The defaults of `MistralConfig`; a null window is none.
    let defaults =
        json!({ "num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096 });
    let config = &super::with_defaults(config, defaults);
    let mut facts = super::common(config)?;
    super::windows(config, &mut facts, |_| true)?;
    Ok(facts)
}
