//! What a base that labels makes of texts: labels with their probabilities, numbers, tags; and how good they are.

use std::path::PathBuf;

use candle_core::{Result as Tensors, Tensor};
use taper_base::{Adapter, Base, Labels, Network, Task};

use crate::data::{Words, first_examples};
use crate::metrics::{Metric, Predictions, Scores, score};
use crate::packing::micro_batches;
use crate::{DataOptions, Error, Example, Learn, MicroBatch};

/// What is to be labelled.
#[derive(Clone, Debug, Default)]
pub struct Question {
    example: Example,
    words: Vec<String>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub enum Prediction {
    /// The likeliest label, and the probability of each label, in the order of the base's.
    Label(u32, Vec<f64>),
    /// A number.
    Number(f64),
    /// The likeliest label of each word with its probability; none for a word that was cut off or has no piece of its own.
    Tags(Vec<Option<(u32, f64)>>),
}

impl Question {
    /// A text or a pair, cut at what the base takes.
    ///
    /// # Errors
    /// [`Error::Data`] for an empty text.
    pub fn text(base: &Base, text: &str, second: Option<&str>) -> Result<Self, Error> {
        if text.trim().is_empty() || second.is_some_and(|second| second.trim().is_empty()) {
            return Err(Error::data("the text is empty, and a label needs one"));
        }
        let input = base.tokenizer.input(text, second, Some(longest(base)))?;
        let learn = match base.task.labels() {
            Some(Labels::Number) => Learn::Number(0.0),
            _ => Learn::Class(0),
        };
        Ok(Self {
            example: Example {
                tokens: input.ids,
                types: input.types,
                learn,
                cut: input.cut,
                ..Example::default()
            },
            words: Vec::new(),
        })
    }

    /// Words to be tagged, cut at what the base takes.
    ///
    /// # Errors
    /// [`Error::Data`] for no words, or an empty one.
    pub fn words(base: &Base, words: &[String]) -> Result<Self, Error> {
        if words.is_empty() || words.iter().any(|word| word.trim().is_empty()) {
            return Err(Error::data("a word is empty, or there is none, and a tag needs one"));
        }
        let Words { input, pieces } = Words::new(&base.tokenizer, words, Some(longest(base)))?;
        // The place of each word stands in its label's place, so that words without a piece can be told.
        let learn = Learn::Tags(pieces.into_iter().map(|(word, piece)| (piece, word as u32)).collect());
        let example = Example { tokens: input.ids, learn, cut: input.cut, ..Example::default() };
        Ok(Self { example, words: words.to_vec() })
    }

    /// Whether it was longer than what the base takes.
    pub fn is_cut(&self) -> bool {
        self.example.cut > 0
    }
}

/// A question whose answer is known, to show what a model makes of it.
#[derive(Clone, Debug)]
pub struct Known {
    /// What is asked.
    pub question: Question,
    /// Its text, as the tokens have it; both of a pair.
    pub texts: Vec<String>,
    /// The label or number of its row.
    pub label: String,
}

/// The first `count` rows of `files` that have a label or a number; none where words are tagged or text is written.
///
/// # Errors
/// As [`DataSet::load`](crate::DataSet::load), for the rows that are read.
pub fn known(
    base: &Base,
    files: &[PathBuf],
    options: &DataOptions,
    count: usize,
) -> Result<Vec<Known>, Error> {
    let Task::Classify(labels) = &base.task else { return Ok(Vec::new()) };
    let names = labels.names();
    let known = |example: Example| {
        let label = match example.learn {
            Learn::Class(label) => names[label as usize].clone(),
            Learn::Number(value) => value.to_string(),
            Learn::Tokens(_) | Learn::Tags(_) => String::new(),
        };
        let tokens = &base.tokenizer;
        // The tokens of a pair decode to both texts in one. Each is shown no longer than what the model reads of both.
        let part = |text: &String| {
            let mut ids = tokens.encode_bare(text)?;
            ids.truncate(example.tokens.len());
            tokens.decode(&ids)
        };
        let texts = match example.texts.as_slice() {
            pair @ [_, _] => pair.iter().map(part).collect::<Result<_, _>>()?,
            _ => vec![tokens.decode(&example.tokens)?],
        };
        Ok(Known { question: Question { example, words: Vec::new() }, texts, label })
    };
    let options = &DataOptions { texts: true, ..options.clone() };
    first_examples(files, &base.tokenizer, options, count)?.into_iter().map(known).collect()
}

/// Tokens that a base takes at most.
fn longest(base: &Base) -> usize {
    base.model.sizes().max_position_embeddings
}

/// Labels every question, at most `budget` tokens (but at least one question) at a time.
///
/// # Errors
/// Where the model's files or the adapter cannot be run.
pub fn predict(
    base: &Base,
    adapter: &dyn Adapter,
    questions: &[Question],
    budget: usize,
) -> Result<Vec<Prediction>, Error> {
    let examples: Vec<Example> = questions.iter().map(|question| question.example.clone()).collect();
    let mut outputs = Vec::new();
    for micro in micro_batches(&examples, budget) {
        outputs.extend(logits(&*base.model, adapter, &micro)?);
    }
    let mut rest = outputs.into_iter();
    Ok(questions.iter().map(|question| prediction(question, &mut rest)).collect())
}

fn prediction(question: &Question, outputs: &mut impl Iterator<Item = Vec<f32>>) -> Prediction {
    match &question.example.learn {
        Learn::Number(_) => Prediction::Number(f64::from(outputs.next().unwrap_or_default()[0])),
        Learn::Tags(places) => {
            let mut tags = vec![None; question.words.len()];
            for ((_, word), logits) in places.iter().zip(outputs) {
                let best = argmax(&logits);
                tags[*word as usize] = Some((best, softmax(&logits)[best as usize]));
            }
            Prediction::Tags(tags)
        }
        Learn::Class(_) | Learn::Tokens(_) => {
            let logits = outputs.next().unwrap_or_default();
            Prediction::Label(argmax(&logits), softmax(&logits))
        }
    }
}

/// The head's output on every row of a micro-batch that is scored, in their order.
fn logits(model: &dyn Network, adapter: &dyn Adapter, micro: &MicroBatch) -> Tensors<Vec<Vec<f32>>> {
    let mut hidden = model.hidden(&micro.batch, &mut [], adapter)?;
    if micro.numbers.is_empty() {
        let rows = Tensor::new(micro.labelled.rows.as_slice(), hidden.device())?;
        hidden = hidden.index_select(&rows, 0)?;
    }
    model.head().forward(&hidden, adapter)?.to_vec2()
}

fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
    best.unwrap_or_default() as u32
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|logit| f64::from(logit - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// The metrics of a task where none are named.
pub fn default_metrics(task: &Task) -> &'static [&'static str] {
    match task {
        Task::CausalLm => &[],
        Task::Classify(Labels::Number) => &["pearson", "spearman"],
        Task::Classify(Labels::Names(_)) => &["accuracy", "f1", "mcc"],
        Task::Tag(_) => &["entity_f1", "entity_precision", "entity_recall"],
    }
}

/// `metrics` of what `base` with `adapter` gives for `examples`, at most `budget` tokens at a time.
pub(crate) fn scores(
    (base, adapter): (&Base, &dyn Adapter),
    examples: &[Example],
    metrics: &[&'static Metric],
    (budget, seed): (usize, u64),
) -> Result<Scores, Error> {
    let mut outputs = Vec::new();
    for micro in micro_batches(examples, budget) {
        outputs.extend(logits(&*base.model, adapter, &micro)?);
    }
    let names = base.task.labels().map(Labels::names).unwrap_or_default();
    match &base.task {
        Task::Classify(Labels::Number) => {
            let found: Vec<f64> = outputs.iter().map(|output| f64::from(output[0])).collect();
            let wanted: Vec<f64> = examples.iter().filter_map(number).collect();
            score(metrics, Predictions::Numbers(&found, &wanted), seed)
        }
        Task::Tag(_) => {
            let name = |label: u32| names[label as usize].clone();
            let mut found = outputs.iter().map(|output| name(argmax(output)));
            let tags = |example: &Example| {
                example.labelled().into_iter().map(|(_, label)| name(label)).collect::<Vec<_>>()
            };
            let wanted: Vec<Vec<String>> = examples.iter().map(tags).collect();
            let found: Vec<Vec<String>> =
                wanted.iter().map(|tags| found.by_ref().take(tags.len()).collect()).collect();
            score(metrics, Predictions::Tags(&found, &wanted), seed)
        }
        Task::Classify(Labels::Names(_)) | Task::CausalLm => {
            let found: Vec<usize> = outputs.iter().map(|output| argmax(output) as usize).collect();
            let wanted: Vec<usize> = examples.iter().filter_map(class).collect();
            score(metrics, Predictions::Classes(names.len(), &found, &wanted), seed)
        }
    }
}

fn number(example: &Example) -> Option<f64> {
    match example.learn {
        Learn::Number(value) => Some(f64::from(value)),
        _ => None,
    }
}

fn class(example: &Example) -> Option<usize> {
    match example.learn {
        Learn::Class(label) => Some(label as usize),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_and_the_first_of_equals_is_likeliest() {
        let probabilities = softmax(&[1e4, 1e4, -1e4]);
        assert_eq!(probabilities, [0.5, 0.5, 0.0]);
        assert_eq!((argmax(&[0.0, 0.0]), argmax(&[-1.0, 3.0, 3.0])), (0, 1));
    }
}
