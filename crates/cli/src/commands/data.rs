//! `taper data`: checks a data set, and shows how rows become tokens and which of them are learned.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::num::NonZeroUsize;

use anyhow::bail;
use clap::{Args, Subcommand};
use taper_base::{ModelDir, ModelSource, Tokenizer};
use taper_train::{Augment, DataFiles, DataOptions, DataReport, ShownRow, ShownToken, Split, SplitReport};

use crate::output::{count, print, table};

/// Check a data set, or look at its rows as a model sees them.
#[derive(Args)]
pub(crate) struct DataArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Read every row and count: formats, lengths, what is learned, what is dropped, what stands twice
    Check {
        #[command(flatten)]
        rows: RowArgs,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print rows as tokens, with what is learned marked
    Show {
        #[command(flatten)]
        rows: RowArgs,
        /// First row to show, from 1
        #[arg(long, default_value = "1")]
        row: NonZeroUsize,
        /// Number of rows to show
        #[arg(long, value_name = "N", default_value_t = 3)]
        count: usize,
        /// Show the rows as this changes them in the first epoch: `token_dropout=0.1,word_swap=0.1,word_deletion=0.1`
        #[arg(long, value_name = "KEY=SHARE", value_delimiter = ',', value_parser = share)]
        augment: Vec<(String, f64)>,
        /// Seed of the changes
        #[arg(long, value_name = "N", default_value_t = 0, requires = "augment")]
        seed: u64,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// Which rows, and how they are read.
#[derive(Args)]
pub(crate) struct RowArgs {
    /// Rows: a file, a folder with train/valid/test, or a hub id
    #[arg(long)]
    pub(crate) data: String,
    /// The model whose tokenizer and chat template are used: `tiny`, a folder, a .gguf file, or a hub id
    #[arg(long, default_value = "tiny")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
}

/// How rows are read.
#[derive(Args)]
pub(crate) struct ReadingArgs {
    /// Row format [default: detected from the rows]
    #[arg(long)]
    pub(crate) format: Option<String>,
    /// A column under another name, as format's=file's: prompt=question; may be repeated
    #[arg(long, value_name = "KEY=COLUMN", value_parser = column)]
    pub(crate) column: Vec<(String, String)>,
    /// Tokens at which a row is cut [default: as train's]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) max_length: Option<NonZeroUsize>,
}

impl ReadingArgs {
    pub(crate) fn options(&self) -> DataOptions {
        DataOptions {
            format: self.format.clone(),
            columns: self.column.iter().cloned().collect::<BTreeMap<_, _>>(),
            max_length: self.max_length.map(NonZeroUsize::get),
            decoder_start: None,
            threads: taper_kernels::pool::threads(),
            ..DataOptions::default()
        }
    }
}

pub(crate) fn column(text: &str) -> Result<(String, String), String> {
    let (key, name) = text.split_once('=').ok_or("expected KEY=COLUMN")?;
    Ok((key.to_owned(), name.to_owned()))
}

pub(crate) fn share(text: &str) -> Result<(String, f64), String> {
    let (key, share) = text.split_once('=').ok_or("expected KEY=SHARE")?;
    Ok((key.to_owned(), share.parse().map_err(|_| format!("{share} is no number"))?))
}

/// Shares by their key, as in a recipe.
pub(crate) fn shares(given: &[(String, f64)]) -> toml::Table {
    given.iter().map(|(key, share)| (key.clone(), (*share).into())).collect()
}

pub(crate) fn run(args: &DataArgs) -> anyhow::Result<()> {
    match &args.action {
        Action::Check { rows, json } => {
            let (files, tokenizer, options) = open(rows)?;
            let report = DataReport::of(&files, &tokenizer, &options)?;
            if *json { Ok(print(serde_json::to_string(&report)?)?) } else { Ok(print(describe(&report))?) }
        }
        Action::Show { rows, row, count, augment, seed, json } => {
            let (files, tokenizer, options) = open(rows)?;
            let first = row.get() - 1;
            let augment = Augment::try_from(shares(augment))?;
            let files = files.first(&Split::ALL)?;
            let shown = taper_train::show(
                files,
                &tokenizer,
                &options,
                first..first.saturating_add(*count),
                (augment, *seed),
            )?;
            if shown.is_empty() && *count > 0 {
                bail!("there is no row {row}: the files end before it");
            }
            if *json {
                return print(serde_json::to_string(&serde_json::json!({ "rows": shown }))?);
            }
            let colour = std::io::stdout().is_terminal();
            Ok(print(shown.iter().map(|row| show_row(row, colour)).collect::<Vec<_>>().join("\n\n"))?)
        }
    }
}

fn open(args: &RowArgs) -> anyhow::Result<(DataFiles, Tokenizer, DataOptions)> {
    let dir = ModelDir::resolve(&ModelSource::parse(&args.model)?)?;
    let given = args.reading.options();
    // As `train` cuts them: a model that leaves its limit to a default was made for more than rows are cut at.
    let length = taper_train::default_max_length(dir.max_positions()?.unwrap_or(usize::MAX));
    let max_length = given.max_length.or(Some(length));
    let options = DataOptions { decoder_start: dir.decoder_start()?, max_length, ..given };
    Ok((DataFiles::named(&args.data)?, Tokenizer::open(&dir)?, options))
}

fn describe(report: &DataReport) -> String {
    let head = ["split", "format", "rows", "tokens", "learned", "longest", "cut", "dropped", "twice"];
    let mut splits = vec![head.map(ToOwned::to_owned).to_vec()];
    splits.extend(report.splits.iter().map(split_row));
    let head = ["tokens a row", "least", "mean", "median", "90 %", "95 %", "99 %", "most"];
    let mut lengths = vec![head.map(ToOwned::to_owned).to_vec()];
    lengths.extend(report.splits.iter().map(length_row));
    let twice = report.splits.iter().filter(|split| split.duplicates.rows > 0).map(|split| {
        let (name, rows) = (split.split.name(), count(split.duplicates.rows));
        let (first, again) = split.duplicates.lines.first().copied().unwrap_or_default();
        format!("{name}: {rows} rows stand there before, as line {again} repeats line {first}")
    });
    let shared = report.overlaps.iter().map(|overlap| {
        let (rows, name, of) = (count(overlap.rows), overlap.second.name(), overlap.first.name());
        let (first, second) = overlap.lines.first().copied().unwrap_or_default();
        format!("{rows} rows of {name} are in {of} too, as line {second} repeats line {first}: a test on them measures memory")
    });
    let near = report.splits.iter().filter(|split| split.near_duplicates.rows > 0).map(|split| {
        let (name, rows) = (split.split.name(), count(split.near_duplicates.rows));
        let (first, again) = split.near_duplicates.lines.first().copied().unwrap_or_default();
        format!("{name}: {rows} rows differ from an earlier one in case or white space alone, as line {again} from line {first}")
    });
    let near_shared = report.near_overlaps.iter().map(|overlap| {
        let (rows, name, of) = (count(overlap.rows), overlap.second.name(), overlap.first.name());
        let (first, second) = overlap.lines.first().copied().unwrap_or_default();
        format!("{rows} rows of {name} are in {of} too but for case or white space, as line {second} and line {first}")
    });
    let parts = [report.path.display().to_string(), table(&splits), table(&lengths)];
    parts
        .into_iter()
        .chain(twice)
        .chain(near)
        .chain(shared)
        .chain(near_shared)
        .collect::<Vec<_>>()
        .join("\n\n")
}

fn split_row(split: &SplitReport) -> Vec<String> {
    let stats = &split.stats;
    vec![
        split.split.name().to_owned(),
        split.format.to_owned(),
        count(stats.rows),
        count(stats.tokens),
        format!("{:.0} %", 100.0 * split.learned),
        count(stats.longest),
        count(stats.truncated),
        count(stats.dropped_cut + stats.dropped_empty),
        count(split.duplicates.rows),
    ]
}

fn length_row(split: &SplitReport) -> Vec<String> {
    let lengths = &split.lengths;
    let mut row = vec![split.split.name().to_owned(), count(lengths.min), format!("{:.1}", lengths.mean)];
    row.extend([lengths.p50, lengths.p90, lengths.p95, lengths.p99, lengths.max].map(count));
    row
}

/// A row with its tokens between bars; what is learned is green on a terminal, in «» elsewhere.
fn show_row(row: &ShownRow, colour: bool) -> String {
    let (on, off) = if colour { ("\u{1b}[32m", "\u{1b}[0m") } else { ("«", "»") };
    let mut text = format!(
        "{}, line {} ({}): {} tokens, {} learned{}\n",
        row.path.display(),
        row.line,
        row.format,
        row.source.len() + row.tokens.len(),
        row.labels,
        if row.cut > 0 { format!(", {} cut off", row.cut) } else { String::new() }
    );
    push_tokens(&mut text, &row.source, (on, off));
    if !row.source.is_empty() {
        text.push_str("\n→ ");
    }
    push_tokens(&mut text, &row.tokens, (on, off));
    text
}

fn push_tokens(text: &mut String, tokens: &[ShownToken], (on, off): (&str, &str)) {
    let mut learning = false;
    for (at, token) in tokens.iter().enumerate() {
        if token.learned != learning {
            text.push_str(if token.learned { on } else { off });
            learning = token.learned;
        } else if at > 0 {
            text.push('|');
        }
        text.push_str(&token.text.replace('\n', "⏎"));
    }
    if learning {
        text.push_str(off);
    }
}
