//! `RoBERTa` and XLM-R: BERT with positions that begin behind the padding token's, and a head of two layers.
//! arXiv:1907.11692; transformers `modeling_roberta.py` (5.23).

use serde_json::Value;

use super::bert::BLOCK;
use crate::Error;
use crate::encoder::{EncoderConfig, Names, Pooling, Squash};

static NAMES: Names = Names { body: "roberta", ..BLOCK };

const POOLING: Pooling = Pooling {
    dense: "classifier.dense",
    then: Squash::Tanh,
    head: "classifier.out_proj",
    head_modules: &["classifier"],
};

pub(super) fn facts(config: &Value) -> Result<EncoderConfig, Error> {
    let mut facts = super::encoder_common(config, &NAMES, POOLING)?;
    // `create_position_ids_from_input_ids`: the first token has the position after `pad_token_id`.
    let first = super::whole(config, "pad_token_id")?.unwrap_or(1) as usize + 1;
    let rows = facts.sizes.max_position_embeddings;
    if first >= rows {
        return Err(super::unsupported(format!(
            "config.json: `pad_token_id` {} leaves no position of `max_position_embeddings` {rows} to a text",
            first - 1
        )));
    }
    (facts.first_position, facts.sizes.max_position_embeddings) = (first, rows - first);
    Ok(facts)
}
