//! Projections, `x W^T`: what they read, what they leave, and which kernel computes them.
#![allow(unsafe_code, reason = "kernels are foreign")]

use half::bf16;

use super::buffer::{DeviceBuffer, DeviceSlice};
use super::error::CudaError;
use super::ffi;
use super::gpu::{Gpu, check};
use super::ops::SUMSQ_WIDTH;
use super::weight::DeviceWeight;

const PROJECTION: &str = "a projection";

/// Rows that [`Gpu::linear`] takes in one call.
pub const LINEAR_MAX_ROWS: usize = 64;

/// Rows of a product.
#[derive(Debug, Clone, Copy)]
pub enum Rows<'a> {
    /// These many from the start on.
    First(usize),
    /// Those that a table on the device names, `[n]`.
    Listed(DeviceSlice<'a, i32>, usize),
}

impl Rows<'_> {
    fn len(&self) -> usize {
        match self {
            Self::First(len) | Self::Listed(_, len) => *len,
        }
    }
}

/// What a product reads.
#[derive(Debug, Clone, Copy)]
pub struct LinearInput<'a> {
    /// `[rows, k]`.
    pub x: DeviceSlice<'a, bf16>,
    /// Of the rows of `x` before the norm: `[rows, k / 16]` and the norm's epsilon; then `x` is still to be divided.
    pub norm: Option<(DeviceSlice<'a, f32>, f32)>,
    /// `[n]`.
    pub bias: Option<&'a DeviceBuffer<f32>>,
}

/// The norm that the next product wants, made while the residual is written.
#[derive(Debug, Clone, Copy)]
pub struct NextNorm<'a> {
    /// Its weights, `[hidden_size]`.
    pub weight: &'a DeviceBuffer<f32>,
    /// `[rows, hidden_size]`.
    pub x: DeviceSlice<'a, bf16>,
    /// `[rows, hidden_size / 16]`.
    pub sumsq: DeviceSlice<'a, f32>,
}

/// What a product writes.
#[derive(Debug, Clone, Copy)]
pub enum LinearOutput<'a> {
    /// `[rows, n]`.
    F32(DeviceSlice<'a, f32>),
    /// Adds to the residual `[rows, n]` and prepares the next norm.
    Residual(DeviceSlice<'a, f32>, NextNorm<'a>),
    /// Weights are gate over up: `silu(gate) * up`, `[rows, n / 2]`.
    SiluMul(DeviceSlice<'a, bf16>),
}

impl Gpu {
    /// `x W^T` for up to [`LINEAR_MAX_ROWS`] rows; a row's bits do not depend on how many there are.
    ///
    /// Errors: operands that are too small; a failed launch.
    pub fn linear(
        &self,
        weight: &DeviceWeight,
        rows: Rows<'_>,
        input: LinearInput<'_>,
        output: LinearOutput<'_>,
    ) -> Result<(), CudaError> {
        let args = Self::linear_args(weight, rows, input, output)?;
        // SAFETY: every operand has the size that its shape asks for.
        check(PROJECTION, unsafe { ffi::aisp_linear(self.ctx(), &weight.raw(), &args, self.stream()) })
    }

    /// `x W^T` for any number of rows, by matrix instructions that only Hopper has ([`Gpu::has_wide_linear`]); bits depend
    /// on how many rows there are. Integer codes are rounded to bf16 with their scales.
    ///
    /// Errors: as [`Gpu::linear`].
    pub fn wide_linear(
        &self,
        weight: &DeviceWeight,
        num_rows: usize,
        input: LinearInput<'_>,
        output: LinearOutput<'_>,
    ) -> Result<(), CudaError> {
        let args = Self::linear_args(weight, Rows::First(num_rows), input, output)?;
        // SAFETY: every operand has the size that its shape asks for.
        check(PROJECTION, unsafe { ffi::aisp_wide_linear(self.ctx(), &weight.raw(), &args, self.stream()) })
    }

    fn linear_args(
        weight: &DeviceWeight,
        rows: Rows<'_>,
        input: LinearInput<'_>,
        output: LinearOutput<'_>,
    ) -> Result<ffi::LinearArgs, CudaError> {
        const OP: &str = PROJECTION;
        let (n, k, num_rows) = (weight.out_features(), weight.in_features(), rows.len());
        // Listed rows lie anywhere in x, which the writer of the list answers for.
        let read_rows = if matches!(rows, Rows::First(_)) { num_rows } else { 1 };
        let mut args = ffi::LinearArgs {
            x: input.x.at_least(OP, "x", read_rows * k)?.cast(),
            ldx: k as i64,
            x_sumsq: std::ptr::null(),
            eps: 0.0,
            bias: std::ptr::null(),
            output: ffi::OUT_F32,
            out: std::ptr::null_mut(),
            ldo: n as i64,
            next_norm_weight: std::ptr::null(),
            next_x: std::ptr::null_mut(),
            next_sumsq: std::ptr::null_mut(),
            row_ids: std::ptr::null(),
            num_rows: num_rows as i32,
        };
        if let Some((sumsq, eps)) = input.norm {
            args.x_sumsq = sumsq.at_least(OP, "sums of squares", read_rows * k / SUMSQ_WIDTH)?;
            args.eps = eps;
        }
        if let Some(bias) = input.bias {
            args.bias = bias.all().at_least(OP, "bias", n)?;
        }
        if let Rows::Listed(ids, len) = rows {
            args.row_ids = ids.at_least(OP, "rows", len)?;
        }
        match output {
            LinearOutput::F32(out) => args.out = out.at_least(OP, "out", num_rows * n)?.cast(),
            LinearOutput::Residual(residual, next) => {
                args.output = ffi::OUT_RESIDUAL;
                args.out = residual.at_least(OP, "residual", num_rows * n)?.cast();
                args.next_norm_weight = next.weight.all().at_least(OP, "norm", n)?;
                args.next_x = next.x.at_least(OP, "next x", num_rows * n)?.cast();
                args.next_sumsq = next.sumsq.at_least(OP, "next sums of squares", num_rows * n / SUMSQ_WIDTH)?;
            }
            LinearOutput::SiluMul(out) => {
                args.output = ffi::OUT_SILU_MUL;
                args.out = out.at_least(OP, "out", num_rows * n / 2)?.cast();
                args.ldo = n as i64 / 2;
            }
        }
        Ok(args)
    }
}
