//! What a configuration does to each module of a base: which get factors of what rank, which are trained whole, which
//! biases are trained, and what in the configuration selects nothing.

mod tie;

use taper_base::{Base, Fresh, Module};

use crate::lora::Factors;
use crate::matching::{self, Candidate, Matcher};
use crate::targets::{default_targets, last_names, suggestion};
use crate::{Bias, Error, LoraConfig, Names, patterns};

/// What an adapter has to know of a base.
#[derive(Clone, Debug)]
pub struct BaseModules<'a> {
    /// `model_type` of its configuration.
    pub model_type: &'a str,
    /// Every module that an adapter may name.
    pub modules: Vec<Module<'a>>,
    /// Path of the output head, which `all-linear` leaves out.
    pub head: &'a str,
    /// Whether the head's weight is the embedding's.
    pub tie_word_embeddings: bool,
    /// Modules of which the base has no values: an adapter has to train them whole.
    pub fresh: &'a [Fresh],
}

impl<'a> From<&'a Base> for BaseModules<'a> {
    fn from(base: &'a Base) -> Self {
        Self {
            model_type: base.model_type(),
            modules: base.model.modules(),
            head: &base.model.head().linear.path,
            tie_word_embeddings: base.model.sizes().tie_word_embeddings,
            fresh: base.model.fresh(),
        }
    }
}

impl<'a> BaseModules<'a> {
    fn candidate(&self, module: Module<'a>) -> Candidate<'a> {
        let path = module.path();
        Candidate { path, in_all_linear: matches!(module, Module::Linear(_)) && path != self.head }
    }

    /// Path of the input embedding.
    fn embedding(&self) -> Option<&'a str> {
        self.modules.iter().find(|module| matches!(module, Module::Embedding(_))).map(|module| module.path())
    }

    /// Last names of the modules that can be targeted.
    fn names(&self) -> Vec<&'a str> {
        let adaptable =
            self.modules.iter().filter(|module| matches!(module, Module::Linear(_) | Module::Embedding(_)));
        last_names(adaptable.map(|module| module.path()))
    }

    fn all_names(&self) -> Vec<&'a str> {
        last_names(self.modules.iter().map(|module| module.path()))
    }
}

/// Whether a configuration is new, so that every part of it must mean something, or came with a folder, where parts that
/// mean nothing here are only worth a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Fresh,
    Folder,
}

/// What happens to each module.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// The configuration as it is to be saved: names resolved, patterns safe under sorting.
    pub(crate) config: LoraConfig,
    pub(crate) sites: Vec<Site<'a>>,
    /// Paths of the head and of the saved embedding that it follows.
    pub(crate) tied: Option<(&'a str, &'a str)>,
    pub(crate) warnings: Vec<String>,
}

/// What happens to one module.
#[derive(Debug)]
pub(crate) struct Site<'a> {
    pub(crate) module: Module<'a>,
    pub(crate) factors: Option<Factors>,
    pub(crate) whole: bool,
    pub(crate) bias: bool,
    /// Standard deviation of a weight that the base has no values for.
    pub(crate) fresh: Option<f64>,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(config: LoraConfig, base: &BaseModules<'a>, origin: Origin) -> Result<Self, Error> {
        config.validate()?;
        let mut plan = Self { config, sites: Vec::new(), tied: None, warnings: Vec::new() };
        plan.resolve_targets(base)?;
        let matcher = Matcher::new(&plan.config)?;
        for module in &base.modules {
            plan.add(*module, base, &matcher)?;
        }
        plan.tie(base, &matcher, origin)?;
        plan.check_targets(base, origin)?;
        plan.check_saved(base, origin)?;
        plan.check_fresh(base)?;
        plan.settle_layout();
        plan.settle_targets(base);
        plan.settle_patterns(&matcher, origin)?;
        Ok(plan)
    }

    /// Puts the default of the base in the place of no `target_modules`.
    fn resolve_targets(&mut self, base: &BaseModules<'a>) -> Result<(), Error> {
        if self.config.target_modules.is_none() {
            let Some(targets) = default_targets(base.model_type) else {
                return Err(Error::target(format!(
                    "`target_modules` is not set, and there is no default for model_type `{}`: this base has {}",
                    base.model_type,
                    base.names().join(", ")
                )));
            };
            self.config.target_modules = Some(targets);
        }
        Ok(())
    }

    fn add(&mut self, module: Module<'a>, base: &BaseModules<'a>, matcher: &Matcher) -> Result<(), Error> {
        let path = module.path();
        let (targeted, whole) = (matcher.targets(base.candidate(module))?, matcher.saves(path));
        if targeted && whole {
            return Err(Error::target(format!(
                "`{path}` is in `target_modules` and, by its end, in `modules_to_save`"
            )));
        }
        let bias = module.bias().is_some()
            && !whole
            && match self.config.bias {
                Bias::None => false,
                Bias::All => true,
                Bias::LoraOnly => targeted,
            };
        let factors = if targeted { Some(self.factors(module, matcher)?) } else { None };
        if targeted || whole || bias {
            let fresh = base.fresh.iter().find(|fresh| fresh.path == path).map(|fresh| fresh.deviation);
            self.sites.push(Site { module, factors, whole, bias, fresh });
        }
        Ok(())
    }

    fn factors(&self, module: Module<'a>, matcher: &Matcher) -> Result<Factors, Error> {
        let path = module.path();
        match module {
            Module::Norm(_) | Module::LayerNorm(_) => {
                return Err(Error::target(format!(
                    "target module `{path}` is a norm, which has no low-rank form: put it in `modules_to_save`"
                )));
            }
            Module::Embedding(_) if self.config.lora_bias => {
                return Err(Error::config(format!(
                    "`lora_bias` does not go with an embedding, and `{path}` is targeted"
                )));
            }
            _ => {}
        }
        let (r, alpha) = matcher.rank_and_alpha(path)?;
        Ok(Factors {
            r,
            scaling: self.config.scaling(r, alpha),
            init: self.config.init_lora_weights.clone(),
            lora_bias: self.config.lora_bias,
            use_dora: self.config.use_dora,
        })
    }

    /// Values of the factors and of the matrices that are trained whole; biases, norms and magnitudes are few.
    pub(crate) fn values(&self) -> u64 {
        let values = |site: &Site<'a>| {
            let (rows, cols) = match site.module {
                Module::Linear(layer) => layer.weight.stored_dims(),
                Module::Embedding(layer) => (layer.weight.rows(), layer.weight.cols()),
                Module::Norm(_) | Module::LayerNorm(_) => (0, 0),
            };
            let factors = site.factors.as_ref().map_or(0, |factors| factors.r as u64 * (rows + cols) as u64);
            factors + if site.whole { rows as u64 * cols as u64 } else { 0 }
        };
        self.sites.iter().map(values).sum()
    }

    fn site(&self, path: &str) -> Option<&Site<'a>> {
        self.sites.iter().find(|site| site.module.path() == path)
    }

    fn check_targets(&mut self, base: &BaseModules<'a>, origin: Origin) -> Result<(), Error> {
        let names = base.names();
        let Some(targets) = self.config.target_modules.clone() else { return Ok(()) };
        let none = !self.sites.iter().any(|site| site.factors.is_some());
        match &targets {
            Names::List(list) => {
                for name in list {
                    if base.modules.iter().any(|module| matching::ends_with(module.path(), name)) {
                        continue;
                    }
                    let what =
                        format!("target module `{name}` matches nothing: {}", suggestion(name, &names));
                    match origin {
                        Origin::Folder if !none => self.warnings.push(what),
                        _ => return Err(Error::target(what)),
                    }
                }
                if list.is_empty() && !self.sites.is_empty() {
                    return Ok(());
                }
            }
            Names::Pattern(pattern) if none => {
                let hint = suggestion(pattern, &names);
                return Err(Error::target(format!(
                    "`target_modules` {pattern:?}, a regular expression over whole module paths, matches nothing: {hint}"
                )));
            }
            Names::Pattern(_) => {}
        }
        if none {
            return Err(Error::target(format!(
                "no module is left to adapt: `exclude_modules`, `modules_to_save` or `layers_to_transform` rule out all \
                 that `target_modules` selects; this base has {}",
                names.join(", ")
            )));
        }
        Ok(())
    }

    fn check_saved(&mut self, base: &BaseModules<'a>, origin: Origin) -> Result<(), Error> {
        for name in &self.config.modules_to_save {
            let found = base.modules.iter().any(|module| matching::saved_by(module.path(), name));
            if found || self.is_implied(name) {
                continue;
            }
            let what = format!(
                "`modules_to_save` `{name}` matches nothing: {}",
                suggestion(name, &base.all_names())
            );
            match origin {
                Origin::Fresh => return Err(Error::target(what)),
                Origin::Folder => self.warnings.push(what),
            }
        }
        if let Some(Names::List(excluded)) = &self.config.exclude_modules {
            let unused =
                |name: &&String| !base.modules.iter().any(|module| matching::ends_with(module.path(), name));
            let warn = |name: &String| format!("`exclude_modules` `{name}` matches nothing");
            self.warnings.extend(excluded.iter().filter(unused).map(warn));
        }
        Ok(())
    }

    /// Sets `fan_in_fan_out` to what the targeted layers are, as PEFT does (`LoraModel._create_new_module`).
    fn settle_layout(&mut self) {
        let targeted = self.sites.iter().filter(|site| site.factors.is_some());
        let mut layers = targeted.filter_map(|site| match site.module {
            Module::Linear(layer) => Some(layer.weight.is_transposed()),
            _ => None,
        });
        if let Some(first) = layers.next() {
            self.config.fan_in_fan_out = first || layers.any(|transposed| transposed);
        }
    }

    /// Whether PEFT puts `name` into `modules_to_save` of every adapter for the task, whatever the base calls its head.
    fn is_implied(&self, name: &str) -> bool {
        let labels = matches!(self.config.task_type.as_deref(), Some("SEQ_CLS" | "TOKEN_CLS"));
        labels && ["classifier", "score"].contains(&name)
    }

    /// That every module which the base has no values for gets them from the adapter.
    fn check_fresh(&self, base: &BaseModules<'a>) -> Result<(), Error> {
        let whole = |path: &str| self.site(path).is_some_and(|site| site.whole);
        let lacking: Vec<_> = base
            .fresh
            .iter()
            .filter(|fresh| !whole(&fresh.path))
            .map(|fresh| format!("`{}`", fresh.path))
            .collect();
        if lacking.is_empty() {
            return Ok(());
        }
        Err(Error::target(format!(
            "the base has no values for {}, and the adapter does not train and save them (`modules_to_save`): it would \
             answer by chance. Use the base with the head that the adapter was trained on",
            lacking.join(" and ")
        )))
    }

    /// Writes `all-linear` out as names: short ones where they select the same modules, else whole paths.
    fn settle_targets(&mut self, base: &BaseModules<'a>) {
        let all_linear = |names: &Names| matches!(names, Names::Pattern(p) if p.eq_ignore_ascii_case(crate::config::ALL_LINEAR));
        if !self.config.target_modules.as_ref().is_some_and(all_linear) {
            return;
        }
        let adapted = |site: &&Site<'a>| site.factors.is_some();
        let paths: Vec<&str> = self.sites.iter().filter(adapted).map(|site| site.module.path()).collect();
        let short = last_names(paths.iter().copied());
        let others = base.modules.iter().map(|module| module.path()).filter(|path| !paths.contains(path));
        let ambiguous =
            others.into_iter().any(|path| short.iter().any(|name| matching::ends_with(path, name)));
        let names = if ambiguous { paths } else { short };
        self.config.target_modules = Some(Names::List(names.into_iter().map(str::to_owned).collect()));
    }

    /// Makes `rank_pattern` and `alpha_pattern` mean the same after PEFT has sorted them.
    fn settle_patterns(&mut self, matcher: &Matcher, origin: Origin) -> Result<(), Error> {
        let mut modules = Vec::new();
        for site in self.sites.iter().filter(|site| site.factors.is_some()) {
            let path = site.module.path();
            modules.push((path, matcher.rank_and_alpha(path)?));
        }
        let ranks: Vec<_> = modules.iter().map(|(path, (r, _))| (*path, *r)).collect();
        let alphas: Vec<_> = modules.iter().map(|(path, (_, alpha))| (*path, *alpha)).collect();
        let (rank_pattern, mut unused) =
            patterns::settle("rank_pattern", &self.config.rank_pattern, &ranks, self.config.r)?;
        let alpha = self.config.lora_alpha;
        let (alpha_pattern, others) =
            patterns::settle("alpha_pattern", &self.config.alpha_pattern, &alphas, alpha)?;
        unused.extend(others);
        if origin == Origin::Fresh
            && let Some(what) = unused.into_iter().next()
        {
            return Err(Error::target(what));
        }
        (self.config.rank_pattern, self.config.alpha_pattern) = (rank_pattern, alpha_pattern);
        Ok(())
    }
}
