//! What a training run is asked to do: the fields of `recipe.toml`, which are also the flags of `taper train`.
//!
//! The defaults stand in [`Recipe::default`] and nowhere else. Reading and merging is `read`'s, checking is `check`'s.

mod augment;
mod check;
mod read;
mod size;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use taper_base::Base;
use taper_kernels::Compute;
use taper_lora::Names;

use crate::schedule::Shape;
use crate::{Asked, Error};
pub use augment::Augment;
pub use size::Size;

/// A recipe. Every field may be left out of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// The base: `tiny`, a model folder, or a hub id `org/name[@revision]`. Default `tiny`.
    pub model: String,
    /// Training rows: a file, a folder with train/valid/test, or a hub id. There is no default.
    pub data: String,
    /// Rows to evaluate on, read like `data`. Default: the valid split of a `data` folder, if it has one.
    pub eval_data: Option<String>,
    /// Share of the training rows that is set aside to evaluate on instead, where there are no rows for that: the same rows
    /// for the same seed, each class of answers by itself. Default none.
    pub eval_split: Option<f64>,
    /// Folder to write. Default: the recipe's own folder.
    pub out: PathBuf,
    /// What is learned. Default: what the format of the rows and the base are for.
    pub task: Option<Task>,
    /// Of `classify`: `regression` learns a number, `single_label_classification` a label. Default: a number where
    /// every label is one and some are not whole.
    pub problem_type: Option<ProblemType>,
    /// Of `classify` and `tag`: how much each label counts in the loss, by its name; `balanced` is rows / (labels × rows
    /// with the label). Labels that are not named count 1. Default: every label counts 1.
    pub class_weights: Option<ClassWeights>,
    /// Share ε of each label that is spread evenly over all labels, or all tokens: a step's loss is that of
    /// `(1-ε)·label + ε/V`, as torch's `label_smoothing`. Evaluations count the labels as they are. Default 0.
    pub label_smoothing: f64,
    /// Of `classify` and `tag`: share of what the head reads that is zeroed while training, as transformers'
    /// `classifier_dropout`; where a head has two layers (those of `roberta`, `t5`), only before the last. Default 0.
    pub head_dropout: f64,
    /// How training rows are changed, anew in each epoch. Default: not at all.
    #[serde(skip_serializing_if = "Augment::is_off")]
    pub augment: Augment,
    /// Row format. Default: detected from the rows.
    pub format: Option<String>,
    /// Columns of the rows under other names: from the format's key to the file's. Default none.
    pub column: BTreeMap<String, String>,

    /// R, the rank of the low-rank update. Default 16.
    pub rank: Option<usize>,
    /// `lora_alpha`: the update is scaled by alpha / rank. Default twice the rank.
    pub alpha: Option<f64>,
    /// Share of the low-rank term's inputs that is zeroed while training. Default 0.
    pub dropout: Option<f64>,
    /// Layers to adapt: a list of names (as PEFT: a path's last parts), `all-linear`, or a regular expression over whole
    /// paths. Default `all-linear`.
    pub target_modules: Option<Targets>,
    /// Modules to train whole and save beside the update (`lm_head`, `norm`). Default none.
    pub modules_to_save: Vec<String>,
    /// Scale by alpha / √rank instead (arXiv:2312.03732). Default false.
    pub use_rslora: bool,
    /// Weight-decomposed update (`DoRA`, arXiv:2402.09353). Default false.
    pub use_dora: bool,
    /// How fresh factors start: `default` (Kaiming A, zero B), `gaussian` (normal A, zero B) or `random` (B not zero, for
    /// tests). PEFT's `init_lora_weights` true, "gaussian" and false. Default `default`.
    pub init: Init,
    /// Adapter to go on from: a folder or a hub id. Rank, alpha, dropout, targets and
    /// variant are its own; those given here have to agree with it. Default none.
    pub init_adapter: Option<String>,

    /// Peak learning rate. Default 2e-4.
    pub lr: f64,
    /// Course of the rate after the warm-up: `constant`, `linear` (to 0) or `cosine` (to 0). Default `linear`.
    pub schedule: Shape,
    /// Share of all steps over which the rate rises from 0. Default 0: B starts at zero, which is a warm-up of its own.
    pub warmup_ratio: f64,
    /// Rate of B over that of A (`LoRA+`, arXiv:2402.12354, which advises 16). Default 1.
    pub lora_plus_ratio: f64,
    /// Decoupled weight decay. Default 0.01, as torch's `AdamW`.
    pub weight_decay: f64,
    /// Kinds of parameter without weight decay: `bias`, `norm`. Default none, as torch's `AdamW`.
    pub no_decay: Vec<NoDecay>,
    /// Norm that the gradient of all parameters together is cut to; 0 is no clipping. Default 1.
    pub max_grad_norm: f64,

    /// Passes over the rows. Default 3.
    pub epochs: usize,
    /// Number of steps, whatever `epochs` says: rows are gone through as often as that takes. Default none.
    pub max_steps: Option<usize>,
    /// Rows of a batch. Default 8.
    pub batch_size: usize,
    /// Batches of one step. A step has `batch_size` × this many rows. Default 1.
    pub gradient_accumulation: usize,
    /// Tokens at which a row is cut. Default 1024, or what the model was made for if that is less.
    pub max_length: Option<usize>,
    /// Memory that the whole process may use, the base's files included, such as `2GiB`: decides how many tokens a
    /// micro-batch has, and how many blocks are run again in backward instead of being kept. Default: as little as runs
    /// fast, and no more than most of what is free.
    pub memory: Option<Size>,
    /// Most tokens of one forward and backward pass: decides memory, not the result. Default: from the model's shape and
    /// `memory`.
    pub micro_batch_tokens: Option<usize>,
    /// How products are computed: `f32`, or `bf16` (operands rounded, f32 sums). Default `f32`.
    pub dtype: Dtype,
    /// Compute threads. Default: all cores.
    pub threads: Option<usize>,
    /// Seed of fresh factors, order of rows and dropout. Default 0.
    pub seed: u64,
    /// Whether each epoch has an order of its own. Default true.
    pub shuffle: bool,

    /// Steps from one evaluation to the next. Default: once an epoch. The last step is always evaluated.
    pub eval_every: Option<usize>,
    /// Steps from one checkpoint to the next. Default: once an epoch. The last step is always saved, and so is a new best.
    pub save_every: Option<usize>,
    /// Stop after so many evaluations without a better one, and in any case end with the best evaluated adapter instead of
    /// the last. Default none.
    pub early_stopping: Option<usize>,
    /// Metric of the answers that makes an evaluation the best, instead of the lowest loss: the higher, the better. The model
    /// answers the validation rows at each evaluation, and the run ends with the best adapter. Default none.
    pub metric_for_best: Option<String>,
    /// Metrics of base and adapter, when training is done: `bleu`, `rougeL`, `exact_match` and others of answers. Default: of
    /// labels the usual ones of their task, of answers none.
    pub metrics: Vec<String>,
    /// Tokens that an answer has at most. Default 64.
    pub max_new_tokens: usize,
    /// Steps from one printed line to the next; `metrics.jsonl` has every step. Default 10.
    pub log_every: usize,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            model: "tiny".into(),
            data: String::new(),
            eval_data: None,
            eval_split: None,
            out: PathBuf::new(),
            task: None,
            problem_type: None,
            class_weights: None,
            label_smoothing: 0.0,
            head_dropout: 0.0,
            augment: Augment::default(),
            format: None,
            column: BTreeMap::new(),
            rank: None,
            alpha: None,
            dropout: None,
            target_modules: None,
            modules_to_save: Vec::new(),
            use_rslora: false,
            use_dora: false,
            init: Init::Default,
            init_adapter: None,
            lr: 2e-4,
            schedule: Shape::Linear,
            warmup_ratio: 0.0,
            lora_plus_ratio: 1.0,
            weight_decay: 0.01,
            no_decay: Vec::new(),
            max_grad_norm: 1.0,
            epochs: 3,
            max_steps: None,
            batch_size: 8,
            gradient_accumulation: 1,
            max_length: None,
            memory: None,
            micro_batch_tokens: None,
            dtype: Dtype::F32,
            threads: None,
            seed: 0,
            shuffle: true,
            eval_every: None,
            save_every: None,
            early_stopping: None,
            metric_for_best: None,
            metrics: Vec::new(),
            max_new_tokens: 64,
            log_every: 10,
        }
    }
}

impl Recipe {
    /// What is learned: as given, else the next token.
    pub fn task(&self) -> Task {
        self.task.unwrap_or_default()
    }

    /// R: as given, else 16.
    pub fn rank(&self) -> usize {
        self.rank.unwrap_or(16)
    }

    /// `lora_alpha`: as given, else twice the rank.
    pub fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(2.0 * self.rank() as f64)
    }

    /// Share of dropout: as given, else 0.
    pub fn dropout(&self) -> f64 {
        self.dropout.unwrap_or(0.0)
    }

    /// Layers to adapt: as given, else all linear ones.
    pub fn targets(&self) -> Targets {
        self.target_modules.clone().unwrap_or_else(|| Targets::Pattern(ALL_LINEAR.into()))
    }

    /// The metrics to compute when training is done.
    pub(crate) fn asked(&self) -> Result<Asked, Error> {
        Asked::new(self.task(), &self.metrics, self.max_new_tokens, self.seed)
    }

    /// The metric to compute at each evaluation, if it is not the loss.
    pub(crate) fn watched(&self) -> Result<Asked, Error> {
        Asked::new(self.task(), self.metric_for_best.as_slice(), self.max_new_tokens, self.seed)
    }

    /// Rows of one step.
    pub fn step_rows(&self) -> usize {
        self.batch_size.saturating_mul(self.gradient_accumulation)
    }
}

/// The target that stands for every linear layer of the blocks.
pub(crate) const ALL_LINEAR: &str = "all-linear";

/// What is learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// The next token.
    #[default]
    CausalLm,
    /// A label of a text.
    Classify,
    /// A label of each token.
    Tag,
    /// A text from a text, by an encoder and a decoder.
    Seq2seq,
    /// Which of two answers is better.
    Preference,
}

impl From<&taper_base::Task> for Task {
    fn from(task: &taper_base::Task) -> Self {
        match task {
            taper_base::Task::CausalLm => Self::CausalLm,
            taper_base::Task::Classify(_) => Self::Classify,
            taper_base::Task::Tag(_) => Self::Tag,
        }
    }
}

impl Task {
    /// What `base` was opened to do; an encoder-decoder writes a text from a text.
    pub fn of(base: &Base) -> Self {
        if base.model.decoder_start().is_some() { Self::Seq2seq } else { (&base.task).into() }
    }

    /// The name of the task whose row formats it reads.
    pub(crate) fn reads(self) -> &'static str {
        if self == Self::Seq2seq { Self::CausalLm.name() } else { self.name() }
    }

    /// As written in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::CausalLm => "causal-lm",
            Self::Classify => "classify",
            Self::Tag => "tag",
            Self::Seq2seq => "seq2seq",
            Self::Preference => "preference",
        }
    }
}

/// What the head of `classify` gives, as `problem_type` of transformers' config.json calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemType {
    /// A number; the loss is the squared error.
    Regression,
    /// One of several labels; the loss is the cross-entropy.
    SingleLabelClassification,
}

/// How much each label counts in the loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ClassWeights {
    /// `balanced`, or `label=weight` with commas between.
    Text(String),
    /// By the label's name.
    ByLabel(BTreeMap<String, f64>),
}

impl ClassWeights {
    /// Weights by label, of those that are named.
    pub(crate) fn by_label(&self) -> Result<BTreeMap<String, f64>, Error> {
        let text = match self {
            Self::Text(text) => text,
            Self::ByLabel(weights) => return Ok(weights.clone()),
        };
        let pair = |pair: &str| {
            let (name, weight) = pair.rsplit_once('=')?;
            Some((name.trim().to_owned(), weight.trim().parse().ok()?))
        };
        text.split(',').map(pair).collect::<Option<_>>().ok_or_else(|| {
            Error::recipe(format!(
                "`class_weights` is {text}: give `balanced`, or label=weight with commas between"
            ))
        })
    }
}

/// Layers to adapt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// `all-linear`, a name, names with commas between, or a regular expression over whole paths.
    Pattern(String),
    /// Names, each the last parts of a path.
    Names(Vec<String>),
}

impl From<&Targets> for Names {
    fn from(targets: &Targets) -> Self {
        match targets {
            Targets::Pattern(text) => text.parse().unwrap_or_else(|never: Infallible| match never {}),
            Targets::Names(names) => Self::List(names.clone()),
        }
    }
}

/// How fresh factors start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Kaiming-uniform A, zero B.
    #[default]
    Default,
    /// Normal A with deviation 1 / rank, zero B.
    Gaussian,
    /// Random A and B.
    Random,
}

/// Kinds of parameter that weight decay may leave alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoDecay {
    /// Names that end in `bias`.
    Bias,
    /// Gains of norms.
    Norm,
}

/// How products are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dtype {
    /// In f32.
    #[default]
    F32,
    /// With operands rounded to bf16, and f32 sums.
    Bf16,
}

impl From<Dtype> for Compute {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}
