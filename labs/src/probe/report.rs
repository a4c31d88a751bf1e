//! The probe as people read it.

use std::fmt;

use super::{HardwareProbe, Reading};
use crate::units;

impl fmt::Display for HardwareProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({} cores, {}), {}", self.cpu, self.cores, self.vector_instructions, self.host)?;
        let caches = self.caches.iter().map(|cache| {
            let size = units::bytes(cache.bytes as f64);
            format!("L{} {size}{}", cache.level, if cache.shared_by > 1 { " shared" } else { "" })
        });
        let caches = caches.collect::<Vec<_>>().join(", ");
        writeln!(f, "caches: {}", if caches.is_empty() { "unknown" } else { &caches })?;
        writeln!(f, "\n{:8} {:>7} {:>10}  {:>10} {:>10}", "memory", "threads", "set", "read", "copy")?;
        for row in &self.bandwidth {
            let set = units::bytes(row.working_set_bytes as f64);
            let (read, copy) = (gbytes(row.read_gbytes_per_s), gbytes(row.copy_gbytes_per_s));
            writeln!(f, "{:8} {:>7} {set:>10}  {read:>10} {copy:>10}", row.level, row.threads)?;
        }
        writeln!(f, "\n{:8} {:>7} {:>10}  {:>14}", "compute", "threads", "type", "best")?;
        for row in &self.compute {
            let best = units::flop_rate(row.gflops_per_s.best * 1e9);
            writeln!(f, "{:8} {:>7} {:>10}  {best:>14}", row.kind, row.threads, row.dtype)?;
        }
        writeln!(f)?;
        for reason in &self.unavailable {
            writeln!(f, "unavailable: {reason}")?;
        }
        if self.is_noisy() {
            writeln!(f, "caution: rounds differ by more than a tenth; other work may have lowered the ceilings")?;
        }
        write!(f, "{} in {:.1} s", self.date, self.wall_s)
    }
}

impl HardwareProbe {
    /// Whether the middle round of a ceiling lies a tenth or more below its best.
    pub fn is_noisy(&self) -> bool {
        let bandwidth = self.bandwidth.iter().map(|row| row.read_gbytes_per_s);
        bandwidth
            .chain(self.compute.iter().map(|row| row.gflops_per_s))
            .any(|reading| reading.median < 0.9 * reading.best)
    }
}

fn gbytes(reading: Reading) -> String {
    units::bandwidth(reading.best * 1e9)
}
