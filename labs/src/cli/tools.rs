//! `aisp tools`: calculators, and the probe of this machine.

use std::fmt::Display;
use std::process::ExitCode;

use aisp_engine::DeviceChoice;
use aisp_kernels::Cost;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::bench::Folders;
use super::output::{print_json, print_line};
use crate::probe::{GpuProbe, HardwareProbe, ProbedMachine, probe};
use crate::record::Ceilings;
use crate::tools::cluster_size::{ClusterSizeArgs, cluster_size};
use crate::tools::cost_per_token::{CostPerTokenArgs, cost_per_token};
use crate::tools::kv_cache::{KvCacheArgs, kv_cache_size};
use crate::tools::roofline::{Roof, roofline};
use crate::{LabError, artifacts, machine};

/// Arguments of `aisp tools`.
#[derive(Debug, Args)]
pub struct Tools {
    /// Print JSON instead of text
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    tool: Tool,
}

#[derive(Debug, Subcommand)]
enum Tool {
    /// Memory that the keys and values of a batch take
    KvCache(KvCacheArgs),
    /// Dollars and joules of a token
    CostPerToken(CostPerTokenArgs),
    /// GPUs that a model needs to fit, and GPUs that a load needs
    ClusterSize(ClusterSizeArgs),
    /// Which ceiling binds a computation, and what share of it was reached
    Roofline(RooflineArgs),
    /// Measure this machine's memory and cores, or a GPU; the ceilings are kept for rooflines
    ProbeHw(ProbeArgs),
}

#[derive(Debug, Args)]
struct RooflineArgs {
    /// Floating-point operations; a multiply-add is two
    #[arg(long)]
    flops: f64,
    /// Bytes read and written
    #[arg(long)]
    bytes: f64,
    /// Measured time, in milliseconds
    #[arg(long)]
    time_ms: Option<f64>,
    /// Number format whose peak binds
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Whose probed ceilings: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: DeviceChoice,
    /// Peak, in 10^9 operations a second, instead of the probed one
    #[arg(long, requires = "bandwidth")]
    peak_gflops: Option<f64>,
    /// Memory bandwidth, in 10^9 bytes a second, instead of the probed one
    #[arg(long, requires = "peak_gflops")]
    bandwidth: Option<f64>,
    #[command(flatten)]
    folders: Folders,
}

#[derive(Debug, Args)]
struct ProbeArgs {
    /// What is measured: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: DeviceChoice,
    /// Show the last measurement of this device instead of a new one
    #[arg(long)]
    cached: bool,
    #[command(flatten)]
    folders: Folders,
}

impl Tools {
    /// Computes and prints.
    ///
    /// Errors: figures that cannot be true, ceilings that were never measured.
    pub fn run(self) -> Result<ExitCode, LabError> {
        match self.tool {
            Tool::KvCache(args) => print(&kv_cache_size(&args)?, self.json),
            Tool::CostPerToken(args) => print(&cost_per_token(&args)?, self.json),
            Tool::ClusterSize(args) => print(&cluster_size(&args)?, self.json),
            Tool::Roofline(args) => {
                let cost = Cost { bytes: whole("--bytes", args.bytes)?, flops: whole("--flops", args.flops)? };
                print(&roofline(cost, args.roof()?, args.time_ms.map(|ms| ms / 1000.0))?, self.json)
            }
            Tool::ProbeHw(args) => match args.device {
                DeviceChoice::Cpu => print(&args.probe()?, self.json),
                DeviceChoice::Cuda { index } => print(&args.probe_gpu(index)?, self.json),
            },
        }
    }
}

impl RooflineArgs {
    fn roof(&self) -> Result<Roof, LabError> {
        if let (Some(gflops), Some(gbytes)) = (self.peak_gflops, self.bandwidth) {
            return Ok(Roof { flops_per_s: gflops * 1e9, bytes_per_s: gbytes * 1e9 });
        }
        let device = machine::device_named(self.device)?;
        match artifacts::read_ceilings(&self.folders.artifacts, &device)? {
            Some(ceilings) => Roof::of(&ceilings, &self.dtype),
            None => Err(LabError::Input(format!(
                "no ceilings of {device} under {}: run `aisp tools probe-hw --device {}`, or give --peak-gflops and \
                 --bandwidth",
                self.folders.artifacts.display(),
                self.device
            ))),
        }
    }
}

impl ProbeArgs {
    fn probe(&self) -> Result<HardwareProbe, LabError> {
        let machine = ProbedMachine::this();
        if self.cached {
            return artifacts::read_json(&artifacts::probe_path(&self.folders.artifacts, &machine.device));
        }
        let bar = progress_bar();
        let probed = probe(machine, |next, done| advance(&bar, next, done));
        bar.finish_and_clear();
        self.keep(&probed, &probed.ceilings())?;
        Ok(probed)
    }

    fn probe_gpu(&self, index: usize) -> Result<GpuProbe, LabError> {
        let device = machine::device_named(self.device)?;
        if self.cached {
            return artifacts::read_json(&artifacts::probe_path(&self.folders.artifacts, &device));
        }
        let bar = progress_bar();
        let probed = GpuProbe::measure(index, device, |next, done| advance(&bar, next, done));
        bar.finish_and_clear();
        let probed = probed?;
        self.keep(&probed, &probed.ceilings())?;
        Ok(probed)
    }

    /// Leaves all figures, and the ceilings that rooflines read.
    fn keep(&self, probed: &impl Serialize, ceilings: &Ceilings) -> Result<(), LabError> {
        let dir = &self.folders.artifacts;
        std::fs::create_dir_all(dir).map_err(LabError::io(dir))?;
        artifacts::write_json(&artifacts::probe_path(dir, &ceilings.device), probed)?;
        artifacts::write_json(&artifacts::ceilings_path(dir, &ceilings.device), ceilings)
    }
}

fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(100);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}") {
        bar.set_style(style);
    }
    bar
}

fn advance(bar: &ProgressBar, next: &str, done: f64) {
    bar.set_position((done * 100.0) as u64);
    bar.set_message(next.to_owned());
}

fn whole(name: &str, value: f64) -> Result<u64, LabError> {
    if value >= 0.0 && value < u64::MAX as f64 {
        Ok(value.round() as u64)
    } else {
        Err(LabError::Input(format!("{name} must be a count, it is {value}")))
    }
}

fn print<T: Display + Serialize>(answer: &T, json: bool) -> Result<ExitCode, LabError> {
    if json {
        print_json(answer)?
    } else {
        print_line(&answer.to_string())?
    }
    Ok(ExitCode::SUCCESS)
}
