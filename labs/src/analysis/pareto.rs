//! The Pareto frontier of throughput, latency and memory within one workload.

use serde::Serialize;

use super::rows::{Group, Row};

/// The frontier of a group.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Frontier<'a> {
    /// `chapter:name`.
    pub lab: &'a str,
    /// Device that ran it.
    pub device: &'a str,
    /// Hash of the inputs.
    pub workload: &'a str,
    /// What the rates count.
    pub rate_unit: &'static str,
    /// All rows with the three figures.
    pub points: Vec<Point>,
    /// Rows that lack a figure, with the figure's name.
    pub left_out: Vec<String>,
}

/// A row with all three figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Point {
    /// Name within the lab.
    pub arm: String,
    /// Work a second, in the frontier's unit.
    pub rate_per_s: f64,
    /// Milliseconds.
    pub latency_ms: f64,
    /// Bytes.
    pub memory_bytes: u64,
    /// No other row is at least as good in all three and better, beyond noise, in one.
    pub on_frontier: bool,
    /// A row that is.
    pub dominated_by: Option<String>,
}

/// One frontier a group.
pub fn frontiers(groups: &[Group]) -> Vec<Frontier<'_>> {
    groups.iter().map(frontier).collect()
}

fn frontier(group: &Group) -> Frontier<'_> {
    let mut points: Vec<Point> = group.rows.iter().filter_map(point).collect();
    let noise = group.noise.unwrap_or(0.0);
    for at in 0..points.len() {
        let better = points.iter().find(|other| dominates(other, &points[at], noise)).map(|other| other.arm.clone());
        points[at].on_frontier = better.is_none();
        points[at].dominated_by = better;
    }
    let left_out = group.rows.iter().filter_map(|row| Some(format!("{}: {}", row.arm, missing(row)?))).collect();
    let rate_unit = group.rows.iter().find_map(|row| row.rate).map_or("iterations", |rate| rate.unit);
    Frontier { lab: &group.lab, device: &group.device, workload: &group.workload, rate_unit, points, left_out }
}

fn point(row: &Row) -> Option<Point> {
    Some(Point {
        arm: row.arm.clone(),
        rate_per_s: row.rate?.per_s,
        latency_ms: row.latency_ms?,
        memory_bytes: row.memory_bytes?,
        on_frontier: false,
        dominated_by: None,
    })
}

fn missing(row: &Row) -> Option<&'static str> {
    if row.rate.is_none() {
        return Some("outputs wrong or not timed");
    }
    row.memory_bytes.is_none().then_some("memory unknown")
}

/// `a` is no worse in any figure and better in one: in time by more than the noise, in memory by anything.
fn dominates(a: &Point, b: &Point, noise: f64) -> bool {
    let no_worse = a.rate_per_s >= b.rate_per_s && a.latency_ms <= b.latency_ms && a.memory_bytes <= b.memory_bytes;
    let faster = a.rate_per_s > b.rate_per_s * (1.0 + noise) || a.latency_ms * (1.0 + noise) < b.latency_ms;
    no_worse && (faster || a.memory_bytes < b.memory_bytes)
}

#[cfg(test)]
mod tests {
    use super::super::rows::{groups, samples};
    use super::*;

    fn on_frontier(arms: &[(&str, f64, u64)]) -> Vec<String> {
        let groups = groups(&[samples::run("r", arms)]);
        let frontiers = frontiers(&groups);
        frontiers[0].points.iter().filter(|point| point.on_frontier).map(|point| point.arm.clone()).collect()
    }

    #[test]
    fn only_rows_that_nothing_beats_stay() {
        // The baseline: x1.0 in 100 MiB.
        assert_eq!(on_frontier(&[("fast", 2.0, 150), ("small", 0.8, 50)]), ["concatenate", "fast", "small"]);
        assert_eq!(on_frontier(&[("both", 2.0, 50), ("neither", 1.5, 60)]), ["both"]);
    }

    #[test]
    fn noise_does_not_dominate() {
        // The A/A noise of the sample is 1 %.
        assert_eq!(on_frontier(&[("lucky", 1.005, 100)]), ["concatenate", "lucky"]);
        assert_eq!(on_frontier(&[("faster", 1.02, 100)]), ["faster"]);
    }

    #[test]
    fn unknown_memory_is_left_out_with_its_reason() {
        let groups = groups(&[samples::run("r", &[("unknown", 9.0, 0)])]);
        let frontiers = frontiers(&groups);
        assert_eq!(frontiers[0].left_out, ["unknown: memory unknown"]);
        assert!(frontiers[0].points.iter().all(|point| point.on_frontier));
    }

    #[test]
    fn workloads_never_meet() {
        let slow = samples::run("a", &[("slow", 0.5, 500)]);
        let mut fast = samples::run("b", &[("fast", 5.0, 1)]);
        fast.labs[0].workload.fingerprint = "beef".into();
        let groups = groups(&[slow, fast]);
        let frontiers = frontiers(&groups);
        let beaten_by: Vec<_> = frontiers[1].points.iter().filter_map(|point| point.dominated_by.as_deref()).collect();
        assert_eq!(beaten_by, ["concatenate"], "only the row of the same workload");
    }
}
