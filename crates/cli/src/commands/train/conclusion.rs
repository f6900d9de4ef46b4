//! What `taper train` says in the end: what was learnt, and what to do with it.

use std::path::Path;

use taper_base::{Base, GenerationOptions, Labels};
use taper_lora::LoraAdapter;
use taper_train::{
    DataFiles, DoneReport, Ending, Known, Prediction, Question, Recipe, Sample, Split, SplitResult,
};

use crate::output::{bytes, count, print, say, table};

/// Rows whose answers are shown at the end, and the longest answer.
const SAMPLES: usize = 4;
const SAMPLE_TOKENS: usize = 64;
/// Tokens of those rows that are labelled at a time, unless a row is longer.
const SAMPLE_BUDGET: usize = 1024;

/// What the adapter is worth, a few of its answers, and what to do with it.
pub(super) fn conclude(base: &Base, recipe: &Recipe, done: &DoneReport) -> anyhow::Result<()> {
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
            print(format_args!(
                "\n{}",
                crate::commands::eval::scores(split, &[("base", base), ("adapter", adapted)])
            ))?;
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

/// Answers of base and adapter to the first rows that have a label, or a prompt and an answer: of rows to evaluate on, if there
/// is a file of them.
fn show_samples(base: &Base, recipe: &Recipe) -> anyhow::Result<()> {
    let (place, _) = held_out(recipe);
    let files = DataFiles::named(place)?;
    let learned =
        place == recipe.data && [Split::Test, Split::Valid].iter().all(|split| files.get(*split).is_none());
    let options = taper_train::data_options(base, recipe);
    let files = files.first(&[Split::Test, Split::Valid, Split::Train])?;
    let known = taper_train::known(base, files, &options, SAMPLES)?;
    let samples = match known.as_slice() {
        [] => taper_train::samples(files, &base.tokenizer, &options, SAMPLES)?,
        _ => Vec::new(),
    };
    if learned && !(known.is_empty() && samples.is_empty()) {
        print("\nfrom the training file:")?;
    }
    if !known.is_empty() {
        return show_labels(base, recipe, &known);
    }
    show_answers(base, recipe, &samples)
}

/// What base and adapter answer to prompts whose answer is known.
fn show_answers(base: &Base, recipe: &Recipe, samples: &[Sample]) -> anyhow::Result<()> {
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
