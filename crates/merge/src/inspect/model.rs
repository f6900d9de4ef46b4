//! A model's folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use taper_base::{Base, Checkpoint, Labels, ModelDir, Task};
use taper_kernels::{Compute, pool};

use super::stats::Stats;
use super::{Inspection, Kind, ModelFacts, some};

const INDEX: &str = "model.safetensors.index.json";

pub(super) fn inspect(dir: &Path) -> Inspection {
    let mut found = Inspection::new(Kind::Model, dir);
    found.read_config(&dir.join("config.json"));
    let files = weight_files(&mut found, dir);
    let checkpoints: Vec<Checkpoint> = files.iter().filter_map(|file| found.open(file)).collect();
    found.tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let twice: Vec<&str> = found
        .tensors
        .windows(2)
        .filter(|pair| pair[0].name == pair[1].name)
        .map(|pair| pair[0].name.as_str())
        .collect();
    if !twice.is_empty() {
        let twice = some(&twice);
        found.problem(format!("tensors that stand in two files: {twice}"));
    }
    index(&mut found, dir, &checkpoints);
    let mut facts = facts(&found.config, dir);
    found.count("total", 0);
    for checkpoint in &checkpoints {
        values(&mut found, &mut facts, checkpoint);
    }
    if !facts.tokenizer {
        found.problem("tokenizer.json is missing");
    }
    found.model = Some(facts);
    if checkpoints.len() == files.len() && !files.is_empty() && found.config.is_object() {
        architecture(&mut found, dir);
    }
    found
}

/// The same of a GGUF file, whose metadata stand for the folder's other files.
pub(super) fn inspect_gguf(path: &Path) -> Inspection {
    let mut found = Inspection::new(Kind::Model, path);
    let Some(checkpoint) = found.open(path) else { return found };
    let dir = ModelDir { path: path.to_owned(), name: path.display().to_string() };
    let mut read = |file: &str| match dir.json(file) {
        Ok(json) => json,
        Err(error) => {
            found.problem(error.to_string());
            Value::Null
        }
    };
    let (config, special) = (read("config.json"), read("tokenizer_config.json"));
    let mut facts = facts(&config, path);
    facts.tokenizer = true;
    facts.chat_template = !special["chat_template"].is_null();
    found.config = config;
    found.count("total", 0);
    values(&mut found, &mut facts, &checkpoint);
    found.model = Some(facts);
    architecture(&mut found, path);
    found
}

fn facts(config: &Value, dir: &Path) -> ModelFacts {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let architectures =
        config["architectures"].as_array().map(|names| names.iter().map(text).collect::<Vec<_>>().join(", "));
    let has = |name: &str| dir.join(name).is_file();
    let tokenizer_config = std::fs::read_to_string(dir.join("tokenizer_config.json")).unwrap_or_default();
    let tokenizer_config: Value = serde_json::from_str(&tokenizer_config).unwrap_or_default();
    ModelFacts {
        model_type: text(&config["model_type"]),
        architecture: architectures.unwrap_or_default(),
        tied: config["tie_word_embeddings"].as_bool().unwrap_or_default(),
        tokenizer: ["tokenizer.json", "vocab.txt", "vocab.json"].into_iter().any(has),
        chat_template: has("chat_template.jinja") || !tokenizer_config["chat_template"].is_null(),
        ..ModelFacts::default()
    }
}

/// The weight files that are there, of those that should be.
fn weight_files(found: &mut Inspection, dir: &Path) -> Vec<PathBuf> {
    let single = dir.join("model.safetensors");
    if dir.join(INDEX).is_file() {
        // Looked up among the folder's own names, so that no path in an index leads out of it.
        let names = files_of(dir);
        let (there, missing): (Vec<_>, Vec<_>) =
            indexed(dir).into_iter().partition(|name| names.contains(name));
        if !missing.is_empty() {
            found.problem(format!("{INDEX} names files that are not in the folder: {}", some(&missing)));
        }
        return there.iter().map(|name| dir.join(name)).collect();
    }
    if single.is_file() {
        return vec![single];
    }
    let pickled =
        ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|name| dir.join(name).is_file());
    found.problem(if pickled {
        "only pickled weights (.bin), which taper does not read: convert them to safetensors".to_owned()
    } else {
        format!("neither model.safetensors nor {INDEX} is there")
    });
    Vec::new()
}

/// Names of the files that lie in `dir` itself.
fn files_of(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.path().is_file());
    files.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn weight_map(dir: &Path) -> Option<serde_json::Map<String, Value>> {
    let json: Value = serde_json::from_str(&std::fs::read_to_string(dir.join(INDEX)).ok()?).ok()?;
    json["weight_map"].as_object().cloned()
}

/// File names in the index, sorted.
fn indexed(dir: &Path) -> BTreeSet<String> {
    weight_map(dir).unwrap_or_default().values().filter_map(|file| file.as_str().map(str::to_owned)).collect()
}

/// Holds the index against what the files contain.
fn index(found: &mut Inspection, dir: &Path, checkpoints: &[Checkpoint]) {
    if !dir.join(INDEX).is_file() {
        return;
    }
    let Some(map) = weight_map(dir) else {
        return found.problem(format!("{INDEX} has no `weight_map`"));
    };
    let in_file = |name: &str, file: &Value| {
        let path = |checkpoint: &Checkpoint| {
            checkpoint.file_of(name).and_then(|path| path.file_name().map(ToOwned::to_owned))
        };
        checkpoints
            .iter()
            .filter_map(path)
            .any(|there| Some(there.to_string_lossy().as_ref()) == file.as_str())
    };
    let open: BTreeSet<_> =
        checkpoints.iter().flat_map(Checkpoint::files).filter_map(Path::file_name).collect();
    let was_opened =
        |file: &Value| file.as_str().is_some_and(|file| open.contains(std::ffi::OsStr::new(file)));
    let absent: Vec<&String> = map
        .iter()
        .filter(|(name, file)| was_opened(file) && !in_file(name, file))
        .map(|(name, _)| name)
        .collect();
    if !absent.is_empty() {
        found.problem(format!("{INDEX} names tensors that are not in their file: {}", some(&absent)));
    }
    let unlisted: Vec<&str> =
        checkpoints.iter().flat_map(Checkpoint::names).filter(|name| !map.contains_key(*name)).collect();
    if !unlisted.is_empty() {
        found.problem(format!("tensors that {INDEX} does not name: {}", some(&unlisted)));
    }
}

/// Counts values by type and finds tensors with broken ones.
fn values(found: &mut Inspection, facts: &mut ModelFacts, checkpoint: &Checkpoint) {
    let names: Vec<&str> = checkpoint.names().collect();
    let broken = Mutex::new(Vec::new());
    pool::for_each(names.len(), |i| {
        if let Some(stats) = Stats::of(checkpoint, names[i]).filter(|stats| stats.not_finite > 0) {
            broken.lock().unwrap_or_else(PoisonError::into_inner).push((names[i], stats));
        }
    });
    let mut broken = broken.into_inner().unwrap_or_else(PoisonError::into_inner);
    broken.sort_unstable_by_key(|(name, _)| *name);
    for (name, stats) in broken {
        let (count, values) = (stats.not_finite, stats.values);
        found.problem(format!("tensor `{name}`: {count} of {values} values are infinite or not numbers"));
    }
    for info in names.iter().filter_map(|name| checkpoint.info(name)) {
        let values: usize = info.shape.iter().product();
        found.count("total", values);
        *facts.values_by_dtype.entry(format!("{:?}", info.dtype)).or_default() += values as u64;
    }
}

/// Masks and frequencies that older files hold beside the parameters of GPT-2 and GPT-NeoX.
const BUFFERS: [&str; 5] = [
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".attention.rotary_emb.inv_freq",
];

/// Ends of the names of tensors that are read, and are no modules that an adapter may name.
const TABLES: [&str; 2] = ["rope_freqs.weight", ".SelfAttention.relative_attention_bias.weight"];

/// Opens the model, and tells what its architecture lacks or does not use.
fn architecture(found: &mut Inspection, dir: &Path) {
    let files = || ModelDir { path: dir.to_owned(), name: dir.display().to_string() };
    let base = match Base::open_dir(files(), Compute::F32) {
        Ok(base) => base,
        Err(error) => {
            // An encoder whose files have no head for labels is a base for one; what else they hold is not used.
            let refused = |error: &_| matches!(error, taper_base::Error::Unsupported { .. });
            let labels = Task::Classify(Labels::numbered(2));
            let error = match refused(&error).then(|| Base::open_for(files(), Compute::F32, labels)) {
                Some(Ok(_)) => return,
                Some(Err(other)) if !refused(&other) => other,
                _ => error,
            };
            return found.problem(error.to_string());
        }
    };
    let tied = base.model.sizes().tie_word_embeddings;
    let mut used = BTreeSet::new();
    for module in base.model.modules() {
        for parameter in if module.bias().is_some() { &["weight", "bias"][..] } else { &["weight"] } {
            used.extend(base.checkpoint.stored_name(&format!("{}.{parameter}", module.path()), tied));
        }
    }
    let is_known = |name: &str| BUFFERS.iter().chain(&TABLES).any(|end| name.ends_with(end));
    let unused: Vec<&str> =
        base.checkpoint.names().filter(|name| !used.contains(name) && !is_known(name)).collect();
    if !unused.is_empty() {
        found.problem(format!(
            "tensors that a {} model of this configuration does not use: {}",
            base.model_type(),
            some(&unused)
        ));
    }
}
