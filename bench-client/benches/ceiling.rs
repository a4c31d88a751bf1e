//! How much load one client thread can carry, against a server that does next to nothing: `cargo bench -p bench-client`.
//!
//! The mock writes prepared bytes from plain threads, so what is measured is the client: HTTP, events, JSON, clocks,
//! records. The figure that holds on a busy machine is per second of CPU time of the client's own threads.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot run has nothing to recover")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bench_client::{Arrivals, Config, Load, run};

/// What the mock answers to a generation.
#[derive(Clone, Copy)]
struct Answer {
    tokens: usize,
    /// Events in one write: 1 is a server that flushes each token.
    events_per_write: usize,
}

fn main() {
    // `cargo test --benches` and test listings start this too.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    for (title, events_per_write) in [("one write an event", 1), ("16 events a write", 16)] {
        let tokens = 512;
        let url = serve(Answer { tokens, events_per_write });
        stream_tokens(title, &url, Load::Closed { concurrency: 16 }, 2_000);
    }
    let url = serve(Answer { tokens: 1, events_per_write: 1 });
    stream_tokens("one token a request", &url, Load::Closed { concurrency: 16 }, 60_000);
    for rate in [50.0, 1_000.0] {
        send_lag(&url, rate);
    }
}

fn config(url: &str, num_prompts: usize, load: Load) -> Config {
    Config {
        base_url: url.to_owned(),
        num_prompts: Some(num_prompts),
        load,
        client_threads: Some(1),
        seed: Some(1),
        ..Config::default()
    }
}

fn stream_tokens(title: &str, url: &str, load: Load, num_prompts: usize) {
    let cpu = CpuMeter::start();
    let result = run(&config(url, num_prompts, load)).unwrap();
    let cpu_s = cpu.stop();
    assert_eq!((result.completed, result.failed), (num_prompts, 0));
    println!(
        "{title:<22} {:>10.0} tokens/s {:>9.0} requests/s; per second of client CPU {:>10.0} tokens {:>9.0} requests",
        result.output_throughput(),
        result.request_throughput(),
        result.total_output_tokens as f64 / cpu_s,
        result.completed as f64 / cpu_s,
    );
}

fn send_lag(url: &str, rate: f64) {
    let load = Load::Open { arrivals: Arrivals::poisson(rate), max_concurrency: None };
    let lag = run(&config(url, (rate * 5.0) as usize, load)).unwrap().latencies.send_lag_ms;
    let us = |value: Option<f64>| value.unwrap() * 1e3;
    println!(
        "send lag at {rate:>5} requests/s: p50 {:.0} us, p99 {:.0} us, max {:.0} us",
        us(lag.median()),
        us(lag.percentile(99.0)),
        us(lag.max())
    );
}

/// CPU time of the client's threads, found by name; they end with the run, so it is sampled meanwhile.
struct CpuMeter {
    is_over: Arc<AtomicBool>,
    cpu_ns: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl CpuMeter {
    fn start() -> Self {
        let (is_over, cpu_ns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (over, sum) = (Arc::clone(&is_over), Arc::clone(&cpu_ns));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                sum.fetch_max(client_cpu_ns(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { is_over, cpu_ns, thread }
    }

    fn stop(self) -> f64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.cpu_ns.load(Ordering::Relaxed) as f64 / 1e9
    }
}

fn client_cpu_ns() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("needs Linux");
    let cpu_ns = |folder: std::path::PathBuf| {
        let name = std::fs::read_to_string(folder.join("comm")).ok()?;
        let is_client = matches!(name.trim(), "bench-client" | "bench-pacer");
        let times = std::fs::read_to_string(folder.join("schedstat")).ok().filter(|_| is_client)?;
        times.split(' ').next()?.parse::<u64>().ok()
    };
    tasks.flatten().filter_map(|task| cpu_ns(task.path())).sum()
}

fn serve(answer: Answer) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || converse(stream, answer));
        }
    });
    url
}

/// Answers requests on one connection until it closes.
fn converse(mut stream: TcpStream, answer: Answer) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let writes = generation(answer);
    let models = fixed("200 OK", "{\"data\":[{\"id\":\"mock\"}]}");
    let missing = fixed("404 Not Found", "{}");
    let mut held = Vec::new();
    loop {
        let path = next_request(&mut stream, &mut held)?;
        match path.as_str() {
            "/v1/completions" => writes.iter().try_for_each(|bytes| stream.write_all(bytes)).ok()?,
            "/v1/models" => stream.write_all(&models).ok()?,
            _ => stream.write_all(&missing).ok()?,
        }
    }
}

/// Reads one request, with its body, and returns its path.
fn next_request(stream: &mut TcpStream, held: &mut Vec<u8>) -> Option<String> {
    let mut buffer = [0_u8; 16_384];
    loop {
        if let Some(head_end) = held.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&held[..head_end]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
            if held.len() >= head_end + 4 + length {
                held.drain(..head_end + 4 + length);
                return head.split(' ').nth(1).map(str::to_owned);
            }
        }
        let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
        held.extend_from_slice(&buffer[..count]);
    }
}

fn fixed(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// The writes of one streamed answer; each event is an HTTP chunk of its own, with usage, as aisp-serve sends it.
fn generation(answer: Answer) -> Vec<Vec<u8>> {
    let chunk = |data: &str| format!("{:x}\r\ndata: {data}\n\n\r\n", data.len() + 8).into_bytes();
    let usage = |tokens: usize| {
        format!("{{\"prompt_tokens\":128,\"completion_tokens\":{tokens},\"total_tokens\":{}}}", tokens + 128)
    };
    let head =
        "\"id\":\"cmpl-0123456789abcdef\",\"object\":\"text_completion\",\"created\":1790000000,\"model\":\"mock\"";
    let mut events =
        vec![b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".to_vec()];
    for token in 1..=answer.tokens {
        let choice = "{\"index\":0,\"text\":\" word\",\"logprobs\":null,\"finish_reason\":null}";
        events.push(chunk(&format!("{{{head},\"choices\":[{choice}],\"usage\":{}}}", usage(token))));
    }
    events.push(chunk(&format!("{{{head},\"choices\":[],\"usage\":{}}}", usage(answer.tokens))));
    events.push([chunk("[DONE]"), b"0\r\n\r\n".to_vec()].concat());
    events.chunks(answer.events_per_write).map(<[Vec<u8>]>::concat).collect()
}
