// Rotary embedding of Q and K, the norm over each head before it, and the store of K and V into paged blocks.
//
// Formula    (a, b) -> (a cos - b sin, a sin + b cos) for each pair of a head; pairs by aisp_rope.style.
// Shapes     qkv [T, (NH + 2 KVH) D], q [T, NH, D], pool by aisp_kv_layer.
// Bytes      qkv once, q and the pool's rows once, D cosines and sines a token.
// Launch     a warp a head, four heads a block; a lane holds pairs lane, lane + 32, ...; for fp4, 8 values in a row.
// Sums       squares of a head in f32: a lane's pairs in order, then lanes by halves.
#include "common.cuh"

namespace aisp {
namespace {

constexpr int HEADS_A_BLOCK = 4;
constexpr int MAX_PAIRS = 4; // a lane's share of a head of 256

template <bool F32>
__device__ inline float load_value(const void *at, int64_t i) {
  if constexpr (F32) return static_cast<const float *>(at)[i];
  return __bfloat162float(static_cast<const __nv_bfloat16 *>(at)[i]);
}

// A head in natural order to 4 bits: a lane takes 8 values, two lanes share a scale.
__device__ inline void store_fp4(const float *head, int dim, uint32_t *codes, uint16_t *scales) {
  const int lane = threadIdx.x & 31;
  const bool mine = lane < dim / 8;
  float x[8], most = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    x[i] = mine ? head[8 * lane + i] : 0.0f;
    most = fmaxf(most, fabsf(x[i]));
  }
  most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
  const uint32_t bits = min((__float_as_uint(most / 6.0f) + 0xffffu) >> 16, 0x7f7fu);
  const float scale = __uint_as_float(bits << 16), by = scale > 2e-30f ? 1.0f / scale : 0.0f;
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) word |= float_to_e2m1(x[i] * by) << (4 * (i / 2) + 16 * (i & 1));
  if (!mine) return;
  codes[lane] = word;
  if (lane % 2 == 0) scales[lane / 2] = (uint16_t)bits;
}

template <bool F32>
__global__ void __launch_bounds__(32 * HEADS_A_BLOCK)
    rope_store_kernel(const void *qkv, const aisp_rope rope, const int32_t *positions, const int32_t *slot_mapping, int num_heads,
                      const aisp_kv_layer kv, __nv_bfloat16 *q) {
  pdl_wait();
  pdl_launch();
  const int lane = threadIdx.x & 31;
  const int head = blockIdx.y * HEADS_A_BLOCK + (threadIdx.x >> 5);
  const int kvh = kv.num_kv_heads, dim = kv.head_dim, pairs = dim / 2;
  const int all_heads = num_heads + 2 * kvh;
  if (head >= all_heads) return;
  const int64_t t = blockIdx.x;
  const int64_t from = (t * all_heads + head) * dim;
  const bool is_q = head < num_heads, is_v = head >= num_heads + kvh;
  const int slot = is_q ? 0 : slot_mapping[t];
  if (slot < 0) return;

  // V keeps its order; pairs of neighbours serve it.
  const bool split = !is_v && rope.style == AISP_ROPE_NEOX;
  float a[MAX_PAIRS], b[MAX_PAIRS];
#pragma unroll
  for (int j = 0; j < MAX_PAIRS; j++) {
    const int i = lane + 32 * j;
    a[j] = b[j] = 0;
    if (i < pairs) {
      a[j] = load_value<F32>(qkv, from + (split ? i : 2 * i));
      b[j] = load_value<F32>(qkv, from + (split ? i + pairs : 2 * i + 1));
    }
  }
  if (!is_v) {
    const float *weight = is_q ? rope.q_norm : rope.k_norm;
    if (weight) {
      float sum = 0;
#pragma unroll
      for (int j = 0; j < MAX_PAIRS; j++) sum += a[j] * a[j] + b[j] * b[j];
      const float scale = rsqrtf(warp_sum(sum) / dim + rope.norm_eps);
#pragma unroll
      for (int j = 0; j < MAX_PAIRS; j++) {
        const int i = lane + 32 * j;
        if (i < pairs) {
          a[j] *= scale * weight[split ? i : 2 * i];
          b[j] *= scale * weight[split ? i + pairs : 2 * i + 1];
        }
      }
    }
    const int64_t row = (int64_t)positions[t] * pairs;
#pragma unroll
    for (int j = 0; j < MAX_PAIRS; j++) {
      const int i = lane + 32 * j;
      if (i < pairs) {
        const float cos = rope.cos[row + i], sin = rope.sin[row + i], x = a[j], y = b[j];
        a[j] = x * cos - y * sin;
        b[j] = x * sin + y * cos;
      }
    }
  }

  const int kv_head = (head - num_heads) % kvh;
  const int64_t at = ((int64_t)(slot / AISP_BLOCK_SIZE) * kvh + kv_head) * AISP_BLOCK_SIZE + slot % AISP_BLOCK_SIZE;
  if (!is_q && kv.kv_format == AISP_KV_FP4) {
    __shared__ float natural[HEADS_A_BLOCK][64 * MAX_PAIRS];
    float *mine = natural[threadIdx.x >> 5];
#pragma unroll
    for (int j = 0; j < MAX_PAIRS; j++) {
      const int i = lane + 32 * j;
      if (i < pairs) mine[split ? i : 2 * i] = a[j], mine[split ? i + pairs : 2 * i + 1] = b[j];
    }
    __syncwarp();
    store_fp4(mine, dim, static_cast<uint32_t *>(is_v ? kv.v : kv.k) + at * (dim / 8),
              static_cast<uint16_t *>(is_v ? kv.v_scales : kv.k_scales) + at * (dim / 16));
    return;
  }
  if (!is_q && kv.kv_format == AISP_KV_FP8) {
    float most = 0;
#pragma unroll
    for (int j = 0; j < MAX_PAIRS; j++) most = fmaxf(most, fmaxf(fabsf(a[j]), fabsf(b[j])));
    const float scale = fmaxf(warp_max(most), 1e-30f) / 448.0f;
    uint8_t *to = static_cast<uint8_t *>(is_v ? kv.v : kv.k) + at * dim;
    if (lane == 0) static_cast<float *>(is_v ? kv.v_scales : kv.k_scales)[at] = scale;
#pragma unroll
    for (int j = 0; j < MAX_PAIRS; j++) {
      const int i = lane + 32 * j;
      if (i < pairs) {
        to[split ? i : 2 * i] = float_to_e4m3(a[j] / scale);
        to[split ? i + pairs : 2 * i + 1] = float_to_e4m3(b[j] / scale);
      }
    }
    return;
  }
  __nv_bfloat16 *to = is_q ? q + (t * num_heads + head) * dim : static_cast<__nv_bfloat16 *>(is_v ? kv.v : kv.k) + at * dim;
#pragma unroll
  for (int j = 0; j < MAX_PAIRS; j++) {
    const int i = lane + 32 * j;
    if (i >= pairs) continue;
    if (split) {
      to[i] = __float2bfloat16_rn(a[j]);
      to[i + pairs] = __float2bfloat16_rn(b[j]);
    } else {
      *reinterpret_cast<uint32_t *>(to + 2 * i) = pack_bf16(a[j], b[j]);
    }
  }
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
