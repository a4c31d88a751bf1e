//! What the verbs that read all runs share: where the runs lie, which of them, text or JSON.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::Folders;
use crate::analysis::{Group, groups};
use crate::cli::output::{print_json, print_line};
use crate::record::RunRecord;
use crate::{LabError, artifacts};

/// Which runs are read, and how the answer is printed.
#[derive(Debug, Args)]
pub struct Source {
    #[command(flatten)]
    folders: Folders,
    /// Only labs whose id starts with this: `ch13`, `ch13:kv_cache`
    #[arg(long, default_value = "")]
    lab: String,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

impl Source {
    /// All runs that can be read, cut down to the labs asked for. Those that cannot be read are named on stderr.
    ///
    /// Errors: a folder that cannot be listed; no run at all.
    pub fn runs(&self) -> Result<Vec<RunRecord>, LabError> {
        let (mut runs, unreadable) = artifacts::read_all(&self.folders.artifacts)?;
        for reason in unreadable {
            eprintln!("passed over {reason}");
        }
        for run in &mut runs {
            run.labs.retain(|lab| lab.id.starts_with(&self.lab));
        }
        runs.retain(|run| !run.labs.is_empty());
        if runs.is_empty() {
            let folder = self.folders.artifacts.display();
            let which = if self.lab.is_empty() { String::new() } else { format!(" of {}", self.lab) };
            return Err(LabError::Input(format!("no runs{which} under {folder}: `aisp bench run` makes one")));
        }
        Ok(runs)
    }

    /// The rows of these runs that may be compared.
    ///
    /// Errors: as [`Source::runs`].
    pub fn groups(&self) -> Result<Vec<Group>, LabError> {
        Ok(groups(&self.runs()?))
    }

    /// Prints `answer` as JSON if that was asked for, `text` otherwise.
    ///
    /// Errors: an answer that cannot be JSON.
    pub fn print(&self, answer: &impl Serialize, text: impl FnOnce() -> String) -> Result<ExitCode, LabError> {
        if self.json {
            print_json(answer)?
        } else {
            print_line(&text())?
        }
        Ok(ExitCode::SUCCESS)
    }
}
