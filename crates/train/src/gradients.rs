//! The gradient of one step: its micro-batches forward and backward, summed, divided once by the step's labels.

use candle_core::Tensor;
use taper_base::{Adapter, Network};
use taper_kernels::{Dropout, Gradients, Scoring};
use taper_lora::{LoraAdapter, Training, dropped};

use crate::Error;
use crate::optim::{Grads, Params};
use crate::packing::MicroBatch;

/// Random stream of what the head reads.
const HEAD: u64 = 0x6865_6164_5f64_726f;

/// What one step's forward and backward passes give.
#[derive(Clone, Debug)]
pub struct StepGrads {
    /// Gradient of the mean loss over the step's labels, for every trainable parameter.
    pub grads: Grads,
    /// Loss summed over the step's labels, scored as the pass says, in nats; of numbers, the squared errors.
    pub loss_sum: f64,
    /// Labels of the step, each counted by its weight.
    pub labels: f64,
}

impl StepGrads {
    /// Mean loss over labels, in nats.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.labels.max(f64::MIN_POSITIVE)
    }
}

/// How a step's passes are run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pass<'a> {
    /// Decides the dropout of the step.
    pub seed: u64,
    /// Share of what the head reads that is zeroed, the rest scaled by `1 / (1 - share)`.
    pub head_dropout: f32,
    /// So many blocks, the first ones, are run again in backward instead of being kept.
    pub recomputed_blocks: usize,
    /// How labels are smoothed and weighted. The loss is then the sum over the weights of its labels, `Σ loss / Σ w`, as in
    /// torch's `CrossEntropyLoss`.
    pub scoring: Scoring<'a>,
}

/// Gradient of the mean loss over every label of a step, however the step is cut into micro-batches.
///
/// # Errors
/// [`Error::Training`] where the loss is not finite, or some trainable parameter received no gradient: all are named.
pub fn step_grads(
    model: &dyn Network,
    adapter: &LoraAdapter,
    micro: &[MicroBatch],
    pass: Pass<'_>,
) -> Result<StepGrads, Error> {
    let mut sum = StepGrads { grads: Grads::new(), loss_sum: 0.0, labels: 0.0 };
    let (adapter, of_factors) = (adapter.between_updates(), Gradients::default());
    for (index, batch) in micro.iter().enumerate() {
        let seed = mix(pass.seed, index as u64);
        let training = adapter.training(seed).recomputing(pass.recomputed_blocks);
        let head_dropout = Dropout { p: pass.head_dropout, seed: mix(seed ^ HEAD, 0) };
        let scored = Scored { model, batch, head_dropout, scoring: pass.scoring };
        sum.loss_sum += scored.add(training.summing(&of_factors), (adapter.params(), &mut sum.grads))?;
        sum.labels += scored.weight();
    }
    for (name, var) in adapter.params() {
        of_factors.take(var).into_iter().for_each(|values| add(&mut sum.grads, name, values));
    }
    if !sum.loss_sum.is_finite() {
        return Err(Error::training(format!(
            "the loss is {}: try a lower `lr`; `taper inspect` on the base finds values that are not numbers",
            sum.loss()
        )));
    }
    let without: Vec<&str> =
        adapter.params().keys().filter(|name| !sum.grads.contains_key(*name)).map(String::as_str).collect();
    if !without.is_empty() {
        return Err(Error::training(format!("no gradient reached {}", without.join(", "))));
    }
    let share = (1.0 / sum.labels.max(f64::MIN_POSITIVE)) as f32;
    for g in sum.grads.values_mut().flatten() {
        *g *= share;
    }
    Ok(sum)
}

fn add(grads: &mut Grads, name: &str, values: Vec<f32>) {
    match grads.get_mut(name) {
        Some(sum) => sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
        None => drop(grads.insert(name.to_owned(), values)),
    }
}

/// A micro-batch and how its labels are scored.
struct Scored<'a> {
    model: &'a dyn Network,
    batch: &'a MicroBatch,
    head_dropout: Dropout,
    scoring: Scoring<'a>,
}

impl Scored<'_> {
    /// Adds the micro-batch's gradients; returns its summed loss.
    ///
    /// Gradients leave candle's store as plain numbers: a stored tensor may hold on to the whole graph (`backprop.rs`,
    /// candle-core 0.11.1), which here ends with this call.
    fn add(&self, adapter: Training<'_>, (params, grads): (&Params, &mut Grads)) -> Result<f64, Error> {
        let mut hidden = self.model.hidden(&self.batch.batch, &mut [], &adapter)?;
        if self.head_dropout.p > 0.0 {
            hidden = dropped(&hidden, self.head_dropout)?;
        }
        let loss = self.loss(&adapter, &hidden)?;
        drop(hidden);
        let mut store = loss.backward()?;
        for (name, var) in params {
            let Some(grad) = store.remove(var) else { continue };
            add(grads, name, grad.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    /// The loss of all labels, a scalar.
    fn loss(&self, adapter: &Training<'_>, hidden: &Tensor) -> candle_core::Result<Tensor> {
        let head = self.model.head();
        let labelled = &self.batch.labelled;
        if !self.batch.numbers.is_empty() {
            let wanted = Tensor::new(self.batch.numbers.as_slice(), hidden.device())?.unsqueeze(1)?;
            return (head.forward(hidden, adapter)? - wanted)?.sqr()?.sum_all();
        }
        adapter.cross_entropy(head, hidden, labelled, self.scoring)
    }

    /// Labels of the micro-batch, each counted by its weight.
    fn weight(&self) -> f64 {
        let labels = &self.batch.labelled.labels;
        match self.scoring.weights {
            None => self.batch.labels() as f64,
            Some(weights) => labels.iter().map(|&label| f64::from(weights[label as usize])).sum(),
        }
    }
}

/// A seed for use number `index` of `seed`: splitmix64's output function (Steele et al. 2014).
pub(crate) fn mix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{DType, Device};
    use taper_base::{Base, ModelDir};
    use taper_kernels::Compute;

    use super::*;
    use crate::optim::{AdamW, AdamWConfig};
    use crate::packing::{PackOptions, Plan};
    use crate::{Example, evaluate};

    /// Sums in another order.
    const TOLERANCE: f32 = 1e-5;
    /// Losses of `PyTorch` + PEFT.
    const ORACLE: f64 = 2e-5;

    fn open(case: &str) -> (Base, LoraAdapter) {
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/oracle").join(case);
        let dir = ModelDir { path: case.join("model"), name: "fixture".into() };
        let base = Base::open_dir(dir, Compute::F32).unwrap();
        let adapter = LoraAdapter::load_trainable(&case.join("adapter"), &base).unwrap();
        (base, adapter)
    }

    /// Ragged rows of `lengths` tokens, the second half of each learned.
    fn ragged(lengths: &[usize]) -> Vec<Example> {
        let example = |(row, &length): (usize, &usize)| Example {
            tokens: (0..length).map(|i| ((row * 31 + i * 17) % 250) as u32).collect(),
            learn: crate::Learn::Tokens(std::iter::once((length / 2).max(1)..length).collect()),
            ..Example::default()
        };
        lengths.iter().enumerate().map(example).collect()
    }

    fn close(a: &Grads, b: &Grads) {
        assert!(a.keys().eq(b.keys()));
        for (name, grad) in a {
            let largest = grad.iter().fold(0f32, |max, g| max.max(g.abs()));
            for (x, y) in grad.iter().zip(&b[name]) {
                assert!((x - y).abs() <= TOLERANCE * largest, "{name}: {x} {y}");
            }
        }
    }

    #[test]
    fn t1_the_gradient_of_a_step_does_not_depend_on_its_micro_batches() {
        let (base, adapter) = open("llama-all-linear");
        for rows in [8, 3] {
            let examples = ragged(&[3, 40, 7, 21, 5, 2, 33, 12][..rows]);
            let grads = |tokens| {
                let options = PackOptions { rows: 8, micro_batch_tokens: tokens, shuffle: false, seed: 0 };
                let step = Plan::new(&examples, options).epoch(0).step(0);
                (step.micro.len(), step_grads(&*base.model, &adapter, &step.micro, Pass::default()).unwrap())
            };
            let ((one, whole), (many, cut)) = (grads(10_000), grads(1));
            assert_eq!((one, many), (1, rows));
            assert!((whole.labels - cut.labels).abs() < 1e-9);
            assert!((whole.loss() - cut.loss()).abs() < 1e-6);
            close(&whole.grads, &cut.grads);
        }
    }

    #[test]
    fn the_loss_of_a_step_is_the_evaluations() {
        let (base, adapter) = open("llama-dora");
        let examples = ragged(&[9, 4, 17]);
        let options = PackOptions { rows: 3, micro_batch_tokens: 64, shuffle: true, seed: 5 };
        let step = Plan::new(&examples, options).epoch(0).step(0);
        let trained = step_grads(&*base.model, &adapter, &step.micro, Pass::default()).unwrap();
        let evaluated = evaluate(&*base.model, &adapter.frozen(), &examples, 16).unwrap();
        assert_eq!((evaluated.examples, evaluated.tokens), (3, trained.labels as usize));
        assert!((evaluated.loss - trained.loss()).abs() < 1e-6);
        assert!((evaluated.perplexity.unwrap() - evaluated.loss.exp()).abs() < 1e-9);
    }

    #[test]
    fn six_steps_have_the_losses_of_torch() {
        for case in ["llama", "llama-all-linear", "llama-dora", "llama-modules-to-save", "qwen3"] {
            let (base, adapter) = open(case);
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/oracle").join(case);
            let text = std::fs::read_to_string(folder.join("train.json")).unwrap();
            let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
            let examples = oracle_rows(&folder);
            let options = PackOptions { rows: 2, micro_batch_tokens: 16, shuffle: false, seed: 0 };
            let step = Plan::new(&examples, options).epoch(0).step(0);
            let mut optim = AdamW::new(adapter.params(), AdamWConfig::default());
            for (at, loss) in expected["losses"].as_array().unwrap().iter().enumerate() {
                let sum = step_grads(&*base.model, &adapter, &step.micro, Pass::default()).unwrap();
                let loss = loss.as_f64().unwrap();
                assert!((sum.loss() - loss).abs() <= ORACLE * loss, "{case} {at}: {} {loss}", sum.loss());
                optim.step(adapter.params(), &sum.grads, expected["lr"].as_f64().unwrap()).unwrap();
            }
        }
    }

    /// The batch of an oracle case without its padding.
    fn oracle_rows(folder: &Path) -> Vec<Example> {
        let tensors =
            candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
        let rows = |name: &str| tensors[name].to_dtype(DType::I64).unwrap().to_vec2::<i64>().unwrap();
        let (ids, mask, labels) = (rows("input_ids"), rows("attention_mask"), rows("labels"));
        (0..ids.len())
            .map(|row| {
                let length = mask[row].iter().sum::<i64>() as usize;
                let first = (1..length).find(|&i| labels[row][i] >= 0).unwrap();
                let tokens = ids[row][..length].iter().map(|&id| id as u32).collect();
                let learn = crate::Learn::Tokens(std::iter::once(first..length).collect());
                Example { tokens, learn, ..Example::default() }
            })
            .collect()
    }

    #[test]
    fn seeds_of_uses_differ() {
        let seeds: Vec<u64> = (0..100).flat_map(|seed| (0..100).map(move |index| mix(seed, index))).collect();
        let distinct: std::collections::BTreeSet<_> = seeds.iter().collect();
        assert_eq!(distinct.len(), seeds.len());
    }
}
