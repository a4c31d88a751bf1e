//! The registry of optimizations: the only place that knows the list. Flags, help, tables, tests and sweeps derive from it.

mod selection;
mod spec;
mod text;

pub use selection::{Selection, SelectionError};
pub use spec::{Devices, Exactness, LogitBound, Saving, Slot, Spec};
pub use text::SelectionText;

use crate::device::DeviceKind;
use crate::plan::{
    ActivationKind, AttentionKind, DecodeSplitsKind, ExecutionKind, KvLayout, KvTypeKind, LinearKind, LoadingKind,
    Plan, PointwiseKind, PrefillKind, PrefixReuse, ProductsKind, SamplerKind, SchedulerKind, StepLoopKind, TeamKind,
    WeightKind, WideProductsKind,
};

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
    /// Keys and values in 16 bits.
    KvF16,
    /// Keys and values in 8 bits.
    KvFp8,
    /// Keys and values in 4 bits.
    KvFp4,
    /// Attention in tiles, without a matrix of scores.
    FlashAttention,
    /// Projections by own kernels over packed weights.
    FastLinear,
    /// Dense weights of projections in 8-bit integers.
    WeightsInt8,
    /// Dense weights of projections in 4-bit integers.
    WeightsInt4,
    /// Dense weights of projections in 8-bit floats.
    WeightsFp8,
    /// Dense weights of projections in 4-bit floats.
    WeightsFp4,
    /// Small ops fused, in a workspace.
    FusedOps,
    /// Weights are packed out of the mapped file.
    MmapLoading,
    /// Own products of many rows by Hopper's matrix instructions.
    WgmmaLinear,
    /// Products of many rows by cuBLASLt.
    LibraryGemm,
    /// Activations of products of many rows in 8-bit floats.
    ActivationsFp8,
    /// Contexts cut by the size of the batch in decode attention.
    AdaptiveSplits,
    /// Steps recorded once and launched whole.
    CudaGraphs,
    /// The next step begins while one is under way.
    OverlappedScheduling,
    /// A pool of threads of our own.
    PinnedPool,
    /// Tokens are drawn without sorting the vocabulary.
    FastSampler,
}

impl Optimization {
    /// Every optimization, in application order.
    pub const ALL: [Self; 23] = [
        Self::ContinuousBatching,
        Self::ChunkedPrefill,
        Self::PagedKv,
        Self::PrefixCache,
        Self::KvF16,
        Self::KvFp8,
        Self::KvFp4,
        Self::FlashAttention,
        Self::FastLinear,
        Self::WeightsInt8,
        Self::WeightsInt4,
        Self::WeightsFp8,
        Self::WeightsFp4,
        Self::FusedOps,
        Self::MmapLoading,
        Self::WgmmaLinear,
        Self::LibraryGemm,
        Self::ActivationsFp8,
        Self::AdaptiveSplits,
        Self::CudaGraphs,
        Self::OverlappedScheduling,
        Self::PinnedPool,
        Self::FastSampler,
    ];

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
                bound: None,
                requires: &[],
                conflicts: &[],
                devices: Devices::All,
                in_all: true,
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
                bound: None,
                requires: &[],
                conflicts: &[],
                devices: Devices::All,
                in_all: true,
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
                bound: None,
                requires: &[],
                conflicts: &[],
                devices: Devices::All,
                in_all: true,
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
                bound: None,
                requires: &[Self::PagedKv],
                conflicts: &[],
                devices: Devices::All,
                in_all: true,
                engages_when: "a prompt begins with 16 tokens or more of an earlier one, and two follow",
                counts: "prompt tokens found",
                source: "vLLM automatic prefix caching; RadixAttention, arXiv 2312.07104",
            },
            Self::KvF16 => Spec {
                name: "kv-f16",
                summary: "keys and values in half precision",
                exactness: Exactness::Tolerance,
                bound: Some(LogitBound::KERNEL),
                conflicts: &[Self::KvFp8, Self::KvFp4],
                counts: "tokens stored in f16",
                source: "IEEE 754 binary16",
                ..Spec::KV_TYPE
            },
            Self::KvFp8 => Spec {
                name: "kv-fp8",
                summary: "keys and values in 8 bits (e4m3), a scale for each head of a token",
                bound: Some(LogitBound { mean_kl: 6e-3, high_kl: 0.1, same_top: 0.95, perplexity: 0.015 }),
                conflicts: &[Self::KvF16, Self::KvFp4],
                in_all: true,
                counts: "tokens stored in fp8",
                source: "FP8 formats, arXiv 2209.05433",
                devices: Devices::All,
                ..Spec::KV_TYPE
            },
            Self::KvFp4 => Spec {
                name: "kv-fp4",
                summary: "keys and values in 4 bits (e2m1), a scale for each block",
                bound: Some(LogitBound { mean_kl: 0.08, high_kl: 1.2, same_top: 0.84, perplexity: 0.05 }),
                conflicts: &[Self::KvF16, Self::KvFp8],
                counts: "tokens stored in fp4",
                source: "OCP Microscaling Formats 1.0",
                devices: Devices::All,
                ..Spec::KV_TYPE
            },
            Self::FlashAttention => Spec {
                name: "flash-attention",
                summary: "attention in tiles with an online softmax, over the blocks in place",
                slot: Slot::Attention,
                baseline: "scores materialised",
                saves: &[Saving::Time, Saving::Memory],
                exactness: Exactness::Tolerance,
                bound: Some(LogitBound::KERNEL),
                requires: &[Self::PagedKv],
                conflicts: &[],
                devices: Devices::All,
                in_all: true,
                engages_when: "a token is computed",
                counts: "tokens attended in tiles",
                source: "FlashAttention-2, arXiv 2307.08691; split-KV, arXiv 2311.01282",
            },
            Self::FastLinear => Spec {
                name: "fast-linear",
                summary: "projections by own SIMD kernels over weights packed at load",
                slot: Slot::Linear,
                baseline: "candle matmul",
                saves: &[Saving::Time],
                exactness: Exactness::Tolerance,
                bound: Some(LogitBound::KERNEL),
                requires: &[],
                conflicts: &[],
                devices: Devices::All,
                in_all: true,
                engages_when: "a token is computed",
                counts: "tokens through packed weights",
                source: "own; interleaved rows after llama.cpp",
            },
            Self::WeightsInt8 => Spec {
                name: "weights-int8",
                summary: "dense weights of projections in 8-bit integers, a scale for each 32",
                conflicts: &[Self::WeightsInt4, Self::WeightsFp8, Self::WeightsFp4],
                bound: Some(LogitBound { mean_kl: 1.5e-3, high_kl: 0.015, same_top: 0.955, perplexity: 6e-3 }),
                source: "GGML Q8_0",
                ..Spec::WEIGHTS
            },
            Self::WeightsInt4 => Spec {
                name: "weights-int4",
                summary: "dense weights of projections in 4-bit integers, a scale and a minimum for each 128",
                conflicts: &[Self::WeightsInt8, Self::WeightsFp8, Self::WeightsFp4],
                bound: Some(LogitBound { mean_kl: 0.18, high_kl: 2.0, same_top: 0.72, perplexity: 0.08 }),
                source: "round to nearest of GPTQ, arXiv 2210.17323; least-squares scales after GGML's K-quants",
                ..Spec::WEIGHTS
            },
            Self::WeightsFp8 => Spec {
                name: "weights-fp8",
                summary: "dense weights of projections in 8-bit floats (e4m3), a scale for each output row",
                conflicts: &[Self::WeightsInt8, Self::WeightsInt4, Self::WeightsFp4],
                bound: Some(LogitBound { mean_kl: 0.012, high_kl: 0.06, same_top: 0.92, perplexity: 0.015 }),
                source: "FP8 formats, arXiv 2209.05433",
                ..Spec::WEIGHTS
            },
            Self::WeightsFp4 => Spec {
                name: "weights-fp4",
                summary: "dense weights of projections in 4-bit floats (e2m1), a scale for each 16",
                conflicts: &[Self::WeightsInt8, Self::WeightsInt4, Self::WeightsFp8],
                bound: Some(LogitBound { mean_kl: 0.12, high_kl: 0.7, same_top: 0.77, perplexity: 0.05 }),
                source: "NVFP4, arXiv 2509.25149, with f16 scales",
                ..Spec::WEIGHTS
            },
            Self::FusedOps => Spec {
                name: "fused-ops",
                summary: "packed QKV and gate-up, residual with norm, rope with KV store, in one workspace",
                slot: Slot::Pointwise,
                baseline: "candle ops composed",
                saves: &[Saving::Time],
                exactness: Exactness::Tolerance,
                bound: Some(LogitBound::KERNEL),
                requires: &[Self::PagedKv, Self::FlashAttention, Self::FastLinear],
                conflicts: &[],
                devices: Devices::All,
                in_all: true,
                engages_when: "a token is computed",
                counts: "tokens through fused ops",
                source: "own",
            },
            Self::MmapLoading => Spec {
                name: "mmap-loading",
                summary: "matrices stay in the mapped file until they are packed, instead of a copy in the heap",
                slot: Slot::Loading,
                baseline: "read into heap",
                saves: &[Saving::Time, Saving::Memory],
                exactness: Exactness::Bitwise,
                bound: None,
                requires: &[],
                conflicts: &[],
                devices: Devices::All,
                in_all: true,
                engages_when: "the model is a file or built in",
                counts: "matrices taken from the mapped file",
                source: "mmap(2)",
            },
            Self::WgmmaLinear => Spec {
                name: "wgmma-linear",
                summary: "products of many rows by Hopper's matrix instructions, from where they are faster; not batch-invariant",
                slot: Slot::WideProducts,
                baseline: "64 rows at a time",
                engages_when: "a step on a Hopper GPU has so many tokens that it was faster when the model was loaded",
                counts: "tokens through it",
                source: "own; operands in registers after Marlin, arXiv 2408.11743",
                ..Spec::BATCH_VARIANT
            },
            Self::LibraryGemm => Spec {
                name: "library-gemm",
                summary: "products of many rows by cuBLASLt, from where it is faster at load; not batch-invariant",
                engages_when: "a step has so many tokens that cuBLASLt was faster when the model was loaded",
                counts: "tokens through cuBLASLt",
                source: "cuBLASLt",
                ..Spec::BATCH_VARIANT
            },
            Self::ActivationsFp8 => Spec {
                name: "activations-fp8",
                summary: "products of many rows over fp8 weights read activations in e4m3 too, by wgmma or cuBLASLt; not batch-invariant",
                slot: Slot::ActivationType,
                baseline: "bf16",
                exactness: Exactness::Lossy,
                bound: Some(LogitBound { mean_kl: 0.02, high_kl: 0.4, same_top: 0.88, perplexity: 0.02 }),
                requires: &[Self::WeightsFp8, Self::FusedOps],
                in_all: false,
                engages_when: "all projections are fp8 and a step has so many tokens that it was faster when the model was loaded",
                counts: "tokens through products in fp8",
                source: "FP8 formats, arXiv 2209.05433; dynamic scales a row after vLLM, or each 64 values after DeepSeek-V3, arXiv 2412.19437",
                ..Spec::BATCH_VARIANT
            },
            Self::AdaptiveSplits => Spec {
                name: "adaptive-splits",
                summary: "decode attention cuts contexts into as many parts as suit the batch and the GPU; not batch-invariant",
                slot: Slot::DecodeSplits,
                baseline: "256 positions each",
                engages_when: "a sequence of a step has one token",
                counts: "tokens attended in such parts",
                source: "own; number of splits by occupancy after Flash-Decoding, PyTorch blog 2023-10-12",
                ..Spec::BATCH_VARIANT
            },
            Self::CudaGraphs => Spec {
                name: "cuda-graphs",
                summary: "a decode step is recorded once for each size of batch and launched whole",
                slot: Slot::Execution,
                baseline: "eager",
                saves: &[Saving::Time],
                exactness: Exactness::Bitwise,
                bound: None,
                requires: &[Self::FusedOps],
                conflicts: &[],
                devices: Devices::Cuda,
                in_all: true,
                engages_when: "every sequence of a step decodes",
                counts: "tokens computed in graphs",
                source: "CUDA programming guide, graphs",
            },
            Self::OverlappedScheduling => Spec {
                name: "overlapped-scheduling",
                summary: "the next step is scheduled and started while one runs; its tokens stay on the device",
                slot: Slot::StepLoop,
                baseline: "synchronous",
                saves: &[Saving::Time],
                exactness: Exactness::SameTokens,
                bound: None,
                requires: &[Self::FusedOps],
                conflicts: &[],
                devices: Devices::Cuda,
                in_all: true,
                engages_when: "the device chooses every token of a step and the KV cache is not full",
                counts: "tokens handed to the next step on the device",
                source: "NanoFlow, arXiv 2408.12757",
            },
            Self::PinnedPool => Spec {
                name: "pinned-pool",
                summary: "a persistent pool that spins briefly, then parks, and hands work out in pieces",
                slot: Slot::Threads,
                baseline: "rayon",
                saves: &[Saving::Time],
                exactness: Exactness::Bitwise,
                bound: None,
                requires: &[Self::FastLinear],
                conflicts: &[],
                devices: Devices::Cpu,
                in_all: true,
                engages_when: "more than one thread computes",
                counts: "tokens computed with it",
                source: "own",
            },
            Self::FastSampler => Spec {
                name: "fast-sampler",
                summary: "a token is picked in vector passes that sort the few tokens that can matter, not the vocabulary",
                slot: Slot::Sampler,
                baseline: "full sort",
                saves: &[Saving::Time],
                exactness: Exactness::SameTokens,
                bound: None,
                requires: &[],
                conflicts: &[],
                devices: Devices::All,
                in_all: true,
                engages_when: "a token is picked",
                counts: "tokens picked without a full sort",
                source: "own",
            },
        }
    }

    /// Its name in flags and reports.
    pub fn name(self) -> &'static str {
        self.spec().name
    }

    /// What must be on as well on a device. On CUDA the fast ops stand and fall together: one runner has them all.
    pub fn requires_on(self, device: DeviceKind) -> &'static [Self] {
        match (device, self) {
            (DeviceKind::Cuda, Self::FlashAttention) => &[Self::PagedKv, Self::FastLinear, Self::FusedOps],
            (DeviceKind::Cuda, Self::FastLinear) => &[Self::PagedKv, Self::FlashAttention, Self::FusedOps],
            (DeviceKind::Cuda, Self::MmapLoading) => &[Self::FusedOps],
            (_, optimization) => optimization.spec().requires,
        }
    }

    /// How far logits may be from exact arithmetic on a device. On CUDA activations are bf16 between ops, and scales of
    /// `weights-fp4` are 8 bits wide.
    pub fn bound_on(self, device: DeviceKind) -> Option<LogitBound> {
        let bound = self.spec().bound?;
        Some(match (device, self) {
            (DeviceKind::Cuda, Self::WeightsFp4) => LogitBound { perplexity: 0.1, ..bound },
            // Of some hundred positions, one in a thousand is the worst of all: it moves with the order of sums.
            (DeviceKind::Cuda, Self::KvFp8) => LogitBound { high_kl: 0.2, ..bound },
            (DeviceKind::Cuda, _) if bound == LogitBound::KERNEL => LogitBound::BF16_KERNEL,
            _ => bound,
        })
    }

    /// Itself and everything that it needs on the CPU.
    pub fn with_requirements(self) -> Selection {
        Selection::closed([self])
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
            Self::KvF16 => plan.kv_type = KvTypeKind::F16,
            Self::KvFp8 => plan.kv_type = KvTypeKind::Fp8,
            Self::KvFp4 => plan.kv_type = KvTypeKind::Fp4,
            Self::FlashAttention => plan.attention = AttentionKind::Flash,
            Self::FastLinear => plan.linear = LinearKind::Packed,
            Self::WeightsInt8 => plan.weights = WeightKind::Int8,
            Self::WeightsInt4 => plan.weights = WeightKind::Int4,
            Self::WeightsFp8 => plan.weights = WeightKind::Fp8,
            Self::WeightsFp4 => plan.weights = WeightKind::Fp4,
            Self::FusedOps => plan.pointwise = PointwiseKind::Fused,
            Self::MmapLoading => plan.loading = LoadingKind::Mapped,
            Self::WgmmaLinear => plan.wide_products = WideProductsKind::Wgmma,
            Self::LibraryGemm => plan.products = ProductsKind::Library,
            Self::ActivationsFp8 => plan.activations = ActivationKind::Fp8,
            Self::AdaptiveSplits => plan.decode_splits = DecodeSplitsKind::Adaptive,
            Self::CudaGraphs => plan.execution = ExecutionKind::Graphs,
            Self::OverlappedScheduling => plan.step_loop = StepLoopKind::Overlapped,
            Self::PinnedPool => plan.team = TeamKind::Pinned,
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
