//! `[augment]`: how training rows are changed, anew in each epoch.

use serde::{Deserialize, Serialize};

use super::Task;
use crate::Error;

/// What is done to training rows, and to no others. Nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Share of the tokens that go in as the tokenizer's mask or unknown token, or where it has neither as a random one; what
    /// is learned stays what it is. Blank noising (Xie et al. 2017, arXiv:1703.02573, §3.2), and `SwitchOut` (Wang et al.
    /// 2018, arXiv:1808.07512).
    #[serde(skip_serializing_if = "is_zero")]
    pub token_dropout: f64,
    /// Of `classify`: so many times the number of a text's words, and at least once, two of them change places (EDA, Wei and
    /// Zou 2019, arXiv:1901.11196, §2).
    #[serde(skip_serializing_if = "is_zero")]
    pub word_swap: f64,
    /// Of `classify`: share of the words that are left out; one always stays (EDA).
    #[serde(skip_serializing_if = "is_zero")]
    pub word_deletion: f64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields so")]
fn is_zero(share: &f64) -> bool {
    *share == 0.0
}

impl Augment {
    /// Whether rows stay as they are.
    pub fn is_off(&self) -> bool {
        *self == Self::default()
    }

    /// Whether words are moved or left out.
    pub(crate) fn changes_words(&self) -> bool {
        self.word_swap > 0.0 || self.word_deletion > 0.0
    }

    /// Whether it can be done to the rows of `task`, where that is known.
    ///
    /// # Errors
    /// [`Error::Recipe`] names the share that cannot be honoured.
    pub fn check(&self, task: Option<Task>) -> Result<(), Error> {
        let of_words = [("word_swap", self.word_swap), ("word_deletion", self.word_deletion)];
        for (name, share) in of_words.into_iter().chain([("token_dropout", self.token_dropout)]) {
            if !(0.0..1.0).contains(&share) {
                return Err(Error::recipe(format!(
                    "`{name}` of `augment` is {share}: give a share of 0 or more and below 1, such as 0.1"
                )));
            }
        }
        match (of_words.into_iter().find(|(_, share)| *share > 0.0), task) {
            (Some((name, _)), Some(task)) if task != Task::Classify => Err(Error::recipe(format!(
                "`{name}` of `augment` changes the words of texts with one label, and the task is {}, whose answers belong \
                 to the words as they stand: leave it out; token_dropout suits every task",
                task.name()
            ))),
            _ => Ok(()),
        }
    }
}

impl TryFrom<toml::Table> for Augment {
    type Error = Error;

    fn try_from(table: toml::Table) -> Result<Self, Error> {
        Self::deserialize(table)
            .map_err(|error| Error::recipe(format!("`augment`: {}", error.to_string().trim_end())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_out_of_range_and_words_that_are_learned_are_refused() {
        let error = |augment: Augment, task| augment.check(task).unwrap_err().to_string();
        let words = Augment { word_swap: 0.1, ..Augment::default() };
        words.check(Some(Task::Classify)).unwrap();
        words.check(None).unwrap();
        for task in [Task::CausalLm, Task::Tag, Task::Seq2seq] {
            let message = error(words, Some(task));
            assert!(
                message.contains("`word_swap` of `augment`") && message.contains(task.name()),
                "{message}"
            );
            Augment { token_dropout: 0.1, ..Augment::default() }.check(Some(task)).unwrap();
        }
        let whole = Augment { token_dropout: 1.0, ..Augment::default() };
        assert!(error(whole, None).contains("`token_dropout` of `augment` is 1"));
    }
}
