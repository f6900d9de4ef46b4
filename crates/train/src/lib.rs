//! Training and evaluation of adapters: rows to examples, ragged batches, loss, gradients, optimiser, adapter folder.
//!
//! A [`Recipe`] says what to do, [`train`] does it, reporting each [`Event`] to its caller; nothing here prints or reads
//! arguments. The base stays what it is: all that a run changes are the adapter's parameters.
//!
//! The flow, one file a stage: `data` turns rows into examples, `packing` cuts a step into micro-batches, `gradients`
//! runs them forward and backward, `optim` updates the parameters at the rate that `schedule` gives, `checkpoint` and
//! `outputs` write what remains. `trainer` is the loop that calls them.

mod answering;
mod augment;
mod budget;
mod card;
mod checkpoint;
mod class_weights;
mod data;
mod error;
mod evaluate;
mod events;
mod files;
mod find_lr;
mod fingerprint;
mod gradients;
mod learner;
mod memory;
pub mod metrics;
mod open;
mod optim;
mod outputs;
mod packing;
mod plot;
mod predicting;
mod prepare;
mod reading;
mod recipe;
mod schedule;
mod trainer;

pub use answering::Asked;
pub use data::*;
pub use error::Error;
pub use evaluate::{Evaluation, evaluate};
pub use events::{
    Best, DoneReport, Ending, EvalReport, Event, SavedReport, SplitResult, StepReport, Summary,
};
pub use find_lr::{RATES, RangeTest, Tried, find_lr};
pub use gradients::{Pass, StepGrads, step_grads};
pub use memory::{available_bytes, peak_rss_bytes};
pub use open::open_base;
pub use optim::{AdamW, AdamWConfig, Grads, Params, clip_grad_norm};
pub use outputs::Start;
pub use packing::*;
pub use predicting::{Known, Prediction, Question, default_metrics, known, predict};
pub use reading::{data_options, default_max_length, max_length};
pub use recipe::{Augment, ClassWeights, Dtype, Init, NoDecay, ProblemType, Recipe, Size, Targets, Task};
pub use schedule::{Schedule, Shape};
pub use trainer::train;
