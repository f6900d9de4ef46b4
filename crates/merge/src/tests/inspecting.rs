//! What `inspect` sees in whole folders and in broken ones.

use std::fs;
use std::path::Path;

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use taper_lora::{Init, LoraAdapter, LoraConfig};

use super::fixture::{HIDDEN, Noise, Room, Shape, adapter, store, targets};
use crate::{Kind, inspect};

const PREFIX: &str = "base_model.model.model.layers.0.self_attn";

fn problems(dir: &Path) -> Vec<String> {
    inspect(dir, None).unwrap().problems
}

fn assert_problem(dir: &Path, words: &[&str]) {
    let problems = problems(dir);
    assert!(
        problems.iter().any(|text| words.iter().all(|word| text.contains(word))),
        "{words:?} not in {problems:#?}"
    );
}

/// An adapter folder of `q_proj` in the first layer, with the given fields and tensors changed.
fn broken(dir: &Path, fields: &Value, tensors: &[(&str, Dtype, &[usize], Option<f32>)]) {
    fs::create_dir_all(dir).unwrap();
    let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["q_proj"],
        "base_model_name_or_path": "org/base"});
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    let whole = [("q_proj.lora_A.weight", &[2, HIDDEN][..]), ("q_proj.lora_B.weight", &[HIDDEN, 2])];
    let mut all: Vec<(String, Dtype, Vec<usize>, Option<f32>)> = Vec::new();
    for (name, shape) in whole {
        all.push((format!("{PREFIX}.{name}"), Dtype::F32, shape.to_vec(), None));
    }
    for &(name, dtype, shape, value) in tensors {
        let name = if name.starts_with("base") { name.to_owned() } else { format!("{PREFIX}.{name}") };
        all.retain(|(other, ..)| *other != name);
        all.push((name, dtype, shape.to_vec(), value));
    }
    let mut noise = Noise(3);
    let bytes: Vec<Vec<u8>> = all
        .iter()
        .map(|(_, dtype, shape, value)| {
            let count = shape.iter().product();
            store(&value.map_or_else(|| noise.take(count), |value| vec![value; count]), *dtype)
        })
        .collect();
    let views = all.iter().zip(&bytes).map(|((name, dtype, shape, _), bytes)| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.join("adapter_model.safetensors")).unwrap();
}

#[test]
fn a_sound_adapter_has_facts_and_no_problems() {
    let room = Room::new(Shape::of(Dtype::BF16));
    let base = room.base();
    let config = LoraConfig {
        modules_to_save: vec!["lm_head".into()],
        rank_pattern: vec![("v_proj".into(), 2)],
        ..targets(&["q_proj", "v_proj"])
    };
    adapter(&base, config, 41).save(&room.path("adapter")).unwrap();
    for base in [None, Some(&base)] {
        let found = inspect(&room.path("adapter"), base).unwrap();
        assert_eq!(found.problems, [""; 0]);
        assert_eq!(found.kind, Kind::Adapter);
        assert_eq!(found.rank_by_module["model.layers.1.self_attn.v_proj"], 2);
        assert_eq!(found.modules.len(), 4);
        assert!((found.modules[0].scaling - 1.5).abs() < 1e-9 && found.modules[0].norm_b > 0.1);
        assert_eq!(found.parameters["whole"], 20 * 16);
        assert_eq!(found.parameters["total"], found.parameters["low_rank"] + found.parameters["whole"]);
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(json["kind"], "adapter");
        assert_eq!(json["tensors"].as_array().unwrap().len(), 9);
        assert_eq!(json["tensors"][0]["dtype"], "F32");
    }
}

#[test]
fn what_is_wrong_with_an_adapter_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let none = json!({});
    for (fields, tensors, words) in [
        (none.clone(), &[][..], None),
        (
            none.clone(),
            &[("q_proj.lora_B.weight", Dtype::F32, &[HIDDEN, 2][..], Some(0.0))][..],
            Some(&["never trained", "q_proj"][..]),
        ),
        (
            none.clone(),
            &[("q_proj.lora_A.weight", Dtype::F32, &[2, 0], None)],
            Some(&["without values", "ZeRO-3"]),
        ),
        (
            none.clone(),
            &[("q_proj.lora_A.weight", Dtype::F32, &[3, HIDDEN], None)],
            Some(&["different ranks"]),
        ),
        (
            none.clone(),
            &[("q_proj.lora_A.weight", Dtype::F16, &[2, HIDDEN], Some(1e6))],
            Some(&["infinite", "F16 overflows"]),
        ),
        (
            none.clone(),
            &[("k_proj.lora_A.weight", Dtype::F32, &[2, HIDDEN], None)],
            Some(&["k_proj", "no lora_B"]),
        ),
        (
            none.clone(),
            &[("q_proj.lora_magnitude_vector", Dtype::F32, &[HIDDEN], None)],
            Some(&["use_dora is false"]),
        ),
        (
            none.clone(),
            &[("base_model.model.lm_head.weight", Dtype::F32, &[2, 2], None)],
            Some(&["not account for", "lm_head"]),
        ),
        (json!({"use_dora": true}), &[], Some(&["no lora_magnitude_vector"])),
        (json!({"r": 4}), &[], Some(&["rank 2", "says 4"])),
        (json!({"target_modules": ["q_proj", "k_poj"]}), &[], Some(&["target_modules", "k_poj"])),
        (json!({"rank_pattern": {"^q_proj": 2}}), &[], Some(&["rank_pattern", "^q_proj"])),
        (json!({"modules_to_save": ["score"]}), &[], Some(&["modules_to_save", "score"])),
        (json!({"use_qalora": true}), &[], Some(&["use_qalora"])),
        (json!({"peft_type": "IA3"}), &[], Some(&["peft_type"])),
        (json!({"new_field": 1}), &[], Some(&["new_field"])),
    ] {
        broken(dir, &fields, tensors);
        match words {
            Some(words) => assert_problem(dir, words),
            None => assert_eq!(problems(dir), [""; 0]),
        }
    }
    for (base, words) in [(json!("/home/me/llama"), "one machine"), (Value::Null, "is not set")] {
        broken(dir, &json!({"base_model_name_or_path": base}), &[]);
        let found = inspect(dir, None).unwrap();
        assert!(found.problems.is_empty() && found.notes[0].contains(words), "{found:?}");
    }
}

#[test]
fn a_head_that_an_adapter_lacks_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    broken(dir.path(), &json!({"task_type": "SEQ_CLS"}), &[]);
    assert_problem(dir.path(), &["no head is saved", "train again", "modules_to_save"]);
    let block = "base_model.model.distilbert.transformer.layer.0.q_proj";
    let [a, b] = ["A", "B"].map(|factor| format!("{block}.lora_{factor}.weight"));
    let tensors = [
        ("base_model.model.classifier.weight", Dtype::F32, &[2, 2][..], None),
        (a.as_str(), Dtype::F32, &[2, HIDDEN], None),
        (b.as_str(), Dtype::F32, &[HIDDEN, 2], None),
    ];
    broken(dir.path(), &json!({"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}), &tensors);
    assert_problem(dir.path(), &["pre_classifier", "random"]);
}

#[test]
fn missing_pickled_and_truncated_files_of_an_adapter_are_problems() {
    let room = tempfile::tempdir().unwrap();
    let dir = room.path().join("adapter");
    broken(&dir, &json!({}), &[]);
    let weights = dir.join("adapter_model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 5]).unwrap();
    assert_problem(&dir, &["adapter_model.safetensors", "not a whole safetensors file"]);
    fs::remove_file(&weights).unwrap();
    assert_problem(&dir, &["adapter_model.safetensors is missing"]);
    fs::write(dir.join("adapter_model.bin"), "x").unwrap();
    assert_problem(&dir, &["pickled"]);
    fs::write(dir.join("adapter_config.json"), "{").unwrap();
    assert_problem(&dir, &["adapter_config.json: not JSON"]);
    fs::remove_file(dir.join("adapter_config.json")).unwrap();
    assert_problem(&dir, &["adapter_config.json is missing"]);
    assert!(inspect(room.path(), None).unwrap_err().to_string().contains("neither an adapter"));
}

#[test]
fn with_its_base_an_adapter_is_checked_as_loading_does() {
    let room = Room::new(Shape::of(Dtype::BF16));
    let base = room.base();
    broken(
        &room.path("adapter"),
        &json!({}),
        &[("q_proj.lora_A.weight", Dtype::F32, &[2, HIDDEN + 1], None)],
    );
    let found = inspect(&room.path("adapter"), Some(&base)).unwrap();
    assert!(found.problems.iter().any(|text| text.contains("lora_A")), "{:?}", found.problems);
    let fresh = LoraConfig { init_lora_weights: Init::Default, ..targets(&["embed_tokens", "q_proj"]) };
    LoraAdapter::fresh(fresh, &base, 1).unwrap().save(&room.path("fresh")).unwrap();
    let found = inspect(&room.path("fresh"), Some(&base)).unwrap();
    assert!(
        found.problems.len() == 1 && found.problems[0].contains("3 of 3 modules were never trained"),
        "{:?}",
        found.problems
    );
}

#[test]
fn a_model_has_facts_and_its_faults_are_listed() {
    let room = Room::new(Shape { shards: 2, tied: true, ..Shape::of(Dtype::BF16) });
    let dir = room.path("base");
    let found = inspect(&dir, None).unwrap();
    assert_eq!(found.problems, [""; 0]);
    let model = found.model.unwrap();
    assert!(model.tied && model.tokenizer && model.chat_template);
    assert_eq!((model.model_type.as_str(), found.files.len(), found.tensors.len()), ("llama", 2, 20));
    assert_eq!(found.parameters["total"], model.values_by_dtype["BF16"]);
    fs::remove_file(dir.join("tokenizer.json")).unwrap();
    assert_problem(&dir, &["tokenizer.json is missing"]);
    let shard = dir.join("model-00002-of-00002.safetensors");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap();
    assert_problem(&dir, &["model-00002-of-00002.safetensors", "not a whole safetensors file"]);
    fs::remove_file(&shard).unwrap();
    assert_problem(&dir, &["index.json names files that are not in the folder", "model-00002"]);
}

#[test]
fn an_index_leads_to_no_file_outside_its_folder() {
    let room = Room::new(Shape { shards: 2, ..Shape::of(Dtype::BF16) });
    let dir = room.path("base");
    let shard = "model-00002-of-00002.safetensors";
    fs::create_dir(room.path("other")).unwrap();
    fs::rename(dir.join(shard), room.path("other/secret.safetensors")).unwrap();
    let index = dir.join("model.safetensors.index.json");
    let text = fs::read_to_string(&index).unwrap();
    let absolute = room.path("other/secret.safetensors");
    for path in ["../other/secret.safetensors", absolute.to_str().unwrap()] {
        fs::write(&index, text.replace(shard, path)).unwrap();
        assert_problem(&dir, &["not in the folder", path]);
        let found = inspect(&dir, None).unwrap();
        assert_eq!(found.files.len(), 1, "{:?}", found.files);
        // The loader's own word on it.
        assert_problem(&dir, &["which is not a .safetensors file beside it"]);
    }
}

#[test]
fn tensors_that_a_model_lacks_has_too_many_or_are_broken_are_listed() {
    let shape = Shape::of(Dtype::F32);
    let room = Room::new(shape);
    let dir = room.path("base");
    let mut tensors = super::fixture::tensors(shape);
    let extra = (Dtype::F32, vec![4], store(&[1.0, 2.0, f32::NAN, 3.0], Dtype::F32));
    tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), extra);
    super::fixture::write_model(&dir, &tensors, shape);
    assert_problem(&dir, &["does not use", "inv_freq"]);
    assert_problem(&dir, &["inv_freq", "1 of 4 values"]);
    tensors.remove("model.norm.weight");
    super::fixture::write_model(&dir, &tensors, shape);
    assert_problem(&dir, &["model.norm.weight"]);
    fs::remove_file(dir.join("model.safetensors")).unwrap();
    assert_problem(&dir, &["only pickled weights"]);
}
