//! Whether a recipe's values can be honoured.

use super::{Recipe, Task};
use crate::Error;

impl Recipe {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Recipe`] names the first field that is out of range, its value and what is allowed.
    pub fn check(&self) -> Result<(), Error> {
        self.check_files()?;
        self.check_adapter()?;
        self.augment.check(self.task)?;
        self.check_optimiser()?;
        self.check_metrics()?;
        self.check_counts()
    }

    fn check_files(&self) -> Result<(), Error> {
        if self.data.is_empty() {
            return Err(Error::recipe("`data` is not set: give a file, a folder or a hub id (--data)"));
        }
        if self.out.as_os_str().is_empty() {
            return Err(Error::recipe("`out` is not set: give the folder to write the adapter to (--out)"));
        }
        if self.task() == Task::Preference {
            return Err(Error::recipe(
                "`task` is preference: causal-lm, classify, tag and seq2seq can be trained so far",
            ));
        }
        Ok(())
    }

    fn check_adapter(&self) -> Result<(), Error> {
        at_least_one("rank", self.rank)?;
        let alpha = self.alpha();
        require("alpha", alpha, alpha.is_finite() && alpha > 0.0, "a number above 0")?;
        let dropout = self.dropout();
        require("dropout", dropout, (0.0..1.0).contains(&dropout), "a share of 0 or more and below 1")
    }

    fn check_optimiser(&self) -> Result<(), Error> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let not_negative = |x: f64| x.is_finite() && x >= 0.0;
        require("lr", self.lr, positive(self.lr), "a number above 0, such as 2e-4")?;
        require(
            "warmup_ratio",
            self.warmup_ratio,
            (0.0..=1.0).contains(&self.warmup_ratio),
            "a share from 0 to 1 of all steps",
        )?;
        let smoothing = self.label_smoothing;
        require(
            "label_smoothing",
            smoothing,
            (0.0..1.0).contains(&smoothing),
            "a share of 0 or more and below 1, such as 0.1",
        )?;
        let dropout = self.head_dropout;
        require("head_dropout", dropout, (0.0..1.0).contains(&dropout), "a share of 0 or more and below 1")?;
        require("lora_plus_ratio", self.lora_plus_ratio, positive(self.lora_plus_ratio), "a number above 0")?;
        require("weight_decay", self.weight_decay, not_negative(self.weight_decay), "a number of 0 or more")?;
        require(
            "max_grad_norm",
            self.max_grad_norm,
            not_negative(self.max_grad_norm),
            "a number of 0 or more (0 is no clipping)",
        )
    }

    fn check_metrics(&self) -> Result<(), Error> {
        if let Some(share) = self.eval_split {
            require(
                "eval_split",
                share,
                share > 0.0 && share < 1.0,
                "a share above 0 and below 1, such as 0.1",
            )?;
        }
        // Which metrics there are is known with the task; where the rows decide it, they are checked when those are read.
        if self.task.is_some() {
            self.asked()?;
            self.watched()?;
        }
        match self.metric_for_best.as_deref() {
            Some(name @ ("length" | "length_ratio")) => Err(Error::recipe(format!(
                "`metric_for_best` is {name}: no length is the best, give another metric"
            ))),
            _ => Ok(()),
        }
    }

    fn check_counts(&self) -> Result<(), Error> {
        at_least_one("epochs", Some(self.epochs))?;
        at_least_one("max_steps", self.max_steps)?;
        at_least_one("batch_size", Some(self.batch_size))?;
        at_least_one("gradient_accumulation", Some(self.gradient_accumulation))?;
        at_least_one("micro_batch_tokens", self.micro_batch_tokens)?;
        at_least_one("threads", self.threads)?;
        at_least_one("eval_every", self.eval_every)?;
        at_least_one("save_every", self.save_every)?;
        at_least_one("early_stopping", self.early_stopping)?;
        at_least_one("log_every", Some(self.log_every))?;
        if let Some(length) = self.max_length.filter(|&length| length < 2) {
            return Err(Error::recipe(format!(
                "`max_length` is {length}: give 2 or more, as a row's first token cannot be learned"
            )));
        }
        if i64::try_from(self.seed).is_err() {
            return Err(Error::recipe(format!("`seed` is {}: give at most {}", self.seed, i64::MAX)));
        }
        Ok(())
    }
}

fn require(field: &str, value: f64, holds: bool, allowed: &str) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::recipe(format!("`{field}` is {value}: give {allowed}"))) }
}

fn at_least_one(field: &str, value: Option<usize>) -> Result<(), Error> {
    if value == Some(0) { Err(Error::recipe(format!("`{field}` is 0: give 1 or more"))) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Recipe {
        let task = Some(Task::CausalLm);
        Recipe { data: "rows.jsonl".into(), out: "out".into(), task, ..Recipe::default() }
    }

    #[test]
    fn the_defaults_with_data_and_out_are_good() {
        good().check().unwrap();
    }

    #[test]
    fn each_bad_value_is_named_with_what_is_allowed() {
        let cases: [(Recipe, &str); 15] = [
            (Recipe { data: String::new(), ..good() }, "`data` is not set"),
            (Recipe { out: "".into(), ..good() }, "`out` is not set"),
            (Recipe { lr: -1.0, ..good() }, "`lr` is -1"),
            (Recipe { lr: f64::NAN, ..good() }, "`lr` is NaN"),
            (Recipe { dropout: Some(1.0), ..good() }, "`dropout` is 1"),
            (Recipe { label_smoothing: 1.0, ..good() }, "`label_smoothing` is 1: give a share"),
            (Recipe { head_dropout: -0.1, ..good() }, "`head_dropout` is -0.1: give a share"),
            (Recipe { rank: Some(0), ..good() }, "`rank` is 0: give 1 or more"),
            (Recipe { max_length: Some(1), ..good() }, "`max_length` is 1"),
            (Recipe { seed: u64::MAX, ..good() }, "`seed` is 18446744073709551615"),
            (Recipe { metrics: vec!["blue".into()], ..good() }, "did you mean bleu?"),
            (Recipe { metric_for_best: Some("length".into()), ..good() }, "no length is the best"),
            (Recipe { eval_split: Some(1.0), ..good() }, "`eval_split` is 1: give a share above 0"),
            (Recipe { max_new_tokens: 0, ..good() }, "`max_new_tokens` is 0"),
            (Recipe { task: Some(Task::Preference), ..good() }, "`task` is preference"),
        ];
        for (recipe, message) in cases {
            let error = recipe.check().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
