//! Rows of a data set to examples: which files, how they are read, what a row means, which of its tokens are learned.
//!
//! The flow: [`DataFiles`] finds the files of each split, `rows` reads them as JSON objects, `format` says what the keys
//! mean, `example` and `chat` turn a row into tokens and labels, [`DataSet`] cuts, counts and keeps them. `check` and
//! `show` are the same flow for people to look at. What a model does with an example is left to `packing` and the trainer.
//!
//! **To add a row format**: one file in `format/`, one line in the table of `format.rs`.

mod chat;
mod check;
mod example;
mod files;
mod format;
mod labels;
mod nearest;
#[cfg(test)]
mod real;
mod rows;
#[cfg(test)]
pub(crate) mod sample;
mod samples;
mod set;
mod show;
mod split;
mod words;

pub use check::{DataReport, Duplicates, Lengths, Overlap, SplitReport};
pub use example::{Example, Learn};
pub use files::{DataFiles, Split};
pub use format::{FORMATS, Format, alpaca_prompt, kind};
pub use labels::labels;
pub(crate) use nearest::closest;
pub(crate) use samples::first_examples;
pub use samples::{Sample, samples};
pub use set::{DataOptions, DataSet, DataStats, task_of};
pub use show::{ShownRow, ShownToken, show};
pub(crate) use words::Words;
