//! `taper eval`: loss and perplexity of a base and of adapters on a data set.

use clap::Args;
use serde_json::{Value, json};
use taper_base::{Adapter, Base};
use taper_train::{DataFiles, DataSet, Evaluation, Split, evaluate};

use super::data::ReadingArgs;
use crate::args::{AdapterArgs, ModelArgs};
use crate::output::{count, print, say, table};
use crate::sources::{self, Loaded};

/// Tokens of one pass, unless a row is longer: products run at full speed, memory stays small.
const BUDGET: usize = 1024;

/// Measure loss and perplexity on a data set.
#[derive(Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// Rows: a file, a folder with test/valid, or a hub id
    #[arg(long)]
    data: String,
    #[command(flatten)]
    reading: ReadingArgs,
    /// Most tokens of one forward pass
    #[arg(long, value_name = "TOKENS", default_value_t = BUDGET)]
    micro_batch_tokens: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let base = sources::open_base(&args.model)?;
    let adapters = sources::load_adapters(&base, &args.adapters)?;
    let files = DataFiles::named(&args.data)?;
    let set = DataSet::load(
        files.first(&[Split::Test, Split::Valid, Split::Train])?,
        &base.tokenizer,
        &args.reading.options(),
    )?;
    if set.stats.kept() < set.stats.rows {
        say(format_args!(
            "{} of {} rows hold nothing to score and are left out",
            set.stats.rows - set.stats.kept(),
            set.stats.rows
        ));
    }
    let measure =
        |adapter: &dyn Adapter| evaluate(&*base.model, adapter, &set.examples, args.micro_batch_tokens);
    if args.json {
        return print(as_json(&base, &adapters, measure)?);
    }
    let mut rows =
        vec![["", "examples", "labels", "loss", "perplexity", "labels/s"].map(ToOwned::to_owned).to_vec()];
    rows.push(row("base", &measure(&())?));
    for loaded in &adapters {
        rows.push(row(&loaded.name, &measure(&loaded.adapter)?));
    }
    print(table(&rows))
}

fn row(name: &str, found: &Evaluation) -> Vec<String> {
    vec![
        name.to_owned(),
        count(found.examples),
        count(found.tokens),
        format!("{:.4}", found.loss),
        format!("{:.3}", found.perplexity),
        format!("{:.0}", found.tokens_per_s),
    ]
}

/// One object for the base or the one adapter; a list of them under `results` for several.
fn as_json<E>(
    base: &Base,
    adapters: &[Loaded],
    measure: impl Fn(&dyn Adapter) -> Result<Evaluation, E>,
) -> Result<Value, E> {
    let object = |adapter: Option<&Loaded>| -> Result<Value, E> {
        let found = match adapter {
            Some(loaded) => measure(&loaded.adapter)?,
            None => measure(&())?,
        };
        Ok(json!({
            "task": "causal-lm",
            "model": base.dir.name,
            "adapter": adapter.map(|loaded| loaded.dir.display().to_string()),
            "examples": found.examples,
            "tokens": found.tokens,
            "loss": found.loss,
            "perplexity": found.perplexity,
            "metrics": {},
            "seconds": found.seconds,
            "tokens_per_s": found.tokens_per_s,
            "peak_rss_bytes": taper_train::peak_rss_bytes(),
        }))
    };
    match adapters {
        [] => object(None),
        [one] => object(Some(one)),
        several => Ok(
            json!({ "results": several.iter().map(|one| object(Some(one))).collect::<Result<Vec<_>, E>>()? }),
        ),
    }
}
