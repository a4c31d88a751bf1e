//! `aisp bench`: the verbs around baseline/optimized pairs.

mod compare;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::{LabError, artifacts};

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Set two runs side by side
    Compare(compare::Compare),
}

/// Where runs lie.
#[derive(Debug, Args)]
pub struct Folders {
    /// Folder of all runs
    #[arg(long, value_name = "DIR", default_value = artifacts::DEFAULT_DIR)]
    pub artifacts: PathBuf,
}

impl Bench {
    /// Carries the verb out.
    ///
    /// Errors: what the verb met.
    pub fn run(self) -> Result<ExitCode, LabError> {
        match self {
            Self::Compare(compare) => compare.run(),
        }
    }
}
