//! Trade-offs and recommendations: what each optimized arm buys and costs, and what to do next.

use serde::Serialize;

use super::rows::{Group, Row};
use crate::record::{Goal, Ratio, Verdict};

/// What an arm buys and costs against its baseline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TradeOff<'a> {
    /// `chapter:name`.
    pub lab: &'a str,
    /// Device that ran it.
    pub device: &'a str,
    /// Hash of the inputs.
    pub workload: &'a str,
    /// Name within the lab.
    pub arm: &'a str,
    /// Which kind of bargain it is.
    pub kind: Bargain,
    /// Time of the baseline over time of this arm.
    pub speedup: Option<Ratio>,
    /// Memory of the baseline over memory of this arm; none where unknown.
    pub memory_savings: Option<f64>,
}

/// Kinds of bargains. Time counts as changed only where the lab's verdict says so, memory from 2 % on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bargain {
    /// Better in one, no worse in the other.
    Win,
    /// Time bought with memory.
    FasterForMemory,
    /// Memory bought with time.
    SmallerForTime,
    /// Neither changed.
    NoDifference,
    /// Worse in one, no better in the other.
    Loss,
    /// The outputs differ.
    Wrong,
}

/// Memory changes below this are allocator noise.
const MEMORY_NOISE: f64 = 0.02;

/// All optimized arms.
pub fn trade_offs(groups: &[Group]) -> Vec<TradeOff<'_>> {
    let of_group = |group| optimized(group).map(move |row| trade_off(group, row));
    groups.iter().flat_map(of_group).collect()
}

fn optimized(group: &Group) -> impl Iterator<Item = &Row> {
    group.rows.iter().filter(|row| !row.is_baseline)
}

fn trade_off<'a>(group: &'a Group, row: &'a Row) -> TradeOff<'a> {
    let memory = match row.memory_savings {
        Some(savings) if savings > 1.0 + MEMORY_NOISE => 1,
        Some(savings) if savings < 1.0 - MEMORY_NOISE => -1,
        _ => 0,
    };
    let time = match row.verdict {
        Some(Verdict::Faster) => 1,
        Some(Verdict::Slower) => -1,
        _ => 0,
    };
    let kind = match (time, memory) {
        _ if row.speedup.is_none() => Bargain::Wrong,
        (1, -1) => Bargain::FasterForMemory,
        (-1, 1) => Bargain::SmallerForTime,
        (0, 0) => Bargain::NoDifference,
        (time, memory) if time + memory > 0 => Bargain::Win,
        _ => Bargain::Loss,
    };
    let Group { lab, device, workload, .. } = group;
    let (speedup, memory_savings) = (row.speedup, row.memory_savings);
    TradeOff { lab, device, workload, arm: &row.arm, kind, speedup, memory_savings }
}

/// Advice that follows from the figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recommendation {
    /// How much it matters.
    pub urgency: Urgency,
    /// `chapter:name` on its device.
    pub about: String,
    /// One sentence.
    pub text: String,
}

/// How much a recommendation matters, most first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Urgency {
    /// Something is not true.
    Fix,
    /// Something is won.
    Use,
    /// Something is open.
    Look,
}

/// Recommendations of all groups, urgent ones first.
pub fn recommendations(groups: &[Group]) -> Vec<Recommendation> {
    let mut all = Vec::new();
    for group in groups {
        let mut add = |urgency, text| {
            all.push(Recommendation { urgency, about: format!("{} on {}", group.lab, group.device), text });
        };
        if group.debug_build {
            add(Urgency::Fix, format!("{} is a debug build: run it again with a release build", group.run_id));
        }
        for row in optimized(group) {
            if row.verdict == Some(Verdict::Wrong) {
                add(Urgency::Fix, format!("`{}` gives other outputs than the baseline: do not use it", row.arm));
            }
            for reason in &row.not_engaged {
                add(Urgency::Fix, format!("`{}` asked for a switch that did not run: {reason}", row.arm));
            }
        }
        match best(group) {
            Some(row) => add(Urgency::Use, format!("use `{}`: {}", row.arm, gain(row, group.goal))),
            None => add(Urgency::Look, "no arm beats the baseline beyond noise: keep the baseline".to_owned()),
        }
    }
    all.sort_by_key(|advice| advice.urgency);
    all
}

/// The optimized arm that wins by the lab's goal, beyond noise.
fn best(group: &Group) -> Option<&Row> {
    let gain = |row: &Row| match group.goal {
        Goal::Memory => row.memory_savings.filter(|savings| *savings > 1.0 + MEMORY_NOISE),
        _ => row.speedup.filter(|_| row.verdict == Some(Verdict::Faster)).map(|speedup| speedup.ratio),
    };
    let winners = optimized(group).filter_map(|row| Some((gain(row)?, row)));
    winners.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, row)| row)
}

fn gain(row: &Row, goal: Goal) -> String {
    match (goal, row.memory_savings) {
        (Goal::Memory, Some(savings)) => format!("{savings:.2} times less memory"),
        _ => row.verdict_text.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::{groups, samples};
    use super::*;

    #[test]
    fn bargains_are_named() {
        let arms = [("a", 2.0, 50), ("b", 2.0, 200), ("c", 0.5, 50), ("d", 0.5, 100), ("e", 3.0, 100), ("f", 9.0, 9)];
        let mut run = samples::run("r", &arms);
        samples::wrong(&mut run, 5);
        let groups = groups(&[run]);
        let kinds: Vec<_> = trade_offs(&groups).iter().map(|it| it.kind).collect();
        use Bargain::{FasterForMemory, Loss, SmallerForTime, Win, Wrong};
        assert_eq!(kinds, [Win, FasterForMemory, SmallerForTime, Loss, Win, Wrong]);
    }

    #[test]
    fn what_is_false_comes_first() {
        let mut run = samples::run("r", &[("good", 2.0, 50), ("broken", 9.0, 9)]);
        samples::wrong(&mut run, 1);
        let groups = groups(&[run]);
        let texts: Vec<_> = recommendations(&groups).into_iter().map(|it| (it.urgency, it.text)).collect();
        assert_eq!(texts[0].0, Urgency::Fix);
        assert!(texts[0].1.contains("`broken`"), "{texts:?}");
        assert_eq!(texts[1], (Urgency::Use, "use `good`: x2.00".to_owned()));
    }

    #[test]
    fn nothing_won_is_said() {
        let groups = groups(&[samples::run("r", &[("slow", 0.5, 100)])]);
        assert!(recommendations(&groups)[0].text.contains("keep the baseline"));
    }
}
