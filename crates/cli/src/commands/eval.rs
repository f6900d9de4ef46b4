//! `taper eval`: loss, perplexity, bits per byte and metrics of the answers of a base and of adapters on a data set.

use std::num::NonZeroUsize;

use clap::Args;
use serde_json::{Value, json};
use taper_base::{Adapter, Base};
use taper_train::metrics::{Score, bits_per_byte};
use taper_train::{Asked, DataFiles, DataSet, Evaluation, Split, Task, evaluate};

use super::data::ReadingArgs;
use crate::args::{AdapterArgs, RunArgs};
use crate::output::{count, print, say, table};
use crate::sources::{self, Loaded, warn_beyond};

/// Tokens of one pass, unless a row is longer: products run at full speed, memory stays small.
const BUDGET: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Measure loss, perplexity and other metrics on a data set.
#[derive(Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    model: RunArgs,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// Rows: a file, a folder with test/valid, or a hub id
    #[arg(long)]
    data: String,
    #[command(flatten)]
    reading: ReadingArgs,
    /// Measure on the training rows that `taper train` with this --eval-split, and this --seed, set aside
    #[arg(long, value_name = "SHARE")]
    eval_split: Option<f64>,
    /// Seed of that choice
    #[arg(long, value_name = "N", default_value_t = 0, requires = "eval_split")]
    seed: u64,
    /// Metrics of greedy answers to the rows' prompts: bleu, chrf, rougeL, rouge1 and others
    #[arg(long, value_name = "METRICS", value_delimiter = ',')]
    metrics: Vec<String>,
    /// Tokens that an answer has at most
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_new_tokens: usize,
    /// Most tokens of one forward pass
    #[arg(long, value_name = "TOKENS", default_value_t = BUDGET)]
    micro_batch_tokens: NonZeroUsize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let base = sources::open_run(&args.model, &args.adapters.adapter)?;
    let adapters = sources::load_adapters(&base, &args.adapters)?;
    let asked = asked(args, &base)?;
    let mut options = args.reading.options();
    let task = Task::from(&base.task);
    options.decoder_start = base.model.decoder_start();
    (options.task, options.labels) = (Some(task.name()), base.task.labels().cloned());
    let length = taper_train::max_length(&base, options.max_length);
    options.max_length = Some(length);
    let files = DataFiles::named(&args.data)?;
    let load = |splits: &[Split]| DataSet::load(files.first(splits)?, &base.tokenizer, &options);
    let set = match args.eval_split {
        Some(share) => load(&[Split::Train])?.split_off(share, args.seed)?,
        None => load(&[Split::Test, Split::Valid, Split::Train])?,
    };
    warn_beyond(&base, set.stats.longest);
    if set.stats.truncated > 0 && args.reading.max_length.is_none() {
        let cut = set.stats.truncated;
        say(format_args!(
            "{cut} rows are cut at {length} tokens, as in training: --max-length N takes more or less"
        ));
    }
    if set.stats.kept() < set.stats.rows {
        say(format_args!(
            "{} of {} rows hold nothing to score and are left out",
            set.stats.rows - set.stats.kept(),
            set.stats.rows
        ));
    }
    let measure = |adapter: &dyn Adapter| -> Result<Evaluation, taper_train::Error> {
        let found = evaluate(&*base.model, adapter, &set.examples, args.micro_batch_tokens.get())?;
        Ok(Evaluation { metrics: asked.scores(&base, adapter, &set)?, ..found })
    };
    let bytes = learned_bytes(&base, &set)?;
    if args.json {
        return print(as_json((&base, bytes), &adapters, measure)?);
    }
    let mut found = vec![("base", measure(&())?)];
    for loaded in &adapters {
        found.push((&loaded.name, measure(&loaded.adapter)?));
    }
    let mut head = vec!["", "examples", "labels", "loss"];
    head.extend(found[0].1.perplexity.map(|_| "perplexity"));
    head.extend(bytes.map(|_| "bits/byte"));
    head.push("labels/s");
    let mut rows = vec![head.into_iter().map(ToOwned::to_owned).collect()];
    rows.extend(found.iter().map(|(name, found)| row(name, found, bytes)));
    print(table(&rows))?;
    if found[0].1.metrics.is_empty() {
        return Ok(());
    }
    let sides: Vec<(&str, &Evaluation)> = found.iter().map(|(name, found)| (*name, found)).collect();
    print(format_args!("\n{}", scores("", &sides)))
}

/// The metrics that were named, or else those of the base's task.
fn asked(args: &EvalArgs, base: &Base) -> Result<Asked, taper_train::Error> {
    let task = Task::from(&base.task);
    if args.metrics.is_empty() {
        return Asked::new(task, taper_train::default_metrics(&base.task), args.max_new_tokens, 0);
    }
    Asked::new(task, &args.metrics, args.max_new_tokens, 0)
}

/// Bytes of the text that the labels spell; none where they are no text.
fn learned_bytes(base: &Base, set: &DataSet) -> anyhow::Result<Option<usize>> {
    if base.task.labels().is_some() {
        return Ok(None);
    }
    let mut bytes = 0;
    for example in &set.examples {
        for span in example.spans() {
            bytes += base.tokenizer.decode(&example.tokens[span.clone()])?.len();
        }
    }
    Ok((bytes > 0).then_some(bytes))
}

/// The loss of all labels per byte of what they spell.
fn per_byte(found: &Evaluation, bytes: usize) -> f64 {
    bits_per_byte(found.loss * found.tokens as f64, bytes)
}

fn row(name: &str, found: &Evaluation, bytes: Option<usize>) -> Vec<String> {
    let mut cells =
        vec![name.to_owned(), count(found.examples), count(found.tokens), format!("{:.4}", found.loss)];
    cells.extend(found.perplexity.map(|perplexity| format!("{perplexity:.3}")));
    cells.extend(bytes.map(|bytes| format!("{:.3}", per_byte(found, bytes))));
    cells.push(format!("{:.0}", found.tokens_per_s));
    cells
}

/// A line a metric: its value under each of `sides`, with the interval that other rows could have given.
pub(crate) fn scores(title: &str, sides: &[(&str, &Evaluation)]) -> String {
    let mut rows =
        vec![std::iter::once(title).chain(sides.iter().map(|side| side.0)).map(ToOwned::to_owned).collect()];
    for score in sides.iter().take(1).flat_map(|(_, found)| &found.metrics.0) {
        let cells =
            sides.iter().map(|(_, found)| found.metrics.get(score.name).map_or_else(String::new, cell));
        rows.push(std::iter::once(score.name.to_owned()).chain(cells).collect::<Vec<_>>());
    }
    table(&rows)
}

fn cell(score: &Score) -> String {
    let digits = if score.value.abs() > 1.0 { 2 } else { 4 };
    match score.interval {
        _ if score.value.is_nan() => "undefined".into(),
        Some([low, high]) => format!("{:.digits$} [{low:.digits$}, {high:.digits$}]", score.value),
        None => format!("{:.digits$}", score.value),
    }
}

/// One object for the base or the one adapter; a list of them under `results` for several. Beside adapters the base's own
/// measures are under `base`.
fn as_json<E>(
    (base, bytes): (&Base, Option<usize>),
    adapters: &[Loaded],
    measure: impl Fn(&dyn Adapter) -> Result<Evaluation, E>,
) -> Result<Value, E> {
    let object = |adapter: Option<&Loaded>| -> Result<Value, E> {
        let found = match adapter {
            Some(loaded) => measure(&loaded.adapter)?,
            None => measure(&())?,
        };
        Ok(json!({
            "task": Task::of(base).name(),
            "model": base.dir.name,
            "name": adapter.map_or("base", |loaded| &loaded.name),
            "adapter": adapter.map(|loaded| loaded.dir.display().to_string()),
            "examples": found.examples,
            "tokens": found.tokens,
            "loss": found.loss,
            "perplexity": found.perplexity,
            "bits_per_byte": bytes.map(|bytes| per_byte(&found, bytes)),
            "metrics": found.metrics,
            "seconds": found.seconds,
            "tokens_per_s": found.tokens_per_s,
            "peak_rss_bytes": taper_train::peak_rss_bytes(),
        }))
    };
    let mut all = match adapters {
        [] => return object(None),
        [one] => object(Some(one))?,
        several => {
            json!({ "results": several.iter().map(|one| object(Some(one))).collect::<Result<Vec<_>, E>>()? })
        }
    };
    all["base"] = object(None)?;
    Ok(all)
}
