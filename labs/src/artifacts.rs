//! Where runs lie on disk: `artifacts/<run-id>/` holds `manifest.json`, `results.json`, `samples.json`, `report.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::LabError;
use crate::record::{Ceilings, Manifest, RunRecord, SCHEMA};

/// Folder of all runs, unless told otherwise.
pub const DEFAULT_DIR: &str = "artifacts";

/// Folder of one run.
pub fn run_dir(artifacts: &Path, run_id: &str) -> PathBuf {
    artifacts.join(run_id)
}

/// Where `aisp tools probe-hw` leaves the ceilings of a device.
pub fn ceilings_path(artifacts: &Path, device: &str) -> PathBuf {
    artifacts.join(format!("ceilings-{device}.json"))
}

/// Where `aisp tools probe-hw` leaves all that it measured of a device.
pub fn probe_path(artifacts: &Path, device: &str) -> PathBuf {
    artifacts.join(format!("probe-{device}.json"))
}

/// The ceilings of a device; none until they are measured.
///
/// Errors: a file that is there but cannot be read.
pub fn read_ceilings(artifacts: &Path, device: &str) -> Result<Option<Ceilings>, LabError> {
    let path = ceilings_path(artifacts, device);
    if path.exists() { read_json(&path).map(Some) } else { Ok(None) }
}

/// Writes a run with its raw samples and its report; returns its folder.
///
/// Errors: a file that cannot be written.
pub fn write_run(artifacts: &Path, run: &RunRecord, report: &str) -> Result<PathBuf, LabError> {
    let dir = run_dir(artifacts, &run.manifest.run_id);
    fs::create_dir_all(&dir).map_err(LabError::io(&dir))?;
    write_json(&dir.join("manifest.json"), &run.manifest)?;
    write_json(&dir.join("results.json"), run)?;
    write_json(&dir.join("samples.json"), &samples(run))?;
    let path = dir.join("report.md");
    fs::write(&path, report).map_err(LabError::io(&path))?;
    Ok(dir)
}

/// Raw samples by lab and arm, for tools that want nothing else.
fn samples(run: &RunRecord) -> BTreeMap<&str, serde_json::Value> {
    let of = |lab: &crate::record::LabRecord| {
        let variants: BTreeMap<_, _> =
            lab.variants.iter().map(|variant| (&variant.arm.name, &variant.arm.samples_s)).collect();
        json!({
            "baseline": lab.baseline.samples_s,
            "baseline_again": lab.aa.as_ref().map(|aa| &aa.samples_s),
            "variants": variants,
        })
    };
    run.labs.iter().map(|lab| (lab.id.as_str(), of(lab))).collect()
}

/// Reads a run by its id, its folder or its `results.json`.
///
/// Errors: no such run, or a file of another layout.
pub fn read_run(artifacts: &Path, run: &str) -> Result<RunRecord, LabError> {
    let given = Path::new(run);
    let dir = if given.exists() { given.to_owned() } else { run_dir(artifacts, run) };
    let path = if dir.is_dir() { dir.join("results.json") } else { dir };
    let value: serde_json::Value = read_json(&path)?;
    let schema = value.pointer("/manifest/schema").and_then(serde_json::Value::as_u64);
    if schema != Some(u64::from(SCHEMA)) {
        let found = schema.map_or("none".to_owned(), |schema| schema.to_string());
        return Err(LabError::Format { path, message: format!("layout {SCHEMA} expected, found {found}: run again") });
    }
    serde_json::from_value(value).map_err(|error| LabError::Format { path, message: error.to_string() })
}

/// Manifests of all runs, newest first; folders without one are passed over.
///
/// Errors: a folder that cannot be listed.
pub fn list_runs(artifacts: &Path) -> Result<Vec<Manifest>, LabError> {
    if !artifacts.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(artifacts).map_err(LabError::io(artifacts))?;
    let manifests = entries.filter_map(|entry| read_json(&entry.ok()?.path().join("manifest.json")).ok());
    let mut manifests: Vec<Manifest> = manifests.collect();
    manifests.sort_by(|a, b| (&b.date, &b.run_id).cmp(&(&a.date, &a.run_id)));
    Ok(manifests)
}

/// All runs, newest first, and what could not be read: a file with its reason each.
///
/// Errors: a folder that cannot be listed.
pub fn read_all(artifacts: &Path) -> Result<(Vec<RunRecord>, Vec<String>), LabError> {
    let mut runs = Vec::new();
    let mut unreadable = Vec::new();
    if !artifacts.exists() {
        return Ok((runs, unreadable));
    }
    for entry in fs::read_dir(artifacts).map_err(LabError::io(artifacts))?.flatten() {
        let path = entry.path().join("results.json");
        if path.exists() {
            match read_run(artifacts, &path.display().to_string()) {
                Ok(run) => runs.push(run),
                Err(error) => unreadable.push(error.to_string()),
            }
        }
    }
    runs.sort_by(|a, b| (&b.manifest.date, &b.manifest.run_id).cmp(&(&a.manifest.date, &a.manifest.run_id)));
    unreadable.sort();
    Ok((runs, unreadable))
}

/// Reads a JSON file.
///
/// Errors: missing, or not of this type.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, LabError> {
    let text = fs::read_to_string(path).map_err(LabError::io(path))?;
    let format = |error: serde_json::Error| LabError::Format { path: path.to_owned(), message: error.to_string() };
    serde_json::from_str(&text).map_err(format)
}

/// Writes a JSON file, indented.
///
/// Errors: a file that cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), LabError> {
    let format = |error: serde_json::Error| LabError::Format { path: path.to_owned(), message: error.to_string() };
    let text = serde_json::to_string_pretty(value).map_err(format)?;
    fs::write(path, text + "\n").map_err(LabError::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Ratio, samples};

    #[test]
    fn a_run_is_found_by_id_folder_and_file() {
        let folder = tempfile::tempdir().unwrap();
        let run = samples::run("r1", Ratio { ratio: 2.0, low: 1.9, high: 2.1 });
        let dir = write_run(folder.path(), &run, "# Report\n").unwrap();
        for name in ["r1", dir.to_str().unwrap(), dir.join("results.json").to_str().unwrap()] {
            assert_eq!(read_run(folder.path(), name).unwrap(), run, "{name}");
        }
        assert_eq!(read_all(folder.path()).unwrap(), (vec![run.clone()], Vec::new()));
        assert_eq!(list_runs(folder.path()).unwrap(), [run.manifest]);
        let samples: serde_json::Value = read_json(&dir.join("samples.json")).unwrap();
        assert_eq!(samples["ch13:kv_cache"]["variants"]["paged"], json!([1.0, 1.0, 1.0]));
    }

    #[test]
    fn another_layout_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = samples::run("r1", Ratio { ratio: 2.0, low: 1.9, high: 2.1 });
        run.manifest.schema = 99;
        write_run(folder.path(), &run, "").unwrap();
        let error = read_run(folder.path(), "r1").unwrap_err().to_string();
        assert!(error.contains("layout 1 expected, found 99"), "{error}");
        assert!(read_run(folder.path(), "r2").is_err());
        let (runs, unreadable) = read_all(folder.path()).unwrap();
        assert_eq!((runs.len(), unreadable.len()), (0, 1));
    }
}
