//! Who is best at each workload; rows of different workloads never meet.

use serde::Serialize;

use super::rows::{Group, Row};
use crate::record::Goal;

/// The arms of a group, best first by the lab's goal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Leaderboard<'a> {
    /// `chapter:name`.
    pub lab: &'a str,
    /// Device that ran it.
    pub device: &'a str,
    /// Hash of the inputs.
    pub workload: &'a str,
    /// Run that the rows are from.
    pub run_id: &'a str,
    /// Which figure decides.
    pub goal: Goal,
    /// Best first.
    pub ranked: Vec<&'a Row>,
    /// Rows without a rank: outputs wrong, or the deciding figure unknown.
    pub unranked: Vec<&'a Row>,
}

/// One board a group.
pub fn leaderboards(groups: &[Group]) -> Vec<Leaderboard<'_>> {
    groups.iter().map(board).collect()
}

fn board(group: &Group) -> Leaderboard<'_> {
    let figure = |row: &Row| match group.goal {
        Goal::Memory => row.median_s.and(row.memory_bytes).map(|bytes| bytes as f64),
        Goal::Latency => row.latency_ms,
        Goal::Speed | Goal::Throughput => row.median_s,
    };
    let (mut ranked, unranked): (Vec<&Row>, Vec<&Row>) = group.rows.iter().partition(|row| figure(row).is_some());
    ranked.sort_by(|a, b| figure(a).unwrap_or(f64::MAX).total_cmp(&figure(b).unwrap_or(f64::MAX)));
    let Group { lab, device, workload, run_id, goal, .. } = group;
    Leaderboard { lab, device, workload, run_id, goal: *goal, ranked, unranked }
}

#[cfg(test)]
mod tests {
    use super::super::rows::{groups, samples};
    use super::*;

    fn ranks(goal: Goal) -> Vec<String> {
        let mut run =
            samples::run("r", &[("fast", 2.0, 150), ("small", 1.1, 20), ("broken", 9.0, 1), ("unknown", 0.5, 0)]);
        samples::wrong(&mut run, 2);
        run.labs[0].goal = goal;
        let groups = groups(&[run]);
        leaderboards(&groups)[0].ranked.iter().map(|row| row.arm.clone()).collect()
    }

    #[test]
    fn the_goal_decides_and_wrong_rows_have_no_rank() {
        assert_eq!(ranks(Goal::Speed), ["fast", "small", "concatenate", "unknown"]);
        assert_eq!(ranks(Goal::Latency), ["fast", "small", "concatenate", "unknown"]);
        assert_eq!(ranks(Goal::Memory), ["small", "concatenate", "fast"]);
    }
}
