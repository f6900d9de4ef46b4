//! `taper generate`: text from prompts, with one adapter, several, or none.

use std::io::Read;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use taper_base::{Adapter, Base, Beams, Generation, GenerationOptions, Stop};

use crate::args::{AdapterArgs, RunArgs, SamplingArgs};
use crate::output::{print, print_piece, say};
use crate::sources::{self, Loaded};

/// Continue prompts.
#[derive(Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    model: RunArgs,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// The prompt; may be repeated [default: standard input, whole]
    #[arg(long)]
    prompt: Vec<String>,
    /// A file that holds the prompt
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// Put the prompt into the model's chat template, as the user's message
    #[arg(long)]
    chat: bool,
    /// The system message, with --chat
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Answer with the base and with every adapter, side by side
    #[arg(long)]
    compare: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Look for the likeliest text along this many at once
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::MIN, conflicts_with_all = SAMPLED)]
    num_beams: NonZeroUsize,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// What has no meaning where nothing is drawn.
const SAMPLED: [&str; 6] = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"];

/// One adapter (or the base) and what it made of every prompt.
struct Answers<'a> {
    name: &'a str,
    generations: Vec<Generation>,
}

pub(crate) fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let base = sources::open_writer(&args.model, &args.adapters.adapter)?;
    let adapters = sources::load_adapters(&base, &args.adapters)?;
    let texts = prompts(args)?;
    let ids = texts.iter().map(|text| prompt_ids(&base, args, text)).collect::<anyhow::Result<Vec<_>>>()?;
    let options = args.sampling.options();
    let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
    sources::warn_beyond(&base, longest);
    let chosen = choose(&adapters, args.compare)?;
    let beams = Beams { count: args.num_beams.get(), ..Beams::default() };
    let stream = !args.json && chosen.len() == 1 && ids.len() == 1 && beams.count == 1;
    let mut answers = Vec::with_capacity(chosen.len());
    for (name, adapter) in chosen {
        let generations = if beams.count == 1 {
            answer(&base, adapter, &ids, &options, stream)?
        } else {
            let search = |prompt: &Vec<u32>| taper_base::beam_search(&base, adapter, prompt, &options, beams);
            ids.iter().map(search).collect::<Result<_, _>>()?
        };
        answers.push(Answers { name, generations });
    }
    if stream {
        print("")?;
    }
    for answer in &answers {
        sources::warn_beyond_made(&base, &ids, &answer.generations);
    }
    if args.json {
        return print(as_json(&texts, &answers));
    }
    if stream { Ok(()) } else { print_answers(&texts, &answers) }
}

/// Which adapters answer: all and the base to compare, else the one that was given, or the base.
fn choose(adapters: &[Loaded], compare: bool) -> anyhow::Result<Vec<(&str, &dyn Adapter)>> {
    let base: (&str, &dyn Adapter) = ("base", &());
    let named = adapters.iter().map(|loaded| (loaded.name.as_str(), &loaded.adapter as &dyn Adapter));
    match adapters {
        _ if compare => Ok(std::iter::once(base).chain(named).collect()),
        [] => Ok(vec![base]),
        [_] => Ok(named.collect()),
        _ => bail!("{} adapters: add --compare to see each one's answer", adapters.len()),
    }
}

fn answer(
    base: &Base,
    adapter: &dyn Adapter,
    prompts: &[Vec<u32>],
    options: &GenerationOptions,
    stream: bool,
) -> anyhow::Result<Vec<Generation>> {
    let started = std::time::Instant::now();
    let mut broken = None;
    let mut on_text = |_: usize, piece: &str| {
        if stream && let Err(error) = print_piece(piece) {
            broken.get_or_insert(error);
        }
    };
    let generations = taper_base::generate(base, adapter, prompts, options, &mut on_text)?;
    if let Some(error) = broken {
        return Err(error);
    }
    if crate::output::on_terminal() {
        let tokens: usize = generations.iter().map(|g| g.tokens.len()).sum();
        let seconds = started.elapsed().as_secs_f64();
        say(format_args!(
            "\n{tokens} tokens in {seconds:.1} s, {:.1} tokens/s",
            tokens as f64 / seconds.max(1e-9)
        ));
    }
    Ok(generations)
}

fn print_answers(texts: &[String], answers: &[Answers<'_>]) -> anyhow::Result<()> {
    let width = answers.iter().map(|answer| answer.name.chars().count()).max().unwrap_or(0);
    for (i, text) in texts.iter().enumerate() {
        if texts.len() > 1 {
            print(format_args!("> {}", text.replace('\n', "\n> ")))?;
        }
        for answer in answers {
            let reply = answer.generations[i].text.trim_end();
            if answers.len() > 1 {
                print(format_args!("{:>width$} | {}", answer.name, reply.trim_start()))?;
            } else {
                print(reply)?;
            }
        }
    }
    Ok(())
}

fn as_json(texts: &[String], answers: &[Answers<'_>]) -> serde_json::Value {
    let answer = |i: usize, answers: &Answers<'_>| {
        let Generation { tokens, text, stop, times } = &answers.generations[i];
        let stop = match stop {
            Stop::Eos => "eos",
            Stop::String => "stop",
            Stop::Length => "length",
        };
        let [first, end] = times.map(|time| time.as_secs_f64());
        json!({ "adapter": answers.name, "text": text, "tokens": tokens.len(), "stop": stop,
            "first_token_s": first, "seconds": end })
    };
    let prompt = |(i, text): (usize, &String)| json!({ "prompt": text, "answers": answers.iter().map(|a| answer(i, a)).collect::<Vec<_>>() });
    let speeds: serde_json::Map<_, _> =
        answers.iter().map(|answers| (answers.name.to_owned(), speed(&answers.generations).into())).collect();
    json!({ "prompts": texts.iter().enumerate().map(prompt).collect::<Vec<_>>(), "tokens_per_s": speeds })
}

/// Tokens per second of all sequences together, once each has its first: decoding without the reading of prompts.
fn speed(generations: &[Generation]) -> Option<f64> {
    let latest = |i: usize| generations.iter().map(|g| g.times[i].as_secs_f64()).fold(0.0, f64::max);
    let tokens: usize = generations.iter().map(|g| g.tokens.len().saturating_sub(1)).sum();
    let seconds = latest(1) - latest(0);
    (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
}

fn prompts(args: &GenerateArgs) -> anyhow::Result<Vec<String>> {
    if !args.prompt.is_empty() {
        return Ok(args.prompt.clone());
    }
    if let Some(path) = &args.prompt_file {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        return Ok(vec![text]);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("standard input")?;
    if text.is_empty() {
        bail!("no prompt: give --prompt TEXT, --prompt-file FILE, or text on standard input");
    }
    Ok(vec![text])
}

fn prompt_ids(base: &Base, args: &GenerateArgs, text: &str) -> anyhow::Result<Vec<u32>> {
    if !args.chat {
        return Ok(base.tokenizer.encode(text)?);
    }
    let mut messages: Vec<_> =
        args.system.iter().map(|text| json!({ "role": "system", "content": text })).collect();
    messages.push(json!({ "role": "user", "content": text }));
    sources::chat_ids(base, &messages.into())
}
