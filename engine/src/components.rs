//! The only way from a plan to the objects that carry it out.

use candle_core::{DType, Device};

use crate::error::EngineError;
use crate::kv_cache::{ContiguousManager, KvCacheManager, PagedManager};
use crate::model::ModelConfig;
use crate::optimizations::Optimization;
use crate::plan::{KvLayout, Plan, SamplerKind, SchedulerKind};
use crate::runner::{ContiguousStore, KvPool, KvStore, PagedStore};
use crate::sampler::{CandidateSampler, Sampler, SortSampler};
use crate::scheduler::{AdmissionPolicy, ContinuousBatching, StaticBatching};

/// One object a slot.
pub struct Components {
    /// Who may join a batch.
    pub admission: Box<dyn AdmissionPolicy>,
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
        let pool = KvPool::new(context.config, context.num_kv_slots, context.dtype, context.device)?;
        let (kv_manager, kv_store): (Box<dyn KvCacheManager>, Box<dyn KvStore>) = match plan.kv_layout {
            KvLayout::Contiguous => {
                let manager = ContiguousManager::new(context.num_kv_slots, aisp_kernels::attention::KV_TILE);
                (Box::new(manager), Box::new(ContiguousStore::new(pool)))
            }
            KvLayout::Paged => (Box::new(PagedManager::new(context.num_kv_slots)), Box::new(PagedStore::new(pool))),
        };
        let sampler: Box<dyn Sampler> = match plan.sampler {
            SamplerKind::Sort => Box::new(SortSampler),
            SamplerKind::Candidates => Box::new(CandidateSampler::default()),
        };
        Ok(Self { admission, kv_manager, kv_store, sampler })
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
