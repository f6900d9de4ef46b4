//! The output folder: where it may be, and what it may replace. How it appears whole is left to [`taper_base::files`].

use std::fs;
use std::path::{Path, PathBuf};

use taper_base::files::{NewFolder, clean_beside};

use crate::merge::{CONFIG, INDEX};
use crate::{Error, Out};

/// A folder being filled. Dropped before [`publish`](Self::publish), it is removed.
pub(crate) struct Partial {
    out: PathBuf,
    force: bool,
    dir: NewFolder,
}

impl Partial {
    /// Makes a folder beside the folder `out`, and removes what killed merges to it left. One that is there is an error without
    /// `force`; with it, it may be an empty folder or a model's, but none that holds `base` or what is to be kept, and none in
    /// `base`.
    pub(crate) fn create(out: &Out<'_>, base: &Path) -> Result<Self, Error> {
        let Out { path, force, keep } = *out;
        let out = place(path)?;
        let base = fs::canonicalize(base).map_err(Error::io(base))?;
        if out.starts_with(&base) {
            let what = format!("lies in {}, which is being merged: choose another folder", base.display());
            return Err(Error::out(&out, what));
        }
        let keep = keep.iter().map(|dir| fs::canonicalize(dir).map_err(Error::io(*dir)));
        for source in keep.chain([Ok(base)]) {
            let source = source?;
            if source.starts_with(&out) {
                let what =
                    format!("holds {}, which is being merged: choose another folder", source.display());
                return Err(Error::out(&out, what));
            }
        }
        clean_beside(&out);
        check_existing(&out, force)?;
        let dir = NewFolder::create(&out).map_err(Error::io(&out))?;
        Ok(Self { out, force, dir })
    }

    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Puts the folder in its place, in that of an older one if there is one.
    pub(crate) fn publish(self) -> Result<PathBuf, Error> {
        let Self { out, force, dir } = self;
        // Others may have put something there in the meantime.
        check_existing(&out, force)?;
        dir.publish().map_err(Error::io(&out))?;
        Ok(out)
    }
}

/// `out` as an absolute path without links, its parent being there.
fn place(out: &Path) -> Result<PathBuf, Error> {
    if out.is_symlink() || out.exists() {
        return fs::canonicalize(out).map_err(Error::io(out));
    }
    let Some(name) = out.file_name() else {
        return Err(Error::out(out, "is not the name of a folder"));
    };
    let parent = match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(Error::io(parent))?;
    Ok(fs::canonicalize(parent).map_err(Error::io(parent))?.join(name))
}

fn check_existing(out: &Path, force: bool) -> Result<(), Error> {
    if !out.exists() {
        return Ok(());
    }
    if !out.is_dir() {
        return Err(Error::out(out, "is a file, not a folder"));
    }
    if !force {
        return Err(Error::out(out, "exists already: choose another folder, or replace it with --force"));
    }
    let here = std::env::current_dir().and_then(fs::canonicalize).unwrap_or_default();
    if here.starts_with(out) {
        return Err(Error::out(out, "is, or holds, the folder you are in: it is not replaced"));
    }
    check_replaceable(out)
}

/// Replaced is what a merge can have written, or nothing: whoever mistypes a name loses no other files.
fn check_replaceable(out: &Path) -> Result<(), Error> {
    let kept = |what: &str| {
        Err(Error::out(
            out,
            format!(
                "{what}: --force replaces a model's folder and nothing else; choose another folder, or move it away"
            ),
        ))
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(out).map_err(Error::io(out))? {
        let entry = entry.map_err(Error::io(out))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            return kept(&format!("holds the folder `{name}`, which no merged model does"));
        }
        names.push(name);
    }
    let has = |name: &str| names.iter().any(|there| there == name);
    if has("adapter_config.json") {
        return kept("holds an adapter (adapter_config.json)");
    }
    if names.is_empty() || has(CONFIG) && (has("model.safetensors") || has(INDEX)) {
        return Ok(());
    }
    kept("is not empty, and holds no model (config.json and model.safetensors, or its index)")
}
