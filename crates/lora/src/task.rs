//! What an adapter's folder says of the task that it is for.

use std::path::Path;

use serde_json::Value;
use taper_base::{Checkpoint, Labels, Task};

use crate::tensor_file::TENSOR_FILE;
use crate::{Error, LoraConfig};

/// The task of the adapter in `dir`, by its `task_type`; the next token where that is none of labels.
///
/// # Errors
/// As [`LoraConfig::read`] and [`labels`].
pub fn task(dir: &Path) -> Result<Task, Error> {
    let (config, _) = LoraConfig::read(dir)?;
    Ok(match config.task_type.as_deref() {
        Some("SEQ_CLS") => Task::Classify(labels(dir)?),
        Some("TOKEN_CLS") => Task::Tag(labels(dir)?),
        _ => Task::CausalLm,
    })
}

/// The labels of the adapter in `dir`: those that its `config.json` names, or else transformers' names for as many as its
/// head has rows.
///
/// # Errors
/// [`Error::File`] where `config.json` is not JSON, or there is no head.
pub fn labels(dir: &Path) -> Result<Labels, Error> {
    let path = dir.join("config.json");
    if path.is_file() {
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let config: Value = serde_json::from_str(&text)
            .map_err(|source| Error::file(&path, format!("not JSON: {source}")))?;
        if let Some(labels) = Labels::of(&config) {
            return Ok(labels);
        }
    }
    let path = dir.join(TENSOR_FILE);
    let file = Checkpoint::open_files(std::slice::from_ref(&path))?;
    let heads = ["score.weight", "classifier.weight", "classifier.out_proj.weight"];
    let is_head = |name: &&str| {
        let holder = heads.iter().find_map(|head| name.strip_suffix(head));
        holder.is_some_and(|holder| holder.is_empty() || holder.ends_with('.'))
    };
    let head = file.names().find(is_head).and_then(|name| file.info(name));
    let rows = head.and_then(|info| info.shape.first().copied()).ok_or_else(|| {
        let heads = heads.join(", ");
        Error::file(
            &path,
            format!("holds no head that labels ({heads}), and nothing else says what its labels are"),
        )
    })?;
    Ok(Labels::numbered(rows))
}
