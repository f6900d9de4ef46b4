//! How a recipe has its rows read.

use taper_base::Base;
use taper_kernels::pool;

use crate::{DataOptions, Recipe, Task};

/// Tokens at which rows are cut where the recipe does not say and the model could take more.
const MAX_LENGTH: usize = 1024;

/// How `recipe` has rows read for `task`, or for any, before there is a base: enough to tell what the rows teach.
pub(crate) fn before_base(recipe: &Recipe, task: Option<Task>) -> DataOptions {
    DataOptions {
        format: recipe.format.clone(),
        task: task.map(Task::reads),
        columns: recipe.column.clone(),
        ..DataOptions::default()
    }
}

/// How a run on `base` reads its rows.
pub fn data_options(base: &Base, recipe: &Recipe) -> DataOptions {
    DataOptions {
        labels: base.task.labels().cloned(),
        max_length: Some(max_length(base, recipe.max_length)),
        decoder_start: base.model.decoder_start(),
        threads: pool::threads(),
        ..before_base(recipe, Some(Task::of(base)))
    }
}

/// Tokens at which rows are cut: as `given`, else 1024 or the model's own limit if that is less.
pub fn max_length(base: &Base, given: Option<usize>) -> usize {
    given.unwrap_or_else(|| default_max_length(base.model.sizes().max_position_embeddings))
}

/// Tokens at which rows are cut where nothing is said, for a model whose own limit is `limit`.
pub fn default_max_length(limit: usize) -> usize {
    MAX_LENGTH.min(limit)
}
