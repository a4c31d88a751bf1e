//! What a step on the GPU computes in: allocated once for the largest step.

use std::sync::Arc;

use aisp_kernels::cuda::{
    CudaError, DeviceBuffer, DeviceSlice, DrawTables, FP8_GROUP, Fp8Groups, Fp8Rows, GemmInput, Gpu, NextNorm,
    decode_workspace_bytes,
};
use bytemuck::Pod;
use half::bf16;

use super::config::ModelConfig;
use crate::plan::Products;
use crate::runner::TableLayout;

const WORKSPACE: (&str, &str) = ("the workspace", "--max-num-batched-tokens or --max-model-len");

/// Values of a row that share a sum of squares.
const SUMSQ_WIDTH: usize = 16;

/// What a workspace is sized for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkspaceSize {
    /// Tokens in a step, padding included.
    pub max_rows: usize,
    /// Sequences in a step, padding included.
    pub max_sequences: usize,
    /// Tokens of a sequence.
    pub max_context_len: usize,
    /// Whether products go through cuBLASLt, which needs a place for their results.
    pub library: bool,
    /// Whether what they read is rounded to e4m3 first.
    pub fp8: bool,
}

/// Rows of a step.
#[derive(Debug)]
pub struct Workspace {
    /// Rows there is room for.
    pub max_rows: usize,
    /// The residual stream, `[T, H]`.
    pub residual: DeviceBuffer<f32>,
    /// What the next projection reads, `[T, H]`.
    pub x: DeviceBuffer<bf16>,
    /// Sums of squares of the residual, `[T, H / 16]`.
    pub sumsq: DeviceBuffer<f32>,
    /// `[T, (NH + 2 KVH) * D]`.
    pub qkv: DeviceBuffer<f32>,
    /// Turned queries, `[T, NH, D]`.
    pub q: DeviceBuffer<bf16>,
    /// `[T, NH, D]`.
    pub attention: DeviceBuffer<bf16>,
    /// `[T, I]`.
    pub gated: DeviceBuffer<bf16>,
    /// `[T, 2 I]`; for cuBLASLt.
    pub gate_up: DeviceBuffer<bf16>,
    /// `[T, K]` of the widest product; for products in e4m3.
    codes: DeviceBuffer<u8>,
    /// `[T]`, or `[H / 64, T]` for own products; for products in e4m3.
    code_scales: DeviceBuffer<f32>,
    /// `[T, I]`; for own products in e4m3.
    gated_codes: DeviceBuffer<u8>,
    /// `[I / 64, T]`; for own products in e4m3.
    gated_scales: DeviceBuffer<f32>,
    /// Of decode attention.
    pub decode: DeviceBuffer<u8>,
}

impl Workspace {
    /// Allocates it.
    ///
    /// Errors: out of memory, with the flags to lower.
    pub fn new(gpu: &Arc<Gpu>, config: &ModelConfig, size: WorkspaceSize) -> Result<Self, CudaError> {
        let rows = size.max_rows;
        let [library_rows, fp8_rows] = [size.library, size.fp8].map(|needed| if needed { rows } else { 0 });
        let [hidden, qkv, q, inner] = widths(config);
        let floats = |len: usize| DeviceBuffer::<f32>::zeroed(gpu, len, WORKSPACE);
        let halves = |len: usize| DeviceBuffer::<bf16>::zeroed(gpu, len, WORKSPACE);
        Ok(Self {
            max_rows: rows,
            residual: floats(rows * hidden)?,
            x: halves(rows * hidden)?,
            sumsq: floats(rows * hidden / SUMSQ_WIDTH)?,
            qkv: floats(rows * qkv)?,
            q: halves(rows * q)?,
            attention: halves(rows * q)?,
            gated: halves(rows * inner)?,
            gate_up: halves(library_rows * 2 * inner)?,
            codes: DeviceBuffer::zeroed(gpu, fp8_rows * hidden.max(q).max(inner), WORKSPACE)?,
            code_scales: floats(fp8_rows * hidden.div_ceil(FP8_GROUP))?,
            gated_codes: DeviceBuffer::zeroed(gpu, fp8_rows * inner, WORKSPACE)?,
            gated_scales: floats(fp8_rows * inner.div_ceil(FP8_GROUP))?,
            decode: DeviceBuffer::zeroed(gpu, decode_bytes(config, size), WORKSPACE)?,
        })
    }

    /// Bytes that it will take.
    pub fn num_bytes(config: &ModelConfig, size: WorkspaceSize) -> u64 {
        let [hidden, qkv, q, inner] = widths(config);
        let library = if size.library { 4 * inner } else { 0 };
        let scales = 4 * (hidden.div_ceil(FP8_GROUP) + inner.div_ceil(FP8_GROUP));
        let fp8 = if size.fp8 { hidden.max(q).max(inner) + inner + scales } else { 0 };
        let row = 4 * hidden + 2 * hidden + hidden / 4 + 4 * qkv + 4 * q + 2 * inner + library + fp8;
        (size.max_rows * row + decode_bytes(config, size)) as u64
    }

    /// Rows of one of its buffers from `start` on.
    pub fn rows_of<'a, T: Pod>(&self, buffer: &'a DeviceBuffer<T>, start: usize) -> DeviceSlice<'a, T> {
        let width = buffer.len() / self.max_rows;
        buffer.slice(start * width..buffer.len())
    }

    /// Where the rows of a product of cuBLASLt in e4m3 are put.
    pub fn rounded(&self) -> Fp8Rows<'_> {
        Fp8Rows { codes: self.codes.all(), scales: self.code_scales.all() }
    }

    /// Where an op leaves what such a product reads: `x` or `gated`, or in its place what e4m3 makes of it.
    pub fn for_product<'a>(&'a self, products: Products, x: &'a DeviceBuffer<bf16>) -> GemmInput<'a> {
        match products {
            Products::LibraryFp8 => GemmInput::Fp8(self.rounded()),
            _ => GemmInput::Bf16(x.all()),
        }
    }

    /// Where `x` stands for own products in e4m3.
    pub fn x_codes(&self, products: Products) -> Option<Fp8Groups<'_>> {
        let groups = Fp8Groups { codes: self.codes.all(), scales: self.code_scales.all(), max_rows: self.max_rows };
        (products == Products::WideFp8).then_some(groups)
    }

    /// Where `gated` stands for them.
    pub fn gated_codes(&self, products: Products) -> Option<Fp8Groups<'_>> {
        let (codes, scales) = (self.gated_codes.all(), self.gated_scales.all());
        (products == Products::WideFp8).then_some(Fp8Groups { codes, scales, max_rows: self.max_rows })
    }

    /// Where the norm of rows from `start` on is prepared.
    pub fn next_norm<'a>(&'a self, start: usize, weight: &'a DeviceBuffer<f32>) -> NextNorm<'a> {
        NextNorm { weight, x: self.rows_of(&self.x, start), codes: None, sumsq: self.rows_of(&self.sumsq, start) }
    }
}

fn widths(config: &ModelConfig) -> [usize; 4] {
    let q = config.num_heads * config.head_dim;
    [config.hidden_size, q + 2 * config.num_kv_heads * config.head_dim, q, config.intermediate_size]
}

fn decode_bytes(config: &ModelConfig, size: WorkspaceSize) -> usize {
    decode_workspace_bytes(size.max_sequences, config.num_heads, config.head_dim, size.max_context_len)
}

/// The tables of a step on the device.
#[derive(Debug, Clone, Copy)]
pub struct StepAddresses<'a> {
    /// `[num_rows]`; -1 - i stands for `choices[i]`.
    pub token_ids: DeviceSlice<'a, i32>,
    /// Tokens that the step before chose.
    pub choices: DeviceSlice<'a, i32>,
    /// `[num_rows]`.
    pub positions: DeviceSlice<'a, i32>,
    /// `[num_rows]`.
    pub slots: DeviceSlice<'a, i32>,
    /// `[num_logit_rows]`.
    pub logit_rows: DeviceSlice<'a, i32>,
    /// `[num_decodes]`.
    pub context_lens: DeviceSlice<'a, i32>,
    /// `[num_decodes, max_blocks]`.
    pub block_tables: DeviceSlice<'a, i32>,
    /// `[num_prefills]`.
    pub prefill_context_lens: DeviceSlice<'a, i32>,
    /// `[num_prefills + 1]`.
    pub cu_seqlens: DeviceSlice<'a, i32>,
    /// `[num_prefills, max_blocks]`.
    pub prefill_block_tables: DeviceSlice<'a, i32>,
    /// `[num_logit_rows]` each, if tokens are drawn.
    pub draws: DrawTables<'a>,
}

impl<'a> StepAddresses<'a> {
    /// The tables of a layout in their memory.
    pub fn new(tables: &'a DeviceBuffer<i32>, choices: &'a DeviceBuffer<i32>, layout: TableLayout) -> Self {
        Self {
            token_ids: tables.slice(layout.token_ids),
            choices: choices.all(),
            positions: tables.slice(layout.positions),
            slots: tables.slice(layout.slots),
            logit_rows: tables.slice(layout.logit_rows),
            context_lens: tables.slice(layout.context_lens),
            block_tables: tables.slice(layout.block_tables),
            prefill_context_lens: tables.slice(layout.prefill_context_lens),
            cu_seqlens: tables.slice(layout.cu_seqlens),
            prefill_block_tables: tables.slice(layout.prefill_block_tables),
            draws: DrawTables {
                temperatures: tables.slice(layout.temperatures),
                top_ks: tables.slice(layout.top_ks),
                top_ps: tables.slice(layout.top_ps),
                min_ps: tables.slice(layout.min_ps),
                uniforms: tables.slice(layout.uniforms),
            },
        }
    }
}
