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

/// Values that share a scale in [`Fp8Groups`].
pub const FP8_GROUP: usize = 64;

/// Rows in e4m3, with a scale for each [`FP8_GROUP`] values.
#[derive(Debug, Clone, Copy)]
pub struct Fp8Groups<'a> {
    /// `[rows, k]`, in the order of fp8 weights.
    pub codes: DeviceSlice<'a, u8>,
    /// `[k / FP8_GROUP, max_rows]`.
    pub scales: DeviceSlice<'a, f32>,
    /// Rows that there is room for, a multiple of 4.
    pub max_rows: usize,
}

impl Fp8Groups<'_> {
    /// Where a product leaves such rows: their codes, while their scales go into `args`, whose tables have one number of rows.
    fn leave(&self, args: &mut ffi::LinearArgs, rows: usize, k: usize) -> Result<*mut u8, CudaError> {
        let (codes, scales) = self.of(rows, k)?;
        let actual = self.max_rows as i64;
        if args.ld_scales != 0 && args.ld_scales != actual {
            let (actual, needed) = (self.max_rows, args.ld_scales as usize);
            return Err(CudaError::TooSmall { op: PROJECTION, what: "scales", actual, needed });
        }
        (args.next_scales, args.ld_scales) = (scales, actual);
        Ok(codes)
    }

    /// The addresses of codes and scales of some rows.
    fn of(&self, rows: usize, k: usize) -> Result<(*mut u8, *mut f32), CudaError> {
        let rows = rows.max(self.max_rows);
        Ok((
            self.codes.at_least(PROJECTION, "codes", rows * k)?,
            self.scales.at_least(PROJECTION, "scales", rows * k / FP8_GROUP)?,
        ))
    }
}

/// What a product reads.
#[derive(Debug, Clone, Copy)]
pub struct LinearInput<'a> {
    /// `[rows, k]`.
    pub x: DeviceSlice<'a, bf16>,
    /// In place of `x`, by [`Gpu::wide_linear`] over fp8 weights.
    pub codes: Option<Fp8Groups<'a>>,
    /// Of the rows of `x` before the norm: `[rows, k / 16]` and the norm's epsilon; then `x` is still to be divided.
    pub norm: Option<(DeviceSlice<'a, f32>, f32)>,
    /// `[n]`.
    pub bias: Option<&'a DeviceBuffer<f32>>,
}

impl<'a> LinearInput<'a> {
    /// Rows as they are.
    pub fn of(x: DeviceSlice<'a, bf16>) -> Self {
        Self { x, codes: None, norm: None, bias: None }
    }
}

/// The norm that the next product wants, made while the residual is written.
#[derive(Debug, Clone, Copy)]
pub struct NextNorm<'a> {
    /// Its weights, `[hidden_size]`.
    pub weight: &'a DeviceBuffer<f32>,
    /// `[rows, hidden_size]`.
    pub x: DeviceSlice<'a, bf16>,
    /// In place of `x`, by [`Gpu::wide_linear`].
    pub codes: Option<Fp8Groups<'a>>,
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
    /// The same in e4m3, by [`Gpu::wide_linear`].
    SiluMulFp8(Fp8Groups<'a>),
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
        let (x, x_scales) = match &input.codes {
            None => (input.x.at_least(OP, "x", read_rows * k)?.cast(), std::ptr::null_mut()),
            Some(groups) => groups.of(num_rows, k).map(|(codes, scales)| (codes.cast(), scales))?,
        };
        let mut args = ffi::LinearArgs {
            x,
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
            x_scales,
            next_scales: std::ptr::null_mut(),
            ld_scales: input.codes.map_or(0, |groups| groups.max_rows as i64),
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
                args.next_x = match next.codes {
                    None => next.x.at_least(OP, "next x", num_rows * n)?.cast(),
                    Some(groups) => groups.leave(&mut args, num_rows, n)?.cast(),
                };
                args.next_sumsq = next.sumsq.at_least(OP, "next sums of squares", num_rows * n / SUMSQ_WIDTH)?;
            }
            LinearOutput::SiluMul(out) => {
                args.output = ffi::OUT_SILU_MUL;
                args.out = out.at_least(OP, "out", num_rows * n / 2)?.cast();
                args.ldo = n as i64 / 2;
            }
            LinearOutput::SiluMulFp8(groups) => {
                args.output = ffi::OUT_SILU_MUL;
                args.out = groups.leave(&mut args, num_rows, n / 2)?.cast();
                args.ldo = n as i64 / 2;
            }
        }
        Ok(args)
    }
}
