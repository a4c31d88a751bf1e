//! A run as people read it: a line an arm, or a Markdown page. What lost stands beside what won.

use std::fmt::Write;

use crate::record::{ArmRecord, Bound, LabRecord, RooflineRecord, RunRecord, VariantRecord, Workload};

/// The lines of one lab for a terminal.
pub fn lab_lines(lab: &LabRecord) -> String {
    let mut text = format!("{}  {}\n", lab.id, lab.summary);
    let width = lab.variants.iter().map(|v| v.arm.name.len()).chain([lab.baseline.name.len()]).max().unwrap_or(0);
    let line = |arm: &ArmRecord, verdict: &str| {
        let (time, memory, share) = (time(arm), memory(arm), share(arm).unwrap_or("-".to_owned()));
        format!("  {:width$}  {time:>10}  {memory:>10}  {share:>15}  {verdict}{}\n", arm.name, not_engaged(arm))
    };
    text += &line(&lab.baseline, "baseline");
    for variant in &lab.variants {
        text += &line(&variant.arm, &format!("{}{}", variant.verdict_text, savings(variant)));
    }
    text
}

/// A run as a Markdown page.
pub fn markdown(run: &RunRecord) -> String {
    let manifest = &run.manifest;
    let mut page = format!("# Run {}\n\n", manifest.run_id);
    if run.partial {
        page += "**Partial: stopped before its end.**\n\n";
    }
    if manifest.build != "release" {
        page += "**Debug build: the figures mean nothing.**\n\n";
    }
    let commit = manifest.commit.as_deref().unwrap_or("unknown");
    let dirty = if manifest.dirty { " with uncommitted changes" } else { "" };
    let load = manifest.load_average.map_or(String::new(), |load| format!(", load average {load:.2}"));
    let _ = writeln!(page, "- machine: {}, {} ({} cores){load}", manifest.machine, manifest.cpu, manifest.cores);
    let _ = writeln!(page, "- sources: {commit}{dirty}, seed {}", manifest.seed);
    let _ = writeln!(page, "- date: {}\n- command: `{}`\n", manifest.date, manifest.command.join(" "));
    for lab in &run.labs {
        page += &lab_section(lab);
    }
    page
}

fn lab_section(lab: &LabRecord) -> String {
    let mut text = format!("## {}\n\n{}.\n\n", lab.id, lab.summary);
    let _ = writeln!(text, "- workload: {} (`{}`)", lab.workload.description, lab.workload.fingerprint);
    let _ = writeln!(text, "- gate: {}", lab.tolerance);
    if let Some(aa) = &lab.aa {
        let ratio = aa.ratio;
        let (low, high, noise) = (ratio.low, ratio.high, aa.noise * 100.0);
        let _ = writeln!(text, "- A/A: x{:.3} [{low:.3}, {high:.3}], noise ±{noise:.1} %", ratio.ratio);
    }
    text += "\n| arm | median | n | verdict | memory | of the roofline | engaged |\n|---|---|---|---|---|---|---|\n";
    text += &row(&lab.baseline, "baseline", &lab.workload);
    for variant in &lab.variants {
        text += &row(&variant.arm, &format!("{}{}", variant.verdict_text, savings(variant)), &lab.workload);
    }
    text + "\n"
}

fn row(arm: &ArmRecord, verdict: &str, workload: &Workload) -> String {
    let rate = arm.tokens_per_s(workload).map_or(String::new(), |rate| format!(" ({rate:.0} tok/s)"));
    let rates =
        |roofline: &RooflineRecord| format!("{:.1} GB/s, {:.1} GFLOP/s", roofline.gbytes_per_s, roofline.gflops_per_s);
    let roofline = share(arm).or_else(|| arm.roofline.as_ref().map(rates)).unwrap_or("-".to_owned());
    let state = |e: &crate::record::EngagedRecord| {
        let reason = e.reason.as_deref().unwrap_or("unknown");
        if e.engaged { format!("{} ({} {})", e.name, e.count, e.counts) } else { format!("{}: no, {reason}", e.name) }
    };
    let engaged: Vec<String> = arm.engaged.iter().map(state).collect();
    let engaged = if engaged.is_empty() { "-".to_owned() } else { engaged.join(", ") };
    let (name, time, memory, n) = (&arm.name, time(arm), memory(arm), arm.samples_s.len());
    format!("| {name} | {time}{rate} | {n} | {verdict} | {memory} | {roofline} | {engaged} |\n")
}

/// Share of the ceiling that binds, and which one that is: `38 % of memory`.
fn share(arm: &ArmRecord) -> Option<String> {
    let roofline = arm.roofline.as_ref()?;
    let ceiling = match (roofline.bound?, &roofline.arithmetic) {
        (Bound::Memory, _) => "memory",
        (Bound::Compute, Some(arithmetic)) => arithmetic,
        (Bound::Compute, None) => "compute",
    };
    Some(format!("{:.0} % of {ceiling}", roofline.share? * 100.0))
}

fn time(arm: &ArmRecord) -> String {
    match arm.median_s {
        None => "-".to_owned(),
        Some(s) if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        Some(s) if s < 1.0 => format!("{:.2} ms", s * 1e3),
        Some(s) => format!("{s:.2} s"),
    }
}

fn memory(arm: &ArmRecord) -> String {
    format!("{:.1} MiB", arm.memory.deciding_bytes() as f64 / f64::from(1 << 20))
}

/// Beyond this an arm's own memory is smaller than what is beside it, and the factor says nothing.
const MOST_SAVINGS: f64 = 1000.0;

/// Memory is mentioned when it differs.
fn savings(variant: &VariantRecord) -> String {
    match variant.memory_savings {
        Some(savings) if savings > MOST_SAVINGS => ", memory next to none".to_owned(),
        Some(savings) if savings > 1.02 => format!(", memory x{savings:.2} smaller"),
        Some(savings) if savings < 0.98 => format!(", memory x{:.2} larger", 1.0 / savings),
        _ => String::new(),
    }
}

/// Requested is not engaged: a line says so.
fn not_engaged(arm: &ArmRecord) -> String {
    let idle: Vec<&str> = arm.engaged.iter().filter(|e| !e.engaged).map(|e| e.name.as_str()).collect();
    if idle.is_empty() { String::new() } else { format!("  [requested, not engaged: {}]", idle.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Ratio, samples};

    #[test]
    fn a_page_says_what_was_measured_and_what_to_doubt() {
        let mut run = samples::run("r1", Ratio { ratio: 2.0, low: 1.9, high: 2.1 });
        run.partial = true;
        run.manifest.build = "debug".into();
        let page = markdown(&run);
        for part in ["Partial", "Debug build", "faster x2.00 [1.90, 2.10]", "noise ±1.0 %", "c0ffee", "`f00d`"] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
    }

    #[test]
    fn what_did_not_engage_is_said() {
        let mut run = samples::run("r1", Ratio { ratio: 2.0, low: 1.9, high: 2.1 });
        let arm = &mut run.labs[0].variants[0].arm;
        arm.engaged.push(crate::record::EngagedRecord {
            name: "paged-kv".into(),
            engaged: false,
            count: 0,
            counts: "tokens".into(),
            reason: Some("engages when a token is stored".into()),
        });
        assert!(lab_lines(&run.labs[0]).contains("[requested, not engaged: paged-kv]"));
        assert!(markdown(&run).contains("paged-kv: no, engages when a token is stored"));
    }
}
