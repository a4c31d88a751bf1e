// The C interface of aisp's CUDA kernels. Everything the Rust side needs on a card stands here: memory, streams,
// graphs, the ops of a decoder, packing of quantized weights, and matrix products through cuBLASLt.
//
// Rules that hold for every op (a function whose last parameter is `stream`):
//   * pointers are device pointers, aligned to 16 bytes; leading dimensions and K are multiples of 8 values;
//   * nothing is allocated, nothing waits on the host, inputs that change between steps come from device tables, so
//     every op can be captured in a CUDA graph; grids depend on shapes only;
//   * the result is a cudaError_t (0 = success); a cuBLASLt failure is 100000 + cublasStatus_t;
//   * arithmetic accumulates in f32. Activations between ops are bf16; the residual stream and logits are f32, because
//     a bf16 residual loses 2^-9 of the running sum at each of 2L additions, and its 4 bytes a value cost nothing next
//     to the weights. QKV may be f32 too (see aisp_rope_store);
//   * batch invariance: a row's result is the same bits for any number of rows in the call, except where it says not.
//
// Words: T = num_tokens (rows of a step), H = hidden_size, NH = num_heads, KVH = num_kv_heads, D = head_dim,
// I = intermediate_size, V = vocab_size. Matrices are row-major, `[rows, columns]`.
#ifndef AISP_CUDA_H
#define AISP_CUDA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef void *aisp_stream;    // cudaStream_t
typedef void *aisp_event;     // cudaEvent_t
typedef void *aisp_graph;     // cudaGraphExec_t
typedef uint16_t aisp_bf16;   // bits of a bf16
typedef uint16_t aisp_f16;    // bits of an IEEE half
typedef struct aisp_ctx aisp_ctx;   // what is known of one device; made once, read by every op, usable from any thread
typedef struct aisp_gemm aisp_gemm; // one weight shape's cuBLASLt plans

// ---------------------------------------------------------------------------------------------- device and memory

typedef struct {
  char name[128];
  int32_t compute_major, compute_minor;
  int32_t sm_count;
  int32_t l2_bytes;
  int32_t shared_bytes_per_block; // opt-in maximum
  int32_t driver_version;         // 13000 = 13.0; 0 without a driver
  int32_t runtime_version;
  uint64_t total_bytes, free_bytes;
} aisp_device_info;

// Text of a code returned by any function here. Never NULL, lives forever.
const char *aisp_error_string(int code);
int aisp_device_count(int32_t *count);
int aisp_device_get_info(int32_t device, aisp_device_info *info);
// Makes `device` current for the calling thread. Every thread that calls the functions below must have done it.
int aisp_device_set(int32_t device);
int aisp_device_synchronize(void);
// The last error of this thread's calls, cleared unless it is sticky.
int aisp_last_error(void);

enum {
  AISP_CTX_PDL = 1, // programmatic dependent launch: an op starts while its predecessor drains (sm_90 and newer)
};
// `flags`: AISP_CTX_*. Raises the shared-memory limits of the kernels, loads cuBLASLt if it is found.
int aisp_ctx_create(int32_t device, uint32_t flags, aisp_ctx **out);
int aisp_ctx_destroy(aisp_ctx *ctx);
// 1 if libcublasLt was found; without it aisp_gemm_* return cudaErrorNotSupported (801).
int32_t aisp_ctx_has_cublaslt(const aisp_ctx *ctx);

int aisp_malloc(void **out, size_t bytes);
int aisp_free(void *ptr);
int aisp_malloc_host(void **out, size_t bytes); // pinned
int aisp_free_host(void *ptr);
int aisp_memcpy_h2d(void *dst, const void *src, size_t bytes, aisp_stream stream); // async when src is pinned
int aisp_memcpy_d2h(void *dst, const void *src, size_t bytes, aisp_stream stream); // async when dst is pinned
int aisp_memcpy_d2d(void *dst, const void *src, size_t bytes, aisp_stream stream);
int aisp_memset(void *dst, int32_t byte, size_t bytes, aisp_stream stream);

int aisp_stream_create(aisp_stream *out); // non-blocking, highest priority
int aisp_stream_destroy(aisp_stream stream);
int aisp_stream_synchronize(aisp_stream stream);
int aisp_stream_query(aisp_stream stream); // 0 done, 600 (cudaErrorNotReady) running
int aisp_stream_wait_event(aisp_stream stream, aisp_event event);
int aisp_event_create(aisp_event *out, int32_t with_timing);
int aisp_event_destroy(aisp_event event);
int aisp_event_record(aisp_event event, aisp_stream stream);
int aisp_event_synchronize(aisp_event event);
int aisp_event_query(aisp_event event);
int aisp_event_elapsed_ms(float *ms, aisp_event start, aisp_event end);

int aisp_graph_begin_capture(aisp_stream stream); // thread-local mode
// Ends the capture and instantiates. `num_nodes` may be NULL. On failure the stream leaves capture mode.
int aisp_graph_end_capture(aisp_stream stream, aisp_graph *out, size_t *num_nodes);
int aisp_graph_upload(aisp_graph graph, aisp_stream stream);
int aisp_graph_launch(aisp_graph graph, aisp_stream stream);
int aisp_graph_destroy(aisp_graph graph);

// ------------------------------------------------------------------------------------------------------- weights

// How a weight matrix W [N, K] lies on the device.
typedef enum {
  AISP_BF16 = 0,  // bf16 [N, K], natural order (cuBLASLt reads the same bytes)
  AISP_F32 = 1,   // only for activations and outputs
  AISP_FP8 = 2,   // e4m3 [N, K]; `scales` f32 [N]: w = code * scale[n]
  AISP_W8G32 = 3, // int8 codes, `scales` f16 [N, K32]: w = code * scale[n, k / 32] (GGUF Q8_0 exactly)
  AISP_W4G32 = 4, // codes 0..15, `scales` f16 pairs (scale, min) [N, K32, 2]: w = code * scale + min.
                  // Q4_0: min = -8 scale. Q4_1: as is. Q4_K: scale = d sc, min = -dmin m, rounded to f16.
  AISP_NVFP4 = 5, // e2m1 codes, `scales` e4m3 [N, K16]: w = e2m1[code] * scale * tensor_scale
} aisp_format;

// A weight matrix on the device. K is padded for quantized formats (aisp_packed_k), codes lie as aisp_pack_* write them.
typedef struct {
  int32_t format; // aisp_format
  int32_t n;      // output features
  int32_t k;      // input features (not padded)
  float tensor_scale; // NVFP4; others ignore it
  const void *data;
  const void *scales; // NULL for bf16
} aisp_weight;

// K of the stored rows: k for BF16 and FP8 (a multiple of 8 and 16), else the next multiple of 128; scales reach to the next
// multiple of 256.
int32_t aisp_packed_k(int32_t format, int32_t k);
size_t aisp_weight_data_bytes(int32_t format, int32_t n, int32_t k);
size_t aisp_weight_scales_bytes(int32_t format, int32_t n, int32_t k);

// Host-side packing of rows [n_begin, n_end) (rows are independent: call it from several threads, or row by row).
// `dst_data`, `dst_scales` are the host images of the whole device buffers. Natural inputs, row-major over all rows:
//   FP8:   codes e4m3 [N, K], scales f32 [N]
//   W8G32: codes int8 [N, K], scales f16 [N, K/32]
//   W4G32: codes uint8 [N, K] one code a byte, scale_min f16 [N, K/32, 2]
//   NVFP4: codes uint8 [N, K] one e2m1 code a byte, scales e4m3 [N, K/16]
// K is a multiple of 32 (16 for NVFP4 and FP8). Returns 0 or cudaErrorInvalidValue.
int aisp_pack_rows(int32_t format, int32_t n_begin, int32_t n_end, int32_t k, const void *codes, const void *scales,
                   void *dst_data, void *dst_scales);
// The same straight from GGUF blocks of rows [n_begin, n_end): `ggml_type` 2 = Q4_0, 3 = Q4_1, 8 = Q8_0, 12 = Q4_K.
// `blocks` points to row n_begin. Q8_0 packs to W8G32, the others to W4G32.
int aisp_pack_gguf_rows(int32_t ggml_type, int32_t n_begin, int32_t n_end, int32_t k, const void *blocks,
                        void *dst_data, void *dst_scales);
// On the device, at load: bf16 [N, K] to a lossy format (FP8 per-channel absmax / 448, W8G32 absmax / 127,
// W4G32 asymmetric min-max, NVFP4 with the given tensor_scale = absmax(W) / (448 * 6)). Writes data and scales.
int aisp_quantize_weight(const aisp_ctx *ctx, int32_t format, int32_t n, int32_t k, const aisp_bf16 *w, float tensor_scale,
                         void *data, void *scales, aisp_stream stream);
// max |x| of `count` bf16 values into one f32 (for NVFP4's tensor_scale).
int aisp_absmax(const aisp_ctx *ctx, const aisp_bf16 *x, size_t count, float *out, aisp_stream stream);
// W as bf16 [N, K]; for prefill by aisp_gemm_run over a scratch.
int aisp_dequantize(const aisp_ctx *ctx, const aisp_weight *w, aisp_bf16 *out, aisp_stream stream);
// Seeded normal values: out[i] = mean + std * normal(seed, i), bf16. Same bits on every device.
int aisp_fill_normal(const aisp_ctx *ctx, aisp_bf16 *out, size_t count, uint64_t seed, float mean, float std, aisp_stream stream);
int aisp_fill_normal_f32(const aisp_ctx *ctx, float *out, size_t count, uint64_t seed, float mean, float std, aisp_stream stream);

// -------------------------------------------------------------------------------------------------------- linear

// How a product leaves: with z = x W^T, after the input scale and bias below.
typedef enum {
  AISP_OUT_BF16 = 0,     // out bf16 [T, N] = z
  AISP_OUT_F32 = 1,      // out f32 [T, N] = z
  AISP_OUT_RESIDUAL = 2, // out f32 [T, N] += z, and, if next_norm_weight is given, next_x and next_sumsq (below)
  AISP_OUT_SILU_MUL = 3, // W rows are [gate; up], each N/2: out bf16 [T, N/2] = silu(z[:, :N/2]) * z[:, N/2:]
} aisp_output;

// RMSNorm without a kernel of its own. A producer (AISP_OUT_RESIDUAL or aisp_embedding) leaves
//   next_x     bf16 [T, N]    = residual * next_norm_weight                (not yet divided by the RMS)
//   next_sumsq f32  [T, N/16] = sum of residual^2 over each 16 columns
// and the consuming linear divides: z = (next_x W^T) / sqrt(sum(next_sumsq) / K + eps). The sum runs in a fixed order.
typedef struct {
  const aisp_bf16 *x;       // [T, K], rows ldx apart
  int64_t ldx;              // values
  const float *x_sumsq;     // NULL: x is used as it is. Else f32 [T, K/16]; K is a multiple of 16
  float eps;                // of that norm
  const float *bias;        // NULL or f32 [N]
  int32_t output;           // aisp_output
  void *out;
  int64_t ldo;              // values
  const float *next_norm_weight; // NULL or f32 [N]; N is a multiple of 16
  aisp_bf16 *next_x;        // [T, N]
  float *next_sumsq;        // [T, N/16]
  // x in e4m3, for aisp_wide_linear of FP8 weights: codes in the order of weights and a scale for each 64 of them, f32 [K / 64, T],
  // rows of this table ld_scales apart (a multiple of 4). K is a multiple of 64.
  const float *x_scales;    // NULL: x is bf16
  float *next_scales;       // NULL, or next_x (of AISP_OUT_SILU_MUL: out) leaves so, times these: f32 [N / 64, T]; N, or N / 2, a multiple of 64
  int64_t ld_scales;
  const int32_t *row_ids;   // NULL, or [T]: row t of x (and of x_sumsq) is row_ids[t] (rows that want logits); a table of the step
  int32_t num_rows;         // T
} aisp_linear_args;

// Rows that aisp_linear takes in one call; kernels exist for up to 8, 16, 32 and 64.
#define AISP_LINEAR_MAX_ROWS 64
// With AISP_CTX_PDL, weights, norms, biases and row_ids are read while kernels launched before still run, which must not write
// them: wait for the stream once after loading.
// Weight bytes are read once; 1..64 rows; every format. N is a multiple of 16 (32 for SILU_MUL).
// Order of sums: K is cut in 8 slices at multiples of 256 (bf16: 128); each slice is summed in order by f32 tensor-core
// accumulation over K; slices are added in order. It does not depend on T.
int aisp_linear(const aisp_ctx *ctx, const aisp_weight *w, const aisp_linear_args *args, aisp_stream stream);

// The same for any number of rows, without row_ids; faster from 9 on: each 128 rows read the weights once. 801 where
// aisp_has_wide_linear is 0. Codes become bf16 before they are multiplied, with their scales: W8G32 and W4G32 are rounded
// once more. Order of sums: K is cut in slices by the shape and the number of rows, each summed in order of k; slices are
// added in order. So bits depend on how many rows are in the call.
int aisp_wide_linear(const aisp_ctx *ctx, const aisp_weight *w, const aisp_linear_args *args, aisp_stream stream);
// 1 on cards that aisp_wide_linear has code for (sm_90a).
int32_t aisp_has_wide_linear(const aisp_ctx *ctx);

// Products of many rows through cuBLASLt. One object a weight shape, made at load. Not batch-invariant across buckets
// of num_rows. `format`: AISP_BF16 or AISP_FP8 (x is then e4m3 with a scale a row, see aisp_quantize_rows).
// `output`: of AISP_GEMM_*; AISP_GEMM_ADD adds to the f32 values that are there.
enum { AISP_GEMM_BF16 = 0, AISP_GEMM_F32 = 1, AISP_GEMM_ADD = 2 };
int aisp_gemm_create(const aisp_ctx *ctx, int32_t format, int32_t output, int32_t n, int32_t k, aisp_gemm **out);
int aisp_gemm_destroy(aisp_gemm *gemm);
// Times every algorithm the heuristics offer for `num_rows` on the given buffers (their contents are used, out is
// overwritten, by AISP_GEMM_ADD many times added to) and keeps the fastest for calls of up to num_rows rows. At load, not in a capture: it waits on the host.
// `flush` (may be NULL): a buffer of flush_bytes overwritten before each timing, to keep weights out of the L2.
int aisp_gemm_tune(aisp_gemm *gemm, int32_t num_rows, const void *x, const float *x_scales, const void *w,
                   const float *w_scales, void *out, void *workspace, size_t workspace_bytes, void *flush,
                   size_t flush_bytes, aisp_stream stream, float *best_us);
// out [T, N] = x [T, K] W^T, or += (a bias is not applied here). Uses the plan of the smallest tuned bucket >= num_rows, or
// the first heuristic when there is none. Workspace: 32 MiB is plenty; the same size as at tuning.
int aisp_gemm_run(aisp_gemm *gemm, int32_t num_rows, const void *x, const float *x_scales, const void *w,
                  const float *w_scales, void *out, void *workspace, size_t workspace_bytes, aisp_stream stream);
// e4m3 rows with a scale each: scale = max(absmax, tiny) / 448. x bf16 [T, K] -> codes [T, K] in the order of FP8 weights
// (K a multiple of 16), scales f32 [T].
int aisp_quantize_rows(const aisp_ctx *ctx, const aisp_bf16 *x, int32_t num_rows, int32_t k, uint8_t *codes, float *scales,
                       aisp_stream stream);
// The same with a scale for each 64 values of a row, as aisp_linear_args.x_scales has them: f32 [K / 64, ld_scales].
int aisp_quantize_groups(const aisp_ctx *ctx, const aisp_bf16 *x, int32_t num_rows, int32_t k, uint8_t *out, float *scales,
                         int64_t ld_scales, aisp_stream stream);

// ----------------------------------------------------------------------------------------------------- pointwise

// residual[t] = table[token_ids[t]] in f32. `table`: a weight of any format whose rows are tokens (N = V, K = H).
// next_norm_weight, next_x, next_sumsq: as in aisp_linear_args (all NULL: not written). An id outside 0..V gives zeros.
// An id of -1 - i stands for choices[i], a token that an earlier op chose; choices NULL: there are none.
int aisp_embedding(const aisp_ctx *ctx, const aisp_weight *table, const int32_t *token_ids, const int32_t *choices, int32_t num_choices,
                   int32_t num_tokens, float *residual, const float *next_norm_weight, aisp_bf16 *next_x, float *next_sumsq, aisp_stream stream);

// What the next product reads: x bf16 [T, K], K a multiple of 4; or, where codes is not NULL, in its place what aisp_quantize_rows
// makes of the same values, K a multiple of 16.
typedef struct aisp_rows {
  aisp_bf16 *x;
  uint8_t *codes;
  float *scales;
} aisp_rows;

// out [T, H] = residual * weight / sqrt(mean(residual^2) + eps).
int aisp_rms_norm(const aisp_ctx *ctx, const float *residual, const float *weight, float eps, int32_t num_tokens,
                  int32_t hidden_size, const aisp_rows *out, aisp_stream stream);
// gate_up bf16 [T, 2 I], gate first -> out [T, I] = silu(gate) * up.
int aisp_silu_mul(const aisp_ctx *ctx, const aisp_bf16 *gate_up, int32_t num_tokens, int32_t intermediate_size, const aisp_rows *out,
                  aisp_stream stream);

// ------------------------------------------------------------------------------------------ KV cache and attention

#define AISP_BLOCK_SIZE 16
enum { AISP_KV_BF16 = 0, AISP_KV_FP8 = 2, AISP_KV_FP4 = 3 };

// One layer's pool. K and V each `[num_blocks, KVH, 16, D]`: a block's head is contiguous (16 D values).
// FP8: e4m3 and one f32 scale a position and head, k_scales and v_scales `[num_blocks, KVH, 16]`.
// FP4: e2m1, two a byte, `[num_blocks, KVH, 16, D / 2]`, and a bf16 scale each 16 values, `[num_blocks, KVH, 16, D / 16]`:
// 0.3125 of bf16's bytes. Value = code * scale; scale = the least bf16 >= absmax / 6; codes round to the nearest, ties
// towards zero: what the CPU's pool holds. Values 2i and 2i + 1 of a 32-bit word of 8 stand at bits 4i and 4i + 16.
typedef struct {
  void *k, *v;
  void *k_scales, *v_scales; // NULL for bf16
  int32_t kv_format;          // AISP_KV_*
  int32_t num_kv_heads;
  int32_t head_dim;           // attention: 32, 64, 96, 128 or 256 (801 for others)
} aisp_kv_layer;

enum { AISP_ROPE_NEOX = 0, AISP_ROPE_INTERLEAVED = 1 };
// The rope table: cos and sin f32 [num_positions, D / 2] (computed by the host in f64; scaling laws live there).
typedef struct {
  const float *cos, *sin;
  int32_t style;         // AISP_ROPE_*
  const float *q_norm;   // NULL, or f32 [D]: RMSNorm over each head before the turn (Qwen3)
  const float *k_norm;
  float norm_eps;
} aisp_rope;

// qkv [T, (NH + 2 KVH) D] (AISP_BF16 or AISP_F32): q is normed (if asked), turned and written to q bf16 [T, NH, D];
// k likewise and stored with v at slot_mapping[t] = block * 16 + offset; a slot below 0 stores nothing.
int aisp_rope_store(const aisp_ctx *ctx, const void *qkv, int32_t qkv_format, const aisp_rope *rope, const int32_t *positions,
                    const int32_t *slot_mapping, int32_t num_tokens, int32_t num_heads, const aisp_kv_layer *kv, aisp_bf16 *q,
                    aisp_stream stream);

// Decode attention: one query token a sequence, which stands at position context_lens[s] - 1 and is stored already.
// out bf16 [S, NH, D] = softmax(scale q K^T) V over the last min(context, sliding_window) positions.
// A sequence with context_lens 0 (padding of a bucket) gives zeros. block_tables i32 [S, max_blocks].
// Splits are AISP_SPLIT_SIZE positions, aligned to absolute positions, added in order: batch-invariant. Or a context is cut into
// equal parts of a multiple of 64 positions; how many suit a batch is known to aisp_decode_splits.
// `max_context_len` is the largest context the grid must cover (a graph captures it: use the bucket's limit);
// splits beyond a sequence's context leave at once. With AISP_CTX_PDL, tables (block_tables, context_lens, positions, slots, those of rope)
// are read while kernels launched before still run, and so are all blocks before the newest position's: since the last
// aisp_embedding, which lets its successors start only when all before it are done, they may write the newest position of these sequences alone.
// Workspace: aisp_decode_workspace_bytes, zeroed once before first use.
#define AISP_SPLIT_SIZE 256
typedef struct {
  aisp_bf16 *q;                // [S, NH, D]; read, but by aisp_rope_decode_attention
  aisp_bf16 *out;              // [S, NH, D]
  const int32_t *block_tables; // [S, max_blocks]
  int32_t max_blocks;
  const int32_t *context_lens; // [S]
  int32_t num_seqs;
  int32_t num_heads;
  int32_t max_context_len;
  int32_t sliding_window;      // 0 = none
  float scale;
  void *workspace;
  int32_t next_is_small;       // the next kernel moves few bytes: under AISP_CTX_PDL it may be launched at once
  // 0: splits of AISP_SPLIT_SIZE; n: at most n equal parts, where n num_seqs <= max(1024, num_seqs ceil(max_context_len / AISP_SPLIT_SIZE)).
  int32_t num_splits;
} aisp_decode_args;
size_t aisp_decode_workspace_bytes(int32_t max_seqs, int32_t num_heads, int32_t head_dim, int32_t max_context_len);
// The number of splits of equal size that is fastest for so many sequences on this card; args->num_splits is not read.
int32_t aisp_decode_splits(const aisp_ctx *ctx, const aisp_kv_layer *kv, const aisp_decode_args *args);
int aisp_decode_attention(const aisp_ctx *ctx, const aisp_kv_layer *kv, const aisp_decode_args *args, aisp_stream stream);
// The same out of qkv f32 [S, (NH + 2 KVH) D], with the bits of aisp_rope_store and aisp_decode_attention: in one kernel for
// heads of 64 and 128 and up to 8 query heads a kv head where that is faster, else in two. `args->q` is room for the queries.
int aisp_rope_decode_attention(const aisp_ctx *ctx, const float *qkv, const aisp_rope *rope, const int32_t *positions, const int32_t *slot_mapping,
                               const aisp_kv_layer *kv, const aisp_decode_args *args, aisp_stream stream);

// Prefill attention, ragged: sequence s owns rows cu_seqlens_q[s] .. cu_seqlens_q[s + 1] of q and out [T, NH, D], the
// last of which stands at position context_lens[s] - 1; earlier positions come from the pool (chunks, prefix hits).
// All keys and values are read from the pool. Causal. Batch-invariant, and invariant to how a prompt is chunked.
typedef struct {
  const aisp_bf16 *q;
  aisp_bf16 *out;
  const int32_t *block_tables;
  int32_t max_blocks;
  const int32_t *cu_seqlens_q; // [S + 1]
  const int32_t *context_lens; // [S]
  int32_t num_seqs;
  int32_t max_query_len;       // longest row count of a sequence: sizes the grid
  int32_t num_heads;
  int32_t sliding_window;
  float scale;
} aisp_prefill_args;
int aisp_prefill_attention(const aisp_ctx *ctx, const aisp_kv_layer *kv, const aisp_prefill_args *args, aisp_stream stream);

// Copies whole blocks inside one layer's pool: pairs i32 [num_pairs, 2] (from, to).
int aisp_copy_blocks(const aisp_ctx *ctx, const aisp_kv_layer *kv, const int32_t *pairs, int32_t num_pairs, aisp_stream stream);
// Bytes of K, or of V, and of its scales that one position of one kv head takes.
size_t aisp_kv_row_bytes(int32_t kv_format, int32_t head_dim);
size_t aisp_kv_scale_bytes(int32_t kv_format, int32_t head_dim);

// ------------------------------------------------------------------------------------------------------ sampling

// token_ids[r] = index of the largest logit of row r, the lowest index among equals; 0x7fffffff for a row
// with a NaN.
// Workspace: aisp_argmax_workspace_bytes(num_rows). Two stages.
size_t aisp_argmax_workspace_bytes(int32_t max_rows);
int aisp_argmax(const aisp_ctx *ctx, const float *logits, int64_t ld, int32_t num_rows, int32_t vocab_size, int32_t *token_ids,
                void *workspace, aisp_stream stream);

// Draws without a sort: temperature, then top_k, top_p, min_p in that order (as the CPU sampler), then the token at
// `uniform` of the remaining mass in order of likelihood. All tables have one entry a row.
typedef struct {
  const float *temperature; // 0: argmax
  const int32_t *top_k;     // 0: off
  const float *top_p;       // 1: off
  const float *min_p;       // 0: off
  const double *uniform;    // [0, 1)
} aisp_sampling;
int aisp_sample(const aisp_ctx *ctx, const float *logits, int64_t ld, int32_t num_rows, int32_t vocab_size,
                const aisp_sampling *params, int32_t *token_ids, aisp_stream stream);

// --------------------------------------------------------------------------------------------- probes of the card

// Reads (and sums) or copies `bytes`, for ceilings measured with our own kernels. Read: out is one f32.
int aisp_probe_read(const aisp_ctx *ctx, const void *src, size_t bytes, float *out, aisp_stream stream);
int aisp_probe_copy(const aisp_ctx *ctx, const void *src, void *dst, size_t bytes, aisp_stream stream);
// A kernel that does nothing, for launch cost.
int aisp_probe_empty(const aisp_ctx *ctx, aisp_stream stream);

#ifdef __cplusplus
}
#endif
#endif
