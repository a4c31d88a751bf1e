//! `/metrics` under load: real values, and Prometheus' own checker has nothing to say.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use aisp_serve::AppConfig;
use aisp_serve::metrics::Namespace;
use aisp_serve::mock::MockEngine;
use support::{app, completion, get, metric, plain, post};

/// Whether Debian's `prometheus` package is installed; `scripts/get-promtool.sh` installs it.
fn has_promtool() -> bool {
    Command::new("promtool").arg("--version").output().is_ok()
}

async fn used() -> std::sync::Arc<aisp_serve::App> {
    let app = plain().await;
    completion(&app, r#"{"prompt":"Hello","max_tokens":8,"n":2,"ignore_eos":true}"#).await;
    completion(&app, r#"{"prompt":"Hello","max_tokens":8,"ignore_eos":true,"stream":true}"#).await;
    assert_eq!(post(&app, "/v1/completions", r#"{"prompt":"a","n":0}"#).await.status, 400);
    app
}

#[tokio::test]
async fn promtool_has_nothing_to_say() {
    if !has_promtool() {
        eprintln!("skipped: promtool is not installed (scripts/get-promtool.sh installs it)");
        return;
    }
    let text = get(&used().await, "/metrics").await.body;
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}\n{text}", String::from_utf8_lossy(&said));
}

#[tokio::test]
async fn histograms_hold_what_happened() {
    let app = used().await;
    assert_eq!(metric(&app, "aisp_prompt_tokens_total").await, 15.0);
    assert_eq!(metric(&app, "aisp_generation_tokens_total").await, 24.0);
    for (series, count) in [
        ("time_to_first_token_seconds", 3.0),
        ("e2e_request_latency_seconds", 3.0),
        ("request_queue_time_seconds", 3.0),
        ("request_prefill_time_seconds", 3.0),
        ("request_decode_time_seconds", 3.0),
        ("request_inference_time_seconds", 3.0),
        ("request_prompt_tokens", 3.0),
        ("request_generation_tokens", 3.0),
        ("inter_token_latency_seconds", 21.0),
        ("iteration_tokens", 16.0),
    ] {
        assert_eq!(metric(&app, &format!("aisp_{series}_count")).await, count, "{series}");
    }
    assert_eq!(metric(&app, "aisp_request_generation_tokens_sum").await, 24.0);
    // Two prompts of 5 tokens, for `n` answers share theirs, then one token a step: every token but the last of a sequence is computed once.
    assert_eq!(metric(&app, "aisp_iteration_tokens_sum").await, 10.0 + 21.0);
    assert_eq!(metric(&app, r#"aisp_request_prompt_tokens_bucket{model_name="mock",le="5"}"#).await, 3.0);
}

#[tokio::test]
async fn latencies_are_the_engine_s() {
    let step_time = Duration::from_millis(20);
    let app = app(MockEngine { step_time, ..MockEngine::default() }, AppConfig::default()).await;
    completion(&app, r#"{"prompt":"Hello","max_tokens":11,"ignore_eos":true}"#).await;
    let sum = async |series: &str| metric(&app, &format!("aisp_{series}_sum")).await;
    let step = step_time.as_secs_f64();
    for (series, steps) in [
        ("time_to_first_token_seconds", 1.0),
        ("inter_token_latency_seconds", 10.0),
        ("request_decode_time_seconds", 10.0),
        ("request_inference_time_seconds", 11.0),
        ("e2e_request_latency_seconds", 11.0),
    ] {
        let measured = sum(series).await / step;
        assert!((steps..steps * 1.5 + 1.0).contains(&measured), "{series}: {measured} steps, not {steps}");
    }
    assert_eq!(metric(&app, r#"aisp_inter_token_latency_seconds_bucket{model_name="mock",le="0.015"}"#).await, 0.0);
}

#[tokio::test]
async fn the_set_of_series_never_grows_and_vllm_s_names_are_vllm_s() {
    let series = |text: &str| {
        let names = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let mut names: Vec<String> = names.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect();
        names.sort();
        names
    };
    let fresh = get(&plain().await, "/metrics").await.body;
    let used = get(&used().await, "/metrics").await.body;
    assert_eq!(series(&fresh), series(&used));
    let config = AppConfig { metrics_namespace: Namespace::Vllm, ..AppConfig::default() };
    let text = get(&app(MockEngine::default(), config).await, "/metrics").await.body;
    for name in ["vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:generation_tokens_total"] {
        assert!(text.contains(&format!("{name}{{model_name=\"mock\"}} 0")), "{name} in\n{text}");
    }
    assert!(text.contains("# TYPE vllm:iteration_tokens_total histogram"));
}
