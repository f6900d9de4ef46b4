//! What stands before the first step: data, adapter, effective recipe, and the plan that is shown.

use std::path::Path;

use taper_base::{Base, Labels, ModelDir, ModelSource};
use taper_kernels::pool;
use taper_lora::{LoraAdapter, LoraConfig, Names};

use crate::budget::{self, Budget, Memory};
use crate::checkpoint::{Checkpoints, Origin, State};
use crate::fingerprint::Fingerprint;
use crate::reading::{data_options, max_length};
use crate::recipe::{Init, ProblemType};
use crate::{
    DataFiles, DataOptions, DataSet, Error, Recipe, Split, Start, Summary, Task, available_bytes,
    default_metrics, outputs,
};

/// Share of labels among the tokens below which something is likely wrong with the rows.
const FEW_LABELS: f64 = 0.01;

/// The rows of a run.
pub(crate) struct Rows {
    pub(crate) train: DataSet,
    pub(crate) valid: Option<DataSet>,
    pub(crate) test: Option<DataSet>,
}

impl Rows {
    /// Reads every split there is. Of a single file all rows are training rows.
    pub(crate) fn load(base: &Base, recipe: &Recipe) -> Result<Self, Error> {
        let options = data_options(base, recipe);
        let load = |files: &[_]| DataSet::load(files, &base.tokenizer, &options);
        let files = DataFiles::named(&recipe.data)?;
        let texts = DataOptions { texts: recipe.augment.changes_words(), ..options.clone() };
        let mut train = DataSet::load(files.first(&[Split::Train])?, &base.tokenizer, &texts)?;
        let valid = match (&recipe.eval_data, files.get(Split::Valid), recipe.eval_split) {
            (None, None, Some(share)) => Some(train.split_off(share, recipe.seed)?),
            (Some(_), _, Some(_)) | (None, Some(_), Some(_)) => {
                return Err(Error::recipe(
                    "`eval_split` is set, but there are rows to evaluate on already (`eval_data`, or the data's own): leave \
                     one of them out",
                ));
            }
            (Some(place), _, None) => {
                Some(load(DataFiles::named(place)?.first(&[Split::Valid, Split::Test])?)?)
            }
            (None, files, None) => files.map(load).transpose()?,
        };
        let test = files.get(Split::Test).map(load).transpose()?;
        let rows = Self { train, valid, test };
        rows.check(recipe)?;
        Ok(rows)
    }

    /// Every split there is.
    pub(crate) fn sets(&self) -> impl Iterator<Item = &DataSet> {
        [&self.train].into_iter().chain(&self.valid).chain(&self.test)
    }

    /// Whether there are the rows that the recipe watches.
    fn check(&self, recipe: &Recipe) -> Result<(), Error> {
        let wants = [
            ("early_stopping", recipe.early_stopping.is_some(), self.valid.is_some()),
            ("metric_for_best", recipe.metric_for_best.is_some(), self.valid.is_some()),
            ("metrics", !recipe.metrics.is_empty(), self.valid.is_some() || self.test.is_some()),
        ];
        if let Some((field, ..)) = wants.iter().find(|(_, wanted, there)| *wanted && !there) {
            return Err(Error::recipe(format!(
                "`{field}` is set, but there are no rows to evaluate on: give `eval_data` (--eval-data) or \
                 `eval_split` (--eval-split)"
            )));
        }
        let asked = recipe.asked()?;
        self.valid.iter().try_for_each(|set| recipe.watched()?.check(set).and_then(|()| asked.check(set)))?;
        self.test.iter().try_for_each(|set| asked.check(set))
    }
}

/// Checks `recipe`, sets its number of threads and reads its rows; the recipe comes back with the task of `base`.
pub(crate) fn begin(base: &Base, recipe: &Recipe) -> Result<(Recipe, Rows), Error> {
    let recipe = for_task(base, recipe)?;
    recipe.check()?;
    if let Some(threads) = recipe.threads {
        pool::set_threads(threads);
    }
    let rows = Rows::load(base, &recipe)?;
    Ok((recipe, rows))
}

/// The recipe with the task that `base` was opened for.
fn for_task(base: &Base, recipe: &Recipe) -> Result<Recipe, Error> {
    let opened = Task::of(base);
    if let Some(task) = recipe.task.filter(|task| *task != opened) {
        let (task, opened) = (task.name(), opened.name());
        return Err(Error::recipe(format!(
            "`task` is {task}, and a {} was opened for {opened}: leave `task` out",
            base.model_type()
        )));
    }
    if recipe.label_smoothing > 0.0 && base.task.labels() == Some(&Labels::Number) {
        return Err(Error::recipe(format!(
            "`label_smoothing` is {}, but the labels are numbers, which have no others to be smoothed over: leave it out",
            recipe.label_smoothing
        )));
    }
    if let Some(problem) = recipe.problem_type.filter(|_| base.task.labels().is_none()) {
        let problem = match problem {
            ProblemType::Regression => "regression",
            ProblemType::SingleLabelClassification => "single_label_classification",
        };
        return Err(Error::recipe(format!(
            "`problem_type` is {problem}, but `task` is {}, which learns tokens and no labels: leave it out",
            opened.name()
        )));
    }
    if recipe.head_dropout > 0.0 && base.task.labels().is_none() {
        return Err(Error::recipe(format!(
            "`head_dropout` is {}, but `task` is {}, whose head is the frozen model's own: leave it out; `dropout` is that of \
             the low-rank terms",
            recipe.head_dropout,
            opened.name()
        )));
    }
    Ok(Recipe { task: Some(opened), ..recipe.clone() })
}

/// A run with nothing missing but its first step.
pub(crate) struct Prepared {
    /// The recipe with everything filled in that depends on base, adapter and machine.
    pub(crate) recipe: Recipe,
    pub(crate) adapter: LoraAdapter,
    pub(crate) origin: Origin,
    /// The state that the run goes on from.
    pub(crate) state: Option<State>,
    pub(crate) memory: Memory,
}

/// Builds or loads the adapter and completes the recipe. Nothing is written.
pub(crate) fn prepare(base: &Base, recipe: &Recipe, rows: &Rows, start: Start) -> Result<Prepared, Error> {
    outputs::check(&recipe.out, start)?;
    apart(base, recipe)?;
    let checkpoints = Checkpoints::new(&recipe.out);
    let state = if start == Start::Resume { checkpoints.last()? } else { None };
    let adapter = match (&state, &recipe.init_adapter) {
        (Some(state), _) => LoraAdapter::load_trainable(&checkpoints.folder(state.progress.step), base)?,
        (None, Some(text)) => {
            let dir = ModelDir::resolve_adapter(&ModelSource::parse_adapter(text)?)?;
            let adapter = LoraAdapter::load_trainable(&dir, base)?;
            agree(recipe, adapter.config(), text)?;
            adapter
        }
        (None, None) => {
            let config = config(base, recipe);
            let values = LoraAdapter::planned_values(config.clone(), base)?;
            budget::check_adapter(values, recipe.memory, available_bytes())?;
            LoraAdapter::fresh(config, base, recipe.seed)?
        }
    };
    let mut recipe = recipe.clone();
    if recipe.init_adapter.is_none() {
        recipe.rank = Some(recipe.rank());
        recipe.alpha = Some(recipe.alpha());
        recipe.dropout = Some(recipe.dropout());
        recipe.target_modules = Some(recipe.targets());
    }
    let config = adapter.config();
    (recipe.use_rslora, recipe.use_dora) = (config.use_rslora, config.use_dora);
    if recipe.metrics.is_empty() {
        recipe.metrics = default_metrics(&base.task).iter().map(|name| (*name).to_owned()).collect();
    }
    recipe.max_length = Some(max_length(base, recipe.max_length));
    let before = state.as_ref().map(State::recipe).transpose()?.and_then(|recipe| recipe.micro_batch_tokens);
    let tokens = recipe.micro_batch_tokens.or(before);
    let memory = Budget::new(base, &adapter, rows, recipe.step_rows()).plan(
        tokens,
        recipe.memory,
        available_bytes(),
    )?;
    recipe.micro_batch_tokens = Some(memory.micro_batch_tokens);
    let origin = origin(base, &recipe, rows)?;
    if let Some(changes) = state.as_ref().map(|state| state.origin.changes(&origin))
        && !changes.is_empty()
    {
        let what = changes.join("; ");
        let out = recipe.out.display();
        return Err(Error::output(format!(
            "{out}: cannot resume, as {what}. Undo that, or start anew with --force"
        )));
    }
    Ok(Prepared { recipe, adapter, origin, state, memory })
}

/// Refuses to write where the run reads from.
fn apart(base: &Base, recipe: &Recipe) -> Result<(), Error> {
    let Ok(out) = recipe.out.canonicalize() else { return Ok(()) };
    let init = recipe.init_adapter.as_ref().map(Path::new);
    for (what, place) in [("the base", Some(base.dir.path.as_path())), ("`init_adapter`", init)] {
        if place.and_then(|place| place.canonicalize().ok()).as_ref() == Some(&out) {
            let out = recipe.out.display();
            return Err(Error::output(format!("{out}: is the folder of {what}: give another --out")));
        }
    }
    Ok(())
}

/// The configuration of a fresh adapter.
fn config(base: &Base, recipe: &Recipe) -> LoraConfig {
    let revision = match ModelSource::parse(&recipe.model) {
        Ok(ModelSource::Hub { revision, .. }) => revision,
        _ => None,
    };
    LoraConfig {
        task_type: Some(task_type(Task::of(base)).into()),
        base_model_name_or_path: Some(base.dir.name.clone()),
        revision,
        r: recipe.rank(),
        lora_alpha: recipe.alpha(),
        lora_dropout: recipe.dropout(),
        target_modules: Some(Names::from(&recipe.targets())),
        modules_to_save: modules_to_save(base, recipe),
        use_rslora: recipe.use_rslora,
        use_dora: recipe.use_dora,
        init_lora_weights: match recipe.init {
            Init::Default => taper_lora::Init::Default,
            Init::Gaussian => taper_lora::Init::Gaussian,
            Init::Random => taper_lora::Init::Random,
        },
        ..LoraConfig::default()
    }
}

/// PEFT's name of a task.
fn task_type(task: Task) -> &'static str {
    match task {
        Task::CausalLm | Task::Preference => "CAUSAL_LM",
        Task::Classify => "SEQ_CLS",
        Task::Tag => "TOKEN_CLS",
        Task::Seq2seq => "SEQ_2_SEQ_LM",
    }
}

/// What the recipe trains whole, and the modules of the task's head.
fn modules_to_save(base: &Base, recipe: &Recipe) -> Vec<String> {
    let mut names = recipe.modules_to_save.clone();
    let head = base.model.head_modules().iter().map(|name| (*name).to_owned());
    names.extend(head.filter(|name| !recipe.modules_to_save.contains(name)).collect::<Vec<_>>());
    names
}

/// Checks that what the recipe says of the adapter is so of the adapter that it goes on from.
fn agree(recipe: &Recipe, config: &LoraConfig, adapter: &str) -> Result<(), Error> {
    let mut wrong = Vec::new();
    let mut check = |field: &str, given: Option<String>, has: String| {
        if let Some(given) = given.filter(|given| *given != has) {
            wrong.push(format!("`{field}` is {given}, the adapter's is {has}"));
        }
    };
    let whole = (!recipe.modules_to_save.is_empty()).then(|| format!("{:?}", recipe.modules_to_save));
    check("rank", recipe.rank.map(|r| r.to_string()), config.r.to_string());
    check("alpha", recipe.alpha.map(|alpha| alpha.to_string()), config.lora_alpha.to_string());
    check("dropout", recipe.dropout.map(|p| p.to_string()), config.lora_dropout.to_string());
    check("use_rslora", recipe.use_rslora.then(|| "true".into()), config.use_rslora.to_string());
    check("use_dora", recipe.use_dora.then(|| "true".into()), config.use_dora.to_string());
    check("modules_to_save", whole, format!("{:?}", config.modules_to_save));
    let same = |targets| config.target_modules.as_ref() == Some(&Names::from(targets));
    if !recipe.target_modules.as_ref().is_none_or(same) {
        wrong.push("`target_modules` are others than the adapter's".into());
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let wrong = wrong.join("; ");
    Err(Error::recipe(format!("`init_adapter` is {adapter}, but {wrong}: leave these out of the recipe")))
}

/// What a run of `recipe` depends on.
fn origin(base: &Base, recipe: &Recipe, rows: &Rows) -> Result<Origin, Error> {
    let recipe = serde_json::to_value(recipe)
        .map_err(|error| Error::recipe(format!("cannot be written as JSON: {error}")))?;
    let set = |set: &DataSet| {
        let mut print = Fingerprint::new();
        for example in &set.examples {
            print.add(example.key.to_le_bytes());
            print.add((example.tokens.len() as u64).to_le_bytes());
        }
        print.hex()
    };
    let valid = rows.valid.as_ref().map(set);
    Ok(Origin { recipe, base: base_fingerprint(base), train: set(&rows.train), valid })
}

/// Over configuration, names, shapes, and the first bytes of every tensor: enough to tell bases apart without reading them.
fn base_fingerprint(base: &Base) -> String {
    let mut print = Fingerprint::new();
    print.add(base.config.to_string().bytes());
    for name in base.checkpoint.names() {
        print.add(name.bytes());
        let bytes = base.checkpoint.bytes(name).unwrap_or_default();
        print.add((bytes.len() as u64).to_le_bytes());
        print.add(bytes.iter().take(256).copied());
    }
    print.hex()
}

/// What will happen.
pub(crate) fn summary(base: &Base, prepared: &Prepared, rows: &Rows, steps_per_epoch: usize) -> Summary {
    let Prepared { recipe, adapter, state, memory, .. } = prepared;
    let checkpoint = &base.checkpoint;
    let infos = || checkpoint.names().filter_map(|name| checkpoint.info(name));
    let mut summary = Summary {
        model: base.dir.name.clone(),
        model_type: base.model_type().to_owned(),
        base_parameters: infos().map(|info| info.shape.iter().product::<usize>() as u64).sum(),
        trainable_parameters: adapter.params().values().map(|var| var.elem_count() as u64).sum(),
        trainable_tensors: adapter.params().len(),
        adapted_modules: adapter.ranks().len(),
        loss_unit: match base.task.labels() {
            Some(Labels::Number) => "mean squared error",
            _ => "nats per label",
        },
        format: rows.train.format.name.to_owned(),
        train: rows.train.stats,
        valid: rows.valid.as_ref().map(|set| set.stats),
        test: rows.test.as_ref().map(|set| set.stats),
        max_length: recipe.max_length.unwrap_or_default(),
        steps_per_epoch,
        steps: steps(recipe, steps_per_epoch),
        resumed_at: state.as_ref().map(|state| state.progress.step),
        step_rows: recipe.step_rows(),
        micro_batch_tokens: memory.micro_batch_tokens,
        recomputed_blocks: memory.recomputed_blocks,
        memory_bytes: memory.bytes,
        base_bytes: budget::base_bytes(base),
        available_bytes: available_bytes(),
        threads: pool::threads(),
        warnings: adapter.warnings().to_vec(),
    };
    summary.warnings.extend(warnings(base, recipe, &summary));
    summary
}

/// Steps of the whole run.
pub(crate) fn steps(recipe: &Recipe, steps_per_epoch: usize) -> usize {
    recipe.max_steps.unwrap_or(recipe.epochs.saturating_mul(steps_per_epoch))
}

fn warnings(base: &Base, recipe: &Recipe, summary: &Summary) -> Vec<String> {
    let mut warnings = Vec::new();
    let made_for = base.model.sizes().max_position_embeddings;
    if recipe.max_length.is_some_and(|length| length > made_for) && summary.train.longest > made_for {
        let longest = summary.train.longest;
        warnings.push(format!("rows have up to {longest} tokens, the model was made for {made_for}"));
    }
    if base.task.labels().is_none() && summary.learned_share() < FEW_LABELS {
        let share = 100.0 * summary.learned_share();
        warnings.push(format!("only {share:.2} % of the tokens are learned: look at `taper data show`"));
    }
    if summary.available_bytes.is_some_and(|available| summary.memory_bytes > available) {
        warnings.push(
            "training is likely to need more memory than is free: lower `micro_batch_tokens` or `max_length`"
                .into(),
        );
    }
    warnings
}
