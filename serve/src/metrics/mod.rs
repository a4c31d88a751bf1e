//! What `/metrics` shows. Every handle is made once at the start, so recording is an atomic operation and the set of
//! series never grows. Names are vLLM's (`catalog`), under the prefix `aisp_` or `vllm:`.

mod buckets;
mod catalog;
mod request_metrics;

use std::str::FromStr;

use aisp_engine::scheduler::WaitingReason;
use aisp_engine::{EngineStats, FinishReason, Optimization, OptimizationStatus};
use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, SharedString};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use catalog::{Kind, METRICS, Metric};
pub use request_metrics::RequestMetrics;

/// The prefix of every name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Namespace {
    /// `aisp_`: passes `promtool check metrics`.
    #[default]
    Aisp,
    /// `vllm:`, for dashboards and gateways that know vLLM. Its names break Prometheus' own rules: that is vLLM's way.
    Vllm,
}

impl FromStr for Namespace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "aisp" => Ok(Self::Aisp),
            "vllm" => Ok(Self::Vllm),
            other => Err(format!("unknown namespace `{other}`: choose aisp or vllm")),
        }
    }
}

/// Every series. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
    requests_running: Gauge,
    requests_waiting: Gauge,
    requests_waiting_by_reason: [(WaitingReason, Gauge); WaitingReason::ALL.len()],
    kv_cache_usage: Gauge,
    preemptions: Counter,
    prefix_cache_queries: Counter,
    prefix_cache_hits: Counter,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    finished: [Counter; 3],
    rejected: Vec<(&'static str, Counter)>,
    optimizations: Vec<OptimizationSeries>,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    e2e_request_latency: Histogram,
    queue_time: Histogram,
    prefill_time: Histogram,
    decode_time: Histogram,
    inference_time: Histogram,
    request_prompt_tokens: Histogram,
    request_generation_tokens: Histogram,
    iteration_tokens: Histogram,
}

#[derive(Clone)]
struct OptimizationSeries {
    requested: Gauge,
    engaged: Gauge,
    uses: Counter,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Why an admission can be refused, as label values.
const REJECTIONS: [&str; 4] = ["queue_full", "queued_tokens", "loading", "draining"];

impl Metrics {
    /// All series at zero, each labelled with the model's name.
    ///
    /// Errors: never in practice; an exporter that refuses the built-in buckets.
    pub fn new(namespace: Namespace, model_name: &str) -> Result<Self, BuildError> {
        let registrar = Registrar::new(namespace, model_name)?;
        let label = |key: &'static str, value: &'static str| vec![Label::from_static_parts(key, value)];
        let finished = [FinishReason::Stop, FinishReason::Length, FinishReason::Abort]
            .map(|reason| registrar.counter("request_success_total", label("finished_reason", reason.as_str())));
        let rejected =
            REJECTIONS.map(|reason| (reason, registrar.counter("admission_rejections_total", label("reason", reason))));
        let optimizations = Optimization::ALL.map(|optimization| {
            let labels = || label("optimization", optimization.name());
            OptimizationSeries {
                requested: registrar.gauge("optimization_requested", labels()),
                engaged: registrar.gauge("optimization_engaged", labels()),
                uses: registrar.counter("optimization_uses_total", labels()),
            }
        });
        let none = Vec::new;
        Ok(Self {
            requests_running: registrar.gauge("num_requests_running", none()),
            requests_waiting: registrar.gauge("num_requests_waiting", none()),
            requests_waiting_by_reason: WaitingReason::ALL.map(|reason| {
                let labels = label("reason", reason.as_str());
                (reason, registrar.gauge("num_requests_waiting_by_reason", labels))
            }),
            kv_cache_usage: registrar.gauge("kv_cache_usage_perc", none()),
            preemptions: registrar.counter("num_preemptions_total", none()),
            prefix_cache_queries: registrar.counter("prefix_cache_queries_total", none()),
            prefix_cache_hits: registrar.counter("prefix_cache_hits_total", none()),
            prompt_tokens: registrar.counter("prompt_tokens_total", none()),
            generation_tokens: registrar.counter("generation_tokens_total", none()),
            finished,
            rejected: rejected.into(),
            optimizations: optimizations.into(),
            time_to_first_token: registrar.histogram("time_to_first_token_seconds"),
            inter_token_latency: registrar.histogram("inter_token_latency_seconds"),
            e2e_request_latency: registrar.histogram("e2e_request_latency_seconds"),
            queue_time: registrar.histogram("request_queue_time_seconds"),
            prefill_time: registrar.histogram("request_prefill_time_seconds"),
            decode_time: registrar.histogram("request_decode_time_seconds"),
            inference_time: registrar.histogram("request_inference_time_seconds"),
            request_prompt_tokens: registrar.histogram("request_prompt_tokens"),
            request_generation_tokens: registrar.histogram("request_generation_tokens"),
            iteration_tokens: registrar.histogram("iteration_tokens"),
            handle: registrar.recorder.handle(),
        })
    }

    /// The text of `/metrics`.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds recorded samples into the buckets. Samples are kept one by one until then, so this runs every few
    /// seconds.
    pub fn run_upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// A request was refused before it began.
    pub fn count_rejection(&self, reason: &crate::ApiError) {
        let word = match reason {
            crate::ApiError::Busy { what: "--max-num-queued-tokens" } => "queued_tokens",
            crate::ApiError::Busy { .. } => "queue_full",
            crate::ApiError::Loading => "loading",
            crate::ApiError::ShuttingDown => "draining",
            _ => return,
        };
        if let Some((_, counter)) = self.rejected.iter().find(|(reason, _)| *reason == word) {
            counter.increment(1);
        }
    }

    /// The engine's state between two steps.
    pub fn set_engine(&self, stats: &EngineStats) {
        self.requests_running.set(stats.num_requests_running as f64);
        self.requests_waiting.set(stats.num_requests_waiting as f64);
        for (reason, gauge) in &self.requests_waiting_by_reason {
            let counts = stats.waiting_reason == Some(*reason);
            gauge.set(if counts { stats.num_requests_waiting as f64 } else { 0.0 });
        }
        self.prefix_cache_queries.absolute(stats.scheduler.num_prefix_queried_tokens);
        self.prefix_cache_hits.absolute(stats.scheduler.num_prefix_hit_tokens);
        self.kv_cache_usage.set(stats.kv.share());
        self.preemptions.absolute(stats.scheduler.num_preemptions);
    }

    /// A step computed this many tokens.
    pub fn record_step(&self, num_tokens: usize) {
        self.iteration_tokens.record(num_tokens as f64);
    }

    /// What was asked for and what ran, in the registry's order.
    pub fn set_optimizations(&self, statuses: &[OptimizationStatus]) {
        let on = |flag: bool| if flag { 1.0 } else { 0.0 };
        for (series, status) in self.optimizations.iter().zip(statuses) {
            series.requested.set(on(status.requested));
            series.engaged.set(on(status.engaged));
            series.uses.absolute(status.count);
        }
    }

    fn finished(&self, reason: FinishReason) -> &Counter {
        match reason {
            FinishReason::Stop => &self.finished[0],
            FinishReason::Length => &self.finished[1],
            FinishReason::Abort => &self.finished[2],
        }
    }
}

/// Makes handles out of the catalog's rows.
struct Registrar {
    namespace: Namespace,
    recorder: PrometheusRecorder,
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

impl Registrar {
    fn new(namespace: Namespace, model_name: &str) -> Result<Self, BuildError> {
        let mut builder = PrometheusBuilder::new().add_global_label("model_name", model_name);
        for metric in METRICS {
            if let Kind::Histogram(buckets) = metric.kind {
                builder = builder.set_buckets_for_metric(Matcher::Full(metric.full_name(namespace)), buckets)?;
            }
        }
        let recorder = builder.build_recorder();
        for metric in METRICS {
            let name = metric.full_name(namespace).into();
            let help = SharedString::const_str(metric.help);
            match metric.kind {
                Kind::Counter => recorder.describe_counter(name, None, help),
                Kind::Gauge => recorder.describe_gauge(name, None, help),
                Kind::Histogram(_) => recorder.describe_histogram(name, None, help),
            }
        }
        Ok(Self { namespace, recorder })
    }

    fn key(&self, name: &str, labels: Vec<Label>) -> Key {
        let full_name =
            METRICS.iter().find(|metric| metric.name == name).map(|metric: &Metric| metric.full_name(self.namespace));
        debug_assert!(full_name.is_some(), "{name} is not in the catalog");
        Key::from_parts(full_name.unwrap_or_default(), labels)
    }

    fn counter(&self, name: &str, labels: Vec<Label>) -> Counter {
        self.recorder.register_counter(&self.key(name, labels), &METADATA)
    }

    fn gauge(&self, name: &str, labels: Vec<Label>) -> Gauge {
        self.recorder.register_gauge(&self.key(name, labels), &METADATA)
    }

    fn histogram(&self, name: &str) -> Histogram {
        self.recorder.register_histogram(&self.key(name, Vec::new()), &METADATA)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_the_catalog_is_shown_from_the_start_in_both_namespaces() {
        for namespace in [Namespace::Aisp, Namespace::Vllm] {
            let text = Metrics::new(namespace, "m").unwrap().render();
            for metric in METRICS {
                let name = metric.full_name(namespace);
                assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help in\n{text}");
                assert!(text.contains(&format!("# TYPE {name} ")), "{name} has no type");
                assert!(text.contains("model_name=\"m\""), "{name}");
            }
        }
    }

    #[test]
    fn a_model_name_cannot_break_the_format() {
        let text = Metrics::new(Namespace::Aisp, "a\"b\\c\nd").unwrap().render();
        assert!(text.contains(r#"model_name="a\"b\\c\nd""#), "{text}");
    }

    #[test]
    fn rejections_are_counted_by_reason() {
        let metrics = Metrics::new(Namespace::Aisp, "m").unwrap();
        metrics.count_rejection(&crate::ApiError::Busy { what: "--max-num-queued-reqs" });
        metrics.count_rejection(&crate::ApiError::Unauthorized);
        let text = metrics.render();
        assert!(text.contains(r#"aisp_admission_rejections_total{model_name="m",reason="queue_full"} 1"#), "{text}");
        assert!(text.contains(r#"aisp_admission_rejections_total{model_name="m",reason="draining"} 0"#), "{text}");
    }
}
