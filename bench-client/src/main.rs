//! The command: flags in, a table on stdout, an exit status out.

#![forbid(unsafe_code)]

mod cli;
mod progress;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use bench_client::{BenchResult, Detail, Error, Live, run_observed};
use clap::Parser;

use crate::cli::{Cli, Output, Save};
use crate::progress::Progress;

const SOME_FAILED: u8 = 1;
const NOT_MEASURED: u8 = 2;
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    match measure() {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("bench-client: {error:#}");
            let is_stopped = matches!(error.downcast_ref(), Some(Error::StoppedEarly));
            ExitCode::from(if is_stopped { INTERRUPTED } else { NOT_MEASURED })
        }
    }
}

fn measure() -> anyhow::Result<u8> {
    let (config, output) = Cli::parse().resolve()?;
    let live = Arc::new(Live::new());
    stop_on_ctrl_c(Arc::clone(&live));
    let progress = (!output.is_quiet).then(|| Progress::start(Arc::clone(&live)));
    let result = run_observed(&config, &live);
    drop(progress);
    let result = result?;
    // A closed pipe (`| head`) must not keep the result from being saved.
    let _ = std::io::stdout().write_all(result.report(&output.metrics).as_bytes());
    if let Some(path) = save(&result, &output)? {
        eprintln!("saved {}", path.display());
    }
    Ok(match (result.is_partial, result.failed) {
        (true, _) => INTERRUPTED,
        (false, 0) => 0,
        (false, _) => SOME_FAILED,
    })
}

/// The first Ctrl-C stops the run, the second the process.
fn stop_on_ctrl_c(live: Arc<Live>) {
    let wait = move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            if tokio::signal::ctrl_c().await.is_ok() {
                live.stop();
            }
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(i32::from(INTERRUPTED));
            }
        });
    };
    if let Err(cause) = std::thread::Builder::new().name("bench-ctrl-c".into()).spawn(wait) {
        eprintln!("bench-client: Ctrl-C will end this run without a result ({cause})");
    }
}

fn save(result: &BenchResult, output: &Output) -> Result<Option<PathBuf>, Error> {
    let path = match &output.save {
        Save::Nowhere => return Ok(None),
        Save::DefaultFile => default_path(result),
        Save::File(path) => path.clone(),
    };
    let detail = if output.is_detailed { Detail::Samples } else { Detail::Summary };
    let text = format!("{:#}\n", result.to_json(detail));
    match std::fs::write(&path, text) {
        Ok(()) => Ok(Some(path)),
        Err(source) => Err(Error::ResultUnwritable { path, source }),
    }
}

fn default_path(result: &BenchResult) -> PathBuf {
    let model = result.model.rsplit('/').next().unwrap_or_default();
    let safe = |char: char| if char.is_ascii_alphanumeric() || "._-".contains(char) { char } else { '-' };
    let model: String = model.chars().map(safe).collect();
    format!("bench-{model}-{}.json", result.started_unix_s).into()
}
