//! Files and folders that appear whole or not at all: written under a temporary name beside their place, synced, renamed.

use std::fs;
use std::path::{Path, PathBuf};

use taper_base::files::{self, TEMPORARY, sync_folder};

use crate::Error;

/// Writes `bytes` to `path`, replacing what is there.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    files::write_whole(path, |out| out.write_all(bytes)).map_err(Error::io(path))
}

/// Makes the folder `path`, filled by `fill` under a temporary name, replacing a folder that is there.
pub(crate) fn write_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let temporary = temporary(path);
    remove_folder(&temporary)?;
    fs::create_dir_all(&temporary).map_err(Error::io(&temporary))?;
    let placed = fill(&temporary)
        .inspect(|()| sync_folder(Some(&temporary)))
        .and_then(|()| remove_folder(path))
        .and_then(|()| fs::rename(&temporary, path).map_err(Error::io(path)));
    if placed.is_err() {
        let _ = fs::remove_dir_all(&temporary);
    }
    placed?;
    sync_folder(path.parent());
    Ok(())
}

/// Removes a folder, by way of a temporary name, so that half a folder never stands under its own.
pub(crate) fn remove_folder(path: &Path) -> Result<(), Error> {
    if !path.exists() {
        return Ok(());
    }
    let doomed = temporary(&path.with_extension("old"));
    if doomed.exists() {
        fs::remove_dir_all(&doomed).map_err(Error::io(&doomed))?;
    }
    fs::rename(path, &doomed).map_err(Error::io(path))?;
    fs::remove_dir_all(&doomed).map_err(Error::io(&doomed))
}

/// Removes what a run that was killed left under temporary names in `folder`.
pub(crate) fn clean(folder: &Path) -> Result<(), Error> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let entry = entry.map_err(Error::io(folder))?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with(TEMPORARY) {
            let path = entry.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{TEMPORARY}{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_no_temporary_name_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_whole(&path, b"one").unwrap();
        write_whole(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_fails_leaves_the_old_one_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step-1");
        let fill = |folder: &Path| write_whole(&folder.join("a"), b"good");
        write_folder(&path, fill).unwrap();
        write_folder(&path, |_| Err(Error::output("disk full"))).unwrap_err();
        assert_eq!(fs::read(path.join("a")).unwrap(), b"good");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_run_left_is_cleaned() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".taper-step-2")).unwrap();
        fs::write(dir.path().join(".taper-eval.json"), "x").unwrap();
        fs::write(dir.path().join(".taper-7-0.part"), "x").unwrap();
        fs::write(dir.path().join("eval.json"), "x").unwrap();
        clean(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
