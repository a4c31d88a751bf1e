// What the two kernels of x W^T share: tiles of 16 rows of W, codes to bf16, and what becomes of a result.
#pragma once

#include "common.cuh"

namespace aisp {

struct Tiles {
  const uint8_t *data;
  const uint8_t *scales;
  int64_t row_bytes;
  int64_t scale_row_bytes;
  int n, k;
  int num_tiles; // of 16 rows
  int paired;    // rows 0..7 of a tile from the first half of W, rows 8..15 from the second
};

// First row of the half `half` of a tile.
__device__ inline int half_row(const Tiles &t, int tile, int half) {
  return t.paired ? half * (t.n / 2) + tile * 8 : tile * 16 + half * 8;
}

inline Tiles tiles_of(const aisp_weight &w, bool paired) {
  return {static_cast<const uint8_t *>(w.data), static_cast<const uint8_t *>(w.scales), row_bytes(w.format, w.k),
          scale_row_bytes(w.format, w.k), w.n, w.k, w.n / 16, paired};
}

// Whether both kernels can take these sizes.
inline bool fits(const aisp_weight &w, const aisp_linear_args &args) {
  return args.num_rows >= 0 && w.k % (w.format == AISP_FP8 ? 16 : 8) == 0 && args.ldx % 8 == 0 && w.n % 16 == 0 &&
         !(args.x_sumsq && w.k % 16);
}

constexpr float NVFP4_LATER = 256.0f;

// Matrices whose tiles all run at once, of few bytes and k: resident_linear.cu. The choice does not depend on the rows of x, so that
// a row's bits do not.
constexpr int MOST_RESIDENT_K = 2048, MOST_RESIDENT_BYTES = 6 << 20;
inline bool is_resident(const aisp_ctx *ctx, const Tiles &tiles) {
  return tiles.k <= MOST_RESIDENT_K && tiles.num_tiles <= 2 * ctx->sm_count && tiles.n * tiles.row_bytes <= MOST_RESIDENT_BYTES;
}
int resident_linear(const aisp_ctx *ctx, int format, const Tiles &tiles, float tensor_scale, const aisp_linear_args &args, aisp_stream stream);

#ifdef __CUDACC__
__device__ inline uint32_t w4_pair(uint32_t word, int i) {
  // 0x4300 is 128 in bf16, whose unit in the last place is 1: or-ing a code in adds it. Who multiplies takes the 128
  // back: linear.cu through the sum of x, which the minimum needs in any case, wide_linear.cu through the minimum.
  return (word >> (4 * i) & 0x000f000fu) | 0x43004300u;
}
// Codes 2 `half` and 2 `half` + 1 of a word of int8, biased by 128.
__device__ inline float2 int8_pair(uint32_t biased, int half) {
  // Byte b of them becomes the float 2^23 + b.
  const int selector = half ? 0x7652 : 0x7650;
  return make_float2(__uint_as_float(__byte_perm(biased, 0x4b000000u, selector)) - 8388736.0f,
                     __uint_as_float(__byte_perm(biased, 0x4b000000u, selector + 1)) - 8388736.0f);
}
// Two neighbouring scales of e2m1 codes, each in both halves of a word, times 2^118: e2m1 bits stand 2^126 too low in bf16,
// and 448 * 2^126 would overflow; tensor_scale takes NVFP4_LATER. Factors for fp4_pair().
__device__ inline void fp4_scales(uint32_t (&scale)[2], uint32_t bf16_pair) {
  const uint32_t both = fma_bf16x2(bf16_pair, 0x7a807a80u, 0x80008000u);
  scale[0] = __byte_perm(both, 0, 0x1010);
  scale[1] = __byte_perm(both, 0, 0x3232);
}
__device__ inline uint32_t fp4_pair(uint32_t word, int i, uint32_t scale) {
  const uint32_t code = word >> (4 * i) & 0x000f000fu;
  return fma_bf16x2((code & 0x00070007u) << 6 | (code & 0x00080008u) << 12, scale, 0x80008000u);
}

// What the value of row t, column n is finished with, and where it goes. It comes from the L2, so it is asked for before the value
// is there: what never changes in ask(), the residual in ask_residual().
struct Operands {
  float scale = 1, bias = 0, norm = 0, residual = 0;
  bool valid = false;
  float *to = nullptr;               // of bf16, where the output is that
  aisp_bf16 *next_x = nullptr;
  float *next_sumsq = nullptr;       // of the tile
};
template <int F>
__device__ inline Operands ask(const aisp_linear_args &args, const Tiles &tiles, int tile, int r, int t) {
  const int n = half_row(tiles, tile, r / 8) + r % 8;
  Operands with;
  with.valid = t < args.num_rows && n < tiles.n && tile < tiles.num_tiles;
  if (!with.valid) return with;
  if constexpr (F == AISP_FP8) with.scale = reinterpret_cast<const float *>(tiles.scales)[n];
  if (args.bias) with.bias = args.bias[n];
  const int64_t at = t * args.ldo + n;
  const bool half = args.output == AISP_OUT_BF16 || args.output == AISP_OUT_SILU_MUL;
  with.to = reinterpret_cast<float *>(static_cast<uint8_t *>(args.out) + at * (half ? 2 : 4));
  if (args.output == AISP_OUT_RESIDUAL && args.next_norm_weight) {
    with.norm = args.next_norm_weight[n];
    with.next_x = args.next_x + (int64_t)t * tiles.n + n;
    with.next_sumsq = args.next_sumsq + (int64_t)t * (tiles.n / 16) + tile;
  }
  return with;
}
__device__ inline void ask_residual(const aisp_linear_args &args, Operands &with) {
  if (args.output == AISP_OUT_RESIDUAL && with.valid) with.residual = __ldcg(with.to);
}

// What becomes of the value, z, of row r of a tile. Half-warps hold 16 neighbouring columns of one row of x.
__device__ inline void finish(const aisp_linear_args &args, int r, float z, const Operands &with) {
  if (args.bias) z += with.bias;
  switch (args.output) {
    case AISP_OUT_BF16:
      if (with.valid) *reinterpret_cast<__nv_bfloat16 *>(with.to) = __float2bfloat16_rn(z);
      break;
    case AISP_OUT_F32:
      if (with.valid) *with.to = z;
      break;
    case AISP_OUT_RESIDUAL: {
      const float h = with.valid ? with.residual + z : 0;
      if (with.valid) __stcg(with.to, h);
      if (args.next_norm_weight) {
        if (with.valid) *reinterpret_cast<__nv_bfloat16 *>(with.next_x) = __float2bfloat16_rn(h * with.norm);
        float sum = h * h;
#pragma unroll
        for (int offset = 8; offset; offset >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
        if (with.valid && r == 0) *with.next_sumsq = sum;
      }
      break;
    }
    default: { // SILU_MUL: lanes r < 8 hold gates, r >= 8 the ups of the same columns
      const float up = __shfl_down_sync(ALL_LANES, z, 8);
      if (with.valid && r < 8) *reinterpret_cast<__nv_bfloat16 *>(with.to) = __float2bfloat16_rn(silu(z) * up);
    }
  }
}
#endif

} // namespace aisp
