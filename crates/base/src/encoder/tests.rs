//! Encoders against themselves: however texts are batched and files spelt, the same numbers. Against transformers and PEFT:
//! `tests/oracle_cases.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use taper_kernels::Compute;

use crate::{Batch, Checkpoint, Error, Labels, Network, Task, arch};

const CASES: [&str; 3] = ["bert-classify", "roberta-classify", "distilbert-classify"];

/// Sums in another order.
const TOLERANCE: f32 = 2e-5;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/oracle").join(name).join("model")
}

fn config(name: &str) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(case(name).join("config.json")).unwrap()).unwrap()
}

/// The model of a case with its tensors renamed, or left out.
fn load(name: &str, task: &Task, rename: impl Fn(&str) -> Option<String>) -> Result<Box<dyn Network>, Error> {
    let dir = tempfile::tempdir().unwrap();
    let tensors = candle_core::safetensors::load(case(name).join("model.safetensors"), &Device::Cpu).unwrap();
    let renamed: BTreeMap<String, Tensor> =
        tensors.into_iter().filter_map(|(name, tensor)| Some((rename(&name)?, tensor))).collect();
    safetensors::serialize_to_file(&renamed, None, &dir.path().join("model.safetensors")).unwrap();
    arch::build(&config(name), &Checkpoint::open(dir.path()).unwrap(), Compute::F32, task)
}

fn whole(name: &str) -> Box<dyn Network> {
    load(name, &Task::of(&config(name)), |name| Some(name.to_owned())).unwrap()
}

fn logits(model: &dyn Network, batch: &Batch) -> Vec<f32> {
    let hidden = model.hidden(batch, &mut [], &()).unwrap();
    model.head().forward(&hidden, &()).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= TOLERANCE * (1.0 + e.abs()), "{f}, expected {e}");
    }
}

#[test]
fn trap_t10_texts_of_one_batch_do_not_see_each_other() {
    let (long, short) = ([5u32, 9, 40, 2, 77, 31, 8], [6u32, 200, 3]);
    for name in CASES {
        let model = whole(name);
        let apart = [&long[..], &short[..]].map(|text| logits(&*model, &Batch::new([text])));
        assert_close(&logits(&*model, &Batch::new([&long[..], &short[..]])), &apart.concat());
    }
}

#[test]
fn a_text_is_read_in_both_directions_and_its_types_count() {
    let model = whole("bert-classify");
    let one = |tokens: &[u32], types: &[u32]| {
        let mut batch = Batch::default();
        batch.push_typed(tokens, types);
        logits(&*model, &batch)
    };
    let plain = one(&[5, 9, 40], &[]);
    assert_ne!(plain, one(&[5, 9, 41], &[]));
    assert_ne!(plain, one(&[5, 9, 40], &[0, 0, 1]));
    assert_eq!(plain, one(&[5, 9, 40], &[0, 0, 0]));
}

#[test]
fn bare_files_and_older_names_are_the_same_model() {
    for (name, body) in CASES.iter().zip(["bert.", "roberta.", "distilbert."]) {
        let batch = Batch::new([[5u32, 9, 40, 2], [6, 200, 3, 1]]);
        let task = Task::of(&config(name));
        let expected = logits(&*whole(name), &batch);
        let bare =
            load(name, &task, |name| Some(name.strip_prefix(body).unwrap_or(name).to_owned())).unwrap();
        assert_eq!(logits(&*bare, &batch), expected);
        let older = |name: &str| {
            Some(
                name.replace("LayerNorm.weight", "LayerNorm.gamma")
                    .replace("LayerNorm.bias", "LayerNorm.beta"),
            )
        };
        assert_eq!(logits(&*load(name, &task, older).unwrap(), &batch), expected);
    }
}

#[test]
fn a_head_that_the_files_lack_or_have_for_other_labels_is_fresh() {
    let paths =
        |model: &dyn Network| model.fresh().iter().map(|fresh| fresh.path.clone()).collect::<Vec<_>>();
    let two = Task::Classify(Labels::numbered(2));
    let all = |name: &str| Some(name.to_owned());
    let heads: [&[&str]; 3] =
        [&["classifier"], &["classifier.out_proj", "classifier.dense"], &["classifier", "pre_classifier"]];
    for (name, head) in CASES.iter().zip(heads) {
        assert!(whole(name).fresh().is_empty());
        let other = load(name, &two, all).unwrap();
        assert_eq!(paths(&*other), head);
        assert_eq!(logits(&*other, &Batch::new([[5u32, 9]])), [0.0, 0.0]);
    }
    let task = Task::of(&config("bert-classify"));
    let bare =
        |name: &str| (!name.starts_with("classifier") && !name.contains("pooler")).then(|| name.to_owned());
    let model = load("bert-classify", &task, bare).unwrap();
    assert_eq!(paths(&*model), ["classifier", "bert.pooler.dense"]);
    assert_eq!(model.head_modules(), ["pooler.dense", "classifier"]);
    assert_eq!(whole("bert-classify").head_modules(), ["classifier"]);
}

#[test]
fn a_text_longer_than_the_positions_and_an_encoder_that_should_write_are_refused() {
    for (name, most) in CASES.iter().zip([130, 128, 128]) {
        let model = whole(name);
        assert_eq!(model.sizes().max_position_embeddings, most);
        assert!(model.hidden(&Batch::new([vec![3; most]]), &mut [], &()).is_ok());
        let error = model.hidden(&Batch::new([vec![3; most + 1]]), &mut [], &()).unwrap_err().to_string();
        assert!(error.contains(&format!("--max-length {most}")), "{error}");
        let error = load(name, &Task::CausalLm, |name| Some(name.to_owned())).unwrap_err().to_string();
        assert!(error.contains("--task classify"), "{error}");
    }
    let tensor = whole("bert-classify").hidden(&Batch::new([[3u32; 4]]), &mut [], &()).unwrap();
    assert_eq!((tensor.dtype(), tensor.dims()), (DType::F32, &[1, 32][..]));
}
