// A head of Q, K or V in the registers of a warp: its norm, its turn, and its place in the pool.
// Several kernels use it and must agree to the bit, so it says itself which products are rounded.
// A lane holds pairs lane, lane + 32, ...; of a V, which is not turned, neighbours. Squares of a head are summed in f32: a
// lane's pairs in order, then lanes by halves.
#pragma once

#include "common.cuh"

namespace aisp {

constexpr int MAX_HEAD_DIM = 256;
// A lane's share of a head, in pairs.
__host__ __device__ constexpr int pairs_a_lane(int dim) { return (dim + 63) / 64; }

template <int PAIRS>
struct Head {
  float a[PAIRS], b[PAIRS];
  int pairs;
  bool apart; // the partner stands half a head on
  __device__ int a_at(int j) const { return apart ? pair(j) : 2 * pair(j); }
  __device__ int b_at(int j) const { return apart ? pair(j) + pairs : 2 * pair(j) + 1; }
  __device__ int pair(int j) const { return (threadIdx.x & 31) + 32 * j; }
  __device__ bool has(int j) const { return pair(j) < pairs; }
};

// Cosines and sines of a lane's pairs at a position.
template <int PAIRS>
struct Turn {
  float cos[PAIRS], sin[PAIRS];
  __device__ Turn(const aisp_rope &rope, int position, int pairs) {
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      const int i = (threadIdx.x & 31) + 32 * j;
      const int64_t at = (int64_t)position * pairs + i;
      cos[j] = i < pairs ? rope.cos[at] : 0, sin[j] = i < pairs ? rope.sin[at] : 0;
    }
  }
};

// (a, b) -> (a cos - b sin, a sin + b cos) of each pair, after the norm over the head if it has a weight.
template <int PAIRS>
__device__ inline void turn_head(Head<PAIRS> &head, const Turn<PAIRS> &turn, const float *weight, float eps) {
  if (weight) {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < PAIRS; j++) sum += fmaf(head.a[j], head.a[j], __fmul_rn(head.b[j], head.b[j]));
    const float scale = rsqrtf(warp_sum(sum) / (2 * head.pairs) + eps);
#pragma unroll
    for (int j = 0; j < PAIRS; j++)
      if (head.has(j)) {
        head.a[j] *= scale * weight[head.a_at(j)];
        head.b[j] *= scale * weight[head.b_at(j)];
      }
  }
#pragma unroll
  for (int j = 0; j < PAIRS; j++) {
    const float x = head.a[j], y = head.b[j];
    head.a[j] = fmaf(x, turn.cos[j], -__fmul_rn(y, turn.sin[j]));
    head.b[j] = fmaf(x, turn.sin[j], __fmul_rn(y, turn.cos[j]));
  }
}

template <int PAIRS>
__device__ inline void store_bf16(const Head<PAIRS> &head, __nv_bfloat16 *to) {
#pragma unroll
  for (int j = 0; j < PAIRS; j++) {
    if (!head.has(j)) continue;
    if (head.apart) {
      to[head.a_at(j)] = __float2bfloat16_rn(head.a[j]);
      to[head.b_at(j)] = __float2bfloat16_rn(head.b[j]);
    } else {
      *reinterpret_cast<uint32_t *>(to + head.a_at(j)) = pack_bf16(head.a[j], head.b[j]);
    }
  }
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

// The row of a slot of a kv head in a pool.
__device__ inline int64_t pool_row(const aisp_kv_layer &kv, int kv_head, int slot) {
  return ((int64_t)(slot / AISP_BLOCK_SIZE) * kv.num_kv_heads + kv_head) * AISP_BLOCK_SIZE + slot % AISP_BLOCK_SIZE;
}

// A K or V to its place in a pool of `kv_format`. `natural`: room for the head in f32, for fp4 alone.
template <int PAIRS>
__device__ inline void store_kv(const Head<PAIRS> &head, const aisp_kv_layer &kv, int kv_format, bool is_v, int kv_head, int slot, float *natural) {
  const int dim = 2 * head.pairs, lane = threadIdx.x & 31;
  const int64_t at = pool_row(kv, kv_head, slot);
  void *data = is_v ? kv.v : kv.k, *scales = is_v ? kv.v_scales : kv.k_scales;
  if (kv_format == AISP_KV_FP4) {
#pragma unroll
    for (int j = 0; j < PAIRS; j++)
      if (head.has(j)) natural[head.a_at(j)] = head.a[j], natural[head.b_at(j)] = head.b[j];
    __syncwarp();
    store_fp4(natural, dim, static_cast<uint32_t *>(data) + at * (dim / 8), static_cast<uint16_t *>(scales) + at * (dim / 16));
  } else if (kv_format == AISP_KV_FP8) {
    float most = 0;
#pragma unroll
    for (int j = 0; j < PAIRS; j++) most = fmaxf(most, fmaxf(fabsf(head.a[j]), fabsf(head.b[j])));
    const float scale = e4m3_scale(warp_max(most)), inverse = 1.0f / scale;
    uint8_t *to = static_cast<uint8_t *>(data) + at * dim;
    if (lane == 0) static_cast<float *>(scales)[at] = scale;
#pragma unroll
    for (int j = 0; j < PAIRS; j++)
      if (head.has(j)) {
        to[head.a_at(j)] = float_to_e4m3(head.a[j] * inverse);
        to[head.b_at(j)] = float_to_e4m3(head.b[j] * inverse);
      }
  } else {
    store_bf16(head, static_cast<__nv_bfloat16 *>(data) + at * dim);
  }
}

} // namespace aisp
