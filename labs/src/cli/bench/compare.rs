//! `aisp bench compare A B`: what changed between two runs.

use std::process::ExitCode;

use clap::Args;

use super::Folders;
use crate::cli::output::print;
use crate::comparison::{Change, compare};
use crate::{LabError, artifacts};

/// Arguments of `aisp bench compare`.
#[derive(Debug, Args)]
pub struct Compare {
    /// The run to compare with: an id, a folder or a results.json
    before: String,
    /// The run to look at
    after: String,
    #[command(flatten)]
    folders: Folders,
}

impl Compare {
    /// Prints the changes; fails when one of them is for the worse.
    ///
    /// Errors: a run that cannot be read.
    pub fn run(self) -> Result<ExitCode, LabError> {
        let before = artifacts::read_run(&self.folders.artifacts, &self.before)?;
        let after = artifacts::read_run(&self.folders.artifacts, &self.after)?;
        let comparison = compare(&before, &after);
        print(&comparison.to_string())?;
        let worse = comparison.rows.iter().any(|row| matches!(row.change, Change::Worse | Change::NowWrong));
        Ok(if worse { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}
