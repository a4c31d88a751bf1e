//! A lab for every switch in the registry, generated: its prerequisites alone against the same with it.

use aisp_engine::optimizations::{Saving, Slot};
use aisp_engine::{DeviceKind, Optimization, Selection};

use super::engine_experiment::{EngineArm, EngineExperiment, EngineSettings, mixed_requests, tolerance};
use crate::LabError;
use crate::lab::{Experiment, Lab, LabContext, LabInfo};
use crate::record::Goal;

/// The lab of one switch.
#[derive(Debug, Clone, Copy)]
pub struct SwitchLab(pub Optimization);

impl SwitchLab {
    /// The switch without and with it.
    fn arms(self, device: DeviceKind) -> Vec<EngineArm> {
        let spec = self.0.spec();
        let with = Selection::closed_on(device, [self.0]);
        let without = with.without(self.0);
        vec![
            EngineArm { name: without.to_string(), selection: without },
            EngineArm { name: spec.name.to_owned(), selection: with },
        ]
    }
}

impl Lab for SwitchLab {
    fn info(&self) -> LabInfo {
        let spec = self.0.spec();
        LabInfo {
            id: format!("switch:{}", spec.name),
            summary: format!("{} instead of {}: {}", spec.name, spec.baseline, spec.summary),
            goal: if spec.saves.contains(&Saving::Time) { Goal::Throughput } else { Goal::Memory },
            tags: vec![spec.slot.to_string()],
            tolerance: tolerance(spec.exactness),
        }
    }

    fn prepare(&self, context: &LabContext) -> Result<Box<dyn Experiment>, LabError> {
        let dense_weights = self.0.spec().slot == Slot::WeightType;
        // Steps so small that prompts do not fit into one: else there is nothing to cut.
        let max_num_batched_tokens = if self.0.spec().slot == Slot::Prefill { 64 } else { 2048 };
        let common_beginning = self.0.spec().slot == Slot::PrefixReuse;
        let settings =
            EngineSettings { dense_weights, common_beginning, max_num_batched_tokens, ..EngineSettings::default() };
        let experiment = EngineExperiment::new(context, mixed_requests, settings, self.arms(context.device.kind()))?;
        Ok(Box::new(experiment))
    }
}
