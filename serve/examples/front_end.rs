//! What the front end costs: streamed tokens per second of CPU time through the real HTTP stack, with an engine whose
//! steps compute nothing.
//!
//! `cargo run --release -p aisp-serve --example front_end -- [STREAMS] [TOKENS] [WORKERS] [RUNS] [STEP_US]`
//!
//! With a step time of zero the engine runs ahead and many events share a write, as under full load; with one, as 1000,
//! every token is a write of its own.
//!
//! The server is a process of its own, so its CPU time is its own, in nanoseconds as the kernel's scheduler counts it
//! (the ticks of `/proc/PID/stat` are too coarse). The thread that owns the engine is counted apart: it runs scheduler,
//! sampler and mock runner, which are not the front end.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aisp_serve::admission::AdmissionLimits;
use aisp_serve::mock::MockEngine;
use aisp_serve::{App, AppConfig, serve};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Longest stream.
const MAX_MODEL_LEN: usize = 1 << 16;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "server") {
        return server(number(&args, 1, 64)?, number(&args, 2, 1)?, number(&args, 3, 0)?);
    }
    let (streams, tokens, workers) = (number(&args, 0, 64)?, number(&args, 1, 20_000)?, number(&args, 2, 1)?);
    let (runs, step_us) = (number(&args, 3, 5)?, number(&args, 4, 0)?);
    println!(
        "{streams} streams of {tokens} tokens, each token an event of its own; {workers} worker threads; steps of {step_us} us"
    );
    println!(
        "{:>8} {:>12} {:>14} {:>12} {:>14} {:>14}",
        "wall s", "tokens/s", "front end s", "us/token", "tokens/s/core", "engine s"
    );
    let (mut child, address) = start(&[streams, workers, step_us])?;
    let run = || -> Result<()> {
        load(&address, streams, tokens.div_ceil(10))?;
        for _ in 0..runs {
            let before = CpuTimes::of(&child)?;
            let started = Instant::now();
            let events = load(&address, streams, tokens)?;
            let wall = started.elapsed();
            report(events, wall, &CpuTimes::of(&child)?.since(&before));
        }
        Ok(())
    };
    let result = run();
    child.kill()?;
    child.wait()?;
    result
}

fn number(args: &[String], at: usize, default: usize) -> Result<usize> {
    Ok(args.get(at).map(|arg| arg.parse()).transpose()?.unwrap_or(default))
}

fn report(events: usize, wall: Duration, used: &CpuTimes) {
    let (events, wall) = (events as f64, wall.as_secs_f64());
    let (per_wall, per_core, each) = (events / wall, events / used.front_end, used.front_end / events * 1e6);
    println!("{wall:8.3} {per_wall:12.0} {:14.3} {each:12.3} {per_core:14.0} {:14.3}", used.front_end, used.engine);
}

/// The server process: one engine thread, `workers` threads for everything else.
fn server(streams: usize, workers: usize, step_us: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    runtime.block_on(async {
        let admission =
            AdmissionLimits { max_num_seqs: streams, max_num_queued_reqs: streams, max_num_queued_tokens: 1 << 20 };
        let app = App::new(AppConfig { admission, ..AppConfig::default() })?;
        let engine = MockEngine {
            max_num_seqs: streams,
            step_time: Duration::from_micros(step_us as u64),
            max_model_len: MAX_MODEL_LEN,
            num_kv_slots: streams * MAX_MODEL_LEN,
            ..MockEngine::default()
        };
        app.load(|| engine.build()).await?;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        Ok(serve(listener, app, Duration::ZERO, std::future::pending).await?)
    })
}

fn start(settings: &[usize]) -> Result<(Child, String)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("server").args(settings.iter().map(usize::to_string)).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().ok_or("no standard output")?;
    let mut address = String::new();
    BufReader::new(stdout).read_line(&mut address)?;
    Ok((child, address.trim().to_owned()))
}

/// Streams `tokens` tokens on each of `streams` connections and returns the number of events with a token.
fn load(address: &str, streams: usize, tokens: usize) -> Result<usize> {
    let clients: Vec<_> = (0..streams)
        .map(|at| {
            let address = address.to_owned();
            std::thread::Builder::new().stack_size(128 << 10).spawn(move || client(&address, at, tokens))
        })
        .collect();
    let mut events = 0;
    for client in clients {
        let count = client?.join().map_err(|_| "a client panicked")??;
        if count != tokens + 1 {
            return Err(format!("a stream of {tokens} tokens had {count} events instead of one more").into());
        }
        events += tokens;
    }
    Ok(events)
}

/// Reads one stream and counts its events, `[DONE]` included.
fn client(address: &str, at: usize, tokens: usize) -> Result<usize> {
    let json =
        format!(r#"{{"prompt":"stream {at}","max_tokens":{tokens},"temperature":0,"ignore_eos":true,"stream":true}}"#);
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{json}",
        json.len()
    )?;
    let mut buffer = vec![0; 64 << 10];
    stream.read_exact(&mut buffer[..STATUS.len()])?;
    if !buffer.starts_with(STATUS) {
        let mut refusal = String::new();
        stream.read_to_string(&mut refusal)?;
        return Err(format!("the server refused a stream: {refusal}").into());
    }
    let (mut events, mut kept) = (0, 0);
    loop {
        let read = stream.read(&mut buffer[kept..])?;
        if read == 0 {
            return Ok(events);
        }
        let filled = kept + read;
        events += count(&buffer[..filled]);
        // What may be the beginning of the next mark stays.
        kept = filled.min(MARK.len() - 1);
        buffer.copy_within(filled - kept..filled, 0);
    }
}

const STATUS: &[u8] = b"HTTP/1.1 200";
const MARK: &[u8] = b"data: ";

/// Marks in the bytes; a mark that was kept whole would be counted twice, so less than one is kept.
fn count(bytes: &[u8]) -> usize {
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == MARK[0]);
    starts.filter(|(at, _)| bytes[*at..].starts_with(MARK)).count()
}

/// CPU seconds of a process.
struct CpuTimes {
    front_end: f64,
    engine: f64,
}

impl CpuTimes {
    /// Sums the threads of a process. Those that tokenized live on for ten seconds, longer than a run.
    fn of(child: &Child) -> Result<Self> {
        let mut times = Self { front_end: 0.0, engine: 0.0 };
        for task in std::fs::read_dir(format!("/proc/{}/task", child.id()))? {
            let task = task?.path();
            let on_cpu_ns = std::fs::read_to_string(task.join("schedstat"))?;
            let on_cpu_ns: f64 = on_cpu_ns.split(' ').next().ok_or("no time")?.parse()?;
            let is_engine = std::fs::read_to_string(task.join("comm"))?.trim() == "aisp-engine";
            *if is_engine { &mut times.engine } else { &mut times.front_end } += on_cpu_ns / 1e9;
        }
        Ok(times)
    }

    fn since(&self, before: &Self) -> Self {
        Self { front_end: self.front_end - before.front_end, engine: self.engine - before.engine }
    }
}
