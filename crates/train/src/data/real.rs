//! The real data sets and tokenizers beside the checkout; skipped, with a word, where they are not.

use std::path::{Path, PathBuf};

use taper_base::{ModelDir, Tokenizer};

use super::{DataFiles, DataOptions, DataReport, DataSet, Split, sample, show};

fn shared() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    if !path.is_dir() {
        println!("skipped: there is no {}", path.display());
    }
    path.is_dir().then_some(path)
}

fn load(path: &Path, tokenizer: &Tokenizer, options: &DataOptions) -> Result<DataSet, String> {
    let files = DataFiles::open(path).map_err(|error| error.to_string())?;
    let files = files.first(&[Split::Train]).map_err(|error| error.to_string())?;
    DataSet::load(files, tokenizer, options).map_err(|error| error.to_string())
}

fn tokenizer(shared: &Path, name: &str) -> Tokenizer {
    Tokenizer::open(&ModelDir { path: shared.join("tokenizers").join(name), name: name.to_owned() }).unwrap()
}

fn two_threads() -> DataOptions {
    DataOptions { threads: 2, ..DataOptions::default() }
}

#[test]
fn sets_of_causal_rows_load_whole() {
    let Some(shared) = shared() else { return };
    let plain = sample::plain();
    let cases = [
        ("e2e/test.jsonl", "prompt-completion", 630),
        ("wikisql", "text", 1000),
        ("alpaca/alpaca_sample.json", "alpaca", 2000),
        ("alpaca/alpaca_gpt4_en_demo.json", "alpaca", 999),
        ("alpaca/instruction_data_rasbt.json", "alpaca", 1100),
    ];
    for (name, format, rows) in cases {
        let set = load(&shared.join(name), &plain, &two_threads()).unwrap();
        assert_eq!((set.format.name, set.stats.rows, set.stats.kept()), (format, rows, rows), "{name}");
    }
    let text = load(&shared.join("text/tinyshakespeare.txt"), &plain, &two_threads()).unwrap();
    // All bytes but the blank lines between rows, each row up to a kibibyte.
    assert!(text.stats.tokens > 1_100_000 && text.stats.longest < 4000, "{:?}", text.stats);
}

#[test]
fn multiturn_messages_have_every_answer_learned() {
    let Some(shared) = shared() else { return };
    let qwen = tokenizer(&shared, "qwen2");
    let set = load(&shared.join("chat/multiturn_messages.jsonl"), &qwen, &two_threads()).unwrap();
    assert_eq!((set.format.name, set.stats.kept()), ("messages", 300));
    let text = std::fs::read_to_string(shared.join("chat/multiturn_messages.jsonl")).unwrap();
    for (example, row) in set.examples.iter().zip(text.lines()) {
        let row: serde_json::Value = serde_json::from_str(row).unwrap();
        let answers: Vec<_> =
            row["messages"].as_array().unwrap().iter().filter(|m| m["role"] == "assistant").collect();
        assert_eq!(example.spans().len(), answers.len());
        for (span, answer) in example.spans().iter().zip(answers) {
            assert!(example.tokens[span.clone()].contains(&qwen.eos().unwrap()));
            let learned = qwen.decode(&example.tokens[span.clone()]).unwrap();
            assert_eq!(
                learned.trim_end(),
                answer["content"].as_str().unwrap().trim_end(),
                "line {}",
                example.line
            );
        }
    }
}

#[test]
fn calls_of_tools_need_a_template_that_prints_them() {
    let Some(shared) = shared() else { return };
    let path = shared.join("chat/drone_training.jsonl");
    let error = load(&path, &tokenizer(&shared, "qwen2"), &two_threads()).unwrap_err();
    assert!(error.contains("drone_training.jsonl:1: read as messages: "), "{error}");
    let template = "{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}<|bos|>{{ m.role }}\n\
        {% if m.content %}{{ m.content }}{% endif %}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}\
        <|eos|>\n{% endfor %}{% if add_generation_prompt %}<|bos|>assistant\n{% endif %}";
    let tokenizer = sample::chat(template);
    let set = load(&path, &tokenizer, &two_threads()).unwrap();
    assert_eq!(set.stats.kept(), 103);
    let first = &set.examples[0];
    let learned = tokenizer.decode(&first.tokens[first.spans()[0].clone()]).unwrap();
    assert_eq!(learned, "{\"name\": \"takeoff_drone\", \"arguments\": {\"altitude\": 100}}\n");
}

#[test]
fn gsm8k_asks_for_its_columns_to_be_mapped() {
    let Some(shared) = shared() else { return };
    let path = shared.join("gsm8k");
    let error = load(&path, &sample::plain(), &two_threads()).unwrap_err();
    assert!(error.contains("train.jsonl:1: has the keys `question`, `answer`"), "{error}");
    assert!(error.contains("--column prompt=question --column completion=answer"), "{error}");
    let columns =
        [("prompt", "question"), ("completion", "answer")].map(|(a, b)| (a.to_owned(), b.to_owned())).into();
    let set = load(&path, &sample::plain(), &DataOptions { columns, ..two_threads() }).unwrap();
    assert_eq!(set.stats.rows, 7473);
}

#[test]
fn sets_of_other_tasks_are_recognised() {
    let Some(shared) = shared() else { return };
    for name in ["preference/dpo_en_demo.jsonl", "preference/kto_en_demo.jsonl"] {
        let error = load(&shared.join(name), &sample::plain(), &two_threads()).unwrap_err();
        assert!(error.contains("--task preference"), "{error}");
    }
    let sst2 = load(&shared.join("sst2"), &sample::plain(), &two_threads()).unwrap();
    assert_eq!(sst2.format.task, "classify");
}

#[test]
fn check_and_show_read_a_folder() {
    let Some(shared) = shared() else { return };
    let files = DataFiles::open(&shared.join("wikisql")).unwrap();
    let gpt2 = tokenizer(&shared, "gpt2");
    let report = DataReport::of(&files, &gpt2, &two_threads()).unwrap();
    assert_eq!(report.splits.iter().map(|split| split.stats.rows).collect::<Vec<_>>(), [1000, 100, 100]);
    assert!(report.splits[0].learned > 0.9);
    let rows =
        show(files.get(Split::Test).unwrap(), &gpt2, &two_threads(), 3..5, (crate::Augment::default(), 0))
            .unwrap();
    assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [4, 5]);
    let text: String = rows[0].tokens.iter().map(|token| token.text.as_str()).collect();
    assert!(text.starts_with("table: "), "{text}");
}
