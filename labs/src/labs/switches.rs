//! A lab for every switch in the registry, generated: its prerequisites alone against the same with it. Bookkeeping is
//! measured over the fast kernels, where it is the larger part of a step.

use aisp_engine::optimizations::{Saving, Slot};
use aisp_engine::{DeviceKind, Optimization, Selection};

use super::engine_experiment::{EngineArm, EngineExperiment, EngineSettings, GatePass, mixed_requests, tolerance};
use super::requests::{Answers, RequestMix};
use super::start::StartExperiment;
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
        // A full sort for each drawn token would take longer than the model.
        let kernels: &[Optimization] = match (self.0, spec.slot, device) {
            // What the others' kernels require is measured without them.
            (Optimization::PagedKv, _, DeviceKind::Cpu) => {
                &[Optimization::ContinuousBatching, Optimization::FastLinear, Optimization::FastSampler]
            }
            (Optimization::PagedKv, _, DeviceKind::Cuda) => {
                &[Optimization::ContinuousBatching, Optimization::FastSampler]
            }
            (_, Slot::Scheduler | Slot::Prefill | Slot::PrefixReuse | Slot::Sampler, DeviceKind::Cpu) => {
                &[Optimization::FusedOps, Optimization::PinnedPool, Optimization::FastSampler]
            }
            (
                _,
                Slot::Scheduler
                | Slot::Prefill
                | Slot::PrefixReuse
                | Slot::Sampler
                | Slot::KvType
                | Slot::WeightType
                | Slot::Products
                | Slot::ActivationType
                | Slot::DecodeSplits
                | Slot::StepLoop,
                DeviceKind::Cuda,
            ) => &[Optimization::FusedOps, Optimization::CudaGraphs, Optimization::FastSampler],
            (_, _, _) => &[Optimization::FastSampler],
        };
        let with = Selection::closed_on(device, kernels.iter().copied().chain([self.0]));
        let without = with.without(self.0);
        vec![
            EngineArm { name: spec.baseline.to_owned(), selection: without },
            EngineArm { name: spec.name.to_owned(), selection: with },
        ]
    }

    /// Requests and bounds under which the switch shows.
    fn load(self, device: DeviceKind) -> (fn(u64) -> RequestMix, EngineSettings) {
        let slot = self.0.spec().slot;
        let settings = EngineSettings {
            dense_weights: matches!(slot, Slot::WeightType | Slot::ActivationType),
            common_beginning: slot == Slot::PrefixReuse,
            ..EngineSettings::default()
        };
        let of_size = |max_num_seqs: usize, max_model_len: usize| EngineSettings {
            max_num_seqs,
            max_model_len,
            num_kv_tokens: max_num_seqs * max_model_len,
            ..settings
        };
        // Steps so small that prompts that wait do not fit into one: else there is nothing to cut.
        let within = |max_num_batched_tokens: usize, settings: EngineSettings| match slot {
            Slot::Prefill => EngineSettings { max_num_batched_tokens, ..settings },
            _ => settings,
        };
        match (slot, device) {
            (Slot::KvLayout, _) => (unknown_lengths, of_size(8, 576)),
            (Slot::DecodeSplits, _) => (long_contexts, EngineSettings { gate: GatePass::RowByRow, ..of_size(64, 640) }),
            // What shows only where many rows are computed at once.
            (
                Slot::Scheduler
                | Slot::Prefill
                | Slot::KvType
                | Slot::Products
                | Slot::WideProducts
                | Slot::ActivationType,
                DeviceKind::Cuda,
            ) => {
                let scarce = EngineSettings { num_kv_tokens: 64 * 192, ..of_size(64, 384) };
                (requests_for_a_card, within(256, EngineSettings { gate: GatePass::Apart, ..scarce }))
            }
            _ => (mixed_requests, within(64, settings)),
        }
    }
}

impl Lab for SwitchLab {
    fn info(&self) -> LabInfo {
        let spec = self.0.spec();
        LabInfo {
            id: format!("switch:{}", spec.name),
            summary: format!("{} instead of {}: {}", spec.name, spec.baseline, spec.summary),
            goal: if spec.slot == Slot::Loading {
                Goal::Speed
            } else if spec.saves.contains(&Saving::Time) {
                Goal::Throughput
            } else {
                Goal::Memory
            },
            tags: match spec.slot {
                Slot::Loading => vec![spec.slot.to_string()],
                slot => vec![slot.to_string(), "cuda".into()],
            },
            tolerance: tolerance(spec.exactness),
        }
    }

    fn prepare(&self, context: &LabContext) -> Result<Box<dyn Experiment>, LabError> {
        if self.0.spec().slot == Slot::Loading {
            return Ok(Box::new(StartExperiment::new(context, self.0)?));
        }
        let device = context.device.kind();
        let (mix, settings) = self.load(device);
        Ok(Box::new(EngineExperiment::new(context, mix, settings, self.arms(device))?))
    }
}

/// So many at once that the products of a step fill a card.
fn requests_for_a_card(_num_parameters: u64) -> RequestMix {
    RequestMix {
        num_requests: 64,
        max_prompt_tokens: 256,
        max_answer_tokens: 96,
        answers: Answers::Even,
        arrivals_per_step: 16,
        allowed_tokens: None,
    }
}

/// Contexts of several splits of attention, many at once.
fn long_contexts(_num_parameters: u64) -> RequestMix {
    RequestMix {
        num_requests: 64,
        max_prompt_tokens: 480,
        max_answer_tokens: 160,
        answers: Answers::Even,
        arrivals_per_step: 64,
        allowed_tokens: None,
    }
}

/// Answers of 16 to 512 tokens; all that the engine knows of each before it ends is that 512 are allowed.
fn unknown_lengths(_num_parameters: u64) -> RequestMix {
    RequestMix {
        num_requests: 16,
        max_prompt_tokens: 32,
        max_answer_tokens: 512,
        answers: Answers::Spread,
        arrivals_per_step: 64,
        allowed_tokens: Some(512),
    }
}
