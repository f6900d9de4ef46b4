//! Files and folders that appear whole or not at all: written under a temporary name beside their place, synced, renamed.
//!
//! Temporary names are `.taper-PROCESS-COUNT.NAME.part`, of which nothing is wanted, and `.taper-PROCESS-COUNT.NAME.old`, the
//! folder that stood under NAME while another is put there: where a process was killed in between, it is put back.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Beginning of every temporary name.
const TEMPORARY: &str = ".taper-";

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

/// A folder being filled, whose files are synced by those who write them. Dropped before [`publish`](Self::publish), it is
/// removed.
#[derive(Debug)]
pub struct NewFolder {
    place: PathBuf,
    temporary: PathBuf,
}

impl NewFolder {
    /// Makes an empty folder beside `place`, readable as any new folder is.
    ///
    /// # Errors
    /// What the system said.
    pub fn create(place: &Path) -> io::Result<Self> {
        make_parent(place)?;
        loop {
            let temporary = beside(place);
            match fs::create_dir(&temporary) {
                // Of a killed process that had this one's number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made.map(|()| Self { place: place.to_owned(), temporary }),
            }
        }
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Puts the folder in its place, in that of an older one if there is one: whether that may go is the caller's to know.
    ///
    /// # Errors
    /// What the system said; then the older one is where it was, or the error says where it is. One that cannot be removed is
    /// an error too.
    pub fn publish(self) -> io::Result<()> {
        let Self { place, temporary } = &self;
        sync_folder(Some(temporary));
        let old = place.exists().then(|| named(place, "old"));
        if let Some(old) = &old {
            fs::rename(place, old)?;
        }
        if let Err(error) = fs::rename(temporary, place) {
            if let Some(old) = old.filter(|old| fs::rename(old, place).is_err()) {
                let what = format!("{error}; what stood there is {}", old.display());
                return Err(io::Error::new(error.kind(), what));
            }
            return Err(error);
        }
        sync_folder(place.parent());
        old.map_or(Ok(()), |old| discard(&old, place))
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        // Nothing is there if it was published.
        let _ = fs::remove_dir_all(&self.temporary);
    }
}

/// Removes a folder if there is one, by way of a temporary name, so that half a folder never stands under its own.
///
/// # Errors
/// What the system said.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    if path.exists() { discard(path, path) } else { Ok(()) }
}

/// Removes the folder `path`, which is or was that of `place`.
fn discard(path: &Path, place: &Path) -> io::Result<()> {
    let doomed = beside(place);
    fs::rename(path, &doomed)?;
    fs::remove_dir_all(doomed)
}

/// Removes all under temporary names in `folder`, which nobody but the caller writes to; old folders that nothing took the place
/// of are put back.
///
/// # Errors
/// What the system said.
pub fn clean(folder: &Path) -> io::Result<()> {
    left(folder).iter().try_for_each(Left::settle)
}

/// The same of what stood, or was to stand, under the name of `path`, as far as it is of processes that are gone. Best effort,
/// and only where /proc tells which processes there are: others may be writing.
pub fn clean_beside(path: &Path) {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return };
    let ours = |left: &Left| left.name.as_deref() == Some(name) && left.is_abandoned();
    let left = left(path.parent().unwrap_or(Path::new("")));
    left.iter().filter(|left| ours(left)).for_each(|left| drop(left.settle()));
}

/// Puts back the old folders in `folder` that nothing took the place of, as far as they are of processes that are gone, and
/// removes nothing. Best effort, as [`clean_beside`].
pub fn put_back(folder: &Path) {
    let left = left(folder);
    let lost = left.iter().filter(|left| left.is_lost() && left.is_abandoned());
    lost.for_each(|left| drop(left.settle()));
}

/// What stands under a temporary name.
struct Left {
    path: PathBuf,
    /// The process that made it, where the name tells.
    process: Option<u32>,
    old: bool,
    /// The name that it is for.
    name: Option<String>,
}

/// Everything in `folder` under temporary names.
fn left(folder: &Path) -> Vec<Left> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| Left::of(entry.path())).collect()
}

impl Left {
    fn of(path: PathBuf) -> Option<Self> {
        let text = path.file_name()?.to_string_lossy().into_owned();
        let (numbers, rest) = text.strip_prefix(TEMPORARY)?.split_once('.').unwrap_or_default();
        let process = numbers.split('-').next().and_then(|process| process.parse().ok());
        let (name, what) = rest.rsplit_once('.').unzip();
        Some(Self { process, old: what == Some("old"), name: name.map(str::to_owned), path })
    }

    /// Whether the process that made it is known to be gone.
    fn is_abandoned(&self) -> bool {
        let processes = Path::new("/proc");
        let gone = |id: u32| id != std::process::id() && !processes.join(id.to_string()).exists();
        processes.join("self").exists() && self.process.is_some_and(gone)
    }

    /// Where an old folder belongs.
    fn place(&self) -> Option<PathBuf> {
        self.name.as_ref().filter(|_| self.old).map(|name| self.path.with_file_name(name))
    }

    /// Whether it is an old folder that nothing took the place of.
    fn is_lost(&self) -> bool {
        self.place().is_some_and(|place| !place.exists())
    }

    /// Puts it back if it is lost, else removes it.
    fn settle(&self) -> io::Result<()> {
        match self.place() {
            Some(place) if self.is_lost() => fs::rename(&self.path, place),
            Some(place) => discard(&self.path, &place),
            None if self.path.is_dir() => fs::remove_dir_all(&self.path),
            None => fs::remove_file(&self.path),
        }
    }
}

/// Makes a rename in `folder` last through a power cut, where the file system can.
fn sync_folder(folder: Option<&Path>) {
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

/// Makes the folder that `path` will lie in.
pub(crate) fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// A name in the folder of `path` that no other thread or process uses at the same time.
pub(crate) fn beside(path: &Path) -> PathBuf {
    named(path, "part")
}

fn named(path: &Path, what: &str) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut name = OsString::from(format!("{TEMPORARY}{}-{count}.", std::process::id()));
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{what}"));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No process has this number: the largest is 2²².
    const DEAD: u32 = 4_999_999;

    fn names(dir: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(name).collect();
        names.sort();
        names
    }

    fn folder(path: &Path, content: &str) {
        fs::create_dir(path).unwrap();
        fs::write(path.join("a"), content).unwrap();
    }

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

    #[test]
    fn a_folder_takes_the_place_of_another_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("out");
        for content in ["one", "two"] {
            let new = NewFolder::create(&place).unwrap();
            fs::write(new.path().join(content), content).unwrap();
            new.publish().unwrap();
            assert_eq!((names(dir.path()), names(&place)), (vec!["out".into()], vec![content.into()]));
        }
        drop(NewFolder::create(&place).unwrap());
        // One that is gone when it is to be published.
        let new = NewFolder::create(&place).unwrap();
        fs::remove_dir(new.path()).unwrap();
        assert_eq!(new.publish().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!((names(dir.path()), names(&place)), (vec!["out".into()], vec!["two".into()]));
        remove_folder(&place).unwrap();
        assert_eq!(names(dir.path()), [""; 0]);
    }

    /// On other systems nothing tells that a process is gone.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_was_replaced_when_a_process_was_killed_is_put_back() {
        type Settle = fn(&Path);
        let all: Settle = |dir| clean(dir).unwrap();
        let ours: Settle = |dir| clean_beside(&dir.join("out"));
        for (settle, left) in [(all, 1), (ours, 1), (put_back, 2)] {
            // Killed before the new folder was there, and before the old one was removed.
            for (new, standing) in [(format!("{TEMPORARY}{DEAD}-0.out.part"), "old"), ("out".into(), "new")] {
                let dir = tempfile::tempdir().unwrap();
                folder(&dir.path().join(new), "new");
                folder(&dir.path().join(format!("{TEMPORARY}{DEAD}-1.out.old")), "old");
                settle(dir.path());
                assert_eq!(fs::read_to_string(dir.path().join("out/a")).unwrap(), standing);
                assert_eq!(names(dir.path()).len(), left);
            }
        }
    }

    #[test]
    fn only_who_is_alone_removes_what_living_processes_and_other_places_have() {
        let dir = tempfile::tempdir().unwrap();
        let alive = std::process::id();
        for name in [format!("{alive}-999999.out.part"), format!("{DEAD}-0.other.part"), "eval.json".into()] {
            folder(&dir.path().join(format!("{TEMPORARY}{name}")), "x");
        }
        clean_beside(&dir.path().join("out"));
        put_back(dir.path());
        assert_eq!(names(dir.path()).len(), 3);
        clean(dir.path()).unwrap();
        assert_eq!(names(dir.path()), [""; 0]);
    }
}
