//! What a reader must know before believing a result: the client's own error, and what could not be measured.

use crate::result::BenchResult;
use crate::timeline::TokenCounting;
use crate::workload::Sizing;
use crate::{Dataset, RequestRecord};

/// A send lag (p99) above this makes latencies doubtful. Units: milliseconds.
const SEND_LAG_LIMIT_MS: f64 = 5.0;
/// Or above this share of the median time to first token, when it is also above [`SEND_LAG_FLOOR_MS`].
const SEND_LAG_SHARE: f64 = 0.1;
const SEND_LAG_FLOOR_MS: f64 = 1.0;

/// All warnings that a result calls for.
pub(crate) fn warnings(result: &BenchResult) -> Vec<String> {
    let mut warnings = Vec::new();
    if result.is_partial {
        warnings.push(format!("PARTIAL: stopped with {} requests unfinished or unsent", result.aborted));
    }
    warnings.extend(send_lag(result));
    if result.failed > 0 {
        warnings.push(format!(
            "{} of {} requests failed; latencies cover only the {} that completed",
            result.failed,
            result.records.len(),
            result.completed
        ));
    }
    if (1..100).contains(&result.completed) {
        warnings.push(format!("{} completed requests are few for a p99: it is close to the maximum", result.completed));
    }
    warnings.extend(counting(result));
    if result.sizing == Sizing::Words && result.config.dataset == Dataset::Builtin {
        warnings.push("the server has no /tokenize: prompts were sized by words, 1.3 tokens each".into());
    }
    if result.num_repeated_prompts > 0 {
        warnings.push(format!(
            "{} prompts were sent before in this run: a prefix cache knows them",
            result.num_repeated_prompts
        ));
    }
    warnings
}

fn send_lag(result: &BenchResult) -> Option<String> {
    let p99_ms = result.latencies.send_lag_ms.percentile(99.0)?;
    let share_ms = result.latencies.ttft_ms.median().map_or(f64::INFINITY, |ttft_ms| ttft_ms * SEND_LAG_SHARE);
    (p99_ms > SEND_LAG_LIMIT_MS || p99_ms > share_ms.max(SEND_LAG_FLOOR_MS)).then(|| {
        format!(
            "the client itself was late: send lag p99 {p99_ms:.1} ms is inside every latency above; \
             give it a free core, --client-threads, or a lower rate"
        )
    })
}

fn counting(result: &BenchResult) -> Option<String> {
    let streams = || result.records.iter().filter(|record| record.is_completed());
    let has = |counting| streams().any(|record: &RequestRecord| record.counting == Some(counting));
    if has(TokenCounting::Assumed) {
        return Some("the server reports no usage: each event is taken for one token".into());
    }
    if streams().any(|record| !record.prompt_tokens_reported) {
        return Some("the server reports no prompt tokens: input tokens are estimates".into());
    }
    // One token more than events is an end-of-sequence token without an event; more is several tokens an event.
    let spread = streams().filter(|record| record.counting == Some(TokenCounting::Spread)).count();
    (spread * 10 > result.completed).then(|| {
        format!(
            "in {spread} streams the tokens of an event are not known (no continuous_usage_stats): \
             they were dealt evenly, which flattens ITL percentiles"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::Measured;
    use crate::result::tests::sample;

    fn of(change: impl FnOnce(&mut Measured)) -> String {
        let mut measured = sample();
        measured.records.truncate(3);
        change(&mut measured);
        BenchResult::new(measured).warnings.join("\n")
    }

    fn late(measured: &mut Measured, lag_s: f64) {
        for record in &mut measured.records {
            record.sent_s = Some(record.intended_s + lag_s);
        }
    }

    #[test]
    fn each_defect_is_named_and_only_then() {
        let check = |text: &str, change: &dyn Fn(&mut Measured)| {
            assert!(of(change).contains(text), "no \"{text}\" in {}", of(change));
            assert!(!of(|_| {}).contains(text), "\"{text}\" without a cause");
        };
        check("send lag p99 6.0 ms", &|measured| late(measured, 0.006));
        check("send lag p99 2.0 ms", &|measured| {
            late(measured, 0.002);
            measured.records.iter_mut().for_each(|record| record.first_token_s = Some(record.intended_s + 0.01));
        });
        check("1 of 4 requests failed", &|measured| measured.records.push(sample().records.remove(4)));
        check("each event is taken for one token", &|measured| {
            measured.records[0].counting = Some(TokenCounting::Assumed);
        });
        check("dealt evenly", &|measured| measured.records[0].counting = Some(TokenCounting::Spread));
        check("input tokens are estimates", &|measured| measured.records[0].prompt_tokens_reported = false);
        check("sized by words", &|measured| measured.sizing = Sizing::Words);
        check("7 prompts were sent before", &|measured| measured.num_repeated_prompts = 7);
        check("PARTIAL", &|measured| measured.records.push(RequestRecord::unsent(3, 9.0)));
    }

    #[test]
    fn few_samples_are_named() {
        assert!(of(|_| {}).contains("3 completed requests are few"));
        let many = of(|measured| measured.records = measured.records.iter().cycle().take(120).cloned().collect());
        assert_eq!(many, "");
    }
}
