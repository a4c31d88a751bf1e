//! What a run leaves behind: plain data that every report, comparison and dashboard reads. Knows no clock and no file.

use std::collections::BTreeMap;

use aisp_kernels::Arithmetic;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of the files' layout; readers refuse others.
pub const SCHEMA: u32 = 1;

/// A run of one or more labs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Where, from what and how.
    pub manifest: Manifest,
    /// In order of execution.
    pub labs: Vec<LabRecord>,
    /// The run was stopped before its end: labs that were not finished are missing.
    pub partial: bool,
}

/// Where, from what and how a run was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`] when it was written.
    pub schema: u32,
    /// Name of the folder under `artifacts/`.
    pub run_id: String,
    /// Host name, system and architecture.
    pub machine: String,
    /// Model of the processor.
    pub cpu: String,
    /// Name of the device in paths, as in `expectations/<device>/`.
    pub device: String,
    /// Processors that the run may use.
    pub cores: usize,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// Load average of the last minute when the run began: other work on the machine shows here.
    pub load_average: Option<f64>,
    /// Commit of the sources; none outside a checkout.
    pub commit: Option<String>,
    /// The sources had changes that no commit holds.
    pub dirty: bool,
    /// `release`, or `debug`: figures of a debug build mean nothing.
    pub build: String,
    /// The command line.
    pub command: Vec<String>,
    /// Settings as they were after defaults.
    pub config: BTreeMap<String, Value>,
    /// Feeds every draw: workloads and bootstrap.
    pub seed: u64,
    /// When the run began, RFC 3339 in UTC.
    pub date: String,
}

/// What a lab is for: which figure of its row decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Goal {
    /// Less time for the same work.
    Speed,
    /// Less memory for the same work.
    Memory,
    /// More tokens or requests a second.
    Throughput,
    /// Less time for one request.
    Latency,
}

/// The outcome of one lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabRecord {
    /// `chapter:name` or `area:name`.
    pub id: String,
    /// The part of `id` before the colon.
    pub area: String,
    /// The part of `id` after the colon.
    pub name: String,
    /// One line: what is compared.
    pub summary: String,
    /// Which figure decides.
    pub goal: Goal,
    /// For instance `informational`.
    pub tags: Vec<String>,
    /// What both arms did in each iteration.
    pub workload: Workload,
    /// How equal outputs had to be, with the reason.
    pub tolerance: String,
    /// The plain arm.
    pub baseline: ArmRecord,
    /// The optimized arms, in the lab's order.
    pub variants: Vec<VariantRecord>,
    /// The baseline against itself, interleaved with the rest; none when the lab stopped before any time was taken.
    pub aa: Option<AaRecord>,
    /// Wall time of the whole lab, set-up and warm-up included.
    pub wall_s: f64,
}

/// The work of one iteration, the same for every arm.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Workload {
    /// One line.
    pub description: String,
    /// Hash of the inputs. Rows compare only when it is equal.
    pub fingerprint: String,
    /// Requests completed, if the work is made of requests.
    pub requests: Option<u64>,
    /// Tokens processed: prompt and answer.
    pub tokens: Option<u64>,
    /// Bytes that must be moved at least.
    pub bytes: Option<u64>,
    /// Arithmetic operations; a multiply-add is two.
    pub flops: Option<u64>,
}

/// What one arm did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArmRecord {
    /// Name within the lab.
    pub name: String,
    /// Switches asked for; empty for the plain baseline and for labs without switches.
    pub requested: Vec<String>,
    /// What became of each switch asked for.
    pub engaged: Vec<EngagedRecord>,
    /// Seconds of each measured iteration, in the order they were taken. Empty when the outputs were wrong.
    pub samples_s: Vec<f64>,
    /// Seconds of set-up: loading, building, compiling.
    pub setup_s: f64,
    /// Median of `samples_s`.
    pub median_s: Option<f64>,
    /// Memory; always there.
    pub memory: MemoryRecord,
    /// Figures of the lab's own, medians over iterations, with the unit in the name.
    pub metrics: BTreeMap<String, f64>,
    /// The same figures of every measured iteration.
    #[serde(default)]
    pub metric_samples: BTreeMap<String, Vec<f64>>,
    /// What this arm moved and computed against the machine's ceilings.
    pub roofline: Option<RooflineRecord>,
}

/// Whether a switch that was asked for really ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngagedRecord {
    /// The switch.
    pub name: String,
    /// It ran at least once.
    pub engaged: bool,
    /// How often it ran.
    pub count: u64,
    /// What `count` counts.
    pub counts: String,
    /// Why it did not run.
    pub reason: Option<String>,
}

/// Memory of one arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryRecord {
    /// Most resident memory of the process while the arm ran, the other arms' state included; none where the system
    /// does not say.
    pub peak_rss_bytes: Option<u64>,
    /// Most heap that set-up held on top of what was allocated before it.
    pub setup_allocated_bytes: u64,
    /// Most heap that an iteration held on top of what was allocated before it.
    pub peak_allocated_bytes: u64,
    /// What the lab itself says it kept reserved at its peak, for instance KV cache.
    pub reserved_bytes: Option<u64>,
}

impl MemoryRecord {
    /// The figure that memory is compared by: reserved bytes where the lab has them, the heap's peak elsewhere.
    pub fn deciding_bytes(&self) -> u64 {
        self.reserved_bytes.unwrap_or(self.peak_allocated_bytes)
    }
}

/// Achieved rates, and their part of what the machine can do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RooflineRecord {
    /// Bytes moved in an iteration.
    pub bytes: u64,
    /// Arithmetic operations of an iteration.
    pub flops: u64,
    /// 10^9 bytes a second.
    pub gbytes_per_s: f64,
    /// 10^9 operations a second.
    pub gflops_per_s: f64,
    /// Whose peak the operations were held against: `f32`, `bf16` or `int8`; none in files from before they differed.
    #[serde(default)]
    pub arithmetic: Option<String>,
    /// The ceiling that binds at this intensity.
    pub bound: Option<Bound>,
    /// Achieved over that ceiling; none until `aisp tools probe-hw` has measured this machine.
    pub share: Option<f64>,
}

/// Which ceiling binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Memory bandwidth.
    Memory,
    /// Arithmetic operations.
    Compute,
}

/// Ceilings of a machine as `aisp tools probe-hw` measured them; see [`crate::artifacts::ceilings_path`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// Name of the device in paths.
    pub device: String,
    /// Host name.
    pub host: String,
    /// When, RFC 3339 in UTC.
    pub date: String,
    /// Memory read by all cores, 10^9 bytes a second.
    pub read_gbytes_per_s: f64,
    /// Memory copied by all cores, bytes read plus bytes written, 10^9 a second.
    pub copy_gbytes_per_s: f64,
    /// Peak by type (`f32`, `bf16`, `int8`, `fp8`), 10^9 operations a second.
    pub peak_gflops_per_s: BTreeMap<String, f64>,
}

impl Ceilings {
    /// The peak of a kind of arithmetic, or of f32 where that kind was not measured. Units: 10^9 operations a second.
    pub fn peak_of(&self, arithmetic: Arithmetic) -> Option<f64> {
        let peak = |kind: Arithmetic| self.peak_gflops_per_s.get(kind.name()).copied();
        peak(arithmetic).or_else(|| peak(Arithmetic::F32))
    }
}

/// An optimized arm and how it compares with the baseline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VariantRecord {
    /// What it did.
    #[serde(flatten)]
    pub arm: ArmRecord,
    /// Whether its outputs passed.
    pub gate: GateRecord,
    /// What the measurement says.
    pub verdict: Verdict,
    /// The verdict as people read it: `faster x1.83 [1.79, 1.88]`.
    pub verdict_text: String,
    /// Time of the baseline over time of this arm, above 1 is faster; none when the outputs were wrong.
    pub speedup: Option<Ratio>,
    /// Memory of the baseline over memory of this arm, by [`MemoryRecord::deciding_bytes`]; above 1 is smaller.
    pub memory_savings: Option<f64>,
}

/// A ratio with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Ratio of the medians.
    pub ratio: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The result of the equality gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateRecord {
    /// Every output of every measured iteration was within the tolerance.
    pub passed: bool,
    /// Outputs compared.
    pub num_compared: u64,
    /// Largest distance seen, in the tolerance's measure.
    pub distance: f64,
    /// Largest distance allowed.
    pub allowed: f64,
    /// What was compared and, if it failed, where it first differed.
    pub detail: String,
}

/// The baseline against itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AaRecord {
    /// Seconds of the second series of the baseline.
    pub samples_s: Vec<f64>,
    /// First series over second.
    pub ratio: Ratio,
    /// Differences up to this are noise: `0.021` is ±2.1 %.
    pub noise: f64,
}

/// What a comparison says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Less time, beyond interval and noise.
    Faster,
    /// More time, beyond interval and noise.
    Slower,
    /// Inside interval or noise.
    NoDifference,
    /// The outputs differ: no speed is given.
    Wrong,
}

impl RunRecord {
    /// Finds a lab by its id.
    pub fn lab(&self, id: &str) -> Option<&LabRecord> {
        self.labs.iter().find(|lab| lab.id == id)
    }
}

impl LabRecord {
    /// Finds an optimized arm by name.
    pub fn variant(&self, name: &str) -> Option<&VariantRecord> {
        self.variants.iter().find(|variant| variant.arm.name == name)
    }
}

impl ArmRecord {
    /// Tokens a second at the median, for a workload that has tokens.
    pub fn tokens_per_s(&self, workload: &Workload) -> Option<f64> {
        Some(workload.tokens? as f64 / self.median_s?)
    }
}

#[cfg(test)]
pub(crate) mod samples {
    //! Records for tests.

    use super::*;

    pub(crate) fn arm(name: &str, samples_s: &[f64]) -> ArmRecord {
        ArmRecord {
            name: name.to_owned(),
            requested: Vec::new(),
            engaged: Vec::new(),
            samples_s: samples_s.to_vec(),
            setup_s: 0.5,
            median_s: samples_s.get(samples_s.len() / 2).copied(),
            memory: MemoryRecord { peak_allocated_bytes: 1 << 20, ..MemoryRecord::default() },
            metrics: BTreeMap::from([("tokens_per_s".to_owned(), 120.0)]),
            metric_samples: BTreeMap::new(),
            roofline: None,
        }
    }

    pub(crate) fn run(run_id: &str, speedup: Ratio) -> RunRecord {
        let variant = VariantRecord {
            arm: arm("paged", &[1.0, 1.0, 1.0]),
            gate: GateRecord { passed: true, num_compared: 9, distance: 0.0, allowed: 0.0, detail: "tokens".into() },
            verdict: Verdict::Faster,
            verdict_text: format!("faster x{:.2} [{:.2}, {:.2}]", speedup.ratio, speedup.low, speedup.high),
            speedup: Some(speedup),
            memory_savings: Some(1.0),
        };
        let lab = LabRecord {
            id: "ch13:kv_cache".into(),
            area: "ch13".into(),
            name: "kv_cache".into(),
            summary: "append".into(),
            goal: Goal::Speed,
            tags: Vec::new(),
            workload: Workload { fingerprint: "f00d".into(), tokens: Some(100), ..Workload::default() },
            tolerance: "bitwise: a copy is a copy".into(),
            baseline: arm("concatenate", &[2.0, 2.0, 2.0]),
            variants: vec![variant],
            aa: Some(AaRecord {
                samples_s: vec![2.0, 2.0, 2.0],
                ratio: Ratio { ratio: 1.0, low: 0.99, high: 1.01 },
                noise: 0.01,
            }),
            wall_s: 12.0,
        };
        let manifest = Manifest {
            schema: SCHEMA,
            run_id: run_id.to_owned(),
            machine: "host, linux, x86_64".into(),
            cpu: "a processor".into(),
            device: "cpu-test".into(),
            cores: 2,
            memory_bytes: 1 << 34,
            load_average: Some(0.1),
            commit: Some("c0ffee".into()),
            dirty: false,
            build: "release".into(),
            command: vec!["aisp".into(), "bench".into(), "run".into()],
            config: BTreeMap::new(),
            seed: 0,
            date: "2026-01-01T00:00:00Z".into(),
        };
        RunRecord { manifest, labs: vec![lab], partial: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_json() {
        let record = samples::run("r1", Ratio { ratio: 2.0, low: 1.9, high: 2.1 });
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<RunRecord>(&text).unwrap(), record);
    }
}
