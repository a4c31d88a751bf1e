//! `aisp bench report`: the findings of all runs as Markdown.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::analysis::Source;
use crate::LabError;
use crate::analysis::{groups, report::markdown, scaling::curves};

/// Arguments of `aisp bench report`.
#[derive(Debug, Args)]
pub struct Report {
    /// File to write instead of the terminal
    #[arg(long, short)]
    output: Option<PathBuf>,
    #[command(flatten)]
    source: Source,
}

impl Report {
    /// Prints or writes the report; `--json` gives it the rows themselves.
    ///
    /// Errors: no runs, a file that cannot be written.
    pub fn run(self) -> Result<ExitCode, LabError> {
        let runs = self.source.runs()?;
        let groups = groups(&runs);
        let text = markdown(&groups, &curves(&runs));
        match &self.output {
            Some(path) => std::fs::write(path, text).map_err(LabError::io(path)).map(|()| ExitCode::SUCCESS),
            None => self.source.print(&groups, || text),
        }
    }
}
