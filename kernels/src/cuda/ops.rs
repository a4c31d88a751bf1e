//! The ops of a decoder, each a method of [`Gpu`] that checks sizes and puts one kernel on the stream.
#![allow(unsafe_code, reason = "kernels are foreign")]

use half::bf16;

use super::buffer::{DeviceBuffer, DeviceSlice, at_least_or_null};
use super::error::CudaError;
use super::ffi;
use super::gemm::{Fp8Rows, GemmInput};
use super::gpu::{Gpu, check};
use super::kv::CudaKv;
use super::linear::NextNorm;
use super::weight::DeviceWeight;

/// Values of the residual that share an entry of a sum of squares.
pub(super) const SUMSQ_WIDTH: usize = 16;

/// The rotary table and the norms over heads.
#[derive(Debug)]
pub struct Rope {
    /// `[num_positions, head_dim / 2]`.
    pub cos: DeviceBuffer<f32>,
    /// As `cos`.
    pub sin: DeviceBuffer<f32>,
    /// Which values a turn mixes.
    pub style: crate::rope::RopeStyle,
}

/// Norms over each head of Q and of K (Qwen3).
#[derive(Debug, Clone, Copy)]
pub struct RopeNorms<'a> {
    /// `[head_dim]`.
    pub q: &'a DeviceBuffer<f32>,
    /// `[head_dim]`.
    pub k: &'a DeviceBuffer<f32>,
    /// Added under the root.
    pub eps: f32,
}

/// One query a sequence.
#[derive(Debug, Clone, Copy)]
pub struct DecodeAttention<'a> {
    /// `[num_seqs, num_heads, head_dim]`.
    pub q: DeviceSlice<'a, bf16>,
    /// As `q`.
    pub out: DeviceSlice<'a, bf16>,
    /// `[num_seqs, max_blocks]`.
    pub block_tables: DeviceSlice<'a, i32>,
    /// Width of a block table.
    pub max_blocks: usize,
    /// `[num_seqs]`; 0 is no sequence.
    pub context_lens: DeviceSlice<'a, i32>,
    /// Sequences.
    pub num_seqs: usize,
    /// Query heads.
    pub num_heads: usize,
    /// No context is longer.
    pub max_context_len: usize,
    /// Positions that a query sees.
    pub sliding_window: Option<usize>,
    /// [`decode_workspace_bytes`].
    pub workspace: DeviceSlice<'a, u8>,
    /// The next kernel moves few bytes, so that it may be launched at once.
    pub next_is_small: bool,
    /// Contexts are cut into as many parts as suit the card and the batch, instead of 256 positions each: faster, but the
    /// order of sums then depends on the batch.
    pub adaptive_splits: bool,
}

const DECODE_OP: &str = "decode attention";

impl DecodeAttention<'_> {
    fn raw(&self, kv: &CudaKv) -> Result<ffi::DecodeArgs, CudaError> {
        const OP: &str = DECODE_OP;
        let head_dim = kv.shape().head_dim;
        let values = self.num_seqs * self.num_heads * head_dim;
        let workspace = decode_workspace_bytes(self.num_seqs, self.num_heads, head_dim, self.max_context_len);
        Ok(ffi::DecodeArgs {
            q: self.q.at_least(OP, "q", values)?.cast(),
            out: self.out.at_least(OP, "out", values)?.cast(),
            block_tables: self.block_tables.at_least(OP, "block tables", self.num_seqs * self.max_blocks)?,
            max_blocks: self.max_blocks as i32,
            context_lens: self.context_lens.at_least(OP, "context lengths", self.num_seqs)?,
            num_seqs: self.num_seqs as i32,
            num_heads: self.num_heads as i32,
            max_context_len: self.max_context_len as i32,
            sliding_window: window(self.sliding_window),
            scale: 1.0 / (head_dim as f32).sqrt(),
            workspace: self.workspace.at_least(OP, "workspace", workspace)?.cast(),
            next_is_small: i32::from(self.next_is_small),
            num_splits: 0,
        })
    }
}

/// Several queries a sequence.
#[derive(Debug, Clone, Copy)]
pub struct PrefillAttention<'a> {
    /// `[num_tokens, num_heads, head_dim]`.
    pub q: DeviceSlice<'a, bf16>,
    /// As `q`.
    pub out: DeviceSlice<'a, bf16>,
    /// `[num_seqs, max_blocks]`.
    pub block_tables: DeviceSlice<'a, i32>,
    /// Width of a block table.
    pub max_blocks: usize,
    /// First row of each sequence, and the end, `[num_seqs + 1]`.
    pub cu_seqlens_q: DeviceSlice<'a, i32>,
    /// `[num_seqs]`.
    pub context_lens: DeviceSlice<'a, i32>,
    /// Rows of all sequences.
    pub num_tokens: usize,
    /// Sequences.
    pub num_seqs: usize,
    /// Rows of the longest.
    pub max_query_len: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Positions that a query sees.
    pub sliding_window: Option<usize>,
}

/// Bytes that [`Gpu::decode_attention`] works in.
pub fn decode_workspace_bytes(max_seqs: usize, num_heads: usize, head_dim: usize, max_context_len: usize) -> usize {
    // SAFETY: plain arithmetic.
    unsafe {
        ffi::aisp_decode_workspace_bytes(max_seqs as i32, num_heads as i32, head_dim as i32, max_context_len as i32)
    }
}

/// The rope table and the norms before it.
fn raw_rope(
    op: &'static str,
    (rope, norms): (&Rope, Option<RopeNorms<'_>>),
    head_dim: usize,
) -> Result<ffi::Rope, CudaError> {
    Ok(ffi::Rope {
        cos: rope.cos.all().at_least(op, "cosines", head_dim / 2)?,
        sin: rope.sin.all().at_least(op, "sines", head_dim / 2)?,
        style: match rope.style {
            crate::rope::RopeStyle::Neox => 0,
            crate::rope::RopeStyle::Interleaved => 1,
        },
        q_norm: at_least_or_null(norms.map(|norms| norms.q), op, "head norm", head_dim)?,
        k_norm: at_least_or_null(norms.map(|norms| norms.k), op, "head norm", head_dim)?,
        norm_eps: norms.map_or(0.0, |norms| norms.eps),
    })
}

fn window(sliding_window: Option<usize>) -> i32 {
    sliding_window.map_or(0, |window| window.min(i32::MAX as usize) as i32)
}

impl Gpu {
    /// Rows of a table, as the residual, with the first norm prepared. A token of -1 - i stands for `choices[i]`.
    ///
    /// Shapes: `token_ids [num_tokens]`, `choices [num_choices]`, `residual [num_tokens, hidden_size]`.
    /// Errors: operands that are too small; a failed launch.
    pub fn embedding(
        &self,
        table: &DeviceWeight,
        (token_ids, choices): (DeviceSlice<'_, i32>, DeviceSlice<'_, i32>),
        num_tokens: usize,
        residual: DeviceSlice<'_, f32>,
        next: NextNorm<'_>,
    ) -> Result<(), CudaError> {
        const OP: &str = "the embedding";
        let values = num_tokens * table.in_features();
        let ids = token_ids.at_least(OP, "token ids", num_tokens)?;
        let chosen = choices.at_least(OP, "choices", 0)?;
        let residual = residual.at_least(OP, "residual", values)?;
        let weight = next.weight.all().at_least(OP, "norm", table.in_features())?;
        let x = next.x.at_least(OP, "next x", values)?;
        let sumsq = next.sumsq.at_least(OP, "next sums of squares", values / SUMSQ_WIDTH)?;
        // SAFETY: every operand has the size that its shape asks for; an id outside the table gives zeros.
        let code = unsafe {
            let (ctx, tokens) = (self.ctx(), num_tokens as i32);
            ffi::aisp_embedding(
                ctx,
                &table.raw(),
                ids,
                chosen,
                choices.len() as i32,
                tokens,
                residual,
                weight,
                x.cast(),
                sumsq,
                self.stream(),
            )
        };
        check(OP, code)
    }

    /// The norm of rows of the residual.
    ///
    /// Shapes: `residual` and `out [num_tokens, hidden_size]`.
    /// Errors: operands that are too small; a width that is no multiple of 4, or of 16 for e4m3; a failed launch.
    pub fn rms_norm(
        &self,
        residual: DeviceSlice<'_, f32>,
        (weight, eps): (&DeviceBuffer<f32>, f32),
        num_tokens: usize,
        out: GemmInput<'_>,
    ) -> Result<(), CudaError> {
        const OP: &str = "a norm";
        let hidden = weight.len();
        let residual = residual.at_least(OP, "residual", num_tokens * hidden)?;
        let out = out.raw(OP, num_tokens, hidden)?;
        let weight = weight.all().at_least(OP, "norm", hidden)?;
        // SAFETY: every operand has the size that its shape asks for.
        let code = unsafe {
            let (ctx, tokens) = (self.ctx(), num_tokens as i32);
            ffi::aisp_rms_norm(ctx, residual, weight, eps, tokens, hidden as i32, &out, self.stream())
        };
        check(OP, code)
    }

    /// `silu(gate) * up`.
    ///
    /// Shapes: `gate_up [num_tokens, 2 intermediate_size]`, `out [num_tokens, intermediate_size]`.
    /// Errors: as [`Gpu::rms_norm`].
    pub fn silu_mul(
        &self,
        gate_up: DeviceSlice<'_, bf16>,
        num_tokens: usize,
        intermediate_size: usize,
        out: GemmInput<'_>,
    ) -> Result<(), CudaError> {
        const OP: &str = "a gate";
        let gate_up = gate_up.at_least(OP, "gate and up", 2 * num_tokens * intermediate_size)?;
        let out = out.raw(OP, num_tokens, intermediate_size)?;
        // SAFETY: every operand has the size that its shape asks for.
        let code = unsafe {
            let (tokens, inner) = (num_tokens as i32, intermediate_size as i32);
            ffi::aisp_silu_mul(self.ctx(), gate_up.cast_const().cast(), tokens, inner, &out, self.stream())
        };
        check(OP, code)
    }

    /// Rounds rows to e4m3, each with a scale of its own that brings its largest value to the type's.
    ///
    /// Shapes: `x` and `out.codes [num_rows, k]`, `out.scales [num_rows]`.
    /// Errors: operands that are too small; a `k` that is no multiple of 16; a failed launch.
    pub fn quantize_rows(
        &self,
        x: DeviceSlice<'_, bf16>,
        num_rows: usize,
        k: usize,
        out: Fp8Rows<'_>,
    ) -> Result<(), CudaError> {
        const OP: &str = "rounding rows to fp8";
        let x = x.at_least(OP, "x", num_rows * k)?;
        let out = GemmInput::Fp8(out).raw(OP, num_rows, k)?;
        // SAFETY: every operand has the size that its shape asks for.
        let code = unsafe {
            let (ctx, rows) = (self.ctx(), num_rows as i32);
            ffi::aisp_quantize_rows(ctx, x.cast(), rows, k as i32, out.codes, out.scales, self.stream())
        };
        check(OP, code)
    }

    /// Turns queries and keys and stores keys and values at their slots; a slot below 0 stores nothing.
    ///
    /// Shapes: `qkv [num_tokens, (num_heads + 2 num_kv_heads) head_dim]`, `positions` and `slots [num_tokens]`,
    /// `q [num_tokens, num_heads, head_dim]`.
    /// Errors: operands that are too small; a failed launch.
    #[expect(clippy::too_many_arguments, reason = "the operands of one kernel")]
    pub fn rope_store(
        &self,
        qkv: DeviceSlice<'_, f32>,
        rope: (&Rope, Option<RopeNorms<'_>>),
        (positions, slots): (DeviceSlice<'_, i32>, DeviceSlice<'_, i32>),
        num_tokens: usize,
        num_heads: usize,
        kv: &CudaKv,
        layer: usize,
        q: DeviceSlice<'_, bf16>,
    ) -> Result<(), CudaError> {
        const OP: &str = "rope and store";
        let shape = kv.shape();
        let heads = num_heads + 2 * shape.num_kv_heads;
        let qkv = qkv.at_least(OP, "qkv", num_tokens * heads * shape.head_dim)?;
        let positions = positions.at_least(OP, "positions", num_tokens)?;
        let slots = slots.at_least(OP, "slots", num_tokens)?;
        let q = q.at_least(OP, "q", num_tokens * num_heads * shape.head_dim)?;
        let raw = raw_rope(OP, rope, shape.head_dim)?;
        // SAFETY: every operand has the size that its shape asks for; who writes the tables keeps slots in the pool and
        // positions in the table.
        let code = unsafe {
            ffi::aisp_rope_store(
                self.ctx(),
                qkv.cast_const().cast(),
                ffi::F32,
                &raw,
                positions,
                slots,
                num_tokens as i32,
                num_heads as i32,
                &kv.raw(layer),
                q.cast(),
                self.stream(),
            )
        };
        check(OP, code)
    }

    fn decode_args(&self, kv: &CudaKv, layer: usize, call: &DecodeAttention<'_>) -> Result<ffi::DecodeArgs, CudaError> {
        let args = call.raw(kv)?;
        // SAFETY: reads shapes only; the workspace of `raw` has room for as many splits as it answers.
        let splits = || unsafe { ffi::aisp_decode_splits(self.ctx(), &kv.raw(layer), &args) };
        Ok(ffi::DecodeArgs { num_splits: if call.adaptive_splits { splits() } else { 0 }, ..args })
    }

    /// Attention of one query a sequence over the pool.
    ///
    /// Errors: operands that are too small; a failed launch.
    pub fn decode_attention(&self, kv: &CudaKv, layer: usize, call: DecodeAttention<'_>) -> Result<(), CudaError> {
        let args = self.decode_args(kv, layer, &call)?;
        // SAFETY: every operand has the size that its shape asks for; who writes the tables keeps blocks in the pool.
        let code = unsafe { ffi::aisp_decode_attention(self.ctx(), &kv.raw(layer), &args, self.stream()) };
        check(DECODE_OP, code)
    }

    /// [`Gpu::rope_store`] and [`Gpu::decode_attention`] with their bits, in one kernel where that is faster; `call.q` is
    /// room for the queries.
    ///
    /// Shapes: `qkv [num_seqs, (num_heads + 2 num_kv_heads) head_dim]`, `positions` and `slots [num_seqs]`.
    /// Errors: operands that are too small; a failed launch.
    pub fn rope_decode_attention(
        &self,
        qkv: DeviceSlice<'_, f32>,
        rope: (&Rope, Option<RopeNorms<'_>>),
        (positions, slots): (DeviceSlice<'_, i32>, DeviceSlice<'_, i32>),
        kv: &CudaKv,
        layer: usize,
        call: DecodeAttention<'_>,
    ) -> Result<(), CudaError> {
        let shape = kv.shape();
        let heads = call.num_heads + 2 * shape.num_kv_heads;
        let qkv = qkv.at_least(DECODE_OP, "qkv", call.num_seqs * heads * shape.head_dim)?;
        let positions = positions.at_least(DECODE_OP, "positions", call.num_seqs)?;
        let slots = slots.at_least(DECODE_OP, "slots", call.num_seqs)?;
        let rope = raw_rope(DECODE_OP, rope, shape.head_dim)?;
        let (args, kv) = (self.decode_args(kv, layer, &call)?, kv.raw(layer));
        // SAFETY: every operand has the size that its shape asks for; who writes the tables keeps blocks and slots in the
        // pool and positions in the rope table.
        let code = unsafe {
            let (ctx, stream) = (self.ctx(), self.stream());
            ffi::aisp_rope_decode_attention(ctx, qkv, &rope, positions, slots, &kv, &args, stream)
        };
        check(DECODE_OP, code)
    }

    /// Attention of several queries a sequence over the pool.
    ///
    /// Errors: operands that are too small; a failed launch.
    pub fn prefill_attention(&self, kv: &CudaKv, layer: usize, call: PrefillAttention<'_>) -> Result<(), CudaError> {
        const OP: &str = "prefill attention";
        let head_dim = kv.shape().head_dim;
        let values = call.num_tokens * call.num_heads * head_dim;
        let args = ffi::PrefillArgs {
            q: call.q.at_least(OP, "q", values)?.cast(),
            out: call.out.at_least(OP, "out", values)?.cast(),
            block_tables: call.block_tables.at_least(OP, "block tables", call.num_seqs * call.max_blocks)?,
            max_blocks: call.max_blocks as i32,
            cu_seqlens_q: call.cu_seqlens_q.at_least(OP, "row starts", call.num_seqs + 1)?,
            context_lens: call.context_lens.at_least(OP, "context lengths", call.num_seqs)?,
            num_seqs: call.num_seqs as i32,
            max_query_len: call.max_query_len as i32,
            num_heads: call.num_heads as i32,
            sliding_window: window(call.sliding_window),
            scale: 1.0 / (head_dim as f32).sqrt(),
        };
        // SAFETY: every operand has the size that its shape asks for; who writes the tables keeps rows and blocks right.
        check(OP, unsafe { ffi::aisp_prefill_attention(self.ctx(), &kv.raw(layer), &args, self.stream()) })
    }

    /// Copies blocks of the pool in every layer; `pairs [num_pairs, 2]` are from and to.
    ///
    /// Errors: operands that are too small; a failed launch.
    pub fn copy_blocks(&self, kv: &CudaKv, pairs: DeviceSlice<'_, i32>, num_pairs: usize) -> Result<(), CudaError> {
        const OP: &str = "copying blocks";
        let pairs = pairs.at_least(OP, "pairs", 2 * num_pairs)?;
        for layer in 0..kv.shape().num_layers {
            // SAFETY: the pairs are there; who writes them keeps blocks in the pool.
            let code =
                unsafe { ffi::aisp_copy_blocks(self.ctx(), &kv.raw(layer), pairs, num_pairs as i32, self.stream()) };
            check(OP, code)?;
        }
        Ok(())
    }
}
