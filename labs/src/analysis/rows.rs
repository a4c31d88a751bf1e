//! Rows that may be compared: the arms of one lab over one workload, taken interleaved in one run.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::record::{ArmRecord, Goal, LabRecord, Ratio, RunRecord, VariantRecord, Verdict, Workload};

/// The arms of a lab in the newest run that has this workload on this device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// `chapter:name`.
    pub lab: String,
    /// One line: what is compared.
    pub summary: String,
    /// Which figure decides.
    pub goal: Goal,
    /// Device that ran it.
    pub device: String,
    /// Hash of the inputs.
    pub workload: String,
    /// Run that the rows are from.
    pub run_id: String,
    /// When that run began.
    pub date: String,
    /// The run is a debug build: its figures mean nothing.
    pub debug_build: bool,
    /// Differences in time up to this are noise; none when no A/A was taken.
    pub noise: Option<f64>,
    /// Baseline first.
    pub rows: Vec<Row>,
}

/// One arm.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Name within the lab.
    pub arm: String,
    /// The plain arm.
    pub is_baseline: bool,
    /// None for the baseline.
    pub verdict: Option<Verdict>,
    /// `faster x1.83 [1.79, 1.88]`, `baseline`, ..
    pub verdict_text: String,
    /// Median seconds of an iteration; none when the outputs were wrong.
    pub median_s: Option<f64>,
    /// Latency of a request: the lab's own figure where it has one, else that of an iteration, in milliseconds.
    pub latency_ms: Option<f64>,
    /// Work a second; none when the outputs were wrong.
    pub rate: Option<Rate>,
    /// Peak memory; none where it is not known, never 0.
    pub memory_bytes: Option<u64>,
    /// Time of the baseline over time of this arm.
    pub speedup: Option<Ratio>,
    /// Memory of the baseline over memory of this arm.
    pub memory_savings: Option<f64>,
    /// Switches asked for that did not run, with the reason.
    pub not_engaged: Vec<String>,
    /// Achieved over the ceiling that binds.
    pub roofline_share: Option<f64>,
}

/// Work a second with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rate {
    /// How much.
    pub per_s: f64,
    /// Of what: `tokens`, `requests` or `iterations`.
    pub unit: &'static str,
}

/// Metrics that are a request's latency, best known first.
const LATENCY_METRICS: [&str; 4] = ["e2el_p50_ms", "latency_ms", "ttft_p50_ms", "itl_p50_ms"];

/// Groups of all runs, newest run first for each device, lab and workload.
pub fn groups(runs: &[RunRecord]) -> Vec<Group> {
    let mut newest_first: Vec<&RunRecord> = runs.iter().collect();
    newest_first.sort_by(|a, b| b.manifest.date.cmp(&a.manifest.date));
    let mut seen = BTreeSet::new();
    let mut groups = Vec::new();
    for run in newest_first {
        for lab in &run.labs {
            if seen.insert((run.manifest.device.clone(), lab.id.clone(), lab.workload.fingerprint.clone())) {
                groups.push(group(run, lab));
            }
        }
    }
    groups.sort_by(|a, b| (&a.lab, &a.device, &a.workload).cmp(&(&b.lab, &b.device, &b.workload)));
    groups
}

fn group(run: &RunRecord, lab: &LabRecord) -> Group {
    let mut rows = vec![row(&lab.baseline, &lab.workload, None)];
    rows.extend(lab.variants.iter().map(|variant| row(&variant.arm, &lab.workload, Some(variant))));
    Group {
        lab: lab.id.clone(),
        summary: lab.summary.clone(),
        goal: lab.goal,
        device: run.manifest.device.clone(),
        workload: lab.workload.fingerprint.clone(),
        run_id: run.manifest.run_id.clone(),
        date: run.manifest.date.clone(),
        debug_build: run.manifest.build != "release",
        noise: lab.aa.as_ref().map(|aa| aa.noise),
        rows,
    }
}

fn row(arm: &ArmRecord, workload: &Workload, variant: Option<&VariantRecord>) -> Row {
    let wrong = variant.is_some_and(|variant| variant.verdict == Verdict::Wrong || !variant.gate.passed);
    let median_s = arm.median_s.filter(|seconds| !wrong && *seconds > 0.0);
    let own_latency = LATENCY_METRICS.iter().find_map(|name| arm.metrics.get(*name).copied());
    let known = Some(arm.memory.deciding_bytes()).filter(|bytes| *bytes > 0);
    let idle = arm.engaged.iter().filter(|engaged| !engaged.engaged);
    Row {
        arm: arm.name.clone(),
        is_baseline: variant.is_none(),
        verdict: variant.map(|variant| variant.verdict),
        verdict_text: variant.map_or("baseline".to_owned(), |variant| variant.verdict_text.clone()),
        median_s,
        latency_ms: median_s.map(|seconds| own_latency.unwrap_or(seconds * 1000.0)),
        rate: median_s.map(|seconds| rate(workload, seconds)),
        memory_bytes: known.or(arm.memory.peak_rss_bytes).filter(|bytes| *bytes > 0),
        speedup: variant.and_then(|variant| variant.speedup).filter(|_| !wrong),
        memory_savings: variant.and_then(|variant| variant.memory_savings).filter(|_| !wrong),
        not_engaged: idle.map(|idle| reason(&idle.name, idle.reason.as_deref())).collect(),
        roofline_share: arm.roofline.as_ref().and_then(|roofline| roofline.share).filter(|_| !wrong),
    }
}

fn rate(workload: &Workload, seconds: f64) -> Rate {
    let (amount, unit) = match (workload.tokens, workload.requests) {
        (Some(tokens), _) => (tokens as f64, "tokens"),
        (None, Some(requests)) => (requests as f64, "requests"),
        (None, None) => (1.0, "iterations"),
    };
    Rate { per_s: amount / seconds, unit }
}

fn reason(name: &str, reason: Option<&str>) -> String {
    format!("{name}: {}", reason.unwrap_or("no reason given"))
}

#[cfg(test)]
pub(crate) mod samples {
    //! Runs for the tests of all analyses.

    use super::*;
    use crate::record::samples;

    /// A run whose lab has the baseline `concatenate` and an arm for each (name, speed-up, memory in MiB).
    pub(crate) fn run(run_id: &str, arms: &[(&str, f64, u64)]) -> RunRecord {
        let mut run = samples::run(run_id, Ratio { ratio: 2.0, low: 1.9, high: 2.1 });
        let lab = &mut run.labs[0];
        lab.baseline.memory.peak_allocated_bytes = 100 << 20;
        let template = lab.variants[0].clone();
        let arm = |(name, speedup, mib): &(&str, f64, u64)| {
            let mut variant = template.clone();
            let seconds = 2.0 / speedup;
            variant.arm = samples::arm(name, &[seconds; 3]);
            variant.arm.memory.peak_allocated_bytes = mib << 20;
            variant.speedup = Some(Ratio { ratio: *speedup, low: speedup * 0.98, high: speedup * 1.02 });
            variant.verdict = if *speedup > 1.0 { Verdict::Faster } else { Verdict::Slower };
            variant.verdict_text = format!("x{speedup:.2}");
            variant.memory_savings = Some(100.0 / *mib as f64);
            variant
        };
        lab.variants = arms.iter().map(arm).collect();
        run
    }

    pub(crate) fn wrong(run: &mut RunRecord, arm: usize) {
        let variant = &mut run.labs[0].variants[arm];
        variant.verdict = Verdict::Wrong;
        variant.verdict_text = "wrong (3 tokens)".into();
        variant.gate.passed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RooflineRecord;

    #[test]
    fn the_newest_run_of_a_workload_counts() {
        let mut old = samples::run("old", &[("paged", 2.0, 50)]);
        old.manifest.date = "2025-01-01T00:00:00Z".into();
        let new = samples::run("new", &[("paged", 1.5, 50)]);
        let mut other = samples::run("other", &[("paged", 3.0, 50)]);
        other.labs[0].workload.fingerprint = "beef".into();
        let groups = groups(&[old, new, other]);
        let runs: Vec<_> = groups.iter().map(|group| group.run_id.as_str()).collect();
        assert_eq!(runs, ["other", "new"], "one group a workload");
        // 100 tokens in 2 s and in 2 / 1.5 s.
        let rates: Vec<_> = groups[1].rows.iter().map(|row| row.rate.unwrap().per_s).collect();
        assert_eq!(rates, [50.0, 75.0]);
    }

    #[test]
    fn wrong_outputs_have_no_speed_and_no_rate() {
        let mut run = samples::run("r", &[("paged", 2.0, 50)]);
        samples::wrong(&mut run, 0);
        run.labs[0].variants[0].arm.roofline = Some(RooflineRecord {
            bytes: 1,
            flops: 1,
            gbytes_per_s: 1.0,
            gflops_per_s: 1.0,
            arithmetic: None,
            bound: None,
            share: Some(0.9),
        });
        let row = groups(&[run]).remove(0).rows.remove(1);
        assert_eq!((row.rate, row.speedup, row.median_s, row.latency_ms), (None, None, None, None));
        assert_eq!(row.roofline_share, None, "a share of the roof is a speed too");
    }

    #[test]
    fn missing_memory_is_unknown() {
        let run = samples::run("r", &[("paged", 2.0, 0)]);
        assert_eq!(groups(&[run])[0].rows[1].memory_bytes, None);
    }
}
