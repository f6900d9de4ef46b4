//! The generators of the data sets in this folder: a small grammar language, the English it needs, and one module a
//! data set.
//!
//! Everything is drawn from our own word lists and templates with an explicit seed: no network, no outside data, the same
//! bytes on every run and on every platform. The words live in text files beside the data sets; this crate only reads them.
//! Training on the rows is left to `taper`.

pub mod clock;
pub mod code;
pub mod dialogue;
pub mod draw;
pub mod english;
pub mod grammar;
pub mod model;
pub mod requests;
pub mod sentiment;
pub mod splits;
pub mod style;
pub mod text;
pub mod tiny;
pub mod tokenizer;

/// What can go wrong while generating.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A grammar file cannot be read as rules.
    #[error("grammar line {line}: {why}")]
    Syntax {
        /// 1-based line in the joined files.
        line: usize,
        /// What was found and what was expected.
        why: String,
    },
    /// A template names a rule that does not exist and nothing bound.
    #[error("no rule and no bound word is called `{0}`")]
    Unknown(String),
    /// A template has an unclosed bracket or an unknown form.
    #[error("in the template `{template}`: {why}")]
    Template {
        /// The template.
        template: String,
        /// What is wrong with it.
        why: String,
    },
    /// The grammar is too small for the rows asked for.
    #[error("after {attempts} attempts the splits are still not full: {state}")]
    Exhausted {
        /// Rows drawn.
        attempts: usize,
        /// Rows kept by split.
        state: String,
    },
    /// Two splits share an input.
    #[error("`{0}` stands in two splits")]
    Overlap(String),
    /// The tokenizer could not be trained or written.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The weights could not be written.
    #[error("weights: {0}")]
    Weights(#[from] safetensors::SafeTensorError),
    /// A row that should be JSON is not.
    #[error("json: {0}")]
    Json(#[from] serde_json::Error),
    /// A file could not be written.
    #[error("{path}: {source}")]
    Write {
        /// The file.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::splits::NAMES;
    use std::path::Path;

    #[test]
    fn the_committed_files_are_what_the_generators_make() {
        let sets = [
            ("sentiment", sentiment::splits(sentiment::SEED)),
            ("dialogue", dialogue::splits(dialogue::SEED)),
            ("code", code::splits(code::SEED)),
            ("style", style::splits(style::SEED)),
        ];
        for (folder, splits) in sets {
            let splits = splits.unwrap();
            splits.check_overlap().unwrap();
            for (name, rows) in NAMES.iter().zip(&splits.rows) {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(format!("{name}.jsonl"));
                let file = std::fs::read_to_string(&path).unwrap();
                assert!(file.lines().eq(rows.iter().map(|row| row.json.to_string())), "{}", path.display());
            }
        }
    }
}
