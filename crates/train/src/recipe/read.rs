//! Recipes from files and flags, and back to files.

use std::path::{Component, Path, PathBuf};

use serde::de::{Deserialize, Deserializer, Visitor, value};
use serde::forward_to_deserialize_any;
use toml::{Table, Value};

use super::Recipe;
use crate::Error;
use crate::data::closest;

/// Fields that may name something on disk or something else: `tiny`, a hub id.
const SOURCES: [&str; 4] = ["model", "data", "eval_data", "init_adapter"];

impl Recipe {
    /// The recipe of `file`, if any, with the values of `flags` in place of the file's, checked. Relative paths in the
    /// file are relative to its folder, and its folder is the default `out`; relative paths among the flags are relative
    /// to the working folder.
    ///
    /// # Errors
    /// [`Error::File`] where the file is no TOML; [`Error::Recipe`] names an unknown field with the nearest known one, or
    /// a value that cannot be honoured.
    pub fn load(file: Option<&Path>, flags: Table) -> Result<Self, Error> {
        let mut table = Table::new();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
            let given =
                text.parse().map_err(|error: toml::de::Error| Error::file(path, error.to_string()))?;
            table = beside(path.parent().unwrap_or(Path::new("")), given);
            for (field, value) in &table {
                let alone = Table::from_iter([(field.clone(), value.clone())]);
                Self::from_table(alone)
                    .map_err(|error| Error::row(path, line_of(&text, field), error.to_string()))?;
            }
        }
        table.extend(flags);
        let recipe = Self::from_table(table)?;
        recipe.check()?;
        Ok(recipe)
    }

    /// The recipe of a table, its fields known but not checked.
    pub fn from_table(table: Table) -> Result<Self, Error> {
        if let Some(unknown) = table.keys().find(|key| !Self::fields().contains(&key.as_str())) {
            return Err(self::unknown(unknown));
        }
        Self::deserialize(table).map_err(|error| Error::recipe(in_words(&error.to_string())))
    }

    /// Names of all fields, in order.
    pub fn fields() -> &'static [&'static str] {
        let mut fields: &[&str] = &[];
        // The visitor is handed no value, so that this always ends in an error; by then the names are known.
        let _ = Self::deserialize(Names(&mut fields));
        fields
    }

    /// `recipe.toml`: every field that has a value. Relative paths are written relative to `out`, where the file goes.
    pub fn to_toml(&self) -> Result<String, Error> {
        let mut table = Table::try_from(self)
            .map_err(|error| Error::recipe(format!("cannot be written as TOML: {error}")))?;
        let out = absolute(&self.out);
        for key in SOURCES {
            if let Some(Value::String(text)) = table.get_mut(key)
                && !Path::new(text.as_str()).is_absolute()
                && Path::new(text.as_str()).exists()
                && !(key == "model" && text == "tiny")
            {
                *text = relative(&absolute(Path::new(text.as_str())), &out).display().to_string();
            }
        }
        table.insert("out".into(), Value::String(".".into()));
        toml::to_string(&table).map_err(|error| Error::recipe(format!("cannot be written as TOML: {error}")))
    }
}

/// What serde says of a value, without the names that Rust has for types.
fn in_words(message: &str) -> String {
    let names = [
        ("expected usize", "expected a whole number"),
        ("expected u64", "expected a whole number"),
        ("expected f64", "expected a number"),
    ];
    names
        .iter()
        .fold(message.trim_end().replace('\n', " "), |text, (theirs, ours)| text.replace(theirs, ours))
}

/// The line, from 1, that sets `field`, or its table's.
fn line_of(text: &str, field: &str) -> usize {
    let sets = |line: &str| line.trim_start_matches([' ', '\t', '[', '"']).starts_with(field);
    text.lines().position(sets).unwrap_or(0) + 1
}

/// The table of a file in `folder`, its paths made relative to the working folder.
fn beside(folder: &Path, mut table: Table) -> Table {
    for key in SOURCES {
        if let Some(Value::String(text)) = table.get_mut(key)
            && is_path(key, text, folder)
        {
            *text = join(folder, text);
        }
    }
    let out = table.entry("out").or_insert_with(|| Value::String(".".into()));
    if let Value::String(text) = out {
        *text = join(folder, text);
    }
    table
}

/// Whether a source is a path beside the recipe, and not `tiny` or a hub id.
fn is_path(key: &str, text: &str, folder: &Path) -> bool {
    if key == "model" && text == "tiny" {
        return false;
    }
    let hub_id = text.matches('/').count() == 1 && !text.starts_with('.') && !text.starts_with('/');
    !hub_id || folder.join(text).exists()
}

/// `folder/text` without `.` parts; never empty.
fn join(folder: &Path, text: &str) -> String {
    let path: PathBuf = folder.join(text).components().filter(|part| *part != Component::CurDir).collect();
    if path.as_os_str().is_empty() { ".".into() } else { path.display().to_string() }
}

/// The whole path, links resolved as far as it exists.
fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

/// The way from the folder `from` to `path`, both absolute.
fn relative(path: &Path, from: &Path) -> PathBuf {
    let shared = path.components().zip(from.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(shared).map(|_| Component::ParentDir);
    let way: PathBuf = up.chain(path.components().skip(shared)).collect();
    if way.as_os_str().is_empty() { PathBuf::from(".") } else { way }
}

/// Names of other programs for a recipe's fields.
const SYNONYMS: [(&str, &str); 21] = [
    ("r", "rank"),
    ("lora_r", "rank"),
    ("lora_rank", "rank"),
    ("lora_alpha", "alpha"),
    ("lora_dropout", "dropout"),
    ("init_lora_weights", "init"),
    ("learning_rate", "lr"),
    ("lr_scheduler", "schedule"),
    ("lr_scheduler_type", "schedule"),
    ("num_train_epochs", "epochs"),
    ("num_epochs", "epochs"),
    ("label_smoothing_factor", "label_smoothing"),
    ("classifier_dropout", "head_dropout"),
    ("seq_classif_dropout", "head_dropout"),
    ("iters", "max_steps"),
    ("per_device_train_batch_size", "batch_size"),
    ("max_seq_length", "max_length"),
    ("sequence_len", "max_length"),
    ("logging_steps", "log_every"),
    ("eval_steps", "eval_every"),
    ("save_steps", "save_every"),
];

/// What to say about a field that does not exist.
fn unknown(name: &str) -> Error {
    let synonym = SYNONYMS.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| *ours);
    let what = match synonym.or_else(|| closest(name, Recipe::fields())) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("its fields are {}", Recipe::fields().join(", ")),
    };
    Error::recipe(format!("a recipe has no `{name}`: {what}"))
}

/// Notes the field names that a struct's `Deserialize` asks for.
struct Names<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Names<'_> {
    type Error = value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(serde::de::Error::custom("holds no value"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        Err(serde::de::Error::custom("holds no value"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::super::Dtype;
    use super::*;
    use crate::schedule::Shape;

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    #[test]
    fn every_field_reads_back_from_what_is_written() {
        let text = "model = 'a/b'\ndata = 'x.jsonl'\nout = '.'\nrank = 4\nalpha = 8\nlr = 1\nschedule = 'cosine'\n\
                    target_modules = ['q_proj']\ndtype = 'bf16'\nno_decay = ['bias']\nearly_stopping = 2";
        let recipe = Recipe::from_table(table(text)).unwrap();
        assert_eq!((recipe.rank(), recipe.alpha(), recipe.lr, recipe.schedule), (4, 8.0, 1.0, Shape::Cosine));
        assert_eq!(recipe.dtype, Dtype::Bf16);
        assert_eq!(Recipe::from_table(table(&recipe.to_toml().unwrap())).unwrap(), recipe);
    }

    #[test]
    fn an_unknown_field_names_the_nearest() {
        let message = |text| Recipe::from_table(table(text)).unwrap_err().to_string();
        assert_eq!(message("batchsize = 1"), "a recipe has no `batchsize`: did you mean `batch_size`?");
        assert_eq!(message("learning_rate = 1"), "a recipe has no `learning_rate`: did you mean `lr`?");
        assert!(message("zzz = 1").contains("its fields are model, data, eval_data"));
    }

    #[test]
    fn every_synonym_stands_for_a_field() {
        for (theirs, ours) in SYNONYMS {
            assert!(Recipe::fields().contains(&ours) && !Recipe::fields().contains(&theirs), "{theirs}");
        }
    }

    #[test]
    fn a_value_of_the_wrong_kind_names_its_field() {
        let error = Recipe::from_table(table("lr = 'fast'")).unwrap_err().to_string();
        assert!(error.contains("lr"), "{error}");
    }

    #[test]
    fn flags_win_and_paths_follow_the_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("adapters/x")).unwrap();
        std::fs::create_dir_all(dir.path().join("data/y")).unwrap();
        let file = dir.path().join("adapters/x/recipe.toml");
        std::fs::write(&file, "data = '../../data/y'\nmodel = 'org/name'\nlr = 0.5\nrank = 2").unwrap();
        let recipe = Recipe::load(Some(&file), table("rank = 3")).unwrap();
        assert_eq!((recipe.rank, recipe.lr, recipe.model.as_str()), (Some(3), 0.5, "org/name"));
        assert_eq!(recipe.out, dir.path().join("adapters/x"));
        assert!(Path::new(&recipe.data).is_dir());
    }

    #[test]
    fn a_way_between_folders_goes_up_and_down() {
        let way = |a: &str, b: &str| relative(Path::new(a), Path::new(b));
        assert_eq!(way("/a/b/c", "/a/d"), Path::new("../b/c"));
        assert_eq!(way("/a/b", "/a/b"), Path::new("."));
    }
}
