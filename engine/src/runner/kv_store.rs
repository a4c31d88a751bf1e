//! The memory of the KV cache in its two layouts. Both use the same pool; they differ in where tokens lie.

use aisp_kernels::attention::padded_len;
use candle_core::{DType, Device, Result, Tensor};

use super::step_input::{SequenceInput, StepInput};
use crate::kv_cache::{BLOCK_SIZE, BlockCopy, BlockId, KvPlacement};
use crate::model::ModelConfig;
use crate::optimizations::Optimization;

/// Keys and values of every layer, `[num_slots, num_kv_heads, head_dim]` each. Zeroed, so that padding is finite.
#[derive(Debug)]
pub struct KvPool {
    layers: Vec<(Tensor, Tensor)>,
}

impl KvPool {
    /// Allocates the pool. On CPU the system hands out its pages on first use.
    ///
    /// Errors: out of memory.
    pub fn new(config: &ModelConfig, num_slots: usize, dtype: DType, device: &Device) -> Result<Self> {
        let shape = (num_slots, config.num_kv_heads, config.head_dim);
        let layer = |_| Ok((Tensor::zeros(shape, dtype, device)?, Tensor::zeros(shape, dtype, device)?));
        Ok(Self { layers: (0..config.num_layers).map(layer).collect::<Result<_>>()? })
    }

    /// Copies rows of this step's keys and values to consecutive slots.
    fn copy_in(&self, layer: usize, k: &Tensor, v: &Tensor, from_row: usize, len: usize, slot: usize) -> Result<()> {
        let (pool_k, pool_v) = &self.layers[layer];
        pool_k.slice_set(&k.narrow(0, from_row, len)?, 0, slot)?;
        pool_v.slice_set(&v.narrow(0, from_row, len)?, 0, slot)
    }
}

/// Reads and writes keys and values by position.
pub trait KvStore: Send {
    /// Copies whole blocks in every layer.
    ///
    /// Errors: a layout without blocks, which the default stands for.
    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<()> {
        match copies {
            [] => Ok(()),
            [copy, ..] => candle_core::bail!("block {} is to be copied in a layout without blocks", copy.from.0),
        }
    }

    /// Stores the keys and values of a step.
    ///
    /// Shapes: `k`, `v [num_tokens, num_kv_heads, head_dim]`.
    /// Errors: a placement of the other layout.
    fn write(&mut self, layer: usize, k: &Tensor, v: &Tensor, input: &StepInput) -> Result<()>;

    /// The keys and values of a sequence up to the end of the step.
    ///
    /// Shapes: both `[padded_len(context_len), num_kv_heads, head_dim]`.
    /// Errors: a placement of the other layout.
    fn read(&self, layer: usize, sequence: &SequenceInput) -> Result<(Tensor, Tensor)>;

    /// The optimization that this layout is, if it is one.
    fn optimization(&self) -> Option<Optimization>;
}

/// Baseline: a sequence is one run of slots and is read in place.
#[derive(Debug)]
pub struct ContiguousStore {
    pool: KvPool,
}

impl ContiguousStore {
    /// Over a pool.
    pub fn new(pool: KvPool) -> Self {
        Self { pool }
    }

    fn start_slot(sequence: &SequenceInput) -> Result<usize> {
        match &sequence.placement {
            KvPlacement::Contiguous { start_slot } => Ok(*start_slot),
            KvPlacement::Paged { .. } => candle_core::bail!("request {} lies in blocks", sequence.id),
        }
    }
}

impl KvStore for ContiguousStore {
    fn write(&mut self, layer: usize, k: &Tensor, v: &Tensor, input: &StepInput) -> Result<()> {
        for sequence in &input.sequences {
            let slot = Self::start_slot(sequence)? + sequence.query_start;
            self.pool.copy_in(layer, k, v, sequence.rows.start, sequence.rows.len(), slot)?;
        }
        Ok(())
    }

    fn read(&self, layer: usize, sequence: &SequenceInput) -> Result<(Tensor, Tensor)> {
        let (k, v) = &self.pool.layers[layer];
        let (start, len) = (Self::start_slot(sequence)?, padded_len(sequence.context_len()));
        Ok((k.narrow(0, start, len)?, v.narrow(0, start, len)?))
    }

    fn optimization(&self) -> Option<Optimization> {
        None
    }
}

/// Optimized for memory: a sequence is a list of blocks, gathered when it is read.
#[derive(Debug)]
pub struct PagedStore {
    pool: KvPool,
}

impl PagedStore {
    /// Over a pool.
    pub fn new(pool: KvPool) -> Self {
        Self { pool }
    }

    fn block_table(sequence: &SequenceInput) -> Result<&[BlockId]> {
        match &sequence.placement {
            KvPlacement::Paged { block_table } => Ok(block_table),
            KvPlacement::Contiguous { .. } => candle_core::bail!("request {} lies in one run", sequence.id),
        }
    }
}

impl KvStore for PagedStore {
    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<()> {
        for copy in copies {
            let (from, to) = (copy.from.0 as usize * BLOCK_SIZE, copy.to.0 as usize * BLOCK_SIZE);
            for (k, v) in &self.pool.layers {
                // Copied out first: source and target are parts of one tensor.
                k.slice_set(&k.narrow(0, from, BLOCK_SIZE)?.copy()?, 0, to)?;
                v.slice_set(&v.narrow(0, from, BLOCK_SIZE)?.copy()?, 0, to)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, layer: usize, k: &Tensor, v: &Tensor, input: &StepInput) -> Result<()> {
        for sequence in &input.sequences {
            let table = Self::block_table(sequence)?;
            let mut done = 0;
            while done < sequence.rows.len() {
                let position = sequence.query_start + done;
                let len = (BLOCK_SIZE - position % BLOCK_SIZE).min(sequence.rows.len() - done);
                let slot = table[position / BLOCK_SIZE].0 as usize * BLOCK_SIZE + position % BLOCK_SIZE;
                self.pool.copy_in(layer, k, v, sequence.rows.start + done, len, slot)?;
                done += len;
            }
        }
        Ok(())
    }

    fn read(&self, layer: usize, sequence: &SequenceInput) -> Result<(Tensor, Tensor)> {
        let table = Self::block_table(sequence)?;
        let len = padded_len(sequence.context_len());
        // The padding may reach past the table; any block does there, its values are masked.
        let blocks: Vec<u32> =
            (0..len / BLOCK_SIZE).map(|i| table.get(i).or(table.first()).map_or(0, |block| block.0)).collect();
        let (k, v) = &self.pool.layers[layer];
        let blocks = Tensor::new(blocks, k.device())?;
        let gather = |pool: &Tensor| {
            let (num_slots, num_kv_heads, head_dim) = pool.dims3()?;
            let pool = pool.narrow(0, 0, num_slots / BLOCK_SIZE * BLOCK_SIZE)?;
            let pool = pool.reshape((num_slots / BLOCK_SIZE, BLOCK_SIZE, num_kv_heads, head_dim))?;
            pool.index_select(&blocks, 0)?.reshape((len, num_kv_heads, head_dim))
        };
        Ok((gather(k)?, gather(v)?))
    }

    fn optimization(&self) -> Option<Optimization> {
        Some(Optimization::PagedKv)
    }
}
