//! The output folder: built under another name beside its place, put there whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::merge::{CONFIG, INDEX};
use crate::{Error, Out};

/// A folder being filled. Dropped before [`publish`](Self::publish), it is removed.
pub(crate) struct Partial {
    out: PathBuf,
    force: bool,
    dir: TempDir,
}

impl Partial {
    /// Makes `.<out>.partial-<process>-<random>` beside the folder `out`. One that is there is an error without `force`; with
    /// it, it may be an empty folder or a model's, but none that holds `base` or what is to be kept, and none in `base`.
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
        check_existing(&out, force)?;
        remove_abandoned(&out);
        let dir = sibling(&out, "partial").map_err(Error::io(&out))?;
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
        sync_dir(dir.path())?;
        if out.exists() {
            // A rename onto an empty folder replaces it.
            let old = sibling(&out, "old").map_err(Error::io(&out))?;
            fs::rename(&out, old.path()).map_err(Error::io(&out))?;
            if let Err(source) = fs::rename(dir.path(), &out) {
                fs::rename(old.path(), &out).map_err(Error::io(old.keep()))?;
                return Err(Error::io(&out)(source));
            }
            old.close().map_err(Error::io(&out))?;
        } else {
            fs::rename(dir.path(), &out).map_err(Error::io(&out))?;
        }
        // It is no longer under that name: nothing to remove.
        let _ = dir.keep();
        out.parent().map_or(Ok(()), sync_dir)?;
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

/// An empty folder `.<name of out>.<what>-<this process>-<random>` beside `out`, readable as any new folder is.
fn sibling(out: &Path, what: &str) -> std::io::Result<TempDir> {
    let mut prefix = marked(out, what);
    prefix.push(format!("{}-", std::process::id()));
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.tempdir_in(out.parent().unwrap_or(Path::new(".")))
}

fn marked(out: &Path, what: &str) -> OsString {
    let mut name = OsString::from(".");
    name.push(out.file_name().unwrap_or_default());
    name.push(format!(".{what}-"));
    name
}

/// Removes what a merge to the same place left when it was killed: partial folders whose process is gone. Best effort, and
/// only where /proc tells which processes there are.
fn remove_abandoned(out: &Path) {
    let processes = Path::new("/proc");
    let prefix = marked(out, "partial");
    let (Some(parent), Some(prefix)) = (out.parent(), prefix.to_str()) else { return };
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let process =
            name.to_str().and_then(|name| name.strip_prefix(prefix)?.split('-').next()?.parse::<u32>().ok());
        let abandoned = |id: u32| id != std::process::id() && !processes.join(id.to_string()).exists();
        if processes.join("self").exists() && process.is_some_and(abandoned) {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    // Folders can be opened and synced on Unix only; elsewhere a rename is as durable as the system makes it.
    if cfg!(unix) { File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io(dir)) } else { Ok(()) }
}
