//! A mock OpenAI server inside the test process, on tokio and hyper: honest by default, broken on request.

#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a mock that fails must fail its test")]

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

/// How the mock behaves.
#[derive(Clone)]
pub struct Behaviour {
    /// Time to the first event.
    pub ttft: Duration,
    /// Time between events.
    pub gap: Duration,
    pub tokens_per_event: u64,
    /// Whether it honours `continuous_usage_stats`.
    pub continuous_usage: bool,
    pub final_usage: bool,
    pub has_tokenizer: bool,
    /// From the first generation on, nothing is answered in this window (start, length).
    pub stall: Option<(Duration, Duration)>,
    /// What goes wrong with the n-th generation.
    pub fault: fn(usize) -> Fault,
    pub api_key: Option<&'static str>,
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq)]
pub enum Fault {
    None,
    Status(u16),
    /// An error object after two tokens.
    ErrorInStream,
    /// The body ends, well-formed, without `[DONE]`.
    NoDone,
    /// The connection breaks after two tokens.
    Cut,
    Garbage,
    /// Nothing comes after two tokens.
    Hang,
    NoTokens,
    HugeUsage,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            ttft: Duration::from_millis(5),
            gap: Duration::from_millis(1),
            tokens_per_event: 1,
            continuous_usage: true,
            final_usage: true,
            has_tokenizer: true,
            stall: None,
            fault: |_| Fault::None,
            api_key: None,
        }
    }
}

/// A running mock; it stops when dropped.
pub struct Mock {
    pub url: String,
    pub state: Arc<State>,
    runtime: Option<tokio::runtime::Runtime>,
}

pub struct State {
    behaviour: Behaviour,
    started: Mutex<Option<Instant>>,
    pub num_connections: AtomicUsize,
    pub num_in_flight: AtomicUsize,
    pub peak_in_flight: AtomicUsize,
    /// Streams whose client went away before their end.
    pub num_abandoned: AtomicUsize,
    /// The bodies of all generation requests, in order.
    pub bodies: Mutex<Vec<Value>>,
}

impl Mock {
    pub fn start(behaviour: Behaviour) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            behaviour,
            started: Mutex::new(None),
            num_connections: AtomicUsize::new(0),
            num_in_flight: AtomicUsize::new(0),
            peak_in_flight: AtomicUsize::new(0),
            num_abandoned: AtomicUsize::new(0),
            bodies: Mutex::new(Vec::new()),
        });
        runtime.spawn(accept(listener, Arc::clone(&state)));
        Self { url, state, runtime: Some(runtime) }
    }

    pub fn bodies(&self) -> Vec<Value> {
        self.state.bodies.lock().unwrap().clone()
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        state.num_connections.fetch_add(1, Ordering::SeqCst);
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&state)));
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

type MockBody = Either<Full<Bytes>, Events>;

/// A body fed by a task; an `Err` breaks the connection.
pub struct Events(mpsc::Receiver<Result<Bytes, std::io::Error>>);

impl Body for Events {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0.poll_recv(context).map(|item| item.map(|item| item.map(Frame::data)))
    }
}

fn json_answer(status: u16, body: &Value) -> Response<MockBody> {
    Response::builder().status(status).body(Either::Left(Full::from(body.to_string()))).unwrap()
}

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Result<Response<MockBody>, Infallible> {
    let path = request.uri().path().to_owned();
    let key = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
    if state.behaviour.api_key.is_some_and(|wanted| key != Some(format!("Bearer {wanted}"))) {
        return Ok(json_answer(401, &json!({"error": {"message": "bad key"}})));
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    Ok(match path.as_str() {
        "/v1/models" => json_answer(200, &json!({"object": "list", "data": [{"id": "mock-model"}, {"id": "other"}]})),
        "/tokenize" if state.behaviour.has_tokenizer => {
            // A token for each five bytes, so that sizing has something to find.
            let count = body["prompt"].as_str().unwrap().len().div_ceil(5);
            json_answer(200, &json!({"count": count, "tokens": vec![0; count]}))
        }
        "/v1/completions" | "/v1/chat/completions" => generate(path.contains("chat"), body, state),
        _ => json_answer(404, &json!({"error": {"message": "no such route"}})),
    })
}

fn generate(is_chat: bool, body: Value, state: Arc<State>) -> Response<MockBody> {
    state.started.lock().unwrap().get_or_insert_with(Instant::now);
    let nth = {
        let mut bodies = state.bodies.lock().unwrap();
        bodies.push(body.clone());
        bodies.len() - 1
    };
    let fault = (state.behaviour.fault)(nth);
    if let Fault::Status(status) = fault {
        return json_answer(status, &json!({"error": {"message": format!("fault\nnumber {status}")}}));
    }
    let in_flight = state.num_in_flight.fetch_add(1, Ordering::SeqCst) + 1;
    state.peak_in_flight.fetch_max(in_flight, Ordering::SeqCst);
    let (events, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        if stream(is_chat, &body, &state, fault, &events).await.is_none() {
            state.num_abandoned.fetch_add(1, Ordering::SeqCst);
        }
        state.num_in_flight.fetch_sub(1, Ordering::SeqCst);
    });
    Response::builder().header("content-type", "text/event-stream").body(Either::Right(Events(receiver))).unwrap()
}

/// `None` once the client is gone.
async fn stream(
    is_chat: bool,
    body: &Value,
    state: &State,
    fault: Fault,
    events: &mpsc::Sender<Result<Bytes, std::io::Error>>,
) -> Option<()> {
    let behaviour = &state.behaviour;
    let send = async |data: &str| {
        stall(state).await;
        events.send(Ok(Bytes::from(format!("data: {data}\n\n")))).await.ok()
    };
    let continuous = behaviour.continuous_usage && body["stream_options"]["continuous_usage_stats"] == true;
    let usage = |tokens: u64| json!({"prompt_tokens": 11, "completion_tokens": tokens, "total_tokens": 11 + tokens});
    let max_tokens = body["max_tokens"].as_u64().unwrap();
    let mut sent = 0;
    sleep(behaviour.ttft).await;
    if is_chat {
        send(&json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]}).to_string()).await?;
    }
    while sent < max_tokens && fault != Fault::NoTokens {
        if sent > 0 {
            sleep(behaviour.gap).await;
        }
        sent = (sent + behaviour.tokens_per_event).min(max_tokens);
        let choice = match is_chat {
            true => json!({"index": 0, "delta": {"content": "word "}}),
            false => json!({"index": 0, "text": "word "}),
        };
        let mut chunk = json!({"id": "x", "model": "mock-model", "choices": [choice]});
        if continuous {
            chunk["usage"] = usage(if fault == Fault::HugeUsage { u64::MAX / 2 } else { sent });
        }
        send(&chunk.to_string()).await?;
        match fault {
            Fault::ErrorInStream if sent >= 2 => {
                return send(&json!({"error": {"message": "engine died", "code": 500}}).to_string()).await;
            }
            Fault::NoDone if sent >= 2 => return Some(()),
            Fault::Cut if sent >= 2 => return events.send(Err(std::io::Error::other("cut"))).await.ok(),
            Fault::Garbage if sent >= 2 => return send("{not json").await,
            Fault::Hang if sent >= 2 => {
                events.closed().await;
                return None;
            }
            _ => {}
        }
    }
    if behaviour.final_usage {
        send(&json!({"choices": [], "usage": usage(sent)}).to_string()).await?;
    }
    send("[DONE]").await
}

async fn stall(state: &State) {
    if let Some((from, length)) = state.behaviour.stall {
        let started = state.started.lock().unwrap().unwrap();
        let now = Instant::now();
        if now >= started + from && now < started + from + length {
            sleep_until(started + from + length).await;
        }
    }
}
