//! The rope of `config.json` as GGUF keys: those that llama.cpp and `taper_base::gguf` both read. What they have no key for, or
//! compute in one way only, is refused where it is another.

use serde_json::Value;
use taper_base::gguf::rope_factors;

use super::writer::Entry;

/// How far an attention factor that is spelt out may be from the usual one: configurations give some six digits.
const DIGITS: f64 = 1e-5;

/// Keys, without the architecture's name before them. `llama3` scaling is a tensor of factors instead.
pub(super) fn metadata(config: &Value, max_positions: usize) -> Result<Vec<(&'static str, Entry)>, String> {
    let field = if config["rope_parameters"].is_object() { "rope_parameters" } else { "rope_scaling" };
    let scaling = &config[field];
    let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str()).unwrap_or("default");
    let either = |name: &str| scaling[name].as_f64().or(config[name].as_f64());
    if let Some(part) = either("partial_rotary_factor").filter(|part| !matches!(part, 1.0)) {
        return Err(format!(
            "config.json: `partial_rotary_factor` is {part}: taper reads and writes GGUF files whose heads are rotated whole, \
             expected 1"
        ));
    }
    // The factors of `llama3` are divided by these frequencies.
    let in_scaling = if kind == "llama3" { &config["rope_parameters"] } else { scaling };
    let theta = in_scaling["rope_theta"].as_f64().or(config["rope_theta"].as_f64()).unwrap_or(10_000.0);
    let mut keys = vec![("rope.freq_base", Entry::F32(theta as f32))];
    match kind {
        "default" => {}
        "llama3" | "factors" => {
            if rope_factors(config).map_err(|error| error.to_string())?.is_none() {
                return Err(
                    "config.json: `rope_scaling` and `rope_parameters` name different types of rope: \
                            remove the older, `rope_scaling`"
                        .into(),
                );
            }
        }
        "linear" => {
            keys.push(("rope.scaling.type", Entry::Text(kind.into())));
            keys.extend(float("rope.scaling.factor", scaling["factor"].as_f64()));
        }
        "yarn" => keys.extend(yarn(config, scaling, max_positions)?),
        other => return Err(format!("config.json: rope type `{other}` cannot be written as GGUF")),
    }
    Ok(keys)
}

/// llama.cpp rounds the ends of the ramp to whole dimensions and has cosines and sines `0.1 ln factor + 1` as large
/// (`ggml_rope_yarn_corr_dims`, `rope_yarn`).
fn yarn(config: &Value, scaling: &Value, max_positions: usize) -> Result<Vec<(&'static str, Entry)>, String> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    if scaling["truncate"] == false {
        return Err(
            "config.json: `truncate` is false: yarn in GGUF has whole dimensions only, expected true".into(),
        );
    }
    let original = config[ORIGINAL].as_u64().or(scaling[ORIGINAL].as_u64()).unwrap_or(max_positions as u64);
    let factor = scaling["factor"].as_f64().unwrap_or(max_positions as f64 / original as f64);
    let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    let nonzero = |field: &str| scaling[field].as_f64().filter(|&x| x != 0.0);
    let (found, fields) =
        match (scaling["attention_factor"].as_f64(), nonzero("mscale"), nonzero("mscale_all_dim")) {
            (Some(given), ..) => (given, "`attention_factor` is"),
            (_, Some(m), Some(all)) => {
                (scale(m) / scale(all), "`mscale` and `mscale_all_dim` make the attention factor")
            }
            _ => (scale(1.0), ""),
        };
    let usual = scale(1.0);
    if (found - usual).abs() > DIGITS * usual {
        return Err(format!(
            "config.json: {fields} {found}: yarn in GGUF has the usual one only, which is {usual} for a factor of {factor}"
        ));
    }
    let mut keys = vec![
        ("rope.scaling.type", Entry::Text("yarn".into())),
        ("rope.scaling.original_context_length", Entry::U32(original as u32)),
    ];
    keys.extend(float("rope.scaling.factor", Some(factor)));
    keys.extend(float("rope.scaling.yarn_beta_fast", nonzero("beta_fast")));
    keys.extend(float("rope.scaling.yarn_beta_slow", nonzero("beta_slow")));
    Ok(keys)
}

fn float(key: &'static str, value: Option<f64>) -> Option<(&'static str, Entry)> {
    value.map(|value| (key, Entry::F32(value as f32)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(rope: &Value) -> Result<Vec<(&'static str, Entry)>, String> {
        metadata(&json!({"rope_parameters": rope, "hidden_size": 32, "num_attention_heads": 4}), 128)
    }

    #[test]
    fn what_gguf_has_no_key_for_is_refused_by_name() {
        let yarn = |more: &Value| {
            let mut rope =
                json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32});
            rope.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            of(&rope)
        };
        for (found, words) in [
            (of(&json!({"partial_rotary_factor": 0.5})), "`partial_rotary_factor` is 0.5"),
            (metadata(&json!({"partial_rotary_factor": 0.5}), 128), "`partial_rotary_factor` is 0.5"),
            (yarn(&json!({"attention_factor": 1.0})), "`attention_factor` is 1"),
            (yarn(&json!({"mscale": 1.0, "mscale_all_dim": 0.8})), "`mscale`"),
            (yarn(&json!({"truncate": false})), "`truncate`"),
            (of(&json!({"rope_type": "dynamic", "factor": 2.0})), "`dynamic`"),
            (
                metadata(
                    &json!({"rope_parameters": {"rope_type": "llama3"}, "rope_scaling": {"type": "linear"}}),
                    128,
                ),
                "different types",
            ),
        ] {
            let error = found.unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        // Those that change nothing.
        for same in [
            json!({"attention_factor": 1.138_629_4}),
            json!({"mscale": 0.7}),
            json!({"mscale": 1.0, "mscale_all_dim": 0.0}),
            json!({"truncate": true, "partial_rotary_factor": 1.0, "attention_factor": null}),
        ] {
            assert_eq!(yarn(&same), yarn(&json!({})));
        }
    }

    #[test]
    fn a_yarn_without_a_factor_has_that_of_its_lengths() {
        let without =
            of(&json!({"rope_type": "yarn", "original_max_position_embeddings": 32, "beta_fast": 0}))
                .unwrap();
        assert!(without.contains(&("rope.scaling.factor", Entry::F32(4.0))), "{without:?}");
        assert!(without.contains(&("rope.scaling.original_context_length", Entry::U32(32))), "{without:?}");
        assert!(!without.iter().any(|(key, _)| key.contains("beta")), "{without:?}");
        // The length beside the rope counts before the one in it, as for the network.
        let outer = json!({"original_max_position_embeddings": 64, "rope_theta": 5.0,
            "rope_scaling": {"type": "yarn", "original_max_position_embeddings": 32, "rope_theta": 7.0}});
        let outer = metadata(&outer, 128).unwrap();
        assert!(outer.contains(&("rope.scaling.factor", Entry::F32(2.0))), "{outer:?}");
        assert!(outer.contains(&("rope.freq_base", Entry::F32(7.0))), "{outer:?}");
    }
}
