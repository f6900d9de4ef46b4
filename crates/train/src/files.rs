//! Files and folders that appear whole or not at all, with this crate's errors: see [`taper_base::files`].

use std::path::Path;

use taper_base::files::{self, NewFolder};

use crate::Error;

/// Writes `bytes` to `path`, replacing what is there.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    files::write_whole(path, |out| out.write_all(bytes)).map_err(Error::io(path))
}

/// Makes the folder `path`, filled by `fill` under a temporary name, replacing a folder that is there.
pub(crate) fn write_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let folder = NewFolder::create(path).map_err(Error::io(path))?;
    fill(folder.path())?;
    folder.publish().map_err(Error::io(path))
}

/// Removes a folder if there is one.
pub(crate) fn remove_folder(path: &Path) -> Result<(), Error> {
    files::remove_folder(path).map_err(Error::io(path))
}

/// Removes what killed runs left under temporary names in `folder`, which is this run's alone.
pub(crate) fn clean(folder: &Path) -> Result<(), Error> {
    files::clean(folder).map_err(Error::io(folder))
}

#[cfg(test)]
mod tests {
    use std::fs;

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
        fs::write(dir.path().join(".taper-7-1.a.json.part"), "x").unwrap();
        fs::write(dir.path().join("eval.json"), "x").unwrap();
        clean(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
