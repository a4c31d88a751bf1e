//! A run from its description to its result.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use crate::config::{Config, Load};
use crate::exchange::Job;
use crate::http::Client;
use crate::live::{Counters, Live};
use crate::pacer::{Fleet, Phase, closed_loop, open_loop};
use crate::prompt::Prompt;
use crate::record::{Outcome, RequestRecord};
use crate::result::{BenchResult, Measured};
use crate::server::choose_model;
use crate::wire::request_body;
use crate::workload::Workload;
use crate::{Error, Rate};

/// Warm-up requests in flight.
const WARMUP_CONCURRENCY: usize = 8;
/// From the end of preparation to the start of the clock, so that the first arrival is not late.
const LEAD: Duration = Duration::from_millis(10);

/// Runs a benchmark and returns its result, which also holds every request that failed. Blocks until it is over; it
/// has its own threads, so it may be called from anywhere.
///
/// Errors: a setting cannot be used, the server cannot be reached, a data set cannot be read, the warm-up failed.
pub fn run(config: &Config) -> Result<BenchResult, Error> {
    run_observed(config, &Arc::new(Live::new()))
}

/// As [`run`]; `live` shows its progress and can stop it.
///
/// Errors: as [`run`], and [`Error::StoppedEarly`].
pub fn run_observed(config: &Config, live: &Arc<Live>) -> Result<BenchResult, Error> {
    config.validate()?;
    // On a thread of its own: a caller inside another run-time could not block here.
    std::thread::scope(|scope| {
        let pacer = std::thread::Builder::new().name("bench-pacer".into());
        let running = pacer.spawn_scoped(scope, || {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(client_threads(config)).thread_name("bench-client").enable_all();
            let runtime = builder.build().map_err(Error::Threads)?;
            let result = run_on(&runtime, config, live);
            // Aborts what is still in flight by closing its connections.
            runtime.shutdown_background();
            result
        });
        running.map_err(Error::Threads)?.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn run_on(runtime: &Runtime, config: &Config, live: &Arc<Live>) -> Result<BenchResult, Error> {
    let seed = config.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let prepared = runtime.block_on(async {
        tokio::select! {
            prepared = prepare(config, seed) => prepared,
            () = live.stopped() => Err(Error::StoppedEarly),
        }
    })?;
    let Prepared { client, model, workload } = prepared;
    let jobs = |prompts: &[Prompt]| {
        let job = |prompt: &Prompt| Job {
            body: request_body(config, &model, prompt).into(),
            estimated_tokens: prompt.estimated_tokens,
        };
        Arc::new(prompts.iter().map(job).collect::<Vec<_>>())
    };
    let fleet = |prompts: &[Prompt], kind, start| {
        let (records, received) = mpsc::unbounded_channel();
        let fleet = Fleet {
            client: Arc::clone(&client),
            path: config.endpoint.path(),
            timeout: Duration::from_secs_f64(config.timeout_s),
            start,
            jobs: jobs(prompts),
            live: Arc::clone(live),
            kind,
            records,
        };
        (fleet, received)
    };
    let (warm_up, received) = fleet(&workload.warmups, Phase::WarmUp(Arc::new(Counters::default())), Instant::now());
    closed_loop(warm_up, runtime.handle(), WARMUP_CONCURRENCY);
    let warmed = runtime.block_on(collect(received, workload.warmups.len(), live));
    check_warm_up(&warmed, live)?;

    let total = workload.prompts.len();
    let intended = match &config.load {
        Load::Open { arrivals, .. } => Some(arrivals.draw(total, seed)?),
        Load::Closed { .. } => None,
    };
    let started = SystemTime::now();
    let (mut fleet, received) = fleet(&workload.prompts, Phase::Measured, Instant::now());
    // Set last: to write the bodies takes time too.
    fleet.start = Instant::now() + LEAD;
    let start = fleet.start;
    live.begin(total);
    match (&config.load, &intended) {
        (Load::Open { max_concurrency, .. }, Some(arrivals)) => {
            open_loop(fleet, runtime.handle(), arrivals, *max_concurrency);
        }
        (Load::Open { .. }, None) => {}
        (Load::Closed { concurrency }, _) => closed_loop(fleet, runtime.handle(), *concurrency),
    }
    let ended = runtime.block_on(collect(received, total, live));
    let elapsed_s = Instant::now().saturating_duration_since(start).as_secs_f64();
    let records = in_order(ended, intended.as_deref(), total);
    Ok(BenchResult::new(Measured {
        config: config.clone(),
        model,
        seed,
        started_unix_s: started.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        elapsed_s,
        offered_rate: offered_rate(config, intended.as_deref()),
        sizing: workload.sizing,
        num_repeated_prompts: workload.num_repeated,
        records,
    }))
}

struct Prepared {
    client: Arc<Client>,
    model: String,
    workload: Workload,
}

async fn prepare(config: &Config, seed: u64) -> Result<Prepared, Error> {
    let client = Arc::new(Client::connect(&config.base_url, config.api_key.as_deref()).await?);
    let model = choose_model(&client, config.model.as_deref()).await?;
    let workload = Workload::prepare(config, &client, &model, seed).await?;
    Ok(Prepared { client, model, workload })
}

/// Takes records until all came, no more can come, or the run was stopped.
async fn collect(
    mut received: mpsc::UnboundedReceiver<RequestRecord>,
    wanted: usize,
    live: &Live,
) -> Vec<RequestRecord> {
    let mut records = Vec::with_capacity(wanted);
    while records.len() < wanted {
        tokio::select! {
            biased;
            record = received.recv() => match record {
                Some(record) => records.push(record),
                None => break,
            },
            () = live.stopped() => break,
        }
    }
    records
}

fn check_warm_up(records: &[RequestRecord], live: &Live) -> Result<(), Error> {
    if live.is_stopped() {
        return Err(Error::StoppedEarly);
    }
    let failures: Vec<String> = records
        .iter()
        .filter_map(|record| match &record.outcome {
            Outcome::Failed { kind, message } => Some(format!("{}: {message}", kind.label())),
            _ => None,
        })
        .collect();
    match failures.first() {
        Some(example) => {
            Err(Error::WarmupFailed { failed: failures.len(), total: records.len(), example: example.clone() })
        }
        None => Ok(()),
    }
}

/// One record a request, in order of arrival; those that never ended are aborted.
fn in_order(ended: Vec<RequestRecord>, intended: Option<&[Duration]>, total: usize) -> Vec<RequestRecord> {
    let intended_s = |idx: usize| intended.and_then(|all| all.get(idx)).map_or(0.0, Duration::as_secs_f64);
    let mut records: Vec<_> = (0..total).map(|idx| RequestRecord::unsent(idx, intended_s(idx))).collect();
    for record in ended {
        if let Some(slot) = records.get_mut(record.request_idx) {
            *slot = record;
        }
    }
    records
}

/// Requests per second that the drawn arrivals amount to.
fn offered_rate(config: &Config, intended: Option<&[Duration]>) -> Option<f64> {
    let is_finite = matches!(&config.load, Load::Open { arrivals, .. } if !matches!(arrivals.rate, Rate::AtOnce));
    let (last, count) = intended.and_then(|all| Some((all.last()?.as_secs_f64(), all.len())))?;
    (is_finite && last > 0.0).then(|| (count - 1) as f64 / last)
}

/// Few threads are enough (the README gives the ceiling of one), and on a small machine the server needs the others.
fn client_threads(config: &Config) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    config.client_threads.unwrap_or((cores / 4).clamp(1, 8))
}
