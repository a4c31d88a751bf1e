//! `aisp tools probe-hw`: what this machine's memory and cores reach, measured, so that shares of a roofline mean
//! something. Knows no model and no engine.

mod bandwidth;
mod caches;
mod compute;
mod gpu;
mod machine;
mod report;
mod timing;

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use bandwidth::BandwidthRow;
pub use caches::CacheSize;
pub use compute::ComputeRow;
pub use gpu::GpuProbe;
pub use machine::ProbedMachine;
pub use timing::Reading;

use crate::record::Ceilings;

/// What the probe measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HardwareProbe {
    /// Name of the device in paths.
    pub device: String,
    /// Host name.
    pub host: String,
    /// When, RFC 3339 in UTC.
    pub date: String,
    /// Model of the processor.
    pub cpu: String,
    /// Processors that a process may use.
    pub cores: usize,
    /// Widest vector instructions that the probe's loops ran with.
    pub vector_instructions: String,
    /// Caches of the first core; empty where the system does not say.
    pub caches: Vec<CacheSize>,
    /// Load average when the probe began: above 0 other work took part of the machine.
    pub load_average: Option<f64>,
    /// Memory bandwidth by working set and threads.
    pub bandwidth: Vec<BandwidthRow>,
    /// Arithmetic by kind, type and threads.
    pub compute: Vec<ComputeRow>,
    /// What could not be measured, each with the reason.
    pub unavailable: Vec<String>,
    /// Seconds that the probe took.
    pub wall_s: f64,
}

/// Measures this machine; tells `progress` what comes next and the part done so far, from 0 to 1.
///
/// Cost: about 10 s and 512 MiB on two cores. The figures are best of several rounds: other work on the machine can only
/// lower them.
pub fn probe(machine: ProbedMachine, mut progress: impl FnMut(&str, f64)) -> HardwareProbe {
    let begin = Instant::now();
    let date = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let caches = caches::of_first_core();
    let mut bandwidth = Vec::new();
    let plan = bandwidth::plan(&caches, machine.cores);
    let num_steps = (plan.len() + compute::NUM_STEPS) as f64;
    for (at, step) in plan.iter().enumerate() {
        progress(&step.to_string(), at as f64 / num_steps);
        bandwidth.push(bandwidth::measure(step));
    }
    let done = plan.len();
    let (compute, unavailable) =
        compute::measure(machine.cores, |what, at| progress(what, (done + at) as f64 / num_steps));
    HardwareProbe {
        device: machine.device,
        host: machine.host,
        date,
        cpu: machine.cpu,
        cores: machine.cores,
        vector_instructions: compute::vector_instructions(),
        caches,
        load_average: machine.load_average,
        bandwidth,
        compute,
        unavailable,
        wall_s: begin.elapsed().as_secs_f64(),
    }
}

impl HardwareProbe {
    /// The ceilings that roofline shares are taken of: memory beyond the caches and peak arithmetic, the best of any
    /// number of threads. All cores together cannot be slower than one, unless other work took them.
    pub fn ceilings(&self) -> Ceilings {
        let memory = || self.bandwidth.iter().filter(|row| row.level == bandwidth::MEMORY);
        let most = |figures: &mut dyn Iterator<Item = f64>| figures.fold(0.0, f64::max);
        let mut peak_gflops_per_s = BTreeMap::new();
        for row in self.compute.iter().filter(|row| [compute::FMA, compute::DOT].contains(&row.kind.as_str())) {
            let peak = peak_gflops_per_s.entry(row.dtype.clone()).or_insert(0.0f64);
            *peak = peak.max(row.gflops_per_s.best);
        }
        Ceilings {
            device: self.device.clone(),
            host: self.host.clone(),
            date: self.date.clone(),
            read_gbytes_per_s: most(&mut memory().map(|row| row.read_gbytes_per_s.best)),
            copy_gbytes_per_s: most(&mut memory().map(|row| row.copy_gbytes_per_s.best)),
            peak_gflops_per_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(best: f64) -> Reading {
        Reading { best, median: best * 0.9, rounds: 3 }
    }

    fn bandwidth_row(level: &str, threads: usize, read: f64) -> BandwidthRow {
        let (read_gbytes_per_s, copy_gbytes_per_s) = (reading(read), reading(read * 0.8));
        BandwidthRow { level: level.into(), threads, working_set_bytes: 1 << 28, read_gbytes_per_s, copy_gbytes_per_s }
    }

    fn compute_row(kind: &str, dtype: &str, threads: usize, gflops: f64) -> ComputeRow {
        ComputeRow { kind: kind.into(), dtype: dtype.into(), threads, gflops_per_s: reading(gflops) }
    }

    #[test]
    fn ceilings_are_the_best_of_memory_and_of_arithmetic() {
        let probe = HardwareProbe {
            device: "cpu-test".into(),
            host: "here".into(),
            date: "2026-01-01T00:00:00Z".into(),
            cpu: "a processor".into(),
            cores: 2,
            vector_instructions: "AVX2".into(),
            caches: Vec::new(),
            load_average: None,
            bandwidth: vec![
                bandwidth_row("L2", 2, 300.0),
                bandwidth_row(bandwidth::MEMORY, 1, 25.0),
                bandwidth_row(bandwidth::MEMORY, 2, 31.0),
            ],
            compute: vec![
                compute_row(compute::FMA, "f32", 1, 120.0),
                compute_row(compute::FMA, "f32", 2, 234.0),
                compute_row(compute::DOT, "int8", 2, 900.0),
                compute_row("matmul", "bf16", 2, 180.0),
            ],
            unavailable: Vec::new(),
            wall_s: 9.0,
        };
        let ceilings = probe.ceilings();
        assert_eq!((ceilings.read_gbytes_per_s, ceilings.copy_gbytes_per_s), (31.0, 24.8));
        assert_eq!(
            ceilings.peak_gflops_per_s.into_iter().collect::<Vec<_>>(),
            [("f32".to_owned(), 234.0), ("int8".to_owned(), 900.0),]
        );
        let mut busy = probe.clone();
        busy.bandwidth[2] = bandwidth_row(bandwidth::MEMORY, 2, 20.0);
        assert_eq!(busy.ceilings().read_gbytes_per_s, 25.0, "one thread that is faster than all is believed");
        let shown = probe.to_string();
        assert!(shown.contains("31.0 GB/s") && shown.contains("234 GFLOP/s"), "{shown}");
    }
}
