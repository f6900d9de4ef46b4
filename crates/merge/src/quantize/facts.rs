//! `config.json` to the metadata by which llama.cpp builds its network.

use serde_json::Value;
use taper_base::Base;
use taper_base::gguf::Architecture;
use taper_kernels::{Activation, Stored};

use super::rope;
use super::writer::{Entry, Metadata};
use crate::Error;

/// What the model is to llama.cpp.
pub(super) fn architecture(base: &Base) -> Result<Architecture, Error> {
    let config = &base.config;
    let refuse = |what: String| Err(Error::file(&base.dir.path, what));
    let Some(architecture) = Architecture::of_model_type(base.model_type()) else {
        return refuse(format!("`{}` models cannot be written as GGUF yet", base.model_type()));
    };
    let activation = config["hidden_act"].as_str().unwrap_or("silu");
    if Activation::named(activation) != Some(Activation::Silu) {
        return refuse(format!(
            "config.json: `hidden_act` is `{activation}`, and llama.cpp computes silu for this type of model"
        ));
    }
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
    let rope = rope::metadata(&base.config, sizes.max_position_embeddings);
    for (key, entry) in rope.map_err(|what| Error::file(&base.dir.path, what))? {
        put(key, entry);
    }
    Ok(metadata)
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
