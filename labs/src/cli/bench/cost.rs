//! `aisp bench cost`: dollars per million tokens.

use std::process::ExitCode;

use clap::Args;

use super::analysis::Source;
use crate::LabError;
use crate::analysis::cost::{Tariff, costs};
use crate::table::Table;
use crate::units;

/// Arguments of `aisp bench cost`.
#[derive(Debug, Args)]
pub struct Cost {
    /// Hardware to pay for: B200, H200, H100, A100, L40S, A10G, T4 or CPU
    #[arg(long, default_value = "CPU")]
    gpu: String,
    /// Dollars per hour instead of the list's
    #[arg(long)]
    rate: Option<f64>,
    /// Share of the time in which it serves; the idle rest is paid too
    #[arg(long, default_value_t = 1.0)]
    utilization: f64,
    /// Most rows of each workload
    #[arg(long, default_value_t = 10)]
    top: usize,
    #[command(flatten)]
    source: Source,
}

impl Cost {
    /// Prints the cheapest rows.
    ///
    /// Errors: an unknown name without a rate, figures that cannot be true, no runs.
    pub fn run(self) -> Result<ExitCode, LabError> {
        let tariff = Tariff::new(&self.gpu, self.rate, self.utilization)?;
        let groups = self.source.groups()?;
        let costs = costs(&groups, &tariff, self.top);
        self.source.print(&costs, || {
            let mut table = Table::new(&["lab", "measured on", "arm", "tokens a second", "per million tokens"]);
            for it in &costs {
                let rate = it.row.rate.map_or(String::new(), |rate| units::digits(rate.per_s));
                let dollars = units::dollars(it.usd_per_million_tokens);
                table.row([it.lab.to_owned(), it.device.to_owned(), it.row.arm.clone(), rate, dollars]);
            }
            if table.is_empty() {
                return "no row counts tokens: nothing has a price".to_owned();
            }
            let (rate, busy) = (units::dollars(tariff.usd_per_hour), tariff.utilization * 100.0);
            format!("{table}\npaid: {rate} an hour ({}), serving {busy:.0} % of the time", self.gpu)
        })
    }
}
