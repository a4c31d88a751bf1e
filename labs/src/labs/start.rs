//! The lab of a switch that acts while a model loads: from the file to the first token, again in every iteration.

use std::time::Instant;

use aisp_engine::{Engine, ModelSource, Optimization, SamplingParams, Selection};

use super::engine_experiment::{EngineArm, engaged};
use crate::LabError;
use crate::fingerprint::Fingerprint;
use crate::gate::Outputs;
use crate::lab::{ArmSpec, Experiment, LabContext, Measured};
use crate::record::Workload;

const PROMPT: &str = "Once upon a time there was";
/// Enough answers to notice a wrong weight; few enough that loading is what takes the time.
const NUM_TOKENS: usize = 4;

/// Engines that are built and thrown away.
pub struct StartExperiment {
    model: ModelSource,
    arms: Vec<EngineArm>,
    fingerprint: String,
    weight_bytes: u64,
}

impl StartExperiment {
    /// The switch off and on, over the kernels that pack weights.
    ///
    /// Errors: a model that cannot be loaded.
    pub fn new(context: &LabContext, switch: Optimization) -> Result<Self, LabError> {
        let without = Selection::closed([Optimization::FusedOps]);
        let with = Selection::closed(without.iter().chain([switch]));
        let arm = |name: &str, selection| EngineArm { name: name.to_owned(), selection };
        let probe = Engine::builder().model(context.model.clone()).optimizations(Selection::none()).build()?;
        Ok(Self {
            fingerprint: Fingerprint::default().add(format!("{} {PROMPT}", context.model).as_bytes()).finish(),
            weight_bytes: probe.model_info().weight_bytes,
            model: context.model.clone(),
            arms: vec![arm(switch.spec().baseline, without), arm(switch.name(), with)],
        })
    }
}

impl Experiment for StartExperiment {
    fn workload(&self) -> Workload {
        Workload {
            description: format!("{}: from the file to {NUM_TOKENS} tokens", self.model),
            fingerprint: self.fingerprint.clone(),
            bytes: Some(self.weight_bytes),
            ..Workload::default()
        }
    }

    fn arms(&self) -> Vec<ArmSpec> {
        self.arms.iter().map(|arm| ArmSpec::stack(&arm.name, &arm.selection)).collect()
    }

    fn set_up(&mut self, _arm: usize) -> Result<(), LabError> {
        Ok(())
    }

    fn run(&mut self, arm: usize) -> Result<Measured, LabError> {
        let selection = &self.arms[arm].selection;
        let started = Instant::now();
        let builder = Engine::builder().model(self.model.clone()).optimizations(selection.clone());
        let mut engine = builder.max_model_len(Some(64)).max_num_seqs(1).build()?;
        let answer = engine.generate(PROMPT, &SamplingParams::greedy(NUM_TOKENS))?;
        let duration = started.elapsed();
        let outputs = Outputs::Tokens(vec![answer.token_ids]);
        let mut measured = Measured::new(duration, self.fingerprint.clone(), outputs);
        measured.engaged = engaged(&engine, selection);
        Ok(measured)
    }
}
