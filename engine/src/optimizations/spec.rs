//! What the registry says about an optimization.

use std::fmt;

use super::Optimization;
use crate::device::DeviceKind;

/// One row of the registry.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Name in flags, JSON and metrics.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// The part of the engine that it replaces.
    pub slot: Slot,
    /// What stands there without it.
    pub baseline: &'static str,
    /// What it is for.
    pub saves: &'static [Saving],
    /// How its outputs compare with the baseline's.
    pub exactness: Exactness,
    /// How far logits may be from exact arithmetic on plain weights; for classes that round.
    pub bound: Option<LogitBound>,
    /// Must be on as well.
    pub requires: &'static [Optimization],
    /// Must be off.
    pub conflicts: &'static [Optimization],
    /// Where it applies.
    pub devices: Devices,
    /// Whether `all` selects it; of several that exclude one another it selects one.
    pub in_all: bool,
    /// Completes "engages when ..".
    pub engages_when: &'static str,
    /// What its counter of use counts.
    pub counts: &'static str,
    /// Paper or URL.
    pub source: &'static str,
}

impl Spec {
    /// What the switches of the keys' and values' type have in common.
    pub(super) const KV_TYPE: Self = Self {
        name: "",
        summary: "",
        slot: Slot::KvType,
        baseline: "model type",
        saves: &[Saving::Memory, Saving::Time],
        exactness: Exactness::Lossy,
        bound: None,
        requires: &[Optimization::PagedKv, Optimization::FlashAttention],
        conflicts: &[],
        devices: Devices::Cpu,
        in_all: false,
        engages_when: "a token is stored",
        counts: "",
        source: "",
    };

    /// What the switches of the weight type slot have in common. None is in `all`: on a quantized checkpoint, such as
    /// the built-in one, they have nothing to convert.
    pub(super) const WEIGHTS: Self = Self {
        name: "",
        summary: "",
        slot: Slot::WeightType,
        baseline: "as in the checkpoint",
        saves: &[Saving::Memory, Saving::Time],
        exactness: Exactness::Lossy,
        bound: None,
        requires: &[Optimization::FastLinear],
        conflicts: &[],
        devices: Devices::All,
        in_all: false,
        engages_when: "a token is computed and a projection of the checkpoint is dense",
        counts: "tokens through converted weights",
        source: "",
    };

    /// What the switches for kernels on a GPU that are not batch-invariant have in common.
    pub(super) const BATCH_VARIANT: Self = Self {
        name: "",
        summary: "",
        slot: Slot::Products,
        baseline: "own kernels",
        saves: &[Saving::Time],
        exactness: Exactness::Tolerance,
        bound: Some(LogitBound::KERNEL),
        requires: &[Optimization::FusedOps],
        conflicts: &[],
        devices: Devices::Cuda,
        in_all: true,
        engages_when: "",
        counts: "",
        source: "",
    };
}

/// A part of the engine with more than one implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Slot {
    /// Who runs in a step.
    Scheduler,
    /// How much of a prompt runs in a step.
    Prefill,
    /// How the KV cache is laid out.
    KvLayout,
    /// What becomes of computed prompts.
    PrefixReuse,
    /// How keys and values are stored.
    KvType,
    /// How queries meet keys.
    Attention,
    /// How projections are computed.
    Linear,
    /// What projections hold their weights as.
    WeightType,
    /// How the small ops between them are computed.
    Pointwise,
    /// How products of many rows are computed.
    Products,
    /// Own products of many rows.
    WideProducts,
    /// What products of many rows read their inputs as.
    ActivationType,
    /// How decode attention cuts contexts.
    DecodeSplits,
    /// How the ops of a step are started.
    Execution,
    /// When a step begins.
    StepLoop,
    /// How a checkpoint comes into memory.
    Loading,
    /// Which threads compute.
    Threads,
    /// How a token is drawn.
    Sampler,
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scheduler => "scheduler",
            Self::Prefill => "prefill",
            Self::KvLayout => "KV layout",
            Self::PrefixReuse => "prefix reuse",
            Self::KvType => "KV type",
            Self::Attention => "attention",
            Self::Linear => "linear",
            Self::WeightType => "weight type",
            Self::Pointwise => "pointwise",
            Self::Products => "large products",
            Self::WideProducts => "wide products",
            Self::ActivationType => "activation type",
            Self::DecodeSplits => "decode splits",
            Self::Execution => "execution",
            Self::StepLoop => "step loop",
            Self::Loading => "loading",
            Self::Threads => "CPU threads",
            Self::Sampler => "sampler",
        })
    }
}

/// What an optimization saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Saving {
    /// Time.
    Time,
    /// Memory.
    Memory,
}

/// How outputs compare with the baseline's, strict to loose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Exactness {
    /// Every logit has the same bits.
    Bitwise,
    /// Every token is the same.
    SameTokens,
    /// Logits differ by rounding, within the gate's bounds.
    Tolerance,
    /// Logits differ by more, within a bound of its own.
    Lossy,
}

impl Exactness {
    /// Whether `exact` selects it.
    pub fn is_lossless(self) -> bool {
        matches!(self, Self::Bitwise | Self::SameTokens)
    }
}

impl fmt::Display for Exactness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bitwise => "bitwise",
            Self::SameTokens => "same tokens",
            Self::Tolerance => "tolerance",
            Self::Lossy => "lossy",
        })
    }
}

/// Most that logits may differ from those of exact arithmetic, over the positions of a real text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitBound {
    /// Mean Kullback-Leibler divergence, nat.
    pub mean_kl: f64,
    /// The divergence that one position in a thousand may exceed, nat.
    pub high_kl: f64,
    /// Least share of positions with the same most likely token.
    pub same_top: f64,
    /// Change of the perplexity, relative.
    pub perplexity: f64,
}

impl LogitBound {
    /// Of a kernel that computes the same in another order.
    pub const KERNEL: Self = Self { mean_kl: 2e-5, high_kl: 1e-3, same_top: 0.999, perplexity: 5e-4 };

    /// Of kernels that hold activations in bf16 over a residual in f32: an eighth of what candle's bf16 loses.
    pub const BF16_KERNEL: Self = Self { mean_kl: 2e-4, high_kl: 5e-3, same_top: 0.98, perplexity: 2e-3 };
}

/// Where an optimization applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Devices {
    /// Everywhere.
    All,
    /// On CPU only.
    Cpu,
    /// On CUDA only.
    Cuda,
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "cpu, cuda",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        })
    }
}

impl Devices {
    /// Whether a device of this kind is among them.
    pub fn include(self, device: DeviceKind) -> bool {
        match self {
            Self::All => true,
            Self::Cpu => device == DeviceKind::Cpu,
            Self::Cuda => device == DeviceKind::Cuda,
        }
    }
}
