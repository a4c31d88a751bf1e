//! `aisp`: the lab's command line.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    labs::cli::Cli::parse().run().unwrap_or_else(|error| {
        eprintln!("aisp: {error}");
        ExitCode::FAILURE
    })
}
