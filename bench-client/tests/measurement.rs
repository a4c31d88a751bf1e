//! Whole runs of the library against a mock: are the figures those of the server, whatever it does?

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bench_client::{
    Arrivals, BenchResult, Config, Detail, Endpoint, Error, FailureKind, Live, Load, Outcome, Rate, Sizing, Slo,
    Spacing, TokenCounting, run, run_observed,
};
use support::{Behaviour, Fault, Mock};

const MS: Duration = Duration::from_millis(1);

fn config(mock: &Mock, num_prompts: usize, load: Load) -> Config {
    Config {
        base_url: mock.url.clone(),
        num_prompts: Some(num_prompts),
        input_len: Some(40),
        output_len: Some(8),
        load,
        ..Config::default()
    }
}

fn open(rate: f64) -> Load {
    let arrivals = Arrivals { rate: Rate::Fixed { per_s: rate }, spacing: Spacing::Constant };
    Load::Open { arrivals, max_concurrency: None }
}

fn kinds(result: &BenchResult) -> Vec<(FailureKind, usize)> {
    result.failures.iter().map(|failure| (failure.kind, failure.count)).collect()
}

#[test]
fn figures_are_those_of_the_server() {
    let mock = Mock::start(Behaviour { ttft: 30 * MS, gap: 10 * MS, ..Behaviour::default() });
    let result = run(&Config { slo: Slo::parse(["ttft:500"]).unwrap(), ..config(&mock, 20, open(50.0)) }).unwrap();
    assert_eq!((result.completed, result.failed, result.model.as_str()), (20, 0, "mock-model"));
    assert_eq!((result.total_input_tokens, result.total_output_tokens), (20 * 11, 20 * 8));
    let within = |name: &str, value: Option<f64>, low: f64, high: f64| {
        assert!((low..high).contains(&value.unwrap()), "{name} {value:?} not in {low}..{high}");
    };
    // The mock's timers round up to a millisecond; a busy machine adds a few.
    within("TTFT", result.latencies.ttft_ms.median(), 30.0, 45.0);
    within("TPOT", result.latencies.tpot_ms.median(), 10.0, 15.0);
    within("ITL", result.latencies.itl_ms.median(), 9.5, 15.0);
    within("E2EL", result.latencies.e2el_ms.median(), 100.0, 140.0);
    assert_eq!(result.latencies.itl_ms.len(), 20 * 7);
    within("duration", Some(result.duration_s), 0.48, 0.7);
    within("offered", result.offered_rate, 49.9, 50.1);
    assert_eq!(result.goodput.unwrap().good, 20);
    let counted = |record: &bench_client::RequestRecord| record.counting == Some(TokenCounting::PerEvent);
    assert!(result.records.iter().all(counted));
}

/// The classic test: a server that answers in 5 ms but stands still for a second. At 100 requests/s a hundred requests
/// arrive meanwhile and wait half a second on average.
#[test]
fn a_stall_is_seen_by_every_request_that_was_due_in_it() {
    let stalling = || Behaviour { stall: Some((500 * MS, 1000 * MS)), ..Behaviour::default() };
    let slow = |result: &BenchResult| {
        result.records.iter().filter(|record| record.ttft_s().is_some_and(|ttft_s| ttft_s > 0.1)).count()
    };

    let mock = Mock::start(stalling());
    let result = run(&config(&mock, 200, open(100.0))).unwrap();
    assert_eq!(result.completed, 200);
    assert!((85..=105).contains(&slow(&result)), "{} slow requests", slow(&result));
    let p99 = result.latencies.ttft_ms.percentile(99.0).unwrap();
    assert!((930.0..1150.0).contains(&p99), "p99 TTFT {p99} ms");
    assert!(result.latencies.send_lag_ms.percentile(99.0).unwrap() < 50.0, "the stall is not the client's error");

    // Capped to one in flight, they wait in the client and it still counts; the cap is not the client's error either.
    let mock = Mock::start(stalling());
    let Load::Open { arrivals, .. } = open(50.0) else { unreachable!() };
    let capped = Load::Open { arrivals, max_concurrency: Some(1) };
    let result = run(&Config { output_len: Some(1), ..config(&mock, 100, capped) }).unwrap();
    assert_eq!((result.completed, result.peak_concurrency), (100, 1));
    assert_eq!(mock.state.peak_in_flight.load(Ordering::SeqCst), 1);
    assert!(slow(&result) >= 40, "{} slow requests", slow(&result));
    assert!(result.latencies.send_lag_ms.percentile(99.0).unwrap() < 50.0);
    let naive = |record: &&bench_client::RequestRecord| record.first_token_s.unwrap() - record.sent_s.unwrap() > 0.1;
    assert!(result.records.iter().filter(naive).count() <= 2, "timed from sending, the stall would have vanished");

    // What a closed loop makes of the same stall, and why it is not the default.
    let mock = Mock::start(stalling());
    let result = run(&config(&mock, 100, Load::Closed { concurrency: 1 })).unwrap();
    assert!(slow(&result) <= 2, "{} slow requests in a closed loop", slow(&result));
}

#[test]
fn tokens_in_one_event_share_its_gap() {
    // Events of 4 tokens every 40 ms: 10 ms a token, not 40 and not 40, 0, 0, 0.
    let four =
        |continuous_usage| Behaviour { gap: 40 * MS, tokens_per_event: 4, continuous_usage, ..Behaviour::default() };
    let check = |behaviour, counting| {
        let mock = Mock::start(behaviour);
        let result = run(&Config { output_len: Some(24), ..config(&mock, 4, open(100.0)) }).unwrap();
        assert_eq!(result.total_output_tokens, 4 * 24);
        assert_eq!(result.latencies.itl_ms.len(), 4 * 20, "the first event's four tokens have no gap");
        for figure in [result.latencies.itl_ms.median(), result.latencies.tpot_ms.mean()] {
            assert!((9.5..14.0).contains(&figure.unwrap()), "{figure:?} ms a token");
        }
        assert!(result.latencies.itl_ms.sorted()[0] > 5.0, "no gap is zero");
        assert!(result.records.iter().all(|record| record.counting == Some(counting)));
        result
    };
    check(four(true), TokenCounting::PerEvent);
    let spread = check(four(false), TokenCounting::Spread);
    assert!(spread.warnings.iter().any(|warning| warning.contains("dealt evenly")), "{:?}", spread.warnings);
}

#[test]
fn a_closed_loop_keeps_its_number_in_flight_and_reuses_connections() {
    let mock = Mock::start(Behaviour::default());
    let result = run(&config(&mock, 40, Load::Closed { concurrency: 4 })).unwrap();
    assert_eq!((result.completed, result.peak_concurrency), (40, 4));
    assert_eq!(mock.state.peak_in_flight.load(Ordering::SeqCst), 4);
    // Eight tokenize at a time at most; then four generate.
    assert!(mock.state.num_connections.load(Ordering::SeqCst) <= 9);
    let json = result.to_json(Detail::Summary);
    assert_eq!((json["max_concurrency"].as_u64(), json["request_rate"].as_str()), (Some(4), Some("inf")));
}

/// No request begins before the clock does, or its time and the run's would come out short.
#[test]
fn the_first_requests_of_a_closed_loop_wait_as_long_as_the_others() {
    let mock = Mock::start(Behaviour { ttft: 30 * MS, ..Behaviour::default() });
    let result = run(&config(&mock, 4, Load::Closed { concurrency: 2 })).unwrap();
    let [ttft, e2el] = [&result.latencies.ttft_ms, &result.latencies.e2el_ms].map(|latency| latency.sorted()[0]);
    assert!(ttft >= 30.0 && e2el >= 37.0, "a first token after {ttft} ms, an end after {e2el} ms");
    assert!(result.duration_s >= 0.074, "two after two in {} s", result.duration_s);
}

#[test]
fn every_prompt_is_sent_once_and_sized_by_the_tokenizer() {
    let mock = Mock::start(Behaviour::default());
    let result = run(&Config { num_warmups: 10, seed: Some(5), ..config(&mock, 30, open(500.0)) }).unwrap();
    assert_eq!((result.sizing, result.num_repeated_prompts, result.completed), (Sizing::Tokenizer, 0, 30));
    let bodies = mock.bodies();
    assert_eq!(bodies.len(), 40, "warm-up and run, and nothing else");
    let prompts: Vec<&str> = bodies.iter().map(|body| body["prompt"].as_str().unwrap()).collect();
    let begins: HashSet<&str> = prompts.iter().map(|prompt| &prompt[..20]).collect();
    assert_eq!(begins.len(), 40);
    for prompt in &prompts {
        assert!((39..=41).contains(&prompt.len().div_ceil(5)), "{} tokens", prompt.len().div_ceil(5));
    }
    // The same seed asks the same again, another seed nothing of it.
    let asked = |seed| {
        let mock = Mock::start(Behaviour::default());
        run(&Config { seed: Some(seed), ..config(&mock, 30, open(500.0)) }).unwrap();
        mock.bodies().iter().map(|body| body["prompt"].to_string()).collect::<HashSet<_>>()
    };
    let first = asked(5);
    assert_eq!(first, asked(5));
    assert!(first.is_disjoint(&asked(6)));
}

#[test]
fn a_server_without_tokenizer_or_usage_is_measured_with_warnings() {
    let bare = Behaviour { has_tokenizer: false, continuous_usage: false, final_usage: false, ..Behaviour::default() };
    let mock = Mock::start(bare);
    let result = run(&Config { endpoint: Endpoint::Chat, ..config(&mock, 5, open(100.0)) }).unwrap();
    assert_eq!((result.completed, result.total_output_tokens, result.sizing), (5, 40, Sizing::Words));
    let all = result.warnings.join("\n");
    assert!(all.contains("one token") && all.contains("sized by words"), "{all}");
    assert_eq!(mock.bodies()[0]["messages"][0]["role"], "user");
}

#[test]
fn failures_are_named_counted_and_kept_out_of_the_latencies() {
    let faults = |nth: usize| {
        let faults = [
            Fault::Status(429),
            Fault::Status(429),
            Fault::Status(500),
            Fault::ErrorInStream,
            Fault::NoDone,
            Fault::Cut,
            Fault::Garbage,
            Fault::Hang,
            Fault::NoTokens,
            Fault::HugeUsage,
        ];
        faults.get(nth).copied().unwrap_or(Fault::None)
    };
    let mock = Mock::start(Behaviour { fault: faults, ..Behaviour::default() });
    let result = run(&Config { timeout_s: 1.0, ..config(&mock, 14, Load::Closed { concurrency: 1 }) }).unwrap();
    assert_eq!((result.completed, result.failed, result.rejected), (4, 10, 2));
    let wanted = [
        (FailureKind::Rejected, 2),
        (FailureKind::Truncated, 2),
        (FailureKind::Malformed, 2),
        (FailureKind::Status(500), 1),
        (FailureKind::StreamError, 1),
        (FailureKind::NoTokens, 1),
        (FailureKind::Timeout, 1),
    ];
    let got: HashSet<_> = kinds(&result).into_iter().collect();
    assert_eq!(got, HashSet::from(wanted));
    assert_eq!(result.failures[0].count, 2);
    assert_eq!((result.latencies.ttft_ms.len(), result.total_output_tokens), (4, 32));
    assert_eq!(result.latencies.itl_ms.len(), 4 * 7, "tokens of failed requests are not samples");
    let said = |kind| &result.failures.iter().find(|failure| failure.kind == kind).unwrap().example;
    assert_eq!(said(FailureKind::StreamError), "engine died");
    assert_eq!(said(FailureKind::Status(500)), "fault number 500");
}

#[test]
fn a_stop_aborts_what_is_in_flight_and_marks_the_result() {
    let mock = Mock::start(Behaviour { gap: 200 * MS, ..Behaviour::default() });
    let live = Arc::new(Live::new());
    let stopper = Arc::clone(&live);
    let stop = std::thread::spawn(move || {
        while stopper.snapshot().sent < 5 {
            std::thread::sleep(MS);
        }
        stopper.stop();
    });
    let result = run_observed(&config(&mock, 1000, open(50.0)), &live).unwrap();
    stop.join().unwrap();
    assert!(result.is_partial && result.duration_s < 5.0);
    assert_eq!((result.completed, result.failed, result.aborted), (0, 0, 1000));
    assert!(result.records.iter().all(|record| record.outcome == Outcome::Aborted));
    assert_eq!(result.to_json(Detail::Summary)["partial"], true);
    // The mock notices at its next event.
    let left = |_: &i32| mock.state.num_in_flight.load(Ordering::SeqCst) > 0;
    let waited = (0..100).take_while(left).inspect(|_| std::thread::sleep(20 * MS)).count();
    assert!(waited < 100, "the server still generates for a client that is gone");
    assert!(mock.state.num_abandoned.load(Ordering::SeqCst) >= 5);
}

#[test]
fn what_cannot_be_measured_is_an_error() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let down = run(&Config { base_url: format!("http://{free}"), ..Config::default() }).unwrap_err().to_string();
    assert!(down.contains(&free.to_string()) && down.contains("make serve"), "{down}");

    let mock = Mock::start(Behaviour { api_key: Some("right"), ..Behaviour::default() });
    let keyed = |key: &str| run(&Config { api_key: Some(key.into()), ..config(&mock, 1, open(10.0)) });
    assert!(matches!(keyed("wrong"), Err(Error::Unauthorized { status: 401, .. })));
    assert_eq!(keyed("right").unwrap().completed, 1);

    let mock = Mock::start(Behaviour { fault: |_| Fault::Status(400), ..Behaviour::default() });
    let unknown = run(&Config { model: Some("gpt".into()), ..config(&mock, 1, open(10.0)) }).unwrap_err();
    assert!(unknown.to_string().contains("mock-model, other"), "{unknown}");
    let cold = run(&Config { num_warmups: 2, ..config(&mock, 1, open(10.0)) }).unwrap_err().to_string();
    assert!(cold.contains("2 of 2 warm-up requests failed") && cold.contains("fault number 400"), "{cold}");
}

#[test]
fn a_base_url_may_end_in_v1() {
    let mock = Mock::start(Behaviour::default());
    let result = run(&Config { base_url: format!("{}/v1/", mock.url), ..config(&mock, 2, open(100.0)) }).unwrap();
    assert_eq!(result.completed, 2);
}
