//! Attention over the KV cache as one slot: store the step's keys and values, then attend.

use aisp_kernels::attention::flash::{FlashCall, FlashParams, FlashScratch, flash_attention};
use aisp_kernels::attention::{self, AttentionParams};
use aisp_kernels::kv::KvBuffer;
use candle_core::{Result, Tensor};

use super::block_layout::BlockLayout;
use super::kv_store::KvStore;
use super::step_input::StepInput;
use crate::compute::Compute;
use crate::kv_cache::BlockCopy;
use crate::optimizations::Optimization;

/// Queries, keys and values of a step.
#[derive(Debug)]
pub struct Qkv {
    /// `[num_tokens, num_heads, head_dim]`.
    pub q: Tensor,
    /// `[num_tokens, num_kv_heads, head_dim]`.
    pub k: Tensor,
    /// As `k`.
    pub v: Tensor,
}

/// Attention and the memory it reads.
pub trait AttentionBackend: Send {
    /// Called once before the layers of a step: copies blocks and learns where sequences lie.
    ///
    /// Errors: a placement of the other layout.
    fn begin_step(&mut self, input: &StepInput) -> Result<()>;

    /// Stores keys and values, and attends.
    ///
    /// Shapes: the result is as `q`.
    /// Errors: a failed op.
    fn forward(&mut self, layer: usize, qkv: &Qkv, input: &StepInput, sliding_window: Option<usize>) -> Result<Tensor>;

    /// The optimizations that ran in a step.
    fn optimizations(&self) -> &[Optimization];
}

/// Baseline: scores of a sequence are materialised in candle ops.
pub struct MaterialisedAttention {
    kv: Box<dyn KvStore>,
    optimizations: Vec<Optimization>,
}

impl MaterialisedAttention {
    /// Over a store.
    pub fn new(kv: Box<dyn KvStore>) -> Self {
        Self { optimizations: kv.optimization().into_iter().collect(), kv }
    }
}

impl AttentionBackend for MaterialisedAttention {
    fn begin_step(&mut self, input: &StepInput) -> Result<()> {
        copy_blocks(self.kv.as_mut(), &input.copies)
    }

    fn forward(&mut self, layer: usize, qkv: &Qkv, input: &StepInput, sliding_window: Option<usize>) -> Result<Tensor> {
        self.kv.write(layer, &qkv.k, &qkv.v, input)?;
        let scale = 1.0 / (qkv.q.dim(2)? as f64).sqrt();
        let mut outputs = Vec::with_capacity(input.sequences.len());
        for sequence in &input.sequences {
            let (k, v) = self.kv.read(layer, sequence)?;
            let params = AttentionParams { query_start: sequence.query_start, scale, sliding_window };
            let q = qkv.q.narrow(0, sequence.rows.start, sequence.rows.len())?;
            outputs.push(attention::materialised(&q, &k, &v, params)?);
        }
        Tensor::cat(&outputs, 0)
    }

    fn optimizations(&self) -> &[Optimization] {
        &self.optimizations
    }
}

fn copy_blocks(kv: &mut dyn KvStore, copies: &[BlockCopy]) -> Result<()> {
    if copies.is_empty() { Ok(()) } else { kv.copy_blocks(copies) }
}

/// Optimized: online softmax over tiles, read from the blocks in place, in the type they are stored in.
pub struct FlashAttention {
    kv: KvBuffer,
    scratch: FlashScratch,
    layout: BlockLayout,
    compute: Compute,
    optimizations: Vec<Optimization>,
}

impl FlashAttention {
    /// Over a pool; `optimizations` are those that it and its type stand for.
    pub fn new(kv: KvBuffer, compute: Compute, optimizations: Vec<Optimization>) -> Self {
        Self { kv, scratch: FlashScratch::new(), layout: BlockLayout::default(), compute, optimizations }
    }
}

impl AttentionBackend for FlashAttention {
    fn begin_step(&mut self, input: &StepInput) -> Result<()> {
        for copy in &input.copies {
            self.kv.copy_block(copy.from.0, copy.to.0)?;
        }
        self.layout.update(input)
    }

    fn forward(&mut self, layer: usize, qkv: &Qkv, _: &StepInput, sliding_window: Option<usize>) -> Result<Tensor> {
        let values = |x: &Tensor| x.contiguous()?.flatten_all()?.to_vec1::<f32>();
        let (q, k, v) = (values(&qkv.q)?, values(&qkv.k)?, values(&qkv.v)?);
        let Compute { isa, team } = &self.compute;
        self.kv.store(layer, &k, &v, &self.layout.slots, *isa, team.as_ref())?;
        let (_, num_heads, head_dim) = qkv.q.dims3()?;
        let params = FlashParams { num_heads, scale: 1.0 / (head_dim as f32).sqrt(), sliding_window };
        let mut out = vec![0f32; q.len()];
        let BlockLayout { sequences, tables, .. } = &self.layout;
        let call = FlashCall { kv: &self.kv, layer, sequences, block_tables: tables, params };
        flash_attention(&q, &mut out, call, &mut self.scratch, *isa, team.as_ref())?;
        Tensor::from_vec(out, qkv.q.dims(), qkv.q.device())
    }

    fn optimizations(&self) -> &[Optimization] {
        &self.optimizations
    }
}
