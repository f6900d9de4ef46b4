//! GGUF files as bases: written by `taper quantize`, read by every command that takes a model.

use serde_json::json;

use crate::support::{Room, shared, taper, text};

/// The same weights, the same sums in another order: q and k rows of a `llama` are stored in pairs.
const LOSS: f64 = 1e-6;

fn rows(room: &Room) -> String {
    room.rows(
        "rows.jsonl",
        &[json!({ "text": "one good turn" }), json!({ "text": "deserves another, 12 times" })],
    )
}

fn quantize(room: &Room, model: &str, to: &str) -> String {
    let out = room.arg(&format!("{to}.gguf"));
    taper(&["quantize", "--model", model, "--out", &out, "--type", to, "--force"]).good();
    out
}

fn loss(model: &str, more: &[&str]) -> f64 {
    let found = taper(&[&["eval", "--model", model, "--json"], more].concat()).good().json();
    found["loss"].as_f64().expect("a loss")
}

#[test]
fn a_file_in_f32_is_the_folder() {
    for case in ["llama", "llama-head-dim", "llama-rope-scaled", "qwen2", "qwen3"] {
        let room = Room::new();
        let (model, data) = (room.model(case), rows(&room));
        let file = quantize(&room, &model, "f32");
        let [folder, found] = [&model, &file].map(|model| loss(model, &["--data", &data]));
        assert!((folder - found).abs() <= LOSS * folder, "{case}: {found} for {folder}");
        // The template and the ids of special tokens come along.
        let args = |model: &str| {
            let show = ["data", "show", "--model", model, "--data", &data, "--json"].map(str::to_owned);
            taper(&show.each_ref().map(String::as_str)).good().out
        };
        assert_eq!(args(&model), args(&file), "{case}");
    }
}

/// An adapter that PyTorch trained on the folder does the same on the file: its modules have the same names, its rows the
/// same order.
#[test]
fn adapters_match_by_the_same_names() {
    let room = Room::new();
    let (model, adapter, data) =
        (room.model("llama-all-linear"), room.adapter("llama-all-linear"), rows(&room));
    let file = quantize(&room, &model, "f32");
    let with = |model: &str| loss(model, &["--data", &data, "--adapter", &adapter]);
    let (folder, found) = (with(&model), with(&file));
    assert!((folder - found).abs() <= LOSS * folder, "{found} for {folder}");
    assert!((folder - loss(&model, &["--data", &data])).abs() > 1e-3, "the adapter does nothing");
}

/// Long enough that single tokens which the model is sure of do not decide.
const STORY: &str = "Tom and his sister went to the lake with a red boat. The wind was strong, and the boat went far \
    away. Tom was sad, but a big dog swam out and brought it back. They gave the dog a bone and all went home together. \
    Mother asked them where they had been, and they told her of the lake, the wind and the good dog.";

#[test]
fn fewer_bits_lose_little_of_a_real_model() {
    let Some(models) = shared("models") else { return };
    let room = Room::new();
    let model = text(&models.join("babyllama-tok105"));
    let data = room.rows("story.jsonl", &[json!({ "text": STORY })]);
    let full = loss(&model, &["--data", &data]);
    for (to, allowed) in [("bf16", 0.002), ("q8_0", 0.005)] {
        let found = loss(&quantize(&room, &model, to), &["--data", &data]);
        assert!((full - found).abs() <= allowed * full, "{to}: {found} for {full}");
    }
}

#[test]
fn an_adapter_is_trained_on_a_file_and_not_merged_into_it() {
    let room = Room::new();
    let (model, data) = (room.model("llama"), rows(&room));
    let file = quantize(&room, &model, "q8_0");
    let adapter = room.arg("adapter");
    let flags = ["--data", &data, "--out", &adapter, "--max-steps", "3", "--rank", "4", "--lr", "0.01"];
    taper(&[&["train", "--model", &file], &flags[..]].concat()).good();
    let on = |model: &str| loss(model, &["--data", &data, "--adapter", &adapter]);
    assert!(on(&file) < loss(&file, &["--data", &data]));
    // The folder's adapter as well.
    assert!((on(&file) - on(&model)).abs() < 0.05);
    let out = room.arg("merged");
    let merge = ["merge", "--model", &file, "--adapter", &adapter, "--out", &out];
    taper(&merge).bad(&["q8_0.gguf", "full-precision"]);
    assert!(!room.path("merged").exists());
    let found = taper(&["inspect", &file, "--json"]).good().json();
    assert_eq!(found["problems"], json!([]));
    assert!(found["model"]["values_by_dtype"]["Q8_0"].as_u64() > Some(0), "{found}");
}

#[test]
fn nothing_is_overwritten_or_written_in_part() {
    let room = Room::new();
    let model = room.model("llama");
    let file = quantize(&room, &model, "f16");
    let again = ["quantize", "--model", &model, "--out", &file, "--type", "f16"];
    taper(&again).bad(&["f16.gguf", "--force"]);
    // Only a GGUF file is replaced, and never the one that is read.
    let other = room.write("thesis.gguf", "mine");
    let forced = |model: &str, out: &str| {
        taper(&["quantize", "--model", model, "--out", out, "--type", "f16", "--force"])
    };
    forced(&model, &other).bad(&["thesis.gguf", "does not begin as a GGUF file"]);
    assert_eq!(room.read("thesis.gguf"), "mine");
    forced(&file, &file).bad(&["f16.gguf", "is the model that is read"]);
    std::fs::create_dir(room.path("folder.gguf")).expect("a folder");
    let run = forced(&model, &room.arg("folder.gguf")).bad(&["is a folder", "model.gguf"]);
    assert!(!run.err.contains("--force"), "{}", run.err);
    let elsewhere = room.arg("model.bin");
    taper(&["quantize", "--model", &model, "--out", &elsewhere]).bad(&["model.bin", ".gguf"]);
    // A Mistral's windows and a SmolLM3 that rotates other layers are not what llama.cpp would compute.
    for (case, what) in [("mistral", "sliding windows"), ("smollm3", "every fourth")] {
        let model = room.model(case);
        taper(&["quantize", "--model", &model, "--out", &room.arg("x.gguf")]).bad(&[case, what]);
    }
    assert!(!room.path("x.gguf").exists());
}

#[test]
fn a_scaled_rope_in_a_file_is_the_folders() {
    for rope in [
        json!({ "rope_type": "yarn", "original_max_position_embeddings": 32, "beta_fast": 16.0, "rope_theta": 500.0 }),
        json!({ "rope_type": "yarn", "factor": 4.0, "attention_factor": 1.138_629_4, "rope_theta": 500.0 }),
        json!({ "rope_type": "linear", "factor": 4.0, "rope_theta": 500.0 }),
    ] {
        let room = Room::new();
        let (model, data) = (room.model("llama"), rows(&room));
        let mut config = room.json("llama-model/config.json");
        let plain = loss(&model, &["--data", &data]);
        config["rope_parameters"] = rope.clone();
        room.write("llama-model/config.json", config.to_string());
        let file = quantize(&room, &model, "f32");
        let [folder, found] = [&model, &file].map(|model| loss(model, &["--data", &data]));
        assert!((folder - found).abs() <= LOSS * folder, "{rope}: {found} for {folder}");
        assert!((folder - plain).abs() > 1e-4, "{rope} changes nothing");
    }
}

/// What taper and llama.cpp would compute otherwise from a file than from the folder.
#[test]
fn what_a_file_cannot_say_is_refused_by_name() {
    for (field, value) in [
        ("rope_parameters", json!({ "rope_type": "default", "partial_rotary_factor": 0.5 })),
        ("rope_parameters", json!({ "rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5 })),
        ("hidden_act", json!("gelu")),
    ] {
        let room = Room::new();
        let model = room.model("llama");
        let mut config = room.json("llama-model/config.json");
        config[field] = value.clone();
        room.write("llama-model/config.json", config.to_string());
        let name = ["partial_rotary_factor", "attention_factor", "hidden_act"]
            .into_iter()
            .find(|name| *name == field || !value[name].is_null())
            .expect("a field");
        taper(&["quantize", "--model", &model, "--out", &room.arg("x.gguf")]).bad(&["llama-model", name]);
        assert!(!room.path("x.gguf").exists());
    }
}

#[test]
fn rows_that_are_no_whole_blocks_are_told() {
    let room = Room::new();
    let model = room.model("llama");
    let write = |to: &str| {
        taper(&["quantize", "--model", &model, "--out", &room.arg(&format!("{to}.gguf")), "--type", to])
            .good()
    };
    let run = write("q4_k");
    for words in ["warning", "not stored as Q4_K", "256", "rows of 32, 80"] {
        assert!(run.err.contains(words), "`{words}` is not in: {}", run.err);
    }
    let run = write("q8_0");
    assert!(run.err.contains("rows of 80 are"), "{}", run.err);
    assert_eq!(write("f16").err, "");
}
