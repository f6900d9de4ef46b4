//! Model types: each file reads one `model_type` of config.json into the facts of a network.
//!
//! To add one that differs from Llama, GPT or BERT by facts: a file here with a `facts` function, an arm in [`writer`] or
//! [`encoder`], an oracle case.

mod bert;
mod distilbert;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_neox;
mod llama;
mod mistral;
mod modernbert;
mod phi3;
mod qwen2;
mod qwen3;
mod roberta;
mod smollm3;
mod t5;

use serde::de::DeserializeOwned;
use serde_json::Value;
use taper_kernels::{Activation, Compute};

use crate::classifier::Classifier;
use crate::decoder::{Decoder, DecoderConfig, LayerFacts, Projections};
use crate::encoder::{Encoder, EncoderConfig, Names, Pooling};
use crate::gpt::Gpt;
use crate::modernbert::ModernBert;
use crate::rope::Rope;
use crate::t5::{T5, T5Classifier};
use crate::{Checkpoint, Error, Network, Sizes, Task};

const SUPPORTED: &str = "bert, distilbert, gemma2, gemma3, gemma3_text, gpt2, gpt_neox, llama, mistral, modernbert, phi3, \
                         qwen2, qwen3, roberta, smollm3, t5, xlm-roberta";

/// Builds the network that `config` describes over the weights of `checkpoint`, under the head that `task` asks for.
pub(crate) fn build(
    config: &Value,
    checkpoint: &Checkpoint,
    compute: Compute,
    task: &Task,
) -> Result<Box<dyn Network>, Error> {
    if let Some(encoder) = encoder(config, checkpoint, compute, task)? {
        return Ok(encoder);
    }
    match task {
        Task::CausalLm => writer(config, checkpoint, compute),
        Task::Classify(_) if config["model_type"] == "t5" && T5Classifier::is_in(checkpoint) => {
            let head = (task, Task::of(config) == *task);
            Ok(Box::new(T5Classifier::load(t5::facts(config, checkpoint)?, checkpoint, compute, head)?))
        }
        Task::Classify(_) | Task::Tag(_) if config["model_type"] == "t5" => Err(unsupported(
            "this t5 has no head for labels (`classification_head`), it writes texts: use an encoder (bert, roberta, distilbert) \
             or a decoder, or give rows with `prompt` and `completion`, the label as a text"
                .into(),
        )),
        Task::Classify(_) | Task::Tag(_) => {
            Ok(Box::new(Classifier::load(config, checkpoint, compute, task)?))
        }
    }
}

/// An encoder under the head of `task`; none for a model type that is a decoder or not known.
fn encoder(
    config: &Value,
    checkpoint: &Checkpoint,
    compute: Compute,
    task: &Task,
) -> Result<Option<Box<dyn Network>>, Error> {
    let head = (task, Task::of(config) == *task);
    let facts = match config["model_type"].as_str() {
        Some("bert") => bert::facts(config)?,
        Some("distilbert") => distilbert::facts(config)?,
        Some("modernbert") => {
            let facts = modernbert::facts(config)?;
            return Ok(Some(Box::new(ModernBert::load(facts, checkpoint, compute, head)?)));
        }
        Some("roberta" | "xlm-roberta") => roberta::facts(config)?,
        _ => return Ok(None),
    };
    Ok(Some(Box::new(Encoder::load(facts, checkpoint, compute, head)?)))
}

/// A decoder under its own head.
fn writer(config: &Value, checkpoint: &Checkpoint, compute: Compute) -> Result<Box<dyn Network>, Error> {
    let facts = match config["model_type"].as_str() {
        Some("gpt2") => return Ok(Box::new(Gpt::load(gpt2::facts(config)?, checkpoint, compute)?)),
        Some("gpt_neox") => return Ok(Box::new(Gpt::load(gpt_neox::facts(config)?, checkpoint, compute)?)),
        Some("t5") => return Ok(Box::new(T5::load(t5::facts(config, checkpoint)?, checkpoint, compute)?)),
        Some("gemma2") => gemma2::facts(config)?,
        Some("gemma3_text") => gemma3::facts(config)?,
        Some("gemma3") => gemma3::facts_of_text(config)?,
        Some("llama") => llama::facts(config)?,
        Some("mistral") => mistral::facts(config)?,
        Some("phi3") => phi3::facts(config)?,
        Some("qwen2") => qwen2::facts(config)?,
        Some("qwen3") => qwen3::facts(config)?,
        Some("smollm3") => smollm3::facts(config)?,
        Some(other) => {
            return Err(unsupported(format!(
                "model_type `{other}` is not supported: taper knows {SUPPORTED}"
            )));
        }
        None => {
            return Err(unsupported(format!("config.json has no `model_type`: taper knows {SUPPORTED}")));
        }
    };
    Ok(Box::new(Decoder::load(facts, checkpoint, compute)?))
}

/// [`Network::decoder_start`] of the network that `config` describes.
pub(crate) fn decoder_start(config: &Value) -> Option<u32> {
    (config["model_type"] == "t5" && Task::of(config) == Task::CausalLm).then(|| t5::decoder_start(config))
}

/// What every Llama-type config.json says in the same words; biases, norms and windows are each model type's own.
fn common(config: &Value) -> Result<DecoderConfig, Error> {
    refuse_unhonoured(config)?;
    let hidden_size = size(config, "hidden_size")?;
    let num_attention_heads = size(config, "num_attention_heads")?;
    let num_hidden_layers = size(config, "num_hidden_layers")?;
    let num_key_value_heads = optional(config, "num_key_value_heads")?.unwrap_or(num_attention_heads);
    let head_dim = optional(config, "head_dim")?.unwrap_or(hidden_size / num_attention_heads);
    let max_position_embeddings = optional(config, "max_position_embeddings")?.unwrap_or(2048);
    if num_attention_heads % num_key_value_heads != 0 {
        return Err(unsupported(format!(
            "config.json: {num_attention_heads} heads cannot share {num_key_value_heads} key and value heads evenly"
        )));
    }
    rotatable(head_dim)?;
    Ok(DecoderConfig {
        sizes: Sizes {
            hidden_size,
            intermediate_size: size(config, "intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: size(config, "vocab_size")?,
            max_position_embeddings,
            tie_word_embeddings: config["tie_word_embeddings"].as_bool().unwrap_or(false),
        },
        body: "model",
        rms_norm_eps: config["rms_norm_eps"].as_f64().unwrap_or(1e-6),
        norm_offset: 0.0,
        post_norms: false,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        projections: Projections::Apart,
        activation: activation(config, "hidden_act", "silu")?,
        embed_scale: None,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_cap: None,
        logit_cap: None,
        layers: vec![LayerFacts { rope: Some(0), window: None }; num_hidden_layers],
        ropes: vec![Rope::read(config, head_dim, max_position_embeddings)?],
    })
}

/// What every BERT-type config.json says in the same words.
fn encoder_common(config: &Value, names: &'static Names, pooling: Pooling) -> Result<EncoderConfig, Error> {
    refuse_quantised(config)?;
    let hidden_size = size(config, "hidden_size")?;
    let num_attention_heads = size(config, "num_attention_heads")?;
    if hidden_size % num_attention_heads != 0 {
        return Err(unsupported(format!(
            "config.json: `hidden_size` {hidden_size} does not fall into {num_attention_heads} heads evenly"
        )));
    }
    let kind = config["position_embedding_type"].as_str().unwrap_or("absolute");
    if kind != "absolute" {
        return Err(unsupported(format!(
            "config.json: `position_embedding_type` is `{kind}`, taper computes absolute"
        )));
    }
    let act = config["hidden_act"].as_str().unwrap_or("gelu");
    let hidden_act = Activation::named(act).ok_or_else(|| {
        unsupported(format!(
            "config.json: `hidden_act` is `{act}`, taper computes gelu, gelu_new, relu and silu"
        ))
    })?;
    Ok(EncoderConfig {
        sizes: Sizes {
            hidden_size,
            intermediate_size: size(config, "intermediate_size")?,
            num_hidden_layers: size(config, "num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: num_attention_heads,
            head_dim: hidden_size / num_attention_heads,
            vocab_size: size(config, "vocab_size")?,
            max_position_embeddings: size(config, "max_position_embeddings")?,
            tie_word_embeddings: false,
        },
        names,
        layer_norm_eps: config["layer_norm_eps"].as_f64().unwrap_or(1e-12),
        hidden_act,
        type_vocab_size: config["type_vocab_size"].as_u64().unwrap_or(2) as usize,
        first_position: 0,
        initializer_range: config["initializer_range"].as_f64().unwrap_or(0.02),
        pooling,
    })
}

/// Facts that would change the numbers and that no model type here computes.
fn refuse_unhonoured(config: &Value) -> Result<(), Error> {
    if config["attention_dropout"].as_f64().is_some_and(|p| p != 0.0) {
        return Err(unsupported(
            "config.json: `attention_dropout` is not 0, which taper does not apply: set it to 0.0".into(),
        ));
    }
    refuse_quantised(config)
}

fn refuse_quantised(config: &Value) -> Result<(), Error> {
    if config["quantization_config"].is_object() {
        return Err(unsupported(
            "config.json: the weights are quantised (`quantization_config`): use the model's full-precision version".into(),
        ));
    }
    Ok(())
}

/// The size of a head.
fn divided(hidden_size: usize, heads: usize) -> Result<usize, Error> {
    if hidden_size.is_multiple_of(heads) {
        return Ok(hidden_size / heads);
    }
    Err(unsupported(format!("config.json: {hidden_size} values do not divide into {heads} heads")))
}

/// The size of a head whose values turn in pairs.
fn rotatable(head_dim: usize) -> Result<usize, Error> {
    if head_dim.is_multiple_of(2) {
        return Ok(head_dim);
    }
    Err(unsupported(format!(
        "config.json: heads of {head_dim} values cannot be rotated: the size must be even"
    )))
}

/// The activation that `field` of config.json names.
fn activation(config: &Value, field: &str, default: &str) -> Result<Activation, Error> {
    let name = config[field].as_str().unwrap_or(default);
    Activation::named(name).ok_or_else(|| {
        unsupported(format!(
            "config.json: `{field}` is `{name}`, taper computes silu, gelu, gelu_new, gelu_pytorch_tanh and relu"
        ))
    })
}

/// A positive factor or cap, none if the field is missing or null.
fn positive(config: &Value, field: &str) -> Result<Option<f64>, Error> {
    match &config[field] {
        Value::Null => Ok(None),
        value => match value.as_f64().filter(|&x| x > 0.0 && x.is_finite()) {
            Some(x) => Ok(Some(x)),
            None => {
                Err(unsupported(format!("config.json: `{field}` is {value}, expected a positive number")))
            }
        },
    }
}

/// `config` with `defaults` in the place of what it lacks.
fn with_defaults(config: &Value, defaults: Value) -> Value {
    let mut filled = defaults;
    if let (Some(filled), Some(given)) = (filled.as_object_mut(), config.as_object()) {
        filled.extend(given.iter().map(|(field, value)| (field.clone(), value.clone())));
    }
    filled
}

/// `layer_types` where config.json lists them, else what `sliding` says of each layer, as windows of `sliding_window`.
fn windows(config: &Value, facts: &mut DecoderConfig, sliding: impl Fn(usize) -> bool) -> Result<(), Error> {
    let window = optional(config, "sliding_window")?;
    for (i, layer) in facts.layers.iter_mut().enumerate() {
        let slides = slides(config, i, &sliding)?;
        layer.window = window.filter(|_| slides);
    }
    Ok(())
}

/// Whether layer `i` sees a window: by `layer_types` where config.json lists them, else as `sliding` says.
fn slides(config: &Value, i: usize, sliding: impl Fn(usize) -> bool) -> Result<bool, Error> {
    match config["layer_types"][i].as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        Some(other) => Err(unsupported(format!("config.json: layer type `{other}` is not supported"))),
        None => Ok(sliding(i)),
    }
}

/// The ropes of the layers that see all and of those that see a window: of `rope_parameters` by layer type, on top of
/// what the `older` spelling says of each.
fn ropes(
    config: &Value,
    mut older: [Value; 2],
    (head_dim, max_positions): (usize, usize),
) -> Result<Vec<Rope>, Error> {
    if let Some(kinds) = config["rope_parameters"].as_object() {
        for (rope, kind) in older.iter_mut().zip(["full_attention", "sliding_attention"]) {
            rope["rope_parameters"] = kinds.get(kind).cloned().unwrap_or_default();
        }
    }
    older.iter().map(|rope| Rope::read(rope, head_dim, max_positions)).collect()
}

fn read<T: DeserializeOwned>(config: &Value) -> Result<T, Error> {
    T::deserialize(config).map_err(|source| unsupported(format!("config.json: {source}")))
}

fn size(config: &Value, field: &str) -> Result<usize, Error> {
    optional(config, field)?.ok_or_else(|| unsupported(format!("config.json: `{field}` is missing")))
}

/// A positive size, none if the field is missing or null.
fn optional(config: &Value, field: &str) -> Result<Option<usize>, Error> {
    match &config[field] {
        Value::Null => Ok(None),
        value => match value.as_u64().filter(|&n| n > 0 && n < 1 << 32) {
            Some(n) => Ok(Some(n as usize)),
            None => {
                Err(unsupported(format!("config.json: `{field}` is {value}, expected a positive number")))
            }
        },
    }
}

fn unsupported(what: String) -> Error {
    Error::Unsupported { what }
}
