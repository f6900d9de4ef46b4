//! PEFT folders: what is saved is loaded with the same bits, and whatever does not fit is reported.

use std::path::Path;

use super::*;
use crate::tensor_file::{TENSOR_FILE, write_tensors};

fn saved(adapter: &LoraAdapter) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    adapter.save(dir.path()).unwrap();
    dir
}

fn file(dir: &Path, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(name)).unwrap()
}

/// Writes the adapter's tensors again, changed.
fn rewrite(
    dir: &Path,
    adapter: &LoraAdapter,
    change: impl FnOnce(&mut std::collections::BTreeMap<String, Tensor>),
) {
    let mut tensors = adapter.tensors().clone();
    change(&mut tensors);
    let mut bytes = Vec::new();
    write_tensors(&tensors, &mut bytes).unwrap();
    std::fs::write(dir.join(TENSOR_FILE), bytes).unwrap();
}

fn load_error(dir: &Path, toy: &Toy) -> String {
    LoraAdapter::load(dir, toy.modules()).unwrap_err().to_string()
}

fn lora() -> (Toy, LoraAdapter) {
    let toy = Toy::new(false);
    let adapter = toy.trained(&configs().swap_remove(0).1);
    (toy, adapter)
}

#[test]
fn what_is_saved_is_loaded_with_the_same_bits() {
    for tied in [false, true] {
        for (name, config) in configs() {
            let toy = Toy::new(tied);
            let adapter = toy.trained(&config);
            let dir = saved(&adapter);
            let loaded = LoraAdapter::load(dir.path(), toy.modules()).unwrap();
            assert!(loaded.params().is_empty() && !toy.loss(&loaded).track_op(), "{name}");
            assert_eq!(toy.logits(&loaded), toy.logits(&adapter.frozen()), "{name}");
            let trainable = LoraAdapter::load_trainable(dir.path(), toy.modules()).unwrap();
            assert!(trainable.params().keys().eq(adapter.params().keys()), "{name}");
            for (key, var) in adapter.params() {
                assert_eq!(flat(&trainable.params()[key]), flat(var), "{name}: {key}");
            }
            for again in [saved(&adapter), saved(&loaded), saved(&trainable)] {
                for part in [TENSOR_FILE, "adapter_config.json"] {
                    assert_eq!(file(again.path(), part), file(dir.path(), part), "{name}: {part}");
                }
                assert_eq!(std::fs::read_dir(again.path()).unwrap().count(), 2, "{name}: a left-over file");
            }
        }
    }
}

#[test]
fn saving_replaces_what_was_there() {
    let (toy, adapter) = lora();
    let dir = saved(&adapter);
    for var in adapter.params().values() {
        shift(var, 3, 0.2);
    }
    adapter.save(dir.path()).unwrap();
    let loaded = LoraAdapter::load(dir.path(), toy.modules()).unwrap();
    assert_eq!(toy.logits(&loaded), toy.logits(&adapter.frozen()));
    let error = adapter.save(&dir.path().join(TENSOR_FILE)).unwrap_err().to_string();
    assert!(error.contains(TENSOR_FILE), "{error}");
}

#[test]
fn missing_left_over_misshaped_and_infinite_tensors_are_reported_together() {
    let (toy, adapter) = lora();
    let dir = saved(&adapter);
    rewrite(dir.path(), &adapter, |tensors| {
        let prefix = "base_model.model.model.layers.0";
        tensors.remove(&format!("{prefix}.up_proj.lora_A.weight"));
        tensors.insert(format!("{prefix}.q_proj.lora_A.weight"), tensor(1, &[2, 4]));
        tensors.insert(format!("{prefix}.up_proj.lora_B.weight"), tensor(1, &[7, 2]));
        tensors.insert(format!("{prefix}.down_proj.lora_B.weight"), (tensor(1, &[4, 2]) / 0.0).unwrap());
    });
    let error = load_error(dir.path(), &toy);
    for part in [
        "1 missing: `base_model.model.model.layers.0.up_proj.lora_A.weight`",
        "1 unexpected: `base_model.model.model.layers.0.q_proj.lora_A.weight`",
        "1 mis-shaped: `base_model.model.model.layers.0.up_proj.lora_B.weight` [7, 2] for [6, 2]",
        "1 not finite: `base_model.model.model.layers.0.down_proj.lora_B.weight`",
        "is this the adapter of another base?",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn each_tensor_alone_is_missed_and_each_more_is_found() {
    for (name, config) in configs() {
        let toy = Toy::new(false);
        let adapter = toy.trained(&config);
        let dir = saved(&adapter);
        for key in adapter.tensors().keys() {
            rewrite(dir.path(), &adapter, |tensors| drop(tensors.remove(key)));
            let error = load_error(dir.path(), &toy);
            assert!(error.contains(&format!("1 missing: `{key}`")), "{name}: {error}");
        }
        rewrite(dir.path(), &adapter, |tensors| drop(tensors.insert("more".to_owned(), tensor(1, &[1]))));
        assert!(load_error(dir.path(), &toy).contains("1 unexpected: `more`"), "{name}");
    }
}

#[test]
fn a_long_list_is_cut_and_counted() {
    let (toy, adapter) = lora();
    let dir = saved(&adapter);
    rewrite(dir.path(), &adapter, |tensors| {
        tensors.extend((0..30).map(|i| (format!("x{i:02}"), tensor(1, &[1]))));
    });
    let error = load_error(dir.path(), &toy);
    assert!(
        error.contains("30 unexpected: `x00`") && error.contains("`x09`, …") && !error.contains("x10"),
        "{error}"
    );
}

#[test]
fn the_adapter_of_a_deeper_base_is_recognised() {
    let toy = Toy::new(false);
    let (_, config) = configs().swap_remove(0);
    let adapter = toy.trained(&LoraConfig { base_model_name_or_path: Some("org/deep".to_owned()), ..config });
    let dir = saved(&adapter);
    let more = "base_model.model.model.layers.1.up_proj.lora_A.weight";
    rewrite(dir.path(), &adapter, |tensors| drop(tensors.insert(more.to_owned(), tensor(1, &[2, 4]))));
    let error = load_error(dir.path(), &toy);
    assert!(error.contains(&format!("1 unexpected: `{more}`")), "{error}");
    assert!(error.contains("is this the adapter of another base? it was made for org/deep"), "{error}");
}

#[test]
fn another_rank_is_recognised() {
    let (toy, adapter) = lora();
    let dir = saved(&adapter);
    let config = std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap();
    std::fs::write(dir.path().join("adapter_config.json"), config.replace("\"r\": 2", "\"r\": 3")).unwrap();
    let error = load_error(dir.path(), &toy);
    assert!(error.contains("4 mis-shaped") && error.contains("do `r` and `rank_pattern`"), "{error}");
}

#[test]
fn keys_without_the_prefix_or_with_that_of_compile_are_read() {
    let (toy, adapter) = lora();
    let dir = saved(&adapter);
    for prefix in ["", "base_model.model._orig_mod.", "_orig_mod.base_model.model."] {
        rewrite(dir.path(), &adapter, |tensors| {
            let old = std::mem::take(tensors);
            tensors.extend(old.into_iter().map(|(key, t)| (key.replacen("base_model.model.", prefix, 1), t)));
        });
        let loaded = LoraAdapter::load(dir.path(), toy.modules()).unwrap();
        assert_eq!(toy.logits(&loaded), toy.logits(&adapter.frozen()), "{prefix}");
    }
}

/// PEFT 0.21.2 reads these whole, but with another adapter's name nothing of them.
#[test]
fn the_names_of_a_state_dict_are_read_where_peft_does() {
    let renamed = |key: &str, name: &str| match key.rsplit_once(".lora_") {
        Some((module, "magnitude_vector")) => format!("{module}.lora_magnitude_vector.{name}.weight"),
        Some((module, end)) => match end.split_once('.') {
            Some((kind, rest)) => format!("{module}.lora_{kind}.{name}.{rest}"),
            None => format!("{module}.lora_{end}.{name}"),
        },
        None => key.to_owned(),
    };
    for (name, config) in configs() {
        let toy = Toy::new(false);
        let adapter = toy.trained(&config);
        let dir = saved(&adapter);
        let write = |rename: &dyn Fn(&str) -> String| {
            rewrite(dir.path(), &adapter, |tensors| {
                let old = std::mem::take(tensors);
                tensors.extend(old.into_iter().map(|(key, t)| (rename(&key), t)));
            });
        };
        write(&|key| renamed(key, "default"));
        let loaded = LoraAdapter::load(dir.path(), toy.modules()).unwrap();
        assert_eq!(toy.logits(&loaded), toy.logits(&adapter.frozen()), "{name}");
        write(&|key| key.replace("lora_magnitude_vector", "lora_magnitude_vector.weight"));
        LoraAdapter::load(dir.path(), toy.modules()).unwrap();
        let Some(key) = adapter.tensors().keys().find(|key| key.contains(".lora_")) else { continue };
        write(&|key| renamed(key, "sql"));
        let error = load_error(dir.path(), &toy);
        for words in ["an adapter's name, `sql`, in them", &format!("expected `{key}`"), "save_pretrained"] {
            assert!(error.contains(words), "{name}: {words}: {error}");
        }
        assert!(!error.contains("another base"), "{name}: {error}");
    }
}

#[test]
fn copies_of_the_bases_weights_are_passed_over() {
    let toy = Toy::new(false);
    let adapter = toy.trained(&configs().into_iter().find(|(name, _)| *name == "embedding").unwrap().1);
    let dir = saved(&adapter);
    let copy = |change: f32| {
        let values = toy.embed.weight.to_f32().into_iter().map(|w| w * change).collect();
        Tensor::from_vec(values, (VOCABULARY, DIM), &Device::Cpu).unwrap()
    };
    let key = "base_model.model.model.embed_tokens.base_layer.weight";
    for (change, warned) in [(1.0, 0), (1.001, 1)] {
        rewrite(dir.path(), &adapter, |tensors| drop(tensors.insert(key.to_owned(), copy(change))));
        let loaded = LoraAdapter::load(dir.path(), toy.modules()).unwrap();
        assert_eq!(loaded.warnings().len(), warned);
        assert_eq!(toy.logits(&loaded), toy.logits(&adapter.frozen()));
    }
    rewrite(dir.path(), &adapter, |tensors| drop(tensors.insert(key.to_owned(), copy(1.1))));
    let error = load_error(dir.path(), &toy);
    assert!(error.contains("a base weight that differs from this base's"), "{error}");
}

#[test]
fn inner_names_of_a_module_that_is_saved_as_well_are_passed_over() {
    let toy = Toy::new(false);
    let (_, config) = configs().into_iter().find(|(_, c)| !c.modules_to_save.is_empty()).unwrap();
    let adapter = toy.trained(&config);
    let dir = saved(&adapter);
    let key = adapter.tensors().keys().find(|key| !key.contains("lora_")).unwrap();
    let (module, name) = key.rsplit_once('.').unwrap();
    rewrite(dir.path(), &adapter, |tensors| {
        // The values of these mean nothing.
        tensors.insert(format!("{module}.modules_to_save.{name}"), tensor(1, &[2]));
        tensors.insert(format!("{module}.modules_to_save.default.{name}"), tensor(1, &[2]));
        tensors.insert(format!("{module}.original_module.{name}"), tensor(2, &[2]));
    });
    let loaded = LoraAdapter::load(dir.path(), toy.modules()).unwrap();
    assert_eq!(toy.logits(&loaded), toy.logits(&adapter.frozen()));
    rewrite(dir.path(), &adapter, |tensors| {
        tensors.insert("model.other.original_module.bias".to_owned(), tensor(2, &[2]));
    });
    assert!(load_error(dir.path(), &toy).contains("1 unexpected"));
}

#[test]
fn half_precision_is_widened() {
    let (toy, adapter) = lora();
    let dir = saved(&adapter);
    let mut halves = Vec::new();
    let mut header = serde_json::Map::new();
    for (key, tensor) in adapter.tensors() {
        let start = halves.len();
        halves.extend(flat(tensor).iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()));
        let entry = serde_json::json!({"dtype": "BF16", "shape": tensor.dims(), "data_offsets": [start, halves.len()]});
        header.insert(key.clone(), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &halves].concat();
    std::fs::write(dir.path().join(TENSOR_FILE), bytes).unwrap();
    let loaded = LoraAdapter::load(dir.path(), toy.modules()).unwrap();
    for (key, tensor) in adapter.tensors() {
        let rounded: Vec<f32> = flat(tensor).iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
        assert_eq!(flat(&loaded.tensors()[key]), rounded);
    }
}

#[test]
fn a_folder_that_is_no_adapter_says_why() {
    let (toy, adapter) = lora();
    let dir = tempfile::tempdir().unwrap();
    assert!(load_error(dir.path(), &toy).contains("holds no adapter_config.json"));
    adapter.save(dir.path()).unwrap();
    std::fs::rename(dir.path().join(TENSOR_FILE), dir.path().join("adapter_model.bin")).unwrap();
    assert!(load_error(dir.path(), &toy).contains("a pickle"));
    let bytes = file(dir.path(), "adapter_model.bin");
    for broken in [&bytes[..4], &bytes[..bytes.len() - 1], b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"] {
        std::fs::write(dir.path().join(TENSOR_FILE), broken).unwrap();
        assert!(load_error(dir.path(), &toy).contains(TENSOR_FILE));
    }
}

#[test]
fn a_loaded_folder_may_name_modules_that_this_base_lacks() {
    let (toy, adapter) = lora();
    let dir = saved(&adapter);
    let path = dir.path().join("adapter_config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, config.replace("\"up_proj\"", "\"up_proj\", \"gate_proj\"")).unwrap();
    let loaded = LoraAdapter::load(dir.path(), toy.modules()).unwrap();
    assert!(
        loaded.warnings()[0].starts_with("target module `gate_proj` matches nothing"),
        "{:?}",
        loaded.warnings()
    );
}

#[test]
fn patterns_mean_the_same_after_a_reload() {
    let toy = Toy::new(false);
    let config = LoraConfig {
        target_modules: Some(list(&["up_proj", "down_proj"])),
        // Sorted, the general key would come first.
        rank_pattern: vec![("up_proj".to_owned(), 3), (".*_proj".to_owned(), 5)],
        ..LoraConfig::default()
    };
    let adapter = toy.trained(&config);
    assert_eq!(adapter.ranks(), [("model.layers.0.down_proj", 5), ("model.layers.0.up_proj", 3)]);
    let loaded = LoraAdapter::load(saved(&adapter).path(), toy.modules()).unwrap();
    assert_eq!(loaded.ranks(), adapter.ranks());
}

#[test]
fn a_tied_folder_holds_the_head_as_pefts_does() {
    let toy = Toy::new(true);
    let config = LoraConfig {
        modules_to_save: strings(&["embed_tokens"]),
        target_modules: Some(list(&["up_proj"])),
        ..LoraConfig::default()
    };
    let adapter = toy.trained(&config);
    let dir = saved(&adapter);
    let names = String::from_utf8_lossy(&file(dir.path(), TENSOR_FILE)).into_owned();
    assert!(names.contains("base_model.model.lm_head.weight") && names.contains("embed_tokens.weight"));
    // Without the field the head is the base's own, as in PEFT.
    let path = dir.path().join("adapter_config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, config.replace("  \"ensure_weight_tying\": true,\n", "")).unwrap();
    rewrite(dir.path(), &adapter, |_| {});
    let loaded = LoraAdapter::load(dir.path(), toy.modules()).unwrap();
    assert!(loaded.warnings()[0].contains("the head keeps the base's weight") && loaded.unties());
    let x = tensor(1, &[2, DIM]);
    assert_eq!(flat(&toy.head.forward(&x, &loaded).unwrap()), flat(&toy.head.forward(&x, &()).unwrap()));
}
