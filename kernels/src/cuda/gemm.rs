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

/// What a product of cuBLASLt leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GemmOutput {
    /// bf16 values.
    Bf16,
    /// f32 values.
    F32,
}

impl GemmOutput {
    fn code(self) -> i32 {
        match self {
            Self::Bf16 => ffi::BF16,
            Self::F32 => ffi::F32,
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
    n: usize,
    k: usize,
}

// SAFETY: used by one thread at a time, which owns it.
unsafe impl Send for Gemm {}

impl Gemm {
    /// Plans for a shape.
    ///
    /// Errors: cuBLASLt is not there.
    pub fn new(gpu: &Arc<Gpu>, n: usize, k: usize, output: GemmOutput) -> Result<Self, CudaError> {
        if !gpu.has_cublaslt() {
            let message = "library-gemm needs it".into();
            return Err(CudaError::MissingLibrary { library: "libcublasLt.so".into(), message });
        }
        let mut gemm = std::ptr::null_mut();
        // SAFETY: `gemm` is a place for the result.
        let code = unsafe { ffi::aisp_gemm_create(gpu.ctx(), ffi::BF16, output.code(), n as i32, k as i32, &mut gemm) };
        check("planning a matrix product", code)?;
        Ok(Self { gpu: gpu.clone(), gemm, n, k })
    }

    /// Times what cuBLASLt offers for `num_rows` and keeps the fastest for calls of up to as many.
    ///
    /// Shapes: `x [num_rows, k]`, `weight [n, k]`, `out` as for [`Gemm::run`]; `flush` is overwritten before each timing, so
    /// that weights are not in the cache.
    /// Errors: operands that are too small; a product that failed.
    pub fn tune<T>(
        &mut self,
        num_rows: usize,
        x: DeviceSlice<'_, bf16>,
        weight: &DeviceWeight,
        scratch: &GemmScratch,
        out: DeviceSlice<'_, T>,
        flush: DeviceSlice<'_, u8>,
    ) -> Result<f32, CudaError> {
        const OP: &str = "timing matrix products";
        let (x, w, out) = self.operands(OP, num_rows, x, weight, scratch, out)?;
        let mut best_us = 0.0;
        let flush_bytes = flush.len();
        let flush = flush.at_least(OP, "flush", flush_bytes)?;
        // SAFETY: operands have the sizes of the shape.
        let code = unsafe {
            ffi::aisp_gemm_tune(
                self.gemm,
                num_rows as i32,
                x,
                std::ptr::null(),
                w,
                std::ptr::null(),
                out,
                scratch.workspace.ptr(),
                scratch.workspace.len(),
                flush.cast(),
                flush_bytes,
                self.gpu.stream(),
                &mut best_us,
            )
        };
        check(OP, code)?;
        Ok(best_us)
    }

    /// `out [num_rows, n] = x [num_rows, k] W^T`; a weight that is not bf16 is expanded first.
    ///
    /// Errors: operands that are too small; a product that failed.
    pub fn run<T>(
        &self,
        num_rows: usize,
        x: DeviceSlice<'_, bf16>,
        weight: &DeviceWeight,
        scratch: &GemmScratch,
        out: DeviceSlice<'_, T>,
    ) -> Result<(), CudaError> {
        const OP: &str = "a matrix product";
        let (x, w, out) = self.operands(OP, num_rows, x, weight, scratch, out)?;
        // SAFETY: operands have the sizes of the shape.
        let code = unsafe {
            ffi::aisp_gemm_run(
                self.gemm,
                num_rows as i32,
                x,
                std::ptr::null(),
                w,
                std::ptr::null(),
                out,
                scratch.workspace.ptr(),
                scratch.workspace.len(),
                self.gpu.stream(),
            )
        };
        check(OP, code)
    }

    /// Addresses of what a product of `num_rows` reads and writes, large enough for it.
    fn operands<T>(
        &self,
        op: &'static str,
        num_rows: usize,
        x: DeviceSlice<'_, bf16>,
        weight: &DeviceWeight,
        scratch: &GemmScratch,
        out: DeviceSlice<'_, T>,
    ) -> Result<(*const c_void, *const c_void, *mut c_void), CudaError> {
        let x = x.at_least(op, "x", num_rows * self.k)?;
        let w = self.bf16_weight(op, weight, scratch)?;
        let out = out.at_least(op, "out", num_rows * self.n)?;
        Ok((x.cast_const().cast(), w, out.cast()))
    }

    fn bf16_weight(
        &self,
        op: &'static str,
        weight: &DeviceWeight,
        scratch: &GemmScratch,
    ) -> Result<*const c_void, CudaError> {
        let (needed, actual) = (self.n * self.k, weight.out_features() * weight.in_features());
        if actual != needed {
            return Err(CudaError::TooSmall { op, what: "weight", actual, needed });
        }
        let raw = weight.raw();
        if weight.format() == WeightFormat::Bf16 {
            return Ok(raw.data);
        }
        let expanded = scratch.weight.all().at_least(op, "scratch", needed)?;
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
