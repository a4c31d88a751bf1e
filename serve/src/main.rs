//! `aisp-serve`: parses the command line, binds the port, loads the model, serves until told to stop.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use aisp_engine::DeviceKind;
use aisp_serve::args::Args;
use aisp_serve::banner::banner;
use aisp_serve::{App, ServeError, serve, threads};
use anyhow::{Context, Result};
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = threads::ensure(args.threads) {
        eprintln!("aisp-serve: could not start again with another number of threads: {error}");
        return ExitCode::FAILURE;
    }
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let result = tokio::runtime::Runtime::new().context("could not start the run-time").and_then(|runtime| {
        let result = runtime.block_on(run(args));
        // A step of the engine or a long prompt may still run; nobody waits for it.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("aisp-serve: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, but for those that the text before them says already.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line += &format!(": {cause}");
        }
    }
    line
}

/// How long a device is waited for when the process ends. On a CPU nobody waits for a step under way.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(5);

async fn run(args: Args) -> Result<()> {
    let app = App::new(args.app()?)?;
    let on_device = args.device.kind() != DeviceKind::Cpu;
    let result = load_and_serve(args, &app).await;
    if on_device && !app.end(DEVICE_TIMEOUT) {
        tracing::warn!("the device was still at work after {} s", DEVICE_TIMEOUT.as_secs());
    }
    match result {
        // A second signal is an order, not a fault to explain.
        Err(error) if matches!(error.downcast_ref(), Some(ServeError::Interrupted)) => std::process::exit(130),
        result => result,
    }
}

async fn load_and_serve(args: Args, app: &Arc<App>) -> Result<()> {
    let engine = args.engine()?;
    let signals = Arc::new(Mutex::new(Signals::new()?));
    // Before the model is loaded: a port in use shows at once, and probes get answers meanwhile.
    let address = args.address();
    let listener = TcpListener::bind(address).await.with_context(|| format!("could not listen on {address}"))?;
    let address = listener.local_addr()?;
    eprintln!("loading {}", args.model);
    let stop = || {
        let signals = Arc::clone(&signals);
        async move { signals.lock().await.next().await }
    };
    let mut serving = std::pin::pin!(serve(listener, Arc::clone(app), args.drain_timeout, stop));
    tokio::select! {
        loaded = app.load(move || engine.build()) => loaded?,
        stopped = &mut serving => return Ok(stopped?),
    }
    if let Some(model) = app.model() {
        let name = app.model_name(None).unwrap_or_default();
        let text = banner(&model.info, &name, &model.engine.optimizations(), address, args.api_key.is_some());
        print!("{text}");
    }
    Ok(serving.await?)
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
