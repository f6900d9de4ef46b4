//! The flags of `taper train`: every field of a recipe, under its own name.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use toml::Table;

/// Train an adapter on a frozen base.
///
/// Every field of a recipe is also a flag, and flags win over the recipe's file.
#[derive(Args)]
pub(crate) struct TrainArgs {
    /// A recipe.toml to start from
    pub(crate) recipe: Option<PathBuf>,
    #[command(flatten)]
    fields: Fields,
    /// A column of the rows under another name, as format's=file's: prompt=question; may be repeated
    #[arg(long, help_heading = "What", value_name = "KEY=COLUMN", value_parser = super::data::column)]
    column: Vec<(String, String)>,
    /// How training rows are changed, anew each epoch: `token_dropout=0.1`, of classify also `word_swap=0.1` and
    /// `word_deletion=0.1`; several with commas between [default: not at all]
    #[arg(long, help_heading = "Data", value_name = "KEY=SHARE", value_delimiter = ',', value_parser = super::data::share)]
    augment: Vec<(String, f64)>,
    /// Take the rows in the order of the file
    #[arg(long, help_heading = "Data", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    no_shuffle: Option<bool>,
    /// Go on from the last checkpoint in the output folder
    #[arg(long, conflicts_with = "force")]
    pub(crate) resume: bool,
    /// Replace an adapter that is already in the output folder
    #[arg(long)]
    pub(crate) force: bool,
    /// Learn nothing, but try N learning rates from 1e-7 to 10, one a step, print which to take and draw lr.svg in the output
    /// folder
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "100")]
    #[arg(value_parser = clap::value_parser!(u32).range(20..), conflicts_with_all = ["resume", "force"])]
    pub(crate) find_lr: Option<u32>,
    /// Print nothing but errors
    #[arg(long)]
    pub(crate) quiet: bool,
}

/// A field that is not given is left to the recipe.
#[derive(Args, Serialize)]
struct Fields {
    /// The base model: `tiny`, a folder, a .gguf file, or a hub id (org/name or org/name@revision) [default: tiny]
    #[arg(long, help_heading = "What", value_name = "SOURCE")]
    model: Option<String>,
    /// Training rows: a file, a folder with train/valid/test, or a hub id
    #[arg(long, help_heading = "What", value_name = "SOURCE")]
    data: Option<String>,
    /// Rows to evaluate on [default: the data folder's valid split]
    #[arg(long, help_heading = "What", value_name = "SOURCE")]
    eval_data: Option<String>,
    /// Share of the training rows to evaluate on instead, where there are no rows for that
    #[arg(long, help_heading = "What", value_name = "SHARE")]
    eval_split: Option<f64>,
    /// Folder to write the adapter to [default: the recipe's own]
    #[arg(long, help_heading = "What", value_name = "DIR")]
    out: Option<PathBuf>,
    /// What is learned [default: what the rows' format is for]
    #[arg(long, help_heading = "What", value_name = "TASK")]
    task: Option<String>,
    /// Row format [default: detected from the rows]
    #[arg(long, help_heading = "What", value_name = "FORMAT")]
    format: Option<String>,
    /// Of classify: `regression` or `single_label_classification` [default: by the labels]
    #[arg(long, help_heading = "Data", value_name = "TYPE")]
    problem_type: Option<String>,
    /// How much each label counts: `balanced`, or label=weight with commas between [default: all the same]
    #[arg(long, help_heading = "Data", value_name = "WEIGHTS")]
    class_weights: Option<String>,
    /// Share of each label that is spread over all labels, or all tokens; evaluations count labels whole [default: 0]
    #[arg(long, help_heading = "Data", value_name = "SHARE")]
    label_smoothing: Option<f64>,
    /// Of classify and tag: share of what the head reads that is zeroed while training [default: 0]
    #[arg(long, help_heading = "Data", value_name = "SHARE")]
    head_dropout: Option<f64>,
    /// Rank of the low-rank update [default: 16]
    #[arg(long, help_heading = "Adapter", value_name = "R")]
    rank: Option<usize>,
    /// The update is scaled by alpha / rank [default: twice the rank]
    #[arg(long, help_heading = "Adapter", value_name = "A")]
    alpha: Option<f64>,
    /// Share of the low-rank term's inputs that is zeroed while training [default: 0]
    #[arg(long, help_heading = "Adapter", value_name = "P")]
    dropout: Option<f64>,
    /// Layers to adapt: names with commas between, `all-linear`, or a regular expression [default: all-linear]
    #[arg(long, help_heading = "Adapter", value_name = "NAMES")]
    target_modules: Option<String>,
    /// Modules to train whole and save beside the update, with commas between
    #[arg(long, help_heading = "Adapter", value_name = "NAMES", value_delimiter = ',')]
    modules_to_save: Option<Vec<String>>,
    /// Scale by alpha / sqrt(rank) instead (rsLoRA)
    #[arg(long, help_heading = "Adapter", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    use_rslora: Option<bool>,
    /// Learn magnitude and direction apart (DoRA)
    #[arg(long, help_heading = "Adapter", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    use_dora: Option<bool>,
    /// How the update starts: default, gaussian or random [default: default]
    #[arg(long, help_heading = "Adapter", value_name = "INIT")]
    init: Option<String>,
    /// Adapter to go on from: a folder or a hub id
    #[arg(long, help_heading = "Adapter", value_name = "SOURCE")]
    init_adapter: Option<String>,
    /// Peak learning rate [default: 2e-4]
    #[arg(long, help_heading = "Optimiser", value_name = "RATE")]
    lr: Option<f64>,
    /// Course of the rate: constant, linear or cosine [default: linear]
    #[arg(long, help_heading = "Optimiser", value_name = "NAME")]
    schedule: Option<String>,
    /// Share of all steps over which the rate rises [default: 0]
    #[arg(long, help_heading = "Optimiser", value_name = "SHARE")]
    warmup_ratio: Option<f64>,
    /// Rate of B over that of A (LoRA+) [default: 1]
    #[arg(long, help_heading = "Optimiser", value_name = "X")]
    lora_plus_ratio: Option<f64>,
    /// Decoupled weight decay [default: 0.01]
    #[arg(long, help_heading = "Optimiser", value_name = "X")]
    weight_decay: Option<f64>,
    /// Kinds of parameter without weight decay: bias, norm
    #[arg(long, help_heading = "Optimiser", value_name = "KINDS", value_delimiter = ',')]
    no_decay: Option<Vec<String>>,
    /// Norm that the gradient is cut to; 0 is no clipping [default: 1]
    #[arg(long, help_heading = "Optimiser", value_name = "X")]
    max_grad_norm: Option<f64>,
    /// Passes over the rows [default: 3]
    #[arg(long, help_heading = "Run", value_name = "N")]
    epochs: Option<usize>,
    /// Number of steps, whatever --epochs says
    #[arg(long, help_heading = "Run", value_name = "N")]
    max_steps: Option<usize>,
    /// Rows of a batch [default: 8]
    #[arg(long, help_heading = "Run", value_name = "ROWS")]
    batch_size: Option<usize>,
    /// Batches of one step [default: 1]
    #[arg(long, help_heading = "Run", value_name = "N")]
    gradient_accumulation: Option<usize>,
    /// Tokens at which a row is cut [default: 1024, or the model's own limit if that is less]
    #[arg(long, help_heading = "Run", value_name = "TOKENS")]
    max_length: Option<usize>,
    /// Memory that the whole process may use, such as 2GiB: sets micro-batch tokens, and how many blocks are run again in
    /// backward instead of being kept [default: as little as runs fast]
    #[arg(long, help_heading = "Run", value_name = "SIZE")]
    memory: Option<String>,
    /// Most tokens of one forward and backward pass: memory, not results, depend on it [default: from the memory]
    #[arg(long, help_heading = "Run", value_name = "TOKENS")]
    micro_batch_tokens: Option<usize>,
    /// How products are computed: f32 or bf16 [default: f32]
    #[arg(long, help_heading = "Run", value_name = "TYPE")]
    dtype: Option<String>,
    /// Compute threads [default: all cores]
    #[arg(long, help_heading = "Run", value_name = "N")]
    threads: Option<usize>,
    /// Seed of the fresh update, the order of rows and dropout [default: 0]
    #[arg(long, help_heading = "Run", value_name = "N")]
    seed: Option<u64>,
    /// Steps from one evaluation to the next [default: once an epoch]
    #[arg(long, help_heading = "Watching", value_name = "STEPS")]
    eval_every: Option<usize>,
    /// Steps from one checkpoint to the next [default: once an epoch]
    #[arg(long, help_heading = "Watching", value_name = "STEPS")]
    save_every: Option<usize>,
    /// Stop after N evaluations without a better one, and keep the best
    #[arg(long, help_heading = "Watching", value_name = "N")]
    early_stopping: Option<usize>,
    /// Metric of the answers that makes an evaluation the best; the run ends with the best adapter [default: the loss]
    #[arg(long, help_heading = "Watching", value_name = "METRIC")]
    metric_for_best: Option<String>,
    /// Metrics of base and adapter when training is done: bleu, rougeL, chrf and others
    #[arg(long, help_heading = "Watching", value_name = "METRICS", value_delimiter = ',')]
    metrics: Option<Vec<String>>,
    /// Tokens that an answer has at most [default: 64]
    #[arg(long, help_heading = "Watching", value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Steps from one printed line to the next [default: 10]
    #[arg(long, help_heading = "Watching", value_name = "STEPS")]
    log_every: Option<usize>,
}

impl TrainArgs {
    /// The flags that were given, as fields of a recipe.
    pub(crate) fn overrides(&self) -> anyhow::Result<Table> {
        let mut table = Table::try_from(&self.fields).context("flags")?;
        if !self.column.is_empty() {
            let columns = self.column.iter().map(|(key, name)| (key.clone(), name.clone().into()));
            table.insert("column".into(), columns.collect::<Table>().into());
        }
        if !self.augment.is_empty() {
            table.insert("augment".into(), super::data::shares(&self.augment).into());
        }
        if let Some(no_shuffle) = self.no_shuffle {
            table.insert("shuffle".into(), (!no_shuffle).into());
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use taper_train::Recipe;

    use super::TrainArgs;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        train: TrainArgs,
    }

    fn overrides(flags: &str) -> toml::Table {
        let cli = Cli::try_parse_from(std::iter::once("taper").chain(flags.split(' '))).expect("good flags");
        cli.train.overrides().expect("a table")
    }

    #[test]
    fn only_what_was_given_overrides_the_recipe() {
        let table =
            overrides("--rank 4 --target-modules q_proj,v_proj --no-shuffle --use-dora --no-decay bias,norm");
        let keys: Vec<&str> = table.keys().map(String::as_str).collect();
        assert_eq!(keys, ["no_decay", "rank", "shuffle", "target_modules", "use_dora"]);
    }

    #[test]
    fn every_field_of_a_recipe_has_a_flag() {
        use clap::CommandFactory;
        let command = Cli::command();
        let known: Vec<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
        for field in Recipe::fields() {
            let flag = if *field == "shuffle" { "no-shuffle".to_owned() } else { field.replace('_', "-") };
            assert!(known.contains(&flag.as_str()), "no flag for `{field}`");
        }
    }
}
