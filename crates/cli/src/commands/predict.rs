//! `taper predict`: labels, numbers, tags or answers for lines of text, one JSON object a line.

use std::io::{BufRead, BufReader};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value, json};
use taper_base::{Adapter, Base, GenerationOptions, Task};
use taper_train::{Prediction, Question, kind, predict};

use crate::args::{AdapterArgs, RunArgs};
use crate::output::{print, say};
use crate::sources;

/// Tokens of one pass, unless a line is longer.
const BUDGET: usize = 1024;

/// Lines that are read before the first of them is answered.
const LINES: usize = 256;

/// Label lines of a file or of standard input, or answer them; one JSON object a line.
///
/// A line is a text, or a JSON object with `text`, `text_a` and `text_b`, `tokens` or `prompt`. With one adapter its
/// prediction stands in the object itself, or under `prediction` where the object has a `label` (`tags`, `probabilities`,
/// `answer`) of its own; with several each under its name.
#[derive(Args)]
pub(crate) struct PredictArgs {
    #[command(flatten)]
    model: RunArgs,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// The lines [default: standard input]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Most new tokens of an answer, where the model answers
    #[arg(long, value_name = "N", default_value = "64")]
    max_new_tokens: NonZeroUsize,
}

/// What some editors begin a file with.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Where a prediction stands that would take the place of what the line says itself.
const PREDICTION: &str = "prediction";

pub(crate) fn run(args: &PredictArgs) -> anyhow::Result<()> {
    let base = sources::open_run(&args.model, &args.adapters.adapter)?;
    let adapters = sources::load_adapters(&base, &args.adapters)?;
    let named: Vec<(&str, &dyn Adapter)> = if adapters.is_empty() {
        vec![("base", &())]
    } else {
        adapters.iter().map(|loaded| (loaded.name.as_str(), &loaded.adapter as &dyn Adapter)).collect()
    };
    let (name, lines): (String, Box<dyn BufRead>) = match &args.input {
        Some(path) => {
            let name = path.display().to_string();
            let file = std::fs::File::open(path).with_context(|| name.clone())?;
            (name, Box::new(BufReader::new(file)))
        }
        None => ("standard input".into(), Box::new(std::io::stdin().lock())),
    };
    let (mut batch, mut cut): (Vec<Line>, usize) = (Vec::new(), 0);
    for (number, text) in lines.lines().enumerate() {
        let place = || format!("{name}, line {}", number + 1);
        let text = text.with_context(place)?;
        let text = if number == 0 { text.trim_start_matches(BYTE_ORDER_MARK) } else { &text };
        if !text.trim().is_empty() {
            let line = Line::read(&base, text).and_then(|line| line.with_room_for(&base, &named));
            let line = line.with_context(place)?;
            cut += usize::from(line.is_cut());
            batch.push(line);
        }
        if batch.len() == LINES {
            answer(&base, &named, &std::mem::take(&mut batch), args.max_new_tokens.get())?;
        }
    }
    answer(&base, &named, &batch, args.max_new_tokens.get())?;
    if cut > 0 {
        let longest = base.model.sizes().max_position_embeddings;
        say(format_args!("{cut} rows are cut at {longest} tokens, as the model takes no more"));
    }
    Ok(())
}

/// A line, and what is asked of it.
struct Line {
    fields: Map<String, Value>,
    /// Whether one prediction stands under [`PREDICTION`].
    apart: bool,
    asked: Asked,
}

enum Asked {
    Label(Question),
    Answer(Vec<u32>),
}

impl Line {
    fn read(base: &Base, line: &str) -> anyhow::Result<Self> {
        let key = match base.task {
            Task::CausalLm => "prompt",
            Task::Classify(_) | Task::Tag(_) => "text",
        };
        let fields: Map<String, Value> = if line.trim_start().starts_with('{') {
            serde_json::from_str(line).context("is not a JSON object")?
        } else {
            [(key.to_owned(), json!(line))].into_iter().collect()
        };
        let text = |key: &str| fields.get(key).and_then(Value::as_str);
        let asked = match &base.task {
            Task::CausalLm => {
                let prompt = text("prompt").or_else(|| text("text"));
                let prompt =
                    prompt.with_context(|| unread(&fields, &["prompt", "text"], "has no `prompt`"))?;
                Asked::Answer(base.tokenizer.encode(prompt)?)
            }
            Task::Classify(_) => Asked::Label(match (text("text"), text("text_a"), text("text_b")) {
                (Some(text), ..) => Question::text(base, text, None)?,
                (None, Some(first), Some(second)) => Question::text(base, first, Some(second))?,
                _ => {
                    let lacking = "has neither `text` nor `text_a` and `text_b`";
                    bail!(unread(&fields, &["text", "text_a", "text_b"], lacking))
                }
            }),
            Task::Tag(_) => Asked::Label(Question::words(base, &words(&fields)?)?),
        };
        Ok(Self { fields, apart: false, asked })
    }

    /// Whether its text is longer than what the model takes.
    fn is_cut(&self) -> bool {
        matches!(&self.asked, Asked::Label(question) if question.is_cut())
    }

    /// The line with every field that it has kept, whatever predictions are called.
    fn with_room_for(mut self, base: &Base, adapters: &[(&str, &dyn Adapter)]) -> anyhow::Result<Self> {
        let taken = |name: &str| self.fields.contains_key(name);
        if adapters.len() == 1 {
            self.apart = predicted(base).iter().any(|name| taken(name));
            if self.apart && taken(PREDICTION) {
                bail!(
                    "has `{PREDICTION}` as well as fields that predictions are called by ({}): rename or remove one",
                    predicted(base).join(", ")
                );
            }
        } else if let Some((name, _)) = adapters.iter().find(|(name, _)| taken(name)) {
            bail!(
                "has a field `{name}`, which is an adapter's name too: give that another with --adapter NAME=PATH"
            );
        }
        Ok(self)
    }
}

/// The fields of a prediction.
fn predicted(base: &Base) -> &'static [&'static str] {
    match base.task {
        Task::CausalLm => &["answer"],
        Task::Classify(_) => &["label", "probabilities"],
        Task::Tag(_) => &["tags", "probabilities"],
    }
}

/// About a line of which nothing under `keys` could be used: the first that holds something of another kind, or else what is
/// `lacking`.
fn unread(fields: &Map<String, Value>, keys: &[&str], lacking: &str) -> String {
    let expected = |key: &str| if key == "tokens" { "a list" } else { "a text" };
    let wrong = |key: &&str| {
        let value = fields.get(*key).filter(|value| !value.is_null())?;
        let found = kind(value);
        (found != expected(key)).then(|| format!("`{key}` is {found}, expected {}", expected(key)))
    };
    keys.iter().find_map(wrong).unwrap_or_else(|| lacking.to_owned())
}

/// The `tokens` of a line, or the words of its `text`.
fn words(fields: &Map<String, Value>) -> anyhow::Result<Vec<String>> {
    if let Some(text) = fields.get("text").and_then(Value::as_str) {
        return Ok(text.split_whitespace().map(str::to_owned).collect());
    }
    let tokens = fields.get("tokens").and_then(Value::as_array);
    let tokens =
        tokens.with_context(|| unread(fields, &["tokens", "text"], "has neither `tokens` nor `text`"))?;
    let word = |word: &Value| word.as_str().map(str::to_owned).context("has a token that is not a text");
    tokens.iter().map(word).collect()
}

/// Prints every line of `batch` with what each adapter makes of it.
fn answer(
    base: &Base,
    adapters: &[(&str, &dyn Adapter)],
    batch: &[Line],
    max_tokens: usize,
) -> anyhow::Result<()> {
    let mut found: Vec<Vec<Map<String, Value>>> = Vec::new();
    for (_, adapter) in adapters {
        found.push(of_adapter(base, *adapter, batch, max_tokens)?);
    }
    for (i, line) in batch.iter().enumerate() {
        let mut object = line.fields.clone();
        match found.as_slice() {
            [one] if line.apart => {
                object.insert(PREDICTION.to_owned(), one[i].clone().into());
            }
            [one] => object.extend(one[i].clone()),
            several => object.extend(
                adapters
                    .iter()
                    .zip(several)
                    .map(|((name, _), of)| ((*name).to_owned(), of[i].clone().into())),
            ),
        }
        print(Value::Object(object))?;
    }
    Ok(())
}

fn of_adapter(
    base: &Base,
    adapter: &dyn Adapter,
    batch: &[Line],
    max_tokens: usize,
) -> anyhow::Result<Vec<Map<String, Value>>> {
    let (mut questions, mut prompts) = (Vec::new(), Vec::new());
    for line in batch {
        match &line.asked {
            Asked::Label(question) => questions.push(question.clone()),
            Asked::Answer(prompt) => prompts.push(prompt.clone()),
        }
    }
    if base.task == Task::CausalLm {
        let options = GenerationOptions { max_tokens, ..GenerationOptions::default() };
        let made = taper_base::generate(base, adapter, &prompts, &options, &mut |_, _| ())?;
        sources::warn_beyond_made(base, &prompts, &made);
        return Ok(made
            .into_iter()
            .map(|made| [("answer".to_owned(), json!(made.text))].into_iter().collect())
            .collect());
    }
    let names = base.task.labels().map(taper_base::Labels::names).unwrap_or_default();
    let found = predict(base, adapter, &questions, BUDGET)?;
    Ok(found.iter().map(|prediction| object(prediction, &names)).collect())
}

fn object(prediction: &Prediction, names: &[String]) -> Map<String, Value> {
    let value = match prediction {
        Prediction::Label(label, probabilities) => {
            let of_label: Map<String, Value> =
                names.iter().zip(probabilities).map(|(name, p)| (name.clone(), json!(p))).collect();
            json!({"label": names[*label as usize], "probabilities": of_label})
        }
        Prediction::Number(value) => json!({"label": value}),
        Prediction::Tags(tags) => {
            let name = |tag: &Option<(u32, f64)>| tag.map(|(label, _)| names[label as usize].clone());
            let probability = |tag: &Option<(u32, f64)>| tag.map(|(_, p)| p);
            json!({"tags": tags.iter().map(name).collect::<Vec<_>>(),
                "probabilities": tags.iter().map(probability).collect::<Vec<_>>()})
        }
    };
    value.as_object().cloned().unwrap_or_default()
}
