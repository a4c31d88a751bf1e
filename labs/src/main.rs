//! `aisp`: the lab's command line.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

fn main() -> anyhow::Result<ExitCode> {
    Ok(labs::cli::Cli::parse().run()?)
}
