//! The stacking matrix, generated from the engine's registry: each switch alone, the stack as it grows, the stack
//! without each. Which switches combine, which fight, which are wrong: measured, never text.

use std::fmt::Write;

use aisp_engine::{Optimization, Selection};
use serde::{Deserialize, Serialize};

use crate::lab::{Experiment, Lab, LabContext, LabInfo};
use crate::labs::{EngineArm, EngineExperiment, EngineSettings, loosest, mixed_requests, tolerance};
use crate::record::{ArmRecord, Goal, LabRecord, Ratio, VariantRecord, Verdict};
use crate::{LabError, stats};

/// What a selection is for in the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// One switch with what it requires.
    Alone,
    /// All switches up to this one, in application order.
    Cumulative,
    /// All switches without this one and those that require it.
    AllMinusOne,
}

/// A cell of the matrix before it is measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// The switch that it is about.
    pub switch: Optimization,
    /// What for.
    pub role: Role,
    /// The switches that are on.
    pub selection: Selection,
}

/// Every cell, from the registry: those that `all` selects alone, growing, and one by one less.
pub fn cells() -> Vec<Cell> {
    let all = Selection::all();
    let mut cells = Vec::new();
    for switch in all.iter() {
        cells.push(Cell { switch, role: Role::Alone, selection: switch.with_requirements() });
    }
    for switch in all.iter() {
        // Prerequisites may come later in the order of application.
        let up_to = all.iter().filter(|&other| other <= switch);
        cells.push(Cell { switch, role: Role::Cumulative, selection: Selection::closed(up_to) });
    }
    for switch in all.iter() {
        cells.push(Cell { switch, role: Role::AllMinusOne, selection: all.without(switch) });
    }
    cells
}

/// The matrix as a lab: one arm for each different selection, all against the plain baseline.
#[derive(Debug, Clone, Copy, Default)]
pub struct StackingLab;

impl StackingLab {
    fn arms() -> Vec<EngineArm> {
        let mut selections = vec![Selection::none()];
        for cell in cells() {
            if !selections.contains(&cell.selection) {
                selections.push(cell.selection);
            }
        }
        selections.into_iter().map(|selection| EngineArm { name: selection.to_string(), selection }).collect()
    }
}

impl Lab for StackingLab {
    fn info(&self) -> LabInfo {
        LabInfo {
            id: "full_stack:stacking".into(),
            summary: "each switch alone, the growing stack, the stack without each, against the plain baseline".into(),
            goal: Goal::Throughput,
            tags: vec!["engine".into()],
            tolerance: tolerance(loosest(&[Selection::all()])),
        }
    }

    fn prepare(&self, context: &LabContext) -> Result<Box<dyn Experiment>, LabError> {
        let experiment = EngineExperiment::new(context, mixed_requests, EngineSettings::default(), Self::arms())?;
        Ok(Box::new(experiment))
    }
}

/// The measured matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Matrix {
    /// The model and what it had to do.
    pub workload: String,
    /// Differences up to this are noise.
    pub noise: f64,
    /// All switches against the plain baseline.
    pub stack: Option<Measurement>,
    /// A row a switch, in application order.
    pub rows: Vec<Row>,
}

/// One switch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub switch: String,
    /// Alone, against the plain baseline.
    pub alone: Measurement,
    /// The stack up to and with it, against the plain baseline.
    pub cumulative: Measurement,
    /// The whole stack against the stack without it: what it adds where everything else is on.
    pub in_stack: Measurement,
    /// What follows.
    pub finding: Finding,
}

/// A ratio and what it says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The verdict.
    pub verdict: Verdict,
    /// Time before over time after; none when the outputs were wrong.
    pub speedup: Option<Ratio>,
    /// Memory before over memory after.
    pub memory_savings: Option<f64>,
    /// The verdict as people read it.
    pub text: String,
}

/// How a switch gets along with the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// It gains in the stack.
    Combines,
    /// It gains alone and loses in the stack.
    Fights,
    /// It loses in the stack, and does not gain alone.
    Loses,
    /// It changes no time in the stack.
    Neutral,
    /// Its outputs are not the baseline's.
    Wrong,
}

/// Reads the matrix out of the lab's record.
pub fn matrix(record: &LabRecord, seed: u64) -> Matrix {
    let noise = record.aa.as_ref().map_or(f64::INFINITY, |aa| aa.noise);
    let cells = cells();
    let find = |switch, role| cells.iter().find(|cell| cell.switch == switch && cell.role == role);
    let all = Selection::all().to_string();
    let mut rows = Vec::new();
    for switch in Selection::all().iter() {
        let name = |role| find(switch, role).map_or("none".to_owned(), |cell| cell.selection.to_string());
        let alone = against_baseline(record, &name(Role::Alone));
        let cumulative = against_baseline(record, &name(Role::Cumulative));
        let in_stack = between(record, &name(Role::AllMinusOne), &all, noise, seed);
        let finding = finding(&alone, &in_stack);
        rows.push(Row { switch: switch.name().to_owned(), alone, cumulative, in_stack, finding });
    }
    let stack = record.variant(&all).map(measurement);
    Matrix { workload: record.workload.description.clone(), noise, stack, rows }
}

fn measurement(variant: &VariantRecord) -> Measurement {
    Measurement {
        verdict: variant.verdict,
        speedup: variant.speedup,
        memory_savings: variant.memory_savings,
        text: variant.verdict_text.clone(),
    }
}

fn against_baseline(record: &LabRecord, arm: &str) -> Measurement {
    record.variant(arm).map_or_else(unmeasured, measurement)
}

fn unmeasured() -> Measurement {
    let (speedup, memory_savings) = (None, None);
    Measurement { verdict: Verdict::NoDifference, speedup, memory_savings, text: "not measured".into() }
}

/// Two arms of the same run against one another.
fn between(record: &LabRecord, before: &str, after: &str, noise: f64, seed: u64) -> Measurement {
    let arm = |name: &str| -> Option<&ArmRecord> {
        if name == "none" { Some(&record.baseline) } else { record.variant(name).map(|variant| &variant.arm) }
    };
    let wrong = [before, after].iter().filter_map(|name| record.variant(name)).find(|v| v.verdict == Verdict::Wrong);
    if let Some(wrong) = wrong {
        return Measurement { speedup: None, memory_savings: None, ..measurement(wrong) };
    }
    let (Some(before), Some(after)) = (arm(before), arm(after)) else { return unmeasured() };
    let Some(speedup) = stats::ratio_of_medians(&before.samples_s, &after.samples_s, seed) else { return unmeasured() };
    let verdict = stats::judge(speedup, noise);
    let (of_before, of_after) = (before.memory.deciding_bytes(), after.memory.deciding_bytes());
    Measurement {
        verdict,
        speedup: Some(speedup),
        memory_savings: (of_after > 0).then(|| of_before as f64 / of_after as f64),
        text: stats::verdict_text(verdict, Some(speedup), noise, ""),
    }
}

fn finding(alone: &Measurement, in_stack: &Measurement) -> Finding {
    match (alone.verdict, in_stack.verdict) {
        (Verdict::Wrong, _) | (_, Verdict::Wrong) => Finding::Wrong,
        (_, Verdict::Faster) => Finding::Combines,
        (Verdict::Faster, Verdict::Slower) => Finding::Fights,
        (_, Verdict::Slower) => Finding::Loses,
        _ => Finding::Neutral,
    }
}

impl Matrix {
    /// The matrix as a Markdown table.
    pub fn markdown(&self) -> String {
        let mut text = format!("Workload: {}. Noise ±{:.1} %.\n\n", self.workload, self.noise * 100.0);
        text += "| switch | alone | stack up to it | what it adds to the rest | memory alone | finding |\n";
        text += "|---|---|---|---|---|---|\n";
        for row in &self.rows {
            let memory = row.alone.memory_savings.map_or("-".to_owned(), |savings| format!("x{savings:.2}"));
            let (alone, cumulative, in_stack) = (&row.alone.text, &row.cumulative.text, &row.in_stack.text);
            let finding = format!("{:?}", row.finding).to_lowercase();
            let _ = writeln!(text, "| `{}` | {alone} | {cumulative} | {in_stack} | {memory} | {finding} |", row.switch);
        }
        let stack = self.stack.as_ref().map_or("not measured", |stack| &stack.text);
        let _ = writeln!(text, "\nThe whole stack against the plain baseline: {stack}.");
        text
    }
}

#[cfg(test)]
mod tests;
