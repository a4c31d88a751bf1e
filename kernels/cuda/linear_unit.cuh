// The unit of x W^T for few rows: 16 bytes of codes of each of two rows of W a lane, so that the warp holds 16 rows by 4 x 16
// bytes, and their product with 8 rows of x. A lane's piece is 8 values of a row, the warp's 32.
// Of a block of 8 warps, warp s sums slice s of K; the slices are added in order.
#pragma once

#include "linear.cuh"

namespace aisp {

constexpr int LINEAR_WARPS = 8;

// First of the stages of K that warp `warp` sums.
__host__ __device__ inline int slice_begin(int warp, int num_stages) { return warp * num_stages / LINEAR_WARPS; }

#ifdef __CUDACC__
// The value is made here, not where it is used.
__device__ inline void pin(uint32_t &word) { asm volatile("" : "+r"(word)); }
template <class T>
__device__ inline void pin(T *&pointer) { asm volatile("" : "+l"(pointer)); }

__device__ inline uint32_t word_of(const uint4 &v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// Where a lane reads x: row `lane / 4` of each group of eight; row 0 in place of those beyond T, whose columns are dropped.
template <int NT, bool WHOLE>
struct Columns {
  const __nv_bfloat16 *row[NT];
  int k;
  __device__ inline uint4 load(int nt, int at) const {
    if (!WHOLE && at >= k) return make_uint4(0, 0, 0, 0);
    return *reinterpret_cast<const uint4 *>(row[nt] + at);
  }
};

// K: values of a row in a unit, SCALE_BYTES: their scales. Rows: of a tile, `half` 0 is row lane / 4 and 1 the eighth after it.
template <int F>
struct Unit {
  static constexpr bool HAS_4_BITS = F == AISP_W4G32 || F == AISP_NVFP4;
  static constexpr int K = F == AISP_BF16 ? 32 : HAS_4_BITS ? 128 : 64, PIECES = K / 32;
  static constexpr int SCALE_BYTES = F == AISP_W4G32 ? 16 : F == AISP_NVFP4 ? 8 : F == AISP_W8G32 ? 4 : 0;
  uint4 codes[2];
  uint4 pairs[2];      // w4g32: f16 scale and minimum of each piece
  uint32_t scales[2][2]; // w8g32: f16 of both pieces; nvfp4: factors of the first and the last two pieces

  // First k of piece p, for lane c of four, counted from the first of a run of units.
  static __device__ inline int place(int p, int c) {
    if constexpr (F == AISP_FP8 || F == AISP_NVFP4) return p / PIECES * K + c * (K / 4) + p % PIECES * 8;
    return p * 32 + c * 8;
  }
  template <class From>
  __device__ inline void read(const From &from) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      codes[half] = from.codes(half);
      if constexpr (F == AISP_W4G32) pairs[half] = from.scale_words(half);
      if constexpr (F == AISP_W8G32) scales[half][0] = from.scale_word(half, 0);
      if constexpr (F == AISP_NVFP4) {
        const int c = threadIdx.x & 3;
        const uint32_t four = from.scale_word(half, c / 2);
        uint32_t two, unused;
        e4m3x4_to_bf16(c % 2 ? four >> 16 : four, two, unused);
        fp4_scales(scales[half], two);
      }
    }
  }
  // What multiply() needs, and unpack() if asked, is there from here on.
  __device__ inline void pin_all(bool with_codes) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      auto pin_16 = [](uint4 &v) { pin(v.x), pin(v.y), pin(v.z), pin(v.w); };
      if (with_codes) pin_16(codes[half]);
      if constexpr (F == AISP_W4G32) pin_16(pairs[half]);
      if constexpr (F == AISP_W8G32) pin(scales[half][0]);
      if constexpr (F == AISP_NVFP4) pin(scales[half][0]), pin(scales[half][1]);
    }
  }
  // Piece p as the operand of 16 rows: values 2i and 2i + 1 of both rows in a[2i] and a[2i + 1].
  __device__ inline void unpack(uint32_t (&a)[8], int p) const {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const uint32_t word = word_of(codes[i % 2], i / 2);
      if constexpr (F == AISP_BF16) a[i] = word;
      else if constexpr (F == AISP_FP8) a[i] = e4m3_high_bytes_to_bf16x2(__byte_perm(word, 0, p ? 0x3424 : 0x1404));
      else if constexpr (F == AISP_W8G32) {
        const float2 two = int8_pair(word ^ 0x80808080u, p);
        a[i] = pack_bf16(two.x, two.y);
      } else if constexpr (F == AISP_W4G32) a[i] = w4_pair(word, p);
      else a[i] = fp4_pair(word, p, scales[i % 2][p / 2]);
    }
  }
  // acc += piece p times b, 8 values of a row of x; `sum` by sum_of_x().
  __device__ inline void multiply(float (&acc)[4], const uint32_t (&a)[8], int p, const uint4 &b, const float (&sum)[4]) const {
    if constexpr (F == AISP_W8G32 || F == AISP_W4G32) {
      float d[4];
      mma_bf16_first(d, a[0], a[1], a[2], a[3], b.x, b.y);
      mma_bf16(d, a[4], a[5], a[6], a[7], b.z, b.w);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        if constexpr (F == AISP_W4G32) {
          const uint32_t pair = word_of(pairs[half], p);
          const float2 own = __half22float2(*reinterpret_cast<const __half2 *>(&pair));
          const float minimum = fmaf(-128.0f, own.x, own.y);
#pragma unroll
          for (int i = 0; i < 2; i++) acc[2 * half + i] = fmaf(minimum, sum[i], fmaf(own.x, d[2 * half + i], acc[2 * half + i]));
        } else {
          const float2 both = __half22float2(*reinterpret_cast<const __half2 *>(&scales[half][0]));
#pragma unroll
          for (int i = 0; i < 2; i++) acc[2 * half + i] = fmaf(p ? both.y : both.x, d[2 * half + i], acc[2 * half + i]);
        }
      }
    } else {
      mma_bf16(acc, a[0], a[1], a[2], a[3], b.x, b.y);
      mma_bf16(acc, a[4], a[5], a[6], a[7], b.z, b.w);
    }
  }
};

// Sums of x over a piece, where formats with a minimum need them: rows of ones times x; [0] and [1] are this lane's columns.
template <int F>
__device__ inline void sum_of_x(float (&sum)[4], const uint4 &b) {
  constexpr uint32_t ONES = 0x3f803f80u;
  if constexpr (F == AISP_W4G32) {
    mma_bf16_first(sum, ONES, ONES, ONES, ONES, b.x, b.y);
    mma_bf16(sum, ONES, ONES, ONES, ONES, b.z, b.w);
  }
}
#endif

} // namespace aisp
