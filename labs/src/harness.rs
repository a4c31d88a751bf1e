//! Runs a lab: gate before time, warm-up apart, arms interleaved, the baseline against itself in every run, memory
//! always. Labs say what to run; only this file decides in which order and what may be shown.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::gate::{Gate, Outputs};
use crate::lab::{ArmSpec, Experiment, Lab, LabContext, LabInfo, Measured};
use crate::progress::Progress;
use crate::record::{
    AaRecord, ArmRecord, Ceilings, EngagedRecord, LabRecord, MemoryRecord, VariantRecord, Verdict, Workload,
};
use crate::roofline::ArmWork;
use crate::{LabError, memory, roofline, stats};

/// How a run is measured.
#[derive(Debug, Clone)]
pub struct HarnessConfig {
    /// Replicates; each takes two samples of every arm. At least [`stats::MIN_REPLICATES`].
    pub num_replicates: usize,
    /// Iterations of each arm before any counts.
    pub num_warmups: usize,
    /// A lab that has taken longer ends early, with [`stats::MIN_REPLICATES`] replicates at least.
    pub budget: Duration,
    /// What this machine can do, if it was measured.
    pub ceilings: Option<Ceilings>,
}

/// Runs labs one after the other.
pub struct Harness<'a> {
    /// How.
    pub config: HarnessConfig,
    /// With what.
    pub context: LabContext,
    /// Who is told.
    pub progress: &'a dyn Progress,
}

/// The baseline runs once more under this index: the A/A.
const BASELINE: usize = 0;

impl Harness<'_> {
    /// Runs a lab; none when it was stopped before [`stats::MIN_REPLICATES`] replicates were through.
    ///
    /// Errors: the lab could not be prepared, or an arm failed.
    pub fn run(&self, lab: &dyn Lab) -> Result<Option<LabRecord>, LabError> {
        let started = Instant::now();
        let info = lab.info();
        let mut experiment = lab.prepare(&self.context)?;
        let mut series = self.set_up(&info, experiment.as_mut())?;
        let num_series = series.len() + 1;
        let rounds = self.config.num_warmups * series.len() + self.config.num_replicates * 2 * num_series;
        self.progress.lab_started(&info.id, rounds as u64);
        let mut again = Series::new(&series[BASELINE].spec, &info);
        let mut reference = None;
        let finished = match self.iterate(experiment.as_mut(), &mut series, &mut again, &mut reference, started) {
            Err(LabError::Stopped) => false,
            finished => finished?,
        };
        self.progress.lab_finished();
        if !finished && again.samples_s.len() < 2 * stats::MIN_REPLICATES {
            return Ok(None);
        }
        let workload = experiment.workload();
        Ok(Some(self.record(&info, workload, series, &again, started)))
    }

    fn set_up(&self, info: &LabInfo, experiment: &mut dyn Experiment) -> Result<Vec<Series>, LabError> {
        let arms = experiment.arms();
        if arms.len() < 2 {
            let message = format!("{} arms, a lab has a baseline and at least one variant", arms.len());
            return Err(LabError::BadLab { lab: info.id.clone(), message });
        }
        let mut series = Vec::with_capacity(arms.len());
        for (at, spec) in arms.iter().enumerate() {
            let mut arm = Series::new(spec, info);
            let started = Instant::now();
            let (result, growth) = memory::peak_growth(|| experiment.set_up(at));
            result?;
            arm.setup_s = started.elapsed().as_secs_f64();
            arm.memory.setup_allocated_bytes = growth;
            series.push(arm);
        }
        Ok(series)
    }

    /// Warm-up and all replicates; false when stopped.
    fn iterate(
        &self,
        experiment: &mut dyn Experiment,
        series: &mut [Series],
        again: &mut Series,
        reference: &mut Option<Outputs>,
        started: Instant,
    ) -> Result<bool, LabError> {
        Ok(self.warm_up(experiment, series, reference)?
            && self.measure(experiment, series, again, reference, started)?)
    }

    /// Nothing of a warm-up is kept but the outputs of the first: they are the reference, and a wrong arm is known
    /// before any time is taken. False when stopped.
    fn warm_up(
        &self,
        experiment: &mut dyn Experiment,
        series: &mut [Series],
        reference: &mut Option<Outputs>,
    ) -> Result<bool, LabError> {
        let inputs = experiment.workload().fingerprint;
        for _ in 0..self.config.num_warmups {
            for (at, arm) in series.iter_mut().enumerate() {
                let measured = experiment.run(at)?;
                arm.check(&measured, &inputs, reference);
                self.progress.iteration_done();
                if self.context.stop.is_requested() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// All replicates; false when stopped.
    fn measure(
        &self,
        experiment: &mut dyn Experiment,
        series: &mut [Series],
        again: &mut Series,
        reference: &mut Option<Outputs>,
        started: Instant,
    ) -> Result<bool, LabError> {
        let inputs = experiment.workload().fingerprint;
        let num_arms = series.len();
        for replicate in 0..self.config.num_replicates {
            if replicate >= stats::MIN_REPLICATES && started.elapsed() > self.config.budget {
                break;
            }
            for at in stats::interleave(num_arms + 1, replicate) {
                if self.context.stop.is_requested() {
                    return Ok(false);
                }
                let arm_idx = if at == num_arms { BASELINE } else { at };
                let arm = series.get_mut(at).unwrap_or(&mut *again);
                arm.take(experiment, arm_idx, &inputs, reference)?;
                self.progress.iteration_done();
            }
        }
        Ok(true)
    }

    fn record(
        &self,
        info: &LabInfo,
        workload: Workload,
        mut series: Vec<Series>,
        again: &Series,
        started: Instant,
    ) -> LabRecord {
        let variants = series.split_off(1);
        let baseline = series.remove(BASELINE);
        let seed = self.context.seed;
        let aa = stats::ratio_of_medians(&baseline.samples_s, &again.samples_s, seed).map(|ratio| AaRecord {
            samples_s: again.samples_s.clone(),
            ratio,
            noise: stats::noise_floor(ratio),
        });
        let unsteady = [&baseline, again].into_iter().find(|arm| !arm.gate.passed());
        let unsteady = unsteady.map(|arm| format!("the baseline differs from itself: {}", arm.gate.why_wrong()));
        let noise = aa.as_ref().map_or(f64::INFINITY, |aa| aa.noise);
        let judged = variants.into_iter().map(|mut arm| {
            if let Some(reason) = &unsteady {
                arm.gate.fail(reason.clone());
            }
            self.variant(&baseline, arm, noise, &workload)
        });
        let variants = judged.collect();
        let (area, name) = info.id.split_once(':').unwrap_or(("", &info.id));
        LabRecord {
            id: info.id.clone(),
            area: area.to_owned(),
            name: name.to_owned(),
            summary: info.summary.clone(),
            goal: info.goal,
            tags: info.tags.clone(),
            tolerance: info.tolerance.to_string(),
            baseline: baseline.into_record(&workload, self.config.ceilings.as_ref()),
            variants,
            workload,
            aa,
            wall_s: started.elapsed().as_secs_f64(),
        }
    }

    fn variant(&self, baseline: &Series, mut arm: Series, noise: f64, workload: &Workload) -> VariantRecord {
        let gate = arm.gate.record();
        let why_wrong = arm.gate.why_wrong();
        let speedup = if gate.passed {
            stats::ratio_of_medians(&baseline.samples_s, &arm.samples_s, self.context.seed)
        } else {
            // No equality, no time: not even in the raw samples.
            arm.samples_s.clear();
            arm.metrics.clear();
            None
        };
        let verdict = match (gate.passed, speedup) {
            (false, _) => Verdict::Wrong,
            (true, Some(speedup)) => stats::judge(speedup, noise),
            (true, None) => Verdict::NoDifference,
        };
        let (of_baseline, own) = (baseline.memory.deciding_bytes(), arm.memory.deciding_bytes());
        VariantRecord {
            verdict_text: stats::verdict_text(verdict, speedup, noise, &why_wrong),
            memory_savings: (gate.passed && own > 0).then(|| of_baseline as f64 / own as f64),
            arm: arm.into_record(workload, self.config.ceilings.as_ref()),
            gate,
            verdict,
            speedup,
        }
    }
}

/// What is known of an arm so far.
struct Series {
    spec: ArmSpec,
    gate: Gate,
    samples_s: Vec<f64>,
    setup_s: f64,
    memory: MemoryRecord,
    engaged: Vec<EngagedRecord>,
    work: Option<ArmWork>,
    metrics: BTreeMap<String, Vec<f64>>,
}

impl Series {
    fn new(spec: &ArmSpec, info: &LabInfo) -> Self {
        Self {
            spec: spec.clone(),
            gate: Gate::new(&info.tolerance),
            samples_s: Vec::new(),
            setup_s: 0.0,
            memory: MemoryRecord::default(),
            engaged: Vec::new(),
            work: None,
            metrics: BTreeMap::new(),
        }
    }

    /// One measured iteration.
    fn take(
        &mut self,
        experiment: &mut dyn Experiment,
        arm_idx: usize,
        inputs: &str,
        reference: &mut Option<Outputs>,
    ) -> Result<(), LabError> {
        memory::reset_peak_rss();
        let (measured, growth) = memory::peak_growth(|| experiment.run(arm_idx));
        let measured = measured?;
        self.memory.peak_rss_bytes = self.memory.peak_rss_bytes.max(memory::peak_rss_bytes());
        self.memory.peak_allocated_bytes = self.memory.peak_allocated_bytes.max(growth);
        self.memory.reserved_bytes = self.memory.reserved_bytes.max(measured.reserved_bytes);
        self.check(&measured, inputs, reference);
        self.samples_s.push(measured.duration.as_secs_f64());
        self.engaged = measured.engaged;
        self.work = measured.work.or(self.work);
        for (name, value) in measured.metrics {
            self.metrics.entry(name).or_default().push(value);
        }
        Ok(())
    }

    /// Holds inputs against the frozen workload and outputs against the baseline's first.
    fn check(&mut self, measured: &Measured, inputs: &str, reference: &mut Option<Outputs>) {
        if measured.inputs != inputs {
            self.gate.fail(format!("used other inputs: {} instead of {inputs}", measured.inputs));
        }
        let reference = reference.get_or_insert_with(|| measured.outputs.clone());
        self.gate.compare(reference, &measured.outputs);
    }

    fn into_record(self, workload: &Workload, ceilings: Option<&Ceilings>) -> ArmRecord {
        let median_s = stats::median(&self.samples_s);
        let work = self.work.or_else(|| ArmWork::of_workload(workload));
        let medians = self.metrics.iter().filter_map(|(name, values)| Some((name.clone(), stats::median(values)?)));
        ArmRecord {
            name: self.spec.name,
            requested: self.spec.requested,
            engaged: self.engaged,
            samples_s: self.samples_s,
            setup_s: self.setup_s,
            median_s,
            memory: self.memory,
            metrics: medians.collect(),
            metric_samples: self.metrics,
            roofline: work.zip(median_s).map(|(work, median_s)| roofline::place(work, median_s, ceilings)),
        }
    }
}

#[cfg(test)]
mod tests;
