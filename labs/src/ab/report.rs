//! Both sides of an A/B in figures, with intervals from the raw samples, and what the HTTP front end takes of the time.

use std::fmt::Write;

use serde::Serialize;

use super::{AbLab, Front};
use crate::record::{ArmRecord, LabRecord, Ratio, Verdict};
use crate::table::Table;
use crate::{stats, units};

/// One figure of both sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What it is, with its unit.
    pub name: &'static str,
    /// Median of A with its interval.
    pub a: Ratio,
    /// Median of B with its interval.
    pub b: Ratio,
    /// B over A; none where A or B was zero.
    pub b_over_a: Option<Ratio>,
}

/// What the HTTP front end takes of one side's time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FrontShare {
    /// The stack.
    pub arm: String,
    /// `0.05`: a twentieth of the time over HTTP is not the engine's.
    pub share: Ratio,
}

/// Metrics of arms, and what they are called for people.
const METRICS: [(&str, &str); 7] = [
    ("output_tokens_per_s", "output tokens/s"),
    ("ttft_p50_ms", "TTFT p50, ms"),
    ("tpot_p50_ms", "TPOT p50, ms"),
    ("itl_p50_ms", "ITL p50, ms"),
    ("itl_p99_ms", "ITL p99, ms"),
    ("goodput_requests_per_s", "goodput, requests/s"),
    ("usd_per_million_tokens", "USD per million tokens"),
];

/// All figures of A and B; none when B is wrong.
pub fn figures(lab: &LabRecord, seed: u64) -> Vec<Figure> {
    let (a, Some(b)) = (&lab.baseline, lab.variants.first()) else { return Vec::new() };
    if b.verdict == Verdict::Wrong {
        return Vec::new();
    }
    let figure = |name, of_a: &[f64], of_b: &[f64]| {
        Some(Figure {
            name,
            a: stats::median_interval(of_a, seed)?,
            b: stats::median_interval(of_b, seed)?,
            b_over_a: stats::ratio_of_medians(of_b, of_a, seed).filter(|_| of_a.iter().chain(of_b).all(|&s| s > 0.0)),
        })
    };
    let rates = |arm: &ArmRecord, work: u64| -> Vec<f64> { arm.samples_s.iter().map(|s| work as f64 / s).collect() };
    let work = [("requests/s", lab.workload.requests), ("tokens/s, prompts included", lab.workload.tokens)];
    let rates = work.into_iter().filter_map(|(name, work)| figure(name, &rates(a, work?), &rates(&b.arm, work?)));
    let metrics = METRICS
        .into_iter()
        .filter_map(|(metric, name)| figure(name, a.metric_samples.get(metric)?, b.arm.metric_samples.get(metric)?));
    let memory = |arm: &ArmRecord| [arm.memory.deciding_bytes() as f64 / f64::from(1 << 20)];
    rates.chain(metrics).chain(figure("peak memory, MiB", &memory(a), &memory(&b.arm))).collect()
}

/// The share of the front end on each side that was measured over HTTP and in process.
pub fn front_shares(lab: &LabRecord, ab: &AbLab, seed: u64) -> Vec<FrontShare> {
    let right = lab.variants.iter().filter(|variant| variant.verdict != Verdict::Wrong).map(|variant| &variant.arm);
    let arms: Vec<&ArmRecord> = std::iter::once(&lab.baseline).chain(right).collect();
    let arm = |name: String| arms.iter().find(|arm| arm.name == name);
    let share = |(side, selection)| {
        let over_http = arm(AbLab::arm_name(side, selection, Front::Http))?;
        let in_process = arm(AbLab::arm_name(side, selection, Front::InProcess))?;
        let part = stats::ratio_of_medians(&in_process.samples_s, &over_http.samples_s, seed)?;
        let share = Ratio { ratio: 1.0 - part.ratio, low: 1.0 - part.high, high: 1.0 - part.low };
        Some(FrontShare { arm: over_http.name.clone(), share })
    };
    [('a', &ab.a), ('b', &ab.b)].into_iter().filter_map(share).collect()
}

/// Verdict, figures and shares as Markdown that reads well in a terminal.
pub fn markdown(lab: &LabRecord, ab: &AbLab, seed: u64) -> String {
    let mut text = format!("{}\n\n", lab.workload.description);
    let verdict = lab.variants.first().map_or("not measured", |variant| &variant.verdict_text);
    let _ = writeln!(text, "b `{}` against a `{}`: {verdict}\n", ab.b, ab.a);
    let figures = figures(lab, seed);
    if !figures.is_empty() {
        let mut table = Table::new(&["figure", "a", "b", "b over a"]);
        let shown = |value: Ratio| {
            let (ratio, low, high) = (units::digits(value.ratio), units::digits(value.low), units::digits(value.high));
            if low == high { ratio } else { format!("{ratio} [{low}, {high}]") }
        };
        for figure in figures {
            let ratio = figure.b_over_a.map_or(String::new(), |ratio| format!("x{}", shown(ratio)));
            table.row([figure.name.to_owned(), shown(figure.a), shown(figure.b), ratio]);
        }
        let _ = writeln!(text, "{table}");
    }
    for FrontShare { arm, share } in front_shares(lab, ab, seed) {
        let percent = |part: f64| format!("{:.1}", part * 100.0);
        let (middle, low, high) = (percent(share.ratio), percent(share.low), percent(share.high));
        let _ = writeln!(text, "HTTP front end of {arm}: {middle} % of the time [{low}, {high}]");
    }
    text
}
