//! All layers of a step of one row in one kernel.
#![allow(unsafe_code, reason = "the kernel is foreign")]

use std::sync::Arc;

use half::bf16;

use super::buffer::{DeviceBuffer, DeviceSlice, at_least_or_null};
use super::error::CudaError;
use super::ffi;
use super::gpu::{Gpu, check};
use super::kv::{BLOCK_SIZE, CudaKv};
use super::ops::{Rope, SUMSQ_WIDTH, raw_rope, window};
use super::weight::DeviceWeight;

const OP: &str = "all layers in one kernel";

/// `cudaErrorNotSupported`: there is no code for these shapes or this card.
const NO_CODE: i32 = 801;

/// What a layer is made of, as the ops of their own take it.
#[derive(Debug, Clone, Copy)]
pub struct MegakernelLayer<'a> {
    /// `[(NH + 2 KVH) * D, H]`.
    pub qkv: &'a DeviceWeight,
    /// `[H, NH * D]`.
    pub o: &'a DeviceWeight,
    /// `[2 I, H]`, gate over up.
    pub gate_up: &'a DeviceWeight,
    /// `[H, I]`.
    pub down: &'a DeviceWeight,
    /// `[(NH + 2 KVH) * D]`.
    pub qkv_bias: Option<&'a DeviceBuffer<f32>>,
    /// Of the norms over each head of Q and of K, `[D]`.
    pub head_norms: Option<(&'a DeviceBuffer<f32>, &'a DeviceBuffer<f32>)>,
    /// `[H]`.
    pub post_attention_norm: &'a DeviceBuffer<f32>,
    /// Of the next layer, or the one before the head, `[H]`.
    pub next_norm: &'a DeviceBuffer<f32>,
}

/// What all layers share.
#[derive(Debug, Clone, Copy)]
pub struct MegakernelShape<'a> {
    /// Query heads.
    pub num_heads: usize,
    /// Tokens that a sequence may have.
    pub max_context_len: usize,
    /// Positions that a query sees, if not all.
    pub sliding_window: Option<usize>,
    /// Of the norms.
    pub eps: f32,
    /// Turns of Q and K.
    pub rope: &'a Rope,
}

/// What a step of one row works on.
#[derive(Debug, Clone, Copy)]
pub struct MegakernelStep<'a> {
    /// `[H]`, of the embedding; then of the last layer.
    pub residual: DeviceSlice<'a, f32>,
    /// `[H]`, prepared for the first layer; then for the head.
    pub x: DeviceSlice<'a, bf16>,
    /// `[H / 16]`, likewise.
    pub sumsq: DeviceSlice<'a, f32>,
    /// `[1]`.
    pub positions: DeviceSlice<'a, i32>,
    /// `[1]`.
    pub slots: DeviceSlice<'a, i32>,
    /// `[max_context_len / 16]`.
    pub block_tables: DeviceSlice<'a, i32>,
    /// `[1]`.
    pub context_lens: DeviceSlice<'a, i32>,
}

/// The layers of one decoder over one pool, as their kernel takes them. What they are made of must outlive it.
#[derive(Debug)]
pub struct Megakernel {
    gpu: Arc<Gpu>,
    kernel: *mut ffi::Megakernel,
    hidden_size: usize,
    max_context_len: usize,
}

// SAFETY: a handle that its kernel only reads; steps are put on one stream.
unsafe impl Send for Megakernel {}

impl Megakernel {
    /// Describes the layers to the device; none where there is no code for their shape or for the card.
    ///
    /// Errors: operands that are too small; out of memory.
    pub fn new(
        gpu: &Arc<Gpu>,
        shape: MegakernelShape<'_>,
        layers: &[MegakernelLayer<'_>],
        kv: &CudaKv,
    ) -> Result<Option<Self>, CudaError> {
        let (Some(first), kv_shape) = (layers.first(), kv.shape()) else { return Ok(None) };
        if layers.len() != kv_shape.num_layers {
            return Ok(None);
        }
        let decoder = ffi::Decoder {
            num_layers: layers.len() as i32,
            num_heads: shape.num_heads as i32,
            max_context_len: shape.max_context_len as i32,
            sliding_window: window(shape.sliding_window),
            scale: 1.0 / (kv_shape.head_dim as f32).sqrt(),
            eps: shape.eps,
            // Each layer has norms over heads of its own.
            rope: ffi::Rope { norm_eps: shape.eps, ..raw_rope(OP, (shape.rope, None), kv_shape.head_dim)? },
            kv: kv.raw(0),
        };
        let described = layers.iter().enumerate().map(|(index, layer)| layer.raw(kv, index));
        let described = described.collect::<Result<Vec<_>, _>>()?;
        let mut kernel = std::ptr::null_mut();
        // SAFETY: there are as many layers as `decoder` says; each vector has the length of its matrix.
        let code = unsafe { ffi::aisp_megakernel_create(gpu.ctx(), &decoder, described.as_ptr(), &mut kernel) };
        if code == NO_CODE {
            return Ok(None);
        }
        check(OP, code)?;
        let (hidden_size, max_context_len) = (first.qkv.in_features(), shape.max_context_len);
        Ok(Some(Self { gpu: gpu.clone(), kernel, hidden_size, max_context_len }))
    }

    /// Tokens that a sequence may have.
    pub fn max_context_len(&self) -> usize {
        self.max_context_len
    }

    /// Puts the layers of a step on the stream; the bits are those of the ops of their own.
    ///
    /// Errors: operands that are too small; a failed launch.
    pub fn run(&self, step: MegakernelStep<'_>) -> Result<(), CudaError> {
        let args = ffi::MegakernelArgs {
            residual: step.residual.at_least(OP, "residual", self.hidden_size)?,
            x: step.x.at_least(OP, "x", self.hidden_size)?.cast(),
            sumsq: step.sumsq.at_least(OP, "sums of squares", self.hidden_size / SUMSQ_WIDTH)?,
            positions: step.positions.at_least(OP, "positions", 1)?,
            slot_mapping: step.slots.at_least(OP, "slots", 1)?,
            block_tables: step.block_tables.at_least(OP, "block tables", self.max_context_len / BLOCK_SIZE)?,
            context_lens: step.context_lens.at_least(OP, "context lengths", 1)?,
        };
        // SAFETY: every operand has the size that its shape asks for; who writes the tables keeps blocks in the pool, the
        // position in the rope table and the context within its bound.
        let code = unsafe { ffi::aisp_megakernel_run(self.gpu.ctx(), self.kernel, &args, self.gpu.stream()) };
        check(OP, code)
    }
}

impl MegakernelLayer<'_> {
    fn raw(&self, kv: &CudaKv, index: usize) -> Result<ffi::DecoderLayer, CudaError> {
        let vector =
            |buffer: &DeviceBuffer<f32>, what, len| buffer.all().at_least(OP, what, len).map(<*mut f32>::cast_const);
        let (hidden, pool, dim) = (self.qkv.in_features(), kv.raw(index), kv.shape().head_dim);
        Ok(ffi::DecoderLayer {
            qkv: self.qkv.raw(),
            o: self.o.raw(),
            gate_up: self.gate_up.raw(),
            down: self.down.raw(),
            qkv_bias: at_least_or_null(self.qkv_bias, OP, "bias", self.qkv.out_features())?,
            post_attention_norm: vector(self.post_attention_norm, "norm", hidden)?,
            next_norm: vector(self.next_norm, "norm", hidden)?,
            q_norm: at_least_or_null(self.head_norms.map(|(q, _)| q), OP, "head norm", dim)?,
            k_norm: at_least_or_null(self.head_norms.map(|(_, k)| k), OP, "head norm", dim)?,
            k: pool.k,
            v: pool.v,
            k_scales: pool.k_scales,
            v_scales: pool.v_scales,
        })
    }
}

impl Drop for Megakernel {
    fn drop(&mut self) {
        // SAFETY: made by `new`, closed once; a step under way is ended first.
        unsafe {
            ffi::aisp_stream_synchronize(self.gpu.stream());
            ffi::aisp_megakernel_destroy(self.kernel);
        }
    }
}
