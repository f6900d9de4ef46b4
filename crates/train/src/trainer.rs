//! The training loop.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use taper_base::{Adapter, Base};
use taper_lora::LoraAdapter;

use crate::checkpoint::{Checkpoints, Origin, Progress, State};
use crate::files::write_whole;
use crate::learner::{Learner, Opened};
use crate::outputs::{self, Metrics, Start};
use crate::prepare::{self, Rows};
use crate::schedule::Schedule;
use crate::{
    Asked, Best, DataSet, DoneReport, Ending, Error, EvalReport, Evaluation, Event, Recipe, SavedReport,
    SplitResult, Summary, card, evaluate, peak_rss_bytes,
};

/// Trains an adapter on `base` as `recipe` says and writes it to the recipe's `out`.
///
/// `on_event` hears of the plan before the first step, and then of every step, evaluation and checkpoint. Once `interrupt`
/// is set the run ends after the step it is in, with a checkpoint from which [`Start::Resume`] goes on; the resumed run
/// writes the same adapter, byte for byte, that an uninterrupted one would have.
///
/// # Errors
/// Anything wrong with recipe, data, adapter or output folder is found before the first step. A loss or gradient that is
/// not finite ends the run; the last checkpoint stays.
pub fn train(
    base: &Base,
    recipe: &Recipe,
    start: Start,
    on_event: &mut dyn FnMut(&Event),
    interrupt: &AtomicBool,
) -> Result<DoneReport, Error> {
    let (recipe, rows) = prepare::begin(base, recipe)?;
    let run = Run::begin(base, &recipe, &rows, start, on_event)?;
    run.complete(interrupt).map_err(|error| with_advice(error, &recipe.out))
}

/// Where the disk is full and a checkpoint stands, how to go on from it.
fn with_advice(error: Error, out: &Path) -> Error {
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(found) = cause {
        let full = found.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::StorageFull);
        if full && let Ok(Some(step)) = Checkpoints::new(out).steps().map(|mut steps| steps.pop()) {
            return Error::output(format!(
                "{error}: make room, and the same command with --resume goes on after step {step}"
            ));
        }
        cause = found.source();
    }
    error
}

/// A run under way.
struct Run<'a> {
    base: &'a Base,
    rows: &'a Rows,
    recipe: Recipe,
    summary: Summary,
    origin: Origin,
    learner: Learner<'a>,
    schedule: Schedule,
    progress: Progress,
    /// The last evaluation of this process, and the step it was made at.
    last: Option<(usize, Evaluation)>,
    watched: Asked,
    checkpoints: Checkpoints,
    saved: Option<usize>,
    metrics: Metrics,
    on_event: &'a mut dyn FnMut(&Event),
    began: Instant,
}

impl<'a> Run<'a> {
    /// Prepares everything, shows the plan, and opens the output folder.
    fn begin(
        base: &'a Base,
        recipe: &Recipe,
        rows: &'a Rows,
        start: Start,
        on_event: &'a mut dyn FnMut(&Event),
    ) -> Result<Self, Error> {
        let began = Instant::now();
        let Opened { mut learner, summary, origin, state } =
            Learner::open(base, recipe, rows, start, on_event)?;
        let recipe = learner.recipe.clone();
        let metrics =
            outputs::prepare(&recipe, start, state.as_ref().map_or(0, |state| state.metrics_bytes))?;
        let checkpoints = Checkpoints::new(&recipe.out);
        if let Some(state) = &state {
            checkpoints.restore(state.progress.step, &mut learner.optim)?;
        }
        let progress = state.as_ref().map(|state| state.progress).unwrap_or_default();
        let schedule = Schedule::new(recipe.lr, recipe.schedule, recipe.warmup_ratio, summary.steps);
        let watched = recipe.watched()?;
        let saved = state.as_ref().filter(|state| state.due).map(|state| state.progress.step);
        let mut run = Self {
            base,
            rows,
            recipe,
            summary,
            origin,
            learner,
            schedule,
            progress,
            last: None,
            watched,
            checkpoints,
            saved,
            metrics,
            on_event,
            began,
        };
        if saved.is_some() {
            run.report(&run.saved_event())?;
        }
        Ok(run)
    }

    /// Runs all steps that are left, or as many as nobody interrupts.
    fn complete(mut self, interrupt: &AtomicBool) -> Result<DoneReport, Error> {
        while self.progress.step < self.schedule.steps && !self.is_stale() {
            self.step()?;
            let new_best = self.is_due(self.recipe.eval_every) && self.evaluate()?;
            if new_best || self.is_due(self.recipe.save_every) {
                self.save(true)?;
            }
            if interrupt.load(Ordering::Relaxed) && self.progress.step < self.schedule.steps {
                return self.interrupted();
            }
        }
        self.finish()
    }

    /// One update, at the rate that the schedule gives.
    fn step(&mut self) -> Result<(), Error> {
        let done = self.progress.step;
        let step = self.learner.update(done, self.schedule.lr_at(done))?;
        self.progress.step = step.step;
        self.report(&Event::Step(step))
    }

    /// Looks at the validation rows, if there are any; says whether it is the best evaluation so far.
    fn evaluate(&mut self) -> Result<bool, Error> {
        let Some(valid) = &self.rows.valid else { return Ok(false) };
        let adapter = self.learner.adapter.frozen();
        let mut result = self.loss_on(&adapter, valid)?;
        result.metrics = self.watched.scores(self.base, &adapter, valid)?;
        let step = self.progress.step;
        let score = result.metrics.0.first().map(|score| score.value).filter(|value| !value.is_nan());
        let found = Best { step, loss: result.loss, score };
        let best = self.progress.best.is_none_or(|best| found.beats(&best));
        if best {
            self.progress.best = Some(found);
            self.progress.stale = 0;
        } else {
            self.progress.stale += 1;
        }
        self.last = Some((step, result.clone()));
        self.report(&Event::Eval(EvalReport { step, epoch: self.epochs(), result, best }))?;
        Ok(best)
    }

    fn loss_on(&self, adapter: &dyn Adapter, set: &DataSet) -> Result<Evaluation, Error> {
        let budget = self.recipe.micro_batch_tokens.unwrap_or(1);
        evaluate(&*self.base.model, adapter, &set.examples, budget)
    }

    /// Writes a checkpoint; one that is due is told of.
    fn save(&mut self, due: bool) -> Result<(), Error> {
        let state = State::new(self.progress, self.metrics.sync()?, due, self.origin.clone());
        self.checkpoints.save(&state, &self.learner.adapter, &self.learner.optim)?;
        self.saved = Some(self.progress.step);
        if due { self.report(&self.saved_event()) } else { Ok(()) }
    }

    fn saved_event(&self) -> Event {
        let step = self.progress.step;
        Event::Saved(SavedReport { step, path: format!("checkpoints/step-{step}").into() })
    }

    /// Leaves a checkpoint and ends.
    fn interrupted(mut self) -> Result<DoneReport, Error> {
        if self.saved != Some(self.progress.step) {
            self.save(false)?;
        }
        outputs::write_plot(&self.recipe.out, (&self.title(), self.summary.loss_unit), None)?;
        self.done(Ending::Interrupted, None, Vec::new())
    }

    /// Compares base and adapter, and writes the adapter with all that goes with it. The adapter's own files come last:
    /// where they are, everything is.
    fn finish(self) -> Result<DoneReport, Error> {
        let ending = if self.is_stale() { Ending::EarlyStopping } else { Ending::Finished };
        let chosen = self.recipe.early_stopping.is_some() || self.recipe.metric_for_best.is_some();
        let kept = self.progress.best.filter(|_| chosen);
        let kept = kept.map_or(self.progress.step, |best| best.step);
        let adapter = if kept == self.progress.step {
            self.learner.adapter.frozen()
        } else {
            LoraAdapter::load(&self.checkpoints.folder(kept), self.base)?
        };
        let results = self.compare(&adapter, kept)?;
        let base_loss = results.iter().find(|result| result.split == "valid").map(|result| result.base.loss);
        outputs::write_eval(&self.recipe, kept, &results)?;
        outputs::write_plot(&self.recipe.out, (&self.title(), self.summary.loss_unit), base_loss)?;
        let (base, recipe, summary) = (self.base, self.recipe.clone(), self.summary.clone());
        let done = self.done(ending, Some(kept), results)?;
        write_whole(&recipe.out.join("README.md"), card::card(&recipe, &summary, &done).as_bytes())?;
        outputs::write_labels(base, &recipe.out)?;
        adapter.save(&recipe.out)?;
        Ok(done)
    }

    /// Base and adapter side by side on every split there is.
    fn compare(&self, adapter: &LoraAdapter, step: usize) -> Result<Vec<SplitResult>, Error> {
        let asked = self.recipe.asked()?;
        let with = |adapter: &dyn Adapter, set: &DataSet, known: Option<Evaluation>| -> Result<_, Error> {
            let loss = known.map_or_else(|| self.loss_on(adapter, set), Ok)?;
            Ok(Evaluation { metrics: asked.scores(self.base, adapter, set)?, ..loss })
        };
        let mut results = Vec::new();
        for (split, set) in [("valid", &self.rows.valid), ("test", &self.rows.test)] {
            let Some(set) = set else { continue };
            let known = self.last.clone().filter(|(at, _)| split == "valid" && *at == step);
            let adapted = with(adapter, set, known.map(|(_, result)| result))?;
            results.push(SplitResult { split, base: with(&(), set, None)?, adapted });
        }
        Ok(results)
    }

    fn done(
        mut self,
        ending: Ending,
        kept_step: Option<usize>,
        results: Vec<SplitResult>,
    ) -> Result<DoneReport, Error> {
        let done = DoneReport {
            step: self.progress.step,
            ending,
            best: self.progress.best,
            kept_step,
            results,
            seconds: self.began.elapsed().as_secs_f64(),
            peak_rss_bytes: peak_rss_bytes(),
        };
        self.report(&Event::Done(Box::new(done.clone())))?;
        Ok(done)
    }

    /// A row of `metrics.jsonl`, and the caller's to know.
    fn report(&mut self, event: &Event) -> Result<(), Error> {
        self.metrics.append(event)?;
        (self.on_event)(event);
        Ok(())
    }

    /// Whether something that happens every so many steps, by default once an epoch, happens after this one. After the
    /// last step everything does.
    fn is_due(&self, every: Option<usize>) -> bool {
        let step = self.progress.step;
        step.is_multiple_of(every.unwrap_or(self.summary.steps_per_epoch)) || step == self.schedule.steps
    }

    /// Whether no evaluation has been better for long enough to stop.
    fn is_stale(&self) -> bool {
        self.recipe.early_stopping.is_some_and(|patience| self.progress.stale >= patience)
    }

    fn epochs(&self) -> f64 {
        self.progress.step as f64 / self.summary.steps_per_epoch as f64
    }

    fn title(&self) -> String {
        let out = self.recipe.out.canonicalize().unwrap_or_else(|_| self.recipe.out.clone());
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        format!("{name}: LoRA on {}", self.summary.model)
    }
}

#[cfg(test)]
mod tests;
