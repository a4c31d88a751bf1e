//! Weight matrices on the device, in the format that they are multiplied in.
#![allow(unsafe_code, reason = "packing and quantizing are foreign")]

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use super::buffer::DeviceBuffer;
use super::error::CudaError;
use super::ffi;
use super::gpu::{Gpu, check};
use super::staging::Staging;
use crate::Arithmetic;
use crate::linear::LinearWork;

const WEIGHTS: (&str, &str) = ("a weight matrix", "the model, or choose weights-fp8 or weights-int4");

/// A quarter of a microsecond of the memory's time.
const SMALL_BYTES: u64 = 1 << 20;

/// Rows that one thread packs at a time.
const PACK_ROWS: usize = 64;

/// How a matrix lies on the device (`aisp_format`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// As bf16.
    Bf16,
    /// e4m3, a scale for each output row.
    Fp8,
    /// 8-bit integers, a scale for each 32: GGUF's Q8_0.
    Int8,
    /// 4-bit integers, a scale and a minimum for each 32: GGUF's Q4_0, Q4_1 and Q4_K.
    Int4,
    /// e2m1, an e4m3 scale for each 16 and one for the matrix.
    Nvfp4,
}

impl WeightFormat {
    fn code(self) -> i32 {
        match self {
            Self::Bf16 => ffi::BF16,
            Self::Fp8 => ffi::FP8,
            Self::Int8 => ffi::W8G32,
            Self::Int4 => ffi::W4G32,
            Self::Nvfp4 => ffi::NVFP4,
        }
    }

    /// The format that a GGUF type packs to without loss, and the type's number in GGUF files.
    pub fn of_gguf(dtype: candle_core::quantized::GgmlDType) -> Option<(Self, i32)> {
        use candle_core::quantized::GgmlDType;
        match dtype {
            GgmlDType::Q4_0 => Some((Self::Int4, 2)),
            GgmlDType::Q4_1 => Some((Self::Int4, 3)),
            GgmlDType::Q8_0 => Some((Self::Int8, 8)),
            GgmlDType::Q4K => Some((Self::Int4, 12)),
            _ => None,
        }
    }
}

/// `W [n, k]`: `n` output features, `k` input features.
#[derive(Debug)]
pub struct DeviceWeight {
    format: WeightFormat,
    n: usize,
    k: usize,
    tensor_scale: f32,
    data: DeviceBuffer<u8>,
    scales: DeviceBuffer<u8>,
}

impl DeviceWeight {
    fn empty(gpu: &Arc<Gpu>, format: WeightFormat, n: usize, k: usize) -> Result<Self, CudaError> {
        let (code, rows, width) = (format.code(), n as i32, k as i32);
        // SAFETY: plain arithmetic.
        let (data, scales) = unsafe {
            (ffi::aisp_weight_data_bytes(code, rows, width), ffi::aisp_weight_scales_bytes(code, rows, width))
        };
        Ok(Self {
            format,
            n,
            k,
            tensor_scale: 1.0,
            data: DeviceBuffer::zeroed(gpu, data, WEIGHTS)?,
            scales: DeviceBuffer::zeroed(gpu, scales, WEIGHTS)?,
        })
    }

    /// Stacks matrices of bf16 values, row-major, each with the same `k`.
    ///
    /// Errors: out of memory; rows that do not fill `[n, k]`.
    pub fn bf16(
        gpu: &Arc<Gpu>,
        staging: &mut Staging,
        n: usize,
        k: usize,
        parts: &[&[bf16]],
    ) -> Result<Self, CudaError> {
        let weight = Self::empty(gpu, WeightFormat::Bf16, n, k)?;
        let mut start = 0;
        for part in parts {
            let bytes: &[u8] = bytemuck::cast_slice(part);
            staging.upload(&weight.data, start, bytes)?;
            start += bytes.len();
        }
        match start / size_of::<bf16>() {
            actual if actual < n * k => {
                Err(CudaError::TooSmall { op: "packing weights", what: "matrix", actual, needed: n * k })
            }
            _ => Ok(weight),
        }
    }

    /// Stacks matrices of GGUF blocks, each `(ggml_type, rows, bytes)`; all must pack to `format`.
    ///
    /// Errors: out of memory; bytes that are not whole rows.
    pub fn gguf(
        gpu: &Arc<Gpu>,
        staging: &mut Staging,
        format: WeightFormat,
        k: usize,
        parts: &[(i32, usize, &[u8])],
    ) -> Result<Self, CudaError> {
        let n: usize = parts.iter().map(|(_, rows, _)| rows).sum();
        let weight = Self::empty(gpu, format, n, k)?;
        let (mut data, mut scales) = (vec![0u8; weight.data.len()], vec![0u8; weight.scales.len()]);
        let mut start = 0;
        for &(ggml_type, rows, blocks) in parts {
            pack(ggml_type, start..start + rows, k, blocks, &mut data, &mut scales)?;
            start += rows;
        }
        staging.upload(&weight.data, 0, &data)?;
        staging.upload(&weight.scales, 0, &scales)?;
        Ok(weight)
    }

    /// Normal values from a seed, made on the device. A stack of matrices is drawn matrix by matrix: `(rows, seed, std)`.
    ///
    /// Errors: out of memory.
    pub fn random(gpu: &Arc<Gpu>, k: usize, parts: &[(usize, u64, f32)]) -> Result<Self, CudaError> {
        let n = parts.iter().map(|(rows, ..)| rows).sum();
        let weight = Self::empty(gpu, WeightFormat::Bf16, n, k)?;
        let mut start = 0;
        for &(rows, seed, std) in parts {
            let target = weight.data.slice(start * k * 2..(start + rows) * k * 2);
            let out = target.at_least("drawing weights", "matrix", rows * k * 2)?;
            // SAFETY: the target has this many values.
            let code = unsafe { ffi::aisp_fill_normal(gpu.ctx(), out.cast(), rows * k, seed, 0.0, std, gpu.stream()) };
            check("drawing weights", code)?;
            start += rows;
        }
        Ok(weight)
    }

    /// The same matrix in a coarser format.
    ///
    /// Errors: out of memory; a matrix that is not bf16.
    pub fn quantized(&self, gpu: &Arc<Gpu>, format: WeightFormat) -> Result<Self, CudaError> {
        let mut weight = Self::empty(gpu, format, self.n, self.k)?;
        if format == WeightFormat::Nvfp4 {
            let most = DeviceBuffer::<f32>::zeroed(gpu, 1, WEIGHTS)?;
            // SAFETY: the matrix has this many values, and `most` is a place for the result.
            let code = unsafe {
                ffi::aisp_absmax(gpu.ctx(), self.data.ptr(), self.n * self.k, most.ptr().cast(), gpu.stream())
            };
            check("converting weights", code)?;
            weight.tensor_scale =
                most.download()?.first().copied().unwrap_or(1.0).max(f32::MIN_POSITIVE) / (448.0 * 6.0);
        }
        // SAFETY: source and targets have the sizes that the interface asks for.
        let code = unsafe {
            ffi::aisp_quantize_weight(
                gpu.ctx(),
                format.code(),
                self.n as i32,
                self.k as i32,
                self.data.ptr(),
                weight.tensor_scale,
                weight.data.ptr(),
                weight.scales.ptr(),
                gpu.stream(),
            )
        };
        check("converting weights", code)?;
        gpu.synchronize()?;
        Ok(weight)
    }

    /// Output features.
    pub fn out_features(&self) -> usize {
        self.n
    }

    /// Input features.
    pub fn in_features(&self) -> usize {
        self.k
    }

    /// How it lies.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Bytes on the device.
    pub fn num_bytes(&self) -> u64 {
        (self.data.len() + self.scales.len()) as u64
    }

    /// Whether its product moves so few bytes that its first copies hold nobody up. Kernels over bf16 and fp8 are not meant:
    /// they let their successors start early themselves.
    pub fn is_small(&self) -> bool {
        let packed = !matches!(self.format, WeightFormat::Bf16 | WeightFormat::Fp8);
        packed && self.num_bytes() <= SMALL_BYTES
    }

    /// What a product with it reads and computes at least. Every format is multiplied in bf16, unless x
    /// is in e4m3 as well.
    pub fn work(&self) -> LinearWork {
        LinearWork::new(self.k, self.n, self.num_bytes(), Arithmetic::Bf16)
    }

    pub(super) fn raw(&self) -> ffi::Weight {
        ffi::Weight {
            format: self.format.code(),
            n: self.n as i32,
            k: self.k as i32,
            tensor_scale: self.tensor_scale,
            data: self.data.ptr(),
            scales: self.scales.ptr(),
        }
    }
}

/// Packs rows of blocks into their places of the images of a whole matrix.
fn pack(
    ggml_type: i32,
    rows: Range<usize>,
    k: usize,
    blocks: &[u8],
    data: &mut [u8],
    scales: &mut [u8],
) -> Result<(), CudaError> {
    let (data_address, scales_address) = (data.as_mut_ptr() as usize, scales.as_mut_ptr() as usize);
    let row_bytes = blocks.len() / rows.len().max(1);
    let parts: Vec<usize> = rows.clone().step_by(PACK_ROWS).collect();
    let packed = parts.into_par_iter().map(|begin| {
        let end = (begin + PACK_ROWS).min(rows.end);
        let source = &blocks[(begin - rows.start) * row_bytes..(end - rows.start) * row_bytes];
        // SAFETY: rows are independent, so threads write different places of the images, whose sizes the interface
        // gave for at least `rows.end` rows; `source` holds the blocks of exactly these rows.
        let code = unsafe {
            ffi::aisp_pack_gguf_rows(
                ggml_type,
                begin as i32,
                end as i32,
                k as i32,
                source.as_ptr().cast(),
                data_address as *mut c_void,
                scales_address as *mut c_void,
            )
        };
        check("packing weights", code)
    });
    packed.collect()
}
