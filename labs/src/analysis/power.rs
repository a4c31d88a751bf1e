//! Power of the processor from its own energy counters (RAPL), where the system lets us read them.
//!
//! Source: Linux `Documentation/power/powercap/powercap.rst`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

/// Where Linux shows the counters.
pub const POWERCAP: &str = "/sys/class/powercap";

/// What can be said about power.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Power {
    /// Average over the time watched.
    Measured {
        /// Seconds watched.
        seconds: f64,
        /// One a domain.
        domains: Vec<DomainPower>,
    },
    /// No counter can be read.
    Unavailable {
        /// Why.
        reason: String,
    },
}

/// One counter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DomainPower {
    /// `package-0`, `dram`, ..
    pub name: String,
    /// Average.
    pub watts: f64,
    /// Energy over the time watched.
    pub joules: f64,
}

struct Counter {
    folder: String,
    name: String,
    microjoules: u64,
    wraps_at: u64,
}

/// Watches the counters under `folder` for a while. Blocks that long; returns at once where there are none.
pub fn watch(folder: &Path, time: Duration) -> Power {
    let start = Instant::now();
    let before = match counters(folder) {
        Ok(counters) => counters,
        Err(reason) => return Power::Unavailable { reason },
    };
    std::thread::sleep(time);
    let after = match counters(folder) {
        Ok(counters) => counters,
        Err(reason) => return Power::Unavailable { reason },
    };
    let seconds = start.elapsed().as_secs_f64();
    let domains = before.iter().filter_map(|old| {
        let new = after.iter().find(|new| new.folder == old.folder)?;
        let joules = spent(old.microjoules, new.microjoules, old.wraps_at) as f64 / 1e6;
        Some(DomainPower { name: old.name.clone(), watts: joules / seconds, joules })
    });
    Power::Measured { seconds, domains: domains.collect() }
}

fn counters(folder: &Path) -> Result<Vec<Counter>, String> {
    let entries =
        fs::read_dir(folder).map_err(|error| format!("no energy counters at {}: {error}", folder.display()))?;
    let mut counters = Vec::new();
    let mut refused = None;
    for path in entries.flatten().map(|entry| entry.path()) {
        let file = |name: &str| fs::read_to_string(path.join(name)).map(|text| text.trim().to_owned());
        let Ok(name) = file("name") else { continue };
        match file("energy_uj").map(|text| text.parse::<u64>()) {
            Ok(Ok(microjoules)) => {
                let wraps_at = file("max_energy_range_uj").ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
                counters.push(Counter { folder: path.display().to_string(), name, microjoules, wraps_at });
            }
            Ok(Err(_)) => refused = Some(format!("{}/energy_uj is not a number", path.display())),
            Err(error) => refused = Some(format!("{}/energy_uj: {error}", path.display())),
        }
    }
    counters.sort_by(|a, b| a.folder.cmp(&b.folder));
    if counters.is_empty() {
        return Err(refused.unwrap_or(format!("no energy counters under {}", folder.display())));
    }
    Ok(counters)
}

/// Microjoules between two readings of a counter that starts again at 0 after `wraps_at`.
fn spent(before: u64, after: u64, wraps_at: u64) -> u64 {
    if after >= before { after - before } else { wraps_at.saturating_sub(before).saturating_add(after) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_start_again_are_understood() {
        assert_eq!((spent(10, 25, 100), spent(90, 5, 100), spent(7, 7, 100)), (15, 15, 0));
    }

    #[test]
    fn a_counter_that_moves_has_power() {
        let folder = tempfile::tempdir().unwrap();
        let domain = folder.path().join("intel-rapl:0");
        fs::create_dir(&domain).unwrap();
        fs::write(domain.join("name"), "package-0\n").unwrap();
        fs::write(domain.join("energy_uj"), "1000000\n").unwrap();
        let power = std::thread::scope(|scope| {
            let watched = scope.spawn(|| watch(folder.path(), Duration::from_millis(300)));
            std::thread::sleep(Duration::from_millis(100));
            fs::write(domain.join("energy_uj"), "4000000\n").unwrap();
            watched.join().unwrap()
        });
        let Power::Measured { domains, seconds } = power else { panic!("{power:?}") };
        assert_eq!((domains[0].name.as_str(), domains[0].joules), ("package-0", 3.0));
        assert!((domains[0].watts - 3.0 / seconds).abs() < 1e-9);
    }

    #[test]
    fn no_counters_are_unavailable_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path(), Path::new("/nowhere")] {
            let power = watch(path, Duration::from_secs(60));
            assert!(
                matches!(&power, Power::Unavailable { reason } if reason.contains("no energy counters")),
                "{power:?}"
            );
        }
    }
}
