//! `aisp dashboard`: the stored runs as pages, on this machine only.

use std::process::ExitCode;

use clap::Args;

use super::bench::Folders;
use super::output::print_line;
use crate::{LabError, dashboard};

/// Arguments of `aisp dashboard`.
#[derive(Debug, Args)]
pub struct DashboardArgs {
    /// Port on 127.0.0.1
    #[arg(long, default_value_t = 8100)]
    port: u16,
    #[command(flatten)]
    folders: Folders,
}

impl DashboardArgs {
    /// Serves until Ctrl-C.
    ///
    /// Errors: a port that is taken.
    pub fn run(self) -> Result<ExitCode, LabError> {
        let folder = self.folders.artifacts.display().to_string();
        dashboard::serve(self.folders.artifacts, self.port, |address| {
            // A reader that has gone does not end the dashboard.
            let _ = print_line(&format!("dashboard of {folder} on http://{address} (Ctrl-C ends it)"));
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
