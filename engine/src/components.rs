//! The only way from a plan to the objects that carry it out.

use candle_core::{DType, Device};

use crate::error::EngineError;
use crate::kv_cache::{ContiguousManager, KvCacheManager, PagedManager};
use crate::model::ModelConfig;
use crate::optimizations::Optimization;
use crate::plan::{KvLayout, Plan, PrefillKind, PrefixReuse, SamplerKind, SchedulerKind};
use crate::prefix_cache::{BlockChain, NoPrefixCache, PrefixCache};
use crate::runner::{ContiguousStore, KvPool, KvStore, PagedStore};
use crate::sampler::{CandidateSampler, Sampler, SortSampler};
use crate::scheduler::{
    AdmissionPolicy, ChunkedPrefill, ContinuousBatching, PrefillPolicy, SchedulerPolicies, StaticBatching, WholePrompt,
};

/// One object a slot.
pub struct Components {
    /// Who may join a batch, and with how much of a prompt.
    pub policies: SchedulerPolicies,
    /// Who owns which cache slot.
    pub kv_manager: Box<dyn KvCacheManager>,
    /// The cache's memory.
    pub kv_store: Box<dyn KvStore>,
    /// Draws tokens.
    pub sampler: Box<dyn Sampler>,
}

/// What the objects are built for.
#[derive(Debug, Clone)]
pub struct BuildContext<'a> {
    /// The model's shape.
    pub config: &'a ModelConfig,
    /// Type of keys and values.
    pub dtype: DType,
    /// Where they live.
    pub device: &'a Device,
    /// Token slots of the KV cache.
    pub num_kv_slots: usize,
    /// Prompt tokens that chunked prefill takes into a step with running answers.
    pub prefill_chunk_tokens: usize,
}

impl Components {
    /// Builds what the plan names.
    ///
    /// Errors: allocation on the device.
    pub fn build(plan: &Plan, context: &BuildContext<'_>) -> Result<Self, EngineError> {
        let admission: Box<dyn AdmissionPolicy> = match plan.scheduler {
            SchedulerKind::StaticBatching => Box::new(StaticBatching),
            SchedulerKind::ContinuousBatching => Box::new(ContinuousBatching),
        };
        let prefill: Box<dyn PrefillPolicy> = match plan.prefill {
            PrefillKind::WholePrompt => Box::new(WholePrompt),
            PrefillKind::Chunked => Box::new(ChunkedPrefill { chunk_tokens: context.prefill_chunk_tokens }),
        };
        let prefix: Box<dyn PrefixCache> = match plan.prefix_reuse {
            PrefixReuse::None => Box::new(NoPrefixCache),
            PrefixReuse::BlockChain => Box::new(BlockChain::default()),
        };
        let pool = KvPool::new(context.config, context.num_kv_slots, context.dtype, context.device)?;
        let (kv_manager, kv_store): (Box<dyn KvCacheManager>, Box<dyn KvStore>) = match plan.kv_layout {
            KvLayout::Contiguous => {
                let manager = ContiguousManager::new(context.num_kv_slots, aisp_kernels::attention::KV_TILE);
                (Box::new(manager), Box::new(ContiguousStore::new(pool)))
            }
            KvLayout::Paged => {
                (Box::new(PagedManager::new(context.num_kv_slots, prefix)), Box::new(PagedStore::new(pool)))
            }
        };
        let sampler: Box<dyn Sampler> = match plan.sampler {
            SamplerKind::Sort => Box::new(SortSampler),
            SamplerKind::Candidates => Box::new(CandidateSampler::default()),
        };
        Ok(Self { policies: SchedulerPolicies { admission, prefill }, kv_manager, kv_store, sampler })
    }
}

/// How often each optimization really ran, by [`Optimization::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Engagement {
    counts: [u64; Optimization::ALL.len()],
}

impl Engagement {
    /// Adds uses.
    pub fn add(&mut self, optimization: Optimization, count: u64) {
        self.counts[optimization.index()] += count;
    }

    /// Uses since the start, in the unit that the registry names.
    pub fn count(&self, optimization: Optimization) -> u64 {
        self.counts[optimization.index()]
    }
}
