//! Everything that can go wrong in the lab.

use std::path::PathBuf;

/// An error of the lab. A `wrong` output or a regression is a result, not an error.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {message}", path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// Figures that cannot be true, or a name that is not known.
    #[error("{0}")]
    Input(String),
    /// The system refused something that is not a file.
    #[error("{what}: {message}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What came back.
        message: String,
    },
}

impl LabError {
    /// Names the file of an I/O error.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
