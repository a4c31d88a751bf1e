//! `ch15:continuous_batching`: a batch that waits for its longest answer against one that refills at every step.

use aisp_engine::optimizations::Exactness;
use aisp_engine::{Optimization, Selection};

use super::engine_experiment::{EngineArm, EngineExperiment, EngineSettings, tolerance};
use crate::LabError;
use crate::ab::few_long_answers;
use crate::lab::{Experiment, Lab, LabContext, LabInfo};
use crate::record::Goal;

/// The lab.
#[derive(Debug, Clone, Copy)]
pub struct ContinuousBatchingLab;

impl Lab for ContinuousBatchingLab {
    fn info(&self) -> LabInfo {
        LabInfo {
            id: "ch15:continuous_batching".into(),
            summary: "requests join the running batch instead of waiting for all of it, few answers are long".into(),
            goal: Goal::Throughput,
            tags: vec!["engine".into()],
            tolerance: tolerance(Exactness::SameTokens),
        }
    }

    fn prepare(&self, context: &LabContext) -> Result<Box<dyn Experiment>, LabError> {
        let of = |optimizations: &[Optimization]| {
            Selection::of(optimizations.iter().copied()).map_err(|error| LabError::Engine(error.into()))
        };
        // Blocks in both arms: only the scheduler differs.
        let arms = vec![
            EngineArm { name: "static".into(), selection: of(&[Optimization::PagedKv])? },
            EngineArm {
                name: "continuous".into(),
                selection: of(&[Optimization::PagedKv, Optimization::ContinuousBatching])?,
            },
        ];
        let settings = EngineSettings { max_num_seqs: 8, ..EngineSettings::default() };
        Ok(Box::new(EngineExperiment::new(context, few_long_answers, settings, arms)?))
    }
}
