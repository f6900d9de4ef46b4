//! Files that appear whole or not at all: written under a temporary name beside their place, synced, renamed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Beginning of every temporary name that taper makes: what a killed process leaves can be told by it.
pub const TEMPORARY: &str = ".taper-";

/// Writes what `content` writes to `path`, making its folder and replacing what is there. Others may write it at the same time,
/// and may have mapped the file that is replaced.
///
/// # Errors
/// What the system said; then `path` is as it was.
pub fn write_whole(path: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let temporary = beside(path);
    let written = make_parent(path)
        .and_then(|()| write_synced(&temporary, content))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // Nothing more can be done if it stays: whoever finds it knows it by its name.
        let _ = fs::remove_file(&temporary);
    } else {
        sync_folder(path.parent());
    }
    written
}

fn write_synced(path: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    content(&mut file)?;
    file.into_inner()?.sync_all()
}

/// Makes a rename in `folder` last through a power cut, where the file system can.
pub fn sync_folder(folder: Option<&Path>) {
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

/// Makes the folder that `path` will lie in.
pub(crate) fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// A name in the folder of `path` that no other thread or process uses at the same time.
pub(crate) fn beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!("{TEMPORARY}{}-{count}.part", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_no_temporary_name_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/a.json");
        write_whole(&path, |out| out.write_all(b"one")).unwrap();
        write_whole(&path, |out| out.write_all(b"two")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let failed =
            write_whole(&path, |out| out.write_all(b"half").and(Err(io::ErrorKind::StorageFull.into())));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 1);
    }
}
