//! Broken models, adapters and flags: each ends with an error that names what is wrong, and nothing is written.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde_json::{Value, json};

use crate::support::{Room, save, taper, tensors};

/// A model, an adapter and rows that are good until a test breaks one of them.
struct Good {
    room: Room,
    model: String,
    adapter: String,
    data: String,
}

const WEIGHTS: &str = "llama-model/model.safetensors";
const ADAPTER: &str = "llama-adapter/adapter_model.safetensors";
const Q: &str = "model.layers.0.self_attn.q_proj.weight";

impl Good {
    fn new() -> Self {
        let room = Room::new();
        let data = room.rows(
            "rows.jsonl",
            &[json!({ "prompt": "a", "completion": "b" }), json!({ "prompt": "c", "completion": "d" })],
        );
        Self { model: room.model("llama"), adapter: room.adapter("llama"), data, room }
    }

    fn eval(&self) -> crate::support::Run {
        taper(&["eval", "--model", &self.model, "--data", &self.data])
    }

    fn eval_adapter(&self) -> crate::support::Run {
        taper(&["eval", "--model", &self.model, "--adapter", &self.adapter, "--data", &self.data])
    }

    fn merge(&self) -> crate::support::Run {
        taper(&[
            "merge",
            "--model",
            &self.model,
            "--adapter",
            &self.adapter,
            "--out",
            &self.room.arg("merged"),
        ])
    }

    fn train(&self, more: &[&str]) -> crate::support::Run {
        let out = self.room.arg("out");
        let flags =
            ["train", "--model", &self.model, "--data", &self.data, "--out", &out, "--max-steps", "2"];
        taper(&[&flags[..], more].concat())
    }

    /// Sets a field of a JSON file.
    fn set(&self, file: &str, field: &str, value: Value) {
        let mut json = self.room.json(file);
        json[field] = value;
        self.room.write(file, json.to_string());
    }

    /// Changes the tensors of a safetensors file.
    fn edit(&self, file: &str, edit: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
        let mut all = tensors(&self.room.path(file));
        edit(&mut all);
        save(&self.room.path(file), &all);
    }

    /// Makes one value of a tensor no number.
    fn break_value(&self, file: &str, name: &str) {
        self.edit(file, |all| {
            let shape = all[name].dims().to_vec();
            let mut values = crate::support::values(&all[name]);
            values[1] = f32::NAN;
            all.insert(
                name.into(),
                Tensor::from_vec(values, shape, &candle_core::Device::Cpu).expect("a tensor"),
            );
        });
    }

    fn nothing_written(&self) {
        assert!(!self.room.path("out").exists() && !self.room.path("merged").exists());
        let names = self.room.names("");
        assert_eq!(names.iter().filter(|name| name.starts_with('.')).count(), 0, "{names:?}");
    }
}

#[test]
fn missing_truncated_and_lying_weight_files() {
    let good = Good::new();
    for (file, run) in [(WEIGHTS, Good::eval as fn(&Good) -> _), (ADAPTER, Good::eval_adapter)] {
        let bytes = good.room.bytes(file);
        let name = file.rsplit('/').next().expect("a name");
        for length in [0, 5, 200, bytes.len() - 4] {
            good.room.write(file, &bytes[..length]);
            run(&good).bad(&[name, "safetensors file"]);
        }
        for header in [bytes.len() as u64 - 7, 1 << 40, u64::MAX] {
            good.room.write(file, [&header.to_le_bytes()[..], &bytes[8..]].concat());
            run(&good).bad(&[name, &header.to_string(), &bytes.len().to_string(), "truncated"]);
        }
        let mut text = bytes.clone();
        text[9] = b'!';
        good.room.write(file, &text);
        run(&good).bad(&[name, "safetensors file"]);
        std::fs::remove_file(good.room.path(file)).expect("removed");
        run(&good).bad(&[name]);
        good.room.write(file, &bytes);
        run(&good).good();
    }
}

#[test]
fn a_missing_shard_is_named() {
    let good = Good::new();
    let index = json!({ "weight_map": { Q: "model-00001-of-00002.safetensors", "lm_head.weight": "model-00002-of-00002.safetensors" } });
    good.room.write("llama-model/model.safetensors.index.json", index.to_string());
    std::fs::rename(good.room.path(WEIGHTS), good.room.path("llama-model/model-00001-of-00002.safetensors"))
        .expect("renamed");
    good.eval().bad(&["model.safetensors.index.json", "model-00002-of-00002.safetensors"]);
}

#[test]
fn tensors_of_wrong_shapes_and_missing_ones_are_named() {
    let good = Good::new();
    good.set("llama-model/config.json", "intermediate_size", json!(96));
    good.eval().bad(&["model.safetensors", "model.layers.0.mlp.", "[80, 32]", "[96, 32]"]);
    good.set("llama-model/config.json", "intermediate_size", json!(80));
    good.edit(WEIGHTS, |all| drop(all.remove(Q)));
    good.eval().bad(&["llama-model", Q]);
    let good = Good::new();
    let a = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight";
    good.edit(ADAPTER, |all| {
        let cut = all[a].narrow(0, 0, 3).and_then(|cut| cut.contiguous()).expect("three rows");
        all.insert(a.into(), cut);
    });
    good.eval_adapter().bad(&["adapter_model.safetensors", a, "[3, 32]", "[4, 32]", "`r`"]);
    good.edit(ADAPTER, |all| {
        let tensor = all.remove(a).expect("a tensor");
        all.insert("base_model.model.model.layers.9.self_attn.v_proj.lora_A.weight".into(), tensor);
    });
    good.merge().bad(&["1 missing", a, "1 unexpected", "layers.9", "another base"]);
    good.nothing_written();
}

#[test]
fn values_that_are_no_numbers_are_found() {
    let good = Good::new();
    let b = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
    let bytes = good.room.bytes(ADAPTER);
    good.break_value(ADAPTER, b);
    good.eval_adapter().bad(&["adapter_model.safetensors", "not finite", b]);
    good.train(&["--init-adapter", &good.adapter]).bad(&["adapter_model.safetensors", "not finite", b]);
    good.room.write(ADAPTER, bytes);
    good.break_value(WEIGHTS, Q);
    good.merge().bad(&["model.safetensors", Q, "NaN"]);
    good.nothing_written();
    good.eval().bad(&["loss is NaN"]);
    good.train(&[]).bad(&["step 1", "NaN"]);
    assert!(!good.room.path("out/adapter_model.safetensors").exists());
    let found = taper(&["inspect", &good.model, "--json"]).problems();
    assert!(found["problems"].to_string().contains(Q), "{}", found["problems"]);
}

#[test]
fn the_adapter_of_another_base_is_refused() {
    let good = Good::new();
    for (case, word) in [("llama-head-dim", "mis-shaped"), ("llama-patterns", "unexpected")] {
        let other = good.room.adapter(case);
        let run = taper(&["eval", "--model", &good.model, "--adapter", &other, "--data", &good.data]);
        run.bad(&["adapter_model.safetensors", word]);
    }
    taper(&["eval", "--model", &good.model, "--adapter", &good.model, "--data", &good.data])
        .bad(&["llama-model", "--model"]);
    taper(&["eval", "--model", &good.adapter, "--data", &good.data]).bad(&["llama-adapter", "--adapter"]);
    taper(&["eval", "--model", &good.room.arg("none"), "--data", &good.data])
        .bad(&["none", "no such folder"]);
}

#[test]
fn a_target_that_matches_nothing_lists_what_there_is() {
    let good = Good::new();
    let run = good.train(&["--target-modules", "q_porj,v_proj"]);
    run.bad(&["q_porj", "q_proj"]);
    good.train(&["--target-modules", "attn.c_attn"]).bad(&["attn.c_attn", "q_proj", "down_proj"]);
    good.train(&["--target-modules", ".*("]).bad(&[".*("]);
    good.nothing_written();
}

#[test]
fn configurations_that_cannot_be_honoured_are_refused_by_name() {
    let good = Good::new();
    let config = "llama-model/config.json";
    let whole = good.room.read(config);
    let cases: [(&str, Value, &[&str]); 7] = [
        ("model_type", json!("mamba"), &["`mamba`", "llama", "qwen3"]),
        ("rope_parameters", json!({ "rope_type": "spiral", "rope_theta": 1e4 }), &["`spiral`", "yarn"]),
        ("rope_parameters", json!({ "rope_type": "linear", "rope_theta": 1e4 }), &["linear", "factor"]),
        (
            "quantization_config",
            json!({ "quant_method": "gptq" }),
            &["quantization_config", "full-precision"],
        ),
        ("hidden_act", json!("relu2"), &["hidden_act", "relu2"]),
        ("num_hidden_layers", json!(-2), &["num_hidden_layers", "-2"]),
        ("num_hidden_layers", json!(3), &["model.layers.2."]),
    ];
    for (field, value, words) in cases {
        good.set(config, field, value);
        good.eval().bad(words);
        good.room.write(config, &whole);
    }
    good.room.write(config, "{\n  \"model_type\": llama\n}");
    good.eval().bad(&["config.json", "line 2"]);
    good.room.write(config, &whole);
    std::fs::remove_file(good.room.path("llama-model/tokenizer.json")).expect("removed");
    good.eval().bad(&["llama-model", "tokenizer.json"]);
}

#[test]
fn adapter_configurations_that_cannot_be_honoured_are_refused_by_name() {
    let good = Good::new();
    let config = "llama-adapter/adapter_config.json";
    let whole = good.room.read(config);
    let cases: [(&str, Value, &[&str]); 6] = [
        ("peft_type", json!("LOHA"), &["LOHA", "LORA"]),
        ("target_parameters", json!(["experts.w"]), &["target_parameters"]),
        ("layer_replication", json!([[0, 2]]), &["layer_replication"]),
        ("use_qalora", json!(true), &["use_qalora"]),
        ("r", json!("four"), &["`r`"]),
        ("use_dora", json!(true), &["missing", "lora_magnitude_vector"]),
    ];
    for (field, value, words) in cases {
        good.set(config, field, value);
        good.eval_adapter().bad(words);
        good.room.write(config, &whole);
    }
    good.set(config, "a_field_of_tomorrow", json!(1));
    let run = good.eval_adapter().good();
    assert!(run.err.contains("a_field_of_tomorrow"), "{}", run.err);
    std::fs::remove_file(good.room.path(config)).expect("removed");
    good.eval_adapter().bad(&["llama-adapter", "adapter_config.json"]);
}

#[test]
fn pickled_weights_are_refused_with_a_way_out() {
    let good = Good::new();
    std::fs::rename(good.room.path(WEIGHTS), good.room.path("llama-model/pytorch_model.bin"))
        .expect("renamed");
    good.eval().bad(&["llama-model", "safetensors", ".bin"]);
    let good = Good::new();
    std::fs::rename(good.room.path(ADAPTER), good.room.path("llama-adapter/adapter_model.bin"))
        .expect("renamed");
    good.eval_adapter().bad(&["adapter_model.bin", "pickle", "safe_serialization"]);
    let found = taper(&["inspect", &good.adapter, "--json"]).problems();
    assert!(found["problems"].to_string().contains("adapter_model.bin"), "{found}");
}

#[test]
fn wrong_usage_ends_with_two() {
    let good = Good::new();
    let wrong: [&[&str]; 9] = [
        &[],
        &["fly"],
        &["eval", "--data", &good.data],
        &["eval", "--model", &good.model, "--data", &good.data, "--colour", "red"],
        &["train", "--rank", "many", "--data", &good.data],
        &["train", "--data", &good.data, "--resume", "--force"],
        &["merge", "--model", &good.model, "--out", "x"],
        &["generate", "--model", &good.model, "--prompt", "a", "--prompt-file", "b"],
        &["data", "check"],
    ];
    for flags in wrong {
        let run = taper(flags);
        assert!(run.code == Some(2) && run.out.is_empty() && !run.err.is_empty(), "{flags:?}: {run:?}");
    }
    assert!(taper(&["train", "--rnak", "4"]).err.contains("--rank"), "the nearest flag");
    for flags in [&["--help"][..], &["--version"], &["train", "--help"]] {
        assert!(taper(flags).good().out.contains("taper"), "{flags:?}");
    }
}
