//! The model hub: makes the files of a repository stand in the local cache and says in which folder. The cache is the one
//! that `huggingface_hub` uses, so that what Python fetched is found here and the other way round.
//!
//! A snapshot that is complete is used without asking the network; `HF_HUB_OFFLINE` uses what is there.

mod cache;
mod download;
mod failure;
#[cfg(test)]
mod server;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use crate::Error;
use cache::Cached;
use download::Remote;

/// Files of a model besides its weights that are fetched if the repository has them.
const MODEL_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];
/// Fetched where there is no `tokenizer.json`.
const VOCABULARY_FILES: [&str; 4] = ["vocab.txt", "vocab.json", "merges.txt", "tokenizer.model"];
const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";
const ADAPTER_FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
/// Fetched beside an adapter if it is there: its labels.
const ADAPTER_LABELS: &str = "config.json";
const DATA_EXTENSIONS: [&str; 5] = ["jsonl", "json", "csv", "tsv", "parquet"];
/// A file of a data set is one of its splits if its path has one of these words.
const SPLITS: [&str; 5] = ["train", "valid", "validation", "dev", "test"];

/// The folder of a model's snapshot: configuration, tokenizer and safetensors weights.
pub fn model(id: &str, revision: Option<&str>) -> Result<PathBuf, Error> {
    Hub::from_env().model(id, revision)
}

/// The folder of an adapter's snapshot: `adapter_config.json`, `adapter_model.safetensors` and, if it has labels, `config.json`.
pub fn adapter(id: &str, revision: Option<&str>) -> Result<PathBuf, Error> {
    Hub::from_env().adapter(id, revision)
}

/// The folder of a data set's snapshot: `files` if any are named, else its train, valid and test files, else all its JSONL,
/// JSON, CSV, TSV and Parquet files. If they all lie in one folder of the repository, that folder.
pub fn dataset(id: &str, revision: Option<&str>, files: &[String]) -> Result<PathBuf, Error> {
    Hub::from_env().dataset(id, revision, files)
}

/// Whether `text` can be a repository's id: `org/name`.
pub(crate) fn is_id(text: &str) -> bool {
    let part = |part: &str| {
        part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
    };
    text.split_once('/').is_some_and(|(organisation, name)| part(organisation) && part(name))
}

/// Whether `text` can be a revision: a branch, a tag, `refs/pr/1` or a commit.
pub(crate) fn is_revision(text: &str) -> bool {
    text.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
        && text.chars().all(|c| c.is_ascii_graphic() && !"\\:?*[~^".contains(c))
}

/// Where the hub is and where its files are kept.
#[derive(Clone, Debug)]
struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<String>,
    offline: bool,
}

/// What a repository is read as: decides its address and its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Model,
    Dataset,
}

impl Hub {
    /// The only place that reads the environment: `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_TOKEN`,
    /// `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`, as `constants.py` of `huggingface_hub` 1.x.
    fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let user_cache = || PathBuf::from(set("HOME").unwrap_or_else(|| ".".to_string())).join(".cache");
        let default_home =
            || set("XDG_CACHE_HOME").map_or_else(user_cache, PathBuf::from).join("huggingface");
        let home = set("HF_HOME").map_or_else(default_home, PathBuf::from);
        let token_file = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = || std::fs::read_to_string(token_file).ok();
        let truth = |value: String| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str());
        Self {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_string()),
            cache: set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            token: set("HF_TOKEN").or_else(token).map(|token| token.trim().to_string()),
            offline: set("HF_HUB_OFFLINE").or_else(|| set("TRANSFORMERS_OFFLINE")).is_some_and(truth),
        }
    }

    fn model(&self, id: &str, revision: Option<&str>) -> Result<PathBuf, Error> {
        let cached = self.cached(Kind::Model, id, revision);
        let (usable, complete) = (cached.holds_model(), cached.knows(&MODEL_FILES));
        self.snapshot(&cached, usable, complete, |remote| {
            let mut files: Vec<String> = remote.among(&MODEL_FILES);
            if !files.iter().any(|file| file == "tokenizer.json") {
                files.extend(remote.among(&VOCABULARY_FILES));
            }
            if remote.has(INDEX) {
                remote.fetch(&[INDEX.to_string()])?;
                files.extend(remote.cached().shards()?);
            } else if remote.has(WEIGHTS) {
                files.push(WEIGHTS.to_string());
            } else {
                return Err(remote.no_weights());
            }
            remote.fetch(&files)?;
            remote.note_absent(&MODEL_FILES)
        })
    }

    fn adapter(&self, id: &str, revision: Option<&str>) -> Result<PathBuf, Error> {
        let cached = self.cached(Kind::Model, id, revision);
        let held = cached.holds(&ADAPTER_FILES);
        self.snapshot(&cached, held, held && cached.knows(&[ADAPTER_LABELS]), |remote| {
            if let Some(missing) = ADAPTER_FILES.iter().find(|file| !remote.has(file)) {
                return Err(remote.lacks(missing, "so it is not an adapter that taper can read"));
            }
            remote.fetch(&[remote.among(&ADAPTER_FILES), remote.among(&[ADAPTER_LABELS])].concat())?;
            remote.note_absent(&[ADAPTER_LABELS])
        })
    }

    fn dataset(&self, id: &str, revision: Option<&str>, files: &[String]) -> Result<PathBuf, Error> {
        let cached = self.cached(Kind::Dataset, id, revision);
        let named: Vec<&str> = files.iter().map(String::as_str).collect();
        let usable =
            if files.is_empty() { !data_files(cached.files()).is_empty() } else { cached.holds(&named) };
        // Without a list of names only the hub knows whether the snapshot is complete.
        let complete = !files.is_empty();
        let folder = self.snapshot(&cached, usable, complete, |remote| {
            if let Some(missing) = named.iter().find(|file| !remote.has(file)) {
                return Err(remote.lacks(missing, "which was asked for"));
            }
            let wanted = if files.is_empty() { data_files(remote.files().to_vec()) } else { files.to_vec() };
            if wanted.is_empty() {
                return Err(remote.lacks("data files", "(JSONL, JSON, CSV, TSV or Parquet)"));
            }
            remote.fetch(&wanted)
        })?;
        let present = if files.is_empty() { data_files(cache::files_under(&folder)) } else { files.to_vec() };
        Ok(common_folder(&folder, &present))
    }

    fn cached(&self, kind: Kind, id: &str, revision: Option<&str>) -> Cached {
        Cached::new(&self.cache, kind, id, revision.unwrap_or("main"))
    }

    /// The snapshot's folder: the cached one if it is complete, or if it is usable and nothing better can be had.
    fn snapshot(
        &self,
        cached: &Cached,
        usable: bool,
        complete: bool,
        download: impl FnOnce(&Remote) -> Result<(), Error>,
    ) -> Result<PathBuf, Error> {
        if usable && (complete || self.offline) {
            return cached.folder();
        }
        if self.offline {
            return Err(failure::offline(cached));
        }
        let fetched = Remote::open(self, cached).and_then(|remote| {
            download(&remote)?;
            remote.cached().point()?;
            remote.cached().folder()
        });
        match fetched {
            Err(Error::Unreachable { .. }) if usable => cached.folder(),
            fetched => fetched,
        }
    }
}

/// The data files among `files`: those of a split, or all of them if no split is told by name.
fn data_files(mut files: Vec<String>) -> Vec<String> {
    files.retain(|file| {
        let name = file.rsplit('/').next().unwrap_or(file);
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
        DATA_EXTENSIONS.contains(&extension) && name != "dataset_infos.json" && !file.starts_with('.')
    });
    let is_split = |file: &String| {
        file.split(|c: char| !c.is_ascii_alphanumeric())
            .any(|word| SPLITS.contains(&word.to_lowercase().as_str()))
    };
    if files.iter().any(is_split) {
        files.retain(is_split);
    }
    files.sort();
    files
}

/// The folder that all `files` of a snapshot lie in.
fn common_folder(snapshot: &Path, files: &[String]) -> PathBuf {
    let mut parents = files.iter().map(|file| file.rsplit_once('/').map_or("", |(parent, _)| parent));
    let first = parents.next().unwrap_or("");
    if parents.all(|parent| parent == first) { snapshot.join(first) } else { snapshot.to_path_buf() }
}
