//! One update after another: the gradient of a step's rows, clipped, into the optimiser. At which rate, and what is done
//! with the adapter in between, is the caller's.

use std::time::Instant;

use taper_base::Base;
use taper_kernels::Scoring;
use taper_lora::LoraAdapter;

use crate::augment::Augmenter;
use crate::checkpoint::{Origin, State};
use crate::class_weights;
use crate::gradients::mix;
use crate::optim::{AdamW, AdamWConfig, clip_grad_norm};
use crate::packing::{Epoch, PackOptions, Plan, Step};
use crate::prepare::{self, Prepared, Rows};
use crate::{Error, Event, Example, Pass, Recipe, Start, StepReport, Summary, peak_rss_bytes, step_grads};

/// Random stream of dropout; fresh factors and the order of rows have their own from the same seed.
const DROPOUT: u64 = 0x6472_6f70_6f75_7421;

/// An adapter that learns.
pub(crate) struct Learner<'a> {
    base: &'a Base,
    /// The recipe with everything filled in.
    pub(crate) recipe: Recipe,
    pub(crate) adapter: LoraAdapter,
    pub(crate) optim: AdamW,
    /// The weight of each label, where they differ.
    weights: Option<Vec<f32>>,
    recomputed_blocks: usize,
    augmenter: Option<Augmenter<'a>>,
    plan: Plan<'a>,
    /// The epoch under way and its order of rows.
    epoch: (usize, Epoch<'a>),
}

/// A learner before its first step, and what stood before it.
pub(crate) struct Opened<'a> {
    pub(crate) learner: Learner<'a>,
    pub(crate) summary: Summary,
    pub(crate) origin: Origin,
    /// The state to go on from; the learner's moments are still those of a fresh start.
    pub(crate) state: Option<State>,
}

impl<'a> Learner<'a> {
    /// Prepares everything and shows the plan. Nothing is written.
    pub(crate) fn open(
        base: &'a Base,
        recipe: &Recipe,
        rows: &'a Rows,
        start: Start,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<Opened<'a>, Error> {
        let prepared = prepare::prepare(base, recipe, rows, start)?;
        let plan = plan(&prepared.recipe, rows);
        let summary = prepare::summary(base, &prepared, rows, plan.steps_per_epoch());
        let (origin, state) = (prepared.origin.clone(), prepared.state.clone());
        let learner = Self::new(base, prepared, rows, plan)?;
        on_event(&Event::Plan(Box::new(summary.clone())));
        Ok(Opened { learner, summary, origin, state })
    }

    fn new(base: &'a Base, prepared: Prepared, rows: &Rows, plan: Plan<'a>) -> Result<Self, Error> {
        let Prepared { recipe, adapter, memory, .. } = prepared;
        let optim = AdamW::new(adapter.params(), adamw_config(&recipe));
        let weights = class_weights::class_weights(base, &recipe, rows)?;
        let augmenter = Augmenter::new(recipe.augment, &base.tokenizer, recipe.seed)
            .map(|changes| changes.within(base.model.sizes().vocab_size, recipe.max_length));
        let (recomputed_blocks, epoch) = (memory.recomputed_blocks, (0, plan.epoch(0)));
        Ok(Self { base, recipe, adapter, optim, weights, recomputed_blocks, augmenter, plan, epoch })
    }

    /// The update after `done` others, at the rate `lr`.
    pub(crate) fn update(&mut self, done: usize, lr: f64) -> Result<StepReport, Error> {
        let start = Instant::now();
        let steps_per_epoch = self.plan.steps_per_epoch();
        let (number, index) = (done / steps_per_epoch, done % steps_per_epoch);
        if self.epoch.0 != number {
            self.epoch = (number, self.plan.epoch(number));
        }
        let step = self.step(number, index)?;
        let in_step = |error| at_step(error, done + 1);
        let scoring =
            Scoring { label_smoothing: self.recipe.label_smoothing as f32, weights: self.weights.as_deref() };
        let seed = mix(self.recipe.seed ^ DROPOUT, done as u64);
        let head_dropout = self.recipe.head_dropout as f32;
        let pass = Pass { seed, head_dropout, recomputed_blocks: self.recomputed_blocks, scoring };
        let mut sum = step_grads(&*self.base.model, &self.adapter, &step.micro, pass).map_err(in_step)?;
        let grad_norm = clip_grad_norm(&mut sum.grads, self.recipe.max_grad_norm).map_err(in_step)?;
        self.optim.step(self.adapter.params(), &sum.grads, lr)?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(StepReport {
            step: done + 1,
            epoch: (done + 1) as f64 / steps_per_epoch as f64,
            loss: sum.loss(),
            lr,
            grad_norm,
            tokens: step.tokens,
            seconds,
            tokens_per_s: step.tokens as f64 / seconds,
            peak_rss_bytes: peak_rss_bytes(),
        })
    }

    /// The rows of a step, changed where the recipe says so.
    fn step(&self, epoch: usize, index: usize) -> Result<Step, Error> {
        let Some(augmenter) = &self.augmenter else { return Ok(self.epoch.1.step(index)) };
        let examples = self.epoch.1.examples(index);
        let drawn: Vec<Example> =
            examples.into_iter().map(|row| augmenter.draw(row, epoch)).collect::<Result<_, _>>()?;
        Ok(Step::new(drawn.iter().collect(), self.recipe.micro_batch_tokens.unwrap_or(1)))
    }
}

/// How the training rows are dealt out.
fn plan<'a>(recipe: &Recipe, rows: &'a Rows) -> Plan<'a> {
    let options = PackOptions {
        rows: recipe.step_rows(),
        micro_batch_tokens: recipe.micro_batch_tokens.unwrap_or(1),
        shuffle: recipe.shuffle,
        seed: recipe.seed,
    };
    Plan::new(&rows.train.examples, options)
}

fn adamw_config(recipe: &Recipe) -> AdamWConfig {
    AdamWConfig {
        weight_decay: recipe.weight_decay,
        no_decay: recipe.no_decay.clone(),
        lora_plus_ratio: recipe.lora_plus_ratio,
        ..AdamWConfig::default()
    }
}

/// Says at which step a run failed.
fn at_step(error: Error, step: usize) -> Error {
    match error {
        Error::Training { what } => Error::training(format!("step {step}: {what}")),
        error => error,
    }
}
