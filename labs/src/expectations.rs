//! What a lab must show on a device: `expectations/<device>/<lab>.toml`. A figure is worse when it leaves the interval
//! *and* an absolute floor; what was reached is never given up in silence.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::record::{LabRecord, Manifest, Ratio, VariantRecord, Verdict};
use crate::{LabError, machine};

/// Folder of all devices, unless told otherwise.
pub const DEFAULT_DIR: &str = "expectations";

/// A speed-up must fall by this part at least, whatever the intervals say: busy machines shift that much.
const SPEEDUP_FLOOR: f64 = 0.05;

/// The same for memory, which does not depend on what else runs.
const MEMORY_FLOOR: f64 = 0.02;

/// The file of one lab on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Expectation {
    /// Id of the lab.
    pub lab: String,
    /// Name of the device in paths.
    pub device: String,
    /// Whether the figures were measured there.
    pub status: Status,
    /// Hash of the inputs; other inputs are not held against it.
    pub workload: String,
    /// Commit that was measured.
    pub commit: String,
    /// Driver of an accelerator; none on CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The command line.
    pub command: String,
    /// When, RFC 3339 in UTC.
    pub date: String,
    /// Why a figure below an earlier one was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_regression: Option<String>,
    /// One an optimized arm.
    pub arms: Vec<ExpectedArm>,
}

/// Where figures come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// From a run on this device.
    Measured,
    /// From a model or another device.
    Predicted,
}

/// What an arm must show.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExpectedArm {
    /// Name within the lab.
    pub name: String,
    /// The verdict then.
    pub verdict: Verdict,
    /// Speed-up then.
    pub speedup: f64,
    /// Lower end of its 95 % interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// The noise floor then.
    pub noise: f64,
    /// Memory savings then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_savings: Option<f64>,
}

/// How an arm compares with what it must show.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// As expected.
    Holds,
    /// Beyond interval and floor, upwards.
    Better(String),
    /// Beyond interval and floor, downwards; or wrong.
    Worse(String),
    /// Nothing to hold it against, and why.
    Unknown(String),
}

/// File of a lab on a device.
pub fn path(dir: &Path, device: &str, lab: &str) -> PathBuf {
    dir.join(device).join(format!("{}.toml", lab.replace(':', "-")))
}

/// Reads what a lab must show; none where nothing was written down.
///
/// Errors: a file that is there but cannot be read.
pub fn read(dir: &Path, device: &str, lab: &str) -> Result<Option<Expectation>, LabError> {
    let path = path(dir, device, lab);
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).map_err(LabError::io(&path))?;
    toml::from_str(&text).map(Some).map_err(|error| LabError::Format { path, message: error.to_string() })
}

/// Writes it down.
///
/// Errors: a file that cannot be written.
pub fn write(dir: &Path, expectation: &Expectation) -> Result<PathBuf, LabError> {
    let path = path(dir, &expectation.device, &expectation.lab);
    let folder = path.parent().unwrap_or(dir);
    fs::create_dir_all(folder).map_err(LabError::io(folder))?;
    let text = toml::to_string(expectation);
    let text = text.map_err(|error| LabError::Format { path: path.clone(), message: error.to_string() })?;
    fs::write(&path, text).map_err(LabError::io(&path))?;
    Ok(path)
}

/// Holds a lab against what it must show; one finding an arm, with the arm's name.
pub fn check(expectation: Option<&Expectation>, lab: &LabRecord) -> Vec<(String, Finding)> {
    let of = |variant: &VariantRecord| (variant.arm.name.clone(), check_arm(expectation, lab, variant));
    let mut findings: Vec<_> = lab.variants.iter().map(of).collect();
    let gone = expectation.into_iter().flat_map(|e| &e.arms).filter(|arm| lab.variant(&arm.name).is_none());
    findings.extend(gone.map(|arm| (arm.name.clone(), Finding::Worse("the arm is gone".to_owned()))));
    findings
}

fn check_arm(expectation: Option<&Expectation>, lab: &LabRecord, variant: &VariantRecord) -> Finding {
    let Some(speedup) = variant.speedup.filter(|_| variant.gate.passed) else {
        return Finding::Worse(variant.verdict_text.clone());
    };
    let Some(expectation) = expectation else {
        return Finding::Unknown("no expectation on this device: --update-expectations writes it".to_owned());
    };
    if expectation.workload != lab.workload.fingerprint {
        return Finding::Unknown("the expectation is of another workload".to_owned());
    }
    let Some(expected) = expectation.arms.iter().find(|arm| arm.name == variant.arm.name) else {
        return Finding::Unknown("no expectation of this arm: --update-expectations writes it".to_owned());
    };
    let time = compare_speedup(expected, speedup);
    let memory = compare_memory(expected.memory_savings, variant.memory_savings);
    match (time, memory) {
        (worse @ Finding::Worse(_), _) | (_, worse @ Finding::Worse(_)) => worse,
        (better @ Finding::Better(_), _) | (_, better @ Finding::Better(_)) => better,
        _ => Finding::Holds,
    }
}

fn compare_speedup(expected: &ExpectedArm, speedup: Ratio) -> Finding {
    let was = format!("x{:.2} [{:.2}, {:.2}]", expected.speedup, expected.low, expected.high);
    let change = speedup.ratio / expected.speedup;
    if speedup.high < expected.low && change < 1.0 - SPEEDUP_FLOOR {
        Finding::Worse(format!("speed-up x{:.2} [{:.2}, {:.2}], was {was}", speedup.ratio, speedup.low, speedup.high))
    } else if speedup.low > expected.high && change > 1.0 + SPEEDUP_FLOOR {
        Finding::Better(format!("speed-up x{:.2} [{:.2}, {:.2}], was {was}", speedup.ratio, speedup.low, speedup.high))
    } else {
        Finding::Holds
    }
}

fn compare_memory(expected: Option<f64>, savings: Option<f64>) -> Finding {
    match (expected, savings) {
        (Some(was), Some(now)) if now < was * (1.0 - MEMORY_FLOOR) => {
            Finding::Worse(format!("memory x{now:.2} smaller, was x{was:.2}"))
        }
        (Some(was), Some(now)) if now > was * (1.0 + MEMORY_FLOOR) => {
            Finding::Better(format!("memory x{now:.2} smaller, was x{was:.2}"))
        }
        _ => Finding::Holds,
    }
}

/// What the file must say after this run: none when it must stay as it is. A worse figure goes in only with a reason,
/// and a figure that holds leaves the old one, so that no series of small losses adds up unseen.
pub fn updated(
    old: Option<&Expectation>,
    lab: &LabRecord,
    manifest: &Manifest,
    accept_regression: Option<&str>,
) -> Option<Expectation> {
    let findings = check(old, lab);
    let has = |wanted: fn(&Finding) -> bool| findings.iter().any(|(_, finding)| wanted(finding));
    let worse = has(|finding| matches!(finding, Finding::Worse(_)));
    let news = has(|finding| matches!(finding, Finding::Better(_) | Finding::Unknown(_)));
    let wrong = lab.variants.iter().any(|variant| !variant.gate.passed);
    if wrong || (worse && accept_regression.is_none()) || !(worse || news) {
        return None;
    }
    let noise = lab.aa.as_ref().map_or(0.0, |aa| aa.noise);
    let arms = lab.variants.iter().filter_map(|variant| {
        let finding = findings.iter().find(|(name, _)| *name == variant.arm.name).map(|(_, finding)| finding);
        let kept = old.and_then(|old| old.arms.iter().find(|arm| arm.name == variant.arm.name));
        match (finding, kept) {
            (Some(Finding::Holds), Some(kept)) => Some(kept.clone()),
            _ => expected_arm(variant, noise),
        }
    });
    let dirty = if manifest.dirty { "-dirty" } else { "" };
    Some(Expectation {
        lab: lab.id.clone(),
        device: manifest.device.clone(),
        status: Status::Measured,
        workload: lab.workload.fingerprint.clone(),
        commit: manifest.commit.as_ref().map_or("unknown".to_owned(), |commit| format!("{commit}{dirty}")),
        driver: (manifest.device != machine::device()).then(machine::driver).flatten(),
        command: command(manifest),
        date: manifest.date.clone(),
        accepted_regression: accept_regression.filter(|_| worse).map(str::to_owned),
        arms: arms.collect(),
    })
}

/// The command line without the folders that the binary and the artifacts lie in.
fn command(manifest: &Manifest) -> String {
    let mut words = manifest.command.iter();
    let program = words.next().map(|word| Path::new(word).file_name().unwrap_or_default().to_string_lossy());
    let mut line = program.unwrap_or_default().into_owned();
    while let Some(word) = words.next() {
        if word == "--artifacts" {
            words.next();
        } else if !word.starts_with("--artifacts=") {
            line += &format!(" {word}");
        }
    }
    line
}

fn expected_arm(variant: &VariantRecord, noise: f64) -> Option<ExpectedArm> {
    let speedup = variant.speedup?;
    let rounded = |value: f64| (value * 1e4).round() / 1e4;
    Some(ExpectedArm {
        name: variant.arm.name.clone(),
        verdict: variant.verdict,
        speedup: rounded(speedup.ratio),
        low: rounded(speedup.low),
        high: rounded(speedup.high),
        noise: rounded(noise),
        memory_savings: variant.memory_savings.map(rounded),
    })
}

#[cfg(test)]
mod tests;
