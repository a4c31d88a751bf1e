//! Which machine is probed.

use std::fs;

/// Who is probed.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbedMachine {
    /// Name of the device in paths.
    pub device: String,
    /// Host name.
    pub host: String,
    /// Model of the processor.
    pub cpu: String,
    /// Processors that a process may use.
    pub cores: usize,
    /// Load average of the last minute, where the system says it.
    pub load_average: Option<f64>,
}

impl ProbedMachine {
    /// The machine this runs on.
    pub fn this() -> Self {
        let file = |path: &str| fs::read_to_string(path).ok();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cpu = file("/proc/cpuinfo").as_deref().and_then(model_name).unwrap_or(std::env::consts::ARCH.to_owned());
        let host = file("/proc/sys/kernel/hostname").map_or("unknown".to_owned(), |name| name.trim().to_owned());
        let load_average = file("/proc/loadavg").and_then(|text| text.split(' ').next()?.parse().ok());
        Self { device: device(&cpu, cores), host, cpu, cores, load_average }
    }
}

fn model_name(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// `cpu-amd-epyc-2c`: lower-case letters and digits, safe in paths.
fn device(cpu: &str, cores: usize) -> String {
    let lower = cpu.to_lowercase();
    let words = lower.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    format!("cpu-{}-{cores}c", words.collect::<Vec<_>>().join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_paths() {
        assert_eq!(device("AMD EPYC", 2), "cpu-amd-epyc-2c");
        assert_eq!(device("Intel(R) Xeon(R) @ 2.20GHz/../", 8), "cpu-intel-r-xeon-r-2-20ghz-8c");
        assert_eq!(model_name("processor\t: 0\nmodel name\t: AMD EPYC\n").as_deref(), Some("AMD EPYC"));
        assert_eq!(model_name(""), None);
        assert!(ProbedMachine::this().cores >= 1);
    }
}
