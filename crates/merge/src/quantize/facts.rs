//! `config.json` to the metadata by which llama.cpp builds its network.

use serde_json::Value;
use taper_base::Base;
use taper_base::gguf::Architecture;
use taper_kernels::Stored;

use super::writer::{Entry, Metadata};
use crate::Error;

/// What the model is to llama.cpp.
pub(super) fn architecture(base: &Base) -> Result<Architecture, Error> {
    let config = &base.config;
    let refuse = |what: String| Err(Error::file(&base.dir.path, what));
    let Some(architecture) = Architecture::of_model_type(base.model_type()) else {
        return refuse(format!("`{}` models cannot be written as GGUF yet", base.model_type()));
    };
    let slides = match base.model_type() {
        "mistral" => !config["sliding_window"].is_null(),
        _ => config["use_sliding_window"] == true,
    };
    if slides {
        return refuse("has sliding windows, which llama.cpp does not compute for this type of model".into());
    }
    let every_fourth = |(i, rotates): (usize, &Value)| (rotates.as_u64() == Some(0)) == ((i + 1) % 4 == 0);
    let odd = config["no_rope_layers"].as_array().is_some_and(|l| !l.iter().enumerate().all(every_fourth));
    if odd || config["no_rope_layer_interval"].as_u64().is_some_and(|interval| interval != 4) {
        return refuse(
            "does not rotate other layers than every fourth, which llama.cpp takes for granted".into(),
        );
    }
    Ok(architecture)
}

/// All but the tokenizer.
pub(super) fn metadata(base: &Base, architecture: Architecture, to: Stored) -> Result<Metadata, Error> {
    let sizes = base.model.sizes();
    let name = architecture.name;
    let label = base.dir.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut metadata = vec![
        ("general.architecture".to_owned(), Entry::Text(name.into())),
        ("general.name".to_owned(), Entry::Text(label)),
        ("general.file_type".to_owned(), Entry::U32(file_type(to))),
        ("general.quantization_version".to_owned(), Entry::U32(2)),
    ];
    let theta = base.config["rope_parameters"]["rope_theta"].as_f64().or(base.config["rope_theta"].as_f64());
    let eps = base.config["rms_norm_eps"].as_f64().unwrap_or(1e-6);
    let numbers = [
        ("block_count", sizes.num_hidden_layers),
        ("context_length", sizes.max_position_embeddings),
        ("embedding_length", sizes.hidden_size),
        ("feed_forward_length", sizes.intermediate_size),
        ("attention.head_count", sizes.num_attention_heads),
        ("attention.head_count_kv", sizes.num_key_value_heads),
        ("attention.key_length", sizes.head_dim),
        ("attention.value_length", sizes.head_dim),
        ("rope.dimension_count", sizes.head_dim),
        ("vocab_size", sizes.vocab_size),
    ];
    let mut put = |key: &str, entry: Entry| metadata.push((format!("{name}.{key}"), entry));
    for (key, size) in numbers {
        put(key, Entry::U32(size as u32));
    }
    put("attention.layer_norm_rms_epsilon", Entry::F32(eps as f32));
    put("rope.freq_base", Entry::F32(theta.unwrap_or(10_000.0) as f32));
    rope_scaling(base, &mut put)?;
    Ok(metadata)
}

/// `llama3` scaling is a tensor of factors instead.
fn rope_scaling(base: &Base, put: &mut impl FnMut(&str, Entry)) -> Result<(), Error> {
    let field = if base.config["rope_parameters"].is_object() { "rope_parameters" } else { "rope_scaling" };
    let scaling = &base.config[field];
    let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str()).unwrap_or("default");
    let mut number = |key: &str, value: &Value| {
        if let Some(value) = value.as_f64() {
            put(key, Entry::F32(value as f32));
        }
    };
    match kind {
        "default" | "llama3" | "factors" => Ok(()),
        "linear" | "yarn" => {
            number("rope.scaling.factor", &scaling["factor"]);
            number("rope.scaling.yarn_beta_fast", &scaling["beta_fast"]);
            number("rope.scaling.yarn_beta_slow", &scaling["beta_slow"]);
            put("rope.scaling.type", Entry::Text(kind.into()));
            if let Some(original) = scaling["original_max_position_embeddings"].as_u64() {
                put("rope.scaling.original_context_length", Entry::U32(original as u32));
            }
            Ok(())
        }
        other => {
            let what = format!("rope type `{other}` cannot be written as GGUF");
            Err(Error::file(&base.dir.path, what))
        }
    }
}

/// `general.file_type`: what most of the weights are.
fn file_type(to: Stored) -> u32 {
    match to {
        Stored::F32 => 0,
        Stored::F16 => 1,
        Stored::Q4_0 => 2,
        Stored::Q8_0 => 7,
        Stored::Q4_K => 14,
        Stored::Q5_K => 16,
        Stored::Q6_K => 18,
        Stored::Bf16 => 32,
    }
}
