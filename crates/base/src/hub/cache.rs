//! The cache's layout, as `huggingface_hub` has it: `models--org--name/` with `refs/REVISION` (holds a commit),
//! `snapshots/COMMIT/FILE` (links to blobs), `blobs/` and `.no_exist/COMMIT/FILE` (files known to be absent).

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::{INDEX, Kind, WEIGHTS};
use crate::Error;
use crate::files::{beside, make_parent, write_whole};

/// A repository's place in the cache, at a revision.
#[derive(Clone, Debug)]
pub(super) struct Cached {
    pub(super) kind: Kind,
    pub(super) id: String,
    pub(super) revision: String,
    root: PathBuf,
    locks: PathBuf,
    commit: Option<String>,
}

impl Cached {
    /// Looks up which commit the revision was when it was last fetched.
    pub(super) fn new(cache: &Path, kind: Kind, id: &str, revision: &str) -> Self {
        let prefix = if kind == Kind::Model { "models" } else { "datasets" };
        let name = format!("{prefix}--{}", id.replace('/', "--"));
        let root = cache.join(&name);
        let commit = if is_commit(revision) {
            Some(revision.to_string())
        } else {
            let noted = fs::read_to_string(root.join("refs").join(revision)).ok();
            noted.map(|text| text.trim().to_string()).filter(|commit| is_commit(commit))
        };
        let locks = cache.join(".locks").join(name);
        Self { kind, id: id.to_string(), revision: revision.to_string(), root, locks, commit }
    }

    /// The same repository at another commit.
    pub(super) fn at(&self, commit: &str) -> Self {
        Self { commit: Some(commit.to_string()), ..self.clone() }
    }

    /// The snapshot's folder.
    pub(super) fn folder(&self) -> Result<PathBuf, Error> {
        self.commit.as_ref().map(|commit| self.root.join("snapshots").join(commit)).ok_or_else(|| {
            Error::Source { what: format!("{}: no snapshot of `{}`", self.root.display(), self.revision) }
        })
    }

    fn has(&self, file: &str) -> bool {
        // `exists` follows the link: a snapshot whose blob is gone does not hold the file.
        self.folder().is_ok_and(|folder| folder.join(file).exists())
    }

    /// Whether all of `files` are there.
    pub(super) fn holds(&self, files: &[&str]) -> bool {
        files.iter().all(|file| self.has(file))
    }

    /// Whether each of `files` is there or known to be absent.
    pub(super) fn knows(&self, files: &[&str]) -> bool {
        files.iter().all(|file| self.has(file) || self.absent(file).is_some_and(|marker| marker.exists()))
    }

    /// Whether a configuration and all weights are there.
    pub(super) fn holds_model(&self) -> bool {
        let weights = || {
            if self.has(INDEX) {
                self.shards().is_ok_and(|shards| shards.iter().all(|shard| self.has(shard)))
            } else {
                self.has(WEIGHTS)
            }
        };
        self.has("config.json") && weights()
    }

    /// All files of the snapshot.
    pub(super) fn files(&self) -> Vec<String> {
        self.folder().map_or(Vec::new(), |folder| files_under(&folder))
    }

    /// The weight files that the snapshot's index names.
    pub(super) fn shards(&self) -> Result<Vec<String>, Error> {
        let path = self.folder()?.join(INDEX);
        let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
        let json: serde_json::Value = serde_json::from_str(&text)
            .map_err(|source| Error::file(&path, format!("not JSON: {source}")))?;
        let map =
            json["weight_map"].as_object().ok_or_else(|| Error::file(&path, "has no `weight_map` object"))?;
        let mut shards: Vec<String> =
            map.values().filter_map(|file| file.as_str().map(str::to_string)).collect();
        shards.sort();
        shards.dedup();
        match shards.iter().find(|shard| !is_inside(shard)) {
            Some(odd) => Err(Error::file(&path, format!("names `{odd}`, which is not a file of the model"))),
            None => Ok(shards),
        }
    }

    /// Path of a blob, complete or not.
    pub(super) fn blob(&self, name: &str) -> PathBuf {
        self.root.join("blobs").join(name)
    }

    /// The lock that whoever writes a blob holds, here and in `huggingface_hub`.
    pub(super) fn lock(&self, blob: &str) -> Result<fs::File, Error> {
        let path = self.locks.join(format!("{blob}.lock"));
        let file = make_parent(&path).and_then(|()| fs::File::create(&path)).map_err(Error::io(&path))?;
        file.lock().map_err(Error::io(&path))?;
        Ok(file)
    }

    /// Makes `file` of the snapshot a link to a blob.
    pub(super) fn link(&self, file: &str, blob: &str) -> Result<(), Error> {
        let path = self.folder()?.join(file);
        make_parent(&path).map_err(Error::io(&path))?;
        let up = "../".repeat(2 + file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{blob}"));
        if fs::read_link(&path).is_ok_and(|present| present == target) {
            return Ok(());
        }
        let temporary = beside(&path);
        make_link(&target, &self.blob(blob), &temporary)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(Error::io(&path))
    }

    /// Notes that the repository has no `file` at this commit.
    pub(super) fn note_absent(&self, file: &str) -> Result<(), Error> {
        let Some(path) = self.absent(file) else { return Ok(()) };
        write_whole(&path, |_| Ok(())).map_err(Error::io(&path))
    }

    fn absent(&self, file: &str) -> Option<PathBuf> {
        self.commit.as_ref().map(|commit| self.root.join(".no_exist").join(commit).join(file))
    }

    /// Notes that the revision is this commit: the last step, once the snapshot is complete.
    pub(super) fn point(&self) -> Result<(), Error> {
        let Some(commit) = self.commit.as_ref().filter(|_| !is_commit(&self.revision)) else { return Ok(()) };
        let path = self.root.join("refs").join(&self.revision);
        write_whole(&path, |out| out.write_all(commit.as_bytes())).map_err(Error::io(&path))
    }
}

#[cfg(unix)]
fn make_link(target: &Path, _blob: &Path, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

/// Links need a privilege on Windows, so that `huggingface_hub` copies there too.
#[cfg(not(unix))]
fn make_link(_target: &Path, blob: &Path, path: &Path) -> std::io::Result<()> {
    fs::copy(blob, path).map(|_| ())
}

/// Whether `file` stays inside the folder that it is joined to.
pub(super) fn is_inside(file: &str) -> bool {
    !file.contains('\\') && Path::new(file).components().all(|part| matches!(part, Component::Normal(_)))
}

pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.chars().all(|c| c.is_ascii_hexdigit())
}

/// Paths of all files under `folder`, relative to it, with `/` between their parts.
pub(super) fn files_under(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![String::new()];
    while let Some(inside) = waiting.pop() {
        for entry in fs::read_dir(folder.join(&inside)).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = if inside.is_empty() { name } else { format!("{inside}/{name}") };
            let full = folder.join(&path);
            if full.is_dir() {
                waiting.push(path);
            } else if full.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
