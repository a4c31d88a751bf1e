//! `aisp bench list-targets`: what can be run.

use std::process::ExitCode;

use clap::Args;

use crate::cli::output::print_line;
use crate::{LabError, labs};

/// Arguments of `aisp bench list-targets`.
#[derive(Debug, Args)]
pub struct ListTargets {
    /// Only this area, for instance ch01
    #[arg(long, alias = "area", value_name = "AREA")]
    chapter: Option<String>,
}

impl ListTargets {
    /// Prints a line a lab.
    ///
    /// Errors: an area without labs.
    pub fn run(self) -> Result<ExitCode, LabError> {
        let found = labs::matching(&[self.chapter.unwrap_or_else(|| "all".to_owned())])?;
        let infos: Vec<_> = found.iter().map(|lab| lab.info()).collect();
        let width = infos.iter().map(|info| info.id.len()).max().unwrap_or(0);
        for info in infos {
            print_line(&format!("{:width$}  {}", info.id, info.summary))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
