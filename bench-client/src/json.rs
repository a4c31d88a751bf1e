//! The saved form of a result: the keys of `vllm bench serve`, and ours.

use serde_json::{Map, Value, json};

use crate::config::Load;
use crate::distribution::Distribution;
use crate::result::{BenchResult, Metric};

/// How much of a result is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Figures, settings, arrivals.
    Summary,
    /// Also every request, with every sample.
    Samples,
}

impl BenchResult {
    /// One flat object. Latencies are in milliseconds, times in seconds; a figure that could not be measured is null.
    pub fn to_json(&self, detail: Detail) -> Value {
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| {
            map.insert(key.to_owned(), value);
        };
        put("client", concat!("bench-client ", env!("CARGO_PKG_VERSION")).into());
        put("started_unix_s", self.started_unix_s.into());
        put("model_id", self.model.as_str().into());
        put("partial", self.is_partial.into());
        put("num_prompts", self.records.len().into());
        put("request_rate", self.request_rate());
        put("offered_request_rate", self.offered_rate.into());
        put("max_concurrency", self.max_concurrency().into());
        put("seed", self.seed.into());
        put("duration", self.duration_s.into());
        put("completed", self.completed.into());
        put("failed", self.failed.into());
        put("rejected", self.rejected.into());
        put("aborted", self.aborted.into());
        put("errors", json!(self.failures));
        put("total_input_tokens", self.total_input_tokens.into());
        put("total_output_tokens", self.total_output_tokens.into());
        put("request_throughput", self.request_throughput().into());
        put("request_goodput", self.goodput.map(|goodput| goodput.requests_per_s).into());
        put("output_throughput", self.output_throughput().into());
        put("total_token_throughput", self.total_token_throughput().into());
        put("peak_concurrency", self.peak_concurrency.into());
        for metric in Metric::ALL {
            put_distribution(&mut put, metric.name(), self.latencies.of(metric), &self.config.percentiles);
        }
        put_distribution(&mut put, "send_lag", &self.latencies.send_lag_ms, &self.config.percentiles);
        put("max_send_lag_ms", self.latencies.send_lag_ms.max().into());
        put("goodput", json!(self.goodput));
        put("cost", json!(self.cost));
        put("prompts_sized_by", json!(self.sizing));
        put("warnings", json!(self.warnings));
        put("config", json!(self.config));
        put("arrivals_s", self.records.iter().map(|record| record.intended_s).collect());
        if detail == Detail::Samples {
            put("requests", json!(self.records));
        }
        Value::Object(map)
    }

    fn request_rate(&self) -> Value {
        match &self.config.load {
            Load::Open { arrivals, .. } => match arrivals.rate.at(0, self.records.len()) {
                Some(per_s) => per_s.into(),
                None => "inf".into(),
            },
            Load::Closed { .. } => "inf".into(),
        }
    }

    fn max_concurrency(&self) -> Option<usize> {
        match self.config.load {
            Load::Open { max_concurrency, .. } => max_concurrency,
            Load::Closed { concurrency } => Some(concurrency),
        }
    }
}

/// The keys `mean_`, `median_`, `std_`, `p90_`, `p95_`, `p99_`, and any other percentile asked for.
fn put_distribution(put: &mut impl FnMut(&str, Value), name: &str, values: &Distribution, percentiles: &[f64]) {
    put(&format!("mean_{name}_ms"), values.mean().into());
    put(&format!("median_{name}_ms"), values.median().into());
    put(&format!("std_{name}_ms"), values.std().into());
    for percent in [90.0, 95.0, 99.0].iter().chain(percentiles) {
        put(&format!("p{percent}_{name}_ms"), values.percentile(*percent).into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::sample;

    #[test]
    fn has_the_keys_that_vllm_users_read() {
        let json = BenchResult::new(sample()).to_json(Detail::Summary);
        let keys = "duration completed failed total_input_tokens total_output_tokens request_throughput \
                    request_goodput output_throughput total_token_throughput";
        for key in keys.split_whitespace() {
            assert!(json[key].is_number(), "{key}");
        }
        for metric in ["ttft", "tpot", "itl", "e2el"] {
            for statistic in ["mean", "median", "std", "p50", "p90", "p95", "p99"] {
                assert!(json[format!("{statistic}_{metric}_ms")].is_number(), "{statistic} of {metric}");
            }
        }
        assert_eq!(json["completed"], 3);
        assert_eq!(json["errors"][0], json!({"kind": "rejected (429)", "count": 1, "example": "queue is full"}));
        assert_eq!(json["arrivals_s"], json!([0.0, 1.0, 2.0, 3.0, 4.0]));
        assert_eq!(json["config"]["slo"]["ttft_ms"], 200.0);
        assert!(json.get("requests").is_none());
    }

    #[test]
    fn samples_on_request_and_odd_percentiles() {
        let mut measured = sample();
        measured.config.percentiles = vec![99.9];
        let json = BenchResult::new(measured).to_json(Detail::Samples);
        assert!(json["p99.9_ttft_ms"].is_number());
        assert_eq!(json["requests"][2]["itl_s"], json!([0.04, 0.04]));
        assert_eq!(json["requests"][4]["outcome"]["failed"]["kind"], "truncated stream");
    }

    #[test]
    fn what_was_not_measured_is_null() {
        let mut measured = sample();
        measured.records.truncate(0);
        measured.config.slo = crate::Slo::default();
        let json = BenchResult::new(measured).to_json(Detail::Summary);
        assert!(json["mean_ttft_ms"].is_null() && json["request_goodput"].is_null());
        assert_eq!(json["request_rate"], "inf");
    }
}
