//! `aisp ab`: two stacks of optimizations against one another, in process or over HTTP as well.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use aisp_engine::optimizations::SelectionText;
use aisp_engine::{DeviceChoice, EngineError};
use bench_client::{Slo, hourly_price};
use clap::Args;
use serde_json::json;

use super::bench::{Folders, parsed_context, run::Sampling};
use super::output::{print, print_line};
use crate::ab::{AbLab, AbSettings, AbWorkload, Front, figures, find_binary, front_shares, markdown};
use crate::harness::Harness;
use crate::lab::LabContext;
use crate::labs::EngineSettings;
use crate::live::LiveFile;
use crate::progress::Bars;
use crate::record::{RunRecord, Verdict};
use crate::{LabError, artifacts, machine, report};

/// Arguments of `aisp ab`.
#[derive(Debug, Args)]
pub struct AbArgs {
    /// The stack to compare with: none, exact, all, NAME,NAME or all,-NAME
    #[arg(long, value_name = "SET", default_value = "none")]
    a: SelectionText,
    /// The stack to look at
    #[arg(long, value_name = "SET", default_value = "all")]
    b: SelectionText,
    /// Built-in name, folder, .gguf file, hub id or dummy:SHAPE
    #[arg(long, default_value = "")]
    model: String,
    /// Where engines run: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: DeviceChoice,
    /// Lengths of prompts and answers
    #[arg(long, value_enum, default_value_t = AbWorkload::Mixed)]
    workload: AbWorkload,
    /// Start an aisp-serve for each stack and load both, beside the engines in process
    #[arg(long)]
    http: bool,
    /// The aisp-serve to start [default: beside this program]
    #[arg(long, value_name = "FILE", requires = "http")]
    server: Option<PathBuf>,
    /// What makes a request good, in milliseconds
    #[arg(long, value_name = "NAME:MS", num_args = 1.., default_values = ["ttft:1000", "tpot:100"])]
    goodput: Vec<String>,
    /// Device whose price is paid
    #[arg(long, value_name = "NAME", default_value = "CPU")]
    gpu: String,
    /// USD per hour, instead of the device's price
    #[arg(long, value_name = "USD", conflicts_with = "gpu")]
    hourly_rate: Option<f64>,
    /// Feeds every draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    folders: Folders,
    /// Also write the results here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl AbArgs {
    /// Measures and prints; fails when B is wrong or the run was stopped.
    ///
    /// Errors: a model or a server that cannot run, files that cannot be written.
    pub fn run(self) -> Result<ExitCode, LabError> {
        let lab = self.lab()?;
        if self.http {
            find_binary(self.server.as_deref())?;
        }
        let context =
            LabContext { server: self.server.clone(), device: self.device, ..parsed_context(&self.model, self.seed)? };
        let manifest = machine::manifest(self.config(&context.model.to_string()), self.seed);
        let manifest = machine::on_device(manifest, self.device)?;
        if manifest.build != "release" {
            eprintln!("a debug build: figures mean nothing; use cargo run --release -p aisp");
        }
        let live = LiveFile::new(&self.folders.artifacts, &manifest.run_id, Bars::default());
        let config = self.sampling.harness(&self.folders, &manifest.device)?;
        let harness = Harness { config, context, progress: &live };
        let record = harness.run(&lab)?;
        let partial = harness.context.stop.is_requested();
        let right = record.as_ref().is_some_and(|record| record.variants.iter().all(|v| v.verdict != Verdict::Wrong));
        let run = RunRecord { manifest, labs: record.into_iter().collect(), partial };
        let mut page = report::markdown(&run);
        for record in &run.labs {
            let compared = markdown(record, &lab, self.seed);
            print(&compared)?;
            page += &compared;
        }
        if partial {
            print_line("stopped: what follows is missing")?;
        }
        let dir = artifacts::write_run(&self.folders.artifacts, &run, &page)?;
        if let Some(path) = &self.json {
            let compared = run.labs.iter().map(|record| {
                json!({ "figures": figures(record, self.seed), "http_share": front_shares(record, &lab, self.seed) })
            });
            let compared: Vec<_> = compared.collect();
            artifacts::write_json(path, &json!({ "run": run, "compared": compared }))?;
        }
        print_line(&format!("written to {}", dir.display()))?;
        Ok(if right && !partial { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn lab(&self) -> Result<AbLab, LabError> {
        let input = |error: bench_client::Error| LabError::Input(error.to_string());
        let slo = Slo::parse(self.goodput.iter().map(String::as_str)).map_err(input)?;
        let hourly_rate = match self.hourly_rate {
            Some(rate) if rate.is_finite() && rate >= 0.0 => rate,
            Some(rate) => return Err(LabError::Input(format!("--hourly-rate {rate}: give USD per hour, 0 or more"))),
            None => hourly_price(&self.gpu).map_err(input)?,
        };
        let engine = EngineSettings { slo, hourly_rate, ..EngineSettings::default() };
        let front = if self.http { Front::Http } else { Front::InProcess };
        let settings = AbSettings { workload: self.workload, engine };
        let stack = |text: &SelectionText| text.on(self.device.kind()).map_err(EngineError::from);
        Ok(AbLab { a: stack(&self.a)?, b: stack(&self.b)?, front, settings })
    }

    fn config(&self, model: &str) -> BTreeMap<String, serde_json::Value> {
        let entries = [
            ("a", json!(self.a.to_string())),
            ("b", json!(self.b.to_string())),
            ("model", json!(model)),
            ("device", json!(self.device.to_string())),
            ("workload", json!(format!("{:?}", self.workload).to_lowercase())),
            ("http", json!(self.http)),
            ("goodput", json!(self.goodput)),
            ("iterations", json!(self.sampling.iterations)),
            ("warmup", json!(self.sampling.warmup)),
            ("max_seconds", json!(self.sampling.max_seconds)),
            ("threads", json!(machine::num_threads())),
        ];
        entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}
