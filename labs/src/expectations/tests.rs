//! The sign of time, the floor under intervals, and the ratchet.

use super::*;
use crate::record::{RunRecord, samples};

fn run(ratio: f64) -> RunRecord {
    samples::run("r", Ratio { ratio, low: ratio * 0.99, high: ratio * 1.01 })
}

fn expectation(ratio: f64) -> Expectation {
    let run = run(ratio);
    updated(None, &run.labs[0], &run.manifest, None).unwrap()
}

fn finding(expected: f64, measured: f64) -> Finding {
    check(Some(&expectation(expected)), &run(measured).labs[0]).remove(0).1
}

#[test]
fn slower_is_worse_and_faster_is_better() {
    assert_eq!(finding(2.0, 2.0), Finding::Holds);
    assert_eq!(finding(2.0, 1.6), Finding::Worse("speed-up x1.60 [1.58, 1.62], was x2.00 [1.98, 2.02]".into()));
    assert_eq!(finding(2.0, 2.4), Finding::Better("speed-up x2.40 [2.38, 2.42], was x2.00 [1.98, 2.02]".into()));
    // Outside the interval, but not below the floor.
    assert_eq!(finding(2.0, 1.93), Finding::Holds);
}

#[test]
fn wrong_outputs_are_worse_than_any_expectation() {
    let mut run = run(5.0);
    run.labs[0].variants[0].gate.passed = false;
    let findings = check(Some(&expectation(1.0)), &run.labs[0]);
    assert!(matches!(findings[0].1, Finding::Worse(_)));
    assert_eq!(updated(None, &run.labs[0], &run.manifest, Some("because")), None);
    run.labs[0].variants.clear();
    assert_eq!(check(Some(&expectation(1.0)), &run.labs[0])[0].1, Finding::Worse("the arm is gone".into()));
}

#[test]
fn more_memory_is_worse() {
    let mut run = run(2.0);
    run.labs[0].variants[0].memory_savings = Some(0.9);
    let findings = check(Some(&expectation(2.0)), &run.labs[0]);
    assert_eq!(findings[0].1, Finding::Worse("memory x0.90 smaller, was x1.00".into()));
}

#[test]
fn nothing_is_said_of_other_inputs() {
    let mut run = run(0.1);
    run.labs[0].workload.fingerprint = "beef".into();
    assert!(matches!(check(Some(&expectation(2.0)), &run.labs[0])[0].1, Finding::Unknown(_)));
    assert!(matches!(check(None, &run.labs[0])[0].1, Finding::Unknown(_)));
}

#[test]
fn updates_never_ratchet_downward_in_silence() {
    let old = expectation(2.0);
    let update = |measured: f64, why| {
        let run = run(measured);
        updated(Some(&old), &run.labs[0], &run.manifest, why)
    };
    assert_eq!(update(1.5, None), None);
    let accepted = update(1.5, Some("the baseline got faster")).unwrap();
    assert_eq!(
        (accepted.arms[0].speedup, accepted.accepted_regression.as_deref()),
        (1.5, Some("the baseline got faster"))
    );
    assert_eq!(update(2.5, None).unwrap().arms[0].speedup, 2.5);
    assert_eq!(update(2.5, Some("no reason needed")).unwrap().accepted_regression, None);
    // A little less holds, and leaves the old figure in place.
    assert_eq!(update(1.95, None), None);
}

#[test]
fn files_are_named_after_device_and_lab() {
    let folder = tempfile::tempdir().unwrap();
    let written = expectation(2.0);
    let path = write(folder.path(), &written).unwrap();
    assert!(path.ends_with("cpu-test/ch13-kv_cache.toml"), "{}", path.display());
    assert_eq!(read(folder.path(), "cpu-test", "ch13:kv_cache").unwrap(), Some(written));
    assert_eq!(read(folder.path(), "cpu-test", "ch13:other").unwrap(), None);
    fs::write(&path, "lab = 3").unwrap();
    assert!(read(folder.path(), "cpu-test", "ch13:kv_cache").is_err());
}
