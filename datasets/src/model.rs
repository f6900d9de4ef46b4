//! The shape of the base `tiny` and where its training starts: `config.json` and seeded random weights.
//!
//! Names and shapes are those of Hugging Face's `LlamaForCausalLM` (transformers 4, `modeling_llama.py`).

use std::path::Path;

use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::Result;
use crate::draw::Draw;
use crate::splits::write_file;
use crate::tokenizer::{Special, VOCABULARY};

/// The seed of the initial weights.
pub const SEED: u64 = 14;
/// Width of the hidden state, D.
const HIDDEN: usize = 128;
/// Width inside the feed-forward part.
const INTERMEDIATE: usize = 384;
/// Decoder layers.
const LAYERS: usize = 4;
/// Attention heads, H.
const HEADS: usize = 4;
/// Key and value heads, K.
const KV_HEADS: usize = 2;
/// Width of a head, E.
const HEAD_DIM: usize = HIDDEN / HEADS;
/// The longest sequence.
pub const POSITIONS: usize = 512;
/// Standard deviation of the initial weights.
const STD: f64 = 0.02;

/// The model's `config.json`.
pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": POSITIONS,
        "initializer_range": STD,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": null,
        "attention_bias": false,
        "attention_dropout": 0.0,
        "mlp_bias": false,
        "tie_word_embeddings": true,
        "bos_token_id": Special::Bos.id(),
        "eos_token_id": Special::Eos.id(),
        "torch_dtype": "bfloat16",
        "use_cache": true,
    })
}

/// The model's `generation_config.json`: a text ends at `<|eos|>`, a turn at `<|end|>`.
pub fn generation_config() -> Value {
    json!({"bos_token_id": Special::Bos.id(), "eos_token_id": [Special::Eos.id(), Special::End.id()]})
}

/// A tensor to be made: its name, its shape, and its standard deviation, or none where it is all ones.
type Plan = (String, Vec<usize>, Option<f64>);

/// The model's tensors. Projections that write into the residual stream start smaller, by 1/sqrt(2 · layers) (GPT-2).
fn plan() -> Vec<Plan> {
    let residual = STD / (2.0 * LAYERS as f64).sqrt();
    let mut plan = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN], Some(STD))];
    for layer in 0..LAYERS {
        let parts = [
            ("input_layernorm", vec![HIDDEN], None),
            ("self_attn.q_proj", vec![HEADS * HEAD_DIM, HIDDEN], Some(STD)),
            ("self_attn.k_proj", vec![KV_HEADS * HEAD_DIM, HIDDEN], Some(STD)),
            ("self_attn.v_proj", vec![KV_HEADS * HEAD_DIM, HIDDEN], Some(STD)),
            ("self_attn.o_proj", vec![HIDDEN, HEADS * HEAD_DIM], Some(residual)),
            ("post_attention_layernorm", vec![HIDDEN], None),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN], Some(STD)),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN], Some(STD)),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE], Some(residual)),
        ];
        plan.extend(
            parts.map(|(part, shape, std)| (format!("model.layers.{layer}.{part}.weight"), shape, std)),
        );
    }
    plan.push(("model.norm.weight".to_owned(), vec![HIDDEN], None));
    plan
}

/// The initial weights as a safetensors file, bf16: merging keeps the type, and so makes the file that is shipped.
pub fn weights(seed: u64) -> Result<Vec<u8>> {
    let mut draw = Draw::new(seed);
    let mut tensors = Vec::new();
    for (name, shape, std) in plan() {
        let count: usize = shape.iter().product();
        let mut value = || std.map_or(1.0, |std| std * draw.normal()) as f32;
        let bytes: Vec<u8> = (0..count).flat_map(|_| bf16::from_f32(value()).to_le_bytes()).collect();
        tensors.push((name, shape, bytes));
    }
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    let metadata = std::iter::once(("format".to_owned(), "pt".to_owned())).collect();
    Ok(safetensors::serialize(views, Some(metadata))?)
}

/// Writes `config.json`, `generation_config.json` and `model.safetensors` into `folder`.
pub fn write(folder: &Path, seed: u64) -> Result<()> {
    for (name, value) in [("config.json", config()), ("generation_config.json", generation_config())] {
        write_file(&folder.join(name), format!("{value:#}\n").as_bytes())?;
    }
    write_file(&folder.join("model.safetensors"), &weights(seed)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    #[test]
    fn about_a_million_parameters() {
        let count: usize = plan().iter().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
        assert_eq!(count, 1_049_728);
        assert!(2 * count < 2_200_000, "the bf16 file must stay below 2.2 MB");
    }

    #[test]
    fn weights_are_deterministic_and_small() {
        let file = weights(0).unwrap();
        assert_eq!(file, weights(0).unwrap());
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let spread = |name: &str| {
            let view = tensors.tensor(name).unwrap();
            let values: Vec<f32> =
                view.data().chunks(2).map(|b| bf16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect();
            (values.iter().map(|x| f64::from(x * x)).sum::<f64>() / values.len() as f64).sqrt()
        };
        assert!((spread("model.embed_tokens.weight") - 0.02).abs() < 2e-4);
        assert!((spread("model.layers.3.mlp.down_proj.weight") - 0.02 / 8f64.sqrt()).abs() < 2e-4);
        assert!((spread("model.norm.weight") - 1.0).abs() < 1e-9);
    }
}
