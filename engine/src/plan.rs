//! The choice made for every slot: plain data, printed in every report and stored with every measurement.

/// One field a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plan {
    /// Who runs in a step.
    pub scheduler: SchedulerKind,
    /// How the KV cache is laid out.
    pub kv_layout: KvLayout,
    /// How a token is drawn.
    pub sampler: SamplerKind,
}

impl Plan {
    /// The plain choice everywhere.
    pub const BASELINE: Self =
        Self { scheduler: SchedulerKind::StaticBatching, kv_layout: KvLayout::Contiguous, sampler: SamplerKind::Sort };
}

/// Choices of the scheduler slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SchedulerKind {
    /// A batch is formed when the last one is done.
    StaticBatching,
    /// Sequences join at any step.
    ContinuousBatching,
}

/// Choices of the KV layout slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvLayout {
    /// One run of slots a sequence.
    Contiguous,
    /// Blocks.
    Paged,
}

/// Choices of the sampler slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SamplerKind {
    /// The whole vocabulary is sorted.
    Sort,
    /// Only tokens that can matter are sorted.
    Candidates,
}
