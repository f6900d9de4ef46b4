//! A whole model with its blocks as one operation each, against the same model operation by operation.

use std::path::Path;

use taper_base::{Base, Batch, Effect, ModelDir};
use taper_kernels::{Compute, Gradients};

use super::*;
use crate::Training;

/// Sums in another order, through a few layers and back.
const ROUNDING: f32 = 2e-5;

/// A pass whose adapter lets no block take it over.
struct InParts<'a>(&'a Training<'a>);

impl Adapter for InParts<'_> {
    fn linear(&self, layer: &Linear, x: &Tensor) -> candle_core::Result<Tensor> {
        self.0.linear(layer, x)
    }

    fn embedding(&self, layer: &Embedding, ids: &[u32]) -> candle_core::Result<Tensor> {
        self.0.embedding(layer, ids)
    }

    fn param(&self, path: &str) -> Option<&Tensor> {
        self.0.param(path)
    }
}

fn open(case: &str) -> Base {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/oracle").join(case);
    let dir = ModelDir { path: path.join("model"), name: String::new() };
    Base::open_dir(dir, Compute::F32).unwrap()
}

fn config(targets: &[&str], change: impl Fn(&mut LoraConfig)) -> LoraConfig {
    let target_modules = Some(list(targets));
    let mut config = LoraConfig { r: 3, lora_alpha: 4.0, target_modules, ..LoraConfig::default() };
    change(&mut config);
    config
}

/// An adapter of `base`, every parameter moved off its start.
fn moved(base: &Base, config: LoraConfig) -> LoraAdapter {
    let adapter = LoraAdapter::fresh(config, base, 3).unwrap();
    for (i, var) in (0u64..).zip(adapter.params().values()) {
        shift(var, i, 0.1);
    }
    adapter
}

/// Hidden states, and the gradients of their weighted sum, of a pass whose blocks may be one operation each.
fn passes(base: &Base, adapter: &LoraAdapter, training: Training<'_>) -> Vec<(String, Vec<f32>)> {
    let sums = Gradients::default();
    run(base, adapter, (&training.summing(&sums), &sums))
}

/// The same of a pass whose blocks are many operations.
fn passes_in_parts(base: &Base, adapter: &LoraAdapter, training: Training<'_>) -> Vec<(String, Vec<f32>)> {
    run(base, adapter, (&InParts(&training), &Gradients::default()))
}

fn run(
    base: &Base,
    adapter: &LoraAdapter,
    (pass, sums): (&dyn Adapter, &Gradients),
) -> Vec<(String, Vec<f32>)> {
    let batch = Batch::new([&[5u32, 9, 40, 2, 77, 31, 8][..], &[6, 200, 3]]);
    let hidden = base.model.hidden(&batch, &mut [], pass).unwrap();
    let weights = tensor(9, hidden.dims());
    let gradients = (&hidden * weights).unwrap().sum_all().unwrap().backward().unwrap();
    let gradient = |(key, var): (&String, &Var)| {
        let found = gradients.get(var).map(flat).or_else(|| sums.take(var))?;
        Some((key.clone(), found))
    };
    let found = adapter.params().iter().filter_map(gradient);
    std::iter::once(("hidden".to_owned(), flat(&hidden))).chain(found).collect()
}

const ALL: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

fn dora(config: &mut LoraConfig) {
    config.use_dora = true;
}

fn dropout(config: &mut LoraConfig) {
    config.lora_dropout = 0.3;
}

#[test]
fn a_pass_is_the_same_in_whole_blocks_and_in_parts() {
    // qwen2 has biases, qwen3 norms of heads, smollm3 layers without positions, mistral a window; bert and its kin norms that
    // come after.
    let decoders = ["llama-all-linear", "qwen2", "qwen3", "smollm3", "mistral"].map(|case| (case, &ALL[..]));
    let bert = &["query", "key", "value", "dense"][..];
    let distilbert = &["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"][..];
    let encoders = [
        ("bert-classify", bert),
        ("bert-tokens", bert),
        ("roberta-classify", &bert[..3]),
        ("distilbert-classify", distilbert),
    ];
    for (case, all) in decoders.into_iter().chain(encoders) {
        let base = open(case);
        for (name, config) in [
            ("lora", config(all, |_| {})),
            ("lora dropout", config(all, dropout)),
            ("dora", config(all, dora)),
            ("dora on some", config(&[all[0], all[all.len() - 1]], dora)),
        ] {
            let adapter = moved(&base, config).between_updates();
            let training = adapter.training(17);
            let whole = base.model.modules().into_iter().all(|module| match module {
                Module::Linear(layer) => !matches!(training.effect(layer).unwrap(), Effect::Other),
                _ => true,
            });
            assert!(whole, "{case}, {name}");
            let expected = passes_in_parts(&base, &adapter, training);
            let found = passes(&base, &adapter, training);
            assert_eq!(found.len(), 1 + adapter.params().len());
            // Run again or kept: the same bits.
            assert_eq!(found, passes(&base, &adapter, training.recomputing(1)), "{case}, {name}");
            for ((key, found), (_, expected)) in found.iter().zip(&expected) {
                assert_close(&format!("{case}, {name}: {key}"), found, expected, ROUNDING);
            }
        }
    }
}

#[test]
fn what_a_block_cannot_take_over_is_left_to_its_parts() {
    let save = |name: &'static str| move |config: &mut LoraConfig| config.modules_to_save = strings(&[name]);
    for (case, all, norm) in
        [("qwen2", &ALL[..], "input_layernorm"), ("bert-tokens", &["query", "dense"], "LayerNorm")]
    {
        let base = open(case);
        for (name, config) in [
            (
                "dora dropout",
                config(all, |c| {
                    dora(c);
                    dropout(c);
                }),
            ),
            ("norm", config(all, save(norm))),
            ("bias", config(all, |c| c.bias = Bias::LoraOnly)),
        ] {
            let adapter = moved(&base, config).between_updates();
            let training = adapter.training(17);
            let (found, expected) =
                (passes(&base, &adapter, training), passes_in_parts(&base, &adapter, training));
            assert_eq!(found.len(), 1 + adapter.params().len(), "{case}, {name}");
            // The same operations: the same bits.
            assert_eq!(found, expected, "{case}, {name}");
        }
    }
}

#[test]
fn a_magnitude_of_zero_still_learns() {
    let base = open("llama");
    let adapter = moved(&base, config(&["v_proj"], dora));
    let (key, var) = adapter.params().iter().find(|(key, _)| key.contains("magnitude")).unwrap();
    let mut values = flat(var);
    values[3] = 0.0;
    var.set(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap();
    let view = adapter.between_updates();
    let gradients = passes(&base, &adapter, view.training(0));
    let (_, gradient) = gradients.iter().find(|(name, _)| name == key).unwrap();
    assert!(gradient[3].abs() > 1e-4, "{gradient:?}");
}

#[test]
fn after_an_update_lengths_are_new() {
    let base = open("llama");
    let adapter = moved(&base, config(&["q_proj"], dora));
    let before = passes(&base, &adapter, adapter.between_updates().training(0));
    for (key, var) in adapter.params().iter().filter(|(key, _)| key.contains("lora_B")) {
        shift(var, key.len() as u64, 0.5);
    }
    let view = adapter.between_updates();
    let after = passes(&base, &adapter, view.training(0));
    assert_ne!(before[0], after[0]);
    for ((key, found), (_, expected)) in after.iter().zip(&passes(&base, &adapter, adapter.training(0))) {
        assert_close(key, found, expected, ROUNDING);
    }
}
