//! `aisp completions SHELL`: what the shell needs to complete verbs and flags.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use super::output::print;
use crate::LabError;

/// Arguments of `aisp completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

impl CompletionsArgs {
    /// Prints the script: `source <(aisp completions bash)`.
    ///
    /// Errors: an output that cannot be written.
    pub fn run(self) -> Result<ExitCode, LabError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "aisp", &mut script);
        print(&String::from_utf8_lossy(&script))?;
        Ok(ExitCode::SUCCESS)
    }
}
