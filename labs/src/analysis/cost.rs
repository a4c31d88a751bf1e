//! Dollars per million tokens of measured rows, idle time paid.

use bench_client::HOURLY_PRICES;
use serde::Serialize;

use super::rows::{Group, Row};
use crate::LabError;
use crate::tools::checks::{not_negative, refuse, share};

/// The price of a device by name, whatever its case.
pub fn price_usd_per_hour(name: &str) -> Option<f64> {
    HOURLY_PRICES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, price)| *price)
}

/// What hardware costs and how much of the time it serves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tariff {
    /// Dollars per hour.
    pub usd_per_hour: f64,
    /// Share of the time in which it serves, in (0, 1]; the idle rest is paid too.
    pub utilization: f64,
}

impl Tariff {
    /// The list's price of `name`, or `usd_per_hour` where one is given.
    ///
    /// Errors: a name that the list does not have, a rate below 0, a utilization outside (0, 1].
    pub fn new(name: &str, usd_per_hour: Option<f64>, utilization: f64) -> Result<Self, LabError> {
        let names = || HOURLY_PRICES.map(|(name, _)| name).join(", ");
        let Some(usd_per_hour) = usd_per_hour.or_else(|| price_usd_per_hour(name)) else {
            return refuse(format!("no price for {name:?}, only for {}: give a rate", names()));
        };
        let (usd_per_hour, utilization) =
            (not_negative("the rate", usd_per_hour)?, share("the utilization", utilization)?);
        Ok(Self { usd_per_hour, utilization })
    }
}

/// A row with its price.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CostRow<'a> {
    /// `chapter:name`.
    pub lab: &'a str,
    /// Device that ran it.
    pub device: &'a str,
    /// Hash of the inputs; rows compare only within one.
    pub workload: &'a str,
    /// The row.
    pub row: &'a Row,
    /// Dollars per million tokens.
    pub usd_per_million_tokens: f64,
}

/// Rows that have tokens, cheapest first within each workload, at most `top` of each.
pub fn costs<'a>(groups: &'a [Group], tariff: &Tariff, top: usize) -> Vec<CostRow<'a>> {
    groups.iter().flat_map(|group| of_group(group, tariff, top)).collect()
}

fn of_group<'a>(group: &'a Group, tariff: &Tariff, top: usize) -> Vec<CostRow<'a>> {
    let Group { lab, device, workload, .. } = group;
    let priced = group.rows.iter().filter_map(|row| {
        let rate = row.rate.filter(|rate| rate.unit == "tokens")?;
        let tokens_per_hour = rate.per_s * 3600.0 * tariff.utilization;
        let usd_per_million_tokens = tariff.usd_per_hour / tokens_per_hour * 1e6;
        Some(CostRow { lab, device, workload, row, usd_per_million_tokens })
    });
    let mut rows: Vec<_> = priced.collect();
    rows.sort_by(|a, b| a.usd_per_million_tokens.total_cmp(&b.usd_per_million_tokens));
    rows.truncate(top);
    rows
}

#[cfg(test)]
mod tests {
    use super::super::rows::{groups, samples};
    use super::*;

    #[test]
    fn prices_are_found_in_any_case() {
        assert_eq!((price_usd_per_hour("h100"), price_usd_per_hour("H200")), (Some(3.5), Some(4.0)));
        assert_eq!(Tariff::new("abacus", Some(2.0), 0.5).unwrap(), Tariff { usd_per_hour: 2.0, utilization: 0.5 });
        let error = Tariff::new("abacus", None, 1.0).unwrap_err().to_string();
        assert!(error.contains("only for B200, H200"), "{error}");
        assert!(Tariff::new("T4", Some(f64::NAN), 1.0).is_err() && Tariff::new("T4", None, 0.0).is_err());
    }

    #[test]
    fn idle_time_is_paid() {
        let mut run = samples::run("r", &[("fast", 2.0, 50), ("broken", 9.0, 1)]);
        samples::wrong(&mut run, 1);
        let groups = groups(&[run]);
        // 50 tokens a second are 180 000 an hour: 3.6 $ an hour are 20 $ a million, and 40 $ where half is idle.
        let busy = costs(&groups, &Tariff { usd_per_hour: 3.6, utilization: 1.0 }, 9);
        let shown: Vec<_> = busy.iter().map(|it| (it.row.arm.as_str(), it.usd_per_million_tokens)).collect();
        assert_eq!(shown, [("fast", 10.0), ("concatenate", 20.0)]);
        let idle = costs(&groups, &Tariff { usd_per_hour: 3.6, utilization: 0.5 }, 1);
        assert_eq!(idle.iter().map(|it| it.usd_per_million_tokens).collect::<Vec<_>>(), [20.0]);
    }

    #[test]
    fn rows_without_tokens_have_no_price() {
        let mut run = samples::run("r", &[("fast", 2.0, 50)]);
        run.labs[0].workload.tokens = None;
        assert!(costs(&groups(&[run]), &Tariff { usd_per_hour: 1.0, utilization: 1.0 }, 9).is_empty());
    }
}
