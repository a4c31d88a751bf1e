//! `aisp bench power`: what the processor draws, from its own counters.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::LabError;
use crate::analysis::power::{POWERCAP, Power, watch};
use crate::cli::output::{print_json, print_line};
use crate::table::Table;
use crate::units;

/// Arguments of `aisp bench power`.
#[derive(Debug, Args)]
pub struct PowerArgs {
    /// Seconds to watch
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text} is not a number"))?;
    if (0.01..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("between 0.01 and 3600".to_owned()) }
}

impl PowerArgs {
    /// Prints the average power, or why there is none.
    ///
    /// Errors: none but an answer that cannot be JSON.
    pub fn run(self) -> Result<ExitCode, LabError> {
        let power = watch(Path::new(POWERCAP), Duration::from_secs_f64(self.seconds));
        if self.json {
            print_json(&power)?;
            return Ok(ExitCode::SUCCESS);
        }
        match power {
            Power::Unavailable { reason } => print_line(&format!("power: unavailable ({reason})"))?,
            Power::Measured { seconds, domains } => {
                let mut table = Table::new(&["domain", "power", "energy"]);
                for domain in domains {
                    let (watts, joules) = (units::digits(domain.watts), units::digits(domain.joules));
                    table.row([domain.name, format!("{watts} W"), format!("{joules} J")]);
                }
                print_line(&format!("{table}watched for {seconds:.2} s"))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
