//! A run that was interrupted or killed, resumed: the same bytes as one that was not.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::program_train::colours;
use crate::support::{Room, end, start, taper, wait_until};

/// Long enough to be caught in the middle, with everything in it that has a state: moments, an order of rows, dropout, changed rows,
/// the schedule, evaluations.
const FLAGS: [&str; 20] = [
    "--rank",
    "4",
    "--lr",
    "0.01",
    "--batch-size",
    "3",
    "--dropout",
    "0.1",
    "--augment",
    "token_dropout=0.1",
    "--schedule",
    "cosine",
    "--warmup-ratio",
    "0.1",
    "--max-steps",
    "400",
    "--eval-every",
    "150",
    "--save-every",
    "20",
];

fn flags<'a>(model: &'a str, data: &'a str, out: &'a str) -> Vec<&'a str> {
    [&["train", "--model", model, "--data", data, "--out", out][..], &FLAGS].concat()
}

/// Rows of `metrics.jsonl` but for what the clock says.
fn metrics(room: &Room, out: &str) -> Vec<Value> {
    let rows = room.read(&format!("{out}/metrics.jsonl"));
    let rows = rows.lines().map(|line| {
        let mut row: Value = serde_json::from_str(line).expect("a JSON row");
        let fields = row.as_object_mut().expect("an object");
        fields.retain(|field, _| !["seconds", "tokens_per_s", "peak_rss_bytes"].contains(&field.as_str()));
        row
    });
    rows.collect()
}

fn steps_made(metrics: &Path) -> usize {
    std::fs::read_to_string(metrics).map_or(0, |text| text.matches("\"event\":\"step\"").count())
}

fn signal(name: &str, id: u32) {
    let status = Command::new("kill").args([name, &id.to_string()]).status().expect("kill");
    assert!(status.success(), "kill {name} {id}");
}

fn assert_same_run(room: &Room, one: &str, other: &str) {
    for file in ["adapter_model.safetensors", "adapter_config.json", "eval.json", "recipe.toml"] {
        assert_eq!(room.bytes(&format!("{one}/{file}")), room.bytes(&format!("{other}/{file}")), "{file}");
    }
    let (one, other) = (metrics(room, one), metrics(room, other));
    for (one, other) in one.iter().zip(&other) {
        assert_eq!(one, other);
    }
    assert_eq!(one.len(), other.len());
}

#[test]
fn trap_t16_interrupted_and_killed_runs_resume_to_the_bytes_of_an_unbroken_one() {
    let room = Room::new();
    let (model, data) = (room.model("llama-dora"), colours(&room));
    let [whole, broken] = ["whole", "broken"].map(|out| room.arg(out));
    taper(&flags(&model, &data, &whole)).good();
    let log = room.path("broken/metrics.jsonl");
    let mut resumed = flags(&model, &data, &broken);

    let child = start(&resumed);
    wait_until("a few steps", || steps_made(&log) >= 7);
    signal("-INT", child.id());
    let run = end(child);
    assert!(run.err.contains("--resume"), "{run:?}");
    let stopped = steps_made(&log);
    assert!((7..400).contains(&stopped), "stopped after {stopped} steps");
    assert!(!room.path("broken/adapter_model.safetensors").exists(), "an unfinished run has no adapter");
    taper(&resumed).bad(&["broken", "--resume", "--force"]);
    assert_eq!(steps_made(&log), stopped, "the refused command changes nothing");

    resumed.push("--resume");
    let child = start(&resumed);
    wait_until("a checkpoint", || steps_made(&log) >= stopped + 31);
    signal("-KILL", child.id());
    assert_eq!(end(child).code, None, "killed");
    for checkpoint in room.names("broken/checkpoints").iter().filter(|name| name.starts_with("step-")) {
        let files = room.names(&format!("broken/checkpoints/{checkpoint}"));
        let whole =
            ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "state.json"];
        assert!(whole.iter().all(|file| files.iter().any(|found| found == file)), "{checkpoint}: {files:?}");
        let path = room.arg(&format!("broken/checkpoints/{checkpoint}"));
        taper(&["eval", "--model", &model, "--data", &data, "--adapter", &path]).good();
    }

    let run = taper(&resumed).good();
    assert!(run.err.contains("resuming"), "{}", run.err);
    assert_same_run(&room, "whole", "broken");
    let left = room.names("broken").into_iter().chain(room.names("broken/checkpoints"));
    assert_eq!(left.filter(|name| name.starts_with('.')).count(), 0, "temporary files are removed");
}

#[test]
fn a_run_resumes_only_as_it_began() {
    let room = Room::new();
    let (model, data, out) = (room.model("llama"), colours(&room), room.arg("out"));
    let mut begun = flags(&model, &data, &out);
    let child = start(&begun);
    wait_until("a checkpoint", || room.path("out/checkpoints/step-20/state.json").exists());
    signal("-INT", child.id());
    end(child);
    let before = room.names("out/checkpoints");
    begun.extend(["--resume", "--lr", "0.5"]);
    // A flag given twice is an error of its own, so that the first one goes.
    let at = begun.iter().position(|flag| *flag == "--lr").expect("the rate");
    begun.drain(at..at + 2);
    taper(&begun).bad(&["cannot resume", "`lr` was 0.01 and is now 0.5"]);
    begun.truncate(begun.len() - 2);
    begun.extend(["--lr", "0.01"]);
    room.rows("data/train.jsonl", &[serde_json::json!({ "prompt": "other ", "completion": "rows" })]);
    taper(&begun).bad(&["cannot resume", "the training rows are others"]);
    assert_eq!(room.names("out/checkpoints"), before);
}

#[test]
fn there_has_to_be_something_to_resume() {
    let room = Room::new();
    let (model, data, out) = (room.model("llama"), colours(&room), room.arg("out"));
    taper(&[&flags(&model, &data, &out)[..], &["--resume"]].concat()).bad(&["out", "nothing to resume"]);
    assert!(!room.path("out").exists());
}
