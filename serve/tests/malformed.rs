//! Tens of thousands of malformed requests: each gets a 4xx with an error body, in time; none breaks anything.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use aisp_serve::mock::MockEngine;
use aisp_serve::{App, AppConfig};
use support::{Server, app, completion, engine_is_empty, plain, post, read_all};
use tokio::io::AsyncWriteExt;

/// Random numbers that are the same in every run.
struct Draws(u64);

impl Draws {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % below
    }
}

const SEEDS: [&str; 4] = [
    r#"{"model":"mock","prompt":"Hello","max_tokens":2,"temperature":0.5,"stop":["a","b"],"logit_bias":{"5":1.5},"n":2,"seed":3,"stream":false,"logprobs":2}"#,
    r#"{"prompt":[[1,2,3],[4,5]],"echo":true,"max_tokens":1,"stop_token_ids":[3],"top_k":4,"top_p":0.9,"min_p":0.1}"#,
    r#"{"messages":[{"role":"system","content":"x"},{"role":"user","content":[{"type":"text","text":"y"}]}],"max_tokens":2,"logprobs":true,"top_logprobs":3,"stream":true,"stream_options":{"include_usage":true}}"#,
    r#"{"prompt":"a","add_special_tokens":true,"return_token_strs":true}"#,
];

const SPLICES: [&str; 24] = [
    "null",
    "-1",
    "1e999",
    "99999999999999999999",
    "\"\"",
    "[]",
    "{}",
    "true",
    "[[[[",
    "\\ud800",
    "\u{0}",
    "\"",
    "}",
    "{",
    ",",
    ":",
    "1.5",
    "-0",
    "\"\\u0000\"",
    "[null]",
    "{\"a\":{\"a\":{}}}",
    "1e-400",
    "NaN",
    "\"\u{10ffff}\"",
];

fn mutant(draws: &mut Draws) -> Vec<u8> {
    let mut bytes = SEEDS[draws.next(SEEDS.len())].as_bytes().to_vec();
    for _ in 0..1 + draws.next(3) {
        let at = draws.next(bytes.len() + 1);
        match draws.next(5) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] = draws.next(256) as u8,
            2 => {
                let splice = SPLICES[draws.next(SPLICES.len())];
                let end = (at + draws.next(8)).min(bytes.len());
                bytes.splice(at..end, splice.bytes());
            }
            3 => {
                let end = (at + draws.next(20)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                // Replaces a whole value.
                if let Some(colon) = bytes.iter().skip(at).position(|byte| *byte == b':').map(|found| at + found) {
                    let end =
                        bytes[colon..].iter().position(|b| matches!(b, b',' | b'}')).map_or(bytes.len(), |e| colon + e);
                    bytes.splice(colon + 1..end, SPLICES[draws.next(SPLICES.len())].bytes());
                }
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

async fn fuzz(app: Arc<App>, seed: u64, count: usize) -> Vec<Duration> {
    let mut draws = Draws(seed);
    let mut rejections = Vec::new();
    for _ in 0..count {
        let body = mutant(&mut draws);
        let path = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"][draws.next(4)];
        let started = Instant::now();
        let request = axum::http::Request::post(path).header("content-type", "application/json");
        let answer = support::call(&app, request.body(axum::body::Body::from(body.clone())).unwrap()).await;
        let shown = String::from_utf8_lossy(&body);
        assert!(answer.status.as_u16() < 500, "{path} {shown}: {}", answer.body);
        if answer.status.is_client_error() {
            assert!(!answer.error().is_empty(), "{shown}");
            rejections.push(started.elapsed());
        }
    }
    rejections
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_thousand_mutants_get_an_answer_and_break_nothing() {
    let app = plain().await;
    let tasks: Vec<_> = (0..4).map(|seed| tokio::spawn(fuzz(app.clone(), seed, 10_000))).collect();
    let mut rejections = Vec::new();
    for task in tasks {
        rejections.extend(task.await.unwrap());
    }
    rejections.sort();
    let p99 = rejections[rejections.len() * 99 / 100];
    assert!(rejections.len() > 20_000, "only {} were refused", rejections.len());
    assert!(p99 < Duration::from_millis(10), "p99 of a rejection is {p99:?}");
    engine_is_empty(&app, Duration::from_secs(1)).await;
    completion(&app, r#"{"prompt":"a","max_tokens":2}"#).await;
}

#[tokio::test]
async fn deep_long_and_wide_json_costs_little() {
    let app = plain().await;
    let wide: Vec<String> = (0..150_000).map(|at| format!("\"k{at}\":1")).collect();
    for json in [
        format!(r#"{{"prompt":{}1{}}}"#, "[".repeat(500_000), "]".repeat(500_000)),
        format!(r#"{{"messages":[{}1{}]}}"#, "{\"a\":".repeat(100_000), "}".repeat(100_000)),
        format!(r#"{{"messages":[{}]}}"#, vec!["{}"; 600_000].join(",")),
        format!(r#"{{"prompt":[{}]}}"#, vec!["[1]"; 500_000].join(",")),
        format!(r#"{{"prompt":[{}]}}"#, vec!["\"a\""; 500_000].join(",")),
        format!(r#"{{"prompt":"a","stop":[{}]}}"#, vec!["\"a\""; 500_000].join(",")),
        format!(r#"{{"prompt":"a","stop":"{}"}}"#, "a".repeat(2_000_000)),
        format!(r#"{{"prompt":"a","logit_bias":{{{}}}}}"#, wide.join(",")),
        format!("{{{}}}", wide.join(",")),
        format!(r#"{{"prompt":"a","{}":1}}"#, "k".repeat(2_000_000)),
        format!(r#"{{"prompt":"a","model":"{}"}}"#, "m".repeat(2_000_000)),
        format!(r#"{{"prompt":"a","temperature":{}}}"#, "9".repeat(2_000_000)),
        format!(r#"{{"prompt":[{}1]}}"#, "1,".repeat(1_000_000)),
    ] {
        for path in ["/v1/completions", "/v1/chat/completions"] {
            let started = Instant::now();
            let answer = post(&app, path, json.clone()).await;
            let took = started.elapsed();
            assert!(answer.status.is_client_error(), "{}…: {}", &json[..40], answer.status);
            assert!(answer.body.len() < 2000, "{}… has an answer of {} bytes", &json[..40], answer.body.len());
            assert!(took < Duration::from_millis(500), "{}… took {took:?}", &json[..40]);
        }
    }
}

#[tokio::test]
async fn malformed_http_is_refused_and_the_server_lives() {
    let server = Server::start(app(MockEngine::default(), AppConfig::default()).await, Duration::ZERO).await;
    let mut draws = Draws(9);
    let seed = support::http_post("/v1/completions", r#"{"prompt":"a","max_tokens":1}"#);
    for _ in 0..2000 {
        let mut bytes = seed.clone().into_bytes();
        // Never a whole head with a promise of more body than comes: that is the time-out's business.
        for _ in 0..1 + draws.next(4) {
            let at = draws.next(bytes.len());
            bytes[at] = draws.next(256) as u8;
        }
        let mut stream = server.connect().await;
        stream.write_all(&bytes).await.unwrap_or_default();
        stream.shutdown().await.unwrap_or_default();
        let answer = read_all(&mut stream).await;
        assert!(!answer.starts_with("HTTP/1.1 5"), "{}: {answer}", String::from_utf8_lossy(&bytes));
    }
    assert!(server.get("/health").await.contains("200 OK"));
}
