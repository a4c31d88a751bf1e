//! `aisp bench run`: measures labs, holds them against their expectations, leaves artifacts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{Folders, Targets, context};
use crate::cli::output::{print, print_line};
use crate::expectations::{self, Finding};
use crate::harness::{Harness, HarnessConfig};
use crate::live::LiveFile;
use crate::profile::{Profile, profile};
use crate::progress::Bars;
use crate::record::{LabRecord, RunRecord};
use crate::{LabError, artifacts, labs, machine, report, stats};

/// Arguments of `aisp bench run`.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    targets: Targets,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    folders: Folders,
    /// Folder of what labs must show
    #[arg(long, value_name = "DIR", default_value = expectations::DEFAULT_DIR)]
    expectations: PathBuf,
    /// Write new and better figures down; they hold for the built-in model
    #[arg(long, conflicts_with = "model")]
    update_expectations: bool,
    /// Write worse figures down too, with the reason
    #[arg(long, value_name = "WHY", requires = "update_expectations")]
    accept_regression: Option<String>,
    /// What is looked at beside the time
    #[arg(long, value_enum, default_value_t = Profile::None)]
    profile: Profile,
    /// Also write the results here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// How many samples.
#[derive(Debug, Args)]
pub struct Sampling {
    /// Replicates: each takes two samples of every arm, there and back
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(stats::MIN_REPLICATES as u64..))]
    pub iterations: u64,
    /// Iterations of each arm before any counts
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub warmup: u64,
    /// A lab that takes longer ends early, with three replicates at least
    #[arg(long, value_name = "S", default_value_t = 60)]
    pub max_seconds: u64,
}

impl Sampling {
    /// The harness's settings, with the ceilings of this device if they were measured.
    ///
    /// Errors: a file of ceilings that cannot be read.
    pub fn harness(&self, folders: &Folders, device: &str) -> Result<HarnessConfig, LabError> {
        Ok(HarnessConfig {
            num_replicates: self.iterations as usize,
            num_warmups: self.warmup as usize,
            budget: Duration::from_secs(self.max_seconds),
            ceilings: artifacts::read_ceilings(&folders.artifacts, device)?,
        })
    }
}

impl Run {
    /// Runs; fails on a wrong output or a regression.
    ///
    /// Errors: a lab that cannot run, files that cannot be written.
    pub fn run(self) -> Result<ExitCode, LabError> {
        let context = context(&self.targets)?;
        let found = labs::matching_on(&self.targets.targets, context.device.kind())?;
        let manifest = machine::manifest(self.config(&context.model.to_string()), self.targets.seed);
        let manifest = machine::on_device(manifest, context.device)?;
        if manifest.build != "release" {
            eprintln!("a debug build: figures mean nothing; use cargo run --release -p aisp");
        }
        let live = LiveFile::new(&self.folders.artifacts, &manifest.run_id, Bars::default());
        let harness =
            Harness { config: self.sampling.harness(&self.folders, &manifest.device)?, context, progress: &live };
        let mut run = RunRecord { manifest, labs: Vec::new(), partial: false };
        let mut holds = true;
        for lab in found {
            let record = match harness.run(lab.as_ref()) {
                Ok(record) => record,
                // The other labs still can.
                Err(error) => {
                    print_line(&format!("{}  failed: {error}", lab.info().id))?;
                    holds = false;
                    None
                }
            };
            run.partial |= harness.context.stop.is_requested();
            if let Some(record) = record {
                print(&report::lab_lines(&record))?;
                holds &= self.hold(&record, &run)?;
                run.labs.push(record);
            }
            if run.partial {
                print_line("stopped: what follows is missing")?;
                break;
            }
        }
        let dir = artifacts::write_run(&self.folders.artifacts, &run, &report::markdown(&run))?;
        if !run.partial {
            let again = ["bench", "run", "--iterations", "3", "--artifacts"].map(str::to_owned).into_iter().chain([
                dir.join("profiled").display().to_string(),
                "--targets".to_owned(),
                self.targets.targets.join(","),
                format!("--model={}", self.targets.model),
                format!("--device={}", self.targets.device),
            ]);
            let (again, ceilings) = (Vec::from_iter(again), harness.config.ceilings.as_ref());
            print(&profile(self.profile, &harness.context, ceilings, &dir, &again)?)?;
        }
        if let Some(path) = &self.json {
            artifacts::write_json(path, &run)?;
        }
        print_line(&format!("written to {}", dir.display()))?;
        Ok(if holds && !run.partial { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn config(&self, model: &str) -> BTreeMap<String, serde_json::Value> {
        let entries = [
            ("targets", json!(self.targets.targets)),
            ("model", json!(model)),
            ("device", json!(self.targets.device.to_string())),
            ("iterations", json!(self.sampling.iterations)),
            ("warmup", json!(self.sampling.warmup)),
            ("max_seconds", json!(self.sampling.max_seconds)),
            ("threads", json!(machine::num_threads())),
        ];
        entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Holds a lab against its expectation; false on a regression that was not accepted.
    fn hold(&self, lab: &LabRecord, run: &RunRecord) -> Result<bool, LabError> {
        let old = expectations::read(&self.expectations, &run.manifest.device, &lab.id)?;
        let mut holds = true;
        for (arm, finding) in expectations::check(old.as_ref(), lab) {
            match finding {
                Finding::Holds => {}
                Finding::Better(why) => print_line(&format!("  {arm}: better than expected: {why}"))?,
                Finding::Unknown(why) => print_line(&format!("  {arm}: {why}"))?,
                Finding::Worse(why) => {
                    print_line(&format!("  {arm}: REGRESSION: {why}"))?;
                    holds = false;
                }
            }
        }
        if !self.update_expectations {
            return Ok(holds);
        }
        let reason = self.accept_regression.as_deref();
        match expectations::updated(old.as_ref(), lab, &run.manifest, reason) {
            Some(new) => {
                let path = expectations::write(&self.expectations, &new)?;
                print_line(&format!("  expectation written to {}", path.display()))?;
                Ok(true)
            }
            None => Ok(holds),
        }
    }
}
