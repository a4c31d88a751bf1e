//! `aisp bench verify`: the gates alone, no time taken.

use std::process::ExitCode;

use clap::Args;

use super::{Targets, context};
use crate::cli::output::print_line;
use crate::gate::Gate;
use crate::lab::Lab;
use crate::{LabError, lab, labs};

/// Arguments of `aisp bench verify`.
#[derive(Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    targets: Targets,
}

impl Verify {
    /// Runs every arm once; fails when an output is wrong.
    ///
    /// Errors: a lab that cannot run.
    pub fn run(self) -> Result<ExitCode, LabError> {
        let context = context(&self.targets)?;
        let mut all_passed = true;
        for lab in labs::matching(&self.targets.targets)? {
            if context.stop.is_requested() {
                return Ok(ExitCode::FAILURE);
            }
            all_passed &= verify(lab.as_ref(), &context)?;
        }
        Ok(if all_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn verify(lab: &dyn Lab, context: &lab::LabContext) -> Result<bool, LabError> {
    let info = lab.info();
    let mut experiment = lab.prepare(context)?;
    let inputs = experiment.workload().fingerprint;
    let mut reference = None;
    let mut all_passed = true;
    for (at, arm) in experiment.arms().iter().enumerate() {
        experiment.set_up(at)?;
        let measured = experiment.run(at)?;
        let mut gate = Gate::new(&info.tolerance);
        gate.compare(reference.get_or_insert_with(|| measured.outputs.clone()), &measured.outputs);
        if measured.inputs != inputs {
            gate.fail("used other inputs".to_owned());
        }
        let record = gate.record();
        all_passed &= record.passed;
        let word = if record.passed { "passed" } else { "wrong" };
        print_line(&format!("{}/{}: {word}, {} outputs, {}", info.id, arm.name, record.num_compared, record.detail))?;
    }
    Ok(all_passed)
}
