//! What stands in an output folder: it is replaced when asked to, and by one run at a time.

use serde_json::{Value, json};

use crate::support::{Room, start, taper, wait_until};

/// A model, and rows that are good.
fn good(case: &str) -> (Room, String, String) {
    let room = Room::new();
    let rows: Vec<_> =
        (0..6).map(|i| json!({ "prompt": format!("row {i} "), "completion": "and its end" })).collect();
    let (model, data) = (room.model(case), room.rows("rows.jsonl", &rows));
    (room, model, data)
}

fn flags<'a>(model: &'a str, data: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--model", model, "--data", data, "--out", out, "--max-steps", "2"][..], more].concat()
}

#[test]
fn what_no_run_wrote_is_kept_unless_forced() {
    let (room, model, data) = good("llama");
    room.write("mine/README.md", "my notes");
    let recipe = format!("# mine\nmodel = {model:?}\ndata = {data:?}\nmax_steps = 2\n");
    let file = room.write("mine/recipe.toml", &recipe);
    taper(&["train", &file]).bad(&["mine", "holds a README.md that no training run wrote", "--force"]);
    assert_eq!(room.names("mine"), ["README.md", "recipe.toml"]);
    taper(&["train", &file, "--force"]).good();
    assert_eq!(room.read("mine/recipe.toml"), recipe);
    assert!(room.read("mine/README.md").contains("`recipe.effective.toml`"));
    // What that says is a recipe like any other.
    let again = room.arg("again");
    taper(&["train", &room.arg("mine/recipe.effective.toml"), "--out", &again]).good();
    assert_eq!(room.bytes("again/adapter_model.safetensors"), room.bytes("mine/adapter_model.safetensors"));
}

#[test]
fn a_run_does_not_write_where_it_reads() {
    let (room, model, data) = good("llama");
    let before = room.bytes("llama-model/config.json");
    taper(&flags(&model, &data, &model, &["--force"])).bad(&[
        "llama-model",
        "is the folder of the base",
        "--out",
    ]);
    assert_eq!(room.bytes("llama-model/config.json"), before);
    let adapter = room.adapter("llama");
    let init = ["--init-adapter", &adapter, "--force"];
    taper(&flags(&model, &data, &adapter, &init)).bad(&["is the folder of `init_adapter`", "--out"]);
}

#[test]
fn only_an_unfinished_run_is_resumed() {
    let (room, model, data) = good("llama");
    let out = room.arg("out");
    taper(&flags(&model, &data, &out, &[])).good();
    let before = room.bytes("out/adapter_model.safetensors");
    std::fs::remove_dir_all(room.path("out/checkpoints")).expect("checkpoints");
    taper(&flags(&model, &data, &out, &["--resume", "--seed", "1"])).bad(&[
        "out",
        "no checkpoint",
        "--resume",
    ]);
    assert_eq!(room.bytes("out/adapter_model.safetensors"), before);
}

#[test]
fn two_runs_do_not_share_a_folder() {
    let (room, model, data) = good("llama");
    let out = room.arg("out");
    let mut long =
        start(&["train", "--model", &model, "--data", &data, "--out", &out, "--max-steps", "100000"]);
    wait_until("the first step", || {
        room.path("out/metrics.jsonl").metadata().is_ok_and(|file| file.len() > 0)
    });
    taper(&flags(&model, &data, &out, &["--force"])).bad(&["out", "another run is writing there"]);
    long.kill().expect("a run that goes on");
    long.wait().expect("its end");
    taper(&flags(&model, &data, &out, &["--force"])).good();
}

#[test]
fn the_commands_that_come_next_run_as_they_are_printed() {
    let room = Room::new();
    // GPT-2 knows 128 places, and a row has more tokens than that.
    let rows: Vec<_> = (0..4)
        .map(|i| json!({ "question": format!("row {i} {}", "and more ".repeat(10)), "reply": "and its end ".repeat(20) }))
        .collect();
    let (model, data, out) = (room.model("gpt2"), room.rows("it's rows.jsonl", &rows), room.arg("my out"));
    let columns = [
        "--column",
        "prompt=question",
        "--column",
        "completion=reply",
        "--metrics",
        "bleu",
        "--eval-data",
        &data,
    ];
    let shown = taper(&flags(&model, &data, &out, &columns)).good().err;
    let commands: Vec<&str> = shown.lines().filter_map(|line| line.strip_prefix("  taper ")).collect();
    assert_eq!(commands.len(), 3, "{shown}");
    for command in commands {
        as_printed(command);
    }
}

/// What `taper` and `command`, as a shell reads it, print.
fn as_printed(command: &str) -> String {
    let run = std::process::Command::new("sh")
        .args(["-c", &format!("\"$0\" {command}"), env!("CARGO_BIN_EXE_taper")])
        .output()
        .expect("sh");
    assert!(run.status.success(), "{command}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).expect("UTF-8")
}

#[test]
fn the_evaluation_that_comes_next_is_of_rows_that_were_set_aside() {
    let room = Room::new();
    let rows = |from: usize| -> Vec<_> {
        (from..from + 16)
            .map(|i| json!({ "prompt": format!("row {i} "), "completion": "and ".repeat(i) }))
            .collect()
    };
    let (model, data, out) = (room.model("llama"), room.rows("rows.jsonl", &rows(0)), room.arg("out"));
    let other = room.rows("other.jsonl", &rows(16));
    let measured = |more: &[&str]| {
        let shown = taper(&flags(&model, &data, &out, &[&["--force"], more].concat())).good().err;
        let eval = shown.lines().find_map(|line| line.strip_prefix("  taper eval ")).expect("a command");
        let found: Value =
            serde_json::from_str(&as_printed(&format!("eval {eval} --json"))).expect("one object");
        let valid = &room.json("out/eval.json")["splits"]["valid"];
        let [printed, trained] = [&found, &valid["adapted"]].map(|of| of["loss"].as_f64().expect("a loss"));
        assert!((printed - trained).abs() < 1e-6, "{eval}: {printed} {trained}");
        assert_eq!(found["examples"], valid["examples"], "{eval}");
        eval.to_owned()
    };
    let split = measured(&["--eval-split", "0.25", "--seed", "3"]);
    assert!(split.contains("rows.jsonl --eval-split 0.25 --seed 3"), "{split}");
    assert!(measured(&["--eval-data", &other]).contains("other.jsonl"));
    // Of a folder with test rows those are measured, which were set aside as well.
    std::fs::create_dir(room.path("set")).expect("a folder");
    let parts = [rows(0), rows(16)];
    for (name, rows) in ["set/train.jsonl", "set/test.jsonl"].iter().zip(&parts) {
        room.rows(name, rows);
    }
    let shown =
        taper(&flags(&model, &room.arg("set"), &out, &["--force", "--eval-split", "0.25"])).good().err;
    assert!(shown.contains("set\n") && !shown.contains("--eval-split"), "{shown}");
    let twice = ["eval", "--model", &model, "--data", &data, "--eval-split", "1.5"];
    taper(&twice).bad(&["`eval_split` is 1.5", "give another share"]);
}
