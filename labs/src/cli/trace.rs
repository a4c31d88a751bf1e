//! `aisp trace`: a trace of real steps, and a table of where the time went.

use std::path::PathBuf;
use std::process::ExitCode;

use aisp_engine::optimizations::SelectionText;
use aisp_engine::{DeviceChoice, EngineError};
use clap::Args;

use super::bench::{Folders, parsed_context};
use super::output::print_line;
use crate::ab::AbWorkload;
use crate::lab::LabContext;
use crate::labs::EngineSettings;
use crate::trace::{TraceSettings, phases, record, table};
use crate::{LabError, artifacts, machine};

/// Arguments of `aisp trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Built-in name, folder, .gguf file, hub id or dummy:SHAPE
    #[arg(long, default_value = "")]
    model: String,
    /// Optimizations: none, exact, all, NAME,NAME or all,-NAME
    #[arg(long, value_name = "SET", default_value = "all")]
    optimizations: SelectionText,
    /// Where the engine runs: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: DeviceChoice,
    /// Lengths of prompts and answers
    #[arg(long, value_enum, default_value_t = AbWorkload::Mixed)]
    workload: AbWorkload,
    /// Steps to record at most
    #[arg(long, value_name = "N", default_value_t = 200)]
    steps: usize,
    /// Feeds every draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The trace, for https://ui.perfetto.dev or chrome://tracing
    #[arg(short, long, value_name = "FILE", default_value = "trace.json")]
    output: PathBuf,
    #[command(flatten)]
    folders: Folders,
}

impl TraceArgs {
    /// Records, writes and prints.
    ///
    /// Errors: a model that cannot run, a file that cannot be written.
    pub fn run(self) -> Result<ExitCode, LabError> {
        if self.steps == 0 {
            return Err(LabError::Input("--steps 0 records nothing: give 1 or more".into()));
        }
        let context = LabContext { device: self.device, ..parsed_context(&self.model, self.seed)? };
        let selection = self.optimizations.on(self.device.kind()).map_err(EngineError::from)?;
        let mix = self.workload.mix();
        let engine = EngineSettings::default();
        let trace = record(&context, &TraceSettings { selection, mix, engine, max_steps: self.steps })?;
        let ceilings = artifacts::read_ceilings(&self.folders.artifacts, &machine::device_named(self.device)?)?;
        print_line(&table(&phases(&trace, ceilings.as_ref())).to_string())?;
        if ceilings.is_none() {
            print_line(&format!(
                "no ceilings of this device: `aisp tools probe-hw --device {}` measures them, then forward has its branch",
                self.device
            ))?;
        }
        artifacts::write_json(&self.output, &trace.to_chrome_json())?;
        let stopped = if context.stop.is_requested() { ", stopped early" } else { "" };
        print_line(&format!("{} steps{stopped}; trace written to {}", trace.steps.len(), self.output.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
