//! Tasks with labels through the built binary: train, eval and predict on small encoders, and what is said of bad rows.

use serde_json::{Value, json};

use crate::support::{Room, Run, fixtures, taper, taper_with, tensors};

/// Texts of two kinds.
const KINDS: [(&str, &str); 8] = [
    ("aaa aaa", "low"),
    ("zzz zzz", "high"),
    ("aa aaaa a", "low"),
    ("zz zzzz z", "high"),
    ("a aa", "low"),
    ("z zz", "high"),
    ("aaaa", "low"),
    ("zzzz", "high"),
];

fn rows(room: &Room) -> String {
    let row = |(text, label): &(&str, &str)| json!({"text": text, "label": label});
    room.rows("data/train.jsonl", &KINDS.iter().map(row).collect::<Vec<_>>());
    room.rows(
        "data/test.jsonl",
        &[json!({"text": "aaa a", "label": "low"}), json!({"text": "zzz z", "label": "high"})],
    );
    room.arg("data")
}

fn train(room: &Room, case: &str, data: &str, more: &[&str]) -> crate::support::Run {
    let (model, out) = (room.model(case), room.arg("out"));
    let flags = ["train", "--model", &model, "--data", data, "--out", &out, "--rank", "4", "--lr", "0.01"];
    taper(&[&flags, more].concat())
}

fn config(room: &Room, name: &str) -> Value {
    let text = std::fs::read_to_string(room.path(name)).expect("a file");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn a_classifier_learns_is_saved_for_peft_and_predicts() {
    let heads = [
        ("bert-classify", "classifier.weight"),
        ("roberta-classify", "classifier.out_proj.weight"),
        ("distilbert-classify", "pre_classifier.weight"),
        ("modernbert-classify", "classifier.weight"),
        ("llama-classify", "score.weight"),
        ("t5-classify", "classification_head.dense.weight"),
    ];
    for (case, head) in heads {
        let room = Room::new();
        let data = rows(&room);
        let run = train(&room, case, &data, &["--epochs", "20", "--batch-size", "4"]).good();
        for words in ["\nzzz z\n  expected  high\n  base      ", "\n  adapter   high ("] {
            assert!(run.out.contains(words), "{case}: {}", run.out);
        }
        let card = std::fs::read_to_string(room.path("out/README.md")).expect("a card");
        assert!(
            card.contains("| test | accuracy |") && card.contains("| 1.0000 [1.0000, 1.0000] |"),
            "{card}"
        );
        let eval = config(&room, "out/eval.json");
        assert_eq!(eval["task"], "classify");
        assert_eq!(eval["splits"]["test"]["adapted"]["metrics"]["accuracy"]["value"], 1.0, "{case}: {eval}");
        let adapter = config(&room, "out/adapter_config.json");
        assert_eq!(adapter["task_type"], "SEQ_CLS");
        let labels = config(&room, "out/config.json");
        assert_eq!(labels["id2label"], json!({"0": "high", "1": "low"}));
        assert_eq!(labels["label2id"], json!({"high": 0, "low": 1}));
        let saved = tensors(&room.path("out/adapter_model.safetensors"));
        assert!(saved.contains_key(&format!("base_model.model.{head}")), "{case}");

        let (model, out) = (room.arg(&format!("{case}-model")), room.arg("out"));
        let found = taper(&["eval", "--model", &model, "--adapter", &out, "--data", &data, "--json"]).json();
        assert_eq!(
            (&found["task"], &found["metrics"]["accuracy"]["value"]),
            (&json!("classify"), &json!(1.0))
        );
        let input = "aaa aa\n{\"text\":\"zz zzz\",\"id\":7}\n";
        let run = taper_with(input, &["predict", "--model", &model, "--adapter", &out]).good();
        let lines: Vec<Value> =
            run.out.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
        assert_eq!((lines.len(), &lines[0]["label"], &lines[1]["label"]), (2, &json!("low"), &json!("high")));
        assert_eq!((&lines[0]["text"], &lines[1]["id"]), (&json!("aaa aa"), &json!(7)));
        let sum = ["low", "high"].map(|label| lines[0]["probabilities"][label].as_f64().expect("a number"));
        assert!((sum[0] + sum[1] - 1.0).abs() < 1e-9 && sum[0] > 0.5, "{}", lines[0]);
    }
}

#[test]
fn two_adapters_predict_side_by_side_and_other_labels_are_refused() {
    let room = Room::new();
    let data = rows(&room);
    train(&room, "bert-classify", &data, &["--max-steps", "2"]).good();
    let (model, out) = (room.arg("bert-classify-model"), room.arg("out"));
    let [a, b] = ["a", "b"].map(|name| format!("{name}={out}"));
    let args = ["predict", "--model", &model, "--adapter", &a, "--adapter", &b];
    let run = taper_with("aaa\n", &args).good();
    let line: Value = serde_json::from_str(&run.out).expect("one object");
    assert_eq!(line["a"], line["b"]);
    assert!(line["a"]["label"].is_string());
    let other = room.adapter("bert-classify");
    taper_with("a\n", &["predict", "--model", &model, "--adapter", &out, "--adapter", &other])
        .bad(&["different tasks or labels"]);
    taper_with("a\n", &["generate", "--model", &model, "--adapter", &out, "--prompt", "x"])
        .bad(&["labels texts", "taper predict"]);
}

/// Rows that say the right label themselves keep it.
#[test]
fn predictions_take_no_fields_place() {
    let room = Room::new();
    let data = rows(&room);
    train(&room, "bert-classify", &data, &["--max-steps", "2"]).good();
    let (model, out) = (room.arg("bert-classify-model"), room.arg("out"));
    let args = ["predict", "--model", &model, "--adapter", &out];
    let line = |run: Run| serde_json::from_str::<Value>(run.good().out.trim()).expect("one object");
    let plain = line(taper_with("{\"text\":\"aaa\"}\n", &args));
    let found = line(taper_with("{\"text\":\"aaa\",\"label\":\"mine\"}\n", &args));
    assert_eq!((&found["label"], &found["prediction"]["label"]), (&json!("mine"), &plain["label"]));
    assert_eq!(
        (&found["probabilities"], &found["prediction"]["probabilities"]),
        (&Value::Null, &plain["probabilities"])
    );
    let both = "a\n{\"text\":\"aaa\",\"label\":1,\"prediction\":2}\n";
    taper_with(both, &args).bad(&["standard input, line 2", "`prediction`", "label, probabilities"]);
    let [a, b] = ["a", "b"].map(|name| format!("{name}={out}"));
    let args = ["predict", "--model", &model, "--adapter", &a, "--adapter", &b];
    taper_with("{\"text\":\"aaa\",\"b\":1}\n", &args).bad(&["line 1", "`b`", "--adapter NAME=PATH"]);
    let found = line(taper_with("{\"text\":\"aaa\",\"label\":\"mine\"}\n", &args));
    assert_eq!((&found["label"], &found["a"]["label"]), (&json!("mine"), &plain["label"]));
}

#[test]
fn lines_are_read_after_a_byte_order_mark_and_answers_have_tokens() {
    let room = Room::new();
    let model = room.model("llama");
    let predict = |more: &[&str], input: &str| {
        taper_with(input, &[&["predict", "--model", &model, "--max-new-tokens"], more].concat())
    };
    for input in ["{\"prompt\":\"ab\",\"id\":7}\n", "ab\n"] {
        let plain = predict(&["2"], input).good().out;
        assert_eq!(plain, predict(&["2"], &format!("\u{feff}{input}")).good().out);
        assert!(plain.contains("\"prompt\":\"ab\""), "{plain}");
    }
    let run = predict(&["0"], "ab\n");
    assert!(run.code == Some(2) && run.err.contains("--max-new-tokens"), "{run:?}");
}

#[test]
fn numbers_pairs_and_weights_are_learned() {
    let room = Room::new();
    let row = |a: &str, b: &str, label: f64| json!({"text_a": a, "text_b": b, "label": label});
    let pairs =
        [row("aaa", "aaa", 1.5), row("aaa", "zzz", -0.5), row("zzz", "zzz", 1.5), row("zzz", "aaa", -0.5)];
    let data = room.rows("pairs.jsonl", &pairs);
    let more = ["--eval-data", &data, "--epochs", "40", "--batch-size", "4"];
    let run = train(&room, "bert-classify", &data, &more).good();
    // Each text of a pair has its line.
    for words in ["\nfrom the training file:\n", "\naaa\nzzz\n  expected  -0.5\n"] {
        assert!(run.out.contains(words), "{}", run.out);
    }
    assert_eq!(config(&room, "out/config.json")["problem_type"], "regression");
    let eval = config(&room, "out/eval.json");
    let adapted = &eval["splits"]["valid"]["adapted"];
    assert!(adapted["loss"].as_f64().expect("a loss") < 0.3, "{eval}");
    assert!(adapted["metrics"]["pearson"]["value"].as_f64().expect("a value") > 0.9, "{eval}");

    let room = Room::new();
    let data = rows(&room);
    train(&room, "bert-classify", &data, &["--max-steps", "1", "--class-weights", "low=3,high=1"]).good();
    let room = Room::new();
    train(&room, "bert-classify", &data, &["--class-weights", "lo=3"])
        .bad(&["`class_weights` names `lo`", "high, low"]);
    train(&room, "bert-classify", &data, &["--class-weights", "low"]).bad(&["label=weight"]);
}

#[test]
fn a_tagger_learns_words() {
    let room = Room::new();
    let row = |words: &[&str]| {
        let tag = |word: &&str| if word.contains('z') { "B-Z" } else { "O" };
        json!({"tokens": words, "tags": words.iter().map(tag).collect::<Vec<_>>()})
    };
    let data =
        room.rows("tags.jsonl", &[row(&["a", "zz", "ba"]), row(&["z", "b"]), row(&["ab", "a", "zzz", "b"])]);
    train(&room, "bert-tokens", &data, &["--eval-data", &data, "--epochs", "40"]).good();
    let eval = config(&room, "out/eval.json");
    assert_eq!(eval["splits"]["valid"]["adapted"]["metrics"]["entity_f1"]["value"], 1.0, "{eval}");
    assert_eq!(config(&room, "out/adapter_config.json")["task_type"], "TOKEN_CLS");
    let (model, out) = (room.arg("bert-tokens-model"), room.arg("out"));
    let run = taper_with("b zz a\n", &["predict", "--model", &model, "--adapter", &out]).good();
    let line: Value = serde_json::from_str(&run.out).expect("one object");
    assert_eq!(line["tags"], json!(["O", "B-Z", "O"]));
}

#[test]
fn bad_labels_are_named_with_their_line() {
    let room = Room::new();
    let good = [json!({"text": "a", "label": "x"}), json!({"text": "b", "label": "y"})];
    let data = room.rows("good.jsonl", &good);
    let unseen = room.rows("unseen.jsonl", &[json!({"text": "a", "label": "q"})]);
    train(&room, "bert-classify", &data, &["--eval-data", &unseen])
        .bad(&["unseen.jsonl:1", "the label `q` is none of those that are learned: x, y"]);
    let bad = |name: &str, rows: &[Value], words: &[&str]| {
        let data = room.rows(name, rows);
        train(&room, "bert-classify", &data, &["--task", "classify"]).bad(words);
    };
    bad("one.jsonl", &[good[0].clone(), good[0].clone()], &["every row has the label `x`"]);
    bad(
        "empty.jsonl",
        &[good[0].clone(), json!({"text": " ", "label": "y"})],
        &["empty.jsonl:2", "`text` is empty"],
    );
    bad("none.jsonl", &[json!({"text": "a"})], &["none.jsonl:1", "`label` is missing"]);
    bad("null.jsonl", &[json!({"text": "a", "label": null})], &["null.jsonl:1", "`label` is null"]);
    let uneven = room.rows(
        "tags.jsonl",
        &[json!({"tokens": ["a", "b"], "tags": ["O", "B-X"]}), json!({"tokens": ["a", "b"], "tags": ["O"]})],
    );
    train(&room, "bert-tokens", &uneven, &[]).bad(&["tags.jsonl:2", "2 `tokens` and 1 `tags`"]);
    let one = room.rows("tag.jsonl", &[json!({"tokens": ["a", "b"], "tags": ["O"]})]);
    taper(&["data", "check", "--data", &one]).bad(&["tag.jsonl:1: read as tag: 2 `tokens` and 1 `tags`"]);
    let check = |data: &str, format: &str, words: &[&str]| {
        taper(&["data", "check", "--data", data, "--format", format]).bad(words);
    };
    check(
        &data,
        "tag",
        &["good.jsonl:1: read as tag: `tokens` and `tags` are missing, the row has the keys"],
    );
    let bare = room.rows(
        "bare.jsonl",
        &[json!({"tokens": ["a", "b"], "tags": ["O", "B-X"]}), json!({"tokens": ["a", "b"]})],
    );
    check(&bare, "tag", &["bare.jsonl:2: read as tag: `tags` is missing, the row has the key `tokens`"]);
    check(&bare, "classify", &["bare.jsonl:1: read as classify: `text` and `label` are missing"]);
    train(&room, "bert-classify", &data, &["--task", "causal-lm", "--format", "text"])
        .bad(&["is an encoder", "--task classify"]);
}

#[test]
fn lines_that_are_cut_are_counted() {
    let room = Room::new();
    for case in ["bert-classify", "bert-tokens"] {
        let model = room.model(case);
        let long = "a ".repeat(200);
        let run = taper_with(&format!("{long}\na\n{long}\n"), &["predict", "--model", &model]).good();
        assert_eq!(run.out.lines().count(), 3);
        assert!(run.err.contains("2 rows are cut at 130 tokens"), "{case}: {}", run.err);
        let run = taper_with("a\n", &["predict", "--model", &model]).good();
        assert!(!run.err.contains("cut"), "{case}: {}", run.err);
    }
}

#[test]
fn lines_of_a_wrong_kind_are_named() {
    let room = Room::new();
    let bad = |case: &str, line: &str, words: &str| {
        taper_with(line, &["predict", "--model", &room.model(case)]).bad(&["standard input, line 1", words]);
    };
    bad("bert-classify", r#"{"text":5}"#, "`text` is a number, expected a text");
    bad("bert-classify", r#"{"text_a":"a","text_b":[]}"#, "`text_b` is a list, expected a text");
    bad("bert-classify", r#"{"text":null}"#, "has neither `text` nor `text_a` and `text_b`");
    bad("bert-tokens", r#"{"tokens":"a b"}"#, "`tokens` is a text, expected a list");
    bad("llama", r#"{"prompt":{}}"#, "`prompt` is an object, expected a text");
}

#[test]
fn an_adapter_without_the_head_that_the_base_lacks_is_refused() {
    let room = Room::new();
    let case = fixtures().join("oracle/bert-classify");
    let model = room.copy(&case.join("model"), "bare");
    let mut kept = tensors(&case.join("model/model.safetensors"));
    kept.retain(|name, _| !name.starts_with("classifier"));
    crate::support::save(&room.path("bare/model.safetensors"), &kept);
    let adapter = room.copy(&case.join("adapter"), "whole");
    taper_with("abc\n", &["predict", "--model", &model, "--adapter", &adapter]).good();
    let adapter = room.copy(&case.join("adapter"), "headless");
    let mut tensors = tensors(&case.join("adapter/adapter_model.safetensors"));
    tensors.retain(|name, _| !name.contains("classifier"));
    crate::support::save(&room.path("headless/adapter_model.safetensors"), &tensors);
    std::fs::copy(case.join("model/config.json"), room.path("headless/config.json")).expect("a copy");
    taper_with("abc\n", &["predict", "--model", &model, "--adapter", &adapter]).bad(&["classifier.weight"]);
}

/// The base of `case` in the room, with the tensors that `rename` keeps, as a model without labels.
fn headless(room: &Room, case: &str, architecture: &str, rename: impl Fn(&str) -> Option<String>) -> String {
    let from = fixtures().join("oracle").join(case).join("model");
    let model = room.copy(&from, &format!("{case}-model"));
    let kept = tensors(&from.join("model.safetensors"))
        .into_iter()
        .filter_map(|(name, tensor)| Some((rename(&name)?, tensor)))
        .collect();
    crate::support::save(&room.path(&format!("{case}-model/model.safetensors")), &kept);
    let path = format!("{case}-model/config.json");
    let mut config = config(room, &path);
    config["architectures"] = json!([architecture]);
    for key in ["id2label", "label2id", "problem_type"] {
        config.as_object_mut().expect("an object").remove(key);
    }
    std::fs::write(room.path(&path), config.to_string()).expect("a file");
    model
}

/// Puts a base into a room.
type Make = Box<dyn Fn(&Room) -> String>;

#[test]
fn a_head_that_the_base_lacks_is_merged_with_its_labels() {
    let body = |prefix: &'static str| move |name: &str| name.strip_prefix(prefix).map(str::to_owned);
    let bodies = |name: &str| (!name.starts_with("score")).then(|| name.to_owned());
    let bases: [(&str, &str, Make); 6] = [
        (
            "bert-classify",
            "BertForSequenceClassification",
            Box::new(move |room| headless(room, "bert-classify", "BertModel", body("bert."))),
        ),
        (
            "distilbert-classify",
            "DistilBertForSequenceClassification",
            Box::new(move |room| {
                headless(room, "distilbert-classify", "DistilBertModel", body("distilbert."))
            }),
        ),
        (
            "modernbert-mean",
            "ModernBertForSequenceClassification",
            Box::new(move |room| headless(room, "modernbert-mean", "ModernBertModel", body("model."))),
        ),
        (
            "llama-classify",
            "LlamaForSequenceClassification",
            Box::new(move |room| headless(room, "llama-classify", "LlamaForCausalLM", bodies)),
        ),
        // Its head is for three labels.
        (
            "roberta-classify",
            "RobertaForSequenceClassification",
            Box::new(|room| room.model("roberta-classify")),
        ),
        ("t5-classify", "T5ForSequenceClassification", Box::new(|room| room.model("t5-classify"))),
    ];
    for (case, architecture, base) in bases {
        let room = Room::new();
        let data = rows(&room);
        base(&room);
        train(&room, case, &data, &["--epochs", "20", "--batch-size", "4"]).good();
        let (model, out, merged) = (room.arg(&format!("{case}-model")), room.arg("out"), room.arg("merged"));
        if case != "llama-classify" {
            // An encoder is a whole base without a head.
            assert_eq!(taper(&["inspect", &model, "--json"]).json()["problems"], json!([]), "{case}");
        }
        let found =
            taper(&["merge", "--model", &model, "--adapter", &out, "--out", &merged, "--json"]).json();
        let check = &found["verification"];
        let [off, most] =
            ["max_logit_difference", "max_logit"].map(|key| check[key].as_f64().expect("a number"));
        assert!(off <= 2e-5 * (1.0 + most) && most > 0.1, "{case}: {check}");
        assert_eq!((&check["rows"], &check["argmax_agree"]), (&json!(4), &json!(4)));
        let written = config(&room, "merged/config.json");
        assert_eq!(written["architectures"], json!([architecture]));
        assert_eq!(written["id2label"], json!({"0": "high", "1": "low"}));
        let adapted = taper_with("zz zz\n", &["predict", "--model", &model, "--adapter", &out]).good().out;
        let alone = taper_with("zz zz\n", &["predict", "--model", &merged]).good().out;
        let [adapted, alone] =
            [adapted, alone].map(|line| serde_json::from_str::<Value>(&line).expect("an object"));
        assert_eq!((&alone["label"], &adapted["label"]), (&json!("high"), &json!("high")));
    }
}
