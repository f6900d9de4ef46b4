//! Weighted and smoothed labels, and numbers: the loss and every gradient that PyTorch 2.15 + PEFT 0.21.2 compute.
//! `oracle/label_losses.py` and `oracle/smoothed_losses.py` made the fixtures.

use candle_core::{DType, Tensor};
use taper_base::{Base, ModelDir};
use taper_kernels::{Compute, Scoring};
use taper_lora::LoraAdapter;
use taper_train::{MicroBatch, Pass, StepGrads, step_grads};

use crate::oracle_cases::Case;
use crate::support::{Tolerance, assert_close, assert_gradient, fixtures, tensors, values};

/// As in the script.
const LABELS: [u32; 2] = [2, 0];
const WEIGHTS: [f32; 3] = [0.5, 2.0, 3.0];
const NUMBERS: [f32; 2] = [1.5, -0.75];

/// The oracle's two texts, without padding.
fn texts() -> MicroBatch {
    let stored = tensors(&fixtures().join("oracle/bert-classify/expected.safetensors"));
    let [ids, mask] = ["input_ids", "attention_mask"]
        .map(|key| stored[key].to_dtype(DType::I64).and_then(|t| t.to_vec2::<i64>()).expect("a matrix"));
    let mut micro = MicroBatch::default();
    for (ids, mask) in ids.iter().zip(mask) {
        let len = mask.iter().sum::<i64>() as usize;
        micro.batch.push(&ids[..len].iter().map(|&id| id as u32).collect::<Vec<_>>());
    }
    micro
}

fn check(adapter: &str, micro: MicroBatch, pass: Pass<'_>, name: &str) {
    let (dir, path) = (fixtures().join(adapter), fixtures().join("oracle/bert-classify/model"));
    let model = ModelDir { path, name: name.to_owned() };
    let task = taper_lora::task(&dir, &serde_json::Value::Null).expect("a task");
    let base = Base::open_for(model, Compute::F32, task).expect("a base");
    let adapter = LoraAdapter::load_trainable(&dir, &base).expect("an adapter");
    let found = step_grads(&*base.model, &adapter, &[micro], pass).expect("gradients");
    compare(&found, &format!("label_losses/{name}.safetensors"));
}

fn compare(found: &StepGrads, file: &str) {
    let expected = tensors(&fixtures().join(file));
    let allowed = Tolerance { relative: 2e-5, absolute: 0.0 };
    assert_close("loss", &[found.loss() as f32], &values(&expected["loss"]), allowed);
    assert_eq!(found.grads.len() + 1, expected.len());
    for (name, gradient) in &found.grads {
        assert_gradient(name, gradient, &values(&expected[&format!("grad.{name}")]));
    }
}

#[test]
fn weighted_labels_are_scored_and_divided_as_in_torch() {
    let mut micro = texts();
    micro.labelled.rows = vec![0, 1];
    micro.labelled.labels = LABELS.to_vec();
    let scoring = Scoring { weights: Some(&WEIGHTS), ..Scoring::default() };
    let pass = Pass { scoring, ..Pass::default() };
    check("oracle/bert-classify/adapter", micro, pass, "weighted");
}

#[test]
fn numbers_are_learned_by_the_mean_squared_error_of_torch() {
    let micro = MicroBatch { numbers: NUMBERS.to_vec(), ..texts() };
    check("label_losses/adapter", micro, Pass::default(), "numbers");
}

#[test]
fn the_gradient_behind_a_dropped_head_is_the_slope_of_its_loss() {
    for name in ["bert-classify", "bert-tokens", "llama-classify", "t5-classify"] {
        let case = Case::open(name);
        let loss = |adapter: &LoraAdapter, pass| {
            step_grads(&*case.base.model, adapter, std::slice::from_ref(&case.micro), pass)
                .expect("gradients")
        };
        let dropping = Pass { head_dropout: 0.3, seed: 7, ..Pass::default() };
        let adapter = case.adapter();
        let found = loss(&adapter, dropping);
        let other = loss(&adapter, Pass { seed: 8, ..dropping });
        assert!(found.loss().to_bits() != other.loss().to_bits(), "{name}: each seed drops others");
        let whole = loss(&adapter, Pass::default());
        assert!(found.loss().to_bits() != whole.loss().to_bits(), "{name}: something is dropped");
        for (parameter, gradient) in &found.grads {
            let (at, slope) =
                (0..).zip(gradient).max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).expect("values");
            let var = &adapter.params()[parameter];
            let was = values(var);
            let beside = |step: f32| {
                let mut moved = was.clone();
                moved[at] += step;
                var.set(&Tensor::from_vec(moved, var.shape(), var.device()).expect("a tensor")).expect("set");
                loss(&adapter, dropping).loss()
            };
            let difference = (beside(0.01) - beside(-0.01)) / 0.02;
            beside(0.0);
            let error = (difference - f64::from(*slope)).abs();
            assert!(error <= 2e-2 * difference.abs() + 1e-4, "{name} {parameter}: {slope} for {difference}");
        }
    }
}

#[test]
fn smoothed_labels_are_scored_as_in_torch() {
    let cases = ["bert-classify", "bert-tokens", "llama-lm-head", "llama-modules-to-save", "t5"];
    for name in cases {
        let case = Case::open(name);
        let weights = (name == "bert-classify").then_some(&WEIGHTS[..]);
        let pass = Pass { scoring: Scoring { label_smoothing: 0.1, weights }, ..Pass::default() };
        let found = step_grads(&*case.base.model, &case.adapter(), std::slice::from_ref(&case.micro), pass);
        compare(&found.expect("gradients"), &format!("smoothed_losses/{name}.safetensors"));
    }
}
