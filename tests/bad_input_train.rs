//! Bad rows, recipes and places to write to: each ends with an error that says where and what, and nothing is lost.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::support::{Room, Run, taper, text};

/// A model to train, and rows that are good.
fn good() -> (Room, String, String) {
    let room = Room::new();
    let rows: Vec<_> =
        (0..6).map(|i| json!({ "prompt": format!("row {i} "), "completion": "and its end" })).collect();
    let (model, data) = (room.model("llama"), room.rows("rows.jsonl", &rows));
    (room, model, data)
}

fn train(model: &str, data: &str, out: &str, more: &[&str]) -> Run {
    taper(&[&["train", "--model", model, "--data", data, "--out", out][..], more].concat())
}

#[test]
fn a_bad_row_is_named_by_file_and_line() {
    let (room, model, _) = good();
    let row = r#"{"prompt": "a", "completion": "b"}"#;
    let cases: [(&str, String, &[&str]); 8] = [
        ("broken.jsonl", format!("{row}\n{row}\n{{\"prompt\": \"a\"\n{row}\n"), &["broken.jsonl:3", "JSON"]),
        ("list.jsonl", format!("{row}\n[1, 2]\n"), &["list.jsonl:2"]),
        (
            "key.jsonl",
            format!("{row}\n\n{{\"prompt\": \"a\", \"answer\": \"b\"}}\n"),
            &["key.jsonl:3", "completion", "answer"],
        ),
        (
            "kind.jsonl",
            format!("{row}\n{{\"prompt\": 7, \"completion\": \"b\"}}\n"),
            &["kind.jsonl:2", "`prompt` is a number"],
        ),
        (
            "unknown.jsonl",
            "{\"question\": \"a\", \"reply\": \"b\"}\n".into(),
            &["unknown.jsonl:1", "question", "reply", "prompt"],
        ),
        ("mixed.jsonl", format!("{row}\n{{\"text\": \"a\"}}\n"), &["mixed.jsonl:2", "text"]),
        ("bytes.csv", "prompt,completion\na,b\nc\n".into(), &["bytes.csv", "3"]),
        ("rows.docx", row.into(), &["rows.docx", "jsonl"]),
    ];
    for (name, content, words) in cases {
        let data = room.write(name, content);
        train(&model, &data, &room.arg("out"), &[]).bad(words);
        taper(&["data", "check", "--model", &model, "--data", &data]).bad(words);
        assert!(!room.path("out").exists(), "{name}");
    }
    let bytes = room.write(
        "latin.jsonl",
        [row.as_bytes(), b"\n{\"prompt\": \"\xe9\", \"completion\": \"b\"}\n"].concat(),
    );
    train(&model, &bytes, &room.arg("out"), &[]).bad(&["latin.jsonl:2", "UTF-8"]);
    train(&model, &room.arg("none.jsonl"), &room.arg("out"), &[]).bad(&["none.jsonl", "no such file"]);
}

#[test]
fn data_with_nothing_to_learn_is_refused() {
    let (room, model, data) = good();
    for (name, content) in [
        ("empty.jsonl", ""),
        ("blank.jsonl", "\n \n"),
        ("empty.json", "[]"),
        ("head.csv", "prompt,completion\n"),
    ] {
        let data = room.write(name, content);
        train(&model, &data, &room.arg("out"), &[]).bad(&[name]);
    }
    let out = room.arg("out");
    train(&model, &data, &out, &["--max-length", "6"]).bad(&[
        "rows.jsonl",
        "6 rows",
        "first 6 tokens",
        "--max-length",
    ]);
    taper(&["eval", "--model", &model, "--data", &data, "--max-length", "6"])
        .bad(&["rows.jsonl", "--max-length"]);
    let empty = room.rows("texts.jsonl", &[json!({ "text": "" }), json!({ "text": "a" })]);
    train(&model, &empty, &out, &[]).bad(&["texts.jsonl", "nothing to learn"]);
    std::fs::create_dir(room.path("folder")).expect("a folder");
    train(&model, &room.arg("folder"), &out, &[]).bad(&["folder", "train"]);
    train(&model, &data, &out, &["--format", "alpacca"]).bad(&["alpacca", "alpaca"]);
    train(&model, &data, &out, &["--column", "prompt=prmpt"]).bad(&[
        "rows.jsonl:1",
        "prompt=prmpt",
        "`completion`",
    ]);
    assert!(!room.path("out").exists());
}

#[test]
fn what_a_template_does_not_know_is_named() {
    let (room, model, _) = good();
    let data = room.rows("chats.jsonl", &[json!({ "messages": [{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" }] })]);
    let templates: [(&str, &[&str]); 5] = [
        ("{% for m in messages %}{{ m.content }}{% endfor %}\n{{ nobody.knows }}", &["line 2", "nobody"]),
        ("{{ fly_to_the_moon(messages) }}", &["line 1", "fly_to_the_moon"]),
        ("{{ messages | sparkle }}", &["line 1", "sparkle"]),
        ("{% for m in messages %}{{ m.content }}", &["line 1"]),
        ("{{ raise_exception('only poems') }}", &["only poems"]),
    ];
    for (template, words) in templates {
        room.write("llama-model/chat_template.jinja", template);
        train(&model, &data, &room.arg("out"), &[]).bad(&[&["chats.jsonl:1"], words].concat());
        taper(&["generate", "--model", &model, "--chat", "--prompt", "hi"]).bad(words);
    }
    assert!(!room.path("out").exists());
}

#[test]
fn recipes_with_unknown_fields_and_values_out_of_range() {
    let (room, model, data) = good();
    let recipe =
        |text: &str| room.write("run/recipe.toml", format!("model = {model:?}\ndata = {data:?}\n{text}\n"));
    taper(&["train", &recipe("learning_rte = 1")]).bad(&["recipe.toml:3", "learning_rte"]);
    taper(&["train", &recipe("batchsize = 4")]).bad(&["batchsize", "batch_size"]);
    taper(&["train", &recipe("lr = 'fast'")]).bad(&["recipe.toml:3", "`lr`", "expected a number"]);
    taper(&["train", &recipe("lr = = 3")]).bad(&["recipe.toml", "line 3"]);
    taper(&["train", &room.arg("none.toml")]).bad(&["none.toml"]);
    for (field, value) in [
        ("lr", "-1"),
        ("rank", "0"),
        ("dropout", "1.0"),
        ("warmup_ratio", "2"),
        ("max_length", "1"),
        ("epochs", "0"),
    ] {
        taper(&["train", &recipe(&format!("{field} = {value}"))]).bad(&[&format!("`{field}` is"), "give"]);
    }
    let out = room.arg("out");
    train(&model, &data, &out, &["--lr", "-1"]).bad(&["`lr` is -1", "give"]);
    train(&model, &data, &out, &["--schedule", "wavy"]).bad(&["wavy", "cosine"]);
    train(&model, &data, &out, &["--task", "tag"]).bad(&["tag", "`tokens` and `tags`"]);
    train(&model, &data, &out, &["--early-stopping", "2"]).bad(&["early_stopping", "eval_data"]);
    assert_eq!(room.names("run"), ["recipe.toml"]);
    assert!(!room.path("out").exists());
}

#[test]
fn an_adapter_that_is_there_is_kept_unless_forced() {
    let (room, model, data) = good();
    let out = room.arg("out");
    train(&model, &data, &out, &["--max-steps", "2"]).good();
    let before = room.bytes("out/adapter_model.safetensors");
    train(&model, &data, &out, &["--max-steps", "2", "--seed", "1"]).bad(&[
        "out",
        "holds an adapter",
        "--force",
    ]);
    assert_eq!(before, room.bytes("out/adapter_model.safetensors"));
    train(&model, &data, &out, &["--max-steps", "2", "--seed", "1", "--force"]).good();
    assert_ne!(before, room.bytes("out/adapter_model.safetensors"));
    // A bad row is found before anything is removed.
    let before = room.names("out");
    let bad = room.write("bad.jsonl", "{");
    train(&model, &bad, &out, &["--force"]).bad(&["bad.jsonl"]);
    assert_eq!(before, room.names("out"));
}

#[test]
fn places_that_cannot_be_written_to() {
    let (room, model, data) = good();
    let adapter = room.adapter("llama");
    let file = room.write("file", "mine");
    let merge = |out: &str| taper(&["merge", "--model", &model, "--adapter", &adapter, "--out", out]);
    for out in [file.clone(), format!("{file}/out")] {
        train(&model, &data, &out, &["--max-steps", "1"]).bad(&["file"]);
        merge(&out).bad(&["file"]);
    }
    assert_eq!(room.read("file"), "mine");
    let Some(disk) = Disk::mount(&room, "ro,size=64k") else { return };
    train(&model, &data, &disk.arg("out"), &["--max-steps", "1"]).bad(&["disk/out", "Read-only"]);
    merge(&disk.arg("merged")).bad(&["disk", "Read-only"]);
}

/// A small file system of its own, where the tests may mount one.
struct Disk(PathBuf);

impl Disk {
    fn mount(room: &Room, options: &str) -> Option<Self> {
        let path = room.path("disk");
        std::fs::create_dir(&path).expect("a folder");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "taper-test"]).arg(&path).output();
        if mounted.as_ref().is_ok_and(|output| output.status.success()) {
            return Some(Self(path));
        }
        println!("skipped: no file system can be mounted here: {mounted:?}");
        None
    }

    fn arg(&self, name: &str) -> String {
        text(&self.0.join(name))
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        let done = Command::new("mount").args(["-o", &options]).arg(&self.0).status().expect("mount");
        assert!(done.success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint_whole_and_training_goes_on_from_it() {
    let (room, model, data) = good();
    // A checkpoint has 216 KiB: one fits, and not a second beside it.
    let Some(disk) = Disk::mount(&room, "size=380k") else { return };
    let flags = ["--max-steps", "4", "--save-every", "1", "--batch-size", "6", "--rank", "16"];
    train(&model, &data, &room.arg("whole"), &flags).good();
    let out = disk.arg("out");
    train(&model, &data, &out, &flags).bad(&["disk/out", "No space left"]);
    assert_eq!(
        names(&disk.0.join("out/checkpoints")),
        ["step-1"],
        "whole, and nothing half-written beside it"
    );
    assert!(!disk.0.join("out/adapter_model.safetensors").exists());
    taper(&["eval", "--model", &model, "--adapter", &disk.arg("out/checkpoints/step-1"), "--data", &data])
        .good();
    disk.resize("4m");
    train(&model, &data, &out, &[&flags[..], &["--resume"]].concat()).good();
    let resumed = std::fs::read(disk.0.join("out/adapter_model.safetensors")).expect("the adapter");
    assert_eq!(resumed, room.bytes("whole/adapter_model.safetensors"));
}

#[test]
fn a_full_disk_ends_a_merge_and_leaves_nothing() {
    let (room, model, _) = good();
    let adapter = room.adapter("llama");
    let Some(disk) = Disk::mount(&room, "size=64k") else { return };
    taper(&["merge", "--model", &model, "--adapter", &adapter, "--out", &disk.arg("merged")])
        .bad(&["disk", "No space left"]);
    assert_eq!(names(&disk.0), Vec::<String>::new());
    disk.resize("4m");
    taper(&["merge", "--model", &model, "--adapter", &adapter, "--out", &disk.arg("merged")]).good();
}

#[test]
fn memory_that_is_too_little_or_no_memory_says_what_would_do() {
    let (room, model, data) = good();
    let out = room.arg("out");
    train(&model, &data, &out, &["--memory", "1MiB"]).bad(&["`memory` is 1MiB", "needs", "MiB at least"]);
    train(&model, &data, &out, &["--memory", "lots"]).bad(&["lots", "write it as 2GiB"]);
    assert!(!room.path("out").exists());
}
