//! Vocabularies beside real `tokenizer.json` files (skipped where `../shared` is absent) and small ones made up here.

use std::path::Path;

use serde_json::{Value, json};

use crate::tokenizer::tests::shared_folder;
use crate::{ModelDir, Tokenizer};

fn folder(model_type: &str, files: &[(&str, String)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), json!({"model_type": model_type}).to_string()).unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn open(dir: &Path) -> Result<Tokenizer, crate::Error> {
    Tokenizer::open(&ModelDir { path: dir.to_path_buf(), name: "x".to_string() })
}

fn message(dir: &tempfile::TempDir) -> String {
    open(dir.path()).err().unwrap().to_string()
}

const TEXTS: [&str; 6] = [
    "Hello world, 中 😀!",
    "  Don't   stop: naïve Ångström\tAFFABLE\r\n\nunaffable 3.5% (x_1)  ",
    "",
    "\u{200d}\u{fffd}\u{0}control",
    "a stirring , funny and finally transporting re imagining of beauty and the beast",
    "supercalifragilisticexpialidocious I'll they're \u{a0}\u{2028}end",
];

fn same(ours: &Tokenizer, whole: &Tokenizer) {
    for text in TEXTS {
        for second in [None, Some("and Again")] {
            assert_eq!(
                ours.input(text, second, None).unwrap(),
                whole.input(text, second, None).unwrap(),
                "{text:?}"
            );
        }
        let ids = whole.encode(text).unwrap();
        assert_eq!(ours.decode(&ids).unwrap(), whole.decode(&ids).unwrap(), "{text:?}");
    }
    assert_eq!(ours.vocab_size(), whole.vocab_size());
}

#[test]
fn berts_vocabulary_reads_as_its_tokenizer_json_does() {
    let Some(shared) = shared_folder("data/tokenizers/bert-base-uncased") else { return };
    let file: Value =
        serde_json::from_str(&std::fs::read_to_string(shared.join("tokenizer.json")).unwrap()).unwrap();
    let vocabulary = file["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![""; vocabulary.len()];
    for (token, id) in vocabulary {
        tokens[id.as_u64().unwrap() as usize] = token;
    }
    let ours = folder("bert", &[("vocab.txt", tokens.join("\n") + "\n")]);
    same(&open(ours.path()).unwrap(), &open(&shared).unwrap());
}

#[test]
fn gpt2s_merges_read_as_its_tokenizer_json_does() {
    let Some(shared) = shared_folder("data/tokenizers/gpt2") else { return };
    let read = |name: &str| (name.to_string(), std::fs::read_to_string(shared.join(name)).unwrap());
    let [vocabulary, merges] = ["vocab.json", "merges.txt"].map(read);
    let ours = folder("gpt2", &[("vocab.json", vocabulary.1), ("merges.txt", merges.1)]);
    let ours = open(ours.path()).unwrap();
    same(&ours, &open(&shared).unwrap());
    assert_eq!(
        (ours.bos(), ours.eos(), ours.unk(), ours.pad()),
        (Some(50256), Some(50256), Some(50256), None)
    );
}

/// `BertTokenizer` of transformers 5.23 over the same files.
#[test]
fn a_small_bert_gives_the_ids_of_transformers() {
    let vocabulary =
        "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nHel\n##lo\nhel\ne\n##e\né\nworld\n中\n文\n中文\n,\n";
    let ids = |settings: Value, text: &str| {
        let dir = folder(
            "distilbert",
            &[("vocab.txt", vocabulary.to_string()), ("tokenizer_config.json", settings.to_string())],
        );
        open(dir.path()).unwrap().encode(text).unwrap()
    };
    let text = "Hello, world é 中文 [MASK]";
    assert_eq!(ids(json!({}), text), [2, 7, 6, 15, 11, 8, 12, 13, 4, 3]);
    assert_eq!(ids(json!({"do_lower_case": false}), text), [2, 5, 6, 15, 11, 10, 12, 13, 4, 3]);
    let apart = json!({"strip_accents": false, "tokenize_chinese_chars": false});
    assert_eq!(ids(apart, text), [2, 7, 6, 15, 11, 10, 14, 4, 3]);
}

/// `RobertaTokenizer` of transformers 5.23 over the same files.
#[test]
fn a_small_roberta_gives_the_ids_of_transformers() {
    let tokens = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "c", "Ġ", "ab", "Ġab", "Ġc", "<mask>"];
    let vocabulary: serde_json::Map<_, _> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_string(), json!(id))).collect();
    let merges = "#version: 0.2\na b\nĠ ab\nĠ c\n";
    let files = [("vocab.json", Value::from(vocabulary).to_string()), ("merges.txt", merges.to_string())];
    let dir = folder("roberta", &files);
    let tokenizer = open(dir.path()).unwrap();
    assert_eq!(tokenizer.encode("ab ab c <mask> b").unwrap(), [0, 8, 9, 10, 7, 11, 7, 5, 2]);
    assert_eq!(tokenizer.input("ab", Some("c a"), None).unwrap().ids, [0, 8, 2, 2, 6, 7, 4, 2]);
    assert_eq!(tokenizer.decode(&tokenizer.encode("ab c").unwrap()).unwrap(), "ab c");
    let roles = [tokenizer.bos(), tokenizer.eos(), tokenizer.pad(), tokenizer.unk(), tokenizer.mask()];
    assert_eq!(roles, [0, 2, 1, 3, 11].map(Some));
}

#[test]
fn what_is_wrong_with_a_vocabulary_is_said_with_its_file() {
    let text = |text: &str| text.to_string();
    let bert = message(&folder("bert", &[("vocab.txt", text("[PAD]\n[UNK]\nword\n"))]));
    assert!(bert.contains("vocab.txt") && bert.contains("`[CLS]`"), "{bert}");
    let alone = message(&folder("gpt2", &[("vocab.json", text("{}"))]));
    assert!(alone.contains("no merges.txt"), "{alone}");
    let merges = |lines: &str| {
        let vocabulary = r#"{"a": 0, "b": 1, "<|endoftext|>": 2}"#;
        message(&folder("gpt2", &[("vocab.json", text(vocabulary)), ("merges.txt", text(lines))]))
    };
    let line = merges("#version: 0.2\na b c\n");
    assert!(line.contains("merges.txt") && line.contains("line 2: `a b c`"), "{line}");
    let unknown = merges("a b\n");
    assert!(unknown.contains("ab"), "{unknown}");
    let other = message(&folder("qwen2", &[("vocab.json", text("{}"))]));
    assert!(other.contains("save_pretrained"), "{other}");
}
