//! `taper merge` through the binary: the merged model by itself is the base with its adapters.

use candle_core::DType;
use serde_json::{Value, json};

use crate::program_train::colours;
use crate::support::{LOGITS, Room, assert_close, fixtures, keys, save, taper, tensors, values};

fn loss(flags: &[&str]) -> f64 {
    taper(&[&["eval", "--json"], flags].concat()).json()["loss"].as_f64().expect("a loss")
}

/// f32 products in another order: the low-rank term by itself, or within the weight.
const LOSS: f64 = 1e-5;

#[test]
fn a_merged_model_evaluates_as_base_and_adapter() {
    let room = Room::new();
    let data = colours(&room);
    for case in ["llama-all-linear", "llama-dora", "llama-embedding", "llama-modules-to-save", "qwen2"] {
        let (model, adapter, out) =
            (room.model(case), room.adapter(case), room.arg(&format!("{case}-merged")));
        let run = taper(&["merge", "--model", &model, "--adapter", &adapter, "--out", &out]).good();
        for words in [&out, "tensors changed", "differ by at most", "likeliest tokens agree"] {
            assert!(run.out.contains(words), "`{words}` is not in: {}", run.out);
        }
        let adapted = loss(&["--model", &model, "--adapter", &adapter, "--data", &data]);
        let merged = loss(&["--model", &out, "--data", &data]);
        assert!((merged - adapted).abs() < LOSS * adapted, "{case}: {merged} merged, {adapted} adapted");
        assert!(
            (merged - loss(&["--model", &model, "--data", &data])).abs() > 1e-3,
            "{case}: the adapter does something"
        );
        let mut files = room.names(&format!("{case}-merged"));
        files.retain(|file| !file.starts_with('.'));
        assert_eq!(files, room.names(&format!("{case}-model")), "{case}");
        assert_eq!(
            room.names("").iter().filter(|name| name.starts_with('.')).count(),
            0,
            "nothing half-made is left"
        );
    }
}

#[test]
fn merge_prints_one_object_and_leaves_the_base_alone() {
    let room = Room::new();
    let (model, adapter, out) = (room.model("llama"), room.adapter("llama"), room.arg("merged"));
    let before = room.bytes("llama-model/model.safetensors");
    let found = taper(&["merge", "--model", &model, "--adapter", &adapter, "--out", &out, "--json"]).json();
    for key in ["out", "bytes", "tensors", "changed", "untied", "seconds", "verification"] {
        assert!(keys(&found).contains(&key), "no {key} in {found}");
    }
    let changed: Vec<&str> =
        found["changed"].as_array().expect("names").iter().filter_map(Value::as_str).collect();
    let name = |layer: u8, module: &str| format!("model.layers.{layer}.self_attn.{module}.weight");
    assert_eq!(changed, [name(0, "q_proj"), name(0, "v_proj"), name(1, "q_proj"), name(1, "v_proj")]);
    let check = &found["verification"];
    assert!(
        check["max_logit_difference"].as_f64() < Some(1e-3) && check["argmax_agree"] == check["tokens"],
        "{check}"
    );
    assert_eq!(before, room.bytes("llama-model/model.safetensors"));
    let merged = room.bytes("merged/model.safetensors");
    assert_eq!(before.len(), merged.len(), "nothing is added");
    assert_eq!(room.read("merged/config.json"), room.read("llama-model/config.json"));
    let bare = taper(&[
        "merge",
        "--model",
        &model,
        "--adapter",
        &adapter,
        "--out",
        &room.arg("b"),
        "--json",
        "--no-verify",
    ])
    .json();
    assert!(bare["verification"].is_null(), "{bare}");
    assert_eq!(merged, room.bytes("b/model.safetensors"), "the same bytes each time");
}

#[test]
fn several_adapters_merge_with_their_weights() {
    let room = Room::new();
    let (model, out) = (room.model("llama"), room.arg("merged"));
    let (a, b) = (room.adapter("llama"), room.adapter("llama-all-linear"));
    let flags = ["merge", "--model", &model, "--adapter", &a, "--adapter", &b, "--out", &out];
    taper(&[&flags[..], &["--weight", "0.5"]].concat()).bad(&["1 weights for 2 adapters", "--weight"]);
    taper(&[&flags[..], &["--weight", "0.5", "--weight", "-0.25"]].concat()).good();
    let alone = |path: &str, name: &str| {
        taper(&["merge", "--model", &model, "--adapter", path, "--out", &room.arg(name)]).good();
        tensors(&room.path(&format!("{name}/model.safetensors")))
    };
    let (one, two) = (alone(&a, "one"), alone(&b, "two"));
    let base = tensors(&room.path("llama-model/model.safetensors"));
    for (name, found) in tensors(&room.path("merged/model.safetensors")) {
        let [w, x, y] = [&base, &one, &two].map(|tensors| values(&tensors[&name]));
        let sum = |i: usize| w[i] + 0.5 * (x[i] - w[i]) - 0.25 * (y[i] - w[i]);
        let expected: Vec<f32> = (0..w.len()).map(sum).collect();
        assert_close(&name, &values(&found), &expected, LOGITS);
    }
}

#[test]
fn an_existing_folder_is_kept_unless_forced() {
    let room = Room::new();
    let (model, adapter) = (room.model("llama"), room.adapter("llama"));
    let kept = room.write("merged/notes.txt", "mine");
    let out = room.arg("merged");
    let flags = ["merge", "--model", &model, "--adapter", &adapter, "--out", &out];
    taper(&flags).bad(&["merged", "exists", "--force"]);
    assert_eq!(room.names("merged"), ["notes.txt"]);
    let forced = [&flags[..], &["--force"]].concat();
    taper(&forced).bad(&["merged", "no model", "--force"]);
    assert_eq!(room.names("merged"), ["notes.txt"]);
    std::fs::remove_file(kept).expect("removed");
    taper(&forced).good();
    let old = room.write("merged/old.json", "{}");
    taper(&forced).good();
    assert!(!std::path::Path::new(&old).exists() && room.path("merged/model.safetensors").exists());
    let into = ["merge", "--model", &model, "--adapter", &adapter, "--out", &model, "--force"];
    let before = room.bytes("llama-model/model.safetensors");
    taper(&into).bad(&["llama-model"]);
    assert_eq!(before, room.bytes("llama-model/model.safetensors"));
}

/// What is read may not be replaced: an adapter's folder would be gone with the files that it was merged from.
#[test]
fn an_adapters_folder_is_never_the_output() {
    let room = Room::new();
    let model = room.model("llama");
    let adapter = room.copy(&fixtures().join("oracle/llama/adapter"), "par/ad");
    for out in ["par", "par/ad"] {
        let out = room.arg(out);
        taper(&["merge", "--model", &model, "--adapter", &adapter, "--out", &out, "--force"])
            .bad(&["par/ad", "which is being merged"]);
    }
    assert!(room.path("par/ad/adapter_model.safetensors").exists());
}

#[test]
fn help_offers_no_base_that_is_refused() {
    let help = taper(&["merge", "--help"]).good().out;
    assert!(help.contains("org/name@revision") && !help.contains("gguf"), "{help}");
    assert!(taper(&["quantize", "--help"]).good().out.contains("no whole blocks"));
}

/// 1e30 of an adapter is finite in every weight, and in no logit; or what it makes infinite is divided by its length.
#[test]
fn a_merge_that_makes_no_numbers_is_not_put_in_place() {
    for (case, wrong) in [("llama-all-linear", "infinite or not numbers"), ("llama", "all 0")] {
        let room = Room::new();
        let (model, adapter, out) = (room.model("llama"), room.adapter(case), room.arg("merged"));
        let flags = ["merge", "--model", &model, "--adapter", &adapter, "--out", &out, "--weight", "1e30"];
        taper(&flags).bad(&[wrong, "--weight", "nothing was written"]);
        assert_eq!(room.names(""), [format!("{case}-adapter"), "llama-model".to_owned()]);
        taper(&[&flags[..], &["--no-verify"]].concat()).good();
    }
}

#[test]
fn sharded_models_in_half_precision_stay_so() {
    let room = Room::new();
    let model = room.model("llama-all-linear");
    let all = tensors(&room.path("llama-all-linear-model/model.safetensors"));
    let mut index = serde_json::Map::new();
    for (file, second) in
        [("model-00001-of-00002.safetensors", false), ("model-00002-of-00002.safetensors", true)]
    {
        let of_file = all.iter().filter(|(name, _)| name.contains("layers.1") == second);
        let part = of_file
            .map(|(name, tensor)| (name.clone(), tensor.to_dtype(DType::BF16).expect("bf16")))
            .collect();
        save(&room.path(&format!("llama-all-linear-model/{file}")), &part);
        index.extend(part.into_keys().map(|name| (name, json!(file))));
    }
    std::fs::remove_file(room.path("llama-all-linear-model/model.safetensors")).expect("removed");
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": index });
    room.write("llama-all-linear-model/model.safetensors.index.json", index.to_string());
    let (adapter, data, out) = (room.adapter("llama-all-linear"), colours(&room), room.arg("merged"));
    taper(&["merge", "--model", &model, "--adapter", &adapter, "--out", &out]).good();
    assert_eq!(room.names("merged"), room.names("llama-all-linear-model"));
    let merged = tensors(&room.path("merged/model-00002-of-00002.safetensors"));
    assert!(merged.values().all(|tensor| tensor.dtype() == DType::BF16));
    let adapted = loss(&["--model", &model, "--adapter", &adapter, "--data", &data]);
    let merged = loss(&["--model", &out, "--data", &data]);
    // Each weight is rounded to 8 bits once.
    assert!((merged - adapted).abs() < 0.02 * adapted, "{merged} merged, {adapted} adapted");
}
