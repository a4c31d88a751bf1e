//! `aisp tools cost-per-token`: dollars and joules of a token, idle time included.

use std::fmt;

use serde::Serialize;

use super::checks::{check, not_negative, positive, share};
use crate::{LabError, units};

const SECONDS_PER_HOUR: f64 = 3600.0;

/// What the hardware draws, costs and delivers.
#[derive(Debug, Clone, clap::Args)]
pub struct CostPerTokenArgs {
    /// Average power of everything that serves, in watts; 0 where the hourly rate includes it
    #[arg(long)]
    pub avg_power: f64,
    /// Tokens a second while serving
    #[arg(long)]
    pub throughput: f64,
    /// Price of electricity, in dollars per kWh
    #[arg(long)]
    pub electricity_cost: f64,
    /// Power usage effectiveness: what the building draws for each watt of the machine
    #[arg(long, default_value_t = 1.0)]
    pub pue: f64,
    /// Rent or depreciation of the hardware, in dollars per hour
    #[arg(long, default_value_t = 0.0)]
    pub hourly_rate: f64,
    /// Share of the time in which it serves; the idle rest is paid too
    #[arg(long, default_value_t = 1.0)]
    pub utilization: f64,
}

/// What a token costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CostPerToken {
    /// Energy and hardware, in dollars per million tokens.
    pub usd_per_million_tokens: f64,
    /// The energy's part of it.
    pub energy_usd_per_million_tokens: f64,
    /// The hardware's part of it.
    pub hardware_usd_per_million_tokens: f64,
    /// Energy of a token at the meter of the building, in joules.
    pub joules_per_token: f64,
    /// Tokens an hour brings, idle time included.
    pub tokens_per_hour: f64,
    /// Energy and hardware of an hour, in dollars.
    pub usd_per_hour: f64,
    /// The computation with its figures.
    pub formula: String,
}

/// Cost of a token: dollars of an hour over the tokens of an hour.
///
/// `avg_power` is the average over all hours, idle ones included, so utilization lowers the tokens and not the bill.
/// Errors: a rate that is not positive, a PUE below 1, a utilization outside (0, 1].
pub fn cost_per_token(args: &CostPerTokenArgs) -> Result<CostPerToken, LabError> {
    let power = not_negative("--avg-power", args.avg_power)?;
    let throughput = positive("--throughput", args.throughput)?;
    let price = not_negative("--electricity-cost", args.electricity_cost)?;
    let pue = check("--pue", args.pue, args.pue.is_finite() && args.pue >= 1.0, "at least 1")?;
    let rate = not_negative("--hourly-rate", args.hourly_rate)?;
    let utilization = share("--utilization", args.utilization)?;

    let energy_usd_per_hour = power * pue / 1000.0 * price;
    let tokens_per_hour = throughput * SECONDS_PER_HOUR * utilization;
    let per_million = |usd_per_hour: f64| usd_per_hour / tokens_per_hour * 1e6;
    let formula = format!(
        "({power} W x {pue} PUE / 1000 x {} + {}) per hour / ({throughput} tok/s x 3600 s x {utilization}) x 1e6",
        units::dollars(price),
        units::dollars(rate)
    );
    Ok(CostPerToken {
        usd_per_million_tokens: per_million(energy_usd_per_hour + rate),
        energy_usd_per_million_tokens: per_million(energy_usd_per_hour),
        hardware_usd_per_million_tokens: per_million(rate),
        joules_per_token: power * pue / (throughput * utilization),
        tokens_per_hour,
        usd_per_hour: energy_usd_per_hour + rate,
        formula,
    })
}

impl fmt::Display for CostPerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dollars = units::dollars;
        writeln!(f, "per million tokens  {}", dollars(self.usd_per_million_tokens))?;
        writeln!(f, "  energy            {}", dollars(self.energy_usd_per_million_tokens))?;
        writeln!(f, "  hardware          {}", dollars(self.hardware_usd_per_million_tokens))?;
        writeln!(f, "energy per token    {} J", units::digits(self.joules_per_token))?;
        writeln!(f, "per hour            {}", dollars(self.usd_per_hour))?;
        writeln!(f, "formula             {}", self.formula)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> CostPerTokenArgs {
        CostPerTokenArgs {
            avg_power: 800.0,
            throughput: 1500.0,
            electricity_cost: 0.16,
            pue: 1.5,
            hourly_rate: 0.0,
            utilization: 1.0,
        }
    }

    fn close(actual: f64, expected: f64) {
        assert!((actual / expected - 1.0).abs() < 1e-9, "{actual} is not {expected}");
    }

    #[test]
    fn costs_are_those_computed_by_hand() {
        // 1.2 kW x 0.16 $/kWh = 0.192 $ for 5.4 M tokens.
        let cost = cost_per_token(&example()).unwrap();
        close(cost.usd_per_million_tokens, 0.192 / 5.4);
        close(cost.joules_per_token, 0.8);
        close(cost.tokens_per_hour, 5.4e6);

        let rented = cost_per_token(&CostPerTokenArgs { hourly_rate: 3.5, ..example() }).unwrap();
        close(rented.usd_per_million_tokens, 3.692 / 5.4);
        close(rented.hardware_usd_per_million_tokens, 3.5 / 5.4);
    }

    #[test]
    fn idle_hardware_is_paid() {
        let half = cost_per_token(&CostPerTokenArgs { hourly_rate: 3.5, utilization: 0.5, ..example() }).unwrap();
        close(half.usd_per_million_tokens, 2.0 * 3.692 / 5.4);
        close(half.usd_per_hour, 3.692);
    }

    #[test]
    fn impossible_figures_are_refused() {
        let refused = |args: CostPerTokenArgs, part: &str| {
            let error = cost_per_token(&args).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(CostPerTokenArgs { throughput: 0.0, ..example() }, "--throughput must be above 0, it is 0");
        refused(CostPerTokenArgs { throughput: f64::NAN, ..example() }, "--throughput");
        refused(CostPerTokenArgs { pue: 0.9, ..example() }, "--pue must be at least 1, it is 0.9");
        refused(CostPerTokenArgs { utilization: 0.0, ..example() }, "--utilization must be above 0 and at most 1");
        refused(CostPerTokenArgs { avg_power: -1.0, ..example() }, "--avg-power must be at least 0, it is -1");
    }
}
