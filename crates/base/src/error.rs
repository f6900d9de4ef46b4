//! What can go wrong with a model's files, its tokenizer or its forward pass.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file's content is not what it should be.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was found, what was expected, what to do.
        what: String,
    },
    /// A model that cannot be honoured: an unknown `model_type`, rope type or setting.
    #[error("{what}")]
    Unsupported {
        /// The setting, its value, and what is supported.
        what: String,
    },
    /// A model source that names nothing.
    #[error("{what}")]
    Source {
        /// What was asked for, why it cannot be had, what to do.
        what: String,
    },
    /// The hub could not be reached or was out of order: what is in the cache may do instead.
    #[error("{what}")]
    Unreachable {
        /// Where, what happened, what to do.
        what: String,
    },
    /// A chat template that failed or cannot be used for what was asked.
    #[error("chat template: {what}")]
    Template {
        /// The reason.
        what: String,
    },
    /// The tokenizer failed.
    #[error("tokenizer: {what}")]
    Tokenizer {
        /// The reason.
        what: String,
    },
    /// A weight's bytes are not what its header says.
    #[error(transparent)]
    Weight(#[from] taper_kernels::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// An [`Error::Io`] about `path`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// An [`Error::File`] about `path`.
    pub fn file(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::File { path: path.into(), what: what.into() }
    }
}
