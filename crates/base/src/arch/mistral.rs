//! Mistral: Llama with a sliding window in every layer. arXiv:2310.06825 §2; transformers `modeling_mistral.py` (5.23).

use serde_json::Value;

use crate::Error;
use crate::decoder::DecoderConfig;

pub(super) fn facts(config: &Value) -> Result<DecoderConfig, Error> {
    let mut facts = super::common(config)?;
    super::windows(config, &mut facts, |_| true)?;
    Ok(facts)
}
