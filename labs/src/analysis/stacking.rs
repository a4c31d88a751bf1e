//! Which switches combine: the gain of every measured set of switches, as a matrix of arms and switches.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::record::{Ratio, RunRecord, Verdict};

/// All arms of the newest run of a lab, with the switches that really ran in each.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stack {
    /// `chapter:name`.
    pub lab: String,
    /// Device that ran it.
    pub device: String,
    /// Run that it is from.
    pub run_id: String,
    /// All switches that some arm asked for: the columns.
    pub switches: Vec<String>,
    /// One an arm.
    pub arms: Vec<StackArm>,
}

/// One set of switches.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StackArm {
    /// Name within the lab.
    pub arm: String,
    /// One a column.
    pub cells: Vec<Cell>,
    /// What the measurement says.
    pub verdict: Verdict,
    /// As people read it.
    pub verdict_text: String,
    /// Gain over the baseline; none when the outputs were wrong.
    pub speedup: Option<Ratio>,
}

/// What became of a switch in an arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cell {
    /// Not asked for.
    Off,
    /// It ran.
    Engaged,
    /// Asked for, but it did not run.
    NotEngaged,
}

/// Stacks of every lab whose arms ask for switches, from the newest run of each on each device.
pub fn stacks(runs: &[RunRecord]) -> Vec<Stack> {
    let mut newest_first: Vec<&RunRecord> = runs.iter().collect();
    newest_first.sort_by(|a, b| b.manifest.date.cmp(&a.manifest.date));
    let mut seen = BTreeSet::new();
    let mut stacks = Vec::new();
    for run in newest_first {
        for lab in &run.labs {
            let asked = lab.variants.iter().flat_map(|variant| &variant.arm.requested);
            let mut switches: Vec<String> = Vec::new();
            for name in asked {
                if !switches.contains(name) {
                    switches.push(name.clone());
                }
            }
            if switches.is_empty() || !seen.insert((run.manifest.device.clone(), lab.id.clone())) {
                continue;
            }
            let arms = lab.variants.iter().map(|variant| StackArm {
                arm: variant.arm.name.clone(),
                cells: switches.iter().map(|name| cell(&variant.arm, name)).collect(),
                verdict: variant.verdict,
                verdict_text: variant.verdict_text.clone(),
                speedup: variant.speedup.filter(|_| variant.verdict != Verdict::Wrong),
            });
            let arms = arms.collect();
            let (device, run_id) = (run.manifest.device.clone(), run.manifest.run_id.clone());
            stacks.push(Stack { lab: lab.id.clone(), device, run_id, switches, arms });
        }
    }
    stacks
}

fn cell(arm: &crate::record::ArmRecord, switch: &str) -> Cell {
    if !arm.requested.iter().any(|name| name == switch) {
        return Cell::Off;
    }
    let ran = arm.engaged.iter().any(|engaged| engaged.name == switch && engaged.engaged);
    if ran { Cell::Engaged } else { Cell::NotEngaged }
}

#[cfg(test)]
mod tests {
    use super::super::rows::samples;
    use super::*;
    use crate::record::EngagedRecord;

    #[test]
    fn a_switch_asked_for_is_engaged_only_if_it_ran() {
        let mut run = samples::run("r", &[("one", 1.5, 50), ("both", 2.0, 50)]);
        let engaged = |name: &str, engaged| EngagedRecord {
            name: name.into(),
            engaged,
            count: u64::from(engaged),
            counts: "steps".into(),
            reason: None,
        };
        run.labs[0].variants[0].arm.requested = vec!["paged-kv".into()];
        run.labs[0].variants[0].arm.engaged = vec![engaged("paged-kv", true)];
        run.labs[0].variants[1].arm.requested = vec!["paged-kv".into(), "graphs".into()];
        run.labs[0].variants[1].arm.engaged = vec![engaged("paged-kv", true), engaged("graphs", false)];
        let stacks = stacks(&[run]);
        assert_eq!(stacks[0].switches, ["paged-kv", "graphs"]);
        assert_eq!(stacks[0].arms[0].cells, [Cell::Engaged, Cell::Off]);
        assert_eq!(stacks[0].arms[1].cells, [Cell::Engaged, Cell::NotEngaged]);
        assert!(super::stacks(&[samples::run("r", &[("paged", 2.0, 50)])]).is_empty(), "no switches, no matrix");
    }
}
