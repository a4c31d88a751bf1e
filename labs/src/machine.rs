//! Where and from what a run is made: processor, memory, commit. Reads the system, decides nothing.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use aisp_engine::DeviceChoice;
use serde_json::Value;

use crate::LabError;
use crate::memory;
use crate::record::{Manifest, SCHEMA};

/// Describes this machine, these sources and this command line.
pub fn manifest(config: BTreeMap<String, Value>, seed: u64) -> Manifest {
    let now = chrono::Utc::now();
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    let changes = git(&["status", "--porcelain", "--untracked-files=no"]);
    Manifest {
        schema: SCHEMA,
        run_id: format!("{}-{}", now.format("%Y%m%d-%H%M%S"), std::process::id()),
        machine: format!("{}, {}", host(), system()),
        cpu: cpu_name(),
        device: device(),
        cores: num_cores(),
        memory_bytes: memory::total_bytes().unwrap_or(0),
        load_average: load_average(),
        dirty: commit.is_some() && changes.is_some_and(|changes| !changes.is_empty()),
        commit,
        build: build().to_owned(),
        command: std::env::args().collect(),
        config,
        seed,
        date: now.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
    }
}

/// `release` or `debug`.
pub fn build() -> &'static str {
    if cfg!(debug_assertions) { "debug" } else { "release" }
}

/// Processors that this process may use.
pub fn num_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Host name.
pub fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "unknown".to_owned() } else { name.trim().to_owned() }
}

fn system() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} {} {}", std::env::consts::OS, release.trim(), std::env::consts::ARCH)
}

/// Name of the processor.
pub fn cpu_name() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpuinfo_field(&cpuinfo, "model name").unwrap_or(std::env::consts::ARCH).to_owned()
}

/// Name of this device in paths: processor, its family and model where the name alone says little, and the threads
/// that compute. A process told to use fewer threads is another device: its figures are others.
pub fn device() -> String {
    device_slug(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default(), num_threads())
}

/// A manifest of a run on another device than the processor.
///
/// Errors: a device that is not there.
pub fn on_device(manifest: Manifest, device: DeviceChoice) -> Result<Manifest, LabError> {
    Ok(Manifest { device: device_named(device)?, ..manifest })
}

/// Name of any device in paths: a card's model, as `h200`.
///
/// Errors: a device that is not there.
pub fn device_named(choice: DeviceChoice) -> Result<String, LabError> {
    let name = choice.name().map_err(LabError::Engine)?;
    Ok(name.map_or_else(device, |name| slug(name.strip_prefix("NVIDIA ").unwrap_or(&name))))
}

/// Version of the driver of NVIDIA cards, if one is loaded.
pub fn driver() -> Option<String> {
    let version = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let numbers = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    version.split_whitespace().find(numbers).map(str::to_owned)
}

/// Threads that tensor operations use: `RAYON_NUM_THREADS`, or all processors.
pub fn num_threads() -> usize {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|threads| threads.parse().ok());
    asked.filter(|&threads| threads > 0).unwrap_or_else(num_cores)
}

fn device_slug(cpuinfo: &str, threads: usize) -> String {
    let field = |name| cpuinfo_field(cpuinfo, name).unwrap_or("");
    let name = cpuinfo_field(cpuinfo, "model name").unwrap_or(std::env::consts::ARCH);
    let words = format!("cpu {name} {} {} {threads} threads", field("cpu family"), field("model"));
    slug(&words)
}

fn slug(words: &str) -> String {
    let words = words.to_lowercase().replace("(r)", " ").replace("(tm)", " ");
    let parts = words.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("-")
}

fn cpuinfo_field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// Load average of the last minute, where the system says it.
pub fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// Asks git about the sources that this binary was built from; none without git or outside a checkout.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_a_file_name() {
        let check = |cpuinfo: &str, expected: &str| assert_eq!(device_slug(cpuinfo, 2), expected);
        let epyc = "processor : 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n";
        check(epyc, "cpu-amd-epyc-26-2-2-threads");
        let xeon = "model name: Intel(R) Xeon(R) Platinum 8480C\ncpu family: 6\nmodel: 143\n";
        check(xeon, "cpu-intel-xeon-platinum-8480c-6-143-2-threads");
        check("", &format!("cpu-{}-2-threads", std::env::consts::ARCH.replace('_', "-")));
    }

    #[test]
    fn a_manifest_says_where_it_was_made() {
        let manifest = manifest(BTreeMap::new(), 7);
        assert_eq!((manifest.seed, manifest.schema), (7, SCHEMA));
        assert!(manifest.cores >= 1 && manifest.memory_bytes > 0 && !manifest.command.is_empty());
    }
}
