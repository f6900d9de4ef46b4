//! `adapter_config.json`: PEFT's `LoraConfig`, its defaults, its validation, and the rank and scaling of a module.

use serde::{Deserialize, Serialize};

use crate::Error;

/// PEFT's `TaskType`.
const TASK_TYPES: [&str; 6] =
    ["SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"];

/// The `target_modules` that stands for every linear layer but the head.
pub(crate) const ALL_LINEAR: &str = "all-linear";

/// The highest rank that is taken. PEFT has no limit, and takes ranks above a layer's sides, which add nothing; this is as wide
/// as the widest models are, and keeps a mistyped rank from asking for more memory than there is.
const MAX_RANK: usize = 16_384;

/// Module names, as `target_modules` and `exclude_modules` give them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Names {
    /// A regular expression over the whole module path, or `all-linear`.
    Pattern(String),
    /// Names, each of a whole path or its end after a dot.
    List(Vec<String>),
}

/// Which biases of the base are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None of them.
    #[default]
    None,
    /// Every one.
    All,
    /// Those of targeted layers.
    LoraOnly,
}

/// `init_lora_weights`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// `true`: `A ~ U(±1/√in)`, `B = 0`.
    #[default]
    Default,
    /// `false`: both sides random, so that a fresh adapter changes the base.
    Random,
    /// `"gaussian"`: `A ~ N(0, 1/r²)`, `B = 0`.
    Gaussian,
    /// Another initialisation that leaves the base as it is (`eva`, `orthogonal`): loaded, but not made.
    Other(String),
}

/// PEFT's `LoraConfig`: the fields that taper honours, under PEFT's names.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "they are PEFT's fields")]
pub struct LoraConfig {
    /// `CAUSAL_LM`, `SEQ_CLS`, …
    pub task_type: Option<String>,
    /// The base that the adapter was made for.
    pub base_model_name_or_path: Option<String>,
    /// Its revision on the hub.
    pub revision: Option<String>,
    /// Rank.
    pub r: usize,
    /// `α`, the numerator of the scaling.
    pub lora_alpha: f64,
    /// Probability that an element of an adapter's input is dropped in training.
    pub lora_dropout: f64,
    /// Which modules get low-rank factors; none means the default of the base's `model_type`.
    pub target_modules: Option<Names>,
    /// Which modules do not, whatever `target_modules` says.
    pub exclude_modules: Option<Names>,
    /// Which biases of the base are trained.
    pub bias: Bias,
    /// Whether targeted layers are stored `(in, out)`, as GPT-2's are; set by what they are, as PEFT does.
    pub fan_in_fan_out: bool,
    /// Scaling `α/√r` instead of `α/r` (arXiv:2312.03732).
    pub use_rslora: bool,
    /// Weight-decomposed adaptation (arXiv:2402.09353).
    pub use_dora: bool,
    /// A bias beside `B`.
    pub lora_bias: bool,
    /// Modules trained whole: a module whose path ends in one of these.
    pub modules_to_save: Vec<String>,
    /// How fresh factors start.
    pub init_lora_weights: Init,
    /// Rank by module: the first pattern that matches wins.
    pub rank_pattern: Vec<(String, usize)>,
    /// `α` by module: the first pattern that matches wins.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Layers that a `target_modules` list applies to; none means all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Name of the list of layers that those indices count.
    pub layers_pattern: Vec<String>,
    /// Whether a head tied to an embedding in `modules_to_save` stays tied to it.
    pub ensure_weight_tying: bool,
}

impl LoraConfig {
    /// `s = α/r`, or `α/√r` with `use_rslora`, for a module of rank `r` and that `α`.
    pub fn scaling(&self, r: usize, alpha: f64) -> f64 {
        let r = r as f64;
        if self.use_rslora { alpha / r.sqrt() } else { alpha / r }
    }

    /// Checks the settings against each other, as PEFT does (`LoraConfig.__post_init__` and `update_layer`, 0.21.2).
    ///
    /// # Errors
    /// [`Error::Config`] that names the setting.
    pub fn validate(&self) -> Result<(), Error> {
        self.validate_numbers()?;
        if let Some(task) = &self.task_type
            && !TASK_TYPES.contains(&task.as_str())
        {
            return Err(Error::config(format!(
                "`task_type` is {task:?}, expected one of {}",
                TASK_TYPES.join(", ")
            )));
        }
        if matches!(self.target_modules, Some(Names::Pattern(_))) {
            if self.layers_to_transform.is_some() {
                return Err(Error::config(
                    "`layers_to_transform` cannot be used when `target_modules` is a str",
                ));
            }
            if !self.layers_pattern.is_empty() {
                return Err(Error::config("`layers_pattern` cannot be used when `target_modules` is a str"));
            }
        }
        if !self.layers_pattern.is_empty() && self.layers_to_transform.is_none() {
            return Err(Error::config("`layers_pattern` is set: `layers_to_transform` must be set as well"));
        }
        if self.lora_bias && !matches!(self.init_lora_weights, Init::Default | Init::Random) {
            return Err(Error::config("`lora_bias` goes only with `init_lora_weights` true or false"));
        }
        if self.lora_bias && self.use_dora {
            return Err(Error::config("`lora_bias` does not go with `use_dora`"));
        }
        Ok(())
    }

    fn validate_numbers(&self) -> Result<(), Error> {
        let ranks = self.rank_pattern.iter().map(|(key, r)| (format!("`rank_pattern` of `{key}`"), *r));
        for (what, r) in std::iter::once(("`r`".to_owned(), self.r)).chain(ranks) {
            if r == 0 {
                return Err(Error::config(format!("{what} is 0; a rank is at least 1")));
            }
            if r > MAX_RANK {
                return Err(Error::config(format!(
                    "{what} is {r}; taper takes ranks up to {MAX_RANK}, and one above the sides of a layer adds nothing to it"
                )));
            }
        }
        let alphas =
            self.alpha_pattern.iter().map(|(key, alpha)| (format!("`alpha_pattern` of `{key}`"), *alpha));
        for (what, alpha) in std::iter::once(("`lora_alpha`".to_owned(), self.lora_alpha)).chain(alphas) {
            if !alpha.is_finite() {
                return Err(Error::config(format!("{what} is {alpha}, not a number to scale with")));
            }
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(Error::config(format!(
                "`lora_dropout` is {}; it must be in [0, 1)",
                self.lora_dropout
            )));
        }
        Ok(())
    }
}

impl Default for LoraConfig {
    /// PEFT's own defaults: `r` 8, `lora_alpha` 8, no dropout.
    fn default() -> Self {
        Self {
            task_type: None,
            base_model_name_or_path: None,
            revision: None,
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: None,
            exclude_modules: None,
            bias: Bias::None,
            fan_in_fan_out: false,
            use_rslora: false,
            use_dora: false,
            lora_bias: false,
            modules_to_save: Vec::new(),
            init_lora_weights: Init::Default,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            ensure_weight_tying: false,
        }
    }
}

impl std::str::FromStr for Names {
    type Err = std::convert::Infallible;

    /// A command line's `--target-modules`: `q_proj,v_proj`, `all-linear`, or a regular expression.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.eq_ignore_ascii_case(ALL_LINEAR) || text.contains(|c| "*+?[](){}|^$\\".contains(c)) {
            return Ok(Self::Pattern(text.to_owned()));
        }
        Ok(Self::List(
            text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        ))
    }
}

impl std::str::FromStr for Init {
    type Err = Error;

    /// A command line's `--init`: `true`, `false` or `gaussian`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_lowercase().as_str() {
            "true" | "default" => Ok(Self::Default),
            "false" | "random" => Ok(Self::Random),
            "gaussian" => Ok(Self::Gaussian),
            _ => Err(Error::config(format!(
                "`init_lora_weights` is {text:?}; taper makes true, false and gaussian"
            ))),
        }
    }
}
