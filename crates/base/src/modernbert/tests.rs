//! `ModernBERT` against itself: however texts are batched and files spelt, the same numbers. Against transformers and PEFT:
//! `tests/oracle_cases.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use taper_kernels::Compute;

use crate::{Batch, Checkpoint, Error, Labels, Network, Task, arch};

const CASES: [&str; 3] = ["modernbert-classify", "modernbert-mean", "modernbert-tokens"];

/// Sums in another order.
const TOLERANCE: f32 = 2e-5;

const TEXTS: [&[u32]; 2] = [&[5, 9, 40, 2, 77, 31, 8, 120, 33, 7, 7, 64], &[6, 200, 3]];

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/oracle").join(name).join("model")
}

fn config(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(case(name).join("config.json")).unwrap()).unwrap()
}

/// The model of a case under another config.json, with its tensors renamed, or left out.
fn load(
    name: &str,
    config: &Value,
    task: &Task,
    rename: impl Fn(&str) -> Option<String>,
) -> Result<Box<dyn Network>, Error> {
    let dir = tempfile::tempdir().unwrap();
    let tensors = candle_core::safetensors::load(case(name).join("model.safetensors"), &Device::Cpu).unwrap();
    let renamed: BTreeMap<String, Tensor> =
        tensors.into_iter().filter_map(|(name, tensor)| Some((rename(&name)?, tensor))).collect();
    safetensors::serialize_to_file(&renamed, None, &dir.path().join("model.safetensors")).unwrap();
    arch::build(config, &Checkpoint::open(dir.path()).unwrap(), Compute::F32, task)
}

fn with(name: &str, config: &Value) -> Result<Box<dyn Network>, Error> {
    load(name, config, &Task::of(config), |name| Some(name.to_owned()))
}

fn whole(name: &str) -> Box<dyn Network> {
    with(name, &config(name)).unwrap()
}

fn logits(model: &dyn Network, texts: &[&[u32]]) -> Vec<f32> {
    let hidden = model.hidden(&Batch::new(texts.iter().copied()), &mut [], &()).unwrap();
    model.head().forward(&hidden, &()).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn bare(name: &str) -> Option<String> {
    name.strip_prefix("model.").map(str::to_owned)
}

fn fresh(model: &dyn Network) -> Vec<&str> {
    model.fresh().iter().map(|fresh| fresh.path.as_str()).collect()
}

#[test]
fn trap_t10_texts_of_one_batch_do_not_see_each_other() {
    for name in CASES {
        let model = whole(name);
        let apart = TEXTS.map(|text| logits(&*model, &[text])).concat();
        let together = logits(&*model, &TEXTS);
        assert_eq!(apart.len(), together.len());
        for (f, e) in together.iter().zip(apart) {
            assert!((f - e).abs() <= TOLERANCE * (1.0 + e.abs()), "{name}: {f}, expected {e}");
        }
    }
}

#[test]
fn the_older_spelling_of_config_json_means_the_same() {
    for (name, every, all) in [("modernbert-classify", 2, None), ("modernbert-tokens", 2, Some(160_000.0))] {
        let mut older = config(name);
        let fields = older.as_object_mut().unwrap();
        for newer in ["layer_types", "rope_parameters", "initializer_range"] {
            fields.remove(newer).unwrap();
        }
        fields.insert("global_attn_every_n_layers".into(), json!(every));
        if let Some(all) = all {
            fields.insert("global_rope_theta".into(), json!(all));
            fields.insert("local_rope_theta".into(), json!(10_000.0));
        }
        assert_eq!(logits(&*with(name, &older).unwrap(), &TEXTS), logits(&*whole(name), &TEXTS));
        for (field, value) in [
            ("global_rope_theta", json!(3.0)),
            ("local_rope_theta", json!(3.0)),
            ("local_rope_theta", Value::Null),
            ("global_attn_every_n_layers", json!(1)),
            ("local_attention", json!(4)),
        ] {
            let mut other = older.clone();
            other[field] = value;
            assert_ne!(
                logits(&*with(name, &other).unwrap(), &TEXTS),
                logits(&*whole(name), &TEXTS),
                "{field}"
            );
        }
        // A window of seven tokens, whether it was called six or seven.
        let mut odd = older.clone();
        odd["local_attention"] = json!(7);
        assert_eq!(logits(&*with(name, &odd).unwrap(), &TEXTS), logits(&*whole(name), &TEXTS));
    }
}

#[test]
fn a_head_that_the_files_lack_is_fresh() {
    let masked = |name: &str| (!name.starts_with("classifier")).then(|| name.to_owned());
    for name in CASES {
        let (config, model) = (config(name), whole(name));
        let task = Task::of(&config);
        assert!(model.fresh().is_empty());
        assert_eq!(model.head_modules(), ["classifier"]);
        // The body of a masked language model comes with a head whose first layer serves.
        let mut of_words = config.clone();
        of_words["architectures"] = json!(["ModernBertForMaskedLM"]);
        let model = load(name, &of_words, &task, masked).unwrap();
        assert_eq!((fresh(&*model), model.head_modules()), (vec!["classifier"], &["classifier"][..]));
        let model = load(name, &config, &task, bare).unwrap();
        assert_eq!(fresh(&*model), ["classifier", "head.dense", "head.norm"]);
        assert_eq!(model.head_modules(), ["head", "classifier"]);
        let logits = logits(&*model, &[&[5, 9]]);
        assert!(logits.iter().all(|logit| *logit == 0.0), "{logits:?}");
    }
}

#[test]
fn heads_start_from_the_values_that_transformers_draws() {
    let model = load(
        "modernbert-classify",
        &config("modernbert-classify"),
        &Task::Classify(Labels::numbered(2)),
        bare,
    );
    let deviations: Vec<f64> = model.unwrap().fresh().iter().map(|fresh| fresh.deviation).collect();
    // 32 values, two layers, `initializer_range` 0.2.
    assert_eq!(deviations, [1.0 / 32f64.sqrt(), 0.1, 0.0]);
}

#[test]
fn biases_are_where_config_json_has_them() {
    let with_bias = |name: &str| -> Vec<String> {
        let model = whole(name);
        let modules = model.modules().into_iter().filter(|module| module.bias().is_some());
        modules.map(|module| module.path().to_owned()).collect()
    };
    assert_eq!(with_bias("modernbert-classify"), ["classifier"]);
    // All but the embedding and the norm that the first layer lacks.
    assert_eq!(with_bias("modernbert-mean").len(), whole("modernbert-mean").modules().len() - 1);
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    for (field, value, words) in [
        ("hidden_activation", json!("mish"), "`hidden_activation` is `mish`"),
        ("classifier_activation", json!("mish"), "`classifier_activation` is `mish`"),
        ("classifier_pooling", json!("max"), "taper computes cls and mean"),
        ("attention_dropout", json!(0.1), "`attention_dropout` is not 0"),
        ("layer_types", json!(["chunked_attention"]), "layer type `chunked_attention`"),
        ("local_attention", json!(-1), "`local_attention` is -1"),
        ("num_attention_heads", json!(5), "do not divide into 5 heads"),
        ("num_attention_heads", json!(32), "heads of 1 values"),
        ("rope_parameters", json!({"full_attention": {"rope_type": "spiral"}}), "rope type `spiral`"),
        ("intermediate_size", json!(63), "`model.layers.0.mlp.Wi.weight` is [128, 32]"),
    ] {
        let mut config = config("modernbert-classify");
        config[field] = value;
        let error = with("modernbert-classify", &config).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let config = config("modernbert-classify");
    let error =
        load("modernbert-classify", &config, &Task::CausalLm, |name| Some(name.to_owned())).unwrap_err();
    assert!(error.to_string().contains("--task classify"), "{error}");
}
