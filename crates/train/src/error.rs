//! What can go wrong with a data set, a recipe or a training run.

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
    /// A row of a data set that cannot be used.
    #[error("{}:{line}: {what}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Line of a JSONL file, else number of the row, from 1.
        line: usize,
        /// What was found, what was expected, what to do.
        what: String,
    },
    /// A data set that cannot be used as a whole: empty, or with nothing left to learn.
    #[error("{what}")]
    Data {
        /// What is wrong, and what to do.
        what: String,
    },
    /// A recipe's value that is out of range, unknown, or at odds with another.
    #[error("{what}")]
    Recipe {
        /// The field, its value, and what is allowed.
        what: String,
    },
    /// An output folder that may not be written to, or a run that cannot be resumed as asked.
    #[error("{what}")]
    Output {
        /// What was found, and what to do.
        what: String,
    },
    /// Training that went wrong: a loss or gradient that is not finite, a parameter without a gradient.
    #[error("{what}")]
    Training {
        /// The step, the parameter and its value, and what to try.
        what: String,
    },
    /// The base failed.
    #[error(transparent)]
    Base(#[from] taper_base::Error),
    /// The adapter failed.
    #[error(transparent)]
    Lora(#[from] taper_lora::Error),
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

    /// An [`Error::Row`] about one row of `path`.
    pub fn row(path: impl Into<PathBuf>, line: usize, what: impl Into<String>) -> Self {
        Self::Row { path: path.into(), line, what: what.into() }
    }

    /// An [`Error::Data`].
    pub fn data(what: impl Into<String>) -> Self {
        Self::Data { what: what.into() }
    }

    /// An [`Error::Recipe`].
    pub(crate) fn recipe(what: impl Into<String>) -> Self {
        Self::Recipe { what: what.into() }
    }

    /// An [`Error::Output`].
    pub(crate) fn output(what: impl Into<String>) -> Self {
        Self::Output { what: what.into() }
    }

    /// An [`Error::Training`].
    pub(crate) fn training(what: impl Into<String>) -> Self {
        Self::Training { what: what.into() }
    }
}
