//! Two runs side by side: for each arm, did its gain over its own baseline change? Gains compare across runs, seconds do
//! not: the machine may have been busier, but it was so for both arms of a run.

use std::fmt;

use crate::record::{Ratio, RunRecord, Verdict};

/// All arms of two runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Ids of the runs.
    pub runs: [String; 2],
    /// What keeps the runs from being equals: another device, a debug build.
    pub cautions: Vec<String>,
    /// One an arm.
    pub rows: Vec<Row>,
}

/// One arm in both runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// `lab/arm`.
    pub arm: String,
    /// Gain in the first run.
    pub before: Option<Ratio>,
    /// Gain in the second run.
    pub after: Option<Ratio>,
    /// What that means.
    pub change: Change,
}

/// What became of a gain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The intervals overlap.
    Same,
    /// The interval lies above the old one.
    Better,
    /// The interval lies below the old one.
    Worse,
    /// The outputs fail their gate now.
    NowWrong,
    /// The outputs failed before and pass now.
    NowRight,
    /// The inputs are different: nothing can be said.
    OtherWorkload,
    /// Only in one of the runs.
    Alone,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Same => "same",
            Self::Better => "better",
            Self::Worse => "worse",
            Self::NowWrong => "wrong",
            Self::NowRight => "right again",
            Self::OtherWorkload => "other workload",
            Self::Alone => "only in one run",
        })
    }
}

/// Compares two runs arm by arm.
pub fn compare(before: &RunRecord, after: &RunRecord) -> Comparison {
    let mut rows = Vec::new();
    for lab in &after.labs {
        for variant in &lab.variants {
            let old_lab = before.lab(&lab.id);
            let old = old_lab.and_then(|old| old.variant(&variant.arm.name));
            let change = match (old_lab, old) {
                (Some(old_lab), Some(old)) if old_lab.workload.fingerprint == lab.workload.fingerprint => {
                    judge((old.verdict, old.speedup), (variant.verdict, variant.speedup))
                }
                (Some(_), Some(_)) => Change::OtherWorkload,
                _ => Change::Alone,
            };
            let arm = format!("{}/{}", lab.id, variant.arm.name);
            rows.push(Row { arm, before: old.and_then(|old| old.speedup), after: variant.speedup, change });
        }
    }
    for lab in &before.labs {
        let gone =
            lab.variants.iter().filter(|old| after.lab(&lab.id).and_then(|lab| lab.variant(&old.arm.name)).is_none());
        rows.extend(gone.map(|old| Row {
            arm: format!("{}/{}", lab.id, old.arm.name),
            before: old.speedup,
            after: None,
            change: Change::Alone,
        }));
    }
    let runs = [before.manifest.run_id.clone(), after.manifest.run_id.clone()];
    Comparison { runs, cautions: cautions(before, after), rows }
}

fn judge(before: (Verdict, Option<Ratio>), after: (Verdict, Option<Ratio>)) -> Change {
    match (before, after) {
        ((_, Some(_)), (Verdict::Wrong, _)) => Change::NowWrong,
        ((Verdict::Wrong, _), (_, Some(_))) => Change::NowRight,
        ((_, Some(old)), (_, Some(new))) if new.low > old.high => Change::Better,
        ((_, Some(old)), (_, Some(new))) if new.high < old.low => Change::Worse,
        _ => Change::Same,
    }
}

fn cautions(before: &RunRecord, after: &RunRecord) -> Vec<String> {
    let mut cautions = Vec::new();
    let (old, new) = (&before.manifest, &after.manifest);
    if old.device != new.device {
        cautions.push(format!("different devices: {} and {}", old.device, new.device));
    }
    for run in [before, after] {
        let manifest = &run.manifest;
        if manifest.build != "release" {
            cautions.push(format!("{} is a {} build: its figures mean little", manifest.run_id, manifest.build));
        }
        if run.partial {
            cautions.push(format!("{} was stopped before its end", manifest.run_id));
        }
    }
    cautions
}

fn shown(ratio: Option<Ratio>) -> String {
    ratio.map_or("-".to_owned(), |r| format!("x{:.2} [{:.2}, {:.2}]", r.ratio, r.low, r.high))
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for caution in &self.cautions {
            writeln!(f, "caution: {caution}")?;
        }
        let width = self.rows.iter().map(|row| row.arm.len()).max().unwrap_or(0).max(3);
        let [before, after] = &self.runs;
        writeln!(f, "{:width$}  {before:>22}  {after:>22}  change", "arm")?;
        for row in &self.rows {
            let (before, after) = (shown(row.before), shown(row.after));
            writeln!(f, "{:width$}  {before:>22}  {after:>22}  {}", row.arm, row.change)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::samples;

    fn ratio(low: f64, high: f64) -> Ratio {
        Ratio { ratio: (low + high) / 2.0, low, high }
    }

    fn check(before: Ratio, after: Ratio, expected: Change) {
        let comparison = compare(&samples::run("a", before), &samples::run("b", after));
        assert_eq!(comparison.rows[0].change, expected, "{before:?} {after:?}");
    }

    #[test]
    fn intervals_decide() {
        check(ratio(1.9, 2.1), ratio(1.9, 2.1), Change::Same);
        check(ratio(1.9, 2.1), ratio(2.0, 2.3), Change::Same);
        check(ratio(1.9, 2.1), ratio(2.2, 2.3), Change::Better);
        check(ratio(1.9, 2.1), ratio(1.2, 1.3), Change::Worse);
    }

    #[test]
    fn a_wrong_output_is_worse_than_any_speed() {
        let before = samples::run("a", ratio(1.9, 2.1));
        let mut after = samples::run("b", ratio(5.0, 6.0));
        after.labs[0].variants[0].verdict = Verdict::Wrong;
        after.labs[0].variants[0].speedup = None;
        assert_eq!(compare(&before, &after).rows[0].change, Change::NowWrong);
        assert_eq!(compare(&after, &before).rows[0].change, Change::NowRight);
    }

    #[test]
    fn another_workload_is_not_compared() {
        let before = samples::run("a", ratio(1.9, 2.1));
        let mut after = samples::run("b", ratio(1.0, 1.1));
        after.labs[0].workload.fingerprint = "beef".into();
        assert_eq!(compare(&before, &after).rows[0].change, Change::OtherWorkload);
        after.labs.clear();
        assert_eq!(compare(&before, &after).rows[0].change, Change::Alone);
    }

    #[test]
    fn another_device_is_said() {
        let before = samples::run("a", ratio(1.9, 2.1));
        let mut after = samples::run("b", ratio(1.9, 2.1));
        after.manifest.device = "cpu-other".into();
        after.partial = true;
        let shown = compare(&before, &after).to_string();
        assert!(shown.contains("different devices") && shown.contains("b was stopped"), "{shown}");
    }
}
