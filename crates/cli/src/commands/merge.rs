//! `taper merge`: adapters into full weights.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use taper_base::{Base, ModelSource};
use taper_kernels::Compute;
use taper_merge::{Merged, Out, Progress, Verification, Weighted, sample, verify};

use crate::args::ModelArgs;
use crate::output::{bytes, count, print, progress_bar, say};
use crate::sources;

/// Logits that are further apart than this share of the largest say that the merge is not the adapter: rounding to bf16 moves
/// them by up to a few percent.
const SUSPICIOUS: f32 = 0.1;

/// Unlike elsewhere no GGUF file: its weights would be rounded again.
const BASE: &str =
    "The base model in full precision: `tiny`, a folder, or a hub id (org/name or org/name@revision)";

/// Merge adapters into full weights: a plain model folder.
#[derive(Args)]
#[command(mut_arg("model", |model| model.help(BASE)))]
pub(crate) struct MergeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// An adapter: a folder or a hub id; several are merged one after another
    #[arg(long, value_name = "PATH", required = true)]
    adapter: Vec<String>,
    /// How much of each --adapter, in their order [default: 1 each]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    weight: Vec<f64>,
    /// Folder to write the merged model to
    #[arg(long)]
    out: PathBuf,
    /// Replace the model's folder that --out names, if it is there
    #[arg(long)]
    force: bool,
    /// Leave out the comparison of base + adapter with the merged model
    #[arg(long)]
    no_verify: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &MergeArgs) -> anyhow::Result<()> {
    if !args.weight.is_empty() && args.weight.len() != args.adapter.len() {
        bail!(
            "{} weights for {} adapters: give one --weight for each --adapter, or none",
            args.weight.len(),
            args.adapter.len()
        );
    }
    let started = Instant::now();
    let base = sources::open_base(&args.model, Compute::F32, &args.adapter)?;
    let loaded = args
        .adapter
        .iter()
        .map(|text| sources::load_adapter(&base, text))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let weights = args.weight.iter().copied().chain(std::iter::repeat(1.0));
    let adapters: Vec<Weighted<'_>> = loaded
        .iter()
        .zip(weights)
        .map(|(loaded, weight)| Weighted { adapter: &loaded.adapter, weight })
        .collect();
    let bar = progress_bar();
    let mut on_progress = |progress: Progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        ControlFlow::Continue(())
    };
    let keep: Vec<&Path> = loaded.iter().map(|loaded| loaded.dir.as_path()).collect();
    let out = Out { path: &args.out, force: args.force, keep: &keep };
    let built = taper_merge::build(&base, &adapters, out, &mut on_progress)?;
    bar.finish_and_clear();
    let building = started.elapsed();
    let verification = if args.no_verify { None } else { Some(compare(&base, &adapters, built.dir())?) };
    let verified = Instant::now();
    let merged = built.publish()?;
    let seconds = (building + verified.elapsed()).as_secs_f64();
    if args.json {
        let object = serde_json::json!({
            "out": merged.path, "bytes": merged.bytes, "tensors": merged.tensors, "changed": merged.changed,
            "untied": merged.untied, "seconds": seconds, "verification": verification,
        });
        return print(object);
    }
    report(&base, &merged, verification.as_ref(), seconds)
}

/// Runs base + adapter and the merged model in `dir`; an error where one of them makes no numbers, or where all are 0: what a
/// norm makes of values whose squares are infinite.
fn compare(base: &Base, adapters: &[Weighted<'_>], dir: &Path) -> anyhow::Result<Verification> {
    let merged = Base::open(&ModelSource::Folder(dir.into()), Compute::F32).context("the merged model")?;
    let found = verify(&*base.model, adapters, &*merged.model, &sample(base)?)?;
    let wrong = if !found.max_logit_difference.is_finite() {
        "infinite or not numbers"
    } else if found.max_logit > 0.0 {
        return Ok(found);
    } else {
        "all 0"
    };
    let who = if found.max_logit.is_finite() && found.max_logit > 0.0 {
        "the merged model has"
    } else {
        "base + adapter have"
    };
    bail!(
        "over {} tokens, {who} logits that are {wrong}; nothing was written. Give a smaller --weight, if it is above 1, or see \
         what `taper eval` says of the adapter; --no-verify writes the model all the same",
        found.tokens
    )
}

fn report(
    base: &Base,
    merged: &Merged,
    verification: Option<&Verification>,
    seconds: f64,
) -> anyhow::Result<()> {
    print(format_args!(
        "{}: {} of {} tensors changed, {} in {seconds:.2} s",
        merged.path.display(),
        count(merged.changed.len()),
        count(merged.tensors),
        bytes(merged.bytes)
    ))?;
    if merged.untied {
        print(
            "the head and the embedding differ now: lm_head.weight is stored and tie_word_embeddings is false",
        )?;
    }
    if let Some(found) = verification {
        let what = if base.task.labels().is_some() { "labels" } else { "tokens" };
        print(format_args!(
            "over {} tokens, base + adapter and merged differ by at most {:.2e} (logits up to {:.2}); {} of {} \
             likeliest {what} agree",
            found.tokens, found.max_logit_difference, found.max_logit, found.argmax_agree, found.rows
        ))?;
        if found.max_logit_difference > SUSPICIOUS * found.max_logit {
            say("warning: that is more than rounding explains; please report it");
        }
    }
    Ok(())
}
