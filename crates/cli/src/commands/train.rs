//! `taper train`: trains an adapter and shows what it learnt.

mod conclusion;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use taper_base::Base;
use taper_kernels::pool;
use taper_train::{Ending, Event, RangeTest, Recipe, Start, StepReport, Summary};

use conclusion::conclude;

use super::train_args::TrainArgs;
use crate::output::{bytes, count, on_terminal, print, say, table};

/// Rates that are printed of a range test, at most.
const LINES: usize = 20;

pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<()> {
    let recipe = Recipe::load(args.recipe.as_deref(), args.overrides()?)?;
    if let Some(threads) = recipe.threads {
        pool::set_threads(threads);
    }
    let base = taper_train::open_base(&recipe)?;
    let start = match (args.resume, args.force) {
        (true, _) => Start::Resume,
        (_, true) => Start::Force,
        _ => Start::New,
    };
    let interrupt = interrupt()?;
    let mut screen = Screen::new(args.quiet, recipe.log_every);
    if let Some(rates) = args.find_lr {
        return find_lr((&base, &recipe), rates as usize, &mut screen, &interrupt);
    }
    let done = taper_train::train(&base, &recipe, start, &mut |event| screen.show(event), &interrupt)?;
    screen.finish();
    if done.ending == Ending::Interrupted {
        bail!("stopped after step {}; the same command with --resume goes on from there", done.step);
    }
    if args.quiet { Ok(()) } else { conclude(&base, &recipe, &done) }
}

/// Tries learning rates, and says which to take.
fn find_lr(
    (base, recipe): (&Base, &Recipe),
    rates: usize,
    screen: &mut Screen,
    interrupt: &AtomicBool,
) -> anyhow::Result<()> {
    let found = taper_train::find_lr(base, recipe, rates, &mut |event| screen.show(event), interrupt)?;
    screen.finish();
    let Some(test) = found else { bail!("stopped; nothing was written") };
    if screen.quiet { Ok(()) } else { Ok(print(suggestion(&test))?) }
}

/// The course of the loss in a few lines, and the rates to take.
fn suggestion(test: &RangeTest) -> String {
    let mut rows = vec![["rate", "loss", "smoothed"].map(ToOwned::to_owned).to_vec()];
    let every = test.tried.len().div_ceil(LINES).max(1);
    rows.extend(test.tried.iter().step_by(every).map(|tried| {
        vec![format!("{:.1e}", tried.lr), format!("{:.4}", tried.loss), format!("{:.4}", tried.smoothed)]
    }));
    let last = test.tried.last().map_or(0.0, |tried| tried.lr);
    let mut lines = vec![table(&rows), String::new()];
    if test.diverged {
        lines.push(format!("beyond {last:.1e} the loss breaks out"));
    }
    match (test.steepest, test.tenth_of_lowest) {
        (Some(steepest), Some(tenth)) => lines.extend([
            format!(
                "the loss falls fastest at {steepest:.1e}, and is lowest at {:.1e}, a tenth of which is {tenth:.1e}",
                10.0 * tenth
            ),
            format!("try --lr {:.0e} to {:.0e}", steepest.min(tenth), steepest.max(tenth)),
        ]),
        _ => lines.push(
            "the loss never fell: more rows a step (--batch-size) make it less noisy, more rates (--find-lr=300) train longer"
                .into(),
        ),
    }
    lines.push(format!("the picture is {}", test.picture.display()));
    lines.join("\n")
}

/// A flag that the first Ctrl-C sets; the second ends the process.
fn interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = flag.clone();
    let handler = move || {
        if raised.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        say("stopping after this step; once more to stop at once");
    };
    ctrlc::set_handler(handler).context("Ctrl-C")?;
    Ok(flag)
}

/// Shows a run on the terminal: the plan, a line for the first step, the last and every so many, and a bar.
struct Screen {
    quiet: bool,
    every: usize,
    steps: usize,
    bar: Option<ProgressBar>,
}

impl Screen {
    fn new(quiet: bool, every: usize) -> Self {
        Self { quiet, every: every.max(1), steps: 0, bar: None }
    }

    fn show(&mut self, event: &Event) {
        if self.quiet {
            return;
        }
        match event {
            Event::Plan(summary) => {
                say(plan(summary));
                self.steps = summary.steps;
                self.bar = on_terminal().then(|| bar(summary.steps, summary.resumed_at.unwrap_or(0)));
            }
            Event::Step(step) => {
                if let Some(bar) = &self.bar {
                    bar.set_position(step.step as u64);
                }
                if [1, self.steps].contains(&step.step) || step.step % self.every == 0 {
                    self.line(&step_line(step));
                }
            }
            Event::Eval(eval) => {
                let mark = if eval.best { ", the best so far" } else { "" };
                let result = &eval.result;
                let scores =
                    result.metrics.0.iter().map(|score| format!("  {} {:.4}", score.name, score.value));
                let scores: String = scores.collect();
                let perplexity =
                    result.perplexity.map(|value| format!("  perplexity {value:.3}")).unwrap_or_default();
                self.line(&format!(
                    "step {:>5}  valid loss {:.4}{perplexity}{scores}  ({:.1} s){mark}",
                    eval.step, result.loss, result.seconds
                ));
            }
            Event::Saved(_) | Event::Done(_) => {}
        }
    }

    /// A line above the bar.
    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(steps: usize, done: usize) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64).with_position(done as u64);
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} steps, {eta} left");
    style.map_or(bar.clone(), |style| bar.with_style(style))
}

fn step_line(step: &StepReport) -> String {
    let memory = step.peak_rss_bytes.map_or_else(String::new, |peak| format!("  peak {}", bytes(peak)));
    format!(
        "step {:>5}  loss {:.4}  lr {:.2e}  grad norm {:.3}  {:.0} tokens/s{memory}",
        step.step, step.loss, step.lr, step.grad_norm, step.tokens_per_s
    )
}

/// What will happen, before the first step.
fn plan(summary: &Summary) -> String {
    let train = &summary.train;
    let dropped = train.rows - train.kept();
    let mut lines = vec![
        format!(
            "model      {} ({}), {} parameters",
            summary.model,
            summary.model_type,
            count(summary.base_parameters as usize)
        ),
        format!(
            "trainable  {} parameters ({:.2} %) in {} modules",
            count(summary.trainable_parameters as usize),
            100.0 * summary.trainable_share(),
            summary.adapted_modules
        ),
        format!(
            "data       {} rows read as {}; {} cut at {} tokens, {} dropped for want of something to learn",
            count(train.rows),
            summary.format,
            count(train.truncated),
            count(summary.max_length),
            count(dropped)
        ),
        format!(
            "           {} tokens an epoch, {:.0} % learned",
            count(train.tokens),
            100.0 * summary.learned_share()
        ),
        format!(
            "steps      {} of {} rows, {} an epoch; at most {} tokens at a time, on {} threads",
            count(summary.steps),
            summary.step_rows,
            count(summary.steps_per_epoch),
            count(summary.micro_batch_tokens),
            summary.threads
        ),
        format!(
            "memory     about {}, {} of it the base's files{}{}",
            bytes(summary.memory_bytes),
            bytes(summary.base_bytes),
            match summary.recomputed_blocks {
                0 => String::new(),
                1 => ", with 1 block run again in backward".to_owned(),
                blocks => format!(", with {blocks} blocks run again in backward"),
            },
            summary.available_bytes.map_or_else(String::new, |free| format!("; {} are free", bytes(free)))
        ),
    ];
    if let Some(step) = summary.resumed_at {
        lines.push(format!("resuming   after step {step}"));
    }
    lines.extend(summary.warnings.iter().map(|warning| format!("warning    {warning}")));
    lines.join("\n")
}
