//! Where the time of a trace went, and which branch of the decision tree each phase is on.

use std::fmt;

use aisp_engine::model::WorkTotals;
use serde::Serialize;

use super::{Step, Trace};
use crate::record::{Bound, Ceilings};
use crate::roofline::{ArmWork, LeastTime};
use crate::table::Table;
use crate::units;

/// A phase that takes this many times longer than its ceiling allows is bound by neither ceiling.
const FAR_FROM_ROOF: f64 = 4.0;

/// What binds a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Branch {
    /// Arithmetic.
    Compute,
    /// Bytes.
    Memory,
    /// Neither: overhead of each call, or work of the host.
    Launch,
}

impl Branch {
    /// What helps, and the lab that shows it.
    pub fn cure(self) -> &'static str {
        match self {
            Self::Compute => "fill the vector units, then quantize (ch01:gemm)",
            Self::Memory => "move less: larger batches, fewer bits (ch02:bandwidth, ch15:continuous_batching)",
            Self::Launch => "fuse, capture or batch (ch01:training_goodput, ch15:continuous_batching)",
        }
    }
}

impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Compute => "compute-bound",
            Self::Memory => "memory-bound",
            Self::Launch => "launch-bound",
        };
        f.write_str(name)
    }
}

/// A phase of all steps of a kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseRow {
    /// `prefill` or `decode`.
    pub steps: &'static str,
    /// The span's name.
    pub phase: &'static str,
    /// How often it ran.
    pub count: usize,
    /// All of it together.
    pub seconds: f64,
    /// Its part of all steps, of both kinds.
    pub share: f64,
    /// What binds it; none for arithmetic without measured ceilings.
    pub branch: Option<Branch>,
    /// Least time by the ceilings over the time it took.
    pub of_roof: Option<f64>,
}

/// Phases in the order of a step. Layers and head lie inside `forward`.
const PHASES: [&str; 7] = ["schedule", "prepare", "forward", "layer", "head", "sample", "detokenize"];

/// Rows of both kinds of steps, and for each the time that no phase covers.
pub fn phases(trace: &Trace, ceilings: Option<&Ceilings>) -> Vec<PhaseRow> {
    let total: f64 = trace.steps.iter().map(|step| step.seconds).sum();
    let mut rows = Vec::new();
    for (kind, is_prefill) in [("prefill", true), ("decode", false)] {
        let steps: Vec<&Step> = trace.steps.iter().filter(|step| step.is_prefill() == is_prefill).collect();
        if steps.is_empty() {
            continue;
        }
        let mut covered = 0.0;
        for phase in PHASES {
            let spans = trace.spans.iter().filter(|span| span.name == phase);
            let spans = spans.filter(|span| step_of(trace, span.start_s).is_some_and(|s| s.is_prefill() == is_prefill));
            let (count, seconds) = spans.fold((0, 0.0), |(count, sum), span| (count + 1, sum + span.seconds));
            if count == 0 {
                continue;
            }
            if !matches!(phase, "layer" | "head") {
                covered += seconds;
            }
            let (branch, of_roof) = judge(trace, &steps, phase, seconds, ceilings);
            rows.push(PhaseRow { steps: kind, phase, count, seconds, share: seconds / total, branch, of_roof });
        }
        let seconds = (steps.iter().map(|step| step.seconds).sum::<f64>() - covered).max(0.0);
        let (branch, share) = (Some(Branch::Launch), seconds / total);
        rows.push(PhaseRow {
            steps: kind,
            phase: "between",
            count: steps.len(),
            seconds,
            share,
            branch,
            of_roof: None,
        });
    }
    rows
}

fn step_of(trace: &Trace, start_s: f64) -> Option<&Step> {
    let after = trace.steps.partition_point(|step| step.start_s <= start_s);
    trace.steps.get(after.checked_sub(1)?)
}

/// Holds the least time of the work of a phase against the time it took.
fn judge(
    trace: &Trace,
    steps: &[&Step],
    phase: &str,
    seconds: f64,
    ceilings: Option<&Ceilings>,
) -> (Option<Branch>, Option<f64>) {
    let work = &trace.model.work;
    let totals = steps.iter().fold(WorkTotals::default(), |sum, step| sum + step.work);
    let cost = match phase {
        "forward" => work.cost(&totals),
        "layer" => work.layers_cost(&totals),
        "head" => work.head_cost(&totals),
        _ => return (Some(Branch::Launch), None),
    };
    let Some(ceilings) = ceilings else { return (None, None) };
    let least = LeastTime::of(&ArmWork { cost, arithmetic: work.arithmetic() }, ceilings);
    let branch = match least.bound() {
        _ if seconds > FAR_FROM_ROOF * least.seconds() => Branch::Launch,
        Bound::Memory => Branch::Memory,
        Bound::Compute => Branch::Compute,
    };
    (Some(branch), Some(least.seconds() / seconds))
}

/// The rows for people.
pub fn table(rows: &[PhaseRow]) -> Table {
    let mut table =
        Table::new(&["steps", "phase", "count", "each", "of all time", "of the roof", "branch", "what helps"]);
    for row in rows {
        let inside = if matches!(row.phase, "layer" | "head") { "  " } else { "" };
        table.row([
            row.steps.to_owned(),
            format!("{inside}{}", row.phase),
            row.count.to_string(),
            units::seconds(row.seconds / row.count.max(1) as f64),
            format!("{:.1} %", row.share * 100.0),
            row.of_roof.map_or(String::new(), |share| format!("{:.0} %", share * 100.0)),
            row.branch.map_or(String::new(), |branch| branch.to_string()),
            // A cure for what takes no time is no advice.
            row.branch.filter(|_| row.share >= 0.05).map_or(String::new(), |branch| branch.cure().to_owned()),
        ]);
    }
    table
}
