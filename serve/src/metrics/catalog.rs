//! The one list of metrics: name, type, help.

use super::Namespace;
use super::buckets::{INTER_TOKEN_SECONDS, REQUEST_SECONDS, TOKENS};

/// One row.
#[derive(Debug)]
pub struct Metric {
    /// Name without prefix, as vLLM's but for `iteration_tokens`.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// The HELP line.
    pub help: &'static str,
}

/// Type of a metric.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Goes up only.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts in buckets, with these upper bounds.
    Histogram(&'static [f64]),
}

impl Metric {
    /// The name as `/metrics` shows it.
    pub fn full_name(&self, namespace: Namespace) -> String {
        match namespace {
            Namespace::Aisp => format!("aisp_{}", self.name),
            // vLLM gives this histogram a counter's suffix, which Prometheus' rules forbid.
            Namespace::Vllm if self.name == "iteration_tokens" => "vllm:iteration_tokens_total".into(),
            Namespace::Vllm => format!("vllm:{}", self.name),
        }
    }
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, help }
}

const fn histogram(name: &'static str, buckets: &'static [f64], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram(buckets), help }
}

/// Every metric.
pub const METRICS: &[Metric] = &[
    gauge("num_requests_running", "Sequences that have room in the KV cache."),
    gauge("num_requests_waiting", "Sequences that wait for room."),
    gauge("num_requests_waiting_by_reason", "The same, by what the first of them waits for."),
    gauge("kv_cache_usage_perc", "Share of the KV cache that is reserved, 0 to 1."),
    counter("num_preemptions_total", "Sequences that gave their room back and were computed again."),
    counter("prefix_cache_queries_total", "Tokens of sequences for which the prefix cache was asked."),
    counter("prefix_cache_hits_total", "Tokens of these that were found and not computed again."),
    counter("prompt_tokens_total", "Prompt tokens of requests that got their first token."),
    counter("generation_tokens_total", "Tokens generated."),
    counter("request_success_total", "Sequences that ended, by the reason."),
    counter("admission_rejections_total", "Requests refused before they began, by the reason."),
    gauge("optimization_requested", "1 if the optimization was asked for."),
    gauge("optimization_engaged", "1 if the optimization has really run."),
    counter("optimization_uses_total", "How often the optimization has run, in the unit that /v1/optimizations names."),
    histogram("time_to_first_token_seconds", REQUEST_SECONDS, "From a request's arrival to its first token."),
    histogram("inter_token_latency_seconds", INTER_TOKEN_SECONDS, "Between two tokens of a sequence, for each token."),
    histogram("e2e_request_latency_seconds", REQUEST_SECONDS, "From a request's arrival to its last token."),
    histogram("request_queue_time_seconds", REQUEST_SECONDS, "From a request's arrival to its first step."),
    histogram("request_prefill_time_seconds", REQUEST_SECONDS, "From a request's first step to its first token."),
    histogram("request_decode_time_seconds", REQUEST_SECONDS, "From a request's first to its last token."),
    histogram("request_inference_time_seconds", REQUEST_SECONDS, "From a request's first step to its last token."),
    histogram("request_prompt_tokens", TOKENS, "Tokens of a request's prompt."),
    histogram("request_generation_tokens", TOKENS, "Tokens of a request's answer."),
    histogram("iteration_tokens", TOKENS, "Tokens that one engine step computed."),
];
