//! The only way from a plan to the objects that carry it out.

use std::sync::Arc;

use aisp_kernels::Isa;
use aisp_kernels::attention::KV_TILE;
use aisp_kernels::kv::{KvBuffer, KvShape, KvType};
use aisp_kernels::linear::WeightType;
use aisp_kernels::team::{PinnedPool, RayonTeam, Team};
use candle_core::{DType, Device};

use crate::compute::Compute;
use crate::error::EngineError;
use crate::kv_cache::{BLOCK_SIZE, ContiguousManager, KvCacheManager, PagedManager};
use crate::model::{ModelConfig, PackedWeights};
use crate::optimizations::Optimization;
use crate::plan::{
    AttentionKind, KvLayout, KvTypeKind, LinearKind, Plan, PointwiseKind, PrefillKind, PrefixReuse, SamplerKind,
    SchedulerKind, TeamKind, WeightKind,
};
use crate::prefix_cache::{BlockChain, NoPrefixCache, PrefixCache};
use crate::runner::{
    AttentionBackend, ContiguousStore, FlashAttention, KvPool, KvStore, MaterialisedAttention, PagedStore, StepInput,
};
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
    /// The cache's memory, and attention over it.
    pub kv: KvParts,
    /// Draws tokens.
    pub sampler: Box<dyn Sampler>,
}

/// The memory of the KV cache, for a model in candle ops or for one on slices.
pub enum KvParts {
    /// With the attention that reads it.
    Attention(Box<dyn AttentionBackend>),
    /// Blocks alone.
    Blocks(KvBuffer),
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
    /// What CPU kernels run with.
    pub compute: Compute,
}

impl Compute {
    /// The threads that the plan names; all available ones unless said.
    ///
    /// Errors: the system refuses threads; `AISP_ISA` names a level that is not there.
    pub fn build(plan: &Plan, num_threads: Option<usize>) -> Result<Self, EngineError> {
        let invalid =
            |name, error: &dyn std::fmt::Display| EngineError::InvalidSetting { name, message: error.to_string() };
        let isa = Isa::from_env().map_err(|error| invalid(aisp_kernels::ISA_VARIABLE, &error))?;
        let team: Arc<dyn Team> = match plan.team {
            TeamKind::Rayon => Arc::new(RayonTeam),
            TeamKind::Pinned => {
                let available = || std::thread::available_parallelism().map_or(1, usize::from);
                let pool = PinnedPool::new(num_threads.unwrap_or_else(available));
                Arc::new(pool.map_err(|error| invalid("--threads", &error))?)
            }
        };
        Ok(Self { isa, team })
    }
}

/// Bytes of keys and values of one token in all layers.
pub(crate) fn kv_bytes_per_token(plan: &Plan, config: &ModelConfig, dtype: DType) -> Result<u64, EngineError> {
    Ok(match plan.attention {
        AttentionKind::Materialised => {
            (2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.size_in_bytes()) as u64
        }
        AttentionKind::Flash => kv_buffer(plan, config, BLOCK_SIZE)?.bytes_per_token() as u64,
    })
}

fn kv_buffer(plan: &Plan, config: &ModelConfig, num_slots: usize) -> Result<KvBuffer, EngineError> {
    let kv_type = match plan.kv_type {
        KvTypeKind::Model => KvType::F32,
        KvTypeKind::F16 => KvType::F16,
        KvTypeKind::Fp8 => KvType::Fp8,
        KvTypeKind::Fp4 => KvType::Fp4,
    };
    let shape = KvShape {
        num_layers: config.num_layers,
        num_blocks: num_slots / BLOCK_SIZE,
        num_kv_heads: config.num_kv_heads,
        head_dim: config.head_dim,
    };
    Ok(KvBuffer::new(shape, kv_type)?)
}

/// The optimization that the type of keys and values stands for.
fn kv_type(plan: &Plan) -> Option<Optimization> {
    match plan.kv_type {
        KvTypeKind::Model => None,
        KvTypeKind::F16 => Some(Optimization::KvF16),
        KvTypeKind::Fp8 => Some(Optimization::KvFp8),
        KvTypeKind::Fp4 => Some(Optimization::KvFp4),
    }
}

/// The optimizations that attention over blocks stands for.
pub(crate) fn kv_optimizations(plan: &Plan) -> Vec<Optimization> {
    [Optimization::PagedKv, Optimization::FlashAttention].into_iter().chain(kv_type(plan)).collect()
}

/// What dense weights are packed as, and the optimization that this stands for.
pub(crate) fn weight_type(plan: &Plan) -> (WeightType, Option<Optimization>) {
    match plan.weights {
        WeightKind::Checkpoint => (WeightType::Stored, None),
        WeightKind::Int8 => (WeightType::Int8, Some(Optimization::WeightsInt8)),
        WeightKind::Int4 => (WeightType::Int4, Some(Optimization::WeightsInt4)),
        WeightKind::Fp8 => (WeightType::Fp8, Some(Optimization::WeightsFp8)),
        WeightKind::Fp4 => (WeightType::Fp4, Some(Optimization::WeightsFp4)),
    }
}

/// The optimizations that the ops of a model stand for, whose weights became this.
pub(crate) fn model_optimizations(plan: &Plan, compute: &Compute, packed: &PackedWeights) -> Vec<Optimization> {
    let several_threads = compute.team.num_threads() > 1;
    [
        (plan.linear == LinearKind::Packed, Optimization::FastLinear),
        (plan.pointwise == PointwiseKind::Fused, Optimization::FusedOps),
        (plan.team == TeamKind::Pinned && several_threads, Optimization::PinnedPool),
    ]
    .into_iter()
    .filter_map(|(runs, optimization)| runs.then_some(optimization))
    .chain(weight_type(plan).1.filter(|_| packed.num_converted > 0))
    .collect()
}

/// The optimizations that the runner on the GPU stands for in every step.
#[cfg(feature = "cuda")]
pub(crate) fn cuda_optimizations(plan: &Plan, packed: &PackedWeights) -> Vec<Optimization> {
    [Optimization::PagedKv, Optimization::FlashAttention, Optimization::FastLinear, Optimization::FusedOps]
        .into_iter()
        .chain(kv_type(plan))
        .chain(weight_type(plan).1.filter(|_| packed.num_converted > 0))
        .collect()
}

impl Components {
    /// Builds what the plan names.
    ///
    /// Errors: allocation on the device.
    pub fn build(plan: &Plan, context: &BuildContext<'_>) -> Result<Self, EngineError> {
        let Bookkeeping { policies, kv_manager, sampler } =
            Bookkeeping::build(plan, context.num_kv_slots, context.prefill_chunk_tokens, context.compute.isa);
        let kv = match (plan.attention, plan.pointwise) {
            (AttentionKind::Materialised, _) => {
                let pool = KvPool::new(context.config, context.num_kv_slots, context.dtype, context.device)?;
                let store: Box<dyn KvStore> = match plan.kv_layout {
                    KvLayout::Contiguous => Box::new(ContiguousStore::new(pool)),
                    KvLayout::Paged => Box::new(PagedStore::new(pool)),
                };
                KvParts::Attention(Box::new(MaterialisedAttention::new(store)))
            }
            (AttentionKind::Flash, PointwiseKind::Composed) => {
                let blocks = kv_buffer(plan, context.config, context.num_kv_slots)?;
                let attention = FlashAttention::new(blocks, context.compute.clone(), kv_optimizations(plan));
                KvParts::Attention(Box::new(attention))
            }
            (AttentionKind::Flash, PointwiseKind::Fused) => {
                KvParts::Blocks(kv_buffer(plan, context.config, context.num_kv_slots)?)
            }
        };
        Ok(Self { policies, kv_manager, kv, sampler })
    }
}

/// What an engine is made of that no device knows of.
pub(crate) struct Bookkeeping {
    pub policies: SchedulerPolicies,
    pub kv_manager: Box<dyn KvCacheManager>,
    pub sampler: Box<dyn Sampler>,
}

impl Bookkeeping {
    pub fn build(plan: &Plan, num_kv_slots: usize, prefill_chunk_tokens: usize, isa: Isa) -> Self {
        let admission: Box<dyn AdmissionPolicy> = match plan.scheduler {
            SchedulerKind::StaticBatching => Box::new(StaticBatching),
            SchedulerKind::ContinuousBatching => Box::new(ContinuousBatching),
        };
        let prefill: Box<dyn PrefillPolicy> = match plan.prefill {
            PrefillKind::WholePrompt => Box::new(WholePrompt),
            PrefillKind::Chunked => Box::new(ChunkedPrefill { chunk_tokens: prefill_chunk_tokens }),
        };
        let prefix: Box<dyn PrefixCache> = match plan.prefix_reuse {
            PrefixReuse::None => Box::new(NoPrefixCache),
            PrefixReuse::BlockChain => Box::new(BlockChain::default()),
        };
        let kv_manager: Box<dyn KvCacheManager> = match plan.kv_layout {
            KvLayout::Contiguous => Box::new(ContiguousManager::new(num_kv_slots, KV_TILE)),
            KvLayout::Paged => Box::new(PagedManager::new(num_kv_slots, prefix)),
        };
        let sampler: Box<dyn Sampler> = match plan.sampler {
            SamplerKind::Sort => Box::new(SortSampler),
            SamplerKind::Candidates => Box::new(CandidateSampler::new(isa)),
        };
        Self { policies: SchedulerPolicies { admission, prefill }, kv_manager, sampler }
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

    /// Counts the tokens of a step for each of these.
    pub(crate) fn add_all(&mut self, optimizations: &[Optimization], input: &StepInput) {
        for &optimization in optimizations {
            self.add(optimization, input.token_ids.len() as u64);
        }
    }

    /// Uses since the start, in the unit that the registry names.
    pub fn count(&self, optimization: Optimization) -> u64 {
        self.counts[optimization.index()]
    }
}
