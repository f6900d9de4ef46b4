//! `taper quantize`: a model folder as one GGUF file of fewer bits.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};
use taper_kernels::{Compute, Stored};
use taper_merge::{Progress, Quantized};

use crate::args::ModelArgs;
use crate::output::{bytes, count, print, progress_bar, say};
use crate::sources;

/// Write a model as one GGUF file, for llama.cpp and as a smaller base for training.
#[derive(Args)]
pub(crate) struct QuantizeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// File to write
    #[arg(long, value_name = "FILE.gguf")]
    out: PathBuf,
    /// How matrices are stored; norms and biases are f32. A matrix whose rows are no whole blocks (256 values of `q4_k`, 32
    /// of `q8_0`) takes more bits: `q8_0` if its rows are whole blocks of that, else f16
    #[arg(long = "type", value_name = "TYPE", default_value = "q4_k")]
    to: Type,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Type {
    /// 4.5 bits a value; 6.6 where logits are made
    #[value(name = "q4_k")]
    Q4K,
    /// 8.5 bits a value
    #[value(name = "q8_0")]
    Q80,
    /// bfloat16
    Bf16,
    /// IEEE half
    F16,
    /// IEEE single
    F32,
}

impl From<Type> for Stored {
    fn from(to: Type) -> Self {
        match to {
            Type::Q4K => Self::Q4_K,
            Type::Q80 => Self::Q8_0,
            Type::Bf16 => Self::Bf16,
            Type::F16 => Self::F16,
            Type::F32 => Self::F32,
        }
    }
}

pub(crate) fn run(args: &QuantizeArgs) -> anyhow::Result<()> {
    if args.out.extension().is_none_or(|extension| extension != "gguf") {
        anyhow::bail!("--out {}: a GGUF file is called NAME.gguf", args.out.display());
    }
    let started = Instant::now();
    let base = sources::open_base(&args.model, Compute::F32, &[])?;
    let bar = progress_bar();
    let mut on_progress = |progress: Progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        ControlFlow::Continue(())
    };
    let written = taper_merge::quantize(&base, args.to.into(), &args.out, args.force, &mut on_progress)?;
    bar.finish_and_clear();
    if let Some(warning) = unfit(&written, args.to.into()) {
        say(warning);
    }
    if args.json {
        return print(serde_json::to_string(&written)?);
    }
    let types =
        written.values_by_type.iter().map(|(name, values)| format!("{} {name}", count(*values as usize)));
    print(format_args!(
        "{}: {} tensors, {} values, {} in {:.2} s",
        written.path.display(),
        count(written.tensors),
        types.collect::<Vec<_>>().join(", "),
        bytes(written.bytes),
        started.elapsed().as_secs_f64()
    ))
}

/// What to say where matrices are stored otherwise than as `to`.
fn unfit(written: &Quantized, to: Stored) -> Option<String> {
    let unfit: u64 = written.unfit_by_row.values().sum();
    let all: u64 = written.values_by_type.values().sum();
    let rows: Vec<String> = written.unfit_by_row.keys().map(ToString::to_string).collect();
    (unfit > 0).then(|| {
        format!(
            "warning: {} of {} values are not stored as {to:?} but with more bits: its blocks are {} values of one row, and \
             rows of {} are not whole blocks",
            count(unfit as usize),
            count(all as usize),
            to.block(),
            rows.join(", ")
        )
    })
}
