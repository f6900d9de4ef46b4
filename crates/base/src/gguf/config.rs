//! Metadata to what `config.json` says.

use serde_json::{Map, Value, json};
use taper_kernels::RowOrder;

use super::Gguf;
use crate::Error;
use crate::rope::Rope;

/// A family of models that GGUF files know by `general.architecture`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// `architectures` of config.json.
    class: &'static str,
    /// Whether llama.cpp rotates adjacent rows of a q or k head, which are stored in pairs for that.
    pub paired: bool,
}

/// What can be read. A Mistral model is a `llama` to llama.cpp.
const ARCHITECTURES: [Architecture; 4] = [
    Architecture { name: "llama", class: "LlamaForCausalLM", paired: true },
    Architecture { name: "qwen2", class: "Qwen2ForCausalLM", paired: false },
    Architecture { name: "qwen3", class: "Qwen3ForCausalLM", paired: false },
    Architecture { name: "smollm3", class: "SmolLM3ForCausalLM", paired: true },
];

impl Architecture {
    /// The architecture of a file.
    pub fn of(gguf: &Gguf) -> Result<Self, Error> {
        let name = gguf.need("general.architecture", gguf.text("general.architecture")?)?;
        ARCHITECTURES.into_iter().find(|known| known.name == name).ok_or_else(|| {
            let known = ARCHITECTURES.map(|known| known.name).join(", ");
            gguf.bad(format!(
                "`general.architecture` is `{name}`, which taper does not read: it knows {known}"
            ))
        })
    }

    /// What a model of `model_type` is to llama.cpp, if taper can write it.
    pub fn of_model_type(model_type: &str) -> Option<Self> {
        let name = if model_type == "mistral" { "llama" } else { model_type };
        ARCHITECTURES.into_iter().find(|known| known.name == name)
    }

    /// The order of the rows of the checkpoint's tensor `name` in a file, for heads of `head` rows.
    pub fn order(self, name: &str, head: usize) -> RowOrder {
        let rotated = [".q_proj.weight", ".k_proj.weight", ".q_proj.bias", ".k_proj.bias"];
        if self.paired && rotated.iter().any(|end| name.ends_with(end)) {
            RowOrder::Paired { head }
        } else {
            RowOrder::Plain
        }
    }
}

/// The factors by which the frequencies of `config` are divided, for a `rope_freqs` tensor: those of `llama3` scaling, which
/// GGUF has no keys for, and those that came from such a tensor.
pub fn rope_factors(config: &Value) -> Result<Option<Vec<f32>>, Error> {
    let scaling = |field: &str| config[field]["rope_type"].as_str().or(config[field]["type"].as_str());
    if !matches!(scaling("rope_scaling").or(scaling("rope_parameters")), Some("llama3" | "factors")) {
        return Ok(None);
    }
    let number = |field: &str| config[field].as_u64().map(|n| n as usize);
    let heads = number("num_attention_heads").unwrap_or(1).max(1);
    let head_dim = number("head_dim").unwrap_or(number("hidden_size").unwrap_or(0) / heads);
    let read =
        |config: &Value| Rope::read(config, head_dim, number("max_position_embeddings").unwrap_or(2048));
    let theta = config["rope_parameters"]["rope_theta"].as_f64().or(config["rope_theta"].as_f64());
    let (plain, scaled) = (read(&json!({"rope_theta": theta}))?, read(config)?);
    Ok(Some(plain.inv_freq().iter().zip(scaled.inv_freq()).map(|(plain, scaled)| plain / scaled).collect()))
}

/// `config.json` of the model in a file.
pub(super) fn config(gguf: &Gguf) -> Result<Value, Error> {
    let architecture = Architecture::of(gguf)?;
    let name = architecture.name;
    let key = |rest: &str| format!("{name}.{rest}");
    let number = |rest: &str| gguf.number(&key(rest));
    let need = |rest: &str| gguf.need(&key(rest), number(rest)?);
    if number("expert_count")?.is_some_and(|experts| experts > 0) {
        return Err(
            gguf.bad(format!("`{}` is not 0: taper does not read mixtures of experts", key("expert_count")))
        );
    }
    let (hidden, heads) = (need("embedding_length")?, need("attention.head_count")?);
    if heads == 0 {
        return Err(gguf.bad(format!("`{}` is 0", key("attention.head_count"))));
    }
    let head_dim = head_dim(gguf, name, hidden / heads)?;
    let embedding = gguf.tensors.get("token_embd.weight");
    let embedding =
        embedding.ok_or_else(|| gguf.bad("has no tensor `token_embd.weight`: not a whole model"))?;
    let has = |tensor: &str| gguf.tensors.contains_key(tensor);
    let bias = has("blk.0.attn_q.bias");
    let eps = key("attention.layer_norm_rms_epsilon");
    let mut config = json!({
        "architectures": [architecture.class],
        "model_type": name,
        "hidden_size": hidden,
        "intermediate_size": need("feed_forward_length")?,
        "num_hidden_layers": need("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": need("context_length")?,
        "rms_norm_eps": gguf.need(&eps, gguf.float(&eps)?)?,
        "vocab_size": embedding.shape.first(),
        "tie_word_embeddings": !has("output.weight"),
        "attention_bias": bias && has("blk.0.attn_output.bias"),
        "mlp_bias": has("blk.0.ffn_up.bias"),
        "rope_theta": gguf.float(&key("rope.freq_base"))?.unwrap_or(10_000.0),
        "rope_scaling": rope_scaling(gguf, name)?,
    });
    // A Llama with biases on q, k and v but not on the output is a Qwen2.
    if name == "llama" && bias && !has("blk.0.attn_output.bias") {
        config["model_type"] = json!("qwen2");
    }
    put_special_ids(gguf, &mut config)?;
    Ok(config)
}

/// Size of the heads, `usual` where the file does not say.
fn head_dim(gguf: &Gguf, name: &str, usual: u64) -> Result<u64, Error> {
    let number = |rest: &str| gguf.number(&format!("{name}.{rest}"));
    let head_dim = number("attention.key_length")?.unwrap_or(usual);
    let rotated = number("rope.dimension_count")?.unwrap_or(head_dim);
    if rotated != head_dim || number("attention.value_length")?.is_some_and(|values| values != head_dim) {
        let what = format!(
            "keys of {head_dim} values of which {rotated} are rotated, values of {:?}: taper reads heads that are \
             rotated whole, of one size",
            number("attention.value_length")?
        );
        return Err(gguf.bad(what));
    }
    Ok(head_dim)
}

/// `bos_token_id` and `eos_token_id`.
fn put_special_ids(gguf: &Gguf, config: &mut Value) -> Result<(), Error> {
    for role in ["bos", "eos"] {
        let mut ids = vec![gguf.number(&format!("tokenizer.ggml.{role}_token_id"))?];
        if role == "eos" {
            // The end of a turn ends a text as well.
            ids.push(gguf.number("tokenizer.ggml.eot_token_id")?);
        }
        let mut ids: Vec<u64> = ids.into_iter().flatten().collect();
        ids.dedup();
        if let Some(first) = ids.first() {
            config[format!("{role}_token_id")] = if ids.len() > 1 { json!(ids) } else { json!(first) };
        }
    }
    Ok(())
}

/// `rope_scaling` from the file's keys or its tensor of factors.
fn rope_scaling(gguf: &Gguf, name: &str) -> Result<Value, Error> {
    let key = |rest: &str| format!("{name}.rope.scaling.{rest}");
    if let Some(tensor) = gguf.tensors.get("rope_freqs.weight") {
        let bytes = &gguf.map[tensor.range.clone()];
        if tensor.stored != taper_kernels::Stored::F32 {
            return Err(gguf.bad("tensor `rope_freqs.weight` is not F32"));
        }
        let factors: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        return Ok(json!({"rope_type": "factors", "factors": factors}));
    }
    let kind = gguf.text(&key("type"))?.unwrap_or("none");
    let mut scaling = Map::new();
    let mut put = |field: &str, value: Option<f64>| {
        if let Some(value) = value {
            scaling.insert(field.to_owned(), json!(value));
        }
    };
    match kind {
        "none" => return Ok(Value::Null),
        "linear" => put("factor", gguf.float(&key("factor"))?),
        "yarn" => {
            let attention = key("attn_factor");
            if let Some(factor) = gguf.float(&attention)?.filter(|factor| (factor - 1.0).abs() > 1e-6) {
                return Err(gguf.bad(format!("`{attention}` is {factor}: taper reads yarn with 1 alone")));
            }
            put("factor", gguf.float(&key("factor"))?);
            put("beta_fast", gguf.float(&key("yarn_beta_fast"))?);
            put("beta_slow", gguf.float(&key("yarn_beta_slow"))?);
            if let Some(original) = gguf.number(&key("original_context_length"))? {
                scaling.insert("original_max_position_embeddings".to_owned(), json!(original));
            }
        }
        other => {
            return Err(
                gguf.bad(format!("`{}` is `{other}`: taper reads none, linear and yarn", key("type")))
            );
        }
    }
    scaling.insert("rope_type".to_owned(), json!(kind));
    Ok(Value::Object(scaling))
}
