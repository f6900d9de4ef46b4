//! Whether a merged model says what its base says with the adapters: both run over the same tokens.

use std::collections::BTreeMap;

use candle_core::{D, Result, Tensor};
use serde::Serialize;
use taper_base::{Adapter, Base, Batch, Embedding, Linear, Module, Network};

use crate::{Error, Weighted};

/// What [`sample`] cuts its tokens from: prose, a number, a list and some code.
const TEXT: &str = "The taper burns for 3 hours, 40 minutes at most. Why? Wax, wick and air:\n1. light it\n2. fn main() {}\n";
/// Tokens that are enough to see a wrong merge, and few enough to cost little beside it.
const SAMPLE: usize = 16;
/// Rows whose logits are in memory at once.
const ROWS: usize = 8;

/// How far apart the merged model and base + adapters are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Verification {
    /// Tokens that both have run over.
    pub tokens: usize,
    /// Largest absolute difference of two logits.
    pub max_logit_difference: f32,
    /// Largest absolute logit of base + adapters: what that difference is to be held against.
    pub max_logit: f32,
    /// Positions at which both think the same token the likeliest.
    pub argmax_agree: usize,
}

/// Tokens of a short text.
pub fn sample(base: &Base) -> std::result::Result<Vec<u32>, Error> {
    let mut tokens = base.tokenizer.encode(TEXT)?;
    tokens.retain(|&token| (token as usize) < base.model.sizes().vocab_size);
    tokens.truncate(SAMPLE);
    Ok(if tokens.is_empty() { vec![0] } else { tokens })
}

/// Runs `tokens` through `base` with `adapters` and through `merged`, and compares the logits at every position.
pub fn verify(
    base: &dyn Network,
    adapters: &[Weighted<'_>],
    merged: &dyn Network,
    tokens: &[u32],
) -> std::result::Result<Verification, Error> {
    let batch = Batch::new([tokens]);
    let stack = Stack::new(base, adapters)?;
    let adapter: &dyn Adapter = match adapters {
        [Weighted { adapter, weight: 1.0 }] => *adapter,
        _ => &stack,
    };
    let adapted = base.hidden(&batch, &mut [], adapter)?;
    let whole = merged.hidden(&batch, &mut [], &())?;
    let mut result = Verification { tokens: tokens.len(), ..Verification::default() };
    for start in (0..tokens.len()).step_by(ROWS) {
        let rows = |hidden: &Tensor| hidden.narrow(0, start, ROWS.min(tokens.len() - start))?.contiguous();
        let expected = base.head().forward(&rows(&adapted)?, adapter)?;
        let found = merged.head().forward(&rows(&whole)?, &())?;
        result.max_logit = result.max_logit.max(largest(&expected)?);
        result.max_logit_difference = result.max_logit_difference.max(largest(&(&expected - &found)?)?);
        let [a, b] = [&expected, &found].map(|logits| logits.argmax(D::Minus1)?.to_vec1::<u32>());
        result.argmax_agree += a?.iter().zip(&b?).filter(|(a, b)| a == b).count();
    }
    Ok(result)
}

/// Largest absolute value; infinite if one is not a number.
fn largest(values: &Tensor) -> Result<f32> {
    let values = values.flatten_all()?.to_vec1::<f32>()?;
    Ok(values
        .iter()
        .map(|value| if value.is_nan() { f32::INFINITY } else { value.abs() })
        .fold(0.0, f32::max))
}

/// Several weighted adapters as one: base + Σ weight · (adapted - base), as [`merge`](crate::merge()) has it.
struct Stack<'a> {
    adapters: &'a [Weighted<'a>],
    params: BTreeMap<String, Tensor>,
}

impl<'a> Stack<'a> {
    fn new(base: &dyn Network, adapters: &'a [Weighted<'a>]) -> Result<Self> {
        let mut params = BTreeMap::new();
        for module in base.modules() {
            let Module::Norm(norm) = module else { continue };
            let gain = sum(&norm.gain, adapters, |adapter| {
                Ok(adapter.param(&norm.gain_path).unwrap_or(&norm.gain).clone())
            })?;
            params.insert(norm.gain_path.clone(), gain);
        }
        Ok(Self { adapters, params })
    }
}

impl Adapter for Stack<'_> {
    fn linear(&self, layer: &Linear, x: &Tensor) -> Result<Tensor> {
        sum(&layer.frozen(x)?, self.adapters, |adapter| adapter.linear(layer, x))
    }

    fn embedding(&self, layer: &Embedding, ids: &[u32]) -> Result<Tensor> {
        sum(&layer.frozen(ids)?, self.adapters, |adapter| adapter.embedding(layer, ids))
    }

    fn param(&self, path: &str) -> Option<&Tensor> {
        self.params.get(path)
    }
}

/// `frozen + Σ weight · (adapted - frozen)`.
fn sum(
    frozen: &Tensor,
    adapters: &[Weighted<'_>],
    adapted: impl Fn(&dyn Adapter) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut total = frozen.clone();
    for Weighted { adapter, weight } in adapters {
        total = (total + ((adapted(*adapter)? - frozen)? * *weight)?)?;
    }
    Ok(total)
}
