//! The crate's own errors; the candle baselines keep candle's.

/// What can go wrong before a fast op runs. The ops themselves cannot fail.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A name that is no instruction set level.
    #[error("unknown instruction set `{name}`: choose one of {choices}")]
    UnknownIsa {
        /// The name that was given.
        name: String,
        /// Levels of this machine, comma-separated.
        choices: String,
    },
    /// A level that this machine lacks.
    #[error("this machine cannot run `{name}`: choose one of {choices}")]
    UnavailableIsa {
        /// The name that was given.
        name: &'static str,
        /// Levels of this machine, comma-separated.
        choices: String,
    },
    /// Matrices that cannot stand in one layer.
    #[error("part {part_idx} of a packed layer is {actual}, expected {expected}")]
    Shape {
        /// Position among the stacked matrices.
        part_idx: usize,
        /// Shape found.
        actual: String,
        /// Shape needed.
        expected: String,
    },
    /// An element type without a packed form.
    #[error("weights of type {dtype} cannot be packed: turn `fast-linear` off for this file")]
    UnsupportedType {
        /// The type's name.
        dtype: String,
    },
    /// The operating system gave no thread.
    #[error("cannot start worker thread {thread_idx}: {source}")]
    Thread {
        /// Index in the team.
        thread_idx: usize,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Reading a tensor failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl From<KernelError> for candle_core::Error {
    fn from(error: KernelError) -> Self {
        match error {
            KernelError::Candle(error) => error,
            error => Self::wrap(error),
        }
    }
}
