//! The small base inside the binary: its files, and the cache folder where they are laid out so that everything else treats
//! them as any model folder (the weights are mapped from there).

use std::path::{Path, PathBuf};

use crate::Error;
use crate::files::write_whole;

/// The files of the tiny base, by name. `datasets/tiny/README.md` says how they are made.
const FILES: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("tiny/config.json")),
    ("generation_config.json", include_bytes!("tiny/generation_config.json")),
    ("model.safetensors", include_bytes!("tiny/model.safetensors")),
    ("tokenizer.json", include_bytes!("tiny/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("tiny/tokenizer_config.json")),
];

/// The folder that holds the tiny base's files, written on first use.
///
/// It lies in `$XDG_CACHE_HOME/taper` (`~/.cache/taper`), or in the system's temporary folder where that cannot be written.
/// Its name carries a hash of the files, so that programs with different tiny bases do not overwrite each other's.
pub(crate) fn folder() -> Result<PathBuf, Error> {
    lay_out(FILES, &cache_roots())
}

/// Folders to try, best first.
fn cache_roots() -> Vec<PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    cache.into_iter().chain([std::env::temp_dir()]).map(|root| root.join("taper")).collect()
}

/// Makes `files` stand in the first of `roots` that can be written.
fn lay_out(files: &[(&str, &[u8])], roots: &[PathBuf]) -> Result<PathBuf, Error> {
    let name = format!("tiny-{:016x}", hash(files));
    let mut failure = None;
    for root in roots {
        let folder = root.join(&name);
        match files.iter().try_for_each(|(file, bytes)| ensure(&folder.join(file), bytes)) {
            Ok(()) => return Ok(folder),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    Err(failure.unwrap_or(Error::Source { what: "no cache folder for the tiny base".to_string() }))
}

/// Writes `bytes` to `path` unless they stand there already.
fn ensure(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if std::fs::read(path).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    write_whole(path, |out| out.write_all(bytes)).map_err(Error::io(path))
}

/// FNV-1a, 64 bits, over names, lengths and contents: it only has to tell builds apart.
fn hash(files: &[(&str, &[u8])]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    let mut feed = |bytes: &[u8]| {
        for byte in bytes {
            state = (state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    for (name, bytes) in files {
        feed(name.as_bytes());
        feed(&(bytes.len() as u64).to_le_bytes());
        feed(bytes);
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[(&str, &[u8])] = &[("config.json", b"{}"), ("model.safetensors", b"weights")];

    #[test]
    fn files_are_written_once_and_repaired() {
        let root = tempfile::tempdir().unwrap();
        let roots = [root.path().join("taper")];
        let folder = lay_out(SAMPLE, &roots).unwrap();
        let weights = folder.join("model.safetensors");
        assert_eq!(std::fs::read(&weights).unwrap(), b"weights");
        let before = std::fs::metadata(&weights).unwrap().modified().unwrap();
        assert_eq!(lay_out(SAMPLE, &roots).unwrap(), folder);
        assert_eq!(std::fs::metadata(&weights).unwrap().modified().unwrap(), before);
        std::fs::write(&weights, b"weighty").unwrap();
        lay_out(SAMPLE, &roots).unwrap();
        assert_eq!(std::fs::read(&weights).unwrap(), b"weights");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn another_base_gets_another_folder() {
        let changed: &[(&str, &[u8])] = &[("config.json", b"{ }"), ("model.safetensors", b"weights")];
        assert_ne!(hash(SAMPLE), hash(changed));
    }

    #[test]
    fn a_root_that_cannot_be_written_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let blocked = root.path().join("file");
        std::fs::write(&blocked, b"").unwrap();
        let free = root.path().join("free");
        let folder = lay_out(SAMPLE, &[blocked.clone(), free.clone()]).unwrap();
        assert!(folder.starts_with(free));
        let error = lay_out(SAMPLE, &[blocked]).unwrap_err().to_string();
        assert!(error.contains("file"), "{error}");
    }

    #[test]
    fn many_threads_may_race() {
        let root = tempfile::tempdir().unwrap();
        let roots = [root.path().to_path_buf()];
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let folder = lay_out(SAMPLE, &roots).unwrap();
                    assert_eq!(std::fs::read(folder.join("config.json")).unwrap(), b"{}");
                });
            }
        });
    }

    #[test]
    fn tiny_is_small_and_opens() {
        let size: usize = FILES.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(size <= 2_500_000, "{size} bytes");
        let base = crate::Base::open(&crate::ModelSource::Tiny, taper_kernels::Compute::F32).unwrap();
        assert!(base.tokenizer.chat().is_some());
    }
}
