//! Phi-3 and Phi-4: Llama with fused projections, and longrope. arXiv:2404.14219 §2; transformers `modeling_phi3.py` (5.23).

use serde_json::{Value, json};

use crate::Error;
use crate::decoder::{DecoderConfig, Projections};

pub(super) fn facts(config: &Value) -> Result<DecoderConfig, Error> {
    // The defaults of `Phi3Config`.
    let defaults = json!({
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
    });
    let config = &super::with_defaults(&renamed(config), defaults);
    let mut facts = DecoderConfig { projections: Projections::Fused, ..super::common(config)? };
    super::windows(config, &mut facts, |_| true)?;
    Ok(facts)
}

/// `config` with its rope called longrope, where it is that: older files call it `su` or `yarn` (`configuration_phi3.py`).
fn renamed(config: &Value) -> Value {
    let mut config = config.clone();
    for field in ["rope_parameters", "rope_scaling"] {
        if let Some(rope) = config[field].as_object_mut().filter(|rope| rope.contains_key("long_factor")) {
            rope.insert("rope_type".into(), json!("longrope"));
        }
    }
    config
}
