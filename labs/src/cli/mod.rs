//! The command line: one file a verb. A verb parses, calls the library and prints; it decides nothing.

mod ab;
mod bench;
mod completions;
mod dashboard;
pub(crate) mod output;
mod tools;
mod trace;
mod tui;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::LabError;

/// The lab of aisp: what each optimization gains, measured after it is proven equal.
#[derive(Debug, Parser)]
#[command(name = "aisp", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Two stacks of optimizations against one another, on the engine that ships
    Ab(ab::AbArgs),
    /// Baseline/optimized pairs: run them, compare runs
    #[command(subcommand)]
    Bench(bench::Bench),
    /// A script that completes verbs and flags in a shell
    Completions(completions::CompletionsArgs),
    /// The stored runs as pages, on this machine only
    Dashboard(dashboard::DashboardArgs),
    /// Record real steps for Perfetto, and say where the time went
    Trace(trace::TraceArgs),
    /// The labs in a terminal: last results, run one, live progress
    Tui(tui::TuiArgs),
    /// Calculators, and the probe of this machine
    Tools(tools::Tools),
}

impl Cli {
    /// Carries the command out. Success means that everything asked for held: a wrong output or a regression is a
    /// failure too.
    ///
    /// Errors: what the verb met.
    pub fn run(self) -> Result<ExitCode, LabError> {
        match self.command {
            Command::Ab(ab) => ab.run(),
            Command::Bench(bench) => bench.run(),
            Command::Completions(completions) => completions.run(),
            Command::Trace(trace) => trace.run(),
            Command::Tui(tui) => tui.run(),
            Command::Dashboard(dashboard) => dashboard.run(),
            Command::Tools(tools) => tools.run(),
        }
    }
}
