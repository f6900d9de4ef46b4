//! One update after another: the gradient of a step's rows, clipped, into the optimiser. At which rate, and what is done
//! with the adapter in between, is the caller's.

use taper_base::Base;
use taper_kernels::Scoring;
use taper_lora::LoraAdapter;

use crate::augment::Augmenter;
use crate::gradients::mix;
use crate::optim::{AdamW, AdamWConfig, clip_grad_norm};
use crate::packing::{Epoch, PackOptions, Plan, Step};
use crate::prepare::{self, Prepared, Rows};
use crate::{Error, Example, Pass, Recipe, step_grads};

/// Random stream of dropout; fresh factors and the order of rows have their own from the same seed.
const DROPOUT: u64 = 0x6472_6f70_6f75_7421;

/// An adapter that learns.
pub(crate) struct Learner<'a> {
    base: &'a Base,
    recipe: Recipe,
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

/// What an update was made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Update {
    /// Mean over the step's labels before the update, in nats.
    pub(crate) loss: f64,
    /// Norm of the gradient before clipping.
    pub(crate) grad_norm: f64,
    /// Tokens that ran through the model.
    pub(crate) tokens: usize,
}

impl<'a> Learner<'a> {
    /// Ready for the first step; `optim` is where moments of an earlier run go.
    pub(crate) fn new(base: &'a Base, prepared: Prepared, rows: &'a Rows) -> Result<Self, Error> {
        let Prepared { recipe, adapter, memory, .. } = prepared;
        let plan = plan(&recipe, rows);
        let optim = AdamW::new(adapter.params(), adamw_config(&recipe));
        let weights = prepare::class_weights(base, &recipe, rows)?;
        let augmenter = Augmenter::new(recipe.augment, &base.tokenizer, recipe.seed)
            .map(|changes| changes.within(base.model.sizes().vocab_size, recipe.max_length));
        let (recomputed_blocks, epoch) = (memory.recomputed_blocks, (0, plan.epoch(0)));
        Ok(Self { base, recipe, adapter, optim, weights, recomputed_blocks, augmenter, plan, epoch })
    }

    /// The update after `done` others, at the rate `lr`.
    pub(crate) fn update(&mut self, done: usize, lr: f64) -> Result<Update, Error> {
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
        Ok(Update { loss: sum.loss(), grad_norm, tokens: step.tokens })
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
pub(crate) fn plan<'a>(recipe: &Recipe, rows: &'a Rows) -> Plan<'a> {
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
