//! The server on a socket: clients that leave, never read or never finish a sentence; drain; a failing engine.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use aisp_engine::runner::MockFault;
use aisp_serve::mock::MockEngine;
use aisp_serve::{AppConfig, Limits, ServeError};
use support::{Server, app, engine_is_empty, eventually, http_post, metric, raw_events, read_all, read_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LONG: &str = r#"{"prompt":"a","max_tokens":1000,"ignore_eos":true,"stream":true}"#;
const STEP: Duration = Duration::from_millis(5);

async fn start(engine: MockEngine, limits: Limits, drain: Duration) -> Server {
    Server::start(app(engine, AppConfig { limits, ..AppConfig::default() }).await, drain).await
}

fn slow() -> MockEngine {
    MockEngine { step_time: STEP, ..MockEngine::default() }
}

/// The body of a chunked response.
fn dechunked(response: &str) -> String {
    let (_, mut rest) = response.split_once("\r\n\r\n").unwrap();
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        body.push_str(&after[..size]);
        rest = after[size..].strip_prefix("\r\n").unwrap_or("");
    }
    body
}

async fn streaming(server: &Server) -> tokio::net::TcpStream {
    let mut stream = server.open("/v1/completions", LONG).await;
    read_until(&mut stream, "data: ").await;
    stream
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_blocks_wherever_its_request_is() {
    let engine = MockEngine { max_num_seqs: 1, ..slow() };
    let server = start(engine, Limits::default(), Duration::ZERO).await;
    let within = STEP + Duration::from_millis(300);
    // Decoding.
    let decoding = streaming(&server).await;
    // Queued behind it, streaming or not.
    let queued = server.open("/v1/completions", LONG).await;
    let whole = server.open("/v1/completions", &LONG.replace("true}", "false}")).await;
    eventually("all are in", Duration::from_secs(2), || async {
        metric(&server.app, "aisp_num_requests_waiting").await == 2.0
    })
    .await;
    drop(queued);
    eventually("one left", within, || async { metric(&server.app, "aisp_num_requests_waiting").await == 1.0 }).await;
    drop(decoding);
    // Now the whole answer is being made.
    eventually("it runs", within, || async { metric(&server.app, "aisp_num_requests_waiting").await == 0.0 }).await;
    drop(whole);
    engine_is_empty(&server.app, within).await;
    let aborted = r#"aisp_request_success_total{model_name="mock",finished_reason="abort"}"#;
    assert_eq!(metric(&server.app, aborted).await, 3.0);
    // In prefill: the only step there will be.
    let engine = MockEngine { step_time: Duration::from_millis(300), ..MockEngine::default() };
    let server = start(engine, Limits::default(), Duration::ZERO).await;
    let prefill = server.open("/v1/completions", LONG).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(prefill);
    engine_is_empty(&server.app, Duration::from_millis(300 + 300)).await;
}

#[tokio::test]
async fn a_slow_reader_loses_nothing_and_holds_up_nobody() {
    let server = start(MockEngine::default(), Limits::default(), Duration::ZERO).await;
    let mut never_reads = server.open("/v1/completions", &LONG.replace('{', r#"{"n":40,"logprobs":20,"#)).await;
    // The engine finishes all of it while nobody reads.
    let done = r#"aisp_num_requests_running"#;
    eventually("the engine is done", Duration::from_secs(20), || async {
        metric(&server.app, done).await == 0.0 && metric(&server.app, "aisp_iteration_tokens_count").await >= 1000.0
    })
    .await;
    let started = Instant::now();
    assert!(server.get("/health").await.contains("200 OK"));
    assert!(started.elapsed() < Duration::from_millis(250), "{:?}", started.elapsed());
    never_reads.shutdown().await.unwrap_or_default();
    // Reading later finds every event. `connection: close` is not set, so read to the last chunk.
    let mut never_reads = server.open("/v1/completions", &LONG.replace('{', r#"{"n":8,"#)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let response = read_until(&mut never_reads, "0\r\n\r\n").await;
    let events = raw_events(&dechunked(&response));
    assert_eq!(events.len(), 8 * 1000 + 1);
}

#[tokio::test]
async fn a_reader_that_stops_is_cut_and_its_blocks_are_free() {
    let limits = Limits { write_stall_timeout: Duration::from_millis(300), ..Limits::default() };
    let server = start(MockEngine::default(), limits, Duration::ZERO).await;
    let request = LONG.replace('{', r#"{"n":60,"logprobs":20,"#);
    let _never_reads = server.open("/v1/completions", &request).await;
    eventually("it is in", Duration::from_secs(5), || async { server.app.admission.load().num_sequences == 60 }).await;
    engine_is_empty(&server.app, Duration::from_secs(20)).await;
}

#[tokio::test]
async fn half_sentences_and_too_many_connections_are_closed() {
    let limits = Limits { header_timeout: Duration::from_millis(300), max_connections: 20, ..Limits::default() };
    let server = start(MockEngine::default(), limits, Duration::ZERO).await;
    let mut half = Vec::new();
    for _ in 0..20 {
        let mut stream = server.connect().await;
        stream.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-le").await.unwrap();
        half.push(stream);
    }
    eventually("the cap is reached", Duration::from_secs(1), || async { server.get("/health").await.contains("503") })
        .await;
    let started = Instant::now();
    for stream in &mut half {
        read_all(stream).await;
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    eventually("there is room again", Duration::from_secs(1), || async { server.get("/health").await.contains("200") })
        .await;
}

#[tokio::test]
async fn a_body_that_never_comes_is_408() {
    let limits = Limits { body_timeout: Duration::from_millis(200), ..Limits::default() };
    let server = start(MockEngine::default(), limits, Duration::ZERO).await;
    let mut stream = server.connect().await;
    let request = http_post("/v1/completions", LONG);
    stream.write_all(&request.as_bytes()[..request.len() - 5]).await.unwrap();
    assert!(read_until(&mut stream, "did not arrive").await.starts_with("HTTP/1.1 408"));
}

#[tokio::test]
async fn a_signal_drains_what_is_under_way_and_refuses_the_rest() {
    let server = start(slow(), Limits::default(), Duration::from_secs(20)).await;
    let mut under_way = Vec::new();
    for _ in 0..50 {
        let request = LONG.replace("1000", "100");
        under_way.push(server.open("/v1/completions", &request).await);
    }
    let _half_open = server.connect().await;
    let mut half_sent = server.connect().await;
    half_sent.write_all(b"GET /he").await.unwrap();
    eventually("all run", Duration::from_secs(2), || async {
        metric(&server.app, "aisp_num_requests_running").await == 50.0
    })
    .await;
    server.signal();
    eventually("not ready", Duration::from_millis(100), || async { server.app.lifecycle.ready() == Err("draining") })
        .await;
    assert!(server.get("/ready").await.contains("503"));
    let mut late = server.open("/v1/completions", LONG).await;
    let refused = read_all(&mut late).await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("shutting down"), "{refused}");
    for mut stream in under_way {
        let events = raw_events(&dechunked(&read_all(&mut stream).await));
        assert_eq!((events.len(), events.last().map(String::as_str)), (101, Some("[DONE]")));
    }
    let (ended, took) = server.ended().await;
    assert_eq!(ended, Ok(()));
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn after_the_deadline_answers_end_with_an_error_event_even_during_a_long_step() {
    let engine = MockEngine { step_time: Duration::from_millis(2500), ..MockEngine::default() };
    let server = start(engine, Limits::default(), Duration::from_millis(500)).await;
    // A step takes longer than the deadline.
    let mut first = server.open("/v1/completions", LONG).await;
    eventually("it is in", Duration::from_secs(1), || async { server.app.admission.load().num_sequences == 1 }).await;
    let whole = server.open("/v1/completions", &LONG.replace("true}", "false}")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.signal();
    let (ended, took) = server.ended().await;
    assert_eq!(ended, Ok(()));
    assert!(took < Duration::from_millis(500 + 1000), "{took:?}");
    let text = read_all(&mut first).await;
    assert!(text.contains("shutting down"), "{text}");
    drop(whole);
}

#[tokio::test]
async fn the_deadline_also_ends_streams_and_clients_that_never_read() {
    let server = start(slow(), Limits::default(), Duration::from_millis(300)).await;
    let mut reads = streaming(&server).await;
    let _never_reads = server.open("/v1/completions", &LONG.replace('{', r#"{"n":50,"logprobs":20,"#)).await;
    eventually("all run", Duration::from_secs(2), || async {
        metric(&server.app, "aisp_num_requests_running").await == 51.0
    })
    .await;
    server.signal();
    let (ended, took) = server.ended().await;
    assert_eq!(ended, Ok(()));
    assert!(took < Duration::from_millis(300 + 1000), "{took:?}");
    let rest = read_all(&mut reads).await;
    assert!(rest.contains(r#"data: {"error":{"message":"the server is shutting down""#), "{rest}");
    assert!(!rest.contains("[DONE]"));
}

#[tokio::test]
async fn a_second_signal_ends_the_drain() {
    let server = start(slow(), Limits::default(), Duration::from_secs(60)).await;
    let _stream = streaming(&server).await;
    server.signal();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.signal();
    let (ended, took) = server.ended().await;
    assert_eq!(ended, Err(ServeError::Interrupted));
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[tokio::test]
async fn when_the_engine_fails_everybody_is_told_and_the_server_ends() {
    for fault in [MockFault::ErrorAtStep(5), MockFault::PanicAtStep(5)] {
        let engine = MockEngine { fault: Some(fault), step_time: Duration::from_millis(20), ..MockEngine::default() };
        let server = start(engine, Limits::default(), Duration::from_secs(20)).await;
        let mut streams = Vec::new();
        for stream in ["true}", "false}"] {
            streams.push(server.open("/v1/completions", &LONG.replace("true}", stream)).await);
        }
        let address = server.address;
        let (ended, took) = server.ended().await;
        assert_eq!(ended, Err(ServeError::EngineFailed), "{fault:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");
        let streamed = read_all(&mut streams[0]).await;
        assert!(streamed.contains(r#"data: {"error":{"message":"the engine failed""#), "{streamed}");
        let whole = read_all(&mut streams[1]).await;
        assert!(whole.starts_with("HTTP/1.1 503") && whole.contains("engine_failed"), "{whole}");
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
    }
}

#[tokio::test]
async fn a_stalled_engine_is_alive_and_not_ready() {
    let engine = MockEngine { step_time: Duration::from_secs(4), ..MockEngine::default() };
    let server = start(engine, Limits::default(), Duration::ZERO).await;
    let mut stream = server.open("/v1/completions", &LONG.replace("1000", "1")).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let started = Instant::now();
    assert!(server.get("/ready").await.contains("stalled"));
    assert!(server.get("/health").await.contains("200 OK"));
    assert!(started.elapsed() < Duration::from_millis(100), "{:?}", started.elapsed());
    read_until(&mut stream, "[DONE]").await;
    assert!(server.get("/ready").await.contains("200 OK"));
}

#[tokio::test]
async fn connections_are_kept_alive_between_requests() {
    let server = start(MockEngine::default(), Limits::default(), Duration::ZERO).await;
    let mut stream = server.connect().await;
    for _ in 0..3 {
        stream.write_all(http_post("/tokenize", r#"{"prompt":"ab"}"#).as_bytes()).await.unwrap();
        assert!(read_until(&mut stream, "}").await.contains(r#""count":2"#));
    }
    let mut byte = [0];
    server.signal();
    assert_eq!(stream.read(&mut byte).await.unwrap_or(0), 0);
}
