//! What a GPU reaches: memory, the link to the host, matrix products, launches.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use aisp_engine::probe_gpu;
use aisp_kernels::{ProbeKind, ProbeRow};
use serde::{Deserialize, Serialize};

use super::timing::Reading;
use crate::record::Ceilings;
use crate::{LabError, machine, units};

/// What the probe of a GPU measured. Link and launches are no roof of an op: they stand here alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuProbe {
    /// Name of the device in paths.
    pub device: String,
    /// Host name.
    pub host: String,
    /// When, RFC 3339 in UTC.
    pub date: String,
    /// Reading the card's memory, 10^9 bytes a second.
    pub read_gbytes_per_s: Reading,
    /// Copying inside it, bytes read plus bytes written, 10^9 a second.
    pub copy_gbytes_per_s: Reading,
    /// Pinned host memory to the card, 10^9 bytes a second.
    pub host_to_device_gbytes_per_s: Reading,
    /// The card to pinned host memory, 10^9 bytes a second.
    pub device_to_host_gbytes_per_s: Reading,
    /// Matrix products of the library by type, 10^9 operations a second.
    pub products_gflops_per_s: BTreeMap<String, Reading>,
    /// An empty kernel launched by itself, in microseconds.
    pub eager_launch_us: f64,
    /// An empty kernel in a recorded graph, in microseconds.
    pub graph_launch_us: f64,
    /// What could not be measured, each with the reason.
    pub unavailable: Vec<String>,
    /// Seconds that the probe took.
    pub wall_s: f64,
}

impl GpuProbe {
    /// Measures `cuda:{index}`, which is called `device` in paths; tells `progress` what comes next and the part done so
    /// far, from 0 to 1.
    ///
    /// Cost: about 1 s.
    /// Errors: a build without CUDA; no driver or device; a card that fails.
    pub fn measure(index: usize, device: String, mut progress: impl FnMut(&str, f64)) -> Result<Self, LabError> {
        let begin = Instant::now();
        let mut done = 0;
        let rows = probe_gpu(index, &mut |kind| {
            progress(kind.name(), f64::from(done) / ProbeKind::ALL.len() as f64);
            done += 1;
        });
        let rows = rows.map_err(LabError::Engine)?;
        Ok(Self::of(device, &rows, begin.elapsed().as_secs_f64()))
    }

    fn of(device: String, rows: &[ProbeRow], wall_s: f64) -> Self {
        let find = |kind| rows.iter().find(|row| row.kind == kind);
        let reading = |kind| {
            let measured = find(kind).and_then(|row| Some((row.work, row.seconds.as_ref().ok()?)));
            measured.map(|(work, seconds)| Reading::of(work / 1e9, seconds))
        };
        let rate = |kind| reading(kind).unwrap_or(Reading::of(0.0, &[]));
        let products = [("bf16", ProbeKind::ProductBf16), ("fp8", ProbeKind::ProductFp8)];
        let products = products.into_iter().filter_map(|(dtype, kind)| Some((dtype.to_owned(), reading(kind)?)));
        let reasons = rows.iter().filter_map(|row| {
            let reason = row.seconds.as_ref().err()?;
            Some(format!("{}: {reason}", row.kind.name()))
        });
        Self {
            device,
            host: machine::host(),
            date: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            read_gbytes_per_s: rate(ProbeKind::Read),
            copy_gbytes_per_s: rate(ProbeKind::Copy),
            host_to_device_gbytes_per_s: rate(ProbeKind::HostToDevice),
            device_to_host_gbytes_per_s: rate(ProbeKind::DeviceToHost),
            products_gflops_per_s: products.collect(),
            // 10^9 launches a second turned over are nanoseconds.
            eager_launch_us: 1e-3 / rate(ProbeKind::LaunchEager).best,
            graph_launch_us: 1e-3 / rate(ProbeKind::LaunchGraph).best,
            unavailable: reasons.collect(),
            wall_s,
        }
    }

    /// The ceilings that roofline shares are taken of.
    pub fn ceilings(&self) -> Ceilings {
        let peaks = self.products_gflops_per_s.iter();
        Ceilings {
            device: self.device.clone(),
            host: self.host.clone(),
            date: self.date.clone(),
            read_gbytes_per_s: self.read_gbytes_per_s.best,
            copy_gbytes_per_s: self.copy_gbytes_per_s.best,
            peak_gflops_per_s: peaks.map(|(dtype, reading)| (dtype.clone(), reading.best)).collect(),
        }
    }
}

impl fmt::Display for GpuProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {}", self.device, self.host)?;
        for (what, reading) in [
            ("memory, read", self.read_gbytes_per_s),
            ("memory, copy", self.copy_gbytes_per_s),
            ("host to device", self.host_to_device_gbytes_per_s),
            ("device to host", self.device_to_host_gbytes_per_s),
        ] {
            writeln!(f, "{what:18} {:>14}", units::bandwidth(reading.best * 1e9))?;
        }
        for (dtype, reading) in &self.products_gflops_per_s {
            writeln!(f, "{:18} {:>14}", format!("{dtype} products"), units::flop_rate(reading.best * 1e9))?;
        }
        for (what, us) in [("launch, eager", self.eager_launch_us), ("launch, in a graph", self.graph_launch_us)] {
            writeln!(f, "{what:18} {:>14}", units::seconds(us / 1e6))?;
        }
        for reason in &self.unavailable {
            writeln!(f, "unavailable: {reason}")?;
        }
        write!(f, "{} in {:.1} s", self.date, self.wall_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: ProbeKind) -> ProbeRow {
        let seconds = match kind {
            ProbeKind::ProductFp8 => Err("this card does not multiply it".to_owned()),
            ProbeKind::LaunchEager => Ok(vec![3e-3, 2e-3]),
            _ => Ok(vec![1.0, 0.5, 0.8]),
        };
        let work = if kind == ProbeKind::LaunchEager { 1000.0 } else { 2e12 };
        ProbeRow { kind, work, seconds }
    }

    #[test]
    fn ceilings_are_best_rounds_and_what_is_missing_is_said() {
        let probe = GpuProbe::of("gpu-test".into(), &ProbeKind::ALL.map(row), 1.0);
        let ceilings = probe.ceilings();
        assert_eq!((ceilings.read_gbytes_per_s, ceilings.copy_gbytes_per_s), (4000.0, 4000.0));
        assert_eq!(ceilings.peak_gflops_per_s.into_iter().collect::<Vec<_>>(), [("bf16".to_owned(), 4000.0)]);
        assert!((probe.eager_launch_us - 2.0).abs() < 1e-9, "{}", probe.eager_launch_us);
        let shown = probe.to_string();
        assert!(shown.contains("unavailable: fp8 products: this card does not"), "{shown}");
        assert!(shown.contains("2.00 us") || shown.contains("2.00 µs"), "{shown}");
    }

    #[test]
    fn a_probe_is_read_again_as_it_was_written() {
        let probe = GpuProbe::of("gpu-test".into(), &ProbeKind::ALL.map(row), 1.0);
        let json = serde_json::to_string(&probe).unwrap();
        assert_eq!(serde_json::from_str::<GpuProbe>(&json).unwrap(), probe);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_how_to_get_one() {
        let message = GpuProbe::measure(0, "gpu".into(), |_, _| ()).unwrap_err().to_string();
        assert!(message.contains("make cuda") && message.lines().count() == 1, "{message}");
    }
}
