//! The command itself: output, saved JSON, exit status.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::{Behaviour, Fault, Mock};

fn command(flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench-client"));
    command.args(flags).env_remove("OPENAI_API_KEY").stdin(Stdio::null());
    command
}

fn bench(mock: &Mock, flags: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command(flags).args(["--base-url", &mock.url]).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn a_whole_run_with_every_figure() {
    let mock = Mock::start(Behaviour::default());
    let file = tempfile::NamedTempFile::new().unwrap();
    let flags = "--qps 200 --num-prompts 40 --num-warmups 3 --output-len 6 --goodput ttft:2000 tpot:500 e2el:5000 \
                 --gpu H100 --save-detailed --save-result";
    let mut flags: Vec<&str> = flags.split_whitespace().collect();
    flags.push(file.path().to_str().unwrap());
    let (status, stdout, stderr) = bench(&mock, &flags);
    assert_eq!(status, Some(0), "{stdout}{stderr}");
    for line in
        ["completed                       40", "TTFT", "TPOT", "ITL", "E2EL", "goodput", "USD a million", "40 good"]
    {
        assert!(stdout.contains(line), "no \"{line}\" in\n{stdout}");
    }
    let json: Value = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
    assert_eq!((&json["completed"], &json["failed"]), (&40.into(), &0.into()));
    assert_eq!((&json["total_output_tokens"], &json["total_input_tokens"]), (&240.into(), &440.into()));
    for metric in ["ttft", "tpot", "itl", "e2el"] {
        for statistic in ["mean", "median", "std", "p99"] {
            assert!(json[format!("{statistic}_{metric}_ms")].is_number(), "{statistic} {metric}");
        }
    }
    assert_eq!(json["requests"].as_array().unwrap().len(), 40);
    assert_eq!(json["arrivals_s"].as_array().unwrap().len(), 40);
    assert!(json["cost"]["per_million_good_tokens"].as_f64().unwrap() > 0.0);
    let seed = json["seed"].as_u64().unwrap();
    assert!(stdout.contains(&format!("seed {seed}")));
}

#[test]
fn exit_status_says_how_it_went() {
    let mock = Mock::start(Behaviour { fault: |_| Fault::Status(429), ..Behaviour::default() });
    let (status, stdout, _) = bench(&mock, &["--qps", "100", "-n", "3"]);
    assert_eq!(status, Some(1), "{stdout}");
    assert!(stdout.contains("3 x rejected (429): fault number 429"), "{stdout}");

    let refused = |flags: &[&str], wanted: &str| {
        let (status, stdout, stderr) = bench(&mock, flags);
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{flags:?}: {stderr}");
        assert!(stderr.contains(wanted), "{stderr}");
    };
    refused(&["--qps", "0"], "above 0");
    refused(&["--goodput", "speed:1"], "--goodput");
    refused(&["--model", "nope"], "mock-model");
    refused(&["--dataset-name", "jsonl", "--dataset-path", "/no/such"], "/no/such");
    let down = command(&["--base-url", "http://127.0.0.1:9"]).output().unwrap();
    let stderr = String::from_utf8(down.stderr).unwrap();
    assert_eq!((down.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
    assert!(stderr.contains("http://127.0.0.1:9 ") && stderr.contains("make serve"), "{stderr}");
    let tls = command(&["--base-url", "https://api.openai.com"]).output().unwrap();
    assert!(String::from_utf8(tls.stderr).unwrap().contains("https is not spoken"));
}

#[test]
fn prompts_come_from_a_file() {
    let mock = Mock::start(Behaviour::default());
    let file = tempfile::NamedTempFile::new().unwrap();
    let lines = "{\"prompt\": \"one\", \"max_tokens\": 3}\n{\"prompt\": \"two\", \"max_tokens\": 5}\n";
    std::fs::write(file.path(), lines).unwrap();
    let path = file.path().to_str().unwrap();
    let flags = ["--dataset-name", "jsonl", "--dataset-path", path, "--max-concurrency", "1"];
    let (status, stdout, stderr) = bench(&mock, &flags);
    assert_eq!(status, Some(0), "{stdout}{stderr}");
    let sent: Vec<_> = mock.bodies().iter().map(|body| (body["prompt"].clone(), body["max_tokens"].clone())).collect();
    assert_eq!(sent, [("one".into(), 3.into()), ("two".into(), 5.into())]);
    let (status, _, stderr) = bench(&mock, &[&flags[..], &["--num-prompts", "3"]].concat());
    assert!(status == Some(2) && stderr.contains("--allow-prompt-reuse"), "{stderr}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_prints_what_there_is() {
    let mock = Mock::start(Behaviour::default());
    let file = tempfile::NamedTempFile::new().unwrap();
    let flags = ["--qps", "50", "-n", "5000", "--output-len", "2", "--base-url", &mock.url, "--save-result"];
    let child = command(&flags).arg(file.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while mock.bodies().len() < 20 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    let Output { status, stdout, .. } = child.wait_with_output().unwrap();
    let stdout = String::from_utf8(stdout).unwrap();
    assert_eq!(status.code(), Some(130), "{stdout}");
    assert!(stdout.starts_with("PARTIAL"), "{stdout}");
    let json: Value = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
    assert_eq!(json["partial"], true);
    assert!(json["completed"].as_u64().unwrap() >= 10 && json["failed"] == 0);
}
