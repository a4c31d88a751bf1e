//! `aisp tui`: the labs in a terminal, or as plain text that refreshes.

use std::io::{IsTerminal, stdout};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;

use super::bench::Folders;
use super::output::print;
use crate::stop::Stop;
use crate::{LabError, tui};

/// How often Ctrl-C is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Arguments of `aisp tui`.
#[derive(Debug, Args)]
pub struct TuiArgs {
    /// Plain text that refreshes; once where the output is no terminal
    #[arg(long)]
    simple: bool,
    /// Seconds between two refreshes of the plain text
    #[arg(long, value_name = "S", default_value_t = 2, requires = "simple", value_parser = clap::value_parser!(u64).range(1..=3600))]
    refresh: u64,
    #[command(flatten)]
    folders: Folders,
}

impl TuiArgs {
    /// Shows until told to stop.
    ///
    /// Errors: no terminal, a folder that cannot be listed.
    pub fn run(self) -> Result<ExitCode, LabError> {
        let artifacts = self.folders.artifacts;
        if !self.simple && !stdout().is_terminal() {
            return Err(LabError::Input("the output is no terminal: use `aisp tui --simple`".into()));
        }
        let stop = Stop::on_ctrl_c()?;
        if !self.simple {
            tui::run(artifacts, &stop)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut app = tui::App::new(artifacts)?;
        loop {
            print(&app.to_text())?;
            if !stdout().is_terminal() {
                return Ok(ExitCode::SUCCESS);
            }
            let shown = Instant::now();
            while shown.elapsed() < Duration::from_secs(self.refresh) {
                if stop.is_requested() {
                    return Ok(ExitCode::SUCCESS);
                }
                std::thread::sleep(LOOK_EVERY);
            }
            app.refresh()?;
        }
    }
}
