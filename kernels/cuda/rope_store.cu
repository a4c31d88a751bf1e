// Rotary embedding of Q and K, the norm over each head before it, and the store of K and V into paged blocks.
//
// Formula    (a, b) -> (a cos - b sin, a sin + b cos) for each pair of a head; pairs by aisp_rope.style.
// Shapes     qkv [T, (NH + 2 KVH) D], q [T, NH, D], pool by aisp_kv_layer.
// Bytes      qkv once, q and the pool's rows once, D cosines and sines a token.
// Launch     four warps a block, each one head of a token, or four.
// Sums       see rope.cuh.
#include "rope.cuh"

namespace aisp {
namespace {

constexpr int WARPS = 4;
// Heads of a token that a warp takes one after the other: where there are enough tokens, so that each is asked for its angles less often.
constexpr int MOST_ROUNDS = 4, ENOUGH_TOKENS = 256;

template <bool F32>
__device__ inline float load_value(const void *at, int64_t i) {
  if constexpr (F32) return static_cast<const float *>(at)[i];
  return __bfloat162float(static_cast<const __nv_bfloat16 *>(at)[i]);
}

template <int PAIRS, bool F32, int ROUNDS>
__global__ void __launch_bounds__(32 * WARPS)
    rope_store_kernel(const void *qkv, const aisp_rope rope, const int32_t *positions, const int32_t *slot_mapping, int num_heads,
                      const aisp_kv_layer kv, __nv_bfloat16 *q) {
  __shared__ float natural[WARPS][64 * PAIRS];
  pdl_wait();
  pdl_launch();
  const int warp = threadIdx.x >> 5, first = blockIdx.y * WARPS * ROUNDS + warp;
  const int kvh = kv.num_kv_heads, dim = kv.head_dim, all_heads = num_heads + 2 * kvh;
  const int64_t t = blockIdx.x;
  const int slot = slot_mapping[t];
  const Turn<PAIRS> turn(rope, positions[t], dim / 2);
  // All are asked for at once.
  Head<PAIRS> heads[ROUNDS];
#pragma unroll
  for (int i = 0; i < ROUNDS; i++) {
    Head<PAIRS> &head = heads[i];
    const int index = first + i * WARPS;
    const int64_t from = (t * all_heads + index) * dim;
    head.pairs = dim / 2, head.apart = index < num_heads + kvh && rope.style == AISP_ROPE_NEOX;
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      const bool valid = index < all_heads && head.has(j);
      head.a[j] = valid ? load_value<F32>(qkv, from + head.a_at(j)) : 0;
      head.b[j] = valid ? load_value<F32>(qkv, from + head.b_at(j)) : 0;
    }
  }
#pragma unroll
  for (int i = 0; i < ROUNDS; i++) {
    Head<PAIRS> &head = heads[i];
    const int index = first + i * WARPS;
    if (index >= all_heads) return;
    const bool is_q = index < num_heads, is_v = index >= num_heads + kvh;
    if (!is_q && slot < 0) return;
    if (!is_v) turn_head(head, turn, is_q ? rope.q_norm : rope.k_norm, rope.norm_eps);
    if (is_q) store_bf16(head, q + (t * num_heads + index) * dim);
    else store_kv(head, kv, kv.kv_format, is_v, (index - num_heads) % kvh, slot, natural[warp]);
    __syncwarp(); // what was natural has been read
  }
}

template <bool F32>
auto kernel_of(int pairs, int rounds) {
  if (rounds == 1) return pairs == 1 ? rope_store_kernel<1, F32, 1> : pairs == 2 ? rope_store_kernel<2, F32, 1> : rope_store_kernel<4, F32, 1>;
  return pairs == 1 ? rope_store_kernel<1, F32, MOST_ROUNDS> : pairs == 2 ? rope_store_kernel<2, F32, MOST_ROUNDS> : rope_store_kernel<4, F32, MOST_ROUNDS>;
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
  if (kv->head_dim % (kv->kv_format == AISP_KV_FP4 ? 16 : 2) || kv->head_dim > MAX_HEAD_DIM ||
      (qkv_format != AISP_BF16 && qkv_format != AISP_F32))
    return cudaErrorInvalidValue;
  const int rounds = num_tokens >= ENOUGH_TOKENS ? MOST_ROUNDS : 1;
  const dim3 grid(num_tokens, (unsigned)ceil_div(num_heads + 2 * kv->num_kv_heads, WARPS * rounds));
  const int pairs = pairs_a_lane(kv->head_dim);
  const auto kernel = qkv_format == AISP_F32 ? kernel_of<true>(pairs, rounds) : kernel_of<false>(pairs, rounds);
  return launch(ctx, kernel, grid, 32 * WARPS, 0, stream, qkv, *rope, positions, slot_mapping, num_heads, *kv,
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
