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
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] aisp_engine::EngineError),
    /// A tensor operation failed.
    #[error("a tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A lab that cannot be measured.
    #[error("lab {lab}: {message}")]
    BadLab {
        /// Its id.
        lab: String,
        /// What is wrong with it.
        message: String,
    },
    /// A target that is no lab.
    #[error("no lab matches `{target}`; `aisp bench list-targets` shows them")]
    UnknownTarget {
        /// What was asked for.
        target: String,
    },
    /// Somebody asked the run to end.
    #[error("stopped")]
    Stopped,
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
