//! Whether a merged model says what its base says with the adapters: both run over the same tokens.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{D, Device, Result, Tensor};
use serde::Serialize;
use taper_base::{Adapter, Base, Batch, Effect, Embedding, Linear, Network, Task};
use taper_kernels::Weight;

use crate::{Error, Weighted};

/// What [`sample`] cuts its tokens from: prose, a number, a list and some code.
const TEXT: &str = "The taper burns for 3 hours, 40 minutes at most. Why? Wax, wick and air:\n1. light it\n2. fn main() {}\n";
/// Tokens that are enough to see a wrong merge, and few enough to cost little beside it.
const SAMPLE: usize = 16;
/// Tokens of a text that is labelled: shorter, so that several labels are compared.
const PIECE: usize = 4;
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
    /// Rows of logits that were compared: one a token, or one a text where the head labels texts.
    pub rows: usize,
    /// Rows in which both think the same token, or label, the likeliest.
    pub argmax_agree: usize,
}

/// Tokens that a head of `base`'s task can be tried on: a short text, written from itself by an encoder-decoder, or pieces of
/// it where the head labels texts.
pub fn sample(base: &Base) -> std::result::Result<Batch, Error> {
    let mut tokens = base.tokenizer.encode(TEXT)?;
    tokens.retain(|&token| (token as usize) < base.model.sizes().vocab_size);
    tokens.truncate(SAMPLE);
    if tokens.is_empty() {
        tokens.push(0);
    }
    if let Some(start) = base.model.decoder_start() {
        let mut batch = Batch::default();
        batch.push_from(&tokens, &[&[start], &tokens[..]].concat());
        return Ok(batch);
    }
    let piece = if matches!(base.task, Task::Classify(_)) { PIECE } else { SAMPLE };
    Ok(Batch::new(tokens.chunks(piece)))
}

/// Runs `batch` through `base` with `adapters` and through `merged`, and compares the logits of every row.
pub fn verify(
    base: &dyn Network,
    adapters: &[Weighted<'_>],
    merged: &dyn Network,
    batch: &Batch,
) -> std::result::Result<Verification, Error> {
    let stack = Stack::new(base, adapters)?;
    let adapter: &dyn Adapter = match adapters {
        [Weighted { adapter, weight: 1.0 }] => *adapter,
        _ => &stack,
    };
    let adapted = base.hidden(batch, &mut [], adapter)?;
    let whole = merged.hidden(batch, &mut [], &())?;
    let count = adapted.dim(0)?;
    let mut result = Verification { tokens: batch.len(), rows: count, ..Verification::default() };
    for start in (0..count).step_by(ROWS) {
        let rows = |hidden: &Tensor| hidden.narrow(0, start, ROWS.min(count - start))?.contiguous();
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

/// Several weighted adapters as one, each upon what the one before it left, as [`merge`](crate::merge()) has it.
struct Stack<'a> {
    adapters: &'a [Weighted<'a>],
    params: BTreeMap<String, Tensor>,
}

impl<'a> Stack<'a> {
    fn new(base: &dyn Network, adapters: &'a [Weighted<'a>]) -> std::result::Result<Self, Error> {
        let mut stack = Self { adapters, params: BTreeMap::new() };
        for module in base.modules() {
            for (name, frozen) in module.params() {
                let value = stack.vector(name, frozen)?;
                stack.params.insert(name.to_owned(), value);
            }
        }
        Ok(stack)
    }

    /// Rows `rows` of the tensor `name`, as the adapters leave them.
    fn merge_rows(&self, name: &str, rows: Range<usize>, values: &mut [f32]) -> Result<()> {
        let mut before = Vec::new();
        for weighted in self.adapters {
            let merged = weighted.merge_rows(name, rows.clone(), values, &mut before);
            merged.map_err(candle_core::Error::wrap)?;
        }
        Ok(())
    }

    fn vector(&self, name: &str, frozen: &Tensor) -> Result<Tensor> {
        let mut values = frozen.to_vec1::<f32>()?;
        self.merge_rows(name, 0..values.len(), &mut values)?;
        Tensor::from_vec(values, frozen.shape(), frozen.device())
    }

    /// `layer` with the adapters in its weight and bias.
    fn merged(&self, layer: &Linear) -> Result<Linear> {
        let (rows, cols) = layer.weight.stored_dims();
        let mut values = layer.weight.to_f32();
        self.merge_rows(&format!("{}.weight", layer.path), 0..rows, &mut values)?;
        let weight = Weight::dense(values, rows, cols).map_err(candle_core::Error::wrap)?;
        let weight = if layer.weight.is_transposed() { weight.transposed() } else { weight };
        let bias = layer.bias.as_ref().map(|bias| self.vector(&format!("{}.bias", layer.path), bias));
        Ok(Linear { path: layer.path.clone(), weight, bias: bias.transpose()? })
    }
}

impl Adapter for Stack<'_> {
    /// One adapter by its own forward pass; several by their merged weight, for they need not be a sum.
    fn linear(&self, layer: &Linear, x: &Tensor) -> Result<Tensor> {
        let frozen = layer.frozen(x)?;
        let mut active = Vec::new();
        for weighted in self.adapters {
            if !matches!(weighted.adapter.effect(layer)?, Effect::Frozen) {
                active.push(weighted);
            }
        }
        match active[..] {
            [] => Ok(frozen),
            [one] => &frozen + ((one.adapter.linear(layer, x)? - &frozen)? * one.weight)?,
            _ => self.merged(layer)?.frozen(x),
        }
    }

    fn embedding(&self, layer: &Embedding, ids: &[u32]) -> Result<Tensor> {
        let mut rows = layer.frozen(ids)?.flatten_all()?.to_vec1::<f32>()?;
        let (name, cols) = (format!("{}.weight", layer.path), layer.weight.cols());
        for (&id, row) in ids.iter().zip(rows.chunks_exact_mut(cols)) {
            self.merge_rows(&name, id as usize..id as usize + 1, row)?;
        }
        Tensor::from_vec(rows, (ids.len(), cols), &Device::Cpu)
    }

    fn param(&self, path: &str) -> Option<&Tensor> {
        self.params.get(path)
    }
}
