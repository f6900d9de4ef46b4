//! The loss of a base with an adapter on examples, nothing learned.

use std::time::Instant;

use candle_core::Tensor;
use serde::Serialize;
use taper_base::{Adapter, Network};

use crate::metrics::{self, Scores};
use crate::packing::micro_batches;
use crate::{Error, Example};

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Examples looked at.
    pub examples: usize,
    /// Labels of those examples.
    pub tokens: usize,
    /// Mean over labels, in nats; of numbers, the mean squared error.
    pub loss: f64,
    /// e to the loss; of labels and numbers it says nothing, and is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// Metrics of what the model predicts, where some were asked for.
    #[serde(skip_serializing_if = "Scores::is_empty")]
    pub metrics: Scores,
    /// Seconds that it took, without the metrics.
    pub seconds: f64,
    /// `tokens` / `seconds`.
    pub tokens_per_s: f64,
}

/// Evaluates `examples`, at most `budget` tokens (but at least one example) at a time. `&()` evaluates the base alone; an
/// adapter in training is best passed frozen, so that nothing is kept for gradients.
///
/// # Errors
/// [`Error::Data`] without a label, [`Error::Training`] where the loss is not finite.
pub fn evaluate(
    model: &dyn Network,
    adapter: &dyn Adapter,
    examples: &[Example],
    budget: usize,
) -> Result<Evaluation, Error> {
    let start = Instant::now();
    let (mut sum, mut tokens) = (0f64, 0usize);
    for micro in micro_batches(examples, budget) {
        let hidden = model.hidden(&micro.batch, &mut [], adapter)?;
        sum += if micro.numbers.is_empty() {
            adapter.nll(model.head(), &hidden, &micro.labelled)?.into_iter().map(f64::from).sum()
        } else {
            squared_errors(&model.head().forward(&hidden, adapter)?, &micro.numbers)?
        };
        tokens += micro.labels();
    }
    if tokens == 0 {
        return Err(Error::data("nothing to evaluate: no row has a label"));
    }
    let loss = sum / tokens as f64;
    if !loss.is_finite() {
        return Err(Error::training(format!(
            "the evaluation's loss is {loss}: `taper inspect` on base and adapter finds values that are not numbers"
        )));
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(Evaluation {
        examples: examples.len(),
        tokens,
        loss,
        perplexity: model.head_modules().is_empty().then(|| metrics::perplexity(loss)),
        metrics: Scores::default(),
        seconds,
        tokens_per_s: tokens as f64 / seconds.max(f64::MIN_POSITIVE),
    })
}

/// `Σ (output - wanted)²`.
fn squared_errors(outputs: &Tensor, wanted: &[f32]) -> candle_core::Result<f64> {
    let outputs: Vec<f32> = outputs.flatten_all()?.to_vec1()?;
    Ok(outputs.iter().zip(wanted).map(|(output, wanted)| f64::from(output - wanted).powi(2)).sum())
}
