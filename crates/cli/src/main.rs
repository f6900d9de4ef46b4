//! `taper`: trains, evaluates, swaps and merges LoRA adapters on a frozen base model.
//!
//! The binary parses, dispatches and prints; everything else is a library call. One file a command under `commands`.

mod args;
mod commands;
mod output;
mod sources;

use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches};
use taper_kernels::Kernels;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    taper_kernels::keep_freed();
    // A value such as `--lr -1` is told what is wrong with it where it is read, not taken for a flag.
    let command = Cli::command().mut_subcommands(|command| command.allow_negative_numbers(true));
    let cli = Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::say(format_args!("taper: {}", output::chain(&error)));
            ExitCode::FAILURE
        }
    }
}

/// Which kernels compute: fewer instructions than the machine has, for a comparison.
const KERNELS: &str = "TAPER_KERNELS";

fn run(cli: Cli) -> anyhow::Result<()> {
    choose_kernels()?;
    match cli.command {
        Command::Train(args) => commands::train::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Chat(args) => commands::chat::run(&args),
        Command::Predict(args) => commands::predict::run(&args),
        Command::Merge(args) => commands::merge::run(&args),
        Command::Quantize(args) => commands::quantize::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Data(args) => commands::data::run(&args),
    }
}

fn choose_kernels() -> anyhow::Result<()> {
    let Some(name) = std::env::var_os(KERNELS) else { return Ok(()) };
    let names = Kernels::NAMES.map(|(name, _)| name).join(", ");
    let found = Kernels::NAMES.into_iter().find(|(known, _)| name == *known);
    let (_, kernels) =
        found.with_context(|| format!("{KERNELS} is {}: expected one of {names}", name.display()))?;
    kernels.choose();
    Ok(())
}
