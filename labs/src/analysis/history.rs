//! The gain of each arm from run to run, with its interval. Gains compare across runs; seconds do not.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::record::{Ratio, RunRecord, Verdict};

/// One arm over time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct History {
    /// `chapter:name`.
    pub lab: String,
    /// Name within the lab.
    pub arm: String,
    /// Device that ran it.
    pub device: String,
    /// Hash of the inputs.
    pub workload: String,
    /// Oldest first.
    pub entries: Vec<Entry>,
}

/// One arm in one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// The run.
    pub run_id: String,
    /// When it began.
    pub date: String,
    /// Commit of the sources.
    pub commit: Option<String>,
    /// The sources had changes that no commit holds.
    pub dirty: bool,
    /// What the measurement said.
    pub verdict: Verdict,
    /// The gain with its interval; none when the outputs were wrong.
    pub speedup: Option<Ratio>,
    /// Differences up to this were noise.
    pub noise: Option<f64>,
}

/// Histories of all optimized arms.
pub fn histories(runs: &[RunRecord]) -> Vec<History> {
    let mut oldest_first: Vec<&RunRecord> = runs.iter().collect();
    oldest_first.sort_by(|a, b| a.manifest.date.cmp(&b.manifest.date));
    let mut found: BTreeMap<(String, String, String, String), Vec<Entry>> = BTreeMap::new();
    for run in oldest_first {
        let manifest = &run.manifest;
        for lab in &run.labs {
            for variant in &lab.variants {
                let arm = (lab.id.clone(), variant.arm.name.clone());
                let key = (arm.0, arm.1, manifest.device.clone(), lab.workload.fingerprint.clone());
                found.entry(key).or_default().push(Entry {
                    run_id: manifest.run_id.clone(),
                    date: manifest.date.clone(),
                    commit: manifest.commit.clone(),
                    dirty: manifest.dirty,
                    verdict: variant.verdict,
                    speedup: variant.speedup.filter(|_| variant.verdict != Verdict::Wrong),
                    noise: lab.aa.as_ref().map(|aa| aa.noise),
                });
            }
        }
    }
    let history = |((lab, arm, device, workload), entries)| History { lab, arm, device, workload, entries };
    found.into_iter().map(history).collect()
}

#[cfg(test)]
mod tests {
    use super::super::rows::samples;
    use super::*;

    #[test]
    fn runs_are_in_order_and_wrong_ones_have_no_gain() {
        let mut old = samples::run("old", &[("paged", 2.0, 50)]);
        old.manifest.date = "2025-01-01T00:00:00Z".into();
        let mut new = samples::run("new", &[("paged", 3.0, 50)]);
        samples::wrong(&mut new, 0);
        let histories = histories(&[new, old]);
        let gains: Vec<_> =
            histories[0].entries.iter().map(|it| (it.run_id.as_str(), it.speedup.map(|it| it.ratio))).collect();
        assert_eq!(gains, [("old", Some(2.0)), ("new", None)]);
    }
}
