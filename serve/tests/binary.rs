//! The real binary with the built-in model: start-up, answers, signals, mistakes on the command line.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod process;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use process::{Response, Server};

const STORY: &str =
    r#"{"messages":[{"role":"user","content":"Tell me a story about a dog."}],"max_tokens":24,"temperature":0}"#;

#[test]
fn the_built_in_model_answers_streams_and_repeats_itself() {
    let server = Server::start(&["--optimizations", "all"], &[]);
    for line in ["story-12m", "continuous-batching", "paged-kv", "listening on http://127.0.0.1:", "curl http://"] {
        assert!(server.banner.contains(line), "{line} in\n{}", server.banner);
    }
    let whole = server.post("/v1/chat/completions", STORY).json();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(text.split_whitespace().count() > 5, "{text}");
    let streamed = server.post("/v1/chat/completions", &STORY.replacen('{', r#"{"stream":true,"#, 1)).events();
    let pieces: String = streamed.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(pieces, text);
    // A seed repeats, at any temperature; choices differ.
    let drawn = r#"{"prompt":"The little","max_tokens":20,"temperature":1.5,"seed":5,"n":2,"logprobs":1}"#;
    let first = server.post("/v1/completions", drawn).json();
    assert_eq!(first["choices"], server.post("/v1/completions", drawn).json()["choices"]);
    assert_ne!(first["choices"][0]["text"], first["choices"][1]["text"]);
    // Log-probabilities add up to text.
    let tokens = first["choices"][0]["logprobs"]["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 20);
    // A stop string ends before itself.
    let word = text.split(' ').nth(3).unwrap();
    let stopped = STORY.replacen('{', &format!(r#"{{"stop":" {word}","#), 1);
    let stopped = server.post("/v1/chat/completions", &stopped).json();
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(stopped["choices"][0]["message"]["content"], text.split(&format!(" {word}")).next().unwrap());
    let refused = server.post("/v1/completions", r#"{"prompt":"a","temperature":-1}"#);
    assert_eq!((refused.status, refused.json()["error"]["param"].as_str()), (400, Some("temperature")));
    // What was asked for really ran.
    let rows = server.get("/v1/optimizations").json()["data"].clone();
    assert!(rows.as_array().unwrap().iter().any(|row| row["name"] == "paged-kv" && row["engaged"] == true), "{rows}");
    server.engine_is_empty();
    assert_eq!(server.terminate().0, Some(0));
}

#[test]
fn switched_off_means_not_requested_and_the_same_answer() {
    let all = Server::start(&["--optimizations", "all"], &[]);
    let none = Server::start(&["--optimizations", "none", "--served-model-name", "m", "n"], &[]);
    let text =
        |server: &Server| server.post("/v1/chat/completions", STORY).json()["choices"][0]["message"]["content"].clone();
    assert_eq!(text(&all), text(&none));
    let rows = none.get("/v1/optimizations").json()["data"].clone();
    assert!(rows.as_array().unwrap().iter().all(|row| row["requested"] == false && row["engaged"] == false), "{rows}");
    assert_eq!(none.get("/v1/models/n").json()["id"], "n");
}

#[test]
fn a_client_that_leaves_frees_the_model() {
    let server = Server::start(&[], &[]);
    for stream in [true, false] {
        let request =
            format!(r#"{{"prompt":"Once upon a time","max_tokens":400,"ignore_eos":true,"stream":{stream}}}"#);
        let mut client = server.open("/v1/completions", &request);
        server.eventually("it runs", |server| server.metric("aisp_num_requests_running") == 1.0);
        if stream {
            client.read_exact(&mut [0; 300]).unwrap();
        }
        drop(client);
        server.engine_is_empty();
    }
}

#[test]
fn sigterm_finishes_what_is_under_way_and_a_second_signal_does_not() {
    let server = Server::start(&["--drain-timeout", "60"], &[]);
    let request = r#"{"prompt":"Once upon a time","max_tokens":100,"ignore_eos":true,"stream":true}"#;
    let mut clients: Vec<_> = (0..4).map(|_| server.open("/v1/completions", request)).collect();
    server.eventually("all run", |server| server.metric("aisp_num_requests_running") == 4.0);
    let reading: Vec<_> = clients
        .drain(..)
        .map(|mut client| {
            std::thread::spawn(move || {
                let mut text = String::new();
                client.read_to_string(&mut text).unwrap();
                text
            })
        })
        .collect();
    server.signal("TERM");
    server.eventually("not ready", |server| server.get("/ready").status == 503);
    assert_eq!(server.post("/v1/completions", request).status, 503);
    for text in reading {
        assert!(text.join().unwrap().contains("data: [DONE]"));
    }
    assert_eq!(server.wait().0, Some(0));

    let server = Server::start(&["--drain-timeout", "60"], &[]);
    let _client = server.open("/v1/completions", &request.replace("100", "480"));
    server.eventually("it runs", |server| server.metric("aisp_num_requests_running") == 1.0);
    server.signal("INT");
    std::thread::sleep(Duration::from_millis(100));
    server.signal("INT");
    let (code, took) = server.wait();
    assert_eq!(code, Some(130));
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn the_key_comes_from_the_environment_and_is_never_shown() {
    const KEY: &str = "canary-3b1d";
    let server = Server::start(&[], &[("AISP_API_KEY", KEY), ("RUST_LOG", "trace")]);
    assert_eq!(server.post("/v1/chat/completions", STORY).status, 401);
    let allowed = server.send("GET", "/v1/models", &format!("authorization: Bearer {KEY}\r\n"), "");
    assert_eq!(allowed.status, 200);
    let banner = server.banner.clone();
    let log = server.terminate().1;
    assert!(!banner.contains(KEY) && !log.contains(KEY), "{banner}\n{log}");
    let help = Command::new(env!("CARGO_BIN_EXE_aisp-serve")).arg("--help").env("AISP_API_KEY", KEY).output().unwrap();
    assert!(!String::from_utf8_lossy(&help.stdout).contains(KEY));
}

#[test]
fn mistakes_are_one_line_and_a_failure() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let broken = tempfile::NamedTempFile::with_suffix(".gguf").unwrap();
    broken.as_file().write_all(b"GGUF not really").unwrap();
    let broken = broken.path().display().to_string();
    for (args, part) in [
        (["--port", &port], "could not listen on 127.0.0.1:"),
        (["--model", "/nowhere/model.gguf"], "/nowhere/model.gguf"),
        (["--model", &broken], "gguf"),
        (["--max-num-seqs", "0"], "--max-num-seqs must be at least 1"),
        (["--max-model-len", "99999999"], "--max-model-len must be between"),
        (["--kv-cache-memory-bytes", "1000"], "raise --kv-cache-memory-bytes"),
        (["--api-key", ""], "--api-key must not be empty"),
    ] {
        let started = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_aisp-serve"));
        if args[0] != "--port" {
            command.args(["--port", "0"]);
        }
        let output = command.args(args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let error = said.lines().last().unwrap_or_default();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(error.starts_with("aisp-serve: ") && error.contains(part), "{args:?}: {said}");
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn the_checks_of_the_responses_can_fail() {
    let cut = Response { status: 200, body: "data: {}\n\n".into() };
    assert!(std::panic::catch_unwind(|| cut.events()).is_err());
}
