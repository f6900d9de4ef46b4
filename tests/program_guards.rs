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
fn what_a_head_reads_is_dropped_while_training_alone() {
    let room = Room::new();
    let data = room.rows("rows.jsonl", &kinds(12));
    let flags = ["--eval-data", &data, "--max-steps", "3", "--batch-size", "12"];
    let run = |out: &str, more: &[&str]| -> Vec<f64> {
        train(&room, &data, out, &[&flags, more].concat()).good();
        room.events(&format!("{out}/metrics.jsonl"), "step").iter().map(loss).collect()
    };
    let dropping = ["--head-dropout", "0.5"];
    let (steps, plain) = (run("out", &dropping), run("plain", &[]));
    assert_eq!(steps, run("again", &dropping), "the seed decides");
    assert_ne!(steps, run("other", &[&dropping[..], &["--seed", "1"]].concat()));
    assert!((steps[0] - plain[0]).abs() > 1e-4, "{steps:?} {plain:?}");
    let evals = room.events("out/metrics.jsonl", "eval");
    let (model, out) = (room.model("bert-classify"), room.arg("out"));
    let found = taper(&["eval", "--model", &model, "--adapter", &out, "--data", &data, "--json"]).json();
    assert!((loss(&evals[evals.len() - 1]) - loss(&found)).abs() < 1e-6, "{found} {evals:?}");
    assert!(room.read("out/recipe.toml").contains("head_dropout = 0.5"));

    train(&room, &data, "bad", &["--head-dropout", "1"]).bad(&["`head_dropout` is 1", "below 1"]);
    let texts = room.rows("texts.jsonl", &[json!({"text": "a b c"})]);
    let flags =
        ["train", "--model", "tiny", "--data", &texts, "--out", &room.arg("bad"), "--head-dropout", "0.1"];
    taper(&flags).bad(&["`head_dropout` is 0.1", "causal-lm", "leave it out"]);
    let kind = [&flags[..flags.len() - 2], &["--problem-type", "regression"]].concat();
    taper(&kind).bad(&["`problem_type` is regression", "causal-lm", "leave it out"]);
    assert!(!room.path("bad").exists());
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

#[test]
fn rows_are_changed_by_the_seed_and_only_those_that_are_learned() {
    let room = Room::new();
    let data = room.rows("rows.jsonl", &kinds(12));
    let flags = ["--eval-data", &data, "--epochs", "4", "--batch-size", "5"];
    let changes = ["--augment", "token_dropout=0.2,word_swap=0.3,word_deletion=0.1"];
    train(&room, &data, "plain", &flags).good();
    train(&room, &data, "one", &[&flags[..], &changes].concat()).good();
    let recipe = room.read("one/recipe.toml");
    assert!(recipe.contains("[augment]\ntoken_dropout = 0.2\n"), "{recipe}");
    assert!(!room.read("plain/recipe.toml").contains("augment"), "nothing is changed unasked");
    std::fs::create_dir(room.path("again")).expect("a folder");
    taper(&["train", &room.write("again/recipe.toml", recipe), "--quiet"]).good();
    let adapter = |out: &str| room.bytes(&format!("{out}/adapter_model.safetensors"));
    assert_eq!(adapter("one"), adapter("again"), "a recipe and its seed give the same rows");
    assert_ne!(adapter("one"), adapter("plain"));
    // What is evaluated is what stands in the file: the base has one loss, whatever is done to the rows to learn.
    let base = |out: &str| room.json(&format!("{out}/eval.json"))["splits"]["valid"]["base"]["loss"].clone();
    assert_eq!(base("one"), base("plain"));
    // Each epoch's first step sees the same number of rows, but not the same.
    let tokens = |out: &str| -> Vec<u64> {
        let steps = room.events(&format!("{out}/metrics.jsonl"), "step");
        let of_epoch =
            steps.chunks(3).map(|epoch| epoch.iter().filter_map(|step| step["tokens"].as_u64()).sum());
        of_epoch.collect()
    };
    let (plain, changed) = (tokens("plain"), tokens("one"));
    assert!(plain.iter().all(|count| *count == plain[0]), "{plain:?}");
    assert!(changed.iter().any(|count| *count != changed[0]), "{changed:?}");
}

#[test]
fn what_cannot_be_changed_is_refused_and_what_is_can_be_looked_at() {
    let room = Room::new();
    let tags = room.rows("tags.jsonl", &[json!({"tokens": ["a", "b"], "tags": ["O", "B-X"]})]);
    let texts = room.rows("texts.jsonl", &[json!({"prompt": "a b", "completion": "c"})]);
    let swap = ["--augment", "word_swap=0.1"];
    for (case, data, task) in [("bert-tokens", &tags, "tag"), ("llama", &texts, "causal-lm")] {
        let (model, out) = (room.model(case), room.arg("out"));
        let args = ["train", "--model", &model, "--data", data, "--out", &out];
        taper(&[&args[..], &swap].concat()).bad(&["`word_swap` of `augment`", task, "leave it out"]);
        taper(&[&args[..], &["--augment", "token_dropout=0.1", "--max-steps", "1", "--force"]].concat())
            .good();
    }
    let data = room.rows("rows.jsonl", &kinds(4));
    train(&room, &data, "bad", &["--augment", "word_swap=1.5"]).bad(&["`word_swap` of `augment` is 1.5"]);
    train(&room, &data, "bad", &["--augment", "swap=0.1"]).bad(&["swap", "word_swap"]);
    let show = |more: &[&str]| {
        let args = ["data", "show", "--data", &data, "--row", "4", "--count", "1", "--json"];
        taper(&[&args[..], more].concat()).json()["rows"][0]["tokens"].clone()
    };
    assert_ne!(show(&swap), show(&[]));
    assert_eq!(show(&swap), show(&[&swap[..], &["--seed", "0"]].concat()));
    let text = |tokens: &Value| -> String {
        tokens.as_array().expect("tokens").iter().filter_map(|token| token["text"].as_str()).collect()
    };
    let (plain, swapped) = (text(&show(&[])), text(&show(&swap)));
    let words: Vec<&str> = plain.split(' ').rev().collect();
    assert_eq!(swapped, words.join(" "), "two words have one way to swap");
}

#[test]
fn the_best_by_a_metric_is_what_is_kept() {
    let room = Room::new();
    let data = room.rows("rows.jsonl", &kinds(24));
    // A rate so high that training is soon worse than it was.
    let flags = ["--eval-split", "0.25", "--eval-every", "1", "--max-steps", "12", "--schedule", "constant"];
    let more = ["--metric-for-best", "accuracy", "--metrics", "accuracy,mcc"];
    train(&room, &data, "out", &[&flags[..], &more].concat()).good();
    let evals = room.events("out/metrics.jsonl", "eval");
    let accuracy = |row: &Value| row["metrics"]["accuracy"]["value"].as_f64().expect("an accuracy");
    let most = evals.iter().map(accuracy).fold(0.0, f64::max);
    let first = evals.iter().find(|row| accuracy(row) >= most).expect("an evaluation");
    let done = &room.events("out/metrics.jsonl", "done")[0];
    assert_eq!((&done["kept_step"], &done["best"]["score"]), (&first["step"], &json!(most)), "{done}");
    let eval = room.json("out/eval.json");
    assert_eq!(eval["step"], first["step"], "{eval}");
    let adapted = &eval["splits"]["valid"]["adapted"];
    assert_eq!(adapted["metrics"]["accuracy"]["value"], json!(most));
    assert!(adapted["metrics"]["mcc"]["value"].is_f64(), "{eval}");
    assert!((loss(adapted) - loss(first)).abs() < 1e-9, "{adapted} {first}");
}

#[test]
fn rows_set_aside_are_of_the_seed_and_of_every_class() {
    let room = Room::new();
    let data = room.rows("rows.jsonl", &kinds(24));
    let split = |out: &str, seed: &str| {
        let flags = ["--eval-split", "0.25", "--max-steps", "1", "--batch-size", "24", "--seed", seed];
        train(&room, &data, out, &[&flags[..], &["--metrics", "accuracy"]].concat()).good();
        let step = room.events(&format!("{out}/metrics.jsonl"), "step")[0].clone();
        (room.json(&format!("{out}/eval.json"))["splits"]["valid"].clone(), step["tokens"].clone())
    };
    let (one, again, other) = (split("one", "0"), split("again", "0"), split("other", "1"));
    assert_eq!(one, again);
    assert_ne!(one.1, other.1, "the rest, all in one step, is another: it has other lengths");
    // A quarter of sixteen and of eight; a head of zeros calls them all by the label of the eight, the first in order.
    for (found, _) in [one, other] {
        assert_eq!(
            (&found["examples"], &found["base"]["metrics"]["accuracy"]["value"]),
            (&json!(6), &json!(2.0 / 6.0))
        );
    }
    let (model, out) = (room.model("bert-classify"), room.arg("two"));
    let args = ["train", "--model", &model, "--data", &data, "--out", &out, "--eval-data", &data];
    taper(&[&args[..], &["--eval-split", "0.1"]].concat())
        .bad(&["`eval_split` is set", "leave one of them out"]);
}
