// Keys and values in fewer bits as operands of decode attention's products, and which dimension stands where in them.
#pragma once

#include "common.cuh"

namespace aisp::decode {

// Keys and values of 8 and of 4 bits become operands in registers. Sums over dimensions may take them in any order and rows
// of V^T may stand in any order, so the order is such that a lane's codes lie in whole words: of a key, lane c of four takes
// dimensions [c D / 4, (c + 1) D / 4); of a value in 8 bits, lane group r of eight takes [r D / 8, (r + 1) D / 8); in 4 bits
// it takes WHOLE words of 8 values from r WHOLE on and, if D is an odd multiple of 32, half of one of the last four.
template <int D>
constexpr int WHOLE = D / 64;

// e4m3 is multiplied as f16 where the card turns one into the other, else as bf16. Weights times the scales of values would be too
// small for f16: the scales are multiplied by this, and cut at its limit, which values of up to 57316 do not reach.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
constexpr bool FP8_AS_F16 = true;
#else
constexpr bool FP8_AS_F16 = false;
#endif
constexpr float FP8_TIMES = FP8_AS_F16 ? 512.0f : 1.0f;
__device__ inline void fp8_operands(uint32_t codes, uint32_t &pair01, uint32_t &pair23) {
  if constexpr (FP8_AS_F16) e4m3x4_to_f16(codes, pair01, pair23);
  else e4m3x4_to_bf16(codes, pair01, pair23);
}
__device__ inline void mma_fp8(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (FP8_AS_F16) mma_f16(d, a[0], a[1], a[2], a[3], b0, b1);
  else mma_bf16(d, a[0], a[1], a[2], a[3], b0, b1);
}
// Queries and weights as the other operand.
template <int KV>
__device__ inline uint32_t query_operand(uint32_t bf16_pair) { return KV == AISP_KV_FP8 && FP8_AS_F16 ? bf16x2_to_f16(bf16_pair) : bf16_pair; }
template <int KV>
__device__ inline uint32_t weight_operand(float low, float high) {
  return KV == AISP_KV_FP8 && FP8_AS_F16 ? pack_f16(low, high) : pack_bf16(low, high);
}
__device__ inline float fp8_value_scale(float scale) { return FP8_AS_F16 ? f16_range(scale * FP8_TIMES) : scale; }

// First of the two dimensions that this lane holds of Q^T, and of a key, in register i of step j.
template <int D, int KV>
__device__ inline int key_dim(int j, int i) {
  const int lane = threadIdx.x & 31;
  return KV == AISP_KV_BF16 ? j * 16 + i * 8 + lane % 4 * 2 : lane % 4 * (D / 4) + j * 4 + i * 2;
}

// Where dimension d of O^T stands: row of a step's 16, steps in order.
template <int D, int KV>
__device__ inline int value_place(int d) {
  if constexpr (KV == AISP_KV_BF16) return d;
  if constexpr (KV == AISP_KV_FP8) return d % (D / 8) / 2 * 16 + d % 2 * 8 + d / (D / 8);
  const int word = d / 8, at = d % 8;
  if constexpr (WHOLE<D> > 0) {
    if (word < 8 * WHOLE<D>) return (word % WHOLE<D> * 4 + at / 2) * 16 + at % 2 * 8 + word / WHOLE<D>;
  }
  return (WHOLE<D> * 4 + at % 4 / 2) * 16 + at % 2 * 8 + (word - 8 * WHOLE<D>) * 2 + at / 4;
}

// score = K Q^T of 16 positions, out of e4m3 codes in shared memory, rows a stride apart. Scales come later.
template <int D, int NT>
__device__ inline void fp8_scores(float (&score)[NT][4], const uint32_t (&q)[NT][D / 16][2], uint32_t codes_at, int stride) {
  const int lane = threadIdx.x & 31;
  uint32_t code[2][D / 16];
#pragma unroll
  for (int h = 0; h < 2; h++) shared_words(code[h], codes_at + (lane / 4 + 8 * h) * stride + lane % 4 * (D / 4));
#pragma unroll
  for (int j = 0; j < D / 16; j++) {
    uint32_t a[4]; // positions by 16 dimensions
    fp8_operands(code[0][j], a[0], a[2]);
    fp8_operands(code[1][j], a[1], a[3]);
#pragma unroll
    for (int nt = 0; nt < NT; nt++) mma_fp8(score[nt], a, q[nt][j][0], q[nt][j][1]);
  }
}

// O^T += V^T P^T of 16 positions, of which those from `keep` on may hold anything.
template <int D, int NT>
__device__ inline void fp8_values(float (&o)[D / 16][NT][4], const uint32_t (&p)[NT][2], uint32_t codes_at, int stride, int keep) {
  const int lane = threadIdx.x & 31, r = lane / 4, first = lane % 4 * 2; // positions first, first + 1 and 8 more
  uint32_t code[4][D / 32];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int position = first + i % 2 + i / 2 * 8;
    shared_words(code[i], codes_at + position * stride + r * (D / 8));
#pragma unroll
    for (int w = 0; w < D / 32; w++) code[i][w] = position < keep ? code[i][w] : 0u;
  }
#pragma unroll
  for (int w = 0; w < D / 32; w++) {
    uint32_t a[2][4]; // two rows of 16: of this word's dimensions 0 and 1, 2 and 3
#pragma unroll
    for (int t = 0; t < 2; t++) {
      fp8_operands(__byte_perm(code[2 * t][w], code[2 * t + 1][w], 0x5140), a[0][2 * t], a[0][2 * t + 1]);
      fp8_operands(__byte_perm(code[2 * t][w], code[2 * t + 1][w], 0x7362), a[1][2 * t], a[1][2 * t + 1]);
    }
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
      for (int nt = 0; nt < NT; nt++) mma_fp8(o[2 * w + j][nt], a[j], p[nt][0], p[nt][1]);
  }
}

// score = K Q^T of 16 positions, out of codes [16, D / 2] and scales [16, D / 16] in shared memory.
template <int D, int NT>
__device__ inline void fp4_scores(float (&score)[NT][4], const uint32_t (&q)[NT][D / 16][2], uint32_t codes_at, uint32_t scales_at) {
  const int lane = threadIdx.x & 31, column = lane % 4;
  uint32_t code[2][D / 32], factor[2];
#pragma unroll
  for (int h = 0; h < 2; h++) shared_words(code[h], codes_at + (lane / 4 + 8 * h) * (D / 2) + column * (D / 8));
#pragma unroll
  for (int w = 0; w < D / 32; w++) {
    if (w % 2 == 0 || D % 64 != 0) {
#pragma unroll
      for (int h = 0; h < 2; h++)
        factor[h] = e2m1_factor(shared_2(scales_at + ((lane / 4 + 8 * h) * (D / 16) + (column * (D / 32) + w) / 2) * 2) * 0x10001u);
    }
#pragma unroll
    for (int u = 0; u < 2; u++) {
      uint32_t a[4]; // positions by 16 dimensions
#pragma unroll
      for (int i = 0; i < 4; i++) a[i] = e2m1_pair(code[i % 2][w], 2 * u + i / 2, factor[i % 2]);
#pragma unroll
      for (int nt = 0; nt < NT; nt++) mma_bf16(score[nt], a[0], a[1], a[2], a[3], q[nt][2 * w + u][0], q[nt][2 * w + u][1]);
    }
  }
}

// O^T += V^T P^T of 16 positions, of which those from `keep` on may hold anything.
template <int D, int NT>
__device__ inline void fp4_values(float (&o)[D / 16][NT][4], const uint32_t (&p)[NT][2], uint32_t codes_at, int stride,
                                  uint32_t scales_at, int keep) {
  const int r = (threadIdx.x & 31) / 4, first = (threadIdx.x & 3) * 2; // positions first, first + 1 and 8 more
  auto factor_of = [&](int word, int t) {
    uint32_t pair = 0;
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const int position = first + e + 8 * t;
      const uint32_t scale = shared_2(scales_at + (position * (D / 16) + word / 2) * 2);
      pair |= (position < keep ? scale : 0u) << 16 * e;
    }
    return e2m1_factor(pair);
  };
  // Of one word, `steps` rows of 16: even dimensions of both positions, then odd ones.
  auto multiply = [&](int first_step, int steps, const uint32_t (&even)[2], const uint32_t (&odd)[2], const uint32_t (&factor)[2]) {
#pragma unroll
    for (int j = 0; j < steps; j++) {
      const uint32_t a[4] = {e2m1_pair(even[0], j, factor[0]), e2m1_pair(odd[0], j, factor[0]),
                             e2m1_pair(even[1], j, factor[1]), e2m1_pair(odd[1], j, factor[1])};
#pragma unroll
      for (int nt = 0; nt < NT; nt++) mma_bf16(o[first_step + j][nt], a[0], a[1], a[2], a[3], p[nt][0], p[nt][1]);
    }
  };
  uint32_t even[2], odd[2], factor[2];
  if constexpr (WHOLE<D> > 0) {
    uint32_t code[4][WHOLE<D>];
#pragma unroll
    for (int i = 0; i < 4; i++) shared_words(code[i], codes_at + (first + i % 2 + i / 2 * 8) * stride + r * WHOLE<D> * 4);
#pragma unroll
    for (int w = 0; w < WHOLE<D>; w++) {
#pragma unroll
      for (int t = 0; t < 2; t++) {
        even[t] = __byte_perm(code[2 * t][w], code[2 * t + 1][w], 0x5410);
        odd[t] = __byte_perm(code[2 * t][w], code[2 * t + 1][w], 0x7632);
        if (w % 2 == 0 || WHOLE<D> % 2 != 0) factor[t] = factor_of(r * WHOLE<D> + w, t);
      }
      multiply(4 * w, 4, even, odd, factor);
    }
  }
  if constexpr (D % 64 != 0) {
    const int word = 8 * WHOLE<D> + r / 2;
#pragma unroll
    for (int t = 0; t < 2; t++) {
      const uint32_t one = shared_4(codes_at + (first + 8 * t) * stride + word * 4);
      const uint32_t other = shared_4(codes_at + (first + 1 + 8 * t) * stride + word * 4);
      even[t] = __byte_perm(one, other, 0x5410) >> r % 2 * 8;
      odd[t] = __byte_perm(one, other, 0x7632) >> r % 2 * 8;
      factor[t] = factor_of(word, t);
    }
    multiply(4 * WHOLE<D>, 2, even, odd, factor);
  }
}

} // namespace aisp::decode
