//! Labs with injected faults: the harness must find each.

use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::*;
use crate::gate::Tolerance;
use crate::progress::Silent;
use crate::record::Goal;
use crate::stop::Stop;

/// A lab whose times are made up: the harness is under test, not the machine.
#[derive(Clone)]
struct Synthetic {
    slowdown: f64,
    fault: Fault,
    stop_after: Option<(usize, Stop)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    WrongOutput,
    WrongOnceInMany,
    OtherInputs,
    UnsteadyBaseline,
}

struct SyntheticExperiment {
    lab: Synthetic,
    num_runs: usize,
    rng: ChaCha8Rng,
}

impl Lab for Synthetic {
    fn info(&self) -> LabInfo {
        LabInfo {
            id: "test:synthetic".into(),
            summary: "made up".into(),
            goal: Goal::Speed,
            tags: Vec::new(),
            tolerance: Tolerance::exact("a constant"),
        }
    }

    fn prepare(&self, context: &LabContext) -> Result<Box<dyn Experiment>, LabError> {
        let rng = ChaCha8Rng::seed_from_u64(context.seed);
        Ok(Box::new(SyntheticExperiment { lab: self.clone(), num_runs: 0, rng }))
    }
}

impl Experiment for SyntheticExperiment {
    fn workload(&self) -> Workload {
        Workload { fingerprint: "frozen".into(), tokens: Some(100), flops: Some(1_000_000), ..Workload::default() }
    }

    fn arms(&self) -> Vec<ArmSpec> {
        vec![ArmSpec::named("plain"), ArmSpec::named("changed")]
    }

    fn set_up(&mut self, _arm: usize) -> Result<(), LabError> {
        Ok(())
    }

    fn run(&mut self, arm: usize) -> Result<Measured, LabError> {
        self.num_runs += 1;
        if let Some((_, stop)) = self.lab.stop_after.as_ref().filter(|(after, _)| self.num_runs >= *after) {
            stop.request();
        }
        // A clock that drifts by 4 % over a run, with a jitter of 0.5 %: interleaving must cancel it.
        let drift = 1.0 + self.num_runs as f64 * 0.0005;
        let jitter = 1.0 + self.rng.random_range(0.0..0.005);
        let factor = if arm == 0 { 1.0 } else { self.lab.slowdown };
        let wrong = match self.lab.fault {
            Fault::WrongOutput => arm == 1,
            Fault::WrongOnceInMany => arm == 1 && self.num_runs > 20,
            Fault::UnsteadyBaseline => arm == 0 && self.num_runs > 5,
            Fault::None | Fault::OtherInputs => false,
        };
        let inputs = if arm == 1 && self.lab.fault == Fault::OtherInputs { "fewer" } else { "frozen" };
        let _held = vec![0u8; (arm + 1) << 20];
        let outputs = Outputs::Values(vec![if wrong { 2.0 } else { 1.0 }]);
        Ok(Measured::new(Duration::from_secs_f64(drift * jitter * factor), inputs, outputs))
    }
}

fn run(slowdown: f64, fault: Fault) -> LabRecord {
    run_until(slowdown, fault, None).unwrap()
}

/// Ten replicates, as a careful run takes them.
fn run_seeded(slowdown: f64, seed: u64) -> LabRecord {
    let config = HarnessConfig { num_replicates: 10, num_warmups: 1, budget: Duration::MAX, ceilings: None };
    let context = LabContext { seed, ..LabContext::default() };
    let lab = Synthetic { slowdown, fault: Fault::None, stop_after: None };
    Harness { config, context, progress: &Silent }.run(&lab).unwrap().unwrap()
}

fn run_until(slowdown: f64, fault: Fault, stop_after: Option<usize>) -> Option<LabRecord> {
    let config = HarnessConfig { num_replicates: 6, num_warmups: 1, budget: Duration::MAX, ceilings: None };
    let context = LabContext::default();
    let stop_after = stop_after.map(|after| (after, context.stop.clone()));
    let harness = Harness { config, context, progress: &Silent };
    harness.run(&Synthetic { slowdown, fault, stop_after }).unwrap()
}

#[test]
fn equals_are_equal_and_every_sample_is_kept() {
    let record = run(1.0, Fault::None);
    assert_eq!(record.variants[0].verdict, Verdict::NoDifference, "{}", record.variants[0].verdict_text);
    assert_eq!(record.baseline.samples_s.len(), 12);
    assert_eq!(record.variants[0].arm.samples_s.len(), 12);
    assert_eq!(record.aa.unwrap().samples_s.len(), 12);
    assert!(record.variants[0].gate.passed);
}

#[test]
fn a_slowdown_of_three_percent_is_found_in_19_of_20() {
    let verdicts = |slowdown| (0..20).map(move |seed| run_seeded(slowdown, seed).variants[0].verdict);
    assert!(verdicts(1.03).filter(|&verdict| verdict == Verdict::Slower).count() >= 19);
    assert!(verdicts(0.97).filter(|&verdict| verdict == Verdict::Faster).count() >= 19);
    assert!(verdicts(1.0).filter(|&verdict| verdict == Verdict::NoDifference).count() >= 19);
}

#[test]
fn an_injected_wrong_output_gets_no_speed() {
    // Twice as fast, but wrong: in every iteration, in one, or by using other inputs.
    for fault in [Fault::WrongOutput, Fault::WrongOnceInMany, Fault::OtherInputs, Fault::UnsteadyBaseline] {
        let record = run(0.5, fault);
        let variant = &record.variants[0];
        assert_eq!(variant.verdict, Verdict::Wrong);
        assert!(variant.verdict_text.starts_with("wrong ("), "{}", variant.verdict_text);
        assert!(!variant.verdict_text.contains('×') && !variant.verdict_text.contains(" x"));
        assert_eq!((variant.speedup, variant.arm.median_s, variant.memory_savings), (None, None, None));
        assert!(variant.arm.samples_s.is_empty() && variant.arm.roofline.is_none());
    }
}

#[test]
fn memory_is_tracked_without_being_asked() {
    let record = run(1.0, Fault::None);
    let held = |arm: &ArmRecord| arm.memory.peak_allocated_bytes >> 20;
    assert_eq!((held(&record.baseline), held(&record.variants[0].arm)), (1, 2));
    assert!(record.baseline.memory.peak_rss_bytes.is_some());
    let savings = record.variants[0].memory_savings.unwrap();
    assert!((savings - 0.5).abs() < 0.01, "{savings}");
}

#[test]
fn a_stopped_lab_counts_from_three_replicates_on() {
    assert_eq!(run_until(1.0, Fault::None, Some(2)), None);
    assert_eq!(run_until(1.0, Fault::None, Some(10)), None);
    // Two warm-ups, and six iterations a replicate.
    let record = run_until(1.0, Fault::None, Some(2 + 4 * 6)).unwrap();
    assert_eq!(record.baseline.samples_s.len(), 8);
}

#[test]
fn a_lab_over_its_budget_ends_after_three_replicates() {
    let config = HarnessConfig { num_replicates: 6, num_warmups: 0, budget: Duration::ZERO, ceilings: None };
    let harness = Harness { config, context: LabContext::default(), progress: &Silent };
    let lab = Synthetic { slowdown: 1.0, fault: Fault::None, stop_after: None };
    let record = harness.run(&lab).unwrap().unwrap();
    assert_eq!(record.baseline.samples_s.len(), 2 * stats::MIN_REPLICATES);
}
