//! Every oracle case: logits, loss, every gradient, the losses of six AdamW steps and the merged tensors that
//! PyTorch 2.15 + PEFT 0.21.2 compute. `oracle/make_oracle.py` made the fixtures.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{D, DType, Tensor};
use taper_base::{Adapter, Base, Task};
use taper_kernels::{Labelled, Scoring};
use taper_lora::LoraAdapter;
use taper_train::{AdamW, AdamWConfig, MicroBatch, Pass, step_grads};

use crate::support::{LOGITS, Tolerance, assert_close, assert_gradient, fixtures, open, tensors, values};

/// A case: the base, where its adapter lies, its batch without padding, and what PyTorch makes of them.
pub(crate) struct Case {
    pub(crate) base: Base,
    dir: PathBuf,
    pub(crate) micro: MicroBatch,
    /// Rows of the padded logits that are of tokens, or of sequences.
    rows: Vec<u32>,
    expected: BTreeMap<String, Tensor>,
}

impl Case {
    pub(crate) fn open(name: &str) -> Self {
        let dir = fixtures().join("oracle").join(name);
        let (base, expected) = (open(&dir.join("model")), tensors(&dir.join("expected.safetensors")));
        let (micro, rows) = match (&base.task, base.model.decoder_start()) {
            (_, Some(start)) => Self::written(&expected, start),
            (Task::Classify(_), None) => Self::of_sequences(&expected),
            (task, None) => Self::in_place(&expected, task),
        };
        Self { base, dir, micro, rows, expected }
    }

    /// The batch of a decoder or of a model that tags, and its rows among the padded ones.
    fn in_place(expected: &BTreeMap<String, Tensor>, task: &Task) -> (MicroBatch, Vec<u32>) {
        let matrix = |key| matrix(expected, key);
        let (ids, mask, labels) = (matrix("input_ids"), matrix("attention_mask"), matrix("labels"));
        // The first token's label is nobody's in a language model, and its own where tokens are tagged.
        let shift = usize::from(*task == Task::CausalLm);
        let (mut micro, mut rows) = (MicroBatch::default(), Vec::new());
        for (b, row) in ids.iter().enumerate() {
            let len = mask[b].iter().sum::<i64>() as usize;
            let start = micro.batch.len();
            let tokens: Vec<u32> = row[..len].iter().map(|&id| id as u32).collect();
            micro.batch.push(&tokens);
            rows.extend((b * row.len()..b * row.len() + len).map(|row| row as u32));
            for t in (shift..len).filter(|&t| labels[b][t] >= 0) {
                micro.labelled.rows.push((start + t - shift) as u32);
                micro.labelled.labels.push(labels[b][t] as u32);
            }
        }
        (micro, rows)
    }

    /// A batch with one label a sequence.
    fn of_sequences(expected: &BTreeMap<String, Tensor>) -> (MicroBatch, Vec<u32>) {
        let (ids, mask) = (matrix(expected, "input_ids"), matrix(expected, "attention_mask"));
        let mut micro = MicroBatch::default();
        for (ids, mask) in ids.iter().zip(mask) {
            let len = mask.iter().sum::<i64>() as usize;
            micro.batch.push(&ids[..len].iter().map(|&id| id as u32).collect::<Vec<_>>());
        }
        let rows: Vec<u32> = (0..ids.len() as u32).collect();
        micro.labelled.rows.clone_from(&rows);
        micro.labelled.labels = values(&expected["labels"]).into_iter().map(|label| label as u32).collect();
        (micro, rows)
    }

    /// The batch of an encoder-decoder, which is taught by the labels shifted right behind `start`.
    fn written(expected: &BTreeMap<String, Tensor>, start: u32) -> (MicroBatch, Vec<u32>) {
        let matrix = |key| matrix(expected, key);
        let (ids, mask, labels) = (matrix("input_ids"), matrix("attention_mask"), matrix("labels"));
        let (mut micro, mut rows) = (MicroBatch::default(), Vec::new());
        for (b, row) in ids.iter().enumerate() {
            let len = mask[b].iter().sum::<i64>() as usize;
            let source: Vec<u32> = row[..len].iter().map(|&id| id as u32).collect();
            let learned: Vec<u32> = labels[b].iter().filter(|&&id| id >= 0).map(|&id| id as u32).collect();
            let from = micro.batch.len() as u32;
            let shifted = [&[start], &learned[..learned.len() - 1]].concat();
            micro.batch.push_from(&source, &shifted);
            micro.labelled.rows.extend(from..from + learned.len() as u32);
            rows.extend((b * labels[b].len()..b * labels[b].len() + learned.len()).map(|row| row as u32));
            micro.labelled.labels.extend(learned);
        }
        (micro, rows)
    }

    pub(crate) fn adapter(&self) -> LoraAdapter {
        LoraAdapter::load_trainable(&self.dir.join("adapter"), &self.base)
            .expect("the adapter that PEFT saved")
    }

    fn logits(&self, adapter: &dyn Adapter) -> Vec<f32> {
        let hidden = self.base.model.hidden(&self.micro.batch, &mut [], adapter).expect("hidden states");
        values(&self.base.model.head().forward(&hidden, adapter).expect("logits"))
    }

    /// The rows of a padded `(B, T, V)` tensor that are tokens; of a `(B, V)` tensor, all.
    fn unpadded(&self, key: &str) -> Vec<f32> {
        let padded = self.expected[key].flatten_to(D::Minus2).expect("rows");
        let rows = Tensor::new(self.rows.as_slice(), padded.device()).expect("row numbers");
        values(&padded.index_select(&rows, 0).expect("rows of tokens"))
    }
}

fn matrix(tensors: &BTreeMap<String, Tensor>, key: &str) -> Vec<Vec<i64>> {
    tensors[key].to_dtype(DType::I64).and_then(|t| t.to_vec2::<i64>()).expect("a matrix")
}

fn logits_and_loss(case: &Case) {
    let adapter = case.adapter();
    assert_close("base logits", &case.logits(&()), &case.unpadded("base_logits"), LOGITS);
    assert_close("adapter logits", &case.logits(&adapter), &case.unpadded("adapter_logits"), LOGITS);
    let hidden = case.base.model.hidden(&case.micro.batch, &mut [], &adapter).expect("hidden states");
    let Labelled { labels, .. } = &case.micro.labelled;
    let sum = adapter
        .cross_entropy(case.base.model.head(), &hidden, &case.micro.labelled, Scoring::default())
        .expect("a loss");
    let mean = sum.to_scalar::<f32>().expect("a scalar") / labels.len() as f32;
    assert_close(
        "loss",
        &[mean],
        &values(&case.expected["loss"]),
        Tolerance { relative: 2e-5, absolute: 0.0 },
    );
    let nll = adapter.nll(case.base.model.head(), &hidden, &case.micro.labelled).expect("losses");
    let mean = nll.iter().sum::<f32>() / labels.len() as f32;
    assert_close(
        "nll",
        &[mean],
        &values(&case.expected["loss"]),
        Tolerance { relative: 2e-5, absolute: 0.0 },
    );
}

fn gradients(case: &Case) {
    let adapter = case.adapter();
    let found = step_grads(&*case.base.model, &adapter, std::slice::from_ref(&case.micro), Pass::default())
        .expect("gradients");
    let expected = case.expected.keys().filter_map(|key| key.strip_prefix("grad."));
    assert_eq!(found.grads.keys().map(String::as_str).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    for (name, gradient) in &found.grads {
        assert_gradient(name, gradient, &values(&case.expected[&format!("grad.{name}")]));
    }
}

fn adamw_losses(case: &Case) {
    let text = std::fs::read_to_string(case.dir.join("train.json")).expect("train.json");
    let train: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let expected: Vec<f32> = train["losses"]
        .as_array()
        .expect("losses")
        .iter()
        .filter_map(serde_json::Value::as_f64)
        .map(|v| v as f32)
        .collect();
    let adapter = case.adapter();
    let config = AdamWConfig {
        weight_decay: train["weight_decay"].as_f64().expect("a number"),
        ..AdamWConfig::default()
    };
    let mut optimiser = AdamW::new(adapter.params(), config);
    let mut losses = Vec::new();
    for _ in &expected {
        let step =
            step_grads(&*case.base.model, &adapter, std::slice::from_ref(&case.micro), Pass::default())
                .expect("gradients");
        losses.push((step.loss_sum / step.labels) as f32);
        optimiser
            .step(adapter.params(), &step.grads, train["lr"].as_f64().expect("a number"))
            .expect("an update");
    }
    // Six updates carry the differences of the gradients (1e-4) into the parameters.
    assert_close("losses", &losses, &expected, Tolerance { relative: 5e-5, absolute: 0.0 });
}

fn merged(case: &Case) {
    let out = tempfile::tempdir().expect("a folder");
    let out = out.path().join("merged");
    let adapter = case.adapter();
    let whole = [taper_merge::Weighted { adapter: &adapter, weight: 1.0 }];
    taper_merge::merge(&case.base, &whole, taper_merge::Out::new(&out), &mut |_| {
        std::ops::ControlFlow::Continue(())
    })
    .expect("a merge");
    let found = tensors(&out.join("model.safetensors"));
    let before = tensors(&case.dir.join("model/model.safetensors"));
    for (name, tensor) in &found {
        match case.expected.get(&format!("merged.{name}")) {
            Some(expected) => assert_close(
                name,
                &values(tensor),
                &values(expected),
                Tolerance { relative: 1e-6, absolute: 1e-6 },
            ),
            None => assert_eq!(
                values(tensor),
                before.get(name).map(values).expect("a tensor of the base"),
                "{name}"
            ),
        }
    }
    let expected = case.expected.keys().filter_map(|key| key.strip_prefix("merged."));
    assert!(expected.clone().count() > 0);
    for name in expected {
        assert!(found.contains_key(name), "{name} is missing");
    }
    let merged = open(&out);
    let hidden = merged.model.hidden(&case.micro.batch, &mut [], &()).expect("hidden states");
    let logits = values(&merged.model.head().forward(&hidden, &()).expect("logits"));
    assert_close("merged logits", &logits, &case.unpadded("merged_logits"), LOGITS);
}

macro_rules! oracle {
    ($($module:ident: $name:literal;)*) => {$(
        mod $module {
            use super::Case;

            #[test]
            fn logits_and_loss() {
                super::logits_and_loss(&Case::open($name));
            }

            #[test]
            fn gradients() {
                super::gradients(&Case::open($name));
            }

            #[test]
            fn adamw_losses() {
                super::adamw_losses(&Case::open($name));
            }

            #[test]
            fn merged() {
                super::merged(&Case::open($name));
            }
        }
    )*};
}

oracle! {
    bert_classify: "bert-classify";
    bert_tokens: "bert-tokens";
    distilbert_classify: "distilbert-classify";
    gemma2: "gemma2";
    gemma3: "gemma3";
    gpt2: "gpt2";
    gpt2_all_linear: "gpt2-all-linear";
    gpt2_bias: "gpt2-bias";
    gpt2_dora: "gpt2-dora";
    gpt2_modules_to_save: "gpt2-modules-to-save";
    gpt_neox: "gpt-neox";
    gpt_neox_serial: "gpt-neox-serial";
    llama: "llama";
    llama_all_linear: "llama-all-linear";
    llama_bias_lora_only: "llama-bias-lora-only";
    llama_classify: "llama-classify";
    llama_dora: "llama-dora";
    llama_embedding: "llama-embedding";
    llama_head_dim: "llama-head-dim";
    llama_layers: "llama-layers";
    llama_lm_head: "llama-lm-head";
    llama_lora_bias: "llama-lora-bias";
    llama_modules_to_save: "llama-modules-to-save";
    llama_patterns: "llama-patterns";
    llama_regex: "llama-regex";
    llama_rope_scaled: "llama-rope-scaled";
    llama_rslora: "llama-rslora";
    mistral: "mistral";
    modernbert_classify: "modernbert-classify";
    modernbert_mean: "modernbert-mean";
    modernbert_tokens: "modernbert-tokens";
    phi3: "phi3";
    phi3_longrope: "phi3-longrope";
    qwen2: "qwen2";
    qwen3: "qwen3";
    roberta_classify: "roberta-classify";
    smollm3: "smollm3";
    t5: "t5";
    t5_classify: "t5-classify";
    t5_v1_1: "t5-v1.1";
}
