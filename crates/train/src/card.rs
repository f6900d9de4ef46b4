//! `README.md`: the model card of a trained adapter, its front matter as PEFT 0.21.2 writes it.

use std::fmt::Write;
use std::path::Path;

use crate::metrics::Score;
use crate::outputs::recipe_name;
use crate::{DoneReport, Recipe, SplitResult, Summary, Task};

/// Of an adapter of `tiny`.
const INSIDE: &str = "The base is inside the program; `taper merge` writes it with the adapter as a folder that transformers reads.\n";

/// The card's text.
pub(crate) fn card(recipe: &Recipe, summary: &Summary, done: &DoneReport) -> String {
    let name = recipe.out.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    let name = name.unwrap_or_else(|| "adapter".into());
    let model = &summary.model;
    let mut text = front_matter(model, recipe.task());
    let kind = if recipe.use_dora { "DoRA" } else { "LoRA" };
    let _ = write!(text, "# {name}\n\nA {kind} adapter for {}, trained with taper.\n\n", named(model));
    text += &training(recipe, summary, done);
    text += &results(&done.results, summary.loss_unit);
    text += &usage(&name, model, recipe.task());
    text
}

fn front_matter(model: &str, task: Task) -> String {
    // A JSON string is a YAML string, whatever the path holds.
    let quoted = |text: String| serde_json::Value::String(text).to_string();
    let base = quoted(model.to_owned());
    let tag = quoted(format!("base_model:adapter:{model}"));
    let pipeline = match task {
        Task::Classify => "text-classification",
        Task::Tag => "token-classification",
        Task::Seq2seq => "text2text-generation",
        Task::CausalLm | Task::Preference => "text-generation",
    };
    format!(
        "---\nbase_model: {base}\nlibrary_name: peft\npipeline_tag: {pipeline}\ntags:\n- {tag}\n- lora\n- taper\n- \
         transformers\n---\n\n"
    )
}

/// The base, with a link if it looks like the hub's.
fn named(model: &str) -> String {
    let hub = model.matches('/').count() == 1 && !model.starts_with(['.', '/']) && !Path::new(model).exists();
    if hub { format!("[`{model}`](https://huggingface.co/{model})") } else { format!("`{model}`") }
}

fn training(recipe: &Recipe, summary: &Summary, done: &DoneReport) -> String {
    let train = &summary.train;
    let kept = done.kept_step.unwrap_or(done.step);
    let data = Path::new(&recipe.data).file_name().unwrap_or_default().to_string_lossy();
    let rows = [
        ("Data", format!("`{data}`")),
        ("Training rows", format!("{} ({} read as {})", train.kept(), train.rows, summary.format)),
        ("Tokens an epoch", format!("{}, {:.1} % learned", train.tokens, 100.0 * summary.learned_share())),
        (
            "Trained parameters",
            format!("{} ({:.2} %)", summary.trainable_parameters, 100.0 * summary.trainable_share()),
        ),
        ("Steps", format!("{kept} of {} rows", summary.step_rows)),
        ("Learning rate", format!("{} ({:?})", recipe.lr, recipe.schedule).to_lowercase()),
        ("Seed", recipe.seed.to_string()),
    ];
    let mut text = String::from("## Training\n\n| | |\n|---|---|\n");
    for (what, value) in rows {
        let _ = writeln!(text, "| {what} | {value} |");
    }
    let file = recipe_name(&recipe.out);
    text + &format!(
        "\nThe whole recipe is in `{file}`, every step in `metrics.jsonl`.\n\n![loss](loss.svg)\n\n"
    )
}

fn results(results: &[SplitResult], unit: &str) -> String {
    let mut text = String::from("## Results\n\n");
    if results.is_empty() {
        return text + "There were no rows to evaluate on.\n\n";
    }
    let of_tokens = results.iter().any(|result| result.base.perplexity.is_some());
    let (more, line) =
        if of_tokens { (" base perplexity | adapted perplexity |", "---|---|") } else { ("", "") };
    let _ = writeln!(
        text,
        "| split | rows | labels | base loss | adapted loss |{more}\n|---|---|---|---|---|{line}"
    );
    for SplitResult { split, base, adapted } in results {
        let (examples, tokens) = (adapted.examples, adapted.tokens);
        let _ = write!(text, "| {split} | {examples} | {tokens} | {:.4} | {:.4} |", base.loss, adapted.loss);
        for perplexity in [base, adapted].iter().filter_map(|side| side.perplexity) {
            let _ = write!(text, " {perplexity:.3} |");
        }
        text.push('\n');
    }
    let _ = writeln!(text, "\nLoss: {unit}.\n");
    text + &scores(results)
}

/// The metrics of base and adapter on each split, with the intervals that other rows could have given.
fn scores(results: &[SplitResult]) -> String {
    let mut text = String::new();
    for SplitResult { split, base, adapted } in results {
        for (before, after) in base.metrics.0.iter().zip(&adapted.metrics.0) {
            let _ = writeln!(text, "| {split} | {} | {} | {} |", before.name, cell(before), cell(after));
        }
    }
    if text.is_empty() {
        return text;
    }
    format!(
        "| split | metric | base | adapted |\n|---|---|---|---|\n{text}\nIn brackets: 95 % of bootstrap samples.\n\n"
    )
}

fn cell(score: &Score) -> String {
    let interval = score.interval.map_or_else(String::new, |[low, high]| format!(" [{low:.4}, {high:.4}]"));
    format!("{:.4}{interval}", score.value)
}

fn usage(name: &str, model: &str, task: Task) -> String {
    if let Task::Classify | Task::Tag = task {
        return labelling(name, model, task);
    }
    let (class, chat) = match task {
        Task::Seq2seq => ("AutoModelForSeq2SeqLM", String::new()),
        _ => ("AutoModelForCausalLM", format!("taper chat --model {model} --adapter {name}\n")),
    };
    let taper = format!(
        "## Use\n\nWith taper:\n\n```sh\ntaper generate --model {model} --adapter {name} --prompt \"…\"\n\
         {chat}```\n\n"
    );
    if model == "tiny" {
        return taper + INSIDE;
    }
    taper
        + &format!(
            "With PEFT:\n\n```python\nfrom peft import PeftModel\n\
             from transformers import {class}, AutoTokenizer\n\n\
             base = {class}.from_pretrained(\"{model}\")\n\
             model = PeftModel.from_pretrained(base, \"{name}\")\n\
             tokenizer = AutoTokenizer.from_pretrained(\"{model}\")\n```\n"
        )
}

/// For labels, which `config.json` of the folder names for transformers.
fn labelling(name: &str, model: &str, task: Task) -> String {
    let taper = format!(
        "## Use\n\nWith taper:\n\n```sh\ntaper predict --model {model} --adapter {name} --input texts.txt\n```\n\n"
    );
    if model == "tiny" {
        return taper + INSIDE;
    }
    let class = if task == Task::Tag { "TokenClassification" } else { "SequenceClassification" };
    taper
        + &format!(
            "With PEFT, the labels from this folder's `config.json`:\n\n```python\nfrom peft import PeftModel\nfrom \
             transformers import AutoConfig, AutoModelFor{class}, AutoTokenizer\n\nconfig = \
             AutoConfig.from_pretrained(\"{name}\")\nbase = AutoModelFor{class}.from_pretrained(\"{model}\", \
             config=config, ignore_mismatched_sizes=True)\nmodel = PeftModel.from_pretrained(base, \"{name}\")\n\
             tokenizer = AutoTokenizer.from_pretrained(\"{model}\")\n```\n"
        )
}
