//! `aisp bench export`: all rows for other programs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::analysis::Source;
use crate::LabError;
use crate::analysis::export::csv;
use crate::cli::output::print;

/// Arguments of `aisp bench export`.
#[derive(Debug, Args)]
pub struct Export {
    /// Format of the rows
    #[arg(long, value_enum, default_value_t = Format::Csv)]
    format: Format,
    /// File to write instead of the terminal
    #[arg(long, short)]
    output: Option<PathBuf>,
    #[command(flatten)]
    source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Csv,
    Json,
}

impl Export {
    /// Prints or writes the rows.
    ///
    /// Errors: no runs, a file that cannot be written.
    pub fn run(self) -> Result<ExitCode, LabError> {
        let groups = self.source.groups()?;
        let system = |error: serde_json::Error| LabError::System { what: "JSON", message: error.to_string() };
        let text = match self.format {
            Format::Csv if !self.source.json => csv(&groups),
            _ => serde_json::to_string_pretty(&groups).map_err(system)? + "\n",
        };
        match &self.output {
            Some(path) => std::fs::write(path, text).map_err(LabError::io(path))?,
            None => print(&text)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
