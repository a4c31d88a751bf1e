//! The pool of keys and values of all layers.

use std::sync::Arc;

use super::buffer::DeviceBuffer;
use super::error::CudaError;
use super::ffi;
use super::gpu::Gpu;

/// Token slots in a block; the engine's block size.
pub(super) const BLOCK_SIZE: usize = 16;

const KV: (&str, &str) = ("the KV cache", "--gpu-memory-utilization or --kv-cache-memory-bytes");

/// What keys and values are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CudaKvType {
    /// 16 bits.
    Bf16,
    /// 8 bits (e4m3), a scale for each head of a token.
    Fp8,
    /// 4 bits (e2m1), a bf16 scale for each 16 values: the numbers that [`crate::kv::KvType::Fp4`] holds.
    Fp4,
}

impl CudaKvType {
    fn code(self) -> i32 {
        match self {
            Self::Bf16 => ffi::KV_BF16,
            Self::Fp8 => ffi::KV_FP8,
            Self::Fp4 => ffi::KV_FP4,
        }
    }

    /// Bytes of the keys, and again of the values, of one token and head.
    fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::Bf16 => 2 * head_dim,
            Self::Fp8 => head_dim,
            Self::Fp4 => head_dim / 2,
        }
    }

    /// Bytes of their scales.
    fn scale_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::Bf16 => 0,
            Self::Fp8 => size_of::<f32>(),
            Self::Fp4 => head_dim / 16 * size_of::<u16>(),
        }
    }
}

/// How large the pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaKvShape {
    /// Layers.
    pub num_layers: usize,
    /// Blocks of 16 tokens.
    pub num_blocks: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Values in a head; a multiple of 16, at most 256.
    pub head_dim: usize,
    /// How they are stored.
    pub kv_type: CudaKvType,
}

impl CudaKvShape {
    /// Bytes of one token in all layers.
    pub fn bytes_per_token(&self) -> usize {
        let head = self.kv_type.row_bytes(self.head_dim) + self.kv_type.scale_bytes(self.head_dim);
        2 * self.num_layers * self.num_kv_heads * head
    }
}

#[derive(Debug)]
struct Layer {
    k: DeviceBuffer<u8>,
    v: DeviceBuffer<u8>,
    k_scales: DeviceBuffer<u8>,
    v_scales: DeviceBuffer<u8>,
}

/// Keys and values, `[num_blocks, num_kv_heads, 16, head_dim]` each, in every layer.
#[derive(Debug)]
pub struct CudaKv {
    shape: CudaKvShape,
    layers: Vec<Layer>,
}

impl CudaKv {
    /// Allocates and clears the pool.
    ///
    /// Errors: out of memory, with the flag to lower.
    pub fn new(gpu: &Arc<Gpu>, shape: CudaKvShape) -> Result<Self, CudaError> {
        let rows = shape.num_blocks * shape.num_kv_heads * BLOCK_SIZE;
        let row_bytes = rows * shape.kv_type.row_bytes(shape.head_dim);
        let scale_bytes = rows * shape.kv_type.scale_bytes(shape.head_dim);
        let layer = |_| {
            Ok(Layer {
                k: DeviceBuffer::zeroed(gpu, row_bytes, KV)?,
                v: DeviceBuffer::zeroed(gpu, row_bytes, KV)?,
                k_scales: DeviceBuffer::zeroed(gpu, scale_bytes, KV)?,
                v_scales: DeviceBuffer::zeroed(gpu, scale_bytes, KV)?,
            })
        };
        Ok(Self { shape, layers: (0..shape.num_layers).map(layer).collect::<Result<_, CudaError>>()? })
    }

    /// How large it is.
    pub fn shape(&self) -> CudaKvShape {
        self.shape
    }

    pub(super) fn raw(&self, layer: usize) -> ffi::KvLayer {
        let part = &self.layers[layer];
        let scales = |buffer: &DeviceBuffer<u8>| if buffer.is_empty() { std::ptr::null_mut() } else { buffer.ptr() };
        ffi::KvLayer {
            k: part.k.ptr(),
            v: part.v.ptr(),
            k_scales: scales(&part.k_scales),
            v_scales: scales(&part.v_scales),
            kv_format: self.shape.kv_type.code(),
            num_kv_heads: self.shape.num_kv_heads as i32,
            head_dim: self.shape.head_dim as i32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_llama_8b_takes_131_kb() {
        let shape =
            CudaKvShape { num_layers: 32, num_blocks: 1, num_kv_heads: 8, head_dim: 128, kv_type: CudaKvType::Bf16 };
        assert_eq!(shape.bytes_per_token(), 131_072);
        assert_eq!(CudaKvShape { kv_type: CudaKvType::Fp8, ..shape }.bytes_per_token(), 67_584);
        assert_eq!(CudaKvShape { kv_type: CudaKvType::Fp4, ..shape }.bytes_per_token(), 40_960);
    }
}
