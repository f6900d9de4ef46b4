//! Checkpoints: `checkpoints/step-N/`, each an adapter folder with `optimizer.safetensors` and `state.json`.
//!
//! A checkpoint appears whole or not at all. Order of rows and dropout are functions of seed and step, so that the step
//! is all that needs to be known of them.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use taper_lora::LoraAdapter;

use crate::files::{remove_folder, write_folder, write_whole};
use crate::optim::AdamW;
use crate::{Best, Error, Recipe};

/// Version of `state.json`.
const VERSION: u32 = 1;

/// Fields that a resumed run may have otherwise: they change no number, or are covered by a fingerprint.
const FREE: [&str; 9] =
    ["model", "data", "eval_data", "out", "init_adapter", "memory", "threads", "save_every", "log_every"];

/// What a checkpoint holds beside adapter and optimiser.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    version: u32,
    /// Where the run stands.
    #[serde(flatten)]
    pub(crate) progress: Progress,
    /// Length of `metrics.jsonl`, less the row that tells of this checkpoint.
    pub(crate) metrics_bytes: u64,
    /// Whether the checkpoint was due, and not the result of an interruption.
    pub(crate) due: bool,
    /// What the run depends on.
    #[serde(flatten)]
    pub(crate) origin: Origin,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Steps made.
    pub(crate) step: usize,
    /// The best evaluation so far.
    pub(crate) best: Option<Best>,
    /// Evaluations since then.
    pub(crate) stale: usize,
}

/// What a run depends on, and has to find again when it is resumed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// The effective recipe.
    pub(crate) recipe: Value,
    /// Fingerprint of the base.
    pub(crate) base: String,
    /// Fingerprint of the training rows as tokens and labels.
    pub(crate) train: String,
    /// That of the validation rows.
    pub(crate) valid: Option<String>,
}

impl State {
    pub(crate) fn new(progress: Progress, metrics_bytes: u64, due: bool, origin: Origin) -> Self {
        Self { version: VERSION, progress, metrics_bytes, due, origin }
    }

    /// The effective recipe of the run.
    pub(crate) fn recipe(&self) -> Result<Recipe, Error> {
        Recipe::deserialize(&self.origin.recipe)
            .map_err(|error| Error::output(format!("the checkpoint's recipe cannot be read: {error}")))
    }
}

impl Origin {
    /// What has changed since `self`, in words.
    pub(crate) fn changes(&self, now: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        for field in Recipe::fields().iter().filter(|field| !FREE.contains(*field)) {
            let (was, is) = (&self.recipe[*field], &now.recipe[*field]);
            if was != is {
                changes.push(format!("`{field}` was {was} and is now {is}"));
            }
        }
        let prints = [
            ("the base is another", self.base != now.base),
            ("the training rows are others", self.train != now.train),
            ("the validation rows are others", self.valid != now.valid),
        ];
        changes.extend(prints.iter().filter(|(_, changed)| *changed).map(|(what, _)| (*what).to_owned()));
        changes
    }
}

/// The folder `checkpoints` of an output folder.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoints {
    dir: PathBuf,
}

impl Checkpoints {
    pub(crate) fn new(out: &Path) -> Self {
        Self { dir: out.join("checkpoints") }
    }

    /// The folder of all checkpoints.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder of the checkpoint made after `step` steps.
    pub(crate) fn folder(&self, step: usize) -> PathBuf {
        self.dir.join(format!("step-{step}"))
    }

    /// Writes a checkpoint, then removes all but it and the best.
    pub(crate) fn save(&self, state: &State, adapter: &LoraAdapter, optim: &AdamW) -> Result<(), Error> {
        fs::create_dir_all(&self.dir).map_err(Error::io(&self.dir))?;
        let path = self.folder(state.progress.step);
        write_folder(&path, |folder| {
            adapter.save(folder)?;
            write_whole(&folder.join("optimizer.safetensors"), &optim.to_bytes()?)?;
            let json = serde_json::to_vec_pretty(state)
                .map_err(|error| Error::output(format!("state.json: {error}")))?;
            write_whole(&folder.join("state.json"), &json)
        })?;
        let kept = [Some(state.progress.step), state.progress.best.map(|best| best.step)];
        for step in self.steps()?.into_iter().filter(|step| !kept.contains(&Some(*step))) {
            remove_folder(&self.folder(step))?;
        }
        Ok(())
    }

    /// Steps after which there is a checkpoint, ascending.
    pub(crate) fn steps(&self) -> Result<Vec<usize>, Error> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Ok(Vec::new()) };
        let mut steps = Vec::new();
        for entry in entries {
            let name = entry.map_err(Error::io(&self.dir))?.file_name();
            steps.extend(name.to_str().and_then(|name| name.strip_prefix("step-")?.parse::<usize>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// The state of the last checkpoint, if there is one.
    pub(crate) fn last(&self) -> Result<Option<State>, Error> {
        let Some(step) = self.steps()?.pop() else { return Ok(None) };
        let path = self.folder(step).join("state.json");
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        let state: State =
            serde_json::from_slice(&bytes).map_err(|error| Error::file(&path, error.to_string()))?;
        if state.version != VERSION {
            return Err(Error::file(
                &path,
                format!("has version {}, this program reads {VERSION}", state.version),
            ));
        }
        Ok(Some(state))
    }

    /// Gives `optim` the state of the checkpoint made after `step` steps.
    pub(crate) fn restore(&self, step: usize, optim: &mut AdamW) -> Result<(), Error> {
        let path = self.folder(step).join("optimizer.safetensors");
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        optim.restore(&bytes, &path)?;
        if optim.steps() == step { Ok(()) } else { Err(Error::file(&path, format!("is not of step {step}"))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(recipe: &Recipe) -> Origin {
        let recipe = serde_json::to_value(recipe).unwrap();
        Origin { recipe, base: "b".into(), train: "t".into(), valid: None }
    }

    #[test]
    fn a_state_reads_back() {
        let best = Some(Best { step: 3, loss: 0.1 + 0.2, score: Some(14.0 / 15.0) });
        let progress = Progress { step: 7, best, stale: 2 };
        let lr = 0.000_464_158_883_361_277_73;
        let state = State::new(progress, 99, true, origin(&Recipe { lr, ..Recipe::default() }));
        let read: State = serde_json::from_slice(&serde_json::to_vec_pretty(&state).unwrap()).unwrap();
        assert_eq!(read.progress, progress);
        assert_eq!(read.origin, state.origin);
        assert_eq!(read.recipe().unwrap().lr.to_bits(), lr.to_bits());
    }

    #[test]
    fn what_has_changed_is_named_and_what_may_change_is_not() {
        let was = origin(&Recipe::default());
        let free = Recipe { out: "elsewhere".into(), threads: Some(3), log_every: 1, ..Recipe::default() };
        assert_eq!(was.changes(&origin(&free)), Vec::<String>::new());
        let mut now = origin(&Recipe { lr: 0.5, epochs: 4, ..Recipe::default() });
        now.train = "other".into();
        let changes = was.changes(&now);
        assert_eq!(changes[0], "`lr` was 0.0002 and is now 0.5");
        assert_eq!(changes[1], "`epochs` was 3 and is now 4");
        assert_eq!(changes[2], "the training rows are others");
    }
}
