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
#[cfg(test)]
mod tests;

use serde_json::Value;
use taper_kernels::Compute;

use crate::classifier::Classifier;
use crate::decoder::{Decoder, DecoderConfig, LayerFacts, Projections};
use crate::encoder::{Encoder, EncoderConfig, Names, Pooling};
use crate::fields::{
    activation, flag, layers, list, number, numbers, object, optional, optional_layers, positive, size, text,
    unsupported, whole,
};
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
    if !config.is_object() {
        return Err(unsupported("config.json holds no object: it is not a model's".into()));
    }
    task.check_class(config["model_type"].as_str().unwrap_or_default())?;
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
pub(crate) fn decoder_start(config: &Value) -> Result<Option<u32>, Error> {
    let writes = config["model_type"] == "t5" && Task::of(config) == Task::CausalLm;
    writes.then(|| t5::decoder_start(config)).transpose()
}

/// [`Sizes::max_position_embeddings`] of the network that `config` describes, if it says.
pub(crate) fn max_positions(config: &Value) -> Result<Option<usize>, Error> {
    match config["model_type"].as_str() {
        Some("gpt2") => optional(config, "n_positions"),
        Some("t5") => Ok(Some(optional(config, "n_positions")?.unwrap_or(t5::POSITIONS))),
        Some("roberta" | "xlm-roberta") => {
            // The first rows of the table are the padding token's and those before it.
            let first = whole(config, "pad_token_id")?.unwrap_or(1) as usize + 1;
            Ok(optional(config, "max_position_embeddings")?.map(|rows| rows.saturating_sub(first)))
        }
        Some("gemma3") => optional(&config["text_config"], "max_position_embeddings"),
        _ => optional(config, "max_position_embeddings"),
    }
}

/// What every Llama-type config.json says in the same words; biases, norms and windows are each model type's own.
fn common(config: &Value) -> Result<DecoderConfig, Error> {
    refuse_unhonoured(config)?;
    let hidden_size = size(config, "hidden_size")?;
    let num_attention_heads = size(config, "num_attention_heads")?;
    let num_hidden_layers = layers(config, "num_hidden_layers")?;
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
            tie_word_embeddings: flag(config, "tie_word_embeddings", false)?,
        },
        body: "model",
        rms_norm_eps: number(config, "rms_norm_eps")?.unwrap_or(1e-6),
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
    let kind = text(config, "position_embedding_type")?.unwrap_or("absolute");
    if kind != "absolute" {
        return Err(unsupported(format!(
            "config.json: `position_embedding_type` is `{kind}`, taper computes absolute"
        )));
    }
    Ok(EncoderConfig {
        sizes: Sizes {
            hidden_size,
            intermediate_size: size(config, "intermediate_size")?,
            num_hidden_layers: layers(config, "num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: num_attention_heads,
            head_dim: divided(hidden_size, num_attention_heads)?,
            vocab_size: size(config, "vocab_size")?,
            max_position_embeddings: size(config, "max_position_embeddings")?,
            tie_word_embeddings: false,
        },
        names,
        layer_norm_eps: number(config, "layer_norm_eps")?.unwrap_or(1e-12),
        hidden_act: activation(config, "hidden_act", "gelu")?,
        type_vocab_size: whole(config, "type_vocab_size")?.unwrap_or(2) as usize,
        first_position: 0,
        initializer_range: number(config, "initializer_range")?.unwrap_or(0.02),
        pooling,
    })
}

/// Facts that would change the numbers and that no model type here computes.
fn refuse_unhonoured(config: &Value) -> Result<(), Error> {
    if number(config, "attention_dropout")?.is_some_and(|p| p != 0.0) {
        return Err(unsupported(
            "config.json: `attention_dropout` is not 0, which taper does not apply: set it to 0.0".into(),
        ));
    }
    refuse_quantised(config)
}

fn refuse_quantised(config: &Value) -> Result<(), Error> {
    if object(config, "quantization_config")?.is_some() {
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
    if head_dim > 0 && head_dim.is_multiple_of(2) {
        return Ok(head_dim);
    }
    Err(unsupported(format!(
        "config.json: heads of {head_dim} values cannot be rotated: the size must be even and above 0"
    )))
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
    for (layer, slides) in
        facts.layers.iter_mut().zip(slides(config, facts.sizes.num_hidden_layers, sliding)?)
    {
        layer.window = window.filter(|_| slides);
    }
    Ok(())
}

/// Which of `layers` layers see a window: by `layer_types` where config.json lists them, else as `sliding` says.
fn slides(config: &Value, layers: usize, sliding: impl Fn(usize) -> bool) -> Result<Vec<bool>, Error> {
    let Some(types) = list(config, "layer_types")? else { return Ok((0..layers).map(sliding).collect()) };
    let slides = |given: &Value| match given.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        kind => Err(unsupported(format!(
            "config.json: layer type `{}` is not supported, taper knows full_attention and sliding_attention",
            kind.map_or_else(|| given.to_string(), str::to_owned)
        ))),
    };
    let slides: Vec<bool> = types.iter().map(slides).collect::<Result<_, _>>()?;
    if types.len() != layers {
        return Err(unsupported(format!(
            "config.json: `layer_types` has {} entries, expected one for each of {layers} layers",
            types.len()
        )));
    }
    Ok(slides)
}

/// The ropes of the layers that see all and of those that see a window: of `rope_parameters` by layer type, on top of
/// what the `older` spelling says of each.
fn ropes(
    config: &Value,
    mut older: [Value; 2],
    (head_dim, max_positions): (usize, usize),
) -> Result<Vec<Rope>, Error> {
    if let Some(kinds) = object(config, "rope_parameters")? {
        for (rope, kind) in older.iter_mut().zip(["full_attention", "sliding_attention"]) {
            rope["rope_parameters"] = kinds.get(kind).cloned().unwrap_or_default();
        }
    }
    older.iter().map(|rope| Rope::read(rope, head_dim, max_positions)).collect()
}
