//! PEFT's matching rules, case by case (probed against PEFT 0.21.2).

use super::*;
use crate::Error;
use crate::matching::{Candidate, Matcher, pattern_matches};
use crate::plan::{Origin, Plan};

const Q: &str = "model.layers.0.self_attn.q_proj";

fn pattern(text: &str) -> Names {
    Names::Pattern(text.to_owned())
}

fn targets(config: &LoraConfig, path: &str) -> bool {
    Matcher::new(config).unwrap().targets(Candidate { path, in_all_linear: path != "lm_head" }).unwrap()
}

fn with_targets(names: Names) -> LoraConfig {
    LoraConfig { target_modules: Some(names), ..LoraConfig::default() }
}

#[test]
fn a_string_is_matched_against_the_whole_path() {
    assert!(!targets(&with_targets(pattern("q_proj")), Q));
    assert!(targets(&with_targets(pattern(".*q_proj")), Q));
    assert!(!targets(&with_targets(pattern(r".*\.(q|k)")), Q));
    assert!(targets(&with_targets(pattern(r".*layers\.(?P<n>\d+)\..*(q|v)_proj")), Q));
    assert!(targets(&with_targets(pattern(r"model|.*q_proj")), Q), "the alternative is whole");
    assert!(targets(&with_targets(pattern(r"(?!.*layers\.1).*q_proj")), Q), "Python's look-ahead");
}

#[test]
fn a_list_is_matched_at_the_end_after_a_dot() {
    assert!(targets(&with_targets(list(&["q_proj"])), Q));
    assert!(targets(&with_targets(list(&["self_attn.q_proj"])), Q));
    assert!(targets(&with_targets(list(&[Q])), Q));
    assert!(!targets(&with_targets(list(&["attn.q_proj"])), Q));
    assert!(!targets(&with_targets(list(&["proj"])), Q));
    assert!(!targets(&with_targets(list(&[".*q_proj"])), Q));
}

#[test]
fn all_linear_in_any_case_leaves_the_head_out() {
    for name in ["all-linear", "All-Linear"] {
        assert!(targets(&with_targets(pattern(name)), Q));
        assert!(!targets(&with_targets(pattern(name)), "lm_head"));
    }
}

#[test]
fn excluded_modules_come_first() {
    let config = |exclude_modules| LoraConfig { exclude_modules, ..with_targets(pattern(".*_proj")) };
    assert!(!targets(&config(Some(list(&["q_proj"]))), Q));
    assert!(targets(&config(Some(list(&["proj"]))), Q));
    assert!(!targets(&config(Some(pattern(r".*layers\.0.*"))), Q));
    assert!(targets(&config(Some(pattern("q_proj"))), Q));
}

#[test]
fn saved_modules_and_what_they_hold_are_not_targeted() {
    let config =
        |name| LoraConfig { modules_to_save: strings(&[name]), ..with_targets(list(&["q_proj", "dense"])) };
    assert!(!targets(&config("q_proj"), Q));
    assert!(!targets(&config("self_attn"), Q), "below it");
    assert!(!targets(&config(r"layers.\d+"), Q), "as a pattern");
    assert!(targets(&config("attn"), Q), "at a dot only");
    assert!(!targets(&config("classifier"), "classifier.dense"));
}

#[test]
fn saved_modules_are_those_that_end_in_the_text() {
    let saves = |name: &str, path: &str| {
        let config = LoraConfig { modules_to_save: strings(&[name]), ..LoraConfig::default() };
        Matcher::new(&config).unwrap().saves(path)
    };
    assert!(saves("head", "lm_head"));
    assert!(saves("classifier", "pre_classifier"));
    assert!(saves("norm", "model.layers.0.input_layernorm"));
    assert!(saves("mlp", "model.layers.0.mlp.up_proj"), "what the module holds");
    assert!(!saves("mlp", "model.layers.0.mlp2.up_proj"));
    assert!(!saves("norm", "model.norms"));
}

#[test]
fn layers_are_filtered_for_ends_only() {
    let config = |names: &[&str], patterns: &[&str]| LoraConfig {
        layers_to_transform: Some(vec![0, 2]),
        layers_pattern: strings(patterns),
        ..with_targets(list(names))
    };
    let layer = |i: usize| format!("model.layers.{i}.self_attn.q_proj");
    for patterns in [&[][..], &["layers"], &["h", "layers"]] {
        let config = config(&["q_proj"], patterns);
        assert_eq!(
            [0, 1, 2, 20].map(|i| targets(&config, &layer(i))),
            [true, false, true, false],
            "{patterns:?}"
        );
    }
    assert!(!targets(&config(&["q_proj"], &["h"]), Q), "no such list");
    assert!(targets(&config(&[&layer(1)], &[]), &layer(1)), "a whole path passes by the filter");
    let indexed = config(&["c_attn"], &[]);
    assert!(!targets(&indexed, "h.0.attn.c_attn"), "the list's name needs a dot before it");
    assert!(targets(&indexed, "transformer.h.0.attn.c_attn"));
    assert!(targets(&config(&["c_attn"], &["h"]), "h.0.attn.c_attn"), "but not with a pattern");
    assert!(!targets(&config(&["up"], &[]), "model.layers.1.experts.0.up"), "the first number counts");
}

#[test]
fn rank_and_alpha_patterns_match_at_the_end_after_a_dot_and_the_first_wins() {
    let matches = |key: &str| pattern_matches("rank_pattern", key, Q).unwrap();
    for key in [
        "q_proj",
        "self_attn.q_proj",
        "layers.0.self_attn.q_proj",
        r"layers\.\d+\.self_attn\.(q|k)_proj",
        ".*proj",
    ] {
        assert!(matches(key), "{key}");
    }
    for key in ["oj", "proj", "layers.0", "^q_proj"] {
        assert!(!matches(key), "{key}");
    }
    assert!(matches(&format!("^{Q}")));
    let config = LoraConfig {
        rank_pattern: vec![("self_attn.q_proj".to_owned(), 4), ("q_proj".to_owned(), 16)],
        alpha_pattern: vec![("k_proj".to_owned(), 1.0), ("q_proj".to_owned(), 2.5)],
        ..LoraConfig::default()
    };
    let matcher = Matcher::new(&config).unwrap();
    assert_eq!(matcher.rank_and_alpha(Q).unwrap(), (4, 2.5));
    assert_eq!(matcher.rank_and_alpha("x.q_proj").unwrap(), (16, 2.5));
    assert_eq!(matcher.rank_and_alpha("v_proj").unwrap(), (8, 8.0));
}

#[test]
fn scaling_is_alpha_over_r_or_its_root() {
    let plain = LoraConfig::default();
    assert!((plain.scaling(4, 7.0) - 1.75).abs() < 1e-12);
    let rank_stabilised = LoraConfig { use_rslora: true, ..plain };
    assert!((rank_stabilised.scaling(4, 7.0) - 3.5).abs() < 1e-12);
}

#[test]
fn a_pattern_that_is_none_is_an_error() {
    let error = Matcher::new(&with_targets(pattern("(q_proj"))).unwrap_err().to_string();
    assert!(error.starts_with(r#"`target_modules`: "(q_proj" is not a regular expression"#), "{error}");
}

fn fresh_error(change: impl FnOnce(&mut LoraConfig)) -> String {
    let mut config = with_targets(list(&["up_proj"]));
    change(&mut config);
    match LoraAdapter::fresh(config, Toy::new(true).modules(), 0) {
        Err(error @ (Error::Target { .. } | Error::Config { .. })) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_that_matches_nothing_is_answered_with_the_nearest() {
    let all = "this base has embed_tokens, up_proj, down_proj, lm_head";
    let text = fresh_error(|c| c.target_modules = Some(list(&["up_proj", "dwn_proj"])));
    assert_eq!(text, format!("target module `dwn_proj` matches nothing: did you mean `down_proj`? {all}"));
    let text = fresh_error(|c| c.target_modules = Some(pattern("up_proj")));
    assert!(text.contains("a regular expression over whole module paths, matches nothing"), "{text}");
    let text = fresh_error(|c| c.modules_to_save = strings(&["nrm"]));
    assert!(text.starts_with("`modules_to_save` `nrm` matches nothing: did you mean `norm`?"), "{text}");
    let text = fresh_error(|c| c.rank_pattern = vec![("q_proj".to_owned(), 2)]);
    assert_eq!(text, "`rank_pattern` `q_proj` matches no module with factors");
    let text = fresh_error(|c| c.exclude_modules = Some(list(&["up_proj"])));
    assert!(text.starts_with("no module is left to adapt"), "{text}");
    let text = fresh_error(|c| c.target_modules = Some(list(&[])));
    assert!(text.starts_with("no module is left to adapt"), "{text}");
}

#[test]
fn what_cannot_be_adapted_is_refused() {
    let text = fresh_error(|c| c.target_modules = Some(list(&["norm"])));
    assert!(text.contains("`model.norm` is a norm"), "{text}");
    let text = fresh_error(|c| c.modules_to_save = strings(&["proj"]));
    assert!(text.contains("is in `target_modules` and, by its end, in `modules_to_save`"), "{text}");
    let text = fresh_error(|c| {
        c.lora_bias = true;
        c.target_modules = Some(list(&["embed_tokens"]));
    });
    assert!(text.contains("does not go with an embedding"), "{text}");
    let text = fresh_error(|c| {
        c.ensure_weight_tying = true;
        c.target_modules = Some(list(&["embed_tokens"]));
    });
    assert!(text.contains("only modules_to_save stay tied"), "{text}");
}

#[test]
fn no_target_modules_means_the_default_of_the_model_type() {
    let toy = Toy::new(false);
    let error = LoraAdapter::fresh(LoraConfig::default(), toy.modules(), 0).unwrap_err().to_string();
    assert!(error.starts_with("target module `q_proj` matches nothing"), "{error}");
    let unknown = BaseModules { model_type: "hal9000", ..toy.modules() };
    let error = LoraAdapter::fresh(LoraConfig::default(), unknown, 0).unwrap_err().to_string();
    assert!(
        error.contains("no default for model_type `hal9000`: this base has embed_tokens, up_proj"),
        "{error}"
    );
}

#[test]
fn all_linear_is_saved_as_names() {
    let toy = Toy::new(false);
    let adapter = LoraAdapter::fresh(with_targets(pattern("all-linear")), toy.modules(), 0).unwrap();
    assert_eq!(adapter.config().target_modules, Some(list(&["up_proj", "down_proj"])));
    assert_eq!(adapter.ranks(), [("model.layers.0.down_proj", 8), ("model.layers.0.up_proj", 8)]);
}

#[test]
fn a_head_tied_to_a_saved_embedding_follows_it() {
    let toy = Toy::new(true);
    let fresh = |saved: &[&str]| {
        let config = LoraConfig { modules_to_save: strings(saved), ..with_targets(list(&["up_proj"])) };
        LoraAdapter::fresh(config, toy.modules(), 0).unwrap()
    };
    let both = fresh(&["embed_tokens"]);
    assert!(both.config().ensure_weight_tying && !both.unties());
    assert_eq!(both.params().len(), 3);
    let apart = fresh(&["embed_tokens", "lm_head"]);
    assert!(!apart.config().ensure_weight_tying && apart.unties());
    assert_eq!(apart.params().len(), 4);
    assert!(fresh(&["lm_head"]).unties());
}

/// Losses of such adapters, made by PEFT 0.21.2, were those of an untied head, and on T5 those of the base.
#[test]
fn an_embedding_that_peft_does_not_know_ties_no_head_and_that_of_t5_is_refused() {
    let called = |path: &str| {
        let mut toy = Toy::new(true);
        toy.embed.path = path.to_owned();
        toy
    };
    let config = |saved: &[&str], ensure_weight_tying| LoraConfig {
        modules_to_save: strings(saved),
        ensure_weight_tying,
        ..with_targets(list(&["up_proj"]))
    };
    let gpt2 = called("transformer.wte");
    let fresh = LoraAdapter::fresh(config(&["wte"], false), gpt2.modules(), 0).unwrap();
    assert_eq!(fresh.config().modules_to_save, ["wte", "lm_head"]);
    assert!(fresh.config().ensure_weight_tying && !fresh.unties());
    let is_tied =
        |saved| Plan::new(config(saved, true), &gpt2.modules(), Origin::Folder).unwrap().tied.is_some();
    assert!(is_tied(&["wte", "lm_head"]) && !is_tied(&["wte"]));

    let t5 = called("shared");
    let error = LoraAdapter::fresh(config(&["shared"], true), t5.modules(), 0).unwrap_err().to_string();
    assert!(error.contains("PEFT's `shared` reaches neither"), "{error}");
    let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias";
    for (targets, saved, words) in [
        (
            list(&["up_proj", "decoder.embed_tokens"]),
            &[][..],
            "`decoder.embed_tokens` cannot be trained: taper keeps one",
        ),
        (pattern(r".*(up_proj|embed_tokens)"), &[], "`encoder.embed_tokens` cannot be trained"),
        (list(&["up_proj", "relative_attention_bias"]), &[], bias),
        (list(&["up_proj"]), &["relative_attention_bias"], bias),
    ] {
        let config = LoraConfig { modules_to_save: strings(saved), ..with_targets(targets) };
        for origin in [Origin::Folder, Origin::Fresh] {
            let error = Plan::new(config.clone(), &t5.modules(), origin).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("leave it out of target_modules"), "{error}");
        }
    }
    assert!(LoraAdapter::fresh(with_targets(pattern("all-linear")), t5.modules(), 0).is_ok());
}
