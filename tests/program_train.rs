//! `taper train` end to end: what it writes, what it says, and that the same recipe gives the same bytes.

use serde_json::{Value, json};

use crate::support::{Room, keys, taper};

/// Colours of things: rows in which there is something to learn.
const THINGS: [(&str, &str); 12] = [
    ("snow", "white"),
    ("coal", "black"),
    ("grass", "green"),
    ("the sky", "blue"),
    ("blood", "red"),
    ("a lemon", "yellow"),
    ("milk", "white"),
    ("tar", "black"),
    ("a leaf", "green"),
    ("the sea", "blue"),
    ("a rose", "red"),
    ("the sun", "yellow"),
];

/// Writes a data set of prompts and completions with all three splits.
pub(crate) fn colours(room: &Room) -> String {
    let row =
        |(thing, colour): &(&str, &str)| json!({ "prompt": format!("{thing} is "), "completion": colour });
    let rows: Vec<Value> = THINGS.iter().map(row).collect();
    room.rows("data/train.jsonl", &rows[..8]);
    room.rows("data/valid.jsonl", &rows[8..10]);
    room.rows("data/test.jsonl", &rows[10..]);
    room.arg("data")
}

/// Trains on the llama of the oracle, into `out`, with `more` flags.
pub(crate) fn train_with(room: &Room, data: &str, out: &str, more: &[&str]) -> crate::support::Run {
    let (model, out) = (room.model("llama"), room.arg(out));
    let flags = [
        "train",
        "--model",
        &model,
        "--data",
        data,
        "--out",
        &out,
        "--rank",
        "4",
        "--lr",
        "0.02",
        "--batch-size",
        "4",
    ];
    taper(&[&flags, more].concat())
}

#[test]
fn training_writes_every_promised_file_and_the_loss_falls() {
    let room = Room::new();
    let data = colours(&room);
    let run =
        train_with(&room, &data, "out", &["--epochs", "15", "--eval-every", "10", "--save-every", "10"])
            .good();
    let files = [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "checkpoints",
        "eval.json",
        "loss.svg",
    ];
    assert_eq!(room.names("out"), [&files[..], &["metrics.jsonl", "recipe.toml"]].concat());
    let steps = room.events("out/metrics.jsonl", "step");
    let fields = [
        "event",
        "step",
        "epoch",
        "loss",
        "lr",
        "grad_norm",
        "tokens",
        "seconds",
        "tokens_per_s",
        "peak_rss_bytes",
    ];
    assert!(steps.iter().all(|step| keys(step) == fields), "{}", steps[0]);
    assert_eq!(
        steps.iter().filter_map(|step| step["step"].as_u64()).collect::<Vec<_>>(),
        (1..=30).collect::<Vec<_>>()
    );
    let loss = |step: &Value| step["loss"].as_f64().expect("a loss");
    assert!(loss(&steps[29]) < 0.5 * loss(&steps[0]), "{} to {}", steps[0], steps[29]);
    let [evals, saved, done] = ["eval", "saved", "done"].map(|event| room.events("out/metrics.jsonl", event));
    assert_eq!((evals.len(), done.len()), (3, 1));
    assert!(saved.len() >= 3, "{saved:?}");
    assert!(evals[0]["loss"].is_f64() && evals[0]["perplexity"].is_f64(), "{}", evals[0]);
    let tokens: u64 = steps[..2].iter().filter_map(|step| step["tokens"].as_u64()).sum();
    let expected: usize =
        THINGS[..8].iter().map(|(thing, colour)| thing.len() + " is ".len() + colour.len() + 1).sum();
    assert_eq!(tokens, expected as u64, "tokens of an epoch");
    let told = [
        "model",
        "trainable",
        "tokens an epoch",
        "learned",
        "steps",
        "memory",
        "loss",
        "grad norm",
        "taper eval",
    ];
    assert_eq!(told.iter().find(|word| !run.err.contains(*word)), None, "{}", run.err);
    let found = ["base loss", "adapter loss", "valid", "test", "expected"];
    assert_eq!(found.iter().find(|word| !run.out.contains(*word)), None, "{}", run.out);
}

#[test]
fn card_plot_and_evaluation_of_a_run() {
    let room = Room::new();
    let data = colours(&room);
    train_with(&room, &data, "out", &["--max-steps", "6"]).good();
    let eval = room.json("out/eval.json");
    assert_eq!(eval["task"], "causal-lm");
    for (split, labels) in
        [("valid", "green".len() + "blue".len() + 2), ("test", "red".len() + "yellow".len() + 2)]
    {
        let found = &eval["splits"][split];
        assert_eq!(
            (found["examples"].as_u64(), found["tokens"].as_u64()),
            (Some(2), Some(labels as u64)),
            "{eval}"
        );
        assert!(found["adapted"]["loss"].as_f64() < found["base"]["loss"].as_f64(), "{eval}");
    }
    let svg = room.read("out/loss.svg");
    assert!(svg.trim_start().starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
    let card = room.read("out/README.md");
    let front =
        card.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---\n")).expect("front matter").0;
    for line in ["base_model: ", "library_name: peft", "- lora", "- \"base_model:adapter:"] {
        assert!(front.contains(line), "`{line}` is not in: {front}");
    }
    let config = room.json("out/adapter_config.json");
    assert_eq!(
        (&config["peft_type"], &config["task_type"], &config["r"]),
        (&json!("LORA"), &json!("CAUSAL_LM"), &json!(4))
    );
    assert_eq!(config["base_model_name_or_path"], json!(room.arg("llama-model")));
    let inspected =
        taper(&["inspect", &room.arg("out"), "--model", &room.arg("llama-model"), "--json"]).json();
    assert_eq!(inspected["problems"], json!([]));
    assert!(inspected["notes"][0].to_string().contains("path on one machine"), "{}", inspected["notes"]);
}

#[test]
fn a_written_recipe_runs_again_to_the_same_bytes() {
    let room = Room::new();
    let data = colours(&room);
    let flags = [
        "--epochs",
        "3",
        "--dropout",
        "0.1",
        "--schedule",
        "cosine",
        "--warmup-ratio",
        "0.2",
        "--seed",
        "7",
        "--use-rslora",
    ];
    train_with(&room, &data, "out", &flags).good();
    std::fs::create_dir(room.path("again")).expect("a folder");
    let recipe = room.read("out/recipe.toml");
    for field in ["dropout = 0.1", "schedule = \"cosine\"", "seed = 7", "rank = 4", "use_rslora = true"] {
        assert!(recipe.contains(field), "`{field}` is not in: {recipe}");
    }
    let recipe = room.write("again/recipe.toml", recipe);
    taper(&["train", &recipe]).good();
    for file in ["recipe.toml", "adapter_model.safetensors", "adapter_config.json", "eval.json"] {
        assert_eq!(room.bytes(&format!("out/{file}")), room.bytes(&format!("again/{file}")), "{file}");
    }
    taper(&["train", &recipe, "--out", &room.arg("other"), "--seed", "8"]).good();
    assert_ne!(room.bytes("out/adapter_model.safetensors"), room.bytes("other/adapter_model.safetensors"));
}

#[test]
fn every_row_format_trains() {
    let room = Room::new();
    let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
    let rows = [
        ("text", json!({ "text": "A taper burns." })),
        ("prompt-completion", json!({ "prompt": "a", "completion": "b" })),
        ("messages", json!({ "messages": [turn("user", "hi"), turn("assistant", "hello")] })),
        ("alpaca", json!({ "instruction": "Add", "input": "1", "output": "2" })),
        (
            "sharegpt",
            json!({ "conversations": [{ "from": "human", "value": "x" }, { "from": "gpt", "value": "y" }] }),
        ),
    ];
    for (format, row) in rows {
        let data = room.rows(&format!("{format}.jsonl"), &[row.clone(), row]);
        // An alpaca prompt alone has more tokens than these models were made for.
        let more = ["--max-steps", "2", "--max-length", "400"];
        let run = train_with(&room, &data, format, &more).good();
        assert!(run.err.contains(&format!("read as {format}")), "{}", run.err);
        assert_eq!(room.events(&format!("{format}/metrics.jsonl"), "step").len(), 2);
    }
}

#[test]
fn rows_come_from_csv_tsv_and_json_too() {
    let room = Room::new();
    let files = [
        room.write("rows.csv", "prompt,completion\n\"a, b\",c\nd,e\n"),
        room.write("rows.tsv", "prompt\tcompletion\na, b\tc\nd\te\n"),
        room.write(
            "rows.json",
            r#"[{"prompt": "a, b", "completion": "c"}, {"prompt": "d", "completion": "e"}]"#,
        ),
        room.write(
            "rows.jsonl",
            "{\"prompt\": \"a, b\", \"completion\": \"c\"}\n\n{\"prompt\": \"d\", \"completion\": \"e\"}\n",
        ),
    ];
    let mut adapters = Vec::new();
    for (i, data) in files.iter().enumerate() {
        let out = format!("out-{i}");
        train_with(&room, data, &out, &["--max-steps", "2", "--quiet"]).good();
        adapters.push(room.bytes(&format!("{out}/adapter_model.safetensors")));
    }
    assert!(adapters.iter().all(|bytes| *bytes == adapters[0]));
}

#[test]
fn quiet_is_quiet_and_flags_win_over_the_recipe() {
    let room = Room::new();
    let data = colours(&room);
    let model = room.model("llama");
    let recipe = room.write(
        "run/recipe.toml",
        format!(
            "model = {model:?}\ndata = '../data'\nrank = 2\nmax_steps = 3\ntarget_modules = ['q_proj']\n"
        ),
    );
    assert!(std::path::Path::new(&data).is_dir());
    let run =
        taper(&["train", &recipe, "--rank", "3", "--target-modules", "k_proj,up_proj", "--quiet"]).good();
    assert_eq!((run.out.as_str(), run.err.as_str()), ("", ""));
    let config = room.json("run/adapter_config.json");
    assert_eq!(config["r"], 3);
    assert_eq!(config["target_modules"], json!(["k_proj", "up_proj"]));
    assert_eq!(room.events("run/metrics.jsonl", "step").len(), 3);
}

#[test]
fn early_stopping_keeps_the_best() {
    let room = Room::new();
    // What is learned and what is looked at contradict each other, so that the loss must rise in the end.
    room.rows("data/train.jsonl", &[json!({ "prompt": "snow is ", "completion": "white" })]);
    room.rows("data/valid.jsonl", &[json!({ "prompt": "snow is ", "completion": "BLACK!" })]);
    let flags = [
        "--epochs",
        "200",
        "--eval-every",
        "1",
        "--early-stopping",
        "2",
        "--schedule",
        "constant",
        "--lr",
        "0.05",
    ];
    let (model, data, out) = (room.model("llama"), room.arg("data"), room.arg("out"));
    let run =
        taper(&[&["train", "--model", &model, "--data", &data, "--out", &out][..], &flags].concat()).good();
    let evals = room.events("out/metrics.jsonl", "eval");
    let loss = |row: &Value| row["loss"].as_f64().expect("a loss");
    let best = evals.iter().map(loss).fold(f64::INFINITY, f64::min);
    let done = &room.events("out/metrics.jsonl", "done")[0];
    assert_eq!(
        (&done["ending"], done["best"]["loss"].as_f64()),
        (&json!("early-stopping"), Some(best)),
        "{done}"
    );
    assert_eq!(done["step"].as_u64(), done["kept_step"].as_u64().map(|step| step + 2), "{done}");
    let said = format!("stopped early (early_stopping = 2); the adapter of step {} is in", done["kept_step"]);
    assert!(format!("{}{}", run.out, run.err).contains(&said), "{said}: {}", run.err);
    let valid = room.arg("data/valid.jsonl");
    let eval = taper(&["eval", "--model", &model, "--adapter", &out, "--data", &valid, "--json"]).json();
    let found = eval["loss"].as_f64().expect("a loss");
    assert!((found - best).abs() < 1e-9 * best, "{found} is kept, {best} was the best");
}

#[test]
fn a_range_test_finds_rates_draws_them_and_leaves_nothing_else() {
    let room = Room::new();
    let data = colours(&room);
    let run = train_with(&room, &data, "out", &["--find-lr"]).good();
    assert_eq!(room.names("out"), ["lr.svg"]);
    for word in ["rate", "smoothed", "the loss falls fastest at", "try --lr", "lr.svg"] {
        assert!(run.out.contains(word), "`{word}` is not in: {}", run.out);
    }
    let svg = room.read("out/lr.svg");
    assert!(svg.trim_start().starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
    let again = train_with(&room, &data, "again", &["--find-lr=100", "--quiet"]).good();
    assert_eq!((again.out.as_str(), again.err.as_str()), ("", ""));
    assert_eq!(room.read("again/lr.svg"), svg, "the same test draws the same picture");

    // What was found trains: the loss falls, where it was said to fall.
    let rate =
        run.out.split("falls fastest at ").nth(1).and_then(|rest| rest.split(',').next()).expect("a rate");
    let (model, out) = (room.arg("llama-model"), room.arg("out"));
    let flags = ["train", "--model", &model, "--data", &data, "--out", &out, "--rank", "4", "--lr", rate];
    taper(&[&flags[..], &["--epochs", "30", "--quiet"]].concat()).good();
    let steps = room.events("out/metrics.jsonl", "step");
    let loss = |step: &Value| step["loss"].as_f64().expect("a loss");
    assert!(loss(&steps[steps.len() - 1]) < 0.7 * loss(&steps[0]), "{rate}: {}", steps[steps.len() - 1]);

    // An adapter that is there stays what it is.
    let before = room.bytes("out/adapter_model.safetensors");
    train_with(&room, &data, "out", &["--find-lr=20"]).good();
    assert_eq!(room.bytes("out/adapter_model.safetensors"), before);
    for other in ["--resume", "--force"] {
        let run = train_with(&room, &data, "out", &["--find-lr", other]);
        assert!(run.code == Some(2) && run.err.contains("cannot be used with"), "{run:?}");
    }
}
