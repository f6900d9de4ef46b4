//! BERT. arXiv:1810.04805; transformers `modeling_bert.py` (5.23).

use serde_json::Value;

use crate::Error;
use crate::encoder::{EncoderConfig, Names, Pooling, Squash};

static NAMES: Names = Names { body: "bert", ..BLOCK };

/// What BERT and its heirs call the parts of a block.
pub(super) const BLOCK: Names = Names {
    body: "",
    layers: "encoder.layer",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    norm: "output.LayerNorm",
};

const POOLING: Pooling = Pooling {
    dense: "bert.pooler.dense",
    then: Squash::Tanh,
    head: "classifier",
    head_modules: &["classifier"],
};

pub(super) fn facts(config: &Value) -> Result<EncoderConfig, Error> {
    super::encoder_common(config, &NAMES, POOLING)
}
