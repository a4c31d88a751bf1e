//! One sequence's contribution to the histograms.

use std::time::{Duration, Instant};

use aisp_engine::{FinishReason, RequestTimings};

use super::Metrics;

/// Follows one sequence from its first token to its end. Dropped before the end, it counts as aborted.
#[derive(Debug)]
pub struct RequestMetrics {
    metrics: Metrics,
    arrival: Instant,
    latest: Option<RequestTimings>,
    num_generated_tokens: usize,
    ended: bool,
}

impl RequestMetrics {
    /// A sequence whose HTTP request arrived at `arrival`.
    pub fn new(metrics: Metrics, arrival: Instant) -> Self {
        Self { metrics, arrival, latest: None, num_generated_tokens: 0, ended: false }
    }

    /// A step brought `num_tokens` tokens.
    ///
    /// Time to first token runs until this call, where the token is handed to the connection: that is what a client
    /// sees. Inter-token latency is the engine's own, so that a client that reads slowly does not distort it.
    pub fn tokens(&mut self, num_tokens: usize, timings: &RequestTimings) {
        if num_tokens == 0 {
            return;
        }
        self.metrics.generation_tokens.increment(num_tokens as u64);
        self.num_generated_tokens += num_tokens;
        match self.latest.replace(*timings) {
            None => self.first_token(timings),
            Some(before) => {
                let gap = between(before.last_token, timings.last_token);
                for _ in 0..num_tokens {
                    self.metrics.inter_token_latency.record(gap / num_tokens as f64);
                }
            }
        }
    }

    fn first_token(&self, timings: &RequestTimings) {
        let metrics = &self.metrics;
        metrics.prompt_tokens.increment(timings.num_prompt_tokens as u64);
        metrics.request_prompt_tokens.record(timings.num_prompt_tokens as f64);
        metrics.time_to_first_token.record(self.arrival.elapsed().as_secs_f64());
        metrics.queue_time.record(between(Some(self.arrival), timings.first_scheduled));
        metrics.prefill_time.record(between(timings.first_scheduled, timings.first_token));
    }

    /// The sequence ended.
    pub fn end(&mut self, reason: FinishReason) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let metrics = &self.metrics;
        metrics.finished(reason).increment(1);
        let Some(timings) = self.latest else { return };
        metrics.request_generation_tokens.record(self.num_generated_tokens as f64);
        metrics.decode_time.record(between(timings.first_token, timings.last_token));
        metrics.inference_time.record(between(timings.first_scheduled, timings.last_token));
        if reason != FinishReason::Abort {
            metrics.e2e_request_latency.record(self.arrival.elapsed().as_secs_f64());
        }
    }
}

impl Drop for RequestMetrics {
    fn drop(&mut self) {
        self.end(FinishReason::Abort);
    }
}

fn between(from: Option<Instant>, to: Option<Instant>) -> f64 {
    match (from, to) {
        (Some(from), Some(to)) => to.saturating_duration_since(from),
        _ => Duration::ZERO,
    }
    .as_secs_f64()
}
