//! Which files a `--data` argument means. Reading them is left to `rows`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use taper_base::{ModelSource, hub};

use crate::Error;

/// File name endings that can be read.
pub(super) const EXTENSIONS: [&str; 7] = ["jsonl", "ndjson", "json", "csv", "tsv", "parquet", "txt"];

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What is learned from.
    Train,
    /// What is looked at during training: `valid`, `validation`, `val`, `dev` or `eval`.
    Valid,
    /// What is looked at in the end.
    Test,
}

impl Split {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Train, Self::Valid, Self::Test];

    /// `train`, `valid` or `test`.
    pub fn name(self) -> &'static str {
        self.stems()[0]
    }

    /// File names, without their ending, that mean this split.
    fn stems(self) -> &'static [&'static str] {
        match self {
            Self::Train => &["train", "training"],
            Self::Valid => &["valid", "validation", "val", "dev", "eval"],
            Self::Test => &["test"],
        }
    }

    /// The split of a file called `stem`, or of one of its shards (`train-00000-of-00002`).
    fn of(stem: &str) -> Option<Self> {
        let stem = stem.to_ascii_lowercase();
        let whole = match stem.split_once('-') {
            Some((name, shard)) if is_shard(shard) => name,
            _ => &stem,
        };
        Self::ALL.into_iter().find(|split| split.stems().contains(&whole))
    }
}

/// Whether `text` is `00000-of-00002`.
fn is_shard(text: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once("-of-").is_some_and(|(at, of)| number(at) && number(of))
}

/// The files of a data set, by split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFiles {
    path: PathBuf,
    /// Whether it is one file that is not said to be of any split. It is then listed as [`Split::Train`].
    single: bool,
    splits: BTreeMap<Split, Vec<PathBuf>>,
}

impl DataFiles {
    /// What `--data` names: a path as [`open`](Self::open) takes it, or a hub data set `org/name[@revision]`, which is
    /// downloaded.
    ///
    /// # Errors
    /// As [`open`](Self::open), or what the hub said.
    pub fn named(place: &str) -> Result<Self, Error> {
        let path = Path::new(place);
        if !path.exists()
            && let Ok(ModelSource::Hub { id, revision }) = ModelSource::parse(place)
        {
            return Self::open(&hub::dataset(&id, revision.as_deref(), &[])?);
        }
        Self::open(path)
    }

    /// A file (.jsonl, .json, .csv, .tsv, .parquet or .txt), or a folder that holds `train`, `valid` and `test` with one of
    /// these endings, or shards of them (`train-00000-of-00002.parquet`), in itself or in its folder `data`.
    ///
    /// # Errors
    /// If there is nothing there, if its ending is unknown, if a folder has no such file, or two for the same split.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let meta = std::fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::file(
                path,
                "there is no such file or folder: --data takes a file, a folder with train, valid and test files, \
                 or a hub data set",
            ),
            _ => Error::io(path)(error),
        })?;
        if meta.is_dir() {
            return Self::folder(path);
        }
        extension(path)?;
        let splits = BTreeMap::from([(Split::Train, vec![path.to_path_buf()])]);
        Ok(Self { path: path.to_path_buf(), single: true, splits })
    }

    fn folder(path: &Path) -> Result<Self, Error> {
        let mut splits = BTreeMap::<Split, Vec<PathBuf>>::new();
        let mut others = Vec::new();
        for folder in [path.to_path_buf(), path.join("data")] {
            if !folder.is_dir() {
                continue;
            }
            for file in listing(&folder)? {
                let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
                match stem.as_deref().and_then(Split::of) {
                    Some(split) if extension(&file).is_ok() => splits.entry(split).or_default().push(file),
                    _ => others.push(file),
                }
            }
            if !splits.is_empty() {
                break;
            }
        }
        if splits.is_empty() {
            return Err(Error::file(path, nothing_found(&others)));
        }
        for (split, files) in &splits {
            one_source(path, *split, files)?;
        }
        Ok(Self { path: path.to_path_buf(), single: false, splits })
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files of a split; none if there is no such split.
    pub fn get(&self, split: Split) -> Option<&[PathBuf]> {
        self.splits.get(&split).map(Vec::as_slice)
    }

    /// The splits there are.
    pub fn splits(&self) -> impl Iterator<Item = (Split, &[PathBuf])> {
        self.splits.iter().map(|(split, files)| (*split, files.as_slice()))
    }

    /// The files of the first of `wanted` that is there; a single file is taken for whatever is wanted.
    ///
    /// # Errors
    /// If none is there; names those that are.
    pub fn first(&self, wanted: &[Split]) -> Result<&[PathBuf], Error> {
        let single = self.single.then_some(&Split::Train);
        if let Some(files) = wanted.iter().chain(single).find_map(|split| self.get(*split)) {
            return Ok(files);
        }
        let names =
            |splits: &[Split]| splits.iter().map(|split| split.name()).collect::<Vec<_>>().join(" or ");
        let there = self.splits.keys().copied().collect::<Vec<_>>();
        let what = format!(
            "has no {} file, only {}: add one (say {}.jsonl), or name a file instead of the folder",
            names(wanted),
            names(&there),
            wanted.first().copied().unwrap_or(Split::Train).name(),
        );
        Err(Error::file(&self.path, what))
    }
}

/// The files of a folder by name, hidden ones left out.
fn listing(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_file() && !hidden {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Two files for a split are an error unless both are shards of one.
fn one_source(folder: &Path, split: Split, files: &[PathBuf]) -> Result<(), Error> {
    let sharded = |file: &PathBuf| {
        let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        stem.split_once('-').is_some()
    };
    if files.len() < 2 || files.iter().all(sharded) {
        return Ok(());
    }
    let what =
        format!("has {} for its {} split: keep one, or name a file instead", names(files), split.name());
    Err(Error::file(folder, what))
}

fn nothing_found(others: &[PathBuf]) -> String {
    let found = if others.is_empty() { "no file".to_owned() } else { names(others) };
    format!(
        "holds {found}, but no train, valid or test file (.{}): rename one, or name a file instead of the folder",
        EXTENSIONS.join(", .")
    )
}

/// The names of the first few files.
fn names(files: &[PathBuf]) -> String {
    let mut names: Vec<_> =
        files.iter().take(6).filter_map(|file| file.file_name()).map(|name| name.to_string_lossy()).collect();
    if files.len() > names.len() {
        names.push("…".into());
    }
    names.join(", ")
}

/// The file's ending in lower case, if it can be read.
pub(super) fn extension(path: &Path) -> Result<&'static str, Error> {
    let found =
        path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    EXTENSIONS.into_iter().find(|known| *known == found).ok_or_else(|| {
        let hint = if ["gz", "zip", "zst", "xz", "bz2"].contains(&found.as_str()) {
            ": unpack it first"
        } else {
            ""
        };
        let found = if found.is_empty() { "no ending".to_owned() } else { format!("the ending .{found}") };
        Error::file(path, format!("has {found}, expected .{}{hint}", EXTENSIONS.join(", .")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "{}").unwrap();
        }
        folder
    }

    fn error(files: &[&str]) -> String {
        DataFiles::open(folder(files).path()).unwrap_err().to_string()
    }

    #[test]
    fn splits_go_by_their_many_names() {
        let folder =
            folder(&["train.jsonl", "dev.csv", "Test.parquet", "README.md", "validation_grouped.jsonl"]);
        let files = DataFiles::open(folder.path()).unwrap();
        assert_eq!(files.get(Split::Train).unwrap(), [folder.path().join("train.jsonl")]);
        assert_eq!(files.get(Split::Valid).unwrap(), [folder.path().join("dev.csv")]);
        assert_eq!(files.get(Split::Test).unwrap(), [folder.path().join("Test.parquet")]);
        assert_eq!(files.first(&[Split::Test, Split::Valid]).unwrap(), [folder.path().join("Test.parquet")]);
    }

    #[test]
    fn shards_of_a_hub_folder_are_taken_in_order() {
        let folder = folder(&["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet"]);
        let files = DataFiles::open(folder.path()).unwrap();
        let shards = files.get(Split::Train).unwrap();
        assert_eq!(shards.len(), 2);
        assert!(shards[0].ends_with("data/train-00000-of-00002.parquet"));
    }

    #[test]
    fn a_single_file_serves_any_split() {
        let folder = folder(&["rows.jsonl"]);
        let files = DataFiles::open(&folder.path().join("rows.jsonl")).unwrap();
        assert_eq!(files.get(Split::Valid), None);
        assert_eq!(files.first(&[Split::Test]).unwrap().len(), 1);
    }

    #[test]
    fn what_is_missing_or_double_is_named() {
        assert!(error(&["a.jsonl", "b.json"]).contains("holds a.jsonl, b.json, but no train"));
        assert!(error(&[]).contains("holds no file"));
        assert!(
            error(&["train.csv", "train.jsonl"]).contains("has train.csv, train.jsonl for its train split")
        );
        let folder = folder(&["train.jsonl", "x.jsonl.gz", "noending"]);
        let files = DataFiles::open(folder.path()).unwrap();
        let missing = files.first(&[Split::Test, Split::Valid]).unwrap_err().to_string();
        assert!(missing.contains("has no test or valid file, only train"), "{missing}");
        let gz = DataFiles::open(&folder.path().join("x.jsonl.gz")).unwrap_err().to_string();
        assert!(gz.contains("the ending .gz") && gz.contains("unpack it first"), "{gz}");
        let none = DataFiles::open(&folder.path().join("noending")).unwrap_err().to_string();
        assert!(none.contains("no ending"), "{none}");
        let absent = DataFiles::open(&folder.path().join("absent.jsonl")).unwrap_err().to_string();
        assert!(absent.contains("no such file or folder"), "{absent}");
    }
}
