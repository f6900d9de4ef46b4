//! `train`, `eval`, `generate` and `data` on an encoder-decoder, through the binary.

use serde_json::json;

use crate::support::{Room, taper, taper_with};

/// Rows whose completion says what the prompt asks for.
fn rows(room: &Room) -> String {
    let row = |(prompt, completion)| json!({ "prompt": prompt, "completion": completion });
    let pairs =
        [("name: red", "red!"), ("name: blue", "blue!"), ("name: green", "green!"), ("name: tan", "tan!")];
    room.rows("pairs.jsonl", &pairs.map(row))
}

#[test]
fn a_t5_learns_to_write_and_is_measured_and_asked() {
    let room = Room::new();
    let (model, data, out) = (room.model("t5"), rows(&room), room.arg("out"));
    let flags =
        ["--rank", "8", "--target-modules", "all-linear", "--lr", "1e-2", "--epochs", "60", "--quiet"];
    let train = ["train", "--model", &model, "--data", &data, "--eval-data", &data, "--out", &out];
    taper(&[&train[..], &flags].concat()).good();
    let config = room.json("out/adapter_config.json");
    assert_eq!(config["task_type"], "SEQ_2_SEQ_LM");
    assert!(room.read("out/recipe.toml").contains("task = \"seq2seq\""));

    let eval = ["eval", "--model", &model, "--data", &data, "--json", "--metrics", "exact_match,bleu"];
    let (base, adapted) = (taper(&eval).json(), taper(&[&eval[..], &["--adapter", &out]].concat()).json());
    assert_eq!((&adapted["task"], &adapted["examples"]), (&json!("seq2seq"), &json!(4)));
    let loss = |of: &serde_json::Value| of["loss"].as_f64().expect("a loss");
    assert!(loss(&adapted) < loss(&base) / 3.0, "{adapted}");
    assert_eq!(adapted["metrics"]["exact_match"]["value"], json!(1.0), "{adapted}");

    let asked = ["generate", "--model", &model, "--adapter", &out, "--prompt", "name: blue"];
    assert_eq!(taper(&asked).good().out.trim(), "blue!");
    assert_eq!(taper(&[&asked[..], &["--num-beams", "3"]].concat()).good().out.trim(), "blue!");
    let merged = room.arg("merged");
    taper(&["merge", "--model", &model, "--adapter", &out, "--out", &merged]).good();
    let asked = ["generate", "--model", &merged, "--prompt", "name: tan"];
    assert_eq!(taper(&asked).good().out.trim(), "tan!");
}

#[test]
fn what_a_t5_cannot_do_is_said() {
    let room = Room::new();
    let (model, out) = (room.model("t5"), room.arg("out"));
    let texts = room.rows("texts.jsonl", &[json!({ "text": "red is a colour" })]);
    taper(&["train", "--model", &model, "--data", &texts, "--out", &out])
        .bad(&["encoder-decoder", "`completion`"]);
    let (decoder, pairs) = (room.model("llama"), rows(&room));
    taper(&["train", "--model", &decoder, "--data", &pairs, "--out", &out, "--task", "seq2seq"])
        .bad(&["`task` is seq2seq", "opened for causal-lm"]);
}

#[test]
fn rows_are_shown_as_source_and_what_is_written() {
    let room = Room::new();
    let (model, data) = (room.model("t5"), rows(&room));
    let show = ["data", "show", "--model", &model, "--data", &data, "--count", "1"];
    let shown = taper(&show).good().out;
    assert!(shown.contains("\n→ ") && shown.contains("«r|e|d|!"), "{shown}");
}

#[test]
fn a_conversation_is_refused_before_it_begins() {
    let room = Room::new();
    let model = room.model("t5");
    taper_with("hello\n", &["chat", "--model", &model])
        .bad(&["writes one text from another", "taper generate"]);
}

#[test]
fn labels_are_refused_with_what_to_do_instead() {
    let room = Room::new();
    let (model, out) = (room.model("t5"), room.arg("out"));
    let labels = [json!({"text": "a", "label": "x"}), json!({"text": "b", "label": "y"})];
    let data = room.rows("labels.jsonl", &labels);
    taper(&["train", "--model", &model, "--data", &data, "--out", &out]).bad(&[
        "this t5 has no head for labels (`classification_head`)",
        "bert",
        "`prompt` and `completion`",
    ]);
    assert!(!room.path("out").exists(), "a refused run writes nothing");
}
