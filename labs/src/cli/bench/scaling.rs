//! `aisp bench scaling`: exponents fitted to measured sizes.

use std::process::ExitCode;

use clap::Args;

use super::analysis::Source;
use crate::LabError;
use crate::analysis::report::scaling_table;
use crate::analysis::scaling::curves;

/// Arguments of `aisp bench scaling`.
#[derive(Debug, Args)]
pub struct Scaling {
    #[command(flatten)]
    source: Source,
}

impl Scaling {
    /// Prints the exponent of each arm that was measured at three sizes or more.
    ///
    /// Errors: no runs.
    pub fn run(self) -> Result<ExitCode, LabError> {
        let curves = curves(&self.source.runs()?);
        self.source.print(&curves, || scaling_table(&curves).to_string())
    }
}
