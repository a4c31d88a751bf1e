//! Which rows would do under limits of memory, latency and throughput. A missing figure is unknown, never 0.

use serde::Serialize;

use super::rows::{Group, Row};

const BYTES_PER_GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// Limits that a row must keep; those not given do not count.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, serde::Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Most memory, in GiB
    #[arg(long)]
    pub vram: Option<f64>,
    /// Most latency, in milliseconds
    #[arg(long)]
    pub latency: Option<f64>,
    /// Least work a second, in the unit of each row
    #[arg(long)]
    pub throughput: Option<f64>,
}

/// Whether a row keeps the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// It keeps all.
    Fits,
    /// A figure that a limit needs was not measured.
    Unknown,
    /// It breaks one.
    DoesNotFit,
}

/// A row under the limits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Candidate<'a> {
    /// `chapter:name`.
    pub lab: &'a str,
    /// Device that ran it.
    pub device: &'a str,
    /// Hash of the inputs.
    pub workload: &'a str,
    /// The row.
    pub row: &'a Row,
    /// Whether it fits.
    pub fit: Fit,
    /// The limits it breaks, and the figures that are missing.
    pub reasons: Vec<String>,
}

/// Every row under the limits: those that fit first, then the unknown; in the order of the groups within.
pub fn whatif<'a>(groups: &'a [Group], limits: &Limits) -> Vec<Candidate<'a>> {
    let mut candidates = Vec::new();
    for group in groups {
        for row in &group.rows {
            let (fit, reasons) = judge(row, limits);
            let Group { lab, device, workload, .. } = group;
            candidates.push(Candidate { lab, device, workload, row, fit, reasons });
        }
    }
    candidates.sort_by_key(|candidate| candidate.fit as u8);
    candidates
}

fn judge(row: &Row, limits: &Limits) -> (Fit, Vec<String>) {
    if row.median_s.is_none() {
        return (Fit::DoesNotFit, vec!["outputs wrong or not timed".to_owned()]);
    }
    let memory_gib = row.memory_bytes.map(|bytes| bytes as f64 / BYTES_PER_GIB);
    let rate = row.rate.map(|rate| rate.per_s);
    let checks = [
        limits.vram.map(|most| at_most("memory", memory_gib, most, "GiB")),
        limits.latency.map(|most| at_most("latency", row.latency_ms, most, "ms")),
        limits.throughput.map(|least| match rate {
            None => (Fit::Unknown, "throughput unknown".to_owned()),
            Some(rate) if rate >= least => (Fit::Fits, String::new()),
            Some(rate) => (Fit::DoesNotFit, format!("throughput {rate:.1} < {least}")),
        }),
    ];
    let broken: Vec<_> = checks.into_iter().flatten().filter(|(fit, _)| *fit != Fit::Fits).collect();
    let fit = match broken.iter().map(|(fit, _)| *fit as u8).max() {
        None => Fit::Fits,
        Some(worst) if worst == Fit::Unknown as u8 => Fit::Unknown,
        Some(_) => Fit::DoesNotFit,
    };
    (fit, broken.into_iter().map(|(_, reason)| reason).collect())
}

fn at_most(what: &str, figure: Option<f64>, most: f64, unit: &str) -> (Fit, String) {
    match figure {
        None => (Fit::Unknown, format!("{what} unknown")),
        Some(figure) if figure <= most => (Fit::Fits, String::new()),
        Some(figure) => (Fit::DoesNotFit, format!("{what} {figure:.3} {unit} > {most} {unit}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::{groups, samples};
    use super::*;

    fn check(limits: Limits, expected: &[(&str, Fit)]) {
        let mut run = samples::run("r", &[("fast", 4.0, 150), ("unknown", 4.0, 0), ("broken", 9.0, 1)]);
        samples::wrong(&mut run, 2);
        let groups = groups(&[run]);
        let fits: Vec<_> = whatif(&groups, &limits).iter().map(|it| (it.row.arm.clone(), it.fit)).collect();
        let expected: Vec<_> = expected.iter().map(|(arm, fit)| ((*arm).to_owned(), *fit)).collect();
        assert_eq!(fits, expected, "{limits:?}");
    }

    #[test]
    fn limits_sort_rows_and_missing_memory_is_unknown() {
        use Fit::{DoesNotFit, Fits, Unknown};
        let none = Limits::default();
        check(none, &[("concatenate", Fits), ("fast", Fits), ("unknown", Fits), ("broken", DoesNotFit)]);
        // 100 MiB are 0.098 GiB.
        let vram = Limits { vram: Some(0.1), ..none };
        check(vram, &[("concatenate", Fits), ("unknown", Unknown), ("fast", DoesNotFit), ("broken", DoesNotFit)]);
        // 2 s and 0.5 s an iteration; a broken limit outweighs an unknown one.
        let both = Limits { latency: Some(1000.0), vram: Some(1.0), ..none };
        check(both, &[("fast", Fits), ("unknown", Unknown), ("concatenate", DoesNotFit), ("broken", DoesNotFit)]);
        // 50 and 200 tokens a second.
        let rate = Limits { throughput: Some(100.0), ..none };
        check(rate, &[("fast", Fits), ("unknown", Fits), ("concatenate", DoesNotFit), ("broken", DoesNotFit)]);
    }
}
