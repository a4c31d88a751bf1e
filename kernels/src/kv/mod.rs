//! The pool of cached keys and values on the CPU, in the form that attention's dot products want.
//!
//! A *record* holds 16 positions of one kv head in one block of one layer. Keys are transposed, so that 16 scores fill
//! a vector without a horizontal sum; values are rows, so that a weighted sum runs along the head. Records lie
//! `[layer][block][kv_head]`, aligned to 64 bytes. `D` is `head_dim` rounded up to 32; the rest of a row stays zero.
//!
//! Errors are relative RMS, measured by the tests on gaussian rows and on rows with an outlier of 20 times in 37 values.
//!
//! | type | keys | values | scales | bytes, of f16's | error, gaussian / outliers |
//! |---|---|---|---|---|---|
//! | f32 | `[D][16]` | `[16][D]` | – | 2 | 0 |
//! | f16, bf16 | `[D][16]` | `[16][D]` | – | 1 | 2.1e-4, 1.7e-3 / 2.2e-4, 1.8e-3 |
//! | fp8 | `[D][16]` e4m3 | `[16][D]` | bf16 for each position, of K and of V | 0.52 (d = 64) | 2.6e-2 / 1.9e-2 |
//! | fp4 | `[D/2][16]` pairs of e2m1 | `[16][D/32][16]` | bf16 for each 16 values of a position | 0.31 | 9.5e-2 / 0.10 |

pub(crate) mod format;
pub(crate) mod store;
#[cfg(test)]
mod tests;

use candle_core::{Result, bail};

/// Positions in a block.
pub const BLOCK_SIZE: usize = 16;

/// How cached keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvType {
    /// As computed.
    F32,
    /// IEEE half; values beyond 65504 saturate.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// e4m3 with a bf16 scale for each position and kv head, of keys and of values.
    Fp8,
    /// e2m1 with a bf16 scale for each 16 values.
    Fp4,
}

impl KvType {
    /// Every type, the most exact first.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Fp8, Self::Fp4];

    fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::Fp8 => 8,
            Self::Fp4 => 4,
        }
    }

    /// Scales of the keys, and again of the values, of one position.
    fn scales(self, padded_dim: usize) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 0,
            Self::Fp8 => 1,
            Self::Fp4 => padded_dim / 16,
        }
    }
}

/// The shape of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Layers of the model.
    pub num_layers: usize,
    /// Blocks of [`BLOCK_SIZE`] positions in each layer.
    pub num_blocks: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
}

/// The pool. Its memory is zero and costs nothing until it is written.
#[derive(Debug)]
pub struct KvBuffer {
    bytes: Vec<u8>,
    /// First byte of `bytes` at a multiple of 64.
    start: usize,
    shape: KvShape,
    kv_type: KvType,
    layout: Layout,
}

/// Bytes of one record's parts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub padded_dim: usize,
    /// Keys, and again values.
    pub data: usize,
    /// Scales of keys, and again of values.
    pub scales: usize,
    /// Of the whole record, a multiple of 64.
    pub record: usize,
}

/// One record for reading.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    pub k: &'a [u8],
    pub v: &'a [u8],
    pub k_scales: &'a [u8],
    pub v_scales: &'a [u8],
}

impl Layout {
    fn new(head_dim: usize, kv_type: KvType) -> Self {
        let padded_dim = head_dim.next_multiple_of(32);
        let data = BLOCK_SIZE * padded_dim * kv_type.bits() / 8;
        let scales = BLOCK_SIZE * kv_type.scales(padded_dim) * 2;
        Self { padded_dim, data, scales, record: (2 * (data + scales)).next_multiple_of(64) }
    }
}

impl KvBuffer {
    /// Reserves the pool.
    ///
    /// Errors: a size that is zero or does not fit the address space.
    pub fn new(shape: KvShape, kv_type: KvType) -> Result<Self> {
        let KvShape { num_layers, num_blocks, num_kv_heads, head_dim } = shape;
        if [num_layers, num_kv_heads, head_dim].contains(&0) || head_dim > 1 << 16 {
            bail!("no KV pool of {num_layers} layers, {num_kv_heads} kv heads of {head_dim}");
        }
        let layout = Layout::new(head_dim, kv_type);
        let size = [num_layers, num_blocks, num_kv_heads].iter().try_fold(layout.record, |n, &f| n.checked_mul(f));
        let Some(size) = size.filter(|size| *size < isize::MAX as usize - 64) else {
            bail!("a KV pool of {num_layers} layers of {num_blocks} blocks does not fit the address space");
        };
        let bytes = vec![0u8; size + 64];
        let start = bytes.as_ptr().align_offset(64).min(64);
        Ok(Self { bytes, start, shape, kv_type, layout })
    }

    /// Its shape.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// How values are stored.
    pub fn kv_type(&self) -> KvType {
        self.kv_type
    }

    /// Bytes of one position in all layers, scales included.
    pub fn bytes_per_token(&self) -> usize {
        self.shape.num_layers * self.shape.num_kv_heads * self.layout.record / BLOCK_SIZE
    }

    /// Bytes of the pool.
    pub fn bytes(&self) -> usize {
        self.bytes_per_token() * BLOCK_SIZE * self.shape.num_blocks
    }

    /// Copies a block in all layers, for sequences that part after a common beginning.
    ///
    /// Errors: a block outside the pool.
    pub fn copy_block(&mut self, from: u32, to: u32) -> Result<()> {
        let num_blocks = self.shape.num_blocks;
        if from as usize >= num_blocks || to as usize >= num_blocks {
            bail!("copy of block {from} to {to} in a pool of {num_blocks}");
        }
        let len = self.shape.num_kv_heads * self.layout.record;
        for layer in 0..self.shape.num_layers {
            let at = |block: u32| self.start + (layer * num_blocks + block as usize) * len;
            let (from, to) = (at(from), at(to));
            self.bytes.copy_within(from..from + len, to);
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn same_contents(&self, other: &Self) -> bool {
        self.bytes[self.start..][..self.bytes()] == other.bytes[other.start..][..other.bytes()]
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// First byte of a record, counted from the first record.
    #[inline(always)]
    fn offset(&self, layer: usize, block: usize, kv_head: usize) -> usize {
        ((layer * self.shape.num_blocks + block) * self.shape.num_kv_heads + kv_head) * self.layout.record
    }

    #[inline(always)]
    pub(crate) fn record(&self, layer: usize, block: usize, kv_head: usize) -> Record<'_> {
        let Layout { data, scales, record, .. } = self.layout;
        let bytes = &self.bytes[self.start..][self.offset(layer, block, kv_head)..][..record];
        let (k, rest) = bytes.split_at(data);
        let (v, rest) = rest.split_at(data);
        let (k_scales, rest) = rest.split_at(scales);
        Record { k, v, k_scales, v_scales: &rest[..scales] }
    }

    /// All records, for writing.
    fn records(&mut self) -> &mut [u8] {
        let len = self.bytes();
        &mut self.bytes[self.start..][..len]
    }
}
