//! What was typed to what it names: bases, adapters, prompts.

use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::{Context, bail};
use serde_json::Value;
use taper_base::{Base, Generation, ModelDir, ModelSource, Task};
use taper_kernels::Compute;
use taper_lora::LoraAdapter;

use crate::args::{AdapterArgs, ModelArgs, RunArgs};
use crate::output::say;

/// An adapter and the name it goes by.
pub(crate) struct Loaded {
    /// What `/adapter` and tables call it.
    pub(crate) name: String,
    /// Its folder.
    pub(crate) dir: PathBuf,
    /// The adapter.
    pub(crate) adapter: LoraAdapter,
}

/// Says so where a sequence of `tokens` tokens is longer than the base was made for, once a run. Not where places end: such a
/// base ends a text by itself.
pub(crate) fn warn_beyond(base: &Base, tokens: usize) {
    static WARNED: Once = Once::new();
    let made_for = base.model.sizes().max_position_embeddings;
    if tokens > made_for && base.model.places().is_none() {
        WARNED.call_once(|| {
            say(format_args!(
                "warning: up to {tokens} tokens at a time, and the model was made for {made_for}"
            ));
        });
    }
}

/// [`warn_beyond`] for what `made` brought the prompts to. An encoder-decoder keeps the two apart.
pub(crate) fn warn_beyond_made(base: &Base, prompts: &[Vec<u32>], made: &[Generation]) {
    let length = |(prompt, made): (&Vec<u32>, &Generation)| match base.model.decoder_start() {
        Some(_) => prompt.len().max(1 + made.tokens.len()),
        None => prompt.len() + made.tokens.len(),
    };
    warn_beyond(base, prompts.iter().zip(made).map(length).max().unwrap_or(0));
}

/// Opens a base that is to write text.
pub(crate) fn open_writer(args: &RunArgs, adapters: &[String]) -> anyhow::Result<Base> {
    let base = open_run(args, adapters)?;
    if base.task != Task::CausalLm {
        bail!(
            "{} with its head labels texts and writes none: use `taper predict`",
            adapters.first().unwrap_or(&args.base.model)
        );
    }
    Ok(base)
}

/// [`open_base`] with the products that the arguments ask for.
pub(crate) fn open_run(args: &RunArgs, adapters: &[String]) -> anyhow::Result<Base> {
    open_base(&args.base, args.dtype.into(), adapters)
}

/// Opens the base that the arguments name, with the compute threads they ask for, for the task of the adapters: all have to
/// be for the same, with the same labels. Without adapters it is the task that the base was saved for.
pub(crate) fn open_base(args: &ModelArgs, compute: Compute, adapters: &[String]) -> anyhow::Result<Base> {
    if let Some(threads) = args.threads {
        taper_kernels::pool::set_threads(threads.get());
    }
    let dir = ModelDir::resolve(&ModelSource::parse(&args.model)?)?;
    let config = dir.json("config.json")?;
    let mut task: Option<(Task, &String)> = None;
    for text in adapters {
        let place = ModelDir::resolve_adapter(&ModelSource::parse_adapter(split_name(text).1)?)?;
        let next = taper_lora::task(&place, &config)?;
        match &task {
            Some((first, other)) if *first != next => {
                bail!("{other} and {text} have different tasks or labels: run them one after the other")
            }
            Some(_) => {}
            None => task = Some((next, text)),
        }
    }
    Ok(match task {
        Some((task, _)) => Base::open_for(dir, compute, task)?,
        None => Base::open_dir(dir, compute)?,
    })
}

/// Loads every `--adapter` onto `base`, telling what is odd about them.
pub(crate) fn load_adapters(base: &Base, args: &AdapterArgs) -> anyhow::Result<Vec<Loaded>> {
    let mut loaded: Vec<Loaded> = Vec::with_capacity(args.adapter.len());
    for text in &args.adapter {
        let next = load_adapter(base, text)?;
        if loaded.iter().any(|other| other.name == next.name) || next.name == "base" {
            bail!(
                "the name `{}` is taken: give the adapter another with --adapter NAME={}",
                next.name,
                next.dir.display()
            );
        }
        loaded.push(next);
    }
    Ok(loaded)
}

/// Loads one adapter, `PATH` or `NAME=PATH`.
pub(crate) fn load_adapter(base: &Base, text: &str) -> anyhow::Result<Loaded> {
    let (name, place) = split_name(text);
    let dir = ModelDir::resolve_adapter(&ModelSource::parse_adapter(place)?)?;
    let adapter = LoraAdapter::load(&dir, base)?;
    for warning in adapter.warnings() {
        say(format_args!("warning: {}: {warning}", dir.display()));
    }
    let name = name.map_or_else(|| last_part(place), ToOwned::to_owned);
    Ok(Loaded { name, dir, adapter })
}

/// `NAME=PATH` as its two parts; a path may contain `=` where what is before it cannot be a name.
pub(crate) fn split_name(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !name.contains(['/', '\\', '.']) => (Some(name), path),
        _ => (None, text),
    }
}

fn last_part(place: &str) -> String {
    let path = Path::new(place.trim_end_matches('/'));
    path.file_name().map_or_else(|| place.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Ids of a conversation that the model is to answer.
pub(crate) fn chat_ids(base: &Base, messages: &Value) -> anyhow::Result<Vec<u32>> {
    let template = base.tokenizer.chat().with_context(|| {
        format!("{} has no chat template: use `taper generate` with a plain prompt", base.dir.name)
    })?;
    let rendered = template.render(messages, None, true)?;
    Ok(base.tokenizer.encode_bare(&rendered.text)?)
}

#[cfg(test)]
mod tests {
    use super::split_name;

    #[test]
    fn a_name_may_stand_before_an_adapters_path() {
        assert_eq!(split_name("sql=adapters/sql"), (Some("sql"), "adapters/sql"));
        assert_eq!(split_name("adapters/sql"), (None, "adapters/sql"));
        assert_eq!(split_name("./lr=1e-4/out"), (None, "./lr=1e-4/out"));
    }
}
