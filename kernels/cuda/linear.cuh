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

#ifdef __CUDACC__
__device__ inline uint32_t w4_pair(uint32_t word, int i) {
  // 0x4300 is 128 in bf16, whose unit in the last place is 1: or-ing a code in adds it. The 128 is taken back through
  // the sum of x, which the minimum needs in any case.
  return (word >> (4 * i) & 0x000f000fu) | 0x43004300u;
}
__device__ inline uint32_t int8_pair(uint32_t biased, int selector) {
  // Byte b of codes biased by 128 becomes the float 2^23 + b.
  const float low = __uint_as_float(__byte_perm(biased, 0x4b000000u, selector)) - 8388736.0f;
  const float high = __uint_as_float(__byte_perm(biased, 0x4b000000u, selector + 1)) - 8388736.0f;
  return pack_bf16(low, high);
}
__device__ inline uint32_t fp4_pair(uint32_t word, int i, uint32_t scale) {
  const uint32_t code = word >> (4 * i) & 0x000f000fu;
  return fma_bf16x2((code & 0x00070007u) << 6 | (code & 0x00080008u) << 12, scale, 0x80008000u);
}

// What becomes of one value z of row t, column n. Half-warps hold 16 neighbouring columns of one row.
__device__ inline void finish(const aisp_linear_args &args, const Tiles &tiles, int tile, int r, int t, float z) {
  const int n = half_row(tiles, tile, r / 8) + r % 8;
  const bool valid = t < args.num_rows && n < tiles.n && tile < tiles.num_tiles;
  if (args.bias && valid) z += args.bias[n];
  switch (args.output) {
    case AISP_OUT_BF16:
      if (valid) static_cast<__nv_bfloat16 *>(args.out)[t * args.ldo + n] = __float2bfloat16_rn(z);
      break;
    case AISP_OUT_F32:
      if (valid) static_cast<float *>(args.out)[t * args.ldo + n] = z;
      break;
    case AISP_OUT_RESIDUAL: {
      float h = 0;
      if (valid) {
        float *at = static_cast<float *>(args.out) + t * args.ldo + n;
        h = __ldcg(at) + z;
        __stcg(at, h);
      }
      if (args.next_norm_weight) {
        if (valid)
          reinterpret_cast<__nv_bfloat16 *>(args.next_x)[(int64_t)t * tiles.n + n] =
              __float2bfloat16_rn(h * args.next_norm_weight[n]);
        float sum = h * h;
#pragma unroll
        for (int offset = 8; offset; offset >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
        if (valid && r == 0) args.next_sumsq[(int64_t)t * (tiles.n / 16) + tile] = sum;
      }
      break;
    }
    default: { // SILU_MUL: lanes r < 8 hold gates, r >= 8 the ups of the same columns
      const float up = __shfl_down_sync(ALL_LANES, z, 8);
      if (valid && r < 8)
        static_cast<__nv_bfloat16 *>(args.out)[t * args.ldo + n] = __float2bfloat16_rn(silu(z) * up);
    }
  }
}

#endif

} // namespace aisp
