//! The result of a run: what was counted, and what follows from it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::Config;
use crate::cost::{Cost, TokenTotals};
use crate::distribution::Distribution;
use crate::record::{FailureKind, Outcome, RequestRecord};
use crate::warnings::warnings;
use crate::workload::Sizing;

/// Everything known about a run. Latencies are those of completed requests, from their intended arrivals.
#[derive(Debug, Clone)]
pub struct BenchResult {
    /// What was asked for.
    pub config: Config,
    /// The model measured.
    pub model: String,
    /// The seed used, drawn if none was given.
    pub seed: u64,
    /// When it started. Units: seconds since 1970.
    pub started_unix_s: u64,
    /// From the start to the end of the last request, idle time included. Units: seconds.
    pub duration_s: f64,
    /// It was stopped before every request had ended.
    pub is_partial: bool,
    /// Requests per second in the drawn arrivals; `None` for all at once and for a closed loop.
    pub offered_rate: Option<f64>,
    /// How prompts were sized.
    pub sizing: Sizing,
    /// Prompts that were sent before in the same run or warm-up.
    pub num_repeated_prompts: usize,
    /// Requests that completed.
    pub completed: usize,
    /// Requests that failed, rejected ones included.
    pub failed: usize,
    /// Requests answered with 429.
    pub rejected: usize,
    /// Requests that a stop kept from ending, or from being sent.
    pub aborted: usize,
    /// Failures by kind, the most frequent first.
    pub failures: Vec<FailureCount>,
    /// Prompt tokens of the completed requests.
    pub total_input_tokens: u64,
    /// Generated tokens of the completed requests.
    pub total_output_tokens: u64,
    /// The most requests in flight at one time.
    pub peak_concurrency: usize,
    /// Latencies of completed requests, and the client's own error.
    pub latencies: Latencies,
    /// Good requests; `None` when no objective is set.
    pub goodput: Option<Goodput>,
    /// Costs; `None` when no price is set.
    pub cost: Option<Cost>,
    /// What a reader must know before believing the figures.
    pub warnings: Vec<String>,
    /// Every request, in order of arrival.
    pub records: Vec<RequestRecord>,
}

/// The distributions of a run. Units: milliseconds.
#[derive(Debug, Clone, Default)]
pub struct Latencies {
    /// Intended arrival to first token.
    pub ttft_ms: Distribution,
    /// Mean time per token after the first, one sample a request.
    pub tpot_ms: Distribution,
    /// Time between tokens, one sample a token, of all requests together.
    pub itl_ms: Distribution,
    /// Intended arrival to the end of the stream.
    pub e2el_ms: Distribution,
    /// How late the client itself sent; of all requests that were sent.
    pub send_lag_ms: Distribution,
}

/// The latencies that a report can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Time to first token.
    Ttft,
    /// Time per output token.
    Tpot,
    /// Inter-token latency.
    Itl,
    /// End-to-end latency.
    E2el,
}

impl Metric {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 4] = [Self::Ttft, Self::Tpot, Self::Itl, Self::E2el];

    /// The name in flags and JSON keys.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ttft => "ttft",
            Self::Tpot => "tpot",
            Self::Itl => "itl",
            Self::E2el => "e2el",
        }
    }
}

impl Latencies {
    /// The distribution of one metric.
    pub fn of(&self, metric: Metric) -> &Distribution {
        match metric {
            Metric::Ttft => &self.ttft_ms,
            Metric::Tpot => &self.tpot_ms,
            Metric::Itl => &self.itl_ms,
            Metric::E2el => &self.e2el_ms,
        }
    }
}

/// The requests that completed within every objective.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Goodput {
    /// How many.
    pub good: usize,
    /// Tokens that they generated.
    pub good_output_tokens: u64,
    /// Good requests per second of the run.
    pub requests_per_s: f64,
}

/// How often requests failed in one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailureCount {
    /// The way.
    pub kind: FailureKind,
    /// How often.
    pub count: usize,
    /// What the first of them said.
    pub example: String,
}

/// What a run measured; [`BenchResult::new`] derives the rest.
#[derive(Debug, Clone)]
pub struct Measured {
    /// What was asked for.
    pub config: Config,
    /// The model measured.
    pub model: String,
    /// The seed used.
    pub seed: u64,
    /// When it started. Units: seconds since 1970.
    pub started_unix_s: u64,
    /// From the start to when the run was over or stopped. Units: seconds.
    pub elapsed_s: f64,
    /// Requests per second in the drawn arrivals.
    pub offered_rate: Option<f64>,
    /// How prompts were sized.
    pub sizing: Sizing,
    /// Prompts that were sent before.
    pub num_repeated_prompts: usize,
    /// Every request, in order of arrival.
    pub records: Vec<RequestRecord>,
}

impl BenchResult {
    /// Derives all figures from the records.
    pub fn new(measured: Measured) -> Self {
        let Measured { config, records, .. } = measured;
        let completed: Vec<&RequestRecord> = records.iter().filter(|record| record.is_completed()).collect();
        let aborted = records.iter().filter(|record| record.outcome == Outcome::Aborted).count();
        let failures = count_failures(&records);
        let last_end_s = records.iter().filter_map(|record| record.ended_s).fold(0.0, f64::max);
        let duration_s = if aborted > 0 { measured.elapsed_s } else { last_end_s };
        let total_input_tokens = completed.iter().map(|record| record.prompt_tokens).sum();
        let total_output_tokens = completed.iter().map(|record| record.output_tokens).sum();
        let goodput = (!config.slo.is_empty()).then(|| {
            let good: Vec<_> = completed.iter().filter(|record| config.slo.is_met_by(record)).collect();
            Goodput {
                good: good.len(),
                good_output_tokens: good.iter().map(|record| record.output_tokens).sum(),
                requests_per_s: per_s(good.len() as f64, duration_s),
            }
        });
        let tokens = TokenTotals {
            input: total_input_tokens,
            output: total_output_tokens,
            good_output: goodput.map(|goodput| goodput.good_output_tokens),
        };
        let mut result = Self {
            model: measured.model,
            seed: measured.seed,
            started_unix_s: measured.started_unix_s,
            duration_s,
            is_partial: aborted > 0,
            offered_rate: measured.offered_rate,
            sizing: measured.sizing,
            num_repeated_prompts: measured.num_repeated_prompts,
            completed: completed.len(),
            failed: records.len() - completed.len() - aborted,
            rejected: failures.iter().filter(|one| one.kind == FailureKind::Rejected).map(|one| one.count).sum(),
            aborted,
            failures,
            total_input_tokens,
            total_output_tokens,
            peak_concurrency: peak_concurrency(&records),
            latencies: latencies(&records, &completed),
            goodput,
            cost: config.hourly_rate.map(|rate| Cost::of(rate, duration_s, tokens)),
            warnings: Vec::new(),
            config,
            records,
        };
        result.warnings = warnings(&result);
        result
    }

    /// Completed requests per second.
    pub fn request_throughput(&self) -> f64 {
        per_s(self.completed as f64, self.duration_s)
    }

    /// Generated tokens per second.
    pub fn output_throughput(&self) -> f64 {
        per_s(self.total_output_tokens as f64, self.duration_s)
    }

    /// Prompt and generated tokens per second.
    pub fn total_token_throughput(&self) -> f64 {
        per_s((self.total_input_tokens + self.total_output_tokens) as f64, self.duration_s)
    }
}

fn per_s(count: f64, duration_s: f64) -> f64 {
    if duration_s > 0.0 { count / duration_s } else { 0.0 }
}

fn latencies(records: &[RequestRecord], completed: &[&RequestRecord]) -> Latencies {
    let of = |value: fn(&RequestRecord) -> Option<f64>| {
        Distribution::of(completed.iter().filter_map(|record| value(record)).map(|value_s| value_s * 1e3))
    };
    Latencies {
        ttft_ms: of(RequestRecord::ttft_s),
        tpot_ms: of(|record| record.tpot_s),
        itl_ms: Distribution::of(completed.iter().flat_map(|record| &record.itl_s).map(|gap_s| gap_s * 1e3)),
        e2el_ms: of(RequestRecord::e2el_s),
        send_lag_ms: Distribution::of(records.iter().filter_map(RequestRecord::send_lag_s).map(|lag_s| lag_s * 1e3)),
    }
}

fn count_failures(records: &[RequestRecord]) -> Vec<FailureCount> {
    let mut by_kind: BTreeMap<FailureKind, FailureCount> = BTreeMap::new();
    for record in records {
        if let Outcome::Failed { kind, message } = &record.outcome {
            let new = || FailureCount { kind: *kind, count: 0, example: message.clone() };
            by_kind.entry(*kind).or_insert_with(new).count += 1;
        }
    }
    let mut failures: Vec<FailureCount> = by_kind.into_values().collect();
    failures.sort_by_key(|failure| std::cmp::Reverse(failure.count));
    failures
}

fn peak_concurrency(records: &[RequestRecord]) -> usize {
    // At equal times an end comes before a start.
    let mut changes: Vec<(f64, i64)> = records
        .iter()
        .filter_map(|record| record.sent_s.zip(record.ended_s))
        .flat_map(|(sent_s, ended_s)| [(sent_s, 1), (ended_s, -1)])
        .collect();
    changes.sort_by(|left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)));
    let (_, peak) =
        changes.iter().fold((0_i64, 0_i64), |(now, peak), (_, change)| (now + change, peak.max(now + change)));
    peak.max(0) as usize
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Slo;
    use crate::record::tests::completed;
    use crate::record::{FailureKind, Outcome};

    fn failed(intended_s: f64, kind: FailureKind, message: &str) -> RequestRecord {
        RequestRecord {
            outcome: Outcome::Failed { kind, message: message.into() },
            ..completed(intended_s, 0.1, 0.02, 0.2)
        }
    }

    /// Five requests over ten seconds: three completed (one of them slow), one rejected, one cut off.
    pub(crate) fn sample() -> Measured {
        Measured {
            config: Config {
                slo: Slo::parse(["ttft:200 tpot:50 e2el:5000".replace(' ', ",").as_str()]).unwrap(),
                hourly_rate: Some(3.6),
                seed: Some(42),
                ..Config::default()
            },
            model: "story-12m".into(),
            seed: 42,
            started_unix_s: 1_790_000_000,
            elapsed_s: 11.0,
            offered_rate: Some(0.5),
            sizing: Sizing::Tokenizer,
            num_repeated_prompts: 0,
            records: vec![
                completed(0.0, 0.100, 0.020, 1.0),
                completed(1.0, 0.150, 0.030, 2.0),
                completed(2.0, 0.900, 0.040, 8.0),
                failed(3.0, FailureKind::Rejected, "queue is full"),
                failed(4.0, FailureKind::Truncated, "the stream ended without [DONE]"),
            ],
        }
    }

    #[test]
    fn figures_by_hand() {
        let result = BenchResult::new(sample());
        assert_eq!((result.completed, result.failed, result.rejected, result.aborted), (3, 2, 1, 0));
        assert_eq!(result.duration_s, 10.0, "the slow one ends at 2 + 8 s");
        assert_eq!((result.total_input_tokens, result.total_output_tokens), (15, 9));
        assert_eq!(result.request_throughput(), 0.3);
        assert_eq!(result.output_throughput(), 0.9);
        assert_eq!(result.total_token_throughput(), 2.4);
        let goodput = result.goodput.unwrap();
        assert_eq!((goodput.good, goodput.good_output_tokens, goodput.requests_per_s), (2, 6, 0.2));
        // 3.60 USD an hour for 10 s is a cent: over 9 tokens, 24 tokens and 6 good tokens.
        let cost = result.cost.unwrap();
        let near = |got: Option<f64>, want: f64| assert!((got.unwrap() / want - 1.0).abs() < 1e-12);
        near(Some(cost.total_usd), 0.01);
        near(cost.per_million_output_tokens, 0.01 / 9.0 * 1e6);
        near(cost.per_million_total_tokens, 0.01 / 24.0 * 1e6);
        near(cost.per_million_good_tokens, 0.01 / 6.0 * 1e6);
        near(result.latencies.ttft_ms.median(), 150.0);
        near(result.latencies.e2el_ms.max(), 8000.0);
        assert_eq!(result.latencies.itl_ms.len(), 6, "one sample a token");
        assert_eq!(result.latencies.send_lag_ms.len(), 5);
        // Sent at 0, 1, 2, 3, 4 s; ended at 1, 3, 10, 3.2, 4.2 s.
        assert_eq!(result.peak_concurrency, 2);
    }

    #[test]
    fn a_stopped_run_is_partial_and_lasts_until_the_stop() {
        let mut measured = sample();
        measured.records.push(RequestRecord::unsent(5, 5.0));
        let result = BenchResult::new(measured);
        assert_eq!((result.is_partial, result.aborted, result.failed, result.duration_s), (true, 1, 2, 11.0));
    }

    #[test]
    fn nothing_done_gives_zeros_and_no_latency() {
        let result = BenchResult::new(Measured { records: vec![RequestRecord::unsent(0, 0.0)], ..sample() });
        assert_eq!((result.completed, result.request_throughput()), (0, 0.0));
        assert!(result.latencies.ttft_ms.is_empty());
        assert_eq!(result.cost.unwrap().per_million_good_tokens, None);
    }
}
