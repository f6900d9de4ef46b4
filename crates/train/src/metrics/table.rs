//! The metrics that can be chosen, by name.

use super::answers::{exact_match, length, length_ratio, token_f1};
use super::classes::{Average, Confusion};
use super::entities::Entities;
use super::numbers::{pearson, spearman};
use super::overlap::{Bleu, BleuTokens, Chrf};
use super::rouge::{Rouge, rouge};
use crate::data::closest;
use crate::{Error, Task};

/// A metric that `--metrics` can name.
#[derive(Debug)]
pub struct Metric {
    /// Its name, in results too.
    pub name: &'static str,
    /// What it says, in a few words.
    pub what: &'static str,
    pub(super) of: Of,
}

/// The value of a metric on some rows, drawn by index.
pub(super) type Value<'a> = Box<dyn Fn(&[usize]) -> f64 + 'a>;

/// Texts and what they should be.
pub(super) type Texts<'a> = (&'a [String], &'a [Vec<String>]);

/// What a metric is computed from, and how.
#[derive(Clone, Copy, Debug)]
pub(super) enum Of {
    Texts(for<'a> fn(Texts<'a>) -> Value<'a>),
    Classes(fn(&Confusion) -> f64),
    Numbers(fn(&[(f64, f64)]) -> f64),
    Entities(fn(&Entities) -> f64),
}

const fn metric(name: &'static str, what: &'static str, of: Of) -> Metric {
    Metric { name, what, of }
}

/// Every metric. Loss and perplexity are no choice: an evaluation always has them.
pub static METRICS: &[Metric] = &[
    metric("bleu", "BLEU of the corpus, 0 to 100, as sacrebleu (13a, exp)", Of::Texts(bleu)),
    metric("chrf", "chrF2 of the corpus, 0 to 100, as sacrebleu", Of::Texts(|texts| chrf(texts, 0))),
    metric("chrf++", "chrF2++ of the corpus, 0 to 100, as sacrebleu", Of::Texts(|texts| chrf(texts, 2))),
    metric("rouge1", "ROUGE-1 F, 0 to 1, as rouge-score", Of::Texts(|t| mean_rouge(t, Rouge::N(1)))),
    metric("rouge2", "ROUGE-2 F, 0 to 1, as rouge-score", Of::Texts(|t| mean_rouge(t, Rouge::N(2)))),
    metric("rougeL", "ROUGE-L F, 0 to 1, as rouge-score", Of::Texts(|t| mean_rouge(t, Rouge::L))),
    metric("rougeLsum", "ROUGE-L F over lines, 0 to 1", Of::Texts(|t| mean_rouge(t, Rouge::Lsum))),
    metric("exact_match", "share of answers that are a reference", Of::Texts(|t| mean(t, exact_match))),
    metric("token_f1", "F1 of words, 0 to 1, as SQuAD", Of::Texts(|t| mean(t, token_f1))),
    metric("length", "words of an answer", Of::Texts(|t| mean(t, |text, _| length(text) as f64))),
    metric("length_ratio", "words of the answers over the references'", Of::Texts(ratio)),
    metric("accuracy", "share of labels that are right", Of::Classes(Confusion::accuracy)),
    metric("f1", "F1, mean over classes", Of::Classes(|c| c.average(Average::Macro).f1)),
    metric("f1_micro", "F1 over all rows", Of::Classes(|c| c.average(Average::Micro).f1)),
    metric("f1_weighted", "F1, classes by their share", Of::Classes(|c| c.average(Average::Weighted).f1)),
    metric("precision", "precision, mean over classes", Of::Classes(|c| c.average(Average::Macro).precision)),
    metric("recall", "recall, mean over classes", Of::Classes(|c| c.average(Average::Macro).recall)),
    metric("mcc", "Matthews correlation, -1 to 1", Of::Classes(Confusion::mcc)),
    metric("pearson", "Pearson's r, -1 to 1", Of::Numbers(pearson)),
    metric("spearman", "Spearman's rho, -1 to 1", Of::Numbers(spearman)),
    metric("entity_f1", "F1 of entities, as seqeval", Of::Entities(|e| e.average(Average::Micro).f1)),
    metric(
        "entity_f1_macro",
        "F1 of entities, mean over types",
        Of::Entities(|e| e.average(Average::Macro).f1),
    ),
    metric(
        "entity_precision",
        "precision of entities",
        Of::Entities(|e| e.average(Average::Micro).precision),
    ),
    metric("entity_recall", "recall of entities", Of::Entities(|e| e.average(Average::Micro).recall)),
];

impl Metric {
    /// Whether a task's predictions are what the metric compares.
    pub fn suits(&self, task: Task) -> bool {
        match self.of {
            Of::Texts(_) => matches!(task, Task::CausalLm | Task::Seq2seq),
            Of::Classes(_) | Of::Numbers(_) => task == Task::Classify,
            Of::Entities(_) => task == Task::Tag,
        }
    }
}

/// The metrics that `names` lists, in its order, each once.
///
/// # Errors
/// [`Error::Recipe`] where one does not exist or is another task's: the nearest, or all that there are.
pub fn choose<T: AsRef<str>>(names: &[T], task: Task) -> Result<Vec<&'static Metric>, Error> {
    let mut chosen: Vec<&'static Metric> = Vec::new();
    for name in names.iter().map(|name| name.as_ref().trim()) {
        let found = METRICS.iter().find(|metric| metric.name.eq_ignore_ascii_case(name));
        let metric = found.filter(|metric| metric.suits(task)).ok_or_else(|| unknown(name, task))?;
        if !chosen.iter().any(|other| other.name == metric.name) {
            chosen.push(metric);
        }
    }
    Ok(chosen)
}

fn unknown(name: &str, task: Task) -> Error {
    let there: Vec<&str> =
        METRICS.iter().filter(|metric| metric.suits(task)).map(|metric| metric.name).collect();
    let near = closest(name, &there).map_or(String::new(), |near| format!("did you mean {near}? "));
    let task = task.name();
    if there.is_empty() {
        return Error::recipe(format!("{name} is not a metric for {task}: there are none but the loss"));
    }
    Error::recipe(format!("{name} is not a metric for {task}: {near}there are {}", there.join(", ")))
}

fn bleu((texts, references): Texts<'_>) -> Value<'_> {
    let row = |(text, references): (&String, &Vec<String>)| Bleu::row(text, references, BleuTokens::V13a);
    let counts: Vec<Bleu> = texts.iter().zip(references).map(row).collect();
    Box::new(move |rows| Bleu::sum(rows.iter().map(|&row| &counts[row])).score())
}

fn chrf((texts, references): Texts<'_>, word_order: usize) -> Value<'_> {
    let row = |(text, references): (&String, &Vec<String>)| Chrf::row(text, references, word_order);
    let counts: Vec<Chrf> = texts.iter().zip(references).map(row).collect();
    Box::new(move |rows| Chrf::sum(rows.iter().map(|&row| &counts[row])).score())
}

fn mean_rouge(texts: Texts<'_>, kind: Rouge) -> Value<'_> {
    mean(texts, |text, references| rouge(kind, text, references, false))
}

/// The mean over rows of what `of` gives for each.
fn mean((texts, references): Texts<'_>, of: impl Fn(&str, &[String]) -> f64) -> Value<'_> {
    let values: Vec<f64> =
        texts.iter().zip(references).map(|(text, references)| of(text, references)).collect();
    Box::new(move |rows| rows.iter().map(|&row| values[row]).sum::<f64>() / rows.len() as f64)
}

fn ratio((texts, references): Texts<'_>) -> Value<'_> {
    let first = |row: usize| references[row].first().map_or("", String::as_str);
    Box::new(move |rows| length_ratio(rows.iter().map(|&row| (&*texts[row], first(row)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_chosen_in_order_and_once() {
        let names = |list: &[&str]| -> Vec<&str> {
            choose(list, Task::CausalLm).unwrap().iter().map(|metric| metric.name).collect()
        };
        assert_eq!(names(&["rougel", "bleu", " rougeL"]), ["rougeL", "bleu"]);
    }

    #[test]
    fn what_does_not_exist_lists_what_does() {
        let error = |name: &str, task| choose(&[name], task).unwrap_err().to_string();
        let message = error("blue", Task::CausalLm);
        assert!(message.contains("did you mean bleu?") && message.contains("exact_match"), "{message}");
        let message = error("accuracy", Task::Tag);
        assert!(
            message.contains("accuracy is not a metric for tag") && message.contains("entity_f1"),
            "{message}"
        );
    }

    #[test]
    fn every_name_is_there_once() {
        let names: std::collections::BTreeSet<_> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), METRICS.len());
    }
}
