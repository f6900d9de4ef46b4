//! The small trained models of `../shared/models`: transformers' losses, logits and greedy texts, and an adapter that helps.

use std::path::PathBuf;

use serde_json::{Value, json};
use taper_base::Batch;

use crate::support::{Room, Tolerance, assert_close, open, shared, taper, text, values};

/// A model's folder and what transformers computes with it; none where the models are not there.
fn reference(name: &str) -> Option<(PathBuf, Value)> {
    let dir = shared(&format!("models/{name}"))?;
    let json = std::fs::read_to_string(dir.join("reference.json")).expect("reference.json");
    Some((dir, serde_json::from_str(&json).expect("JSON")))
}

fn stories() -> Option<Vec<Value>> {
    let text = std::fs::read_to_string(shared("data/text/tinystories_excerpt.txt")?).expect("stories");
    Some(
        text.split("<|endoftext|>")
            .map(str::trim)
            .filter(|story| !story.is_empty())
            .map(|s| json!({ "text": s }))
            .collect(),
    )
}

/// The mean loss over five stories; the reference gives five decimals.
fn losses(name: &str) {
    let (Some((dir, reference)), Some(stories)) = (reference(name), stories()) else { return };
    let room = Room::new();
    let (model, data) = (text(&dir), room.rows("stories.jsonl", &stories));
    let config: Value =
        serde_json::from_slice(&std::fs::read(dir.join("config.json")).expect("config")).expect("JSON");
    let length = config["max_position_embeddings"].to_string();
    let eval = taper(&["eval", "--model", &model, "--data", &data, "--max-length", &length, "--json"]).json();
    let expected = &reference["tinystories_excerpt"];
    assert_eq!((&eval["examples"], &eval["tokens"]), (&expected["stories"], &expected["tokens"]));
    let [found, expected] =
        [&eval["loss"], &expected["mean_nll_per_token"]].map(|loss| loss.as_f64().expect("a loss"));
    assert!((found - expected).abs() < 1.5e-5 * expected.max(1.0), "{found}, transformers has {expected}");
}

fn greedy_texts(name: &str) {
    let Some((dir, reference)) = reference(name) else { return };
    let model = text(&dir);
    for case in reference["greedy"].as_array().expect("cases") {
        let count = |key: &str| case[key].as_array().expect("ids").len();
        let new = count("output_ids") - count("prompt_ids");
        let prompt = case["prompt"].as_str().expect("a prompt");
        let flags =
            ["generate", "--model", &model, "--prompt", prompt, "--max-tokens", &new.to_string(), "--json"];
        let found = taper(&flags).json();
        let answer = &found["prompts"][0]["answers"][0];
        let whole = format!("{prompt}{}", answer["text"].as_str().expect("a text"));
        let expected = case["output_text"].as_str().expect("a text");
        assert_eq!(whole, expected.trim_start_matches("<|start_story|> ").trim_start_matches("<s> "));
        assert_eq!(answer["tokens"], json!(new));
    }
}

fn logits(name: &str) {
    let Some((dir, reference)) = reference(name) else { return };
    let base = open(&dir);
    for case in reference["greedy"].as_array().expect("cases") {
        let prompt: Vec<u32> = case["prompt_ids"]
            .as_array()
            .expect("ids")
            .iter()
            .filter_map(Value::as_u64)
            .map(|id| id as u32)
            .collect();
        assert_eq!(base.tokenizer.encode(case["prompt"].as_str().expect("a prompt")).expect("ids"), prompt);
        let hidden = base.model.hidden(&Batch::new([&prompt]), &mut [], &()).expect("hidden states");
        let last = hidden.narrow(0, prompt.len() - 1, 1).and_then(|last| last.contiguous()).expect("a row");
        let logits = values(&base.model.head().forward(&last, &()).expect("logits"));
        let expected =
            case["last_logits_first8"].as_array().expect("logits").iter().filter_map(Value::as_f64);
        let expected: Vec<f32> = expected.map(|logit| logit as f32).collect();
        // Five decimals are given.
        assert_close(name, &logits[..8], &expected, Tolerance { relative: 2e-5, absolute: 3e-5 });
    }
}

macro_rules! models {
    ($($module:ident: $name:literal;)*) => {$(
        mod $module {
            #[test]
            fn loss_is_that_of_transformers() {
                super::losses($name);
            }

            #[test]
            fn greedy_texts_are_those_of_transformers() {
                super::greedy_texts($name);
            }

            #[test]
            fn logits_are_those_of_transformers() {
                super::logits($name);
            }
        }
    )*};
}

models! {
    stories260k: "stories260K";
    tinystories_656k: "TinyStories-656K";
    babyllama_tok105: "babyllama-tok105";
}

#[test]
fn an_adapter_trained_on_fairy_tales_lowers_the_held_out_loss() {
    let (Some(model), Some(tales)) =
        (shared("models/stories260K"), shared("data/text/grimms_fairy_tales.txt"))
    else {
        return;
    };
    let tales = std::fs::read_to_string(tales).expect("tales");
    let long = tales.split("\n\n").map(str::trim).filter(|text| (200..900).contains(&text.len()));
    let rows: Vec<Value> = long.map(|text| json!({ "text": text.replace('\n', " ") })).take(140).collect();
    let room = Room::new();
    room.rows("data/train.jsonl", &rows[..120]);
    let held_out = room.rows("data/test.jsonl", &rows[120..]);
    let (model, data, out) = (text(&model), room.arg("data"), room.arg("out"));
    let flags = [
        "train",
        "--model",
        &model,
        "--data",
        &data,
        "--out",
        &out,
        "--max-length",
        "256",
        "--max-steps",
        "25",
    ];
    taper(&[&flags[..], &["--lr", "0.005", "--rank", "8"]].concat()).good();
    let loss = |more: &[&str]| {
        let flags = ["eval", "--model", &model, "--data", &held_out, "--max-length", "256", "--json"];
        taper(&[&flags[..], more].concat()).json()["loss"].as_f64().expect("a loss")
    };
    let (before, after) = (loss(&[]), loss(&["--adapter", &out]));
    println!("held-out loss {before} to {after}");
    assert!(after < 0.9 * before, "{before} to {after}");
}
