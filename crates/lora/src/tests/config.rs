//! `adapter_config.json`: what PEFT writes is read, and what is written is stable and readable by PEFT.

use std::collections::BTreeSet;

use super::*;
use crate::{Error, Init};

/// As PEFT 0.21.2 saved it (the oracle's `llama-patterns`), with everything that a modern file holds.
const PATTERNS: &str = r#"{"alora_invocation_tokens": null, "alpha_pattern": {"layers\\.2\\.self_attn\\.o_proj": 5,
"v_proj": 3}, "arrow_config": null, "auto_mapping": null, "base_model_name_or_path": null, "bias": "none",
"corda_config": null, "ensure_weight_tying": false, "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false,
"inference_mode": true, "init_lora_weights": true, "kasa_config": null, "layer_replication": null, "layers_pattern": null,
"layers_to_transform": null, "loftq_config": {}, "lora_alpha": 7, "lora_bias": false, "lora_dropout": 0.0,
"lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null,
"monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 4,
"rank_pattern": {"layers\\.1\\.mlp\\.up_proj": 6, "q_proj": 2}, "revision": null, "target_modules": ["up_proj", "q_proj"],
"target_parameters": null, "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_bdlora": null,
"use_dora": false, "use_qalora": false, "use_rslora": false, "velora_config": null}"#;

/// As PEFT 0.4 wrote it.
const OLD: &str = r#"{"auto_mapping": null, "base_model_name_or_path": "gpt2", "bias": "none", "fan_in_fan_out": true,
"inference_mode": true, "init_lora_weights": true, "layers_pattern": null, "layers_to_transform": null, "lora_alpha": 32,
"lora_dropout": 0.1, "modules_to_save": null, "peft_type": "LORA", "r": 8, "revision": null,
"target_modules": ["c_attn"], "task_type": "CAUSAL_LM"}"#;

/// The shortest that PEFT loads, with the values that may be one or a list.
const LAYERS: &str = r#"{"peft_type": "LORA", "layers_to_transform": 2, "layers_pattern": "layers", "lora_alpha": 1.5,
"target_modules": ["q_proj"], "exclude_modules": [], "use_rslora": true, "init_lora_weights": "gaussian"}"#;

fn read(text: &str) -> LoraConfig {
    let (config, warnings) = LoraConfig::from_json(text).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    config
}

fn error(text: &str) -> String {
    LoraConfig::from_json(text).unwrap_err().to_string()
}

#[test]
fn what_peft_writes_is_read() {
    let config = read(PATTERNS);
    assert_eq!((config.r, config.lora_alpha), (4, 7.0));
    assert_eq!(config.target_modules, Some(list(&["up_proj", "q_proj"])));
    assert_eq!(config.rank_pattern, [(r"layers\.1\.mlp\.up_proj".to_owned(), 6), ("q_proj".to_owned(), 2)]);
    assert_eq!(config.alpha_pattern.len(), 2);
    assert_eq!(config.task_type.as_deref(), Some("CAUSAL_LM"));
    let config = read(OLD);
    assert_eq!((config.r, config.lora_dropout, config.fan_in_fan_out), (8, 0.1, true));
    let config = read(LAYERS);
    assert_eq!((config.r, config.lora_alpha), (8, 1.5));
    assert_eq!((config.layers_to_transform, config.layers_pattern), (Some(vec![2]), strings(&["layers"])));
    assert_eq!((config.exclude_modules, config.init_lora_weights), (None, Init::Gaussian));
    assert_eq!(read(r#"{"peft_type": "LORA"}"#), LoraConfig::default());
}

#[test]
fn what_is_written_is_read_back() {
    for text in [PATTERNS, OLD, LAYERS] {
        let config = read(text);
        let written = config.to_json();
        let expected = match config.target_modules.clone() {
            Some(Names::List(mut names)) => {
                names.sort();
                LoraConfig { target_modules: Some(Names::List(names)), ..config }
            }
            _ => config,
        };
        assert_eq!(read(&written), expected);
        assert_eq!(read(&written).to_json(), written);
    }
}

#[test]
fn the_classic_fields_are_written_and_others_only_when_set() {
    let config = LoraConfig { target_modules: Some(list(&["v_proj", "q_proj"])), ..LoraConfig::default() };
    let expected = r#"{
  "base_model_name_or_path": null,
  "bias": "none",
  "fan_in_fan_out": false,
  "inference_mode": true,
  "init_lora_weights": true,
  "lora_alpha": 8,
  "lora_dropout": 0.0,
  "modules_to_save": null,
  "peft_type": "LORA",
  "r": 8,
  "revision": null,
  "target_modules": [
    "q_proj",
    "v_proj"
  ],
  "task_type": null
}"#;
    assert_eq!(config.to_json(), expected);
    let all = read(PATTERNS).to_json();
    let keys: BTreeSet<String> =
        serde_json::from_str::<serde_json::Map<_, _>>(&all).unwrap().into_iter().map(|(k, _)| k).collect();
    assert!(keys.contains("rank_pattern") && keys.contains("alpha_pattern") && !keys.contains("use_dora"));
}

#[test]
fn a_field_that_is_not_honoured_is_refused_by_name() {
    for (field, value) in [
        ("alora_invocation_tokens", "[1, 2]"),
        ("arrow_config", r#"{"top_k": 3}"#),
        ("kasa_config", r#"{"beta": 1e-4}"#),
        ("layer_replication", "[[0, 2], [1, 3]]"),
        ("megatron_config", r#"{"a": 1}"#),
        ("monteclora_config", r#"{"num_samples": 2}"#),
        ("target_parameters", r#"["experts.down_proj"]"#),
        ("trainable_token_indices", "[3]"),
        ("use_bdlora", r#"{"nblocks": 2}"#),
        ("use_qalora", "true"),
        ("velora_config", r#"{"num_groups": 64}"#),
    ] {
        let text = error(&format!(r#"{{"peft_type": "LORA", "{field}": {value}}}"#));
        assert!(text.starts_with(&format!("`{field}` is ")) && text.contains("does not honour"), "{text}");
        for off in ["null", "false", "[]", "{}"] {
            assert!(LoraConfig::from_json(&format!(r#"{{"peft_type": "LORA", "{field}": {off}}}"#)).is_ok());
        }
    }
    for init in ["pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga"] {
        let text = error(&format!(r#"{{"peft_type": "LORA", "init_lora_weights": "{init}"}}"#));
        assert!(text.contains("changed the base's own weights"), "{text}");
    }
    assert!(error(r#"{"peft_type": "LORA", "init_lora_weights": "mica"}"#).contains("does not honour"));
    assert_eq!(error(r#"{"peft_type": "IA3"}"#), r#"`peft_type` is "IA3"; taper knows "LORA""#);
    assert!(error("{}").contains("has no `peft_type`"));
    assert!(error("[").starts_with("not JSON"));
}

#[test]
fn an_unknown_field_is_a_warning() {
    let (_, warnings) = LoraConfig::from_json(r#"{"peft_type": "LORA", "use_frobnication": true}"#).unwrap();
    assert_eq!(warnings, ["adapter_config.json: unknown field `use_frobnication` is ignored"]);
}

#[test]
fn a_value_of_the_wrong_type_is_named() {
    assert_eq!(
        error(r#"{"peft_type": "LORA", "lora_alpha": "x"}"#),
        r#"`lora_alpha` is "x", expected a number"#
    );
    assert_eq!(error(r#"{"peft_type": "LORA", "r": 1.5}"#), "`r` is 1.5, expected a positive integer");
    assert_eq!(
        error(r#"{"peft_type": "LORA", "bias": "some"}"#),
        r#"`bias` is "some", expected none, all or lora_only"#
    );
    let text = error(r#"{"peft_type": "LORA", "rank_pattern": {"q": 0.5}}"#);
    assert_eq!(text, "`rank_pattern` of `q` is 0.5, expected positive integers");
}

#[test]
fn settings_that_contradict_each_other_are_refused_as_in_peft() {
    let check = |change: fn(&mut LoraConfig), expected: &str| {
        let mut config = LoraConfig::default();
        change(&mut config);
        let Err(Error::Config { what }) = config.validate() else { panic!("`{expected}` was allowed") };
        assert!(what.contains(expected), "{what}");
    };
    check(|c| c.r = 0, "`r` is 0");
    check(|c| c.rank_pattern = vec![("q".to_owned(), 0)], "`rank_pattern` of `q` is 0");
    check(|c| c.lora_alpha = f64::NAN, "`lora_alpha` is NaN");
    check(|c| c.lora_dropout = 1.0, "`lora_dropout` is 1");
    check(|c| c.task_type = Some("CAUSAL".to_owned()), "`task_type`");
    check(|c| c.layers_pattern = strings(&["h"]), "`layers_to_transform` must be set");
    check(
        |c| {
            c.target_modules = Some(Names::Pattern("q".to_owned()));
            c.layers_to_transform = Some(vec![0]);
        },
        "cannot be used when `target_modules` is a str",
    );
    check(
        |c| {
            c.lora_bias = true;
            c.use_dora = true;
        },
        "does not go with `use_dora`",
    );
    check(
        |c| {
            c.lora_bias = true;
            c.init_lora_weights = Init::Gaussian;
        },
        "true or false",
    );
}

#[test]
fn names_on_the_command_line() {
    let parse = |text: &str| text.parse::<Names>().unwrap();
    assert_eq!(parse("q_proj, v_proj"), list(&["q_proj", "v_proj"]));
    assert_eq!(parse("q_proj"), list(&["q_proj"]));
    assert_eq!(parse("ALL-linear"), Names::Pattern("ALL-linear".to_owned()));
    assert_eq!(parse(r".*\.q_proj"), Names::Pattern(r".*\.q_proj".to_owned()));
    assert_eq!("gaussian".parse::<Init>().unwrap(), Init::Gaussian);
    assert!("pissa".parse::<Init>().is_err());
}

#[test]
fn a_rank_that_no_layer_can_use_is_refused_before_anything_is_allocated() {
    for (field, what) in [
        (r#""r": 10000000000000"#, "`r` is 10000000000000; taper takes ranks up to 16384"),
        (r#""rank_pattern": {"q_proj": 100000000000}"#, "`rank_pattern` of `q_proj` is 100000000000"),
    ] {
        let error = error(&format!(r#"{{"peft_type": "LORA", {field}}}"#));
        assert!(error.contains(what), "{error}");
    }
    let config = LoraConfig { r: 100_000_000_000, ..LoraConfig::default() };
    let error = LoraAdapter::fresh(config, Toy::new(false).modules(), 0).unwrap_err().to_string();
    assert!(error.contains("`r` is 100000000000"), "{error}");
}
