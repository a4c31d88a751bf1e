//! The README's load test in small, with the real server and the real client: no failure, every figure present, and the
//! client's figures are the server's own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// Largest relative difference between the client's figures and the server's.
const MAX_DIFFERENCE: f64 = 0.02;

/// Time that a token spends between the two clocks, beside the relative difference. Units: milliseconds.
const CLOCK_MS: f64 = 5.0;

/// A binary of the workspace, built by `cargo test --workspace` beside this test.
fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join(name);
    assert!(path.exists(), "{} is not built: cargo build -p {name}", path.display());
    path
}

struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start() -> Self {
        let mut command = Command::new(binary("aisp-serve"));
        command.args(["--port", "0", "--optimizations", "all"]).env("RAYON_NUM_THREADS", "1");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address =
            lines.map_while(Result::ok).find_map(|line| line.strip_prefix("listening on http://").map(str::to_owned));
        Self { child, address: address.expect("the server prints its address") }
    }

    fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Value of a metric, labels left aside.
fn metric(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find(|line| line.split(['{', ' ']).next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in:\n{metrics}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn mean_ms(metrics: &str, name: &str) -> f64 {
    1e3 * metric(metrics, &format!("{name}_sum")) / metric(metrics, &format!("{name}_count"))
}

#[test]
fn a_load_test_completes_and_agrees_with_the_server() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("result.json");
    let mut command = Command::new(binary("bench-client"));
    command.args(["--base-url", &format!("http://{}", server.address), "--qps", "50", "--num-prompts", "40"]);
    command.args(["--input-len", "32", "--output-len", "8", "--seed", "1", "--goodput", "ttft:60000", "--gpu", "H100"]);
    let output = command.arg("--save-result").arg(&saved).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}");

    let result: Value = serde_json::from_slice(&std::fs::read(&saved).unwrap()).unwrap();
    let number = |key: &str| result[key].as_f64().unwrap_or_else(|| panic!("no figure {key} in {result}"));
    assert_eq!((number("completed"), number("failed")), (40.0, 0.0), "{shown}");
    for key in ["duration", "request_throughput", "request_goodput", "output_throughput", "total_token_throughput"] {
        assert!(number(key) > 0.0, "{key} is {}", number(key));
    }
    for (statistic, metric) in ["mean", "median", "std", "p90", "p95", "p99"]
        .iter()
        .flat_map(|statistic| ["ttft", "tpot", "itl", "e2el"].map(|metric| (statistic, metric)))
    {
        assert!(number(&format!("{statistic}_{metric}_ms")) >= 0.0);
    }

    let metrics = server.metrics();
    assert_eq!(metric(&metrics, "aisp_generation_tokens_total"), number("total_output_tokens"));
    assert_eq!(metric(&metrics, "aisp_prompt_tokens_total"), number("total_input_tokens"));
    let pairs =
        [("mean_ttft_ms", "aisp_time_to_first_token_seconds"), ("mean_e2el_ms", "aisp_e2e_request_latency_seconds")];
    for (ours, theirs) in pairs {
        let (client, server) = (number(ours), mean_ms(&metrics, theirs));
        let allowed = MAX_DIFFERENCE * server + CLOCK_MS;
        assert!((client - server).abs() <= allowed, "{ours}: client {client:.2} ms, server {server:.2} ms\n{shown}");
    }
}
