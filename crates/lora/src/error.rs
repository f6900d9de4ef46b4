//! What can go wrong with an adapter's configuration, its folder or its tensors.

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
    /// A setting that contradicts another, is out of range, or cannot be honoured.
    #[error("{what}")]
    Config {
        /// The setting, its value, and what is possible.
        what: String,
    },
    /// A name or pattern that selects nothing in this base, or something that cannot be adapted.
    #[error("{what}")]
    Target {
        /// The name, and the nearest that exist.
        what: String,
    },
    /// A merge that this adapter does not allow.
    #[error("{what}")]
    Merge {
        /// The reason.
        what: String,
    },
    /// A file of tensors that the base crate could not read.
    #[error(transparent)]
    Base(#[from] taper_base::Error),
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

    /// An [`Error::Config`].
    pub(crate) fn config(what: impl Into<String>) -> Self {
        Self::Config { what: what.into() }
    }

    /// An [`Error::Target`].
    pub(crate) fn target(what: impl Into<String>) -> Self {
        Self::Target { what: what.into() }
    }
}
