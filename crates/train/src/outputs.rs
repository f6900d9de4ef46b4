//! The output folder of a run: whether it may be written to, and the files that are neither adapter nor checkpoint.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;
use taper_base::Base;
use taper_base::files::put_back;

use crate::checkpoint::Checkpoints;
use crate::files::{clean, remove_folder, write_whole};
use crate::plot::{Curves, draw};
use crate::{Error, Event, Recipe, SplitResult};

/// How a run deals with what is in its output folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// It is refused if there is an adapter or an unfinished run.
    #[default]
    New,
    /// What an earlier run wrote is replaced.
    Force,
    /// An unfinished run goes on from its last checkpoint.
    Resume,
}

/// The base's configuration with the labels of the adapter.
const CONFIG: &str = "config.json";

/// A row for every event.
const METRICS: &str = "metrics.jsonl";

/// The effective recipe, and its name where the folder holds a recipe that no run wrote.
const RECIPES: [&str; 2] = ["recipe.toml", "recipe.effective.toml"];

/// The first line of the recipes that runs write.
const OURS: &str = "# Written by taper train: the recipe of this run with everything filled in.\n";

/// Files that a run writes, besides the recipe.
const WRITTEN: [&str; 7] = [
    "adapter_config.json",
    CONFIG,
    "adapter_model.safetensors",
    "README.md",
    METRICS,
    "loss.svg",
    "eval.json",
];

/// Checks that `out` may be written to, so that a refusal comes before any work. A checkpoint that a killed run was replacing is
/// put back, and counts.
pub(crate) fn check(out: &Path, start: Start) -> Result<(), Error> {
    if out.exists() && !out.is_dir() {
        return Err(Error::output(format!("{}: is a file, the output has to be a folder", out.display())));
    }
    let checkpoints = Checkpoints::new(out);
    put_back(checkpoints.dir());
    let finished = out.join("adapter_model.safetensors").exists();
    let unfinished = !checkpoints.steps()?.is_empty();
    let holds = |name: &str| out.join(name).metadata().is_ok_and(|file| file.len() > 0);
    let is_a_runs = RECIPES.iter().any(|name| is_ours(out, name));
    let foreign = WRITTEN.into_iter().find(|name| !is_a_runs && holds(name));
    let refuse = |what: &str| Err(Error::output(format!("{}: {what}", out.display())));
    match start {
        Start::New if finished => {
            refuse("holds an adapter already: give another --out, or --force to replace it")
        }
        Start::New if unfinished => {
            refuse("holds a run that was not finished: --resume goes on with it, --force starts anew")
        }
        Start::New if let Some(name) = foreign => refuse(&format!(
            "holds a {name} that no training run wrote: give another --out, or --force to replace it"
        )),
        Start::Resume if !out.exists() => refuse("there is no such folder, so nothing to resume"),
        Start::Resume if !unfinished => {
            refuse("holds no checkpoint to go on from: without --resume a run starts anew")
        }
        _ => Ok(()),
    }
}

/// Whether the file `name` of `out` is a recipe that a run wrote.
fn is_ours(out: &Path, name: &str) -> bool {
    fs::read_to_string(out.join(name)).is_ok_and(|text| text.starts_with(OURS))
}

/// The name of the effective recipe in `out`: one that someone else wrote there stays as it is.
pub(crate) fn recipe_name(out: &Path) -> &'static str {
    let [usual, other] = RECIPES;
    if out.join(usual).exists() && !is_ours(out, usual) { other } else { usual }
}

/// Makes the folder where it is none.
pub(crate) fn make_folder(out: &Path) -> Result<(), Error> {
    fs::create_dir_all(out).map_err(Error::io(out))
}

/// Makes the folder ready, and this run's alone: removes what killed runs left, and with [`Start::Force`] what earlier runs
/// wrote; writes the effective recipe, which shows whether it can be written to at all. Of the metrics the first `keep` bytes
/// stay.
pub(crate) fn prepare(recipe: &Recipe, start: Start, keep: u64) -> Result<Metrics, Error> {
    let out = &recipe.out;
    make_folder(out)?;
    let metrics = Metrics::open(out)?;
    let checkpoints = Checkpoints::new(out);
    clean(out)?;
    clean(checkpoints.dir())?;
    let text = OURS.to_owned() + &recipe.to_toml()?;
    write_whole(&out.join(recipe_name(out)), text.as_bytes())?;
    if start == Start::Force {
        let old = WRITTEN.iter().filter(|name| **name != METRICS).map(|name| out.join(name));
        for path in old.filter(|path| path.exists()) {
            fs::remove_file(&path).map_err(Error::io(&path))?;
        }
        remove_folder(checkpoints.dir())?;
    }
    metrics.cut(keep)
}

/// `metrics.jsonl`, one row an event.
#[derive(Debug)]
pub(crate) struct Metrics {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Metrics {
    /// Opens the file of `out`, which is locked for as long as it is open.
    ///
    /// # Errors
    /// Another run has it open.
    fn open(out: &Path) -> Result<Self, Error> {
        let path = out.join(METRICS);
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        // Where a file system knows no locks, a run goes on without.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let out = out.display();
            return Err(Error::output(format!(
                "{out}: another run is writing there: wait for its end, or give another --out"
            )));
        }
        Ok(Self { path, file, bytes: 0 })
    }

    /// Forgets all beyond the first `keep` bytes.
    fn cut(mut self, keep: u64) -> Result<Self, Error> {
        let length = self.file.metadata().map_err(Error::io(&self.path))?.len();
        self.bytes = keep.min(length);
        self.file.set_len(self.bytes).map_err(Error::io(&self.path))?;
        Ok(self)
    }

    /// Appends a row; the plan is none.
    pub(crate) fn append(&mut self, event: &Event) -> Result<(), Error> {
        if matches!(event, Event::Plan(_)) {
            return Ok(());
        }
        let row = to_json(event, serde_json::to_string)? + "\n";
        self.file.write_all(row.as_bytes()).map_err(Error::io(&self.path))?;
        self.bytes += row.len() as u64;
        Ok(())
    }

    /// Length of the file, with all that was appended on the disk.
    pub(crate) fn sync(&self) -> Result<u64, Error> {
        self.file.sync_data().map_err(Error::io(&self.path))?;
        Ok(self.bytes)
    }
}

/// Draws `loss.svg` from `metrics.jsonl` under a title and with the unit of the loss, the base's loss beside the others.
pub(crate) fn write_plot(out: &Path, titles: (&str, &str), base: Option<f64>) -> Result<(), Error> {
    let path = out.join(METRICS);
    let metrics = fs::read_to_string(&path).map_err(Error::io(&path))?;
    let curves = Curves { base, ..Curves::read(&metrics) };
    write_whole(&out.join("loss.svg"), draw(titles, &curves)?.as_bytes())
}

/// Writes `eval.json`: base and adapter side by side on each split. It holds no times: the same run writes the same bytes.
pub(crate) fn write_eval(recipe: &Recipe, step: usize, results: &[SplitResult]) -> Result<(), Error> {
    let splits: serde_json::Map<String, serde_json::Value> = (results.iter())
        .map(|result| {
            let side = |e: &crate::Evaluation| {
                let mut side = json!({"loss": e.loss});
                if let Some(perplexity) = e.perplexity {
                    side["perplexity"] = perplexity.into();
                }
                if !e.metrics.is_empty() {
                    side["metrics"] = json!(e.metrics);
                }
                side
            };
            let (base, adapted) = (&result.base, &result.adapted);
            let row = json!({
                "examples": adapted.examples,
                "tokens": adapted.tokens,
                "base": side(base),
                "adapted": side(adapted),
            });
            (result.split.to_owned(), row)
        })
        .collect();
    let all = json!({"task": recipe.task().name(), "model": recipe.model, "step": step, "splits": splits});
    let text = to_json(&all, serde_json::to_string_pretty)? + "\n";
    write_whole(&recipe.out.join("eval.json"), text.as_bytes())
}

/// Writes `config.json` where the adapter gives labels: the base's own, with `id2label`, `label2id` and `problem_type` of
/// the adapter, so that transformers' `AutoConfig.from_pretrained` on the adapter's folder makes a model that the adapter
/// fits. PEFT has no place for them in `adapter_config.json`.
pub(crate) fn write_labels(base: &Base, out: &Path) -> Result<(), Error> {
    let Some(labels) = base.task.labels() else { return Ok(()) };
    let mut config = base.config.as_object().cloned().unwrap_or_default();
    labels.write_to(&mut config);
    let text = to_json(&config, serde_json::to_string_pretty)? + "\n";
    write_whole(&out.join(CONFIG), text.as_bytes())
}

fn to_json<T: Serialize>(
    value: &T,
    write: impl Fn(&T) -> serde_json::Result<String>,
) -> Result<String, Error> {
    write(value).map_err(|error| Error::output(format!("cannot be written as JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SavedReport;

    fn saved(step: usize) -> Event {
        Event::Saved(SavedReport { step, path: format!("checkpoints/step-{step}").into() })
    }

    #[test]
    fn metrics_are_cut_to_where_a_checkpoint_left_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(dir.path()).unwrap().cut(0).unwrap();
        metrics.append(&saved(1)).unwrap();
        let keep = metrics.sync().unwrap();
        metrics.append(&saved(2)).unwrap();
        let second = Metrics::open(dir.path()).unwrap_err().to_string();
        assert!(second.contains("another run is writing there"), "{second}");
        drop(metrics);
        Metrics::open(dir.path()).unwrap().cut(keep).unwrap().append(&saved(3)).unwrap();
        let text = fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
        let expected = "{\"event\":\"saved\",\"step\":1,\"path\":\"checkpoints/step-1\"}\n\
                        {\"event\":\"saved\",\"step\":3,\"path\":\"checkpoints/step-3\"}\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn an_adapter_or_an_unfinished_run_is_not_overwritten_unasked() {
        let dir = tempfile::tempdir().unwrap();
        check(dir.path(), Start::New).unwrap();
        fs::create_dir_all(dir.path().join("checkpoints/step-3")).unwrap();
        assert!(check(dir.path(), Start::New).unwrap_err().to_string().contains("--resume"));
        fs::write(dir.path().join("adapter_model.safetensors"), "x").unwrap();
        assert!(check(dir.path(), Start::New).unwrap_err().to_string().contains("--force"));
        check(dir.path(), Start::Force).unwrap();
        check(dir.path(), Start::Resume).unwrap();
        fs::remove_dir_all(dir.path().join("checkpoints")).unwrap();
        assert!(check(dir.path(), Start::Resume).unwrap_err().to_string().contains("no checkpoint"));
        let missing = dir.path().join("nothing");
        assert!(check(&missing, Start::Resume).unwrap_err().to_string().contains("nothing to resume"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_checkpoint_that_was_being_replaced_when_a_run_was_killed_can_be_resumed() {
        let dir = tempfile::tempdir().unwrap();
        // No process has this number: the largest is 2²².
        fs::create_dir_all(dir.path().join("checkpoints/.taper-4999999-0.step-3.part")).unwrap();
        fs::create_dir(dir.path().join("checkpoints/.taper-4999999-1.step-3.old")).unwrap();
        check(dir.path(), Start::Resume).unwrap();
        assert_eq!(Checkpoints::new(dir.path()).steps().unwrap(), [3]);
    }

    #[test]
    fn what_no_run_wrote_is_not_replaced_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = Recipe { data: "d".into(), out: dir.path().into(), ..Recipe::default() };
        fs::write(dir.path().join("recipe.toml"), "# mine\n").unwrap();
        check(dir.path(), Start::New).unwrap();
        prepare(&recipe, Start::New, 0).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("recipe.toml")).unwrap(), "# mine\n");
        assert_eq!(recipe_name(dir.path()), "recipe.effective.toml");
        // What stands beside a run's recipe is a run's.
        fs::write(dir.path().join("README.md"), "x").unwrap();
        check(dir.path(), Start::New).unwrap();
        fs::remove_file(dir.path().join("recipe.effective.toml")).unwrap();
        let refused = check(dir.path(), Start::New).unwrap_err().to_string();
        assert!(refused.contains("README.md that no training run wrote"), "{refused}");
        check(dir.path(), Start::Force).unwrap();
    }

    #[test]
    fn force_removes_what_an_earlier_run_wrote_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["eval.json", "notes.txt"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        fs::create_dir_all(dir.path().join("checkpoints/step-3")).unwrap();
        let recipe = Recipe { data: "d".into(), out: dir.path().into(), ..Recipe::default() };
        prepare(&recipe, Start::Force, 0).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["metrics.jsonl", "notes.txt", "recipe.toml"]);
    }
}
