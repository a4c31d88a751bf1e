//! `aisp bench`: the verbs around baseline/optimized pairs.

mod analysis;
mod analyze;
mod compare;
mod cost;
mod export;
mod list_targets;
mod power;
mod report;
pub(crate) mod run;
mod scaling;
mod stacking;
mod verify;
mod whatif;

use std::path::PathBuf;
use std::process::ExitCode;

use aisp_engine::{DeviceChoice, DeviceKind, EngineError};
use clap::{Args, Subcommand};

use crate::lab::LabContext;
use crate::stop::Stop;
use crate::{LabError, artifacts};

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Show what can be run
    ListTargets(list_targets::ListTargets),
    /// Measure labs and hold them against their expectations
    Run(run::Run),
    /// Set two runs side by side
    Compare(compare::Compare),
    /// Check that every arm gives the baseline's outputs, without taking any time
    Verify(verify::Verify),
    /// Measure which switches combine, which fight and which are wrong
    Stacking(stacking::Stacking),
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

/// What a GPU is measured with unless told otherwise: large enough to be bound by the card.
const GPU_MODEL: &str = "dummy:llama-3.2-1b";

/// What is run, and with what.
#[derive(Debug, Args)]
pub struct Targets {
    /// Labs: ids, areas such as ch01, or all
    #[arg(long, value_name = "TARGET,..", value_delimiter = ',', default_value = "all")]
    pub targets: Vec<String>,
    /// The model of labs that need one: built-in name, folder, .gguf file, hub id or dummy:SHAPE [default: story-12m;
    /// on a GPU, which it does not fill, dummy:llama-3.2-1b]
    #[arg(long, default_value = "", hide_default_value = true)]
    pub model: String,
    /// Where engines run: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: DeviceChoice,
    /// Feeds every draw
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The aisp-serve of labs that measure over HTTP [default: beside this program]
    #[arg(long, value_name = "FILE")]
    pub server: Option<PathBuf>,
}

/// What labs are prepared for.
///
/// Errors: a model that does not exist.
fn context(targets: &Targets) -> Result<LabContext, LabError> {
    let (server, device) = (targets.server.clone(), targets.device);
    let model = match (targets.model.as_str(), device.kind()) {
        ("", DeviceKind::Cuda) => GPU_MODEL,
        (model, _) => model,
    };
    Ok(LabContext { server, device, ..parsed_context(model, targets.seed)? })
}

/// A context that Ctrl-C ends.
///
/// Errors: a model that does not exist.
pub(crate) fn parsed_context(model: &str, seed: u64) -> Result<LabContext, LabError> {
    let model = model.parse().map_err(EngineError::from)?;
    Ok(LabContext { model, seed, stop: Stop::on_ctrl_c()?, ..LabContext::default() })
}

impl Bench {
    /// Carries the verb out.
    ///
    /// Errors: what the verb met.
    pub fn run(self) -> Result<ExitCode, LabError> {
        match self {
            Self::ListTargets(list) => list.run(),
            Self::Run(run) => run.run(),
            Self::Compare(compare) => compare.run(),
            Self::Verify(verify) => verify.run(),
            Self::Stacking(stacking) => stacking.run(),
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
