//! Gemma 3, its text: Gemma 2 with norms on q and k heads in the place of caps, windows in five of six layers, and another
//! rope in those. arXiv:2503.19786 §2; transformers `modeling_gemma3.py` (5.23).

use serde_json::{Value, json};

use super::gemma2::gemma;
use crate::Error;
use crate::decoder::DecoderConfig;
use crate::rope::Rope;

/// `gemma3`: the text model inside one that sees pictures too.
pub(super) fn facts_of_text(config: &Value) -> Result<DecoderConfig, Error> {
    if super::object(config, "text_config")?.is_none() {
        return Err(super::unsupported("config.json: `text_config` is missing, which gemma3 needs".into()));
    }
    let text = &config["text_config"];
    let tied = json!({ "tie_word_embeddings": super::flag(config, "tie_word_embeddings", true)? });
    Ok(DecoderConfig { body: "model.language_model", ..facts(&super::with_defaults(text, tied))? })
}

/// `gemma3_text`.
pub(super) fn facts(config: &Value) -> Result<DecoderConfig, Error> {
    // The defaults of `Gemma3TextConfig`, which config.json leaves out.
    let defaults = json!({
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
        "tie_word_embeddings": true,
    });
    let config = &super::with_defaults(config, defaults);
    let ropes = ropes(config)?;
    let mut facts = DecoderConfig { qk_norm: true, ropes, ..gemma(&plain_rope(config))? };
    let pattern = |field| super::optional(config, field);
    let pattern = pattern("sliding_window_pattern")?.or(pattern("_sliding_window_pattern")?).unwrap_or(6);
    super::windows(config, &mut facts, |i| (i + 1) % pattern != 0)?;
    for layer in &mut facts.layers {
        layer.rope = Some(usize::from(layer.window.is_some()));
    }
    Ok(facts)
}

/// The ropes of the layers that see all, and of those that see a window.
fn ropes(config: &Value) -> Result<Vec<Rope>, Error> {
    let (head_dim, longest) =
        (super::size(config, "head_dim")?, super::size(config, "max_position_embeddings")?);
    let theta =
        |field: &str, default: f64| super::positive(config, field).map(|theta| theta.unwrap_or(default));
    let older = [
        json!({ "rope_scaling": config["rope_scaling"], "rope_theta": theta("rope_theta", 1e6)? }),
        json!({ "rope_theta": theta("rope_local_base_freq", 1e4)? }),
    ];
    super::ropes(config, older, (head_dim, longest))
}

/// `config` without its ropes, which are read on their own.
fn plain_rope(config: &Value) -> Value {
    super::with_defaults(&json!({ "rope_parameters": null, "rope_scaling": null }), config.clone())
}
