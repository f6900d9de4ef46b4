//! How good predictions are: metrics by name over predictions and references, each with a bootstrap interval.
//!
//! One file a family: `classes`, `numbers`, `entities`, `overlap` (BLEU, chrF), `rouge`, `answers` (matches and lengths),
//! `loss`. Each gives what the field's Python package gives; the tests hold their numbers. `table` names the metrics
//! that can be chosen and `score` computes the chosen ones. Where predictions come from is left to others.
//!
//! **To add a metric**: a function in a family's file, and a line in `table`.

mod answers;
mod bootstrap;
mod classes;
mod entities;
mod loss;
mod numbers;
mod overlap;
mod porter;
mod rouge;
mod score;
mod table;
#[cfg(test)]
mod testing;

pub use answers::{exact_match, length, length_ratio, token_f1};
pub use bootstrap::interval;
pub use classes::{Average, Confusion, Prf};
pub use entities::{Entities, Entity, entities};
pub use loss::{bits_per_byte, perplexity};
pub use numbers::{pearson, spearman};
pub use overlap::{Bleu, BleuTokens, Chrf};
pub use rouge::{Rouge, rouge};
pub use score::{Predictions, Score, Scores, score};
pub use table::{METRICS, Metric, choose};
