//! From logits to tokens on the device.
#![allow(unsafe_code, reason = "kernels are foreign")]

use super::buffer::DeviceSlice;
use super::error::CudaError;
use super::ffi;
use super::gpu::{Gpu, check};

/// Largest vocabulary that [`Gpu::sample`] draws from.
pub const MAX_DRAWN_VOCAB: usize = 1 << 20;

/// How rows are drawn, `[num_rows]` each; f32 and f64 values by their bits.
#[derive(Debug, Clone, Copy)]
pub struct DrawTables<'a> {
    /// f32; 0 takes the most likely token.
    pub temperatures: DeviceSlice<'a, i32>,
    /// 0: off.
    pub top_ks: DeviceSlice<'a, i32>,
    /// f32; 1: off.
    pub top_ps: DeviceSlice<'a, i32>,
    /// f32; 0: off.
    pub min_ps: DeviceSlice<'a, i32>,
    /// f64 in `[0, 1)`, two values each.
    pub uniforms: DeviceSlice<'a, i32>,
}

impl DrawTables<'_> {
    /// What follows the first `start` rows.
    pub fn from(&self, start: usize) -> Self {
        Self {
            temperatures: self.temperatures.from(start),
            top_ks: self.top_ks.from(start),
            top_ps: self.top_ps.from(start),
            min_ps: self.min_ps.from(start),
            uniforms: self.uniforms.from(2 * start),
        }
    }
}

/// Bytes that [`Gpu::argmax`] works in.
pub fn argmax_workspace_bytes(max_rows: usize) -> usize {
    // SAFETY: plain arithmetic.
    unsafe { ffi::aisp_argmax_workspace_bytes(max_rows as i32) }
}

impl Gpu {
    /// The most likely token of each row, the lowest id among equals; `i32::MAX` where a logit is not a number.
    ///
    /// Shapes: `logits [num_rows, vocab_size]`, `token_ids [num_rows]`.
    /// Errors: operands that are too small; a failed launch.
    pub fn argmax(
        &self,
        logits: DeviceSlice<'_, f32>,
        num_rows: usize,
        vocab_size: usize,
        token_ids: DeviceSlice<'_, i32>,
        workspace: DeviceSlice<'_, u8>,
    ) -> Result<(), CudaError> {
        const OP: &str = "argmax";
        let logits = logits.at_least(OP, "logits", num_rows * vocab_size)?;
        let ids = token_ids.at_least(OP, "token ids", num_rows)?;
        let workspace = workspace.at_least(OP, "workspace", argmax_workspace_bytes(num_rows))?;
        // SAFETY: every operand has the size that its shape asks for.
        let code = unsafe {
            let (rows, vocab) = (num_rows as i32, vocab_size as i32);
            ffi::aisp_argmax(self.ctx(), logits, i64::from(vocab), rows, vocab, ids, workspace.cast(), self.stream())
        };
        check(OP, code)
    }

    /// A token of each row by temperature, top-k, top-p and min-p; `i32::MAX` where a logit is not a number. Weights of
    /// tokens are exact to 2^-40 of the most likely one's.
    ///
    /// Shapes: `logits [num_rows, vocab_size]`, `token_ids [num_rows]`.
    /// Errors: operands that are too small; a vocabulary larger than [`MAX_DRAWN_VOCAB`]; a failed launch.
    pub fn sample(
        &self,
        logits: DeviceSlice<'_, f32>,
        num_rows: usize,
        vocab_size: usize,
        draws: DrawTables<'_>,
        token_ids: DeviceSlice<'_, i32>,
    ) -> Result<(), CudaError> {
        const OP: &str = "a draw";
        let logits = logits.at_least(OP, "logits", num_rows * vocab_size)?;
        let ids = token_ids.at_least(OP, "token ids", num_rows)?;
        let params = ffi::Sampling {
            temperature: draws.temperatures.at_least(OP, "temperatures", num_rows)?.cast(),
            top_k: draws.top_ks.at_least(OP, "top-k", num_rows)?,
            top_p: draws.top_ps.at_least(OP, "top-p", num_rows)?.cast(),
            min_p: draws.min_ps.at_least(OP, "min-p", num_rows)?.cast(),
            uniform: draws.uniforms.at_least(OP, "uniforms", 2 * num_rows)?.cast(),
        };
        // SAFETY: every operand has the size that its shape asks for.
        let code = unsafe {
            let (rows, vocab) = (num_rows as i32, vocab_size as i32);
            ffi::aisp_sample(self.ctx(), logits, i64::from(vocab), rows, vocab, &params, ids, self.stream())
        };
        check(OP, code)
    }
}
