//! The registry of optimizations: the only place that knows the list. Flags, help, tables, tests and sweeps derive from it.

mod selection;
mod spec;

pub use selection::{Selection, SelectionError};
pub use spec::{Devices, Exactness, Saving, Slot, Spec};

use crate::plan::{KvLayout, Plan, PrefillKind, PrefixReuse, SamplerKind, SchedulerKind};

/// A switch. Declaration order is application order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Optimization {
    /// Sequences join the batch at any step.
    ContinuousBatching,
    /// Long prompts run in parts beside running answers.
    ChunkedPrefill,
    /// The KV cache is handed out in blocks.
    PagedKv,
    /// Prompts reuse the blocks of an earlier one with the same beginning.
    PrefixCache,
    /// Tokens are drawn without sorting the vocabulary.
    FastSampler,
}

impl Optimization {
    /// Every optimization, in application order.
    pub const ALL: [Self; 5] =
        [Self::ContinuousBatching, Self::ChunkedPrefill, Self::PagedKv, Self::PrefixCache, Self::FastSampler];

    /// Its entry in the registry.
    pub fn spec(self) -> Spec {
        match self {
            Self::ContinuousBatching => Spec {
                name: "continuous-batching",
                summary: "sequences join the running batch at any step",
                slot: Slot::Scheduler,
                baseline: "static batching",
                saves: &[Saving::Time],
                exactness: Exactness::SameTokens,
                requires: &[],
                conflicts: &[],
                devices: Devices::All,
                engages_when: "a request joins a batch already under way",
                counts: "joined requests",
                source: "Orca, OSDI 2022",
            },
            Self::ChunkedPrefill => Spec {
                name: "chunked-prefill",
                summary: "a prompt is computed in parts beside running answers instead of halting them",
                slot: Slot::Prefill,
                baseline: "whole prompt",
                saves: &[Saving::Time],
                exactness: Exactness::Bitwise,
                requires: &[],
                conflicts: &[],
                devices: Devices::All,
                engages_when: "a prompt does not fit into one step",
                counts: "parts of prompts",
                source: "Sarathi-Serve, arXiv 2403.02310",
            },
            Self::PagedKv => Spec {
                name: "paged-kv",
                summary: "the KV cache grows in blocks of 16 tokens instead of one run for the longest answer",
                slot: Slot::KvLayout,
                baseline: "contiguous",
                saves: &[Saving::Memory],
                exactness: Exactness::Bitwise,
                requires: &[],
                conflicts: &[],
                devices: Devices::All,
                engages_when: "a token is stored",
                counts: "tokens stored in blocks",
                source: "PagedAttention, arXiv 2309.06180",
            },
            Self::PrefixCache => Spec {
                name: "prefix-cache",
                summary: "prompts with a known beginning reuse its blocks instead of computing it again",
                slot: Slot::PrefixReuse,
                baseline: "none",
                saves: &[Saving::Time, Saving::Memory],
                exactness: Exactness::Bitwise,
                requires: &[Self::PagedKv],
                conflicts: &[],
                devices: Devices::All,
                engages_when: "a prompt begins with 16 tokens or more of an earlier one",
                counts: "prompt tokens found",
                source: "vLLM automatic prefix caching; RadixAttention, arXiv 2312.07104",
            },
            Self::FastSampler => Spec {
                name: "fast-sampler",
                summary: "a random draw sorts the few tokens that can matter instead of the vocabulary",
                slot: Slot::Sampler,
                baseline: "full sort",
                saves: &[Saving::Time],
                exactness: Exactness::SameTokens,
                requires: &[],
                conflicts: &[],
                devices: Devices::All,
                engages_when: "a request draws at a temperature above 0",
                counts: "draws without a full sort",
                source: "own",
            },
        }
    }

    /// Its name in flags and reports.
    pub fn name(self) -> &'static str {
        self.spec().name
    }

    /// Finds it by name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|o| o.name() == name)
    }

    /// Sets its field of a plan.
    pub fn apply(self, plan: &mut Plan) {
        match self {
            Self::ContinuousBatching => plan.scheduler = SchedulerKind::ContinuousBatching,
            Self::ChunkedPrefill => plan.prefill = PrefillKind::Chunked,
            Self::PagedKv => plan.kv_layout = KvLayout::Paged,
            Self::PrefixCache => plan.prefix_reuse = PrefixReuse::BlockChain,
            Self::FastSampler => plan.sampler = SamplerKind::Candidates,
        }
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_complete_and_in_order() {
        for (index, optimization) in Optimization::ALL.into_iter().enumerate() {
            assert_eq!(optimization.index(), index);
            assert_eq!(Optimization::by_name(optimization.name()), Some(optimization));
            let mut plan = Plan::BASELINE;
            optimization.apply(&mut plan);
            assert_ne!(plan, Plan::BASELINE, "{} changes nothing", optimization.name());
        }
    }
}
