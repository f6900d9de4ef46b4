//! Merged = adapted: the merged model's logits are those of base + adapters, for everything that an adapter can change.

use safetensors::Dtype;
use taper_base::Batch;
use taper_lora::{Bias, LoraAdapter, LoraConfig};

use super::fixture::{Room, Shape, TOKENS, adapter, open, targets};
use crate::{Weighted, verify};

/// f32 logits, relative and absolute.
const LOGITS: f32 = 2e-5;

pub(super) fn assert_merged_is_adapted(room: &Room, adapters: &[(&LoraAdapter, f64)], name: &str) {
    let base = room.base();
    let merged = room.merge_to(name, false, &base, adapters).unwrap();
    let weighted: Vec<_> = adapters.iter().map(|&(adapter, weight)| Weighted { adapter, weight }).collect();
    let result = verify(&*base.model, &weighted, &*open(&merged.path).model, &Batch::new([TOKENS])).unwrap();
    assert!(result.max_logit_difference <= LOGITS * (1.0 + result.max_logit), "{name}: {result:?}");
    let effect = verify(&*base.model, &weighted, &*base.model, &Batch::new([TOKENS])).unwrap();
    assert!(effect.max_logit_difference > 0.01, "{name} changes nothing: {effect:?}");
    assert_eq!((result.argmax_agree, result.tokens), (TOKENS.len(), TOKENS.len()));
}

fn saved(names: &[&str]) -> LoraConfig {
    LoraConfig {
        modules_to_save: names.iter().map(|&name| name.to_owned()).collect(),
        ..targets(&["v_proj"])
    }
}

pub(super) fn cases() -> Vec<(&'static str, LoraConfig)> {
    let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    vec![
        ("lora", targets(&all)),
        ("rslora", LoraConfig { use_rslora: true, ..targets(&["q_proj"]) }),
        ("dora", LoraConfig { use_dora: true, ..targets(&all) }),
        ("dora-embedding", LoraConfig { use_dora: true, ..targets(&["embed_tokens", "q_proj"]) }),
        ("embedding", targets(&["embed_tokens", "q_proj"])),
        ("head", targets(&["lm_head"])),
        ("both", targets(&["lm_head", "embed_tokens"])),
        ("saved-norm-head", saved(&["norm", "lm_head"])),
        ("saved-embedding", saved(&["embed_tokens"])),
        ("saved-both", saved(&["embed_tokens", "lm_head"])),
        (
            "patterns",
            LoraConfig { rank_pattern: vec![("q_proj".into(), 2)], ..targets(&["q_proj", "v_proj"]) },
        ),
    ]
}

#[test]
fn merged_is_adapted_with_a_head_of_its_own() {
    let room = Room::new(Shape::of(Dtype::F32));
    for (name, config) in cases() {
        let adapter = adapter(&room.base(), config, 11);
        assert_merged_is_adapted(&room, &[(&adapter, 1.0)], name);
    }
}

#[test]
fn merged_is_adapted_with_biases() {
    let room = Room::new(Shape { bias: true, ..Shape::of(Dtype::F32) });
    for (name, config) in [
        ("lora", targets(&["q_proj"])),
        ("lora-bias", LoraConfig { lora_bias: true, ..targets(&["q_proj", "o_proj"]) }),
        ("bias-all", LoraConfig { bias: Bias::All, ..targets(&["q_proj"]) }),
        ("bias-lora-only", LoraConfig { bias: Bias::LoraOnly, ..targets(&["q_proj"]) }),
        ("dora", LoraConfig { use_dora: true, ..targets(&["q_proj", "v_proj"]) }),
    ] {
        let adapter = adapter(&room.base(), config, 12);
        assert_merged_is_adapted(&room, &[(&adapter, 1.0)], name);
    }
}

#[test]
fn merged_is_adapted_by_several_of_different_kinds() {
    for tied in [false, true] {
        let room = Room::new(Shape { tied, ..Shape::of(Dtype::F32) });
        let base = room.base();
        let adapters: Vec<_> = cases().into_iter().map(|(_, config)| adapter(&base, config, 13)).collect();
        for (i, pair) in adapters.windows(2).enumerate() {
            let [a, b] = pair else { unreachable!() };
            assert_merged_is_adapted(&room, &[(a, 0.8), (b, 0.5)], &format!("pair-{i}"));
        }
    }
}

/// DoRA measures the rows that it finds, so it must find those that the adapter before it left.
#[test]
fn two_at_once_are_one_after_the_other() {
    let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"];
    let plain = || targets(&all);
    let dora = || LoraConfig { use_dora: true, ..targets(&all) };
    let room = Room::new(Shape::of(Dtype::F32));
    let base = room.base();
    for (i, [first, second]) in
        [[plain(), dora()], [dora(), plain()], [dora(), dora()], [saved(&["norm"]), plain()]]
            .into_iter()
            .enumerate()
    {
        let (a, b) = (adapter(&base, first, 15), adapter(&base, second, 16));
        let at_once = room.merge_to(&format!("{i}-at-once"), false, &base, &[(&a, 0.7), (&b, 0.9)]).unwrap();
        let one = room.merge_to(&format!("{i}-one"), false, &base, &[(&a, 0.7)]).unwrap();
        let middle = open(&one.path);
        let two = room.merge_to(&format!("{i}-two"), false, &middle, &[(&b, 0.9)]).unwrap();
        let result =
            verify(&*open(&at_once.path).model, &[], &*open(&two.path).model, &Batch::new([TOKENS])).unwrap();
        assert!(result.max_logit_difference <= LOGITS * (1.0 + result.max_logit), "{i}: {result:?}");
        let sum = verify(
            &*base.model,
            &[Weighted { adapter: &b, weight: 0.9 }],
            &*middle.model,
            &Batch::new([TOKENS]),
        );
        assert!(sum.unwrap().max_logit_difference > 0.01, "{i}");
    }
}

#[test]
fn dora_on_an_embedding_does_not_follow_another_change_of_it() {
    let room = Room::new(Shape::of(Dtype::F32));
    let base = room.base();
    let plain = adapter(&base, targets(&["embed_tokens"]), 17);
    let dora = adapter(&base, LoraConfig { use_dora: true, ..targets(&["embed_tokens"]) }, 18);
    room.merge_to("first", false, &base, &[(&dora, 1.0), (&plain, 1.0)]).unwrap();
    let error = room.merge_to("second", false, &base, &[(&plain, 1.0), (&dora, 1.0)]).unwrap_err();
    assert!(error.to_string().contains("adapter 2 of 2 is DoRA on an embedding"), "{error}");
}

#[test]
fn a_loaded_folder_merges_like_the_adapter_that_wrote_it() {
    let room = Room::new(Shape::of(Dtype::F32));
    let base = room.base();
    adapter(&base, LoraConfig { use_dora: true, ..saved(&["norm"]) }, 14)
        .save(&room.path("adapter"))
        .unwrap();
    let loaded = LoraAdapter::load(&room.path("adapter"), &base).unwrap();
    assert_merged_is_adapted(&room, &[(&loaded, 1.0)], "loaded");
}
