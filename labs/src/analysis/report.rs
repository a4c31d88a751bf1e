//! The findings of all runs as Markdown, for people. What did not win stands beside what did.

use std::fmt::{self, Write};

use super::findings::{recommendations, trade_offs};
use super::leaderboard::leaderboards;
use super::pareto::frontiers;
use super::rows::{Group, Row};
use super::scaling::ScalingCurve;
use crate::record::Ratio;
use crate::table::Table;
use crate::units;

/// What a figure that is not known looks like.
pub const UNKNOWN: &str = "unknown";

/// Leaderboards, frontiers, trade-offs, advice and scaling of these groups.
pub fn markdown(groups: &[Group], curves: &[ScalingCurve]) -> String {
    let mut text = "# What the lab measured\n".to_owned();
    // Writing to a string cannot fail.
    let _ = sections(&mut text, groups, curves);
    text
}

fn sections(text: &mut String, groups: &[Group], curves: &[ScalingCurve]) -> fmt::Result {
    if groups.is_empty() {
        return writeln!(text, "\nNo runs: `aisp bench run` makes one.");
    }
    for (group, board) in groups.iter().zip(leaderboards(groups)) {
        writeln!(text, "\n## {} on {}\n\n{}\n", group.lab, group.device, group.summary)?;
        let noise = group.noise.map_or("not taken".to_owned(), |noise| format!("±{:.1} %", noise * 100.0));
        let debug = if group.debug_build { ", **debug build**" } else { "" };
        writeln!(
            text,
            "Run `{}` of {}, workload `{}`, noise {noise}{debug}.\n",
            group.run_id, group.date, group.workload
        )?;
        writeln!(text, "{}", rows_table(board.ranked.iter().chain(&board.unranked).copied()))?;
    }
    writeln!(text, "## Pareto frontier: throughput, latency, memory\n\n{}", pareto_table(groups))?;
    writeln!(text, "## Trade-offs\n\n{}", trade_off_table(groups))?;
    writeln!(text, "## Advice\n")?;
    for advice in recommendations(groups) {
        writeln!(text, "- **{:?}** {}: {}", advice.urgency, advice.about, advice.text)?;
    }
    writeln!(text, "\n## Scaling\n\n{}", scaling_table(curves))
}

fn rows_table<'a>(rows: impl Iterator<Item = &'a Row>) -> Table {
    let mut table = Table::new(&["arm", "verdict", "work a second", "latency", "memory", "of the roof"]);
    for row in rows {
        let rate = row.rate.map_or("-".to_owned(), |rate| format!("{} {}/s", units::digits(rate.per_s), rate.unit));
        let latency = row.latency_ms.map_or("-".to_owned(), |ms| units::seconds(ms / 1000.0));
        let share = row.roofline_share.map_or("-".to_owned(), |share| format!("{:.0} %", share * 100.0));
        table.row([row.arm.clone(), row.verdict_text.clone(), rate, latency, memory(row.memory_bytes), share]);
    }
    table
}

/// The frontier of each group, dominated rows included.
pub fn pareto_table(groups: &[Group]) -> Table {
    let mut table = Table::new(&["lab", "arm", "work a second", "latency", "memory", "frontier"]);
    for frontier in frontiers(groups) {
        for point in frontier.points {
            let rate = format!("{} {}/s", units::digits(point.rate_per_s), frontier.rate_unit);
            let latency = units::seconds(point.latency_ms / 1000.0);
            let place = point.dominated_by.map_or("on it".to_owned(), |other| format!("beaten by {other}"));
            table.row([frontier.lab.to_owned(), point.arm, rate, latency, memory(Some(point.memory_bytes)), place]);
        }
        for left_out in frontier.left_out {
            let (arm, reason) = left_out.split_once(": ").unwrap_or((&left_out, ""));
            let cells = [frontier.lab, arm, "-", "-", "-", reason];
            table.row(cells.map(str::to_owned));
        }
    }
    table
}

fn trade_off_table(groups: &[Group]) -> Table {
    let mut table = Table::new(&["lab", "arm", "bargain", "time", "memory"]);
    for it in trade_offs(groups) {
        let savings = it.memory_savings.map_or(UNKNOWN.to_owned(), |savings| format!("x{savings:.2}"));
        let kind = format!("{:?}", it.kind);
        table.row([it.lab.to_owned(), it.arm.to_owned(), kind, interval(it.speedup), savings]);
    }
    table
}

/// Fitted exponents, or how many sizes are missing.
pub fn scaling_table(curves: &[ScalingCurve]) -> Table {
    let mut table = Table::new(&["lab", "arm", "sizes", "exponent", "R²"]);
    for curve in curves {
        let (exponent, r_squared) = match curve.law {
            Some(law) => (format!("{:.2} ± {:.2}", law.exponent, law.exponent_error), format!("{:.3}", law.r_squared)),
            None => (format!("needs {} sizes", super::scaling::LEAST_SIZES), "-".to_owned()),
        };
        let sizes: Vec<String> = curve.points.iter().map(|(size, _)| units::digits(*size)).collect();
        let sizes = format!("{} {}", sizes.join(", "), curve.size_unit);
        table.row([curve.lab.clone(), curve.arm.clone(), sizes, exponent, r_squared]);
    }
    table
}

/// Memory, or that it is not known.
pub fn memory(bytes: Option<u64>) -> String {
    bytes.map_or(UNKNOWN.to_owned(), |bytes| units::bytes(bytes as f64))
}

/// `x1.83 [1.79, 1.88]`.
pub fn interval(ratio: Option<Ratio>) -> String {
    ratio.map_or("-".to_owned(), |it| format!("x{:.2} [{:.2}, {:.2}]", it.ratio, it.low, it.high))
}

#[cfg(test)]
mod tests {
    use super::super::rows::{groups, samples};
    use super::*;

    #[test]
    fn losers_and_wrong_rows_are_published() {
        let mut run = samples::run("r", &[("good", 2.0, 50), ("slow", 0.5, 0), ("broken", 9.0, 9)]);
        samples::wrong(&mut run, 2);
        let text = markdown(&groups(&[run.clone()]), &super::super::scaling::curves(&[run]));
        for part in ["| good ", "| slow ", "wrong (3 tokens)", "unknown", "beaten by good", "needs 3 sizes", "±1.0 %"]
        {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
        let wrong = text.lines().find(|line| line.contains("| broken") && line.contains("wrong (")).unwrap();
        assert!(!wrong.contains("tokens/s"), "a wrong row has no speed: {wrong}");
    }

    #[test]
    fn no_runs_are_said() {
        assert!(markdown(&[], &[]).contains("aisp bench run"));
    }
}
