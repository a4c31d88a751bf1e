//! `aisp bench`: the verbs around baseline/optimized pairs.

mod analysis;
mod analyze;
mod compare;
mod cost;
mod export;
mod power;
mod report;
mod scaling;
mod whatif;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::{LabError, artifacts};

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Set two runs side by side
    Compare(compare::Compare),
    /// Leaderboards, Pareto frontier, trade-offs and advice from all runs
    Analyze(analyze::Analyze),
    /// Which rows would do under limits of memory, latency and throughput
    #[command(name = "whatif")]
    WhatIf(whatif::WhatIf),
    /// Dollars per million tokens, idle time paid
    Cost(cost::Cost),
    /// What the processor draws now
    Power(power::PowerArgs),
    /// How time grows with size: fitted exponents
    Scaling(scaling::Scaling),
    /// The findings of all runs as Markdown
    Report(report::Report),
    /// All rows as CSV or JSON
    Export(export::Export),
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
            Self::Analyze(analyze) => analyze.run(),
            Self::WhatIf(whatif) => whatif.run(),
            Self::Cost(cost) => cost.run(),
            Self::Power(power) => power.run(),
            Self::Scaling(scaling) => scaling.run(),
            Self::Report(report) => report.run(),
            Self::Export(export) => export.run(),
        }
    }
}
