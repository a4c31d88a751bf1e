//! Everything that stops a run before or beside its measurements. A request that fails is not an [`Error`]: it is a
//! [`crate::RequestRecord`] whose outcome says so.

use std::path::PathBuf;

/// Why a run could not be set up or its result not be kept. Each message names the cause and the fix in one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting has a value that cannot be used.
    #[error("{setting}: {problem}; {fix}")]
    BadSetting {
        /// The flag, as typed on the command line.
        setting: &'static str,
        /// What is wrong with its value.
        problem: String,
        /// What to give instead.
        fix: String,
    },
    /// Nothing answers at the address.
    #[error("cannot reach {url} ({cause}): start the server with `make serve`, or point --base-url at one that runs")]
    ServerDown {
        /// The address tried.
        url: String,
        /// The operating system's or HTTP library's reason.
        cause: String,
    },
    /// The server wants a key, or another one.
    #[error("{url} answered {status}: give a valid key with --api-key or the variable OPENAI_API_KEY")]
    Unauthorized {
        /// The address asked.
        url: String,
        /// The HTTP status, 401 or 403.
        status: u16,
    },
    /// The model list gives no model to measure.
    #[error("{url} names no model ({problem}): name one with --model")]
    NoModel {
        /// The address asked.
        url: String,
        /// What the answer was instead.
        problem: String,
    },
    /// The wanted model is not one that the server has.
    #[error("the server has no model \"{wanted}\": pass --model with one of {available}, or leave it out")]
    UnknownModel {
        /// The model asked for.
        wanted: String,
        /// The names the server lists, joined.
        available: String,
    },
    /// The data set cannot be read.
    #[error("cannot read {path}: {cause}; check --dataset-path", path = .path.display())]
    DatasetUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// One entry of the data set is not what its format asks for.
    #[error("{path}, entry {entry}: {problem}", path = .path.display())]
    DatasetEntry {
        /// The file.
        path: PathBuf,
        /// The line of a JSONL file, or the position in a ShareGPT list; from 1.
        entry: usize,
        /// What is wrong and what is expected.
        problem: String,
    },
    /// The data set has too few prompts for every request to have its own.
    #[error(
        "{path} has {found} usable prompts and {needed} are needed ({warmups} of them for warm-up): lower --num-prompts, \
         or pass --allow-prompt-reuse and accept that a prefix cache will help", path = .path.display()
    )]
    DatasetTooSmall {
        /// The file.
        path: PathBuf,
        /// Usable prompts in it.
        found: usize,
        /// Prompts for the run and its warm-up.
        needed: usize,
        /// How many of those warm up.
        warmups: usize,
    },
    /// A warm-up request failed, so the measured ones would too.
    #[error("{failed} of {total} warm-up requests failed, the first with {example}: fix that, or set --num-warmups 0")]
    WarmupFailed {
        /// Failed warm-up requests.
        failed: usize,
        /// All warm-up requests.
        total: usize,
        /// The first failure.
        example: String,
    },
    /// The run was stopped before it began to measure.
    #[error("stopped before the first measured request")]
    StoppedEarly,
    /// The result cannot be written.
    #[error("cannot write {path}: {source}; give --save-result a path in a writable folder", path = .path.display())]
    ResultUnwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The operating system gave no threads or timers.
    #[error("cannot start the client's threads: {0}; check the limits of this process (ulimit -u, -n)")]
    Threads(std::io::Error),
}

impl Error {
    pub(crate) fn setting(setting: &'static str, problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::BadSetting { setting, problem: problem.into(), fix: fix.into() }
    }
}
