//! The summary table of a result, for people.

use std::fmt::Write as _;

use crate::config::{Config, Load};
use crate::distribution::Distribution;
use crate::result::{BenchResult, Metric};
use crate::{Rate, Spacing};

/// Columns of a figure.
const WIDTH: usize = 12;

impl BenchResult {
    /// The table, with the latencies asked for and the percentiles of the configuration.
    pub fn report(&self, metrics: &[Metric]) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut out, metrics);
        out
    }

    fn write(&self, out: &mut String, metrics: &[Metric]) -> std::fmt::Result {
        let partial = if self.is_partial { "PARTIAL RESULT: stopped before its end\n" } else { "" };
        writeln!(out, "{partial}{} at {}{}", self.model, self.config.base_url, self.config.endpoint.path())?;
        writeln!(out, "{}; {} requests; seed {}", describe_load(&self.config), self.records.len(), self.seed)?;

        writeln!(out, "\nRequests")?;
        row(out, "completed", self.completed, "")?;
        row(out, "failed", self.failed, "")?;
        row(out, "of them rejected (429)", self.rejected, "")?;
        if self.is_partial {
            row(out, "unfinished or unsent", self.aborted, "")?;
        }
        row(out, "peak in flight", self.peak_concurrency, "")?;
        row(out, "duration", format!("{:.2}", self.duration_s), "s")?;
        let offered = self.offered_rate.map_or(String::new(), |rate| format!("   ({rate:.2} offered)"));
        row(out, "throughput", format!("{:.2}", self.request_throughput()), &format!("requests/s{offered}"))?;
        if let Some(goodput) = self.goodput {
            let share = 100.0 * goodput.good as f64 / self.records.len().max(1) as f64;
            let unit = format!("requests/s   ({} good, {share:.1} %: {})", goodput.good, describe_slo(&self.config));
            row(out, "goodput", format!("{:.2}", goodput.requests_per_s), &unit)?;
        }

        writeln!(out, "\nTokens")?;
        let per_s = |per_s: f64| format!("   {:>12} tokens/s", format!("{per_s:.1}"));
        let input_per_s = self.total_token_throughput() - self.output_throughput();
        row(out, "input", self.total_input_tokens, &per_s(input_per_s))?;
        row(out, "output", self.total_output_tokens, &per_s(self.output_throughput()))?;
        let total = self.total_input_tokens + self.total_output_tokens;
        row(out, "total", total, &per_s(self.total_token_throughput()))?;

        write!(out, "\n{:<24}", "Latency (ms)")?;
        let percentiles = &self.config.percentiles;
        for name in ["mean".to_owned(), "std".to_owned()].into_iter().chain(percentiles.iter().map(percentile_name)) {
            write!(out, "{name:>WIDTH$}")?;
        }
        writeln!(out)?;
        for metric in metrics {
            latency_row(out, title(*metric), self.latencies.of(*metric), percentiles)?;
        }
        latency_row(out, "client's send lag", &self.latencies.send_lag_ms, percentiles)?;

        self.write_cost(out)?;
        if !self.failures.is_empty() {
            writeln!(out, "\nFailures")?;
            for failure in &self.failures {
                writeln!(out, "  {:>6} x {}: {}", failure.count, failure.kind.label(), failure.example)?;
            }
        }
        if !self.warnings.is_empty() {
            writeln!(out, "\nWarnings")?;
            self.warnings.iter().try_for_each(|warning| writeln!(out, "  - {warning}"))?;
        }
        Ok(())
    }

    fn write_cost(&self, out: &mut String) -> std::fmt::Result {
        let Some(cost) = self.cost else { return Ok(()) };
        let usd = |value: Option<f64>| value.map_or("none made".to_owned(), |value| format!("{value:.4}"));
        writeln!(out, "\nCost at {:.2} USD an hour, idle time included", cost.hourly_rate)?;
        row(out, "this run", format!("{:.6}", cost.total_usd), "USD")?;
        row(out, "output tokens", usd(cost.per_million_output_tokens), "USD a million")?;
        row(out, "total tokens", usd(cost.per_million_total_tokens), "USD a million")?;
        if self.goodput.is_some() {
            row(out, "good output tokens", usd(cost.per_million_good_tokens), "USD a million")?;
        }
        Ok(())
    }
}

fn row(out: &mut String, name: &str, value: impl ToString, unit: &str) -> std::fmt::Result {
    writeln!(out, "{}", format!("  {name:<22}{:>WIDTH$} {unit}", value.to_string()).trim_end())
}

fn latency_row(out: &mut String, name: &str, values: &Distribution, percentiles: &[f64]) -> std::fmt::Result {
    write!(out, "  {name:<22}")?;
    let figures = [values.mean(), values.std()].into_iter();
    for figure in figures.chain(percentiles.iter().map(|percent| values.percentile(*percent))) {
        match figure {
            Some(figure) => write!(out, "{figure:>WIDTH$.2}")?,
            None => write!(out, "{:>WIDTH$}", "-")?,
        }
    }
    writeln!(out)
}

fn percentile_name(percent: &f64) -> String {
    if *percent == 50.0 { "median".into() } else { format!("p{percent}") }
}

fn title(metric: Metric) -> &'static str {
    match metric {
        Metric::Ttft => "TTFT  to first token",
        Metric::Tpot => "TPOT  per output token",
        Metric::Itl => "ITL   between tokens",
        Metric::E2el => "E2EL  end to end",
    }
}

fn describe_slo(config: &Config) -> String {
    let terms = [("ttft", config.slo.ttft_ms), ("tpot", config.slo.tpot_ms), ("e2el", config.slo.e2el_ms)];
    let set: Vec<String> =
        terms.iter().filter_map(|(name, bound)| bound.map(|bound| format!("{name} <= {bound} ms"))).collect();
    set.join(", ")
}

fn describe_load(config: &Config) -> String {
    let (arrivals, cap) = match &config.load {
        Load::Closed { concurrency } => {
            return format!("closed loop, {concurrency} in flight: queueing before the server is not seen");
        }
        Load::Open { arrivals, max_concurrency } => (arrivals, max_concurrency),
    };
    let rate = match arrivals.rate {
        Rate::AtOnce => "all at once".to_owned(),
        Rate::Fixed { per_s } => format!("{per_s} requests/s"),
        Rate::Linear { start, end } => format!("{start} to {end} requests/s, linear"),
        Rate::Exponential { start, end } => format!("{start} to {end} requests/s, exponential"),
    };
    let spacing = match (arrivals.rate, arrivals.spacing) {
        (Rate::AtOnce, _) => String::new(),
        (_, Spacing::Constant) => ", constant gaps".into(),
        (_, Spacing::Gamma { burstiness: 1.0 }) => ", Poisson".into(),
        (_, Spacing::Gamma { burstiness }) => format!(", gamma gaps of burstiness {burstiness}"),
    };
    let cap = cap.map_or(String::new(), |most| format!(", at most {most} in flight (waiting counts)"));
    format!("open loop, {rate}{spacing}{cap}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arrivals;
    use crate::record::RequestRecord;
    use crate::result::tests::sample;

    #[test]
    fn summary_table() {
        let mut measured = sample();
        measured.config.load = Load::Open { arrivals: Arrivals::poisson(0.5), max_concurrency: None };
        insta::assert_snapshot!(BenchResult::new(measured).report(&Metric::ALL));
    }

    #[test]
    fn partial_table_with_one_metric() {
        let mut measured = sample();
        measured.records.truncate(1);
        measured.records.push(RequestRecord::unsent(1, 1.0));
        measured.config.load = Load::Closed { concurrency: 4 };
        measured.config.percentiles = vec![50.0, 99.9];
        measured.offered_rate = None;
        insta::assert_snapshot!(BenchResult::new(measured).report(&[Metric::Tpot]));
    }

    #[test]
    fn nothing_measured_prints_dashes() {
        let mut measured = sample();
        measured.records = vec![RequestRecord::unsent(0, 0.0)];
        let report = BenchResult::new(measured).report(&Metric::ALL);
        assert!(report.contains("TTFT  to first token             -"), "{report}");
        assert!(report.contains("none made"), "{report}");
    }

    #[test]
    fn loads_are_named() {
        let check = |arrivals, max_concurrency, wanted: &str| {
            let config = Config { load: Load::Open { arrivals, max_concurrency }, ..Config::default() };
            assert_eq!(describe_load(&config), wanted);
        };
        check(Arrivals::poisson(f64::INFINITY), None, "open loop, all at once");
        check(
            Arrivals::poisson(2.0),
            Some(8),
            "open loop, 2 requests/s, Poisson, at most 8 in flight (waiting counts)",
        );
        let ramp = Rate::Linear { start: 1.0, end: 9.0 };
        let spacing = Spacing::Gamma { burstiness: 0.5 };
        check(
            Arrivals { rate: ramp, spacing },
            None,
            "open loop, 1 to 9 requests/s, linear, gamma gaps of burstiness 0.5",
        );
        check(
            Arrivals { rate: Rate::Exponential { start: 1.0, end: 9.0 }, spacing: Spacing::Constant },
            None,
            "open loop, 1 to 9 requests/s, exponential, constant gaps",
        );
    }
}
