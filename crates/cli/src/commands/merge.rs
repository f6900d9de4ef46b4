//! `taper merge`: adapters into full weights.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use taper_base::{Base, ModelSource};
use taper_kernels::Compute;
use taper_merge::{Merged, Progress, Verification, Weighted, sample, verify};

use crate::args::ModelArgs;
use crate::output::{bytes, count, print, progress_bar, say};
use crate::sources;

/// Logits that are further apart than this share of the largest say that the merge is not the adapter: rounding to bf16 moves
/// them by up to a few percent.
const SUSPICIOUS: f32 = 0.1;

/// Merge adapters into full weights: a plain model folder.
#[derive(Args)]
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
    /// Replace the output folder if it is there
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
    let base = sources::open_base(&args.model, &args.adapter)?;
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
    let merged = taper_merge::merge(&base, &adapters, &args.out, args.force, &mut on_progress)?;
    bar.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64();
    let verification = if args.no_verify { None } else { Some(compare(&base, &adapters, &merged)?) };
    if args.json {
        let object = serde_json::json!({
            "out": merged.path, "bytes": merged.bytes, "tensors": merged.tensors, "changed": merged.changed,
            "untied": merged.untied, "seconds": seconds, "verification": verification,
        });
        return print(object);
    }
    report(&base, &merged, verification.as_ref(), seconds)
}

fn compare(base: &Base, adapters: &[Weighted<'_>], merged: &Merged) -> anyhow::Result<Verification> {
    let found =
        Base::open(&ModelSource::Folder(merged.path.clone()), Compute::F32).context("the merged model")?;
    Ok(verify(&*base.model, adapters, &*found.model, &sample(base)?)?)
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
