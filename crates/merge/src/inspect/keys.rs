//! Keys of an adapter's file (PEFT 0.21.2, `utils/save_and_load.py` `get_peft_model_state_dict`).

use std::collections::BTreeMap;

/// What every key of a PEFT folder starts with.
pub(super) const PREFIX: &str = "base_model.model.";

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// `A` `(r, in)`; of an embedding `(r, V)`.
    A,
    /// `B` `(out, r)`; of an embedding `(D, r)`.
    B,
    /// The bias beside `B` `(out,)`.
    BBias,
    /// DoRA's magnitudes `(out,)`.
    Magnitude,
    /// A parameter of the frozen layer itself: a trained bias, or an embedding that PEFT saved along.
    Base,
    /// A parameter of a module that is trained whole.
    Whole,
}

const PARTS: [(&str, Part, bool); 15] = [
    (".lora_A.weight", Part::A, false),
    (".lora_B.weight", Part::B, false),
    (".lora_B.bias", Part::BBias, false),
    (".lora_embedding_A", Part::A, true),
    (".lora_embedding_B", Part::B, true),
    (".lora_magnitude_vector", Part::Magnitude, false),
    (".lora_magnitude_vector.weight", Part::Magnitude, false),
    // As in the state_dict of a PEFT model, which PEFT reads as well.
    (".lora_A.default.weight", Part::A, false),
    (".lora_B.default.weight", Part::B, false),
    (".lora_B.default.bias", Part::BBias, false),
    (".lora_embedding_A.default", Part::A, true),
    (".lora_embedding_B.default", Part::B, true),
    (".lora_magnitude_vector.default.weight", Part::Magnitude, false),
    (".base_layer.weight", Part::Base, false),
    (".base_layer.bias", Part::Base, false),
];

/// Module path, part, and whether it is an embedding's, of a key (with or without [`PREFIX`]).
pub(super) fn parse(key: &str) -> (&str, Part, bool) {
    let key = key.strip_prefix(PREFIX).unwrap_or(key);
    let found =
        PARTS.iter().find_map(|&(end, part, embedding)| Some((key.strip_suffix(end)?, part, embedding)));
    found.unwrap_or_else(|| (key.rsplit_once('.').map_or(key, |(module, _)| module), Part::Whole, false))
}

/// Whether a key is a bias of the base.
pub(super) fn is_bias(key: &str) -> bool {
    key.rsplit('.').next() == Some("bias")
}

/// The keys of one module.
#[derive(Debug, Default)]
pub(super) struct Keys {
    pub(super) a: Option<String>,
    pub(super) b: Option<String>,
    pub(super) b_bias: Option<String>,
    pub(super) magnitude: Option<String>,
    pub(super) embedding: bool,
}

/// The keys of every module with low-rank factors.
pub(super) fn by_module<'a>(keys: impl Iterator<Item = &'a str>) -> BTreeMap<String, Keys> {
    let mut modules: BTreeMap<String, Keys> = BTreeMap::new();
    for key in keys {
        let (path, part, embedding) = parse(key);
        if matches!(part, Part::Base | Part::Whole) {
            continue;
        }
        let module = modules.entry(path.to_owned()).or_default();
        module.embedding |= embedding;
        let slot = match part {
            Part::A => &mut module.a,
            Part::B => &mut module.b,
            Part::BBias => &mut module.b_bias,
            _ => &mut module.magnitude,
        };
        *slot = Some(key.to_owned());
    }
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_that_peft_writes_or_reads_is_known() {
        let q = "model.layers.0.self_attn.q_proj";
        let cases = [
            (format!("{PREFIX}{q}.lora_A.weight"), (q, Part::A, false)),
            (format!("{PREFIX}{q}.lora_B.bias"), (q, Part::BBias, false)),
            (format!("{PREFIX}{q}.lora_magnitude_vector"), (q, Part::Magnitude, false)),
            (format!("{PREFIX}{q}.base_layer.bias"), (q, Part::Base, false)),
            (format!("{q}.lora_B.weight"), (q, Part::B, false)),
            (format!("{PREFIX}{q}.lora_A.default.weight"), (q, Part::A, false)),
            (format!("{PREFIX}{q}.lora_magnitude_vector.default.weight"), (q, Part::Magnitude, false)),
            (format!("{PREFIX}model.embed_tokens.lora_embedding_A"), ("model.embed_tokens", Part::A, true)),
            (format!("{PREFIX}lm_head.weight"), ("lm_head", Part::Whole, false)),
        ];
        for (key, expected) in &cases {
            assert_eq!(parse(key), *expected, "{key}");
        }
    }
}
