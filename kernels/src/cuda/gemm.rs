//! Products of many rows by cuBLASLt. Faster than our own from some 64 rows up; not batch-invariant: which algorithm
//! runs depends on the number of rows.
#![allow(unsafe_code, reason = "cuBLASLt is foreign")]

use std::ffi::c_void;
use std::sync::Arc;

use half::bf16;

use super::buffer::{DeviceBuffer, DeviceSlice};
use super::error::CudaError;
use super::ffi;
use super::gpu::{Gpu, check};
use super::weight::{DeviceWeight, WeightFormat};

const WORKSPACE: (&str, &str) = ("the workspace of matrix products", "--gpu-memory-utilization");

/// Bytes that cuBLASLt may use.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Codes of what cuBLASLt does not know or not do: its statuses `INVALID_VALUE`, `ARCH_MISMATCH` and `NOT_SUPPORTED`.
const NOT_MULTIPLIED: [i32; 3] = [100_007, 100_008, 100_015];

/// What a product multiplies; it sums in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GemmOperands {
    /// x and weight in bf16; a weight of another format is expanded first.
    Bf16,
    /// x and weight in e4m3, with a scale for each row of either.
    Fp8,
}

impl GemmOperands {
    fn code(self) -> i32 {
        match self {
            Self::Bf16 => ffi::BF16,
            Self::Fp8 => ffi::FP8,
        }
    }

    /// The switch that asks for them.
    fn switch(self) -> &'static str {
        match self {
            Self::Bf16 => "library-gemm",
            Self::Fp8 => "activations-fp8",
        }
    }

    fn check(self, op: &'static str, code: i32) -> Result<(), CudaError> {
        match self {
            Self::Fp8 if NOT_MULTIPLIED.contains(&code) => {
                Err(CudaError::NotMultiplied { what: "fp8 with a scale a row", switch: self.switch() })
            }
            _ => check(op, code),
        }
    }
}

/// Rows in e4m3 as [`Gpu::quantize_rows`] leaves them: x is code times scale.
#[derive(Debug, Clone, Copy)]
pub struct Fp8Rows<'a> {
    /// `[num_rows, k]`, in the order of fp8 weights.
    pub codes: DeviceSlice<'a, u8>,
    /// `[num_rows]`.
    pub scales: DeviceSlice<'a, f32>,
}

/// The x of a product, of the type that its plan was made for; and where an op before it leaves that.
#[derive(Debug, Clone, Copy)]
pub enum GemmInput<'a> {
    /// `[num_rows, k]`.
    Bf16(DeviceSlice<'a, bf16>),
    /// Of so many rows.
    Fp8(Fp8Rows<'a>),
}

impl GemmInput<'_> {
    /// Its addresses, for an op that writes `num_rows` of `k` values.
    pub(super) fn raw(self, op: &'static str, num_rows: usize, k: usize) -> Result<ffi::RowsOut, CudaError> {
        let nothing =
            ffi::RowsOut { x: std::ptr::null_mut(), codes: std::ptr::null_mut(), scales: std::ptr::null_mut() };
        Ok(match self {
            Self::Bf16(x) => ffi::RowsOut { x: x.at_least(op, "out", num_rows * k)?.cast(), ..nothing },
            Self::Fp8(rows) => ffi::RowsOut {
                codes: rows.codes.at_least(op, "codes", num_rows * k)?,
                scales: rows.scales.at_least(op, "scales", num_rows)?,
                ..nothing
            },
        })
    }
}

/// What a product of cuBLASLt leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GemmOutput {
    /// bf16 values.
    Bf16,
    /// f32 values.
    F32,
    /// f32 values, added to those that are there.
    Add,
}

impl GemmOutput {
    fn code(self) -> i32 {
        match self {
            Self::Bf16 => ffi::GEMM_BF16,
            Self::F32 => ffi::GEMM_F32,
            Self::Add => ffi::GEMM_ADD,
        }
    }
}

/// What a weight of another format is expanded into before a product, and what cuBLASLt works in. One for all layers.
#[derive(Debug)]
pub struct GemmScratch {
    workspace: DeviceBuffer<u8>,
    weight: DeviceBuffer<bf16>,
}

impl GemmScratch {
    /// Room for a weight of up to `weight_values` values that has to be expanded; 0 where all are bf16.
    ///
    /// Errors: out of memory.
    pub fn new(gpu: &Arc<Gpu>, weight_values: usize) -> Result<Self, CudaError> {
        Ok(Self {
            workspace: DeviceBuffer::zeroed(gpu, WORKSPACE_BYTES, WORKSPACE)?,
            weight: DeviceBuffer::zeroed(gpu, weight_values, WORKSPACE)?,
        })
    }
}

/// The plans of one shape of weights, `[n, k]`.
#[derive(Debug)]
pub struct Gemm {
    gpu: Arc<Gpu>,
    gemm: *mut ffi::Gemm,
    operands: GemmOperands,
    n: usize,
    k: usize,
}

/// Addresses of what a product reads and writes; scales are null for bf16.
struct Addresses {
    x: *const c_void,
    x_scales: *const f32,
    w: *const c_void,
    w_scales: *const f32,
    out: *mut c_void,
}

// SAFETY: used by one thread at a time, which owns it.
unsafe impl Send for Gemm {}

impl Gemm {
    /// Plans for a shape.
    ///
    /// Errors: cuBLASLt is not there.
    pub fn new(
        gpu: &Arc<Gpu>,
        n: usize,
        k: usize,
        operands: GemmOperands,
        output: GemmOutput,
    ) -> Result<Self, CudaError> {
        if !gpu.has_cublaslt() {
            let message = format!("{} needs it", operands.switch());
            return Err(CudaError::MissingLibrary { library: "libcublasLt.so".into(), message });
        }
        let mut gemm = std::ptr::null_mut();
        // SAFETY: `gemm` is a place for the result.
        let code = unsafe {
            let (operands, output) = (operands.code(), output.code());
            ffi::aisp_gemm_create(gpu.ctx(), operands, output, n as i32, k as i32, &mut gemm)
        };
        check("planning a matrix product", code)?;
        Ok(Self { gpu: gpu.clone(), gemm, operands, n, k })
    }

    /// Rows of `x [num_rows, k]` as this plan reads them: for one in e4m3 they are put into `rounded`.
    ///
    /// Errors: as [`Gpu::quantize_rows`].
    pub fn input<'a>(
        &self,
        num_rows: usize,
        x: DeviceSlice<'a, bf16>,
        rounded: Fp8Rows<'a>,
    ) -> Result<GemmInput<'a>, CudaError> {
        match self.operands {
            GemmOperands::Bf16 => Ok(GemmInput::Bf16(x)),
            GemmOperands::Fp8 => {
                self.gpu.quantize_rows(x, num_rows, self.k, rounded)?;
                Ok(GemmInput::Fp8(rounded))
            }
        }
    }

    /// Times what cuBLASLt offers for `num_rows` and keeps the fastest for calls of up to as many.
    ///
    /// Shapes: `x [num_rows, k]`, `weight [n, k]`, `out` as for [`Gemm::run`], which is left with anything; `flush` is overwritten
    /// before each timing, so that weights are not in the cache.
    /// Errors: operands that are too small or of another type; fp8 where cuBLASLt has none; a product that failed.
    pub fn tune<T>(
        &mut self,
        num_rows: usize,
        x: GemmInput<'_>,
        weight: &DeviceWeight,
        scratch: &GemmScratch,
        out: DeviceSlice<'_, T>,
        flush: DeviceSlice<'_, u8>,
    ) -> Result<f32, CudaError> {
        const OP: &str = "timing matrix products";
        let at = self.addresses(OP, num_rows, x, weight, scratch, out)?;
        let mut best_us = 0.0;
        let flush_bytes = flush.len();
        let flush = flush.at_least(OP, "flush", flush_bytes)?;
        // SAFETY: operands have the sizes of the shape.
        let code = unsafe {
            ffi::aisp_gemm_tune(
                self.gemm,
                num_rows as i32,
                at.x,
                at.x_scales,
                at.w,
                at.w_scales,
                at.out,
                scratch.workspace.ptr(),
                scratch.workspace.len(),
                flush.cast(),
                flush_bytes,
                self.gpu.stream(),
                &mut best_us,
            )
        };
        self.operands.check(OP, code)?;
        Ok(best_us)
    }

    /// `out [num_rows, n] = x [num_rows, k] W^T`, or `+=`.
    ///
    /// Errors: as [`Gemm::tune`].
    pub fn run<T>(
        &self,
        num_rows: usize,
        x: GemmInput<'_>,
        weight: &DeviceWeight,
        scratch: &GemmScratch,
        out: DeviceSlice<'_, T>,
    ) -> Result<(), CudaError> {
        const OP: &str = "a matrix product";
        let at = self.addresses(OP, num_rows, x, weight, scratch, out)?;
        // SAFETY: operands have the sizes of the shape.
        let code = unsafe {
            ffi::aisp_gemm_run(
                self.gemm,
                num_rows as i32,
                at.x,
                at.x_scales,
                at.w,
                at.w_scales,
                at.out,
                scratch.workspace.ptr(),
                scratch.workspace.len(),
                self.gpu.stream(),
            )
        };
        self.operands.check(OP, code)
    }

    /// Addresses of what a product of `num_rows` reads and writes, large enough for it.
    fn addresses<T>(
        &self,
        op: &'static str,
        num_rows: usize,
        x: GemmInput<'_>,
        weight: &DeviceWeight,
        scratch: &GemmScratch,
        out: DeviceSlice<'_, T>,
    ) -> Result<Addresses, CudaError> {
        let num_values = num_rows * self.k;
        let out = out.at_least(op, "out", num_rows * self.n)?.cast();
        match (self.operands, x) {
            (GemmOperands::Bf16, GemmInput::Bf16(x)) => Ok(Addresses {
                x: x.at_least(op, "x", num_values)?.cast_const().cast(),
                x_scales: std::ptr::null(),
                w: self.bf16_weight(op, weight, scratch)?,
                w_scales: std::ptr::null(),
                out,
            }),
            (GemmOperands::Fp8, GemmInput::Fp8(x)) => {
                let weight = self.fp8_weight(op, weight)?;
                Ok(Addresses {
                    x: x.codes.at_least(op, "codes of x", num_values)?.cast_const().cast(),
                    x_scales: x.scales.at_least(op, "scales of x", num_rows)?,
                    w: weight.data,
                    w_scales: weight.scales.cast(),
                    out,
                })
            }
            _ => Err(CudaError::TooSmall { op, what: "x of the plan's type", actual: 0, needed: num_values }),
        }
    }

    fn check_shape(&self, op: &'static str, weight: &DeviceWeight) -> Result<(), CudaError> {
        let sizes =
            [("weight's rows", weight.out_features(), self.n), ("weight's columns", weight.in_features(), self.k)];
        match sizes.into_iter().find(|(_, actual, needed)| actual != needed) {
            Some((what, actual, needed)) => Err(CudaError::TooSmall { op, what, actual, needed }),
            None => Ok(()),
        }
    }

    fn fp8_weight(&self, op: &'static str, weight: &DeviceWeight) -> Result<ffi::Weight, CudaError> {
        self.check_shape(op, weight)?;
        match weight.format() {
            WeightFormat::Fp8 => Ok(weight.raw()),
            _ => Err(CudaError::TooSmall { op, what: "weight in fp8", actual: 0, needed: self.n * self.k }),
        }
    }

    fn bf16_weight(
        &self,
        op: &'static str,
        weight: &DeviceWeight,
        scratch: &GemmScratch,
    ) -> Result<*const c_void, CudaError> {
        self.check_shape(op, weight)?;
        let raw = weight.raw();
        if weight.format() == WeightFormat::Bf16 {
            return Ok(raw.data);
        }
        let expanded = scratch.weight.all().at_least(op, "scratch", self.n * self.k)?;
        // SAFETY: the scratch has room for the matrix.
        check(op, unsafe { ffi::aisp_dequantize(self.gpu.ctx(), &raw, expanded.cast(), self.gpu.stream()) })?;
        Ok(expanded.cast_const().cast())
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        // SAFETY: made by `new`, closed once.
        unsafe { ffi::aisp_gemm_destroy(self.gemm) };
    }
}
