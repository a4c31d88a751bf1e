//! The C interface of `cuda/aisp_cuda.h`, declaration for declaration; what each does stands there.
#![allow(missing_docs, reason = "the header says it")]
#![allow(unsafe_code, reason = "declarations of foreign functions; who calls one says why it is sound")]
#![allow(dead_code, reason = "the interface is declared whole")]

use std::ffi::{c_char, c_int, c_void};

pub type Stream = *mut c_void;
pub type Event = *mut c_void;
pub type Graph = *mut c_void;

/// Opaque.
#[repr(C)]
pub struct Ctx {
    _private: [u8; 0],
}

/// Opaque.
#[repr(C)]
pub struct Gemm {
    _private: [u8; 0],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct DeviceInfo {
    pub name: [c_char; 128],
    pub compute_major: i32,
    pub compute_minor: i32,
    pub sm_count: i32,
    pub l2_bytes: i32,
    pub shared_bytes_per_block: i32,
    pub driver_version: i32,
    pub runtime_version: i32,
    pub total_bytes: u64,
    pub free_bytes: u64,
}

pub const CTX_PDL: u32 = 1;

pub const BF16: i32 = 0;
pub const F32: i32 = 1;
pub const FP8: i32 = 2;
pub const W8G32: i32 = 3;
pub const W4G32: i32 = 4;
pub const NVFP4: i32 = 5;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Weight {
    pub format: i32,
    pub n: i32,
    pub k: i32,
    pub tensor_scale: f32,
    pub data: *const c_void,
    pub scales: *const c_void,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RowsOut {
    pub x: *mut c_void,
    pub codes: *mut u8,
    pub scales: *mut f32,
}

pub const GEMM_BF16: i32 = 0;
pub const GEMM_F32: i32 = 1;
pub const GEMM_ADD: i32 = 2;

pub const OUT_BF16: i32 = 0;
pub const OUT_F32: i32 = 1;
pub const OUT_RESIDUAL: i32 = 2;
pub const OUT_SILU_MUL: i32 = 3;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct LinearArgs {
    pub x: *const c_void,
    pub ldx: i64,
    pub x_sumsq: *const f32,
    pub eps: f32,
    pub bias: *const f32,
    pub output: i32,
    pub out: *mut c_void,
    pub ldo: i64,
    pub next_norm_weight: *const f32,
    pub next_x: *mut c_void,
    pub next_sumsq: *mut f32,
    pub x_scales: *const f32,
    pub next_scales: *mut f32,
    pub ld_scales: i64,
    pub row_ids: *const i32,
    pub num_rows: i32,
}

#[repr(C)]
pub struct Sampling {
    pub temperature: *const f32,
    pub top_k: *const i32,
    pub top_p: *const f32,
    pub min_p: *const f32,
    pub uniform: *const f64,
}

pub const KV_BF16: i32 = 0;
pub const KV_FP8: i32 = 2;
pub const KV_FP4: i32 = 3;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct KvLayer {
    pub k: *mut c_void,
    pub v: *mut c_void,
    pub k_scales: *mut c_void,
    pub v_scales: *mut c_void,
    pub kv_format: i32,
    pub num_kv_heads: i32,
    pub head_dim: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Rope {
    pub cos: *const f32,
    pub sin: *const f32,
    pub style: i32,
    pub q_norm: *const f32,
    pub k_norm: *const f32,
    pub norm_eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct DecodeArgs {
    pub q: *mut c_void,
    pub out: *mut c_void,
    pub block_tables: *const i32,
    pub max_blocks: i32,
    pub context_lens: *const i32,
    pub num_seqs: i32,
    pub num_heads: i32,
    pub max_context_len: i32,
    pub sliding_window: i32,
    pub scale: f32,
    pub workspace: *mut c_void,
    pub next_is_small: i32,
    pub num_splits: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PrefillArgs {
    pub q: *const c_void,
    pub out: *mut c_void,
    pub block_tables: *const i32,
    pub max_blocks: i32,
    pub cu_seqlens_q: *const i32,
    pub context_lens: *const i32,
    pub num_seqs: i32,
    pub max_query_len: i32,
    pub num_heads: i32,
    pub sliding_window: i32,
    pub scale: f32,
}

unsafe extern "C" {
    pub fn aisp_open_library(library: c_int, candidates: *const *const c_char) -> *const c_char;

    pub fn aisp_error_string(code: c_int) -> *const c_char;
    pub fn aisp_device_count(count: *mut i32) -> c_int;
    pub fn aisp_device_get_info(device: i32, info: *mut DeviceInfo) -> c_int;
    pub fn aisp_device_set(device: i32) -> c_int;
    pub fn aisp_ctx_create(device: i32, flags: u32, out: *mut *mut Ctx) -> c_int;
    pub fn aisp_ctx_destroy(ctx: *mut Ctx) -> c_int;
    pub fn aisp_ctx_has_cublaslt(ctx: *const Ctx) -> i32;

    pub fn aisp_malloc(out: *mut *mut c_void, bytes: usize) -> c_int;
    pub fn aisp_free(ptr: *mut c_void) -> c_int;
    pub fn aisp_malloc_host(out: *mut *mut c_void, bytes: usize) -> c_int;
    pub fn aisp_free_host(ptr: *mut c_void) -> c_int;
    pub fn aisp_memcpy_h2d(dst: *mut c_void, src: *const c_void, bytes: usize, stream: Stream) -> c_int;
    pub fn aisp_memcpy_d2h(dst: *mut c_void, src: *const c_void, bytes: usize, stream: Stream) -> c_int;
    pub fn aisp_memset(dst: *mut c_void, byte: i32, bytes: usize, stream: Stream) -> c_int;

    pub fn aisp_stream_create(out: *mut Stream) -> c_int;
    pub fn aisp_stream_destroy(stream: Stream) -> c_int;
    pub fn aisp_stream_synchronize(stream: Stream) -> c_int;
    pub fn aisp_event_create(out: *mut Event, with_timing: i32) -> c_int;
    pub fn aisp_event_destroy(event: Event) -> c_int;
    pub fn aisp_event_record(event: Event, stream: Stream) -> c_int;
    pub fn aisp_event_synchronize(event: Event) -> c_int;
    pub fn aisp_event_elapsed_ms(ms: *mut f32, start: Event, end: Event) -> c_int;

    pub fn aisp_graph_begin_capture(stream: Stream) -> c_int;
    pub fn aisp_graph_end_capture(stream: Stream, out: *mut Graph, num_nodes: *mut usize) -> c_int;
    pub fn aisp_graph_upload(graph: Graph, stream: Stream) -> c_int;
    pub fn aisp_graph_launch(graph: Graph, stream: Stream) -> c_int;
    pub fn aisp_graph_destroy(graph: Graph) -> c_int;

    pub fn aisp_weight_data_bytes(format: i32, n: i32, k: i32) -> usize;
    pub fn aisp_weight_scales_bytes(format: i32, n: i32, k: i32) -> usize;
    pub fn aisp_pack_gguf_rows(
        ggml_type: i32,
        n_begin: i32,
        n_end: i32,
        k: i32,
        blocks: *const c_void,
        dst_data: *mut c_void,
        dst_scales: *mut c_void,
    ) -> c_int;
    pub fn aisp_quantize_weight(
        ctx: *const Ctx,
        format: i32,
        n: i32,
        k: i32,
        w: *const c_void,
        tensor_scale: f32,
        data: *mut c_void,
        scales: *mut c_void,
        stream: Stream,
    ) -> c_int;
    pub fn aisp_absmax(ctx: *const Ctx, x: *const c_void, count: usize, out: *mut f32, stream: Stream) -> c_int;
    pub fn aisp_dequantize(ctx: *const Ctx, w: *const Weight, out: *mut c_void, stream: Stream) -> c_int;
    pub fn aisp_fill_normal(
        ctx: *const Ctx,
        out: *mut c_void,
        count: usize,
        seed: u64,
        mean: f32,
        std: f32,
        stream: Stream,
    ) -> c_int;

    pub fn aisp_linear(ctx: *const Ctx, w: *const Weight, args: *const LinearArgs, stream: Stream) -> c_int;
    pub fn aisp_wide_linear(ctx: *const Ctx, w: *const Weight, args: *const LinearArgs, stream: Stream) -> c_int;
    pub fn aisp_has_wide_linear(ctx: *const Ctx) -> i32;
    pub fn aisp_gemm_create(ctx: *const Ctx, format: i32, output: i32, n: i32, k: i32, out: *mut *mut Gemm) -> c_int;
    pub fn aisp_gemm_destroy(gemm: *mut Gemm) -> c_int;
    pub fn aisp_gemm_tune(
        gemm: *mut Gemm,
        num_rows: i32,
        x: *const c_void,
        x_scales: *const f32,
        w: *const c_void,
        w_scales: *const f32,
        out: *mut c_void,
        workspace: *mut c_void,
        workspace_bytes: usize,
        flush: *mut c_void,
        flush_bytes: usize,
        stream: Stream,
        best_us: *mut f32,
    ) -> c_int;
    pub fn aisp_gemm_run(
        gemm: *mut Gemm,
        num_rows: i32,
        x: *const c_void,
        x_scales: *const f32,
        w: *const c_void,
        w_scales: *const f32,
        out: *mut c_void,
        workspace: *mut c_void,
        workspace_bytes: usize,
        stream: Stream,
    ) -> c_int;
    pub fn aisp_embedding(
        ctx: *const Ctx,
        table: *const Weight,
        token_ids: *const i32,
        choices: *const i32,
        num_choices: i32,
        num_tokens: i32,
        residual: *mut f32,
        next_norm_weight: *const f32,
        next_x: *mut c_void,
        next_sumsq: *mut f32,
        stream: Stream,
    ) -> c_int;
    pub fn aisp_rms_norm(
        ctx: *const Ctx,
        residual: *const f32,
        weight: *const f32,
        eps: f32,
        num_tokens: i32,
        hidden_size: i32,
        out: *const RowsOut,
        stream: Stream,
    ) -> c_int;
    pub fn aisp_silu_mul(
        ctx: *const Ctx,
        gate_up: *const c_void,
        num_tokens: i32,
        intermediate_size: i32,
        out: *const RowsOut,
        stream: Stream,
    ) -> c_int;
    pub fn aisp_rope_store(
        ctx: *const Ctx,
        qkv: *const c_void,
        qkv_format: i32,
        rope: *const Rope,
        positions: *const i32,
        slot_mapping: *const i32,
        num_tokens: i32,
        num_heads: i32,
        kv: *const KvLayer,
        q: *mut c_void,
        stream: Stream,
    ) -> c_int;
    pub fn aisp_decode_workspace_bytes(max_seqs: i32, num_heads: i32, head_dim: i32, max_context_len: i32) -> usize;
    pub fn aisp_decode_splits(ctx: *const Ctx, kv: *const KvLayer, args: *const DecodeArgs) -> i32;
    pub fn aisp_decode_attention(ctx: *const Ctx, kv: *const KvLayer, args: *const DecodeArgs, stream: Stream)
    -> c_int;
    pub fn aisp_rope_decode_attention(
        ctx: *const Ctx,
        qkv: *const f32,
        rope: *const Rope,
        positions: *const i32,
        slot_mapping: *const i32,
        kv: *const KvLayer,
        args: *const DecodeArgs,
        stream: Stream,
    ) -> c_int;
    pub fn aisp_prefill_attention(
        ctx: *const Ctx,
        kv: *const KvLayer,
        args: *const PrefillArgs,
        stream: Stream,
    ) -> c_int;
    pub fn aisp_copy_blocks(
        ctx: *const Ctx,
        kv: *const KvLayer,
        pairs: *const i32,
        num_pairs: i32,
        stream: Stream,
    ) -> c_int;
    pub fn aisp_argmax_workspace_bytes(max_rows: i32) -> usize;
    pub fn aisp_sample(
        ctx: *const Ctx,
        logits: *const f32,
        ld: i64,
        num_rows: i32,
        vocab_size: i32,
        params: *const Sampling,
        token_ids: *mut i32,
        stream: Stream,
    ) -> c_int;
    pub fn aisp_argmax(
        ctx: *const Ctx,
        logits: *const f32,
        ld: i64,
        num_rows: i32,
        vocab_size: i32,
        token_ids: *mut i32,
        workspace: *mut c_void,
        stream: Stream,
    ) -> c_int;
    pub fn aisp_probe_read(ctx: *const Ctx, src: *const c_void, bytes: usize, out: *mut f32, stream: Stream) -> c_int;
    pub fn aisp_probe_copy(
        ctx: *const Ctx,
        src: *const c_void,
        dst: *mut c_void,
        bytes: usize,
        stream: Stream,
    ) -> c_int;
    pub fn aisp_quantize_rows(
        ctx: *const Ctx,
        x: *const c_void,
        num_rows: i32,
        k: i32,
        codes: *mut u8,
        scales: *mut f32,
        stream: Stream,
    ) -> c_int;
    pub fn aisp_memcpy_d2d(dst: *mut c_void, src: *const c_void, bytes: usize, stream: Stream) -> c_int;
    pub fn aisp_probe_empty(ctx: *const Ctx, stream: Stream) -> c_int;
}
