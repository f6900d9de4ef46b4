//! `taper eval`, `inspect` and `data` through the binary: the promised keys, and the library's numbers.

use serde_json::{Value, json};
use taper_base::Adapter;
use taper_lora::LoraAdapter;
use taper_train::{DataFiles, DataOptions, DataSet, Split, evaluate};

use crate::program_train::colours;
use crate::support::{Room, keys, open, taper, taper_on};

const KEYS: [&str; 13] = [
    "task",
    "model",
    "name",
    "adapter",
    "examples",
    "tokens",
    "loss",
    "perplexity",
    "bits_per_byte",
    "metrics",
    "seconds",
    "tokens_per_s",
    "peak_rss_bytes",
];

/// Bytes of the answers of the test rows: "red" and "yellow".
const SPELT: usize = 9;

#[test]
fn eval_prints_one_object_with_the_librarys_numbers() {
    let room = Room::new();
    let (model, adapter, data) = (room.model("llama"), room.adapter("llama"), colours(&room));
    let base = open(model.as_ref());
    let files = DataFiles::named(&data).expect("files");
    let files = files.first(&[Split::Test]).expect("a test file");
    let set = DataSet::load(files, &base.tokenizer, &DataOptions::default()).expect("rows");
    let loaded = LoraAdapter::load(adapter.as_ref(), &base).expect("an adapter");
    let measure =
        |adapter: &dyn Adapter| evaluate(&*base.model, adapter, &set.examples, 1024).expect("a loss");
    let with = ["--adapter", adapter.as_str()];
    for (flags, expected) in [(&[][..], measure(&())), (&with[..], measure(&loaded))] {
        let eval = taper(&[&["eval", "--model", &model, "--data", &data, "--json"], flags].concat()).json();
        let beside: &[&str] = if flags.is_empty() { &[] } else { &["base"] };
        assert_eq!(keys(&eval), [&KEYS[..], beside].concat());
        let alone = if flags.is_empty() { &eval } else { &eval["base"] };
        assert_eq!((&alone["name"], &alone["adapter"]), (&json!("base"), &json!(null)));
        assert!((alone["loss"].as_f64().expect("a loss") - measure(&()).loss).abs() < 1e-6);
        assert_eq!(
            (eval["task"].as_str(), eval["model"].as_str()),
            (Some("causal-lm"), Some(model.as_str()))
        );
        assert_eq!(eval["adapter"], json!(flags.get(1)));
        assert_eq!(
            (eval["examples"].as_u64(), eval["tokens"].as_u64()),
            (Some(2), Some(expected.tokens as u64))
        );
        let loss = eval["loss"].as_f64().expect("a loss");
        assert!(
            (loss - expected.loss).abs() <= 1e-9 * expected.loss,
            "{loss}, the library has {}",
            expected.loss
        );
        assert!((eval["perplexity"].as_f64().expect("a number") - loss.exp()).abs() < 1e-6 * loss.exp());
        let bits = f64::from(expected.tokens as u32) * loss / (SPELT as f64 * std::f64::consts::LN_2);
        assert!((eval["bits_per_byte"].as_f64().expect("a number") - bits).abs() < 1e-6 * bits);
        assert!(eval["peak_rss_bytes"].as_u64() > Some(1 << 20) && eval["seconds"].as_f64() > Some(0.0));
        assert!(eval["metrics"].is_object());
    }
}

#[test]
fn the_token_budget_changes_memory_and_not_the_loss() {
    let room = Room::new();
    let (model, data) = (room.model("mistral"), colours(&room));
    let train = format!("{data}/train.jsonl");
    let loss = |budget: &str| {
        let flags = ["eval", "--model", &model, "--data", &train, "--json", "--micro-batch-tokens", budget];
        taper(&flags).json()["loss"].as_f64().expect("a loss")
    };
    let whole = loss("4096");
    for budget in ["1", "30"] {
        // The order of the sums within a product is the only difference.
        assert!((loss(budget) - whole).abs() < 1e-6 * whole, "{budget} tokens at a time");
    }
}

#[test]
fn several_adapters_stand_side_by_side() {
    let room = Room::new();
    let (model, data) = (room.model("llama"), colours(&room));
    let (a, b) = (room.adapter("llama"), room.adapter("llama-dora"));
    let named = [format!("a={a}"), format!("b={b}")];
    let flags = ["eval", "--model", &model, "--data", &data, "--adapter", &named[0], "--adapter", &named[1]];
    let run = taper(&flags).good();
    let names: Vec<&str> =
        run.out.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["base", "a", "b"], "{}", run.out);
    let all = taper(&[&flags[..], &["--json"]].concat()).json();
    for (found, path) in all["results"].as_array().expect("results").iter().zip([&a, &b]) {
        let single = taper(&["eval", "--model", &model, "--data", &data, "--adapter", path, "--json"]).json();
        assert_eq!((&found["loss"], &found["adapter"]), (&single["loss"], &json!(path)));
        assert_eq!(all["base"]["loss"], single["base"]["loss"]);
    }
    assert_eq!((&all["results"][0]["name"], &all["results"][1]["name"]), (&json!("a"), &json!("b")));
    let twice = ["eval", "--model", &model, "--data", &data, "--adapter", &named[0], "--adapter", &named[0]];
    taper(&twice).bad(&["`a` is taken", "NAME="]);
}

#[test]
fn inspect_tells_what_an_adapter_and_a_model_hold() {
    let room = Room::new();
    let (model, adapter) = (room.model("llama"), room.adapter("llama-dora"));
    let found = taper(&["inspect", &adapter, "--json"]).json();
    for key in ["config", "tensors", "rank_by_module", "parameters", "problems"] {
        assert!(found.get(key).is_some(), "no {key} in {found}");
    }
    assert_eq!((&found["kind"], &found["config"]["use_dora"]), (&json!("adapter"), &json!(true)));
    let tensors = found["tensors"].as_array().expect("tensors");
    let q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let tensor = tensors.iter().find(|tensor| tensor["name"] == q).expect("the tensor");
    assert_eq!((&tensor["shape"], &tensor["dtype"]), (&json!([4, 32]), &json!("F32")));
    let ranks = found["rank_by_module"].as_object().expect("ranks");
    assert_eq!((ranks.len(), &ranks["model.layers.1.mlp.down_proj"]), (6, &json!(4)), "{ranks:?}");
    let values = |tensor: &Value| {
        tensor["shape"].as_array().expect("a shape").iter().filter_map(Value::as_u64).product::<u64>()
    };
    assert_eq!(found["parameters"]["total"].as_u64(), Some(tensors.iter().map(values).sum()));
    let found = taper(&["inspect", &model, "--json"]).json();
    assert_eq!(
        (&found["kind"], &found["config"]["model_type"], &found["problems"]),
        (&json!("model"), &json!("llama"), &json!([]))
    );
    let run = taper(&["inspect", &adapter, "--model", &model]).good();
    for word in ["adapter", "rank", "down_proj", "use_dora"] {
        assert!(run.out.contains(word), "`{word}` is not in: {}", run.out);
    }
}

#[test]
fn inspect_lists_problems_where_loading_refuses() {
    let room = Room::new();
    let (model, adapter) = (room.model("qwen2"), room.adapter("llama-dora"));
    let path = "llama-dora-adapter/adapter_model.safetensors";
    let bytes = room.bytes(path);
    room.write(path, &bytes[..bytes.len() - 100]);
    let found = taper(&["inspect", &adapter, "--json"]).problems();
    assert!(found["problems"].to_string().contains("adapter_model.safetensors"), "{}", found["problems"]);
    let run = taper(&["inspect", &adapter]);
    assert!(run.code == Some(1) && run.out.contains("problems:\n  - "), "{run:?}");
    assert!(run.err.contains("llama-dora-adapter: a problem was found"), "{}", run.err);
    room.write(path, &bytes);
    let other = room.adapter("llama-head-dim");
    let found = taper(&["inspect", &other, "--model", &model, "--json"]).problems();
    assert!(found["problems"].to_string().contains("q_proj"), "{}", found["problems"]);
    taper(&["inspect", &room.arg("nothing")]).bad(&["nothing"]);
}

#[test]
fn data_check_counts_rows_tokens_labels_and_what_stands_twice() {
    let room = Room::new();
    let (model, data) = (room.model("llama"), colours(&room));
    let row = json!({ "prompt": "snow is ", "completion": "white" });
    room.rows(
        "data/test.jsonl",
        &[row.clone(), row, json!({ "prompt": "a very long prompt is ", "completion": "cut" })],
    );
    let flags = ["data", "check", "--model", &model, "--data", &data, "--max-length", "16"];
    let found = taper(&[&flags[..], &["--json"]].concat()).json();
    let splits = found["splits"].as_array().expect("splits");
    assert_eq!(splits.iter().map(|split| &split["split"]).collect::<Vec<_>>(), ["train", "valid", "test"]);
    let test = &splits[2];
    assert_eq!((&test["format"], &test["stats"]["rows"]), (&json!("prompt-completion"), &json!(3)));
    assert_eq!((&test["stats"]["tokens"], &test["stats"]["labels"]), (&json!(28), &json!(12)), "{test}");
    assert_eq!(
        (&test["stats"]["dropped_cut"], &test["duplicates"]["rows"]),
        (&json!(1), &json!(1)),
        "{test}"
    );
    assert_eq!(found["overlaps"][0]["rows"], 2, "{found}");
    let run = taper(&flags).good();
    for word in ["prompt-completion", "train", "test", "dropped", "learned"] {
        assert!(run.out.contains(word), "`{word}` is not in: {}", run.out);
    }
}

#[test]
fn data_check_and_show_cut_rows_where_train_does() {
    let room = Room::new();
    let model = room.model("llama");
    let data = room.rows("long.jsonl", &[json!({ "text": "a".repeat(300) }), json!({ "text": "short" })]);
    let check = taper(&["data", "check", "--model", &model, "--data", &data, "--json"]).json();
    let split = &check["splits"][0];
    // The limit of the model; lengths are those of whole rows.
    assert_eq!(
        (&split["stats"]["truncated"], &split["stats"]["longest"]),
        (&json!(1), &json!(128)),
        "{split}"
    );
    assert!(split["lengths"]["max"].as_u64() >= Some(300), "{split}");
    let shown = taper(&["data", "show", "--model", &model, "--data", &data, "--json"]).json();
    assert_eq!(shown["rows"][0]["tokens"].as_array().map(Vec::len), Some(128));
    let out = room.arg("out");
    let train = ["train", "--model", &model, "--data", &data, "--out", &out, "--max-steps", "1"];
    let run = taper(&train).good();
    assert!(run.err.contains("1 cut at 128 tokens"), "{}", run.err);
    let whole =
        taper(&["data", "check", "--model", &model, "--data", &data, "--max-length", "400", "--json"]);
    assert_eq!(whole.json()["splits"][0]["stats"]["truncated"], json!(0));
}

#[test]
fn data_show_marks_what_is_learned() {
    let room = Room::new();
    let (model, data) = (room.model("llama"), colours(&room));
    let train = format!("{data}/train.jsonl");
    let flags = ["data", "show", "--model", &model, "--data", &train, "--row", "2", "--count", "1"];
    let run = taper(&flags).good();
    assert!(run.out.contains("line 2"), "{}", run.out);
    assert!(run.out.contains("«b|l|a|c|k|<|eos|>»"), "{}", run.out);
    let shown = taper(&[&flags[..], &["--json"]].concat()).json();
    let tokens = shown["rows"][0]["tokens"].as_array().expect("tokens").clone();
    let part = |learned: bool| -> String {
        tokens
            .iter()
            .filter(|token| token["learned"] == learned)
            .filter_map(|token| token["text"].as_str())
            .collect()
    };
    assert_eq!((part(false).as_str(), part(true).as_str()), ("coal is ", "black<|eos|>"));
    assert_eq!((shown["rows"].as_array().map(Vec::len), &shown["rows"][0]["line"]), (Some(1), &json!(2)));
}

/// What machines without some instructions compute; on one without, a set is the best that it has. What is trained in bf16
/// is near what is trained in f32.
#[test]
fn every_set_of_kernels_trains_and_evaluates_alike() {
    let room = Room::new();
    let (model, data) = (room.model("llama-dora"), colours(&room));
    let mut reference = None;
    for (dtype, allowed) in [("f32", 1e-5), ("bf16", 2e-3)] {
        let losses = ["portable", "avx2", "avx512", "avx512-bf16"].map(|kernels| {
            let out = room.arg(&format!("{dtype}-{kernels}"));
            let train = ["train", "--model", &model, "--data", &data, "--out", &out, "--dtype", dtype];
            taper_on(kernels, &[&train[..], &["--max-steps", "20", "--lr", "0.001"]].concat()).good();
            let eval = ["eval", "--model", &model, "--data", &data, "--adapter", &out, "--json"];
            ["f32", "bf16"].map(|dtype| {
                let eval = [&eval[..], &["--dtype", dtype]].concat();
                taper_on(kernels, &eval).json()["loss"].as_f64().expect("a loss")
            })
        });
        let reference = *reference.get_or_insert(losses[0][0]);
        for [exact, rounded] in losses {
            assert!((exact - reference).abs() <= allowed * reference, "{dtype}: {losses:?}, {reference}");
            let apart = (rounded - exact).abs();
            assert!(apart > 0.0 && apart <= 2e-3 * exact, "{dtype}: {losses:?}");
        }
    }
    taper_on("sse9", &["data", "check", "--model", "tiny", "--data", &data])
        .bad(&["TAPER_KERNELS", "portable"]);
}
