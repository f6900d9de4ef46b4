//! A PEFT adapter's folder: what can be said of it without its base.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use taper_base::{Base, Checkpoint};
use taper_lora::matching::{ends_with, pattern_matches, saved_by};
use taper_lora::{LoraAdapter, LoraConfig, Names};

use super::keys::{self, Keys, PREFIX, Part};
use super::stats::Stats;
use super::{Inspection, Kind, ModuleFacts, some};

pub(super) fn inspect(dir: &Path, base: Option<&Base>) -> Inspection {
    let mut found = Inspection::new(Kind::Adapter, dir);
    let config = read_config(&mut found, dir);
    let weights = dir.join("adapter_model.safetensors");
    if weights.is_file() {
        if let Some(checkpoint) = found.open(&weights) {
            let folder = Folder { checkpoint, config };
            folder.values(&mut found);
            folder.modules(&mut found);
            folder.names(&mut found);
            folder.head(&mut found);
        }
    } else if dir.join("adapter_model.bin").is_file() {
        found.problem(
            "only pickled weights (adapter_model.bin), which taper does not read: save them as safetensors",
        );
    } else {
        found.problem("adapter_model.safetensors is missing");
    }
    if let Some(base) = base {
        match LoraAdapter::load(dir, base) {
            Ok(adapter) => adapter.warnings().iter().for_each(|warning| found.problem(warning.as_str())),
            Err(error) => found.problem(format!("on {}: {error}", base.dir.name)),
        }
        found.problems.dedup();
    }
    found
}

fn read_config(found: &mut Inspection, dir: &Path) -> LoraConfig {
    let text = found.read_config(&dir.join("adapter_config.json"));
    let config = match text.as_deref().map(LoraConfig::from_json) {
        Some(Ok((config, warnings))) => {
            found.problems.extend(warnings);
            config
        }
        Some(Err(error)) => {
            if found.config.is_object() {
                found.problem(format!("adapter_config.json: {error}"));
            }
            lenient(&found.config)
        }
        None => LoraConfig::default(),
    };
    match &config.base_model_name_or_path {
        None if found.config.is_object() => {
            found
                .notes
                .push("base_model_name_or_path is not set: nobody can tell which base it is for".into());
        }
        Some(base) if is_local(base) => {
            found.notes.push(format!(
                "base_model_name_or_path is a path on one machine (`{base}`): others cannot find the base"
            ));
        }
        _ => {}
    }
    config
}

/// What can be used of a configuration that is refused as a whole.
fn lenient(json: &Value) -> LoraConfig {
    let default = LoraConfig::default();
    LoraConfig {
        r: json["r"].as_u64().map_or(default.r, |r| r as usize),
        lora_alpha: json["lora_alpha"].as_f64().unwrap_or(default.lora_alpha),
        use_rslora: json["use_rslora"].as_bool().unwrap_or_default(),
        use_dora: json["use_dora"].as_bool().unwrap_or_default(),
        lora_bias: json["lora_bias"].as_bool().unwrap_or_default(),
        base_model_name_or_path: json["base_model_name_or_path"].as_str().map(str::to_owned),
        ..default
    }
}

/// Whether a model's name is a path rather than a hub id (`org/name`) or a model that every taper has.
fn is_local(name: &str) -> bool {
    name.starts_with(['/', '.', '~'])
        || name.contains('\\')
        || name.matches('/').count() > 1
        || Path::new(name).is_dir()
}

/// An adapter's tensors with its configuration.
struct Folder {
    checkpoint: Checkpoint,
    config: LoraConfig,
}

impl Folder {
    /// Counts values, and finds tensors that hold none, or broken ones.
    fn values(&self, found: &mut Inspection) {
        for part in ["total", "low_rank", "magnitude", "bias", "whole", "base"] {
            found.count(part, 0);
        }
        let mut bare = Vec::new();
        let mut empty = Vec::new();
        for name in self.checkpoint.names() {
            let Some(info) = self.checkpoint.info(name) else { continue };
            let values: usize = info.shape.iter().product();
            found.count("total", values);
            found.count(counted_as(name), values);
            if !name.starts_with(PREFIX) {
                bare.push(name);
            }
            match Stats::of(&self.checkpoint, name) {
                _ if values == 0 => empty.push(name),
                None => found
                    .problem(format!("tensor `{name}` is stored as {:?}, not F32, F16 or BF16", info.dtype)),
                Some(stats) if stats.not_finite > 0 => {
                    let hint = if info.dtype.plain() == Some(safetensors::Dtype::F16) {
                        " (F16 overflows beyond 65504)"
                    } else {
                        ""
                    };
                    let count = stats.not_finite;
                    found.problem(format!(
                        "tensor `{name}`: {count} of {values} values are infinite or not numbers{hint}"
                    ));
                }
                Some(_) => {}
            }
        }
        if !bare.is_empty() {
            found.problem(format!("keys without `{PREFIX}`, which PEFT does not load: {}", some(&bare)));
        }
        if !empty.is_empty() {
            let what = "tensors without values (DeepSpeed ZeRO-3 saved placeholders: gather the parameters before saving)";
            found.problem(format!("{what}: {}", some(&empty)));
        }
    }

    /// Ranks, scalings and norms of every module, and what does not fit in them.
    fn modules(&self, found: &mut Inspection) {
        let mut untrained = Vec::new();
        let modules = keys::by_module(self.checkpoint.names());
        for (path, keys) in &modules {
            self.pairs(path, keys, found);
            let (Some(a), Some(b)) = (&keys.a, &keys.b) else { continue };
            let Some(rank) = self.rank(path, keys, (a, b), found) else { continue };
            let [stats_a, stats_b] = [a, b].map(|key| Stats::of(&self.checkpoint, key).unwrap_or_default());
            let fresh = if keys.embedding { stats_a } else { stats_b };
            if fresh.all_zero() {
                untrained.push(path.as_str());
            }
            let alpha = pattern_value("alpha_pattern", &self.config.alpha_pattern, path)
                .unwrap_or(self.config.lora_alpha);
            let scaling = self.config.scaling(rank, alpha);
            let (norm_a, norm_b) = (stats_a.norm(), stats_b.norm());
            found.rank_by_module.insert(path.clone(), rank);
            found.modules.push(ModuleFacts { path: path.clone(), rank, alpha, scaling, norm_a, norm_b });
        }
        if modules.is_empty() && !self.checkpoint.names().any(|key| keys::parse(key).1 == Part::Whole) {
            found.problem("holds no tensor of an adapter");
        }
        if !untrained.is_empty() {
            let whole = if untrained.len() == found.modules.len() {
                "the adapter changes nothing"
            } else {
                "these change nothing"
            };
            found.problem(format!(
                "{} of {} modules were never trained (B is all 0; {whole}): {}",
                untrained.len(),
                found.modules.len(),
                some(&untrained)
            ));
        }
    }

    /// Says which tensors of a module are missing, or are there although the configuration does not ask for them.
    fn pairs(&self, path: &str, keys: &Keys, found: &mut Inspection) {
        for (there, what) in [(&keys.a, "A"), (&keys.b, "B")] {
            if there.is_none() {
                found.problem(format!("module `{path}` has no lora_{what}"));
            }
        }
        let lora_bias = self.config.lora_bias && !keys.embedding;
        for (there, asked, tensor, field) in [
            (&keys.magnitude, self.config.use_dora, "lora_magnitude_vector", "use_dora"),
            (&keys.b_bias, lora_bias, "lora_B.bias", "lora_bias"),
        ] {
            match (there, asked) {
                (None, true) => {
                    found.problem(format!("module `{path}` has no {tensor}, though {field} is true"));
                }
                (Some(_), false) => {
                    found.problem(format!("module `{path}` has a {tensor}, though {field} is false"));
                }
                _ => {}
            }
        }
    }

    /// The rank of a module, if its shapes have one.
    fn rank(&self, path: &str, keys: &Keys, (a, b): (&str, &str), found: &mut Inspection) -> Option<usize> {
        let shape =
            |key: &str| self.checkpoint.info(key).map(|info| info.shape.as_slice()).unwrap_or_default();
        let (&[rank, _], &[out, rank_b]) = (shape(a), shape(b)) else {
            found.problem(format!("module `{path}`: A {:?} and B {:?} are not matrices", shape(a), shape(b)));
            return None;
        };
        if rank != rank_b {
            found.problem(format!(
                "module `{path}`: A {:?} and B {:?} have different ranks",
                shape(a),
                shape(b)
            ));
            return None;
        }
        if rank == 0 {
            return None;
        }
        let expected =
            pattern_value("rank_pattern", &self.config.rank_pattern, path).unwrap_or(self.config.r);
        if rank != expected && found.config.is_object() {
            found.problem(format!("module `{path}` has rank {rank}, the configuration says {expected}"));
        }
        for key in [&keys.magnitude, &keys.b_bias].into_iter().flatten() {
            if shape(key) != [out] {
                found.problem(format!("tensor `{key}` is {:?}, expected [{out}]", shape(key)));
            }
        }
        Some(rank)
    }

    /// Finds names of the configuration that nothing in the file answers to.
    fn names(&self, found: &mut Inspection) {
        let low_rank = keys::by_module(self.checkpoint.names());
        let paths: Vec<&str> = low_rank.keys().map(String::as_str).collect();
        if let Some(Names::List(names)) = &self.config.target_modules {
            let unused: Vec<&String> =
                names.iter().filter(|name| !paths.iter().any(|path| ends_with(path, name))).collect();
            if !unused.is_empty() {
                found.problem(format!("target_modules that no tensor belongs to: {}", some(&unused)));
            }
            let others: Vec<_> =
                paths.iter().filter(|path| !names.iter().any(|name| ends_with(path, name))).collect();
            if !others.is_empty() {
                found.problem(format!(
                    "tensors of modules that target_modules does not name: {}",
                    some(&others)
                ));
            }
        }
        let ranks: Vec<&str> = self.config.rank_pattern.iter().map(|(key, _)| key.as_str()).collect();
        let alphas: Vec<&str> = self.config.alpha_pattern.iter().map(|(key, _)| key.as_str()).collect();
        for (field, patterns) in [("rank_pattern", ranks), ("alpha_pattern", alphas)] {
            let unused: Vec<_> = patterns
                .into_iter()
                .filter(|pattern| !paths.iter().any(|path| is_match(field, pattern, path)))
                .collect();
            if !unused.is_empty() {
                found.problem(format!("{field} keys that match no module: {}", some(&unused)));
            }
        }
        self.saved_names(found);
    }

    /// Says of an adapter that labels whether it lacks the head that it was trained with: PEFT saves no head that it does
    /// not know by name, such as T5's `classification_head` (0.21.2, `tuners/tuners_utils.py`).
    fn head(&self, found: &mut Inspection) {
        const HEADS: [&str; 4] = ["classifier", "score", "classification_head", "qa_outputs"];
        let task = self.config.task_type.as_deref().unwrap_or_default();
        if !["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"].contains(&task) {
            return;
        }
        let whole: Vec<&str> = (self.checkpoint.names().map(keys::parse))
            .filter(|(_, part, _)| *part == Part::Whole)
            .map(|(path, ..)| path)
            .collect();
        let has = |name: &str| whole.iter().any(|path| path.split('.').any(|segment| segment == name));
        let advice = "train again with it in modules_to_save";
        if !HEADS.into_iter().any(has) {
            found.problem(format!(
                "task_type is {task}, but no head is saved ({}): unless the base has the one it was trained with, the \
                 head is random at each load; {advice}",
                HEADS.join(", ")
            ));
        }
        let distilbert = self.checkpoint.names().any(|key| key.contains(".transformer.layer."));
        if task == "SEQ_CLS" && distilbert && has("classifier") && !has("pre_classifier") {
            found.problem(format!(
                "a DistilBERT that labels texts, but `pre_classifier` is not saved: unless the base has it, it is random \
                 at each load; {advice}"
            ));
        }
    }

    /// Finds entries of `modules_to_save` without tensors, and tensors without an entry.
    fn saved_names(&self, found: &mut Inspection) {
        let mut saved: BTreeMap<&str, bool> = BTreeMap::new();
        for key in self.checkpoint.names() {
            let (path, part, _) = keys::parse(key);
            if part == Part::Whole && !keys::is_bias(key) {
                saved.insert(path, false);
            }
        }
        let entries = &self.config.modules_to_save;
        // PEFT adds both of these for labels, whatever the model calls its head.
        let pair = ["classifier", "score"];
        let both = pair.iter().all(|name| entries.iter().any(|entry| entry == name));
        let added = |entry: &String| both && pair.contains(&entry.as_str());
        let is_unused = |entry: &&String| !added(entry) && !saved.keys().any(|path| saved_by(path, entry));
        let unused: Vec<&String> = entries.iter().filter(is_unused).collect();
        if !unused.is_empty() {
            found.problem(format!("modules_to_save that no tensor belongs to: {}", some(&unused)));
        }
        let others: Vec<_> =
            saved.keys().filter(|path| !entries.iter().any(|entry| saved_by(path, entry))).collect();
        if !others.is_empty() && found.config.is_object() {
            found.problem(format!("tensors that the configuration does not account for: {}", some(&others)));
        }
    }
}

/// Under which count a tensor's values go.
fn counted_as(key: &str) -> &'static str {
    match keys::parse(key).1 {
        Part::A | Part::B => "low_rank",
        Part::Magnitude => "magnitude",
        Part::BBias => "bias",
        Part::Base | Part::Whole if keys::is_bias(key) => "bias",
        Part::Base => "base",
        Part::Whole => "whole",
    }
}

/// The value of the first key that matches.
fn pattern_value<T: Copy>(field: &str, patterns: &[(String, T)], path: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| is_match(field, pattern, path)).map(|(_, value)| *value)
}

/// A key that is no pattern matches nothing, and is listed as such.
fn is_match(field: &str, pattern: &str, path: &str) -> bool {
    pattern_matches(field, pattern, path).unwrap_or_default()
}
