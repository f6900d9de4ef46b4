//! What a run tells its caller while it goes on. All but the plan is also a row of `metrics.jsonl`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{DataStats, Evaluation};

/// Something that happened in a run.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// What will happen, before the first step.
    Plan(Box<Summary>),
    /// An update was made.
    Step(StepReport),
    /// The validation rows were looked at.
    Eval(EvalReport),
    /// A checkpoint was written.
    Saved(SavedReport),
    /// The run is over.
    Done(Box<DoneReport>),
}

/// What a run is going to do.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The base as it was named.
    pub model: String,
    /// Its `model_type`.
    pub model_type: String,
    /// Values in the base's weights.
    pub base_parameters: u64,
    /// Values that are trained.
    pub trainable_parameters: u64,
    /// Tensors that are trained.
    pub trainable_tensors: usize,
    /// Modules with low-rank factors.
    pub adapted_modules: usize,
    /// What losses are counted in: nats per label, or the mean squared error.
    pub loss_unit: &'static str,
    /// What the rows were read as.
    pub format: String,
    /// Training rows: rows read, cut and dropped, and tokens and labels of one epoch.
    pub train: DataStats,
    /// Validation rows, if there are any.
    pub valid: Option<DataStats>,
    /// Test rows, if there are any.
    pub test: Option<DataStats>,
    /// Tokens at which rows are cut.
    pub max_length: usize,
    /// Steps of an epoch.
    pub steps_per_epoch: usize,
    /// Steps of the run.
    pub steps: usize,
    /// Steps made before, by the run that is resumed.
    pub resumed_at: Option<usize>,
    /// Rows of a step.
    pub step_rows: usize,
    /// Most tokens of a micro-batch.
    pub micro_batch_tokens: usize,
    /// Blocks that the backward pass runs forward again, as their results do not fit the memory.
    pub recomputed_blocks: usize,
    /// Memory that the whole process will need, in bytes, the base's files included.
    pub memory_bytes: u64,
    /// Bytes of the base's mapped files; the system may drop and read them again.
    pub base_bytes: u64,
    /// Memory that is free, in bytes, where the system says.
    pub available_bytes: Option<u64>,
    /// Compute threads.
    pub threads: usize,
    /// What looks odd, though the run can go on.
    pub warnings: Vec<String>,
}

impl Summary {
    /// Trained share of all values.
    pub fn trainable_share(&self) -> f64 {
        self.trainable_parameters as f64 / (self.trainable_parameters + self.base_parameters).max(1) as f64
    }

    /// Share of an epoch's tokens that are labels.
    pub fn learned_share(&self) -> f64 {
        self.train.labels as f64 / self.train.tokens.max(1) as f64
    }
}

/// One update.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepReport {
    /// Number of the step, from 1.
    pub step: usize,
    /// Epochs done after it.
    pub epoch: f64,
    /// Mean over the step's labels, in nats, before the update.
    pub loss: f64,
    /// Learning rate of the update.
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens of the step that ran through the model.
    pub tokens: usize,
    /// Seconds that the step took.
    pub seconds: f64,
    /// `tokens` / `seconds`.
    pub tokens_per_s: f64,
    /// Most memory the process has held so far.
    pub peak_rss_bytes: Option<u64>,
}

/// One evaluation.
#[derive(Clone, Debug, Serialize)]
pub struct EvalReport {
    /// Steps made so far.
    pub step: usize,
    /// Epochs done so far.
    pub epoch: f64,
    /// What was found.
    #[serde(flatten)]
    pub result: Evaluation,
    /// Whether it is the best so far: the lowest loss, or the highest value of `metric_for_best`.
    pub best: bool,
}

/// One checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct SavedReport {
    /// Steps made so far.
    pub step: usize,
    /// The checkpoint's folder within the output folder.
    pub path: PathBuf,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// All steps were made.
    Finished,
    /// The validation loss no longer fell, or the watched metric no longer rose.
    EarlyStopping,
    /// It was interrupted; a checkpoint holds all that is needed to go on.
    Interrupted,
}

/// The end of a run.
#[derive(Clone, Debug, Serialize)]
pub struct DoneReport {
    /// Steps made.
    pub step: usize,
    /// Why it ended.
    pub ending: Ending,
    /// The best evaluation on validation rows.
    pub best: Option<Best>,
    /// The step whose adapter was kept; none if interrupted.
    pub kept_step: Option<usize>,
    /// Base and adapter on the validation and test rows.
    #[serde(skip)]
    pub results: Vec<SplitResult>,
    /// Seconds since the run began or was resumed.
    pub seconds: f64,
    /// Most memory the process has held.
    pub peak_rss_bytes: Option<u64>,
}

/// The best evaluation of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps made when it was found.
    pub step: usize,
    /// Mean over labels, in nats; of numbers, the mean squared error.
    pub loss: f64,
    /// The value of `metric_for_best`; none where that is the loss, or undefined on these rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
}

impl Best {
    /// Whether this one is better: a higher score, or a score rather than none, or without scores a lower loss.
    pub(crate) fn beats(&self, other: &Self) -> bool {
        match (self.score, other.score) {
            (Some(ours), Some(theirs)) => ours > theirs,
            (None, None) => self.loss < other.loss,
            (ours, _) => ours.is_some(),
        }
    }
}

/// Base and adapter side by side on one split.
#[derive(Clone, Debug, Serialize)]
pub struct SplitResult {
    /// `valid` or `test`.
    pub split: &'static str,
    /// The base by itself.
    pub base: Evaluation,
    /// The base with the adapter.
    pub adapted: Evaluation,
}
