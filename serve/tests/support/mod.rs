//! A server on the mock engine, called in the process or over a socket.
#![allow(dead_code)] // Each test file uses a part of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aisp_serve::mock::MockEngine;
use aisp_serve::{App, AppConfig, ServeError, router, serve};
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;
use tower::ServiceExt;

/// A response, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The events of a stream, without `[DONE]`, which must be the last.
    pub fn events(&self) -> Vec<Value> {
        let mut events = raw_events(&self.body);
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{}", self.body);
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    /// The message of an OpenAI error body, whose shape is checked.
    pub fn error(&self) -> String {
        let json = self.json();
        let error = json["error"].as_object().unwrap_or_else(|| panic!("no error object: {}", self.body));
        assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
        assert!(error["type"].is_string(), "{}", self.body);
        error["message"].as_str().unwrap().to_owned()
    }
}

/// The data of every server-sent event.
pub fn raw_events(body: &str) -> Vec<String> {
    assert!(body.is_empty() || body.ends_with("\n\n"), "a cut event: {body}");
    let events = body.split("\n\n").filter(|event| !event.is_empty());
    events.map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
}

/// An app over the mock engine.
pub async fn app(engine: MockEngine, mut config: AppConfig) -> Arc<App> {
    config.served_model_names = vec!["mock".into(), "other/name".into()];
    config.admission.max_num_seqs = engine.max_num_seqs;
    let app = App::new(config).unwrap();
    app.load(|| engine.build()).await.unwrap();
    app
}

/// The plain mock server.
pub async fn plain() -> Arc<App> {
    app(MockEngine::default(), AppConfig::default()).await
}

/// Sends a request through the router, without a socket.
pub async fn call(app: &Arc<App>, request: Request<Body>) -> Answer {
    let response = router(Arc::clone(app)).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(bytes.into()).unwrap() }
}

pub async fn get(app: &Arc<App>, path: &str) -> Answer {
    call(app, Request::get(path).body(Body::empty()).unwrap()).await
}

pub async fn post(app: &Arc<App>, path: &str, json: impl Into<String>) -> Answer {
    let request = Request::post(path).header("content-type", "application/json");
    call(app, request.body(Body::from(json.into())).unwrap()).await
}

/// A completion that must succeed.
pub async fn completion(app: &Arc<App>, json: &str) -> Answer {
    let answer = post(app, "/v1/completions", json).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer
}

/// The value of one series in `/metrics`.
pub async fn metric(app: &Arc<App>, series: &str) -> f64 {
    let text = get(app, "/metrics").await.body;
    let line = text.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("no {series} in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Waits until a condition holds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, within: Duration, mut holds: impl FnMut() -> F) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the engine holds nothing any more.
pub async fn engine_is_empty(app: &Arc<App>, within: Duration) {
    eventually("blocks and sequences are free", within, || async {
        metric(app, "aisp_kv_cache_usage_perc").await == 0.0
            && metric(app, "aisp_num_requests_running").await == 0.0
            && metric(app, "aisp_num_requests_waiting").await == 0.0
            && app.admission.load() == aisp_serve::admission::Load::default()
    })
    .await;
}

/// A server on a socket.
pub struct Server {
    pub app: Arc<App>,
    pub address: SocketAddr,
    signals: Arc<Semaphore>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Server {
    pub async fn start(app: Arc<App>, drain_timeout: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let signals = Arc::new(Semaphore::new(0));
        let (own_app, own_signals) = (Arc::clone(&app), Arc::clone(&signals));
        let task = tokio::spawn(async move {
            let stop = || async { own_signals.acquire().await.map(SemaphorePermit::forget).unwrap() };
            serve(listener, own_app, drain_timeout, stop).await
        });
        Self { app, address, signals, task }
    }

    /// What SIGTERM does.
    pub fn signal(&self) {
        self.signals.add_permits(1);
    }

    /// The server's result, and how long it took.
    pub async fn ended(self) -> (Result<(), ServeError>, Duration) {
        let started = Instant::now();
        (self.task.await.unwrap(), started.elapsed())
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a POST and leaves the response to the caller.
    pub async fn open(&self, path: &str, json: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(http_post(path, json).as_bytes()).await.unwrap();
        stream
    }

    /// Sends a GET on a fresh connection and returns status line and the rest.
    pub async fn get(&self, path: &str) -> String {
        let mut stream = self.connect().await;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        read_all(&mut stream).await
    }
}

pub fn http_post(path: &str, json: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{json}",
        json.len()
    )
}

/// Everything until the server closes.
pub async fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset after the last byte is an end as well.
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads until `part` has arrived.
pub async fn read_until(stream: &mut TcpStream, part: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(part) {
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "closed before {part}: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    text
}
