//! What a model answers to the prompts of rows, and how good answers and labels are by chosen metrics.

use std::collections::BTreeMap;

use taper_base::{Adapter, Base, GenerationOptions, generate};

use crate::metrics::{Metric, Predictions, Scores, choose, score};
use crate::{DataSet, Error, Example, Task, predicting};

/// Prompts continued at a time, each with a cache of its own.
const BATCH: usize = 16;

/// Tokens that are labelled at a time.
const BUDGET: usize = 1024;

/// Which metrics of the answers are wanted, and how long answers may be.
#[derive(Clone, Debug)]
pub struct Asked {
    metrics: Vec<&'static Metric>,
    max_new_tokens: usize,
    seed: u64,
}

/// The prompts of a data set, each once, and their answers.
#[derive(Debug, Default)]
struct Questions {
    prompts: Vec<Vec<u32>>,
    references: Vec<Vec<String>>,
}

impl Asked {
    /// The metrics of `names`, of what `task` gives: labels, or greedy answers of at most `max_new_tokens` tokens; `seed`
    /// draws the intervals.
    ///
    /// # Errors
    /// [`Error::Recipe`] for a name that is no metric of the task, or for answers of no tokens.
    pub fn new<S: AsRef<str>>(
        task: Task,
        names: &[S],
        max_new_tokens: usize,
        seed: u64,
    ) -> Result<Self, Error> {
        if max_new_tokens == 0 {
            return Err(Error::recipe("`max_new_tokens` is 0: give 1 or more"));
        }
        Ok(Self { metrics: choose(names, task)?, max_new_tokens, seed })
    }

    /// Labels every row of `set` and compares, or answers every prompt greedily and compares with the rows' answers: of a conversation its last. Rows that ask
    /// the same are asked once, and each of their answers is a reference.
    ///
    /// # Errors
    /// [`Error::Data`] where the rows are texts without a prompt.
    pub fn scores(&self, base: &Base, adapter: &dyn Adapter, set: &DataSet) -> Result<Scores, Error> {
        if self.metrics.is_empty() {
            return Ok(Scores::default());
        }
        self.check(set)?;
        if base.task.labels().is_some() {
            return predicting::scores((base, adapter), &set.examples, &self.metrics, (BUDGET, self.seed));
        }
        let Questions { prompts, references } = Questions::of(base, &set.examples)?;
        let options = GenerationOptions { max_tokens: self.max_new_tokens, ..GenerationOptions::default() };
        let mut answers = Vec::with_capacity(prompts.len());
        for prompts in prompts.chunks(BATCH) {
            let made = generate(base, adapter, prompts, &options, &mut |_, _| ())?;
            answers.extend(made.into_iter().map(|made| made.text));
        }
        score(&self.metrics, Predictions::Texts(&answers, &references), self.seed)
    }

    /// Whether the rows of `set` ask for answers.
    pub(crate) fn check(&self, set: &DataSet) -> Result<(), Error> {
        if set.format.name == "text" && !self.metrics.is_empty() {
            let names: Vec<&str> = self.metrics.iter().map(|metric| metric.name).collect();
            return Err(Error::data(format!(
                "{} compare answers, but the rows to evaluate on are plain texts without a prompt: give prompt and \
                 completion, or messages, or leave --metrics out",
                names.join(", ")
            )));
        }
        Ok(())
    }
}

impl Questions {
    fn of(base: &Base, examples: &[Example]) -> Result<Self, Error> {
        let mut places = BTreeMap::<&[u32], usize>::new();
        let mut questions = Self::default();
        for example in examples {
            let Some(answer) = example.spans().last() else { continue };
            let prompt = example.source.as_deref().unwrap_or(&example.tokens[..answer.start]);
            let place = *places.entry(prompt).or_insert_with(|| {
                questions.prompts.push(prompt.to_vec());
                questions.references.push(Vec::new());
                questions.prompts.len() - 1
            });
            questions.references[place].push(base.tokenizer.decode(&example.tokens[answer.clone()])?);
        }
        Ok(questions)
    }
}

#[cfg(test)]
mod tests {
    use taper_base::{ModelSource, Network};
    use taper_kernels::Compute;

    use super::*;
    use crate::{DataOptions, evaluate};

    fn set(base: &Base, rows: &str) -> DataSet {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rows.jsonl");
        std::fs::write(&file, rows).unwrap();
        DataSet::load(&[file], &base.tokenizer, &DataOptions::default()).unwrap()
    }

    fn tiny() -> Base {
        Base::open(&ModelSource::parse("tiny").unwrap(), Compute::F32).unwrap()
    }

    #[test]
    fn rows_that_ask_the_same_are_one_question_with_two_references() {
        let base = tiny();
        let rows = "{\"prompt\":\"Q: a\\nA:\",\"completion\":\" one\"}\n{\"prompt\":\"Q: b\\nA:\",\"completion\":\" two\"}\n\
                    {\"prompt\":\"Q: a\\nA:\",\"completion\":\" three\"}\n";
        let questions = Questions::of(&base, &set(&base, rows).examples).unwrap();
        let trimmed: Vec<Vec<&str>> =
            questions.references.iter().map(|row| row.iter().map(|text| text.trim()).collect()).collect();
        assert_eq!(trimmed, [vec!["one", "three"], vec!["two"]]);
    }

    #[test]
    fn a_model_that_is_asked_for_what_it_says_matches_exactly() {
        let base = tiny();
        let prompt = "Once upon a time";
        let ids = base.tokenizer.encode(prompt).unwrap();
        let options = GenerationOptions { max_tokens: 8, ..GenerationOptions::default() };
        let said = generate(&base, &(), &[ids], &options, &mut |_, _| ()).unwrap().remove(0).text;
        let rows = [(prompt, &*said), ("The dog", "certainly not this")]
            .map(|(prompt, text)| serde_json::json!({"prompt": prompt, "completion": text}).to_string());
        let set = set(&base, &rows.join("\n"));
        let asked = Asked::new(Task::CausalLm, &["exact_match", "rougeL"], 8, 0).unwrap();
        let scores = asked.scores(&base, &(), &set).unwrap();
        assert!((scores.get("exact_match").unwrap().value - 0.5).abs() < 1e-12);
        assert_eq!(scores.get("exact_match").unwrap().interval, Some([0.0, 1.0]));
        assert!(scores.get("rougeL").unwrap().value >= 0.5);
        let model: &dyn Network = &*base.model;
        assert!(evaluate(model, &(), &set.examples, 64).unwrap().metrics.is_empty());
    }

    #[test]
    fn texts_without_prompts_are_refused() {
        let base = tiny();
        let asked = Asked::new(Task::CausalLm, &["bleu"], 8, 0).unwrap();
        let error =
            asked.scores(&base, &(), &set(&base, "{\"text\":\"a b c d\"}\n")).unwrap_err().to_string();
        assert!(error.contains("plain texts without a prompt"), "{error}");
    }
}
