// A head of Q, K or V in the registers of a warp: its norm, its turn, and its place in the pool.
// Several kernels use it and must agree to the bit, so it says itself which products are rounded.
// A lane holds neighbouring pairs, so that it loads and stores them at once. Squares of a head are summed in f32: a lane's
// pairs in order, then lanes by halves.
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
  __device__ int pair(int j) const { return (threadIdx.x & 31) * PAIRS + j; }
  __device__ bool has(int j) const { return pair(j) < pairs; }
  __device__ bool has_all() const { return has(PAIRS - 1); }
};

// N neighbouring values to or from memory at once, if they lie at a multiple of their size.
template <int N>
__device__ inline void load_run(float *x, const float *from) {
  if constexpr (N == 1) {
    x[0] = __ldcg(from);
  } else if constexpr (N == 2) {
    const float2 two = __ldcg(reinterpret_cast<const float2 *>(from));
    x[0] = two.x, x[1] = two.y;
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const float4 four = __ldcg(reinterpret_cast<const float4 *>(from + i));
      x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
    }
  }
}
template <int N>
__device__ inline void load_run(float *x, const __nv_bfloat16 *from) {
  if constexpr (N == 1) {
    x[0] = __bfloat162float(*from);
  } else {
    uint32_t words[N / 2];
    if constexpr (N == 2) words[0] = *reinterpret_cast<const uint32_t *>(from);
    else if constexpr (N == 4) *reinterpret_cast<uint2 *>(words) = *reinterpret_cast<const uint2 *>(from);
    else *reinterpret_cast<uint4 *>(words) = *reinterpret_cast<const uint4 *>(from);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
  }
}
template <int BYTES>
__device__ inline void store_run(void *to, const uint32_t *words) {
  if constexpr (BYTES == 1) *static_cast<uint8_t *>(to) = (uint8_t)words[0];
  else if constexpr (BYTES == 2) *static_cast<uint16_t *>(to) = (uint16_t)words[0];
  else if constexpr (BYTES == 4) *static_cast<uint32_t *>(to) = words[0];
  else if constexpr (BYTES == 8) *static_cast<uint2 *>(to) = make_uint2(words[0], words[1]);
  else *static_cast<uint4 *>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}
template <int N>
__device__ inline void store_run(__nv_bfloat16 *to, const float *x) {
  uint32_t words[(N + 1) / 2];
#pragma unroll
  for (int i = 0; i < N; i += 2) words[i / 2] = pack_bf16(x[i], i + 1 < N ? x[i + 1] : 0.0f);
  store_run<2 * N>(static_cast<void *>(to), words);
}
template <int N>
__device__ inline void store_run(uint8_t *to, const float *x) { // as e4m3
  uint32_t words[(N + 3) / 4] = {};
#pragma unroll
  for (int i = 0; i < N; i++) words[i / 4] |= (uint32_t)float_to_e4m3(x[i]) << 8 * (i % 4);
  store_run<N>(static_cast<void *>(to), words);
}

// A head to or from its values in memory, which lie at a multiple of two lanes' shares.
template <int PAIRS, class T>
__device__ inline void load_head(Head<PAIRS> &head, const T *from) {
  if (head.has_all() && head.pairs % PAIRS == 0) {
    if (head.apart) {
      load_run<PAIRS>(head.a, from + head.a_at(0));
      load_run<PAIRS>(head.b, from + head.b_at(0));
    } else {
      float x[2 * PAIRS];
      load_run<2 * PAIRS>(x, from + head.a_at(0));
#pragma unroll
      for (int j = 0; j < PAIRS; j++) head.a[j] = x[2 * j], head.b[j] = x[2 * j + 1];
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < PAIRS; j++) {
    head.a[j] = head.b[j] = 0;
    if (head.has(j)) load_run<1>(&head.a[j], from + head.a_at(j)), load_run<1>(&head.b[j], from + head.b_at(j));
  }
}
template <int PAIRS, class T>
__device__ inline void store_head(const Head<PAIRS> &head, T *to, float by = 1.0f) {
  float x[2 * PAIRS];
  const int next = head.apart ? 1 : 2, b = head.apart ? PAIRS : 1;
#pragma unroll
  for (int j = 0; j < PAIRS; j++) {
    const float values[2] = {head.a[j] * by, head.b[j] * by};
    if (head.apart) x[j] = values[0], x[PAIRS + j] = values[1];
    else x[2 * j] = values[0], x[2 * j + 1] = values[1];
  }
  if (head.has_all() && head.pairs % PAIRS == 0) {
    if (head.apart) {
      store_run<PAIRS>(to + head.a_at(0), x);
      store_run<PAIRS>(to + head.b_at(0), x + PAIRS);
    } else {
      store_run<2 * PAIRS>(to + head.a_at(0), x);
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < PAIRS; j++)
    if (head.has(j)) store_run<1>(to + head.a_at(j), &x[next * j]), store_run<1>(to + head.b_at(j), &x[next * j + b]);
}

// Cosines and sines of a lane's pairs at a position.
template <int PAIRS>
struct Turn {
  float cos[PAIRS], sin[PAIRS];
  __device__ Turn(const aisp_rope &rope, int position, int pairs) {
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      const int i = (threadIdx.x & 31) * PAIRS + j;
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
    store_head(head, to, inverse);
  } else {
    store_head(head, static_cast<__nv_bfloat16 *>(data) + at * dim);
  }
}

} // namespace aisp
