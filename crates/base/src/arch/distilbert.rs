//! `DistilBERT`: BERT without token types and without a pooler of the body's. arXiv:1910.01108; transformers
//! `modeling_distilbert.py` (5.23).

use serde_json::{Value, json};

use crate::Error;
use crate::encoder::{EncoderConfig, Names, Pooling, Squash};

static NAMES: Names = Names {
    body: "distilbert",
    layers: "transformer.layer",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    norm: "output_layer_norm",
};

/// PEFT trains and saves `pre_classifier` too, but only because its name ends in `classifier`.
const POOLING: Pooling = Pooling {
    dense: "pre_classifier",
    then: Squash::Relu,
    head: "classifier",
    head_modules: &["pre_classifier", "classifier"],
};

/// The fields have names of their own; the epsilon of the norms is fixed.
pub(super) fn facts(config: &Value) -> Result<EncoderConfig, Error> {
    let renamed = json!({
        "hidden_size": config["dim"],
        "intermediate_size": config["hidden_dim"],
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": config["n_heads"],
        "hidden_act": config["activation"],
        "layer_norm_eps": 1e-12,
        "type_vocab_size": 0,
        "vocab_size": config["vocab_size"],
        "max_position_embeddings": config["max_position_embeddings"],
        "initializer_range": config["initializer_range"],
        "quantization_config": config["quantization_config"],
    });
    super::encoder_common(&renamed, &NAMES, POOLING)
}
