//! What a run does against over-fitting, through the built binary: smoothed labels, rows set aside, the best checkpoint,
//! augmentation.

use serde_json::{Value, json};

use crate::support::{Room, Run, taper};

/// Texts of two kinds, the first twice as often.
fn kinds(rows: usize) -> Vec<Value> {
    let row = |i: usize| {
        let (letter, label) = if i.is_multiple_of(3) { ("z", "high") } else { ("a", "low") };
        json!({"text": format!("{} {}", letter.repeat(1 + i % 5), letter.repeat(1 + i / 5)), "label": label})
    };
    (0..rows).map(row).collect()
}

/// Trains a small encoder on `data` into `out`.
fn train(room: &Room, data: &str, out: &str, more: &[&str]) -> Run {
    let (model, out) = (room.model("bert-classify"), room.arg(out));
    let flags =
        ["train", "--model", &model, "--data", data, "--out", &out, "--rank", "4", "--lr", "0.01", "--quiet"];
    taper(&[&flags, more].concat())
}

fn loss(row: &Value) -> f64 {
    row["loss"].as_f64().expect("a loss")
}

#[test]
fn smoothing_raises_the_loss_of_sure_steps_and_not_that_of_evaluations() {
    let room = Room::new();
    let data = room.rows("rows.jsonl", &kinds(12));
    let flags = ["--eval-data", &data, "--max-steps", "40", "--batch-size", "12", "--label-smoothing", "0.2"];
    train(&room, &data, "out", &flags).good();
    let steps = room.events("out/metrics.jsonl", "step");
    // No head can do better than the entropy of what it is taught: 0.9 and 0.1.
    let floor = -(0.9f64 * 0.9f64.ln() + 0.1 * 0.1f64.ln());
    assert!(steps.iter().all(|step| loss(step) >= floor - 1e-6), "{}", steps[39]);
    assert!(loss(&steps[39]) < floor + 0.1, "{}", steps[39]);
    let evals = room.events("out/metrics.jsonl", "eval");
    assert!(loss(&evals[evals.len() - 1]) < 0.8 * floor, "{evals:?}");
    assert!(room.read("out/recipe.toml").contains("label_smoothing = 0.2"));
}

#[test]
fn numbers_are_not_smoothed() {
    let room = Room::new();
    let rows: Vec<Value> = (0..4).map(|i| json!({"text": "a b", "label": f64::from(i) + 0.5})).collect();
    let data = room.rows("rows.jsonl", &rows);
    train(&room, &data, "out", &["--label-smoothing", "0.1"]).bad(&[
        "`label_smoothing` is 0.1",
        "the labels are numbers",
        "leave it out",
    ]);
    train(&room, &data, "out", &["--label-smoothing", "1"]).bad(&["`label_smoothing` is 1", "below 1"]);
    assert!(!room.path("out").exists(), "a refused run writes nothing");
}

#[test]
fn labels_tags_numbers_and_answers_have_range_tests_too() {
    let room = Room::new();
    let number = |i: u32| json!({"text": "a".repeat(1 + i as usize), "label": f64::from(i) + 0.5});
    let tags = json!({"tokens": ["a", "zz", "ba"], "tags": ["O", "B-Z", "O"]});
    let answer = json!({"prompt": "a b", "completion": "c"});
    let sets = [
        ("bert-classify", kinds(12)),
        ("bert-classify", (0..4).map(number).collect()),
        ("bert-tokens", vec![tags.clone(), tags]),
        ("t5", vec![answer.clone(), answer]),
    ];
    for (at, (case, rows)) in sets.iter().enumerate() {
        let data = room.rows("rows.jsonl", rows);
        let (model, out) = (room.model(case), room.arg(&format!("out-{at}")));
        let run = taper(&["train", "--model", &model, "--data", &data, "--out", &out, "--find-lr"]).good();
        assert!(run.out.contains("try --lr"), "{case}: {}", run.out);
        assert_eq!(room.names(&format!("out-{at}")), ["lr.svg"]);
    }
}
