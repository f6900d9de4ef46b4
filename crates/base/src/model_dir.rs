//! Where a model comes from: a folder, a GGUF file, a hub id, or the base inside the binary. It finds the files and leaves reading them to
//! others; downloads are the [`hub`]'s.

use std::path::{Path, PathBuf};

use crate::gguf::{self, Gguf};
use crate::{Error, hub, tiny};

/// What `--model` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// The base inside the binary.
    Tiny,
    /// A folder, or a GGUF file.
    Folder(PathBuf),
    /// A hub repository `org/name` at a revision.
    Hub {
        /// `org/name`.
        id: String,
        /// Branch, tag or commit; `main` unless given after `@`.
        revision: Option<String>,
    },
}

/// A model's folder on disk, with the files in it that matter; or a GGUF file, which says the same.
#[derive(Clone, Debug)]
pub struct ModelDir {
    /// The folder, or the GGUF file.
    pub path: PathBuf,
    /// The source as it was typed: what an adapter's `base_model_name_or_path` records. Of a hub id the part before `@`, as
    /// PEFT keeps the revision in a field of its own.
    pub name: String,
}

impl ModelSource {
    /// Reads what was typed: `tiny`, a path that exists (or looks like one), or `org/name[@revision]`.
    ///
    /// A folder that is itself called `tiny` is named `./tiny`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::read(text, "model", "; `tiny` is the small base inside this program")
    }

    /// Reads what was typed for an adapter: the same forms, though `tiny` is none ([`ModelDir::resolve_adapter`]).
    pub fn parse_adapter(text: &str) -> Result<Self, Error> {
        Self::read(text, "adapter", "")
    }

    /// Reads what was typed for a `kind`; `more` ends the error about what is none.
    fn read(text: &str, kind: &str, more: &str) -> Result<Self, Error> {
        if text == "tiny" {
            return Ok(Self::Tiny);
        }
        if Path::new(text).exists() || looks_like_path(text) {
            return Ok(Self::Folder(PathBuf::from(text)));
        }
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        if !hub::is_id(id) || !revision.is_none_or(hub::is_revision) {
            let found = if text.is_empty() {
                format!("an empty name names no {kind}: give a folder, or a hub id")
            } else {
                format!("`{text}` names no {kind}: it is no folder here, and not a hub id either")
            };
            return Err(Error::Source { what: format!("{found} (`org/name` or `org/name@revision`){more}") });
        }
        Ok(Self::Hub { id: id.to_string(), revision: revision.map(str::to_string) })
    }
}

impl ModelDir {
    /// Makes the source's files available locally: a folder is checked, a hub id downloaded (or found in its cache).
    pub fn resolve(source: &ModelSource) -> Result<Self, Error> {
        match source {
            ModelSource::Tiny => Ok(Self { path: tiny::folder()?, name: "tiny".to_string() }),
            ModelSource::Folder(path) => {
                if !gguf::is_file(path) {
                    check_folder(path, "config.json", "a model")?;
                }
                Ok(Self { path: path.clone(), name: path.display().to_string() })
            }
            ModelSource::Hub { id, revision } => {
                Ok(Self { path: hub::model(id, revision.as_deref())?, name: id.clone() })
            }
        }
    }

    /// The folder of an adapter: the same three forms of source, though the binary holds no adapter.
    pub fn resolve_adapter(source: &ModelSource) -> Result<PathBuf, Error> {
        match source {
            ModelSource::Tiny => {
                let what = "`tiny` is the base inside this program, not an adapter; a folder of that name is `./tiny`";
                Err(Error::Source { what: what.to_string() })
            }
            ModelSource::Folder(path) => {
                check_folder(path, "adapter_config.json", "an adapter")?;
                Ok(path.clone())
            }
            ModelSource::Hub { id, revision } => hub::adapter(id, revision.as_deref()),
        }
    }

    /// Whether it is a GGUF file.
    pub fn is_gguf(&self) -> bool {
        gguf::is_file(&self.path)
    }

    /// `path` joined with `file`, if it exists there.
    pub fn file(&self, file: &str) -> Option<PathBuf> {
        let path = self.path.join(file);
        path.is_file().then_some(path)
    }

    /// [`Network::decoder_start`](crate::Network::decoder_start) of the model in it.
    pub fn decoder_start(&self) -> Result<Option<u32>, Error> {
        crate::arch::decoder_start(&self.json("config.json")?)
    }

    /// [`Sizes::max_position_embeddings`](crate::Sizes) of the model in it; none if its config.json leaves that to a default.
    pub fn max_positions(&self) -> Result<Option<usize>, Error> {
        crate::arch::max_positions(&self.json("config.json")?)
    }

    /// A JSON file of the folder, or what it would say for a GGUF file; an empty object if it is not there.
    pub fn json(&self, file: &str) -> Result<serde_json::Value, Error> {
        if self.is_gguf() {
            return Gguf::json_of(&self.path, file);
        }
        let Some(path) = self.file(file) else {
            return Ok(serde_json::Value::Object(serde_json::Map::new()));
        };
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        serde_json::from_str(&text).map_err(|source| Error::file(&path, format!("not JSON: {source}")))
    }
}

/// Things that cannot be a hub id: `./a`, `/a`, `~/a`, `a/b/c`, `a/`, `a\b`, `a.gguf`.
fn looks_like_path(text: &str) -> bool {
    text.starts_with(['.', '/', '~'])
        || text.ends_with('/')
        || text.contains('\\')
        || gguf::is_named(Path::new(text))
        || text.split('@').next().is_some_and(|id| id.matches('/').count() > 1)
}

/// Checks that `path` is a folder that holds `file`, without which it is not `kind`.
fn check_folder(path: &Path, file: &str, kind: &str) -> Result<(), Error> {
    let fail = |what: String| Err(Error::Source { what: format!("{}: {what}", path.display()) });
    if gguf::is_file(path) {
        return fail(format!("is a GGUF file, which can be a model; {kind} is a folder that holds {file}"));
    }
    if gguf::is_named(path) && !path.exists() {
        return fail("there is no such file".to_string());
    }
    if !path.exists() {
        return fail("there is no such folder; a hub id is written `org/name`".to_string());
    }
    if !path.is_dir() {
        return fail(format!("is a file; {kind} is a folder that holds {file}"));
    }
    if path.join(file).is_file() {
        return Ok(());
    }
    let holds = |other: &str| path.join(other).is_file();
    if holds("adapter_config.json") {
        return fail(
            "is an adapter's folder, not a model's: give it with --adapter, and its base with --model".into(),
        );
    }
    if file == "adapter_config.json" && holds("adapter_model.safetensors") {
        return fail(format!("holds adapter_model.safetensors, but no {file}: without it, it is not {kind}"));
    }
    if holds("config.json") {
        return fail("is a model's folder, not an adapter's: give it with --model".into());
    }
    fail(format!("has no {file}, so it is not {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ModelSource {
        ModelSource::parse(text).unwrap()
    }

    fn hub(id: &str, revision: Option<&str>) -> ModelSource {
        ModelSource::Hub { id: id.to_string(), revision: revision.map(str::to_string) }
    }

    #[test]
    fn sources_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let existing = dir.path().to_str().unwrap();
        assert_eq!(parse("tiny"), ModelSource::Tiny);
        assert_eq!(parse(existing), ModelSource::Folder(existing.into()));
        for path in ["./tiny", "/no/such", "a/b/c", "model/", "model.gguf", "~/m"] {
            assert_eq!(parse(path), ModelSource::Folder(path.into()), "{path}");
        }
        assert_eq!(parse("HuggingFaceTB/SmolLM2-135M"), hub("HuggingFaceTB/SmolLM2-135M", None));
        assert_eq!(parse("org/name@v1.0"), hub("org/name", Some("v1.0")));
        assert_eq!(parse("org/name@refs/pr/3"), hub("org/name", Some("refs/pr/3")));
    }

    #[test]
    fn what_names_nothing_is_refused_with_the_forms_that_exist() {
        for text in ["gpt2", "", "org/na me", "org/name@", "org/name@../../x"] {
            let error = ModelSource::parse(text).unwrap_err().to_string();
            assert!(error.contains("org/name") && error.contains("tiny"), "{text}: {error}");
        }
    }

    #[test]
    fn what_names_no_adapter_is_not_called_a_model() {
        let message = |text: &str| ModelSource::parse_adapter(text).unwrap_err().to_string();
        assert!(message("nope").starts_with("`nope` names no adapter: "), "{}", message("nope"));
        assert!(message("").starts_with("an empty name names no adapter: "), "{}", message(""));
        assert!(!message("nope").contains("tiny"));
        assert_eq!(ModelSource::parse_adapter("org/name").unwrap(), hub("org/name", None));
    }

    #[test]
    fn an_adapter_that_labels_without_its_configuration_is_no_model() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["config.json", "adapter_model.safetensors"] {
            std::fs::write(dir.path().join(file), "{}").unwrap();
        }
        let source = ModelSource::Folder(dir.path().to_path_buf());
        let error = ModelDir::resolve_adapter(&source).unwrap_err().to_string();
        assert!(error.contains("adapter_model.safetensors, but no adapter_config.json"), "{error}");
    }

    #[test]
    fn folders_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let source = ModelSource::Folder(dir.path().to_path_buf());
        let message = |source: &ModelSource| ModelDir::resolve(source).unwrap_err().to_string();
        assert!(message(&source).contains("no config.json"));
        std::fs::write(dir.path().join("adapter_config.json"), "{}").unwrap();
        assert!(message(&source).contains("--adapter"));
        assert_eq!(ModelDir::resolve_adapter(&source).unwrap(), dir.path());
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert_eq!(ModelDir::resolve(&source).unwrap().path, dir.path());
        assert!(message(&ModelSource::Folder("/no/such".into())).contains("no such folder"));
        assert!(message(&ModelSource::Folder("x.gguf".into())).contains("no such file"));
        assert!(ModelDir::resolve_adapter(&ModelSource::Tiny).is_err());
    }

    #[test]
    fn json_is_empty_without_the_file_and_names_the_line_of_a_mistake() {
        let dir = tempfile::tempdir().unwrap();
        let model = ModelDir { path: dir.path().to_path_buf(), name: "x".to_string() };
        assert_eq!(model.json("config.json").unwrap(), serde_json::json!({}));
        std::fs::write(dir.path().join("config.json"), "{\n  \"a\": 1,\n  oops\n}").unwrap();
        let error = model.json("config.json").unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains("line 3"), "{error}");
    }
}
