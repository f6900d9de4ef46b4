//! What can go wrong while merging, verifying or inspecting.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written: unwritable, disk full, gone.
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
    /// The output folder may not be written.
    #[error("{}: {what}", path.display())]
    Out {
        /// The folder.
        path: PathBuf,
        /// Why, and what to do.
        what: String,
    },
    /// A merged value is infinite or not a number.
    #[error("{}: tensor `{tensor}`, row {row}: {what}", path.display())]
    NotFinite {
        /// The base's file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Row of the first such value that was found.
        row: usize,
        /// The value, and where it comes from.
        what: String,
    },
    /// An adapter and a base that cannot become one model.
    #[error("{what}")]
    Unsupported {
        /// What was asked for, and why it cannot be.
        what: String,
    },
    /// The caller asked to stop.
    #[error("stopped before the output was complete; nothing was written")]
    Stopped,
    /// The base could not be read or run.
    #[error(transparent)]
    Base(#[from] taper_base::Error),
    /// The adapter could not be read or does not fit.
    #[error(transparent)]
    Lora(#[from] taper_lora::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// An [`Error::Io`] about `path`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// An [`Error::File`] about `path`.
    pub(crate) fn file(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::File { path: path.into(), what: what.into() }
    }

    /// An [`Error::Out`] about `path`.
    pub(crate) fn out(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Out { path: path.into(), what: what.into() }
    }

    /// An [`Error::Unsupported`].
    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into() }
    }
}
