//! `aisp bench whatif`: which rows would do under limits.

use std::process::ExitCode;

use clap::Args;

use super::analysis::Source;
use crate::LabError;
use crate::analysis::whatif::{Fit, Limits, whatif};
use crate::table::Table;

/// Arguments of `aisp bench whatif`.
#[derive(Debug, Args)]
pub struct WhatIf {
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    source: Source,
}

impl WhatIf {
    /// Prints every row with its answer.
    ///
    /// Errors: no limit, no runs.
    pub fn run(self) -> Result<ExitCode, LabError> {
        if self.limits == Limits::default() {
            return Err(LabError::Input(
                "give a limit: --vram GiB, --latency ms or --throughput per second".to_owned(),
            ));
        }
        let groups = self.source.groups()?;
        let candidates = whatif(&groups, &self.limits);
        self.source.print(&candidates, || {
            let mut table = Table::new(&["fits", "lab", "device", "arm", "why not"]);
            for it in &candidates {
                let fit = match it.fit {
                    Fit::Fits => "yes",
                    Fit::Unknown => "unknown",
                    Fit::DoesNotFit => "no",
                };
                table.row([fit, it.lab, it.device, &it.row.arm, &it.reasons.join("; ")].map(str::to_owned));
            }
            table.to_string()
        })
    }
}
