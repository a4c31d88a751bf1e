//! `aisp tools cluster-size`: GPUs that a model needs to fit, and GPUs that a load needs.

use std::fmt;

use serde::Serialize;

use super::checks::{not_negative, positive, refuse, share};
use super::dtype::Dtype;
use crate::{LabError, units};

/// More is a typing error.
const MOST_GPUS: f64 = 1e9;
const BYTES_PER_GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// A model, a GPU and a load.
#[derive(Debug, Clone, clap::Args)]
pub struct ClusterSizeArgs {
    /// Parameters of the model, in billions
    #[arg(long)]
    pub params: f64,
    /// Format of the weights
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    pub dtype: Dtype,
    /// Memory of one GPU, in GiB
    #[arg(long)]
    pub gpu_memory: f64,
    /// Share of it that weights and KV cache may fill
    #[arg(long, default_value_t = 0.9)]
    pub gpu_memory_utilization: f64,
    /// KV cache that one replica must hold, in GiB (`aisp tools kv-cache` computes it)
    #[arg(long, default_value_t = 0.0)]
    pub kv_cache: f64,
    /// Tokens a second that all GPUs together must bring
    #[arg(long)]
    pub throughput: f64,
    /// Tokens a second that one GPU brings, measured with the model spread over as many as it needs
    #[arg(long)]
    pub gpu_throughput: f64,
    /// Price of one GPU, in dollars per hour
    #[arg(long)]
    pub rate: Option<f64>,
}

/// What asks for the most GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClusterBinding {
    /// One replica serves the load; it needs its GPUs to fit.
    Memory,
    /// More than one replica is needed.
    Load,
}

/// GPUs needed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClusterSize {
    /// All GPUs: replicas x GPUs of a replica.
    pub gpus: u64,
    /// GPUs that weights and KV cache of one replica need, as the power of two that tensor parallelism takes.
    pub gpus_per_replica: u64,
    /// GPUs that the load alone asks for.
    pub gpus_for_load: u64,
    /// Copies of the model.
    pub replicas: u64,
    /// Which of the two asks for more.
    pub binding: ClusterBinding,
    /// Bytes of the weights.
    pub weight_bytes: f64,
    /// Bytes of one GPU that may be filled.
    pub usable_bytes_per_gpu: f64,
    /// Share of the cluster's throughput that the load uses; the idle rest is paid too.
    pub load_share: f64,
    /// Dollars an hour, where a rate was given.
    pub usd_per_hour: Option<f64>,
    /// Dollars per million tokens at the wanted throughput, where a rate was given.
    pub usd_per_million_tokens: Option<f64>,
}

/// GPUs for memory: (weights + KV cache) over usable memory, rounded up to a power of two. GPUs for load: wanted over
/// delivered throughput, rounded up to whole replicas.
///
/// Errors: a figure that is not positive, a share outside (0, 1], more than a billion GPUs.
pub fn cluster_size(args: &ClusterSizeArgs) -> Result<ClusterSize, LabError> {
    let weight_bytes = positive("--params", args.params)? * 1e9 * args.dtype.bytes();
    let utilization = share("--gpu-memory-utilization", args.gpu_memory_utilization)?;
    let usable_bytes_per_gpu = positive("--gpu-memory", args.gpu_memory)? * BYTES_PER_GIB * utilization;
    let kv_bytes = not_negative("--kv-cache", args.kv_cache)? * BYTES_PER_GIB;
    let wanted = positive("--throughput", args.throughput)?;
    let delivered = positive("--gpu-throughput", args.gpu_throughput)?;
    let rate = args.rate.map(|rate| not_negative("--rate", rate)).transpose()?;

    let gpus_to_fit = count((weight_bytes + kv_bytes) / usable_bytes_per_gpu)?;
    let gpus_per_replica = gpus_to_fit.next_power_of_two();
    let gpus_for_load = count(wanted / delivered)?;
    let replicas = gpus_for_load.div_ceil(gpus_per_replica);
    let gpus = replicas * gpus_per_replica;
    let usd_per_hour = rate.map(|rate| rate * gpus as f64);
    Ok(ClusterSize {
        gpus,
        gpus_per_replica,
        gpus_for_load,
        replicas,
        binding: if replicas > 1 { ClusterBinding::Load } else { ClusterBinding::Memory },
        weight_bytes,
        usable_bytes_per_gpu,
        load_share: wanted / (delivered * gpus as f64),
        usd_per_hour,
        usd_per_million_tokens: usd_per_hour.map(|usd| usd / (wanted * 3600.0) * 1e6),
    })
}

fn count(value: f64) -> Result<u64, LabError> {
    let count = value.ceil();
    if count <= MOST_GPUS {
        Ok(count as u64)
    } else {
        refuse(format!("{count} GPUs are no cluster: check the figures"))
    }
}

impl fmt::Display for ClusterSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binding = match self.binding {
            ClusterBinding::Memory => "memory binds: one replica carries the load",
            ClusterBinding::Load => "load binds",
        };
        writeln!(f, "GPUs            {} = {} replicas x {}", self.gpus, self.replicas, self.gpus_per_replica)?;
        writeln!(f, "  to fit        {} a replica (power of two)", self.gpus_per_replica)?;
        writeln!(f, "  for the load  {}", self.gpus_for_load)?;
        writeln!(f, "binding         {binding}")?;
        writeln!(f, "weights         {}", units::bytes(self.weight_bytes))?;
        writeln!(f, "load            {:.0} % of what the cluster can bring", self.load_share * 100.0)?;
        if let (Some(hour), Some(million)) = (self.usd_per_hour, self.usd_per_million_tokens) {
            let (hour, million) = (units::dollars(hour), units::dollars(million));
            writeln!(f, "cost            {hour} an hour, {million} per million tokens, idle share included")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama_70b() -> ClusterSizeArgs {
        ClusterSizeArgs {
            params: 70.0,
            dtype: Dtype::Bf16,
            gpu_memory: 80.0,
            gpu_memory_utilization: 0.9,
            kv_cache: 5.0,
            throughput: 10_000.0,
            gpu_throughput: 600.0,
            rate: Some(3.5),
        }
    }

    #[test]
    fn counts_are_those_computed_by_hand() {
        // 140 GB + 5 GiB over 72 GiB: 1.88, so 2 GPUs; 10 000 / 600 = 16.7, so 17 GPUs, so 9 replicas of 2.
        let size = cluster_size(&llama_70b()).unwrap();
        assert_eq!((size.gpus_per_replica, size.gpus_for_load, size.replicas, size.gpus), (2, 17, 9, 18));
        assert_eq!(size.binding, ClusterBinding::Load);
        assert_eq!(size.usd_per_hour, Some(63.0));
        assert!((size.usd_per_million_tokens.unwrap() - 1.75).abs() < 1e-12);
        assert!((size.load_share - 10_000.0 / 10_800.0).abs() < 1e-12);

        // Three GPUs would fit it; tensor parallelism takes four. One replica carries a small load.
        let small = ClusterSizeArgs { kv_cache: 50.0, throughput: 100.0, rate: None, ..llama_70b() };
        let size = cluster_size(&small).unwrap();
        assert_eq!((size.gpus_per_replica, size.replicas, size.gpus), (4, 1, 4));
        assert_eq!((size.binding, size.usd_per_hour), (ClusterBinding::Memory, None));
    }

    #[test]
    fn impossible_figures_are_refused() {
        let refused = |args: ClusterSizeArgs, part: &str| {
            let error = cluster_size(&args).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(ClusterSizeArgs { gpu_memory: 0.0, ..llama_70b() }, "--gpu-memory must be above 0");
        refused(
            ClusterSizeArgs { gpu_memory_utilization: 1.1, ..llama_70b() },
            "--gpu-memory-utilization must be above 0",
        );
        refused(ClusterSizeArgs { params: 1e300, ..llama_70b() }, "are no cluster");
        refused(ClusterSizeArgs { rate: Some(-1.0), ..llama_70b() }, "--rate must be at least 0");
    }
}
