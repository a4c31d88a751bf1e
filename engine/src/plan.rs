//! The choice made for every slot: plain data, printed in every report and stored with every measurement.

/// One field a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plan {
    /// Who runs in a step.
    pub scheduler: SchedulerKind,
    /// How much of a prompt runs in a step.
    pub prefill: PrefillKind,
    /// How the KV cache is laid out.
    pub kv_layout: KvLayout,
    /// What becomes of computed prompts.
    pub prefix_reuse: PrefixReuse,
    /// How keys and values are stored.
    pub kv_type: KvTypeKind,
    /// How queries meet keys.
    pub attention: AttentionKind,
    /// How projections are computed.
    pub linear: LinearKind,
    /// What dense weights are held as.
    pub weights: WeightKind,
    /// How the small ops between them are computed.
    pub pointwise: PointwiseKind,
    /// How own products of many rows are computed on a GPU.
    pub wide_products: WideProductsKind,
    /// Who computes products of many rows on a GPU.
    pub products: ProductsKind,
    /// What products of many rows multiply with fp8 weights on a GPU.
    pub activations: ActivationKind,
    /// How decode attention on a GPU cuts contexts.
    pub decode_splits: DecodeSplitsKind,
    /// How the ops of a step are started.
    pub execution: ExecutionKind,
    /// When a step begins.
    pub step_loop: StepLoopKind,
    /// How a checkpoint comes into memory.
    pub loading: LoadingKind,
    /// Which threads compute.
    pub team: TeamKind,
    /// How a token is drawn.
    pub sampler: SamplerKind,
}

impl Plan {
    /// The plain choice everywhere.
    pub const BASELINE: Self = Self {
        scheduler: SchedulerKind::StaticBatching,
        prefill: PrefillKind::WholePrompt,
        kv_layout: KvLayout::Contiguous,
        prefix_reuse: PrefixReuse::None,
        kv_type: KvTypeKind::Model,
        attention: AttentionKind::Materialised,
        linear: LinearKind::Candle,
        weights: WeightKind::Checkpoint,
        pointwise: PointwiseKind::Composed,
        wide_products: WideProductsKind::FewRows,
        products: ProductsKind::Own,
        activations: ActivationKind::Bf16,
        decode_splits: DecodeSplitsKind::Fixed,
        execution: ExecutionKind::Eager,
        step_loop: StepLoopKind::Synchronous,
        loading: LoadingKind::Heap,
        team: TeamKind::Rayon,
        sampler: SamplerKind::Sort,
    };
}

/// Choices of the scheduler slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SchedulerKind {
    /// A batch is formed when the last one is done.
    StaticBatching,
    /// Sequences join at any step.
    ContinuousBatching,
}

/// Choices of the prefill slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PrefillKind {
    /// All of a prompt in one step.
    WholePrompt,
    /// A part of it beside running answers.
    Chunked,
}

/// Choices of the prefix reuse slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PrefixReuse {
    /// Every prompt is computed from its beginning.
    None,
    /// Full blocks are found again by their tokens.
    BlockChain,
}

/// Choices of the KV layout slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvLayout {
    /// One run of slots a sequence.
    Contiguous,
    /// Blocks.
    Paged,
}

/// Choices of the KV type slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvTypeKind {
    /// The type that the model computes in.
    Model,
    /// 16 bits.
    F16,
    /// 8 bits with a scale a row.
    Fp8,
    /// 4 bits with a scale a block.
    Fp4,
}

/// Choices of the attention slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttentionKind {
    /// Scores are materialised in candle ops.
    Materialised,
    /// Tiles with an online softmax.
    Flash,
}

/// Choices of the linear slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinearKind {
    /// candle's matrix products.
    Candle,
    /// Own kernels over weights packed at load.
    Packed,
}

/// Choices of the weight type slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightKind {
    /// As in the checkpoint.
    Checkpoint,
    /// 8-bit integers with a scale for each 32.
    Int8,
    /// 4-bit integers with a scale and a minimum for each 128.
    Int4,
    /// 8-bit floats with a scale for each row.
    Fp8,
    /// 4-bit floats with a scale for each 16.
    Fp4,
}

/// Choices of the pointwise slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PointwiseKind {
    /// One candle op after the other.
    Composed,
    /// Fused, in a workspace.
    Fused,
}

/// Choices of the loading slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LoadingKind {
    /// Every tensor is read into the heap.
    Heap,
    /// Matrices stay in the mapped file until they are packed.
    Mapped,
}

/// Choices of the slot of wide products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WideProductsKind {
    /// A few rows at a time.
    FewRows,
    /// All rows at once, by `wgmma`.
    Wgmma,
}

/// Choices of the slot of large products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProductsKind {
    /// Own kernels.
    Own,
    /// cuBLASLt.
    Library,
}

/// How the products of a step on a GPU are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Products {
    /// 64 rows at a time.
    FewRows,
    /// All rows at once, by `wgmma`.
    Wide,
    /// The same, and x in e4m3 as the weights are, but for what attention leaves.
    WideFp8,
    /// cuBLASLt.
    Library,
    /// cuBLASLt, in the layers with x in e4m3 as the weights are.
    LibraryFp8,
}

/// Choices of the activation type slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ActivationKind {
    /// As they lie between ops.
    Bf16,
    /// 8-bit floats with a scale for each row.
    Fp8,
}

/// Choices of the slot of decode splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DecodeSplitsKind {
    /// 256 positions each.
    Fixed,
    /// As many as suit the card and the batch.
    Adaptive,
}

/// Choices of the execution slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExecutionKind {
    /// One op after the other.
    Eager,
    /// Recorded steps.
    Graphs,
}

/// Choices of the step loop slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StepLoopKind {
    /// When the tokens of the one before are known.
    Synchronous,
    /// While the device still computes the one before.
    Overlapped,
}

/// Choices of the CPU threads slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TeamKind {
    /// rayon's pool.
    Rayon,
    /// A pool of our own.
    Pinned,
}

/// Choices of the sampler slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SamplerKind {
    /// The whole vocabulary is sorted.
    Sort,
    /// Only tokens that can matter are sorted.
    Candidates,
}
