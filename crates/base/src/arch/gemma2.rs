//! Gemma 2: Llama with soft caps, windows in every other layer, four norms a block. arXiv:2408.00118 §2; transformers
//! `modeling_gemma2.py` (5.23).

use serde_json::{Value, json};

use crate::Error;
use crate::decoder::DecoderConfig;

pub(super) fn facts(config: &Value) -> Result<DecoderConfig, Error> {
    // The defaults of `Gemma2Config`.
    let defaults = json!({
        "head_dim": 256,
        "num_key_value_heads": 4,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
        "tie_word_embeddings": true,
        "max_position_embeddings": 8192,
    });
    let config = &super::with_defaults(config, defaults);
    let mut facts = gemma(config)?;
    super::windows(config, &mut facts, |i| i % 2 == 0)?;
    Ok(facts)
}

/// What Gemma 2 and 3 have in common.
pub(super) fn gemma(config: &Value) -> Result<DecoderConfig, Error> {
    if super::flag(config, "use_bidirectional_attention", false)? {
        return Err(super::unsupported(
            "config.json: `use_bidirectional_attention` is true; taper computes causal attention for gemma"
                .into(),
        ));
    }
    // `hidden_act` stands beside it in some files, and is not read.
    let activation = super::activation(config, "hidden_activation", "gelu_pytorch_tanh")?;
    let bias = super::flag(config, "attention_bias", false)?;
    let common =
        super::common(&super::with_defaults(&json!({"hidden_act": "gelu_pytorch_tanh"}), config.clone()))?;
    let scalar = super::positive(config, "query_pre_attn_scalar")?.unwrap_or(256.0);
    let cap = |field| Ok::<_, Error>(super::positive(config, field)?.map(|cap| cap as f32));
    Ok(DecoderConfig {
        norm_offset: 1.0,
        post_norms: true,
        qkv_bias: bias,
        o_bias: bias,
        activation,
        embed_scale: Some((common.sizes.hidden_size as f64).sqrt()),
        attention_scale: scalar.powf(-0.5) as f32,
        attention_cap: cap("attn_logit_softcapping")?,
        logit_cap: cap("final_logit_softcapping")?,
        ..common
    })
}
