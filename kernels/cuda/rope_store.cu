// Rotary embedding of Q and K, the norm over each head before it, and the store of K and V into paged blocks.
//
// Formula    (a, b) -> (a cos - b sin, a sin + b cos) for each pair of a head; pairs by aisp_rope.style.
// Shapes     qkv [T, (NH + 2 KVH) D], q [T, NH, D], pool by aisp_kv_layer.
// Bytes      qkv once, q and the pool's rows once, D cosines and sines a token.
// Launch     a warp a head, four heads a block.
// Sums       see rope.cuh.
#include "rope.cuh"

namespace aisp {
namespace {

constexpr int HEADS_A_BLOCK = 4;

template <bool F32>
__device__ inline float load_value(const void *at, int64_t i) {
  if constexpr (F32) return static_cast<const float *>(at)[i];
  return __bfloat162float(static_cast<const __nv_bfloat16 *>(at)[i]);
}

template <bool F32>
__global__ void __launch_bounds__(32 * HEADS_A_BLOCK)
    rope_store_kernel(const void *qkv, const aisp_rope rope, const int32_t *positions, const int32_t *slot_mapping, int num_heads,
                      const aisp_kv_layer kv, __nv_bfloat16 *q) {
  __shared__ float natural[HEADS_A_BLOCK][64 * MAX_PAIRS];
  pdl_wait();
  pdl_launch();
  const int index = blockIdx.y * HEADS_A_BLOCK + (threadIdx.x >> 5);
  const int kvh = kv.num_kv_heads, dim = kv.head_dim;
  const int all_heads = num_heads + 2 * kvh;
  if (index >= all_heads) return;
  const int64_t t = blockIdx.x;
  const int64_t from = (t * all_heads + index) * dim;
  const bool is_q = index < num_heads, is_v = index >= num_heads + kvh;
  const int slot = is_q ? 0 : slot_mapping[t];
  if (slot < 0) return;

  Head head;
  head.pairs = dim / 2, head.apart = !is_v && rope.style == AISP_ROPE_NEOX;
#pragma unroll
  for (int j = 0; j < MAX_PAIRS; j++) {
    head.a[j] = head.has(j) ? load_value<F32>(qkv, from + head.a_at(j)) : 0;
    head.b[j] = head.has(j) ? load_value<F32>(qkv, from + head.b_at(j)) : 0;
  }
  if (!is_v) turn_head(head, Turn(rope, positions[t], head.pairs), is_q ? rope.q_norm : rope.k_norm, rope.norm_eps);
  if (is_q) store_bf16(head, q + (t * num_heads + index) * dim);
  else store_kv(head, kv, kv.kv_format, is_v, (index - num_heads) % kvh, slot, natural[threadIdx.x >> 5]);
}

// A block a pair of blocks; 16 bytes a thread a turn. All formats' blocks and scales are multiples of that.
__global__ void copy_blocks_kernel(const aisp_kv_layer kv, const int32_t *pairs, int64_t block_pieces, int64_t scale_pieces) {
  pdl_wait();
  pdl_launch();
  const int64_t from = pairs[2 * blockIdx.x], to = pairs[2 * blockIdx.x + 1];
  auto copy = [&](void *all, int64_t pieces) {
    auto *data = static_cast<uint4 *>(all);
    for (int64_t i = threadIdx.x; i < pieces; i += blockDim.x) data[to * pieces + i] = data[from * pieces + i];
  };
  copy(kv.k, block_pieces);
  copy(kv.v, block_pieces);
  copy(kv.k_scales, scale_pieces);
  copy(kv.v_scales, scale_pieces);
}

} // namespace
} // namespace aisp

using namespace aisp;

extern "C" {

int aisp_rope_store(const aisp_ctx *ctx, const void *qkv, int32_t qkv_format, const aisp_rope *rope, const int32_t *positions,
                    const int32_t *slot_mapping, int32_t num_tokens, int32_t num_heads, const aisp_kv_layer *kv, aisp_bf16 *q,
                    aisp_stream stream) {
  if (num_tokens == 0) return 0;
  if (kv->head_dim % (kv->kv_format == AISP_KV_FP4 ? 16 : 2) || kv->head_dim > 64 * MAX_PAIRS ||
      (qkv_format != AISP_BF16 && qkv_format != AISP_F32))
    return cudaErrorInvalidValue;
  const dim3 grid(num_tokens, (unsigned)ceil_div(num_heads + 2 * kv->num_kv_heads, HEADS_A_BLOCK));
  auto kernel = qkv_format == AISP_F32 ? rope_store_kernel<true> : rope_store_kernel<false>;
  return launch(ctx, kernel, grid, 32 * HEADS_A_BLOCK, 0, stream, qkv, *rope, positions, slot_mapping, num_heads, *kv,
                reinterpret_cast<__nv_bfloat16 *>(q));
}

int aisp_copy_blocks(const aisp_ctx *ctx, const aisp_kv_layer *kv, const int32_t *pairs, int32_t num_pairs, aisp_stream stream) {
  if (num_pairs == 0) return 0;
  const int64_t rows = (int64_t)kv->num_kv_heads * AISP_BLOCK_SIZE;
  return launch(ctx, copy_blocks_kernel, num_pairs, 256, 0, stream, *kv, pairs, rows * kv_row_bytes(kv->kv_format, kv->head_dim) / 16,
                rows * kv_scale_bytes(kv->kv_format, kv->head_dim) / 16);
}

size_t aisp_kv_row_bytes(int32_t kv_format, int32_t head_dim) { return kv_row_bytes(kv_format, head_dim); }
size_t aisp_kv_scale_bytes(int32_t kv_format, int32_t head_dim) { return kv_scale_bytes(kv_format, head_dim); }

} // extern "C"
