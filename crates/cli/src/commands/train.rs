//! `taper train`: trains an adapter and shows what it learnt.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use taper_base::{Base, GenerationOptions, Labels};
use taper_kernels::pool;
use taper_lora::LoraAdapter;
use taper_train::{
    DataFiles, DoneReport, Ending, Event, Known, Prediction, Question, RangeTest, Recipe, Split, SplitResult,
    Start, StepReport, Summary,
};

use super::train_args::TrainArgs;
use crate::output::{bytes, count, on_terminal, print, say, table};

/// Rows whose answers are shown at the end, and the longest answer.
const SAMPLES: usize = 4;
const SAMPLE_TOKENS: usize = 64;
/// Tokens of those rows that are labelled at a time, unless a row is longer.
const SAMPLE_BUDGET: usize = 1024;

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

/// What the adapter is worth, a few of its answers, and what to do with it.
fn conclude(base: &Base, recipe: &Recipe, done: &DoneReport) -> anyhow::Result<()> {
    let out = recipe.out.display();
    let memory = done.peak_rss_bytes.map_or_else(String::new, |peak| format!(", peak {}", bytes(peak)));
    let early = match recipe.early_stopping.filter(|_| done.ending == Ending::EarlyStopping) {
        Some(patience) => format!(", stopped early (early_stopping = {patience})"),
        None => String::new(),
    };
    let kept = done.kept_step.filter(|kept| *kept != done.step);
    let kept = kept.map_or_else(String::new, |kept| format!(" of step {kept}"));
    let (steps, seconds) = (done.step, done.seconds);
    say(format_args!("\n{steps} steps in {seconds:.1} s{memory}{early}; the adapter{kept} is in {out}\n"));
    if !done.results.is_empty() {
        print(results(&done.results))?;
        for SplitResult { split, base, adapted } in
            done.results.iter().filter(|result| !result.base.metrics.is_empty())
        {
            print(format_args!("\n{}", super::eval::scores(split, &[("base", base), ("adapter", adapted)])))?;
        }
    }
    show_samples(base, recipe)?;
    say(next(base, recipe));
    Ok(())
}

/// What to do with the adapter, as commands for a shell.
fn next(base: &Base, recipe: &Recipe) -> String {
    let out = recipe.out.display().to_string();
    let under = format!("--model {} --adapter {}", quoted(&recipe.model), quoted(&out));
    let (data, split) = held_out(recipe);
    let data = format!("taper eval {under} --data {}{split}", quoted(&from_here(data)));
    let columns = recipe.column.iter().map(|(ours, theirs)| quoted(&format!("{ours}={theirs}")));
    let columns = columns.map(|column| format!(" --column {column}"));
    let format = recipe.format.iter().map(|format| format!(" --format {format}"));
    let length = recipe.max_length.iter().map(|length| format!(" --max-length {length}"));
    let mut commands = vec![data + &columns.chain(format).chain(length).collect::<String>()];
    if base.task == taper_base::Task::CausalLm {
        commands.push(format!("taper generate {under} --compare --prompt \"...\""));
    } else {
        commands.push(format!("taper predict {under} --input TEXTS"));
    }
    if base.task == taper_base::Task::CausalLm && !base.dir.is_gguf() {
        // The folder itself may have been named as `.`.
        let whole = recipe.out.canonicalize().unwrap_or_default();
        let beside = match whole.file_name() {
            Some(name) if recipe.out == Path::new(".") => format!("../{}", name.display()),
            _ => out,
        };
        commands.push(format!("taper merge {under} --out {}", quoted(&format!("{beside}-merged"))));
    }
    format!("\nnext:\n  {}", commands.join("\n  "))
}

/// Rows that were not trained on, where there are any, and the flags that choose them.
fn held_out(recipe: &Recipe) -> (&str, String) {
    let tests = DataFiles::named(&recipe.data).is_ok_and(|files| files.get(Split::Test).is_some());
    match (recipe.eval_split, &recipe.eval_data) {
        (Some(share), _) if !tests => (&recipe.data, format!(" --eval-split {share} --seed {}", recipe.seed)),
        (None, Some(place)) if !tests => (place, String::new()),
        _ => (&recipe.data, String::new()),
    }
}

/// `text` as one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:@+,%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn results(results: &[SplitResult]) -> String {
    let mut head = vec!["", "labels", "base loss", "adapter loss"];
    if results.iter().any(|result| result.base.perplexity.is_some()) {
        head.extend(["base perplexity", "adapter perplexity"]);
    }
    let mut rows = vec![head.into_iter().map(ToOwned::to_owned).collect::<Vec<_>>()];
    rows.extend(results.iter().map(|SplitResult { split, base, adapted }| {
        let losses = [base, adapted].map(|side| format!("{:.4}", side.loss));
        let perplexities =
            [base, adapted].into_iter().filter_map(|side| side.perplexity).map(|value| format!("{value:.3}"));
        [(*split).to_owned(), count(base.tokens)].into_iter().chain(losses).chain(perplexities).collect()
    }));
    table(&rows)
}

/// Answers of base and adapter to the first rows that have a label, or a prompt and an answer, from the test split if there is
/// one.
fn show_samples(base: &Base, recipe: &Recipe) -> anyhow::Result<()> {
    let files = DataFiles::named(&recipe.data)?;
    let options = taper_train::data_options(base, recipe);
    let files = files.first(&[Split::Test, Split::Valid, Split::Train])?;
    let known = taper_train::known(base, files, &options, SAMPLES)?;
    if !known.is_empty() {
        return show_labels(base, recipe, &known);
    }
    let samples = taper_train::samples(files, &base.tokenizer, &options, SAMPLES)?;
    if samples.is_empty() {
        return Ok(());
    }
    let adapter = LoraAdapter::load(Path::new(&recipe.out), base)?;
    let prompts: Vec<Vec<u32>> = samples.iter().map(|sample| sample.prompt.clone()).collect();
    let options = GenerationOptions { max_tokens: SAMPLE_TOKENS, ..GenerationOptions::default() };
    let before = taper_base::generate(base, &(), &prompts, &options, &mut |_, _| ())?;
    let after = taper_base::generate(base, &adapter, &prompts, &options, &mut |_, _| ())?;
    for ((sample, before), after) in samples.iter().zip(&before).zip(&after) {
        let prompt = base.tokenizer.decode(&sample.prompt)?;
        print(format_args!("\n{}", prompt.trim()))?;
        print(format_args!("  expected  {}", one_line(&sample.answer)))?;
        print(format_args!("  base      {}", one_line(&before.text)))?;
        print(format_args!("  adapter   {}", one_line(&after.text)))?;
    }
    Ok(())
}

/// What base and adapter make of rows whose label is known.
fn show_labels(base: &Base, recipe: &Recipe, known: &[Known]) -> anyhow::Result<()> {
    let adapter = LoraAdapter::load(Path::new(&recipe.out), base)?;
    let names = base.task.labels().map(Labels::names).unwrap_or_default();
    let label = |prediction: &Prediction| match prediction {
        Prediction::Label(label, shares) => {
            format!("{} ({:.0} %)", names[*label as usize], 100.0 * shares[*label as usize])
        }
        Prediction::Number(value) => format!("{value:.3}"),
        Prediction::Tags(_) => String::new(),
    };
    let questions: Vec<Question> = known.iter().map(|known| known.question.clone()).collect();
    let before = taper_train::predict(base, &(), &questions, SAMPLE_BUDGET)?;
    let after = taper_train::predict(base, &adapter, &questions, SAMPLE_BUDGET)?;
    for ((known, before), after) in known.iter().zip(&before).zip(&after) {
        let texts: Vec<String> = known.texts.iter().map(|text| one_line(text)).collect();
        print(format_args!("\n{}", texts.join("\n")))?;
        print(format_args!("  expected  {}", known.label))?;
        print(format_args!("  base      {}", label(before)))?;
        print(format_args!("  adapter   {}", label(after)))?;
    }
    Ok(())
}

/// A path without detours, as seen from the working folder; anything else as it is.
fn from_here(place: &str) -> String {
    let here = std::env::current_dir().and_then(|dir| dir.canonicalize()).unwrap_or_default();
    match Path::new(place).canonicalize() {
        Ok(path) => path.strip_prefix(here).unwrap_or(&path).display().to_string(),
        Err(_) => place.to_owned(),
    }
}

fn one_line(text: &str) -> String {
    text.trim().replace('\n', " / ")
}
