//! `ch15:continuous_batching`: a batch that waits for its longest answer against one that refills at every step.

use aisp_engine::optimizations::Exactness;
use aisp_engine::{Optimization, Selection};

use super::engine_experiment::{EngineArm, EngineExperiment, EngineSettings, tolerance};
use super::requests::{Answers, RequestMix};
use crate::LabError;
use crate::lab::{Experiment, Lab, LabContext, LabInfo};
use crate::record::Goal;

/// The lab.
#[derive(Debug, Clone, Copy)]
pub struct ContinuousBatchingLab;

impl Lab for ContinuousBatchingLab {
    fn info(&self) -> LabInfo {
        LabInfo {
            id: "ch15:continuous_batching".into(),
            summary: "requests join the running batch instead of waiting for all of it, 64 answers of 16 to 512 tokens"
                .into(),
            goal: Goal::Throughput,
            tags: vec!["engine".into(), "cuda".into()],
            tolerance: tolerance(Exactness::SameTokens),
        }
    }

    fn prepare(&self, context: &LabContext) -> Result<Box<dyn Experiment>, LabError> {
        // All else is fast in both arms: only the scheduler differs, and nothing slow hides it.
        let rest = [
            Optimization::FusedOps,
            Optimization::KvF16,
            Optimization::CudaGraphs,
            Optimization::PinnedPool,
            Optimization::FastSampler,
        ];
        let with = Selection::closed(rest.into_iter().chain([Optimization::ContinuousBatching]));
        let arms = vec![
            EngineArm { name: "static".into(), selection: Selection::closed(rest) },
            EngineArm { name: "continuous".into(), selection: with },
        ];
        let settings = EngineSettings {
            max_num_seqs: 16,
            max_model_len: 576,
            num_kv_tokens: 16 * 576,
            is_greedy: true,
            ..EngineSettings::default()
        };
        Ok(Box::new(EngineExperiment::new(context, spread_answers, settings, arms)?))
    }
}

/// All at once, answers of 16 to 512 tokens.
fn spread_answers(_num_parameters: u64) -> RequestMix {
    RequestMix {
        num_requests: 64,
        max_prompt_tokens: 32,
        max_answer_tokens: 512,
        answers: Answers::Spread,
        arrivals_per_step: 64,
        allowed_tokens: None,
    }
}
