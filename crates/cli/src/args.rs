//! The command line: commands, and the groups of flags that several of them share.

use std::num::NonZeroUsize;

use clap::{Args, Parser, Subcommand};
use taper_base::{GenerationOptions, Sampling};
use taper_kernels::{CacheDtype, Compute};

use crate::commands;

/// Train, evaluate, swap and merge LoRA adapters on a frozen base model.
#[derive(Parser)]
#[command(name = "taper", version, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    Train(Box<commands::train_args::TrainArgs>),
    Eval(commands::eval::EvalArgs),
    Generate(commands::generate::GenerateArgs),
    Chat(commands::chat::ChatArgs),
    Predict(commands::predict::PredictArgs),
    Merge(commands::merge::MergeArgs),
    Quantize(commands::quantize::QuantizeArgs),
    Inspect(commands::inspect::InspectArgs),
    Data(commands::data::DataArgs),
}

/// Which base, on how many threads.
#[derive(Args)]
pub(crate) struct ModelArgs {
    /// The base model: `tiny`, a folder, a .gguf file, or a hub id (org/name or org/name@revision)
    #[arg(long)]
    pub(crate) model: String,
    /// Compute threads [default: all cores]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
}

/// Which base, and how it reads and writes.
#[derive(Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) base: ModelArgs,
    /// How products are computed: bf16 rounds what is multiplied, and is faster where the CPU has AVX-512 with bf16
    #[arg(long, value_name = "DTYPE", value_enum, default_value_t = DtypeArg::F32)]
    pub(crate) dtype: DtypeArg,
}

/// `--dtype`.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum DtypeArg {
    F32,
    Bf16,
}

impl From<DtypeArg> for Compute {
    fn from(arg: DtypeArg) -> Self {
        match arg {
            DtypeArg::F32 => Self::F32,
            DtypeArg::Bf16 => Self::Bf16,
        }
    }
}

/// Which adapters.
#[derive(Args)]
pub(crate) struct AdapterArgs {
    /// An adapter: a folder or a hub id, as NAME=PATH to give it a name; may be repeated
    #[arg(long, value_name = "[NAME=]PATH")]
    pub(crate) adapter: Vec<String>,
}

/// How tokens are chosen.
#[derive(Args)]
pub(crate) struct SamplingArgs {
    /// Most new tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// Softmax temperature; 0 takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    pub(crate) temperature: f32,
    /// Choose among the K likeliest tokens
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<NonZeroUsize>,
    /// Choose among the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P", value_parser = share)]
    pub(crate) top_p: Option<f32>,
    /// Choose among tokens at least this share as likely as the likeliest
    #[arg(long, value_name = "P", value_parser = share)]
    pub(crate) min_p: Option<f32>,
    /// Make tokens that were seen less likely; 1 is no penalty
    #[arg(long, value_name = "X", value_parser = penalty)]
    pub(crate) repetition_penalty: Option<f32>,
    /// Seed of the choice
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// End an answer before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// What keys and values are kept in while generating: f16 and bf16 need half the memory of f32, and round
    #[arg(long, value_name = "DTYPE", value_enum, default_value_t = KvCacheArg::F32)]
    pub(crate) kv_cache: KvCacheArg,
}

/// `--kv-cache`.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum KvCacheArg {
    F32,
    F16,
    Bf16,
}

impl From<KvCacheArg> for CacheDtype {
    fn from(arg: KvCacheArg) -> Self {
        match arg {
            KvCacheArg::F32 => Self::F32,
            KvCacheArg::F16 => Self::F16,
            KvCacheArg::Bf16 => Self::Bf16,
        }
    }
}

impl SamplingArgs {
    pub(crate) fn options(&self) -> GenerationOptions {
        GenerationOptions {
            max_tokens: self.max_tokens,
            stop: self.stop.iter().filter(|stop| !stop.is_empty()).cloned().collect(),
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k.map(NonZeroUsize::get),
                top_p: self.top_p,
                min_p: self.min_p,
                repetition_penalty: self.repetition_penalty,
                seed: self.seed,
            },
            cache_dtype: self.kv_cache.into(),
            ..GenerationOptions::default()
        }
    }
}

fn number(text: &str, is_fit: impl Fn(f32) -> bool, expected: &str) -> Result<f32, String> {
    text.parse().ok().filter(|&value| is_fit(value)).ok_or_else(|| format!("expected {expected}"))
}

fn temperature(text: &str) -> Result<f32, String> {
    number(text, |t| t >= 0.0 && t.is_finite(), "a number from 0")
}

fn share(text: &str) -> Result<f32, String> {
    number(text, |p| p > 0.0 && p <= 1.0, "a number above 0, up to 1")
}

fn penalty(text: &str) -> Result<f32, String> {
    number(text, |x| x > 0.0 && x.is_finite(), "a number above 0")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
