// A warp's stage of x W^T for few rows in linear.cu: 16 or 32 rows of W by 128 or 256 k, how it is copied and how it is multiplied.
#pragma once

#include "linear_unit.cuh"

namespace aisp {

// One stage: a warp's 16 MT rows by STAGE_K values, of ROW_BYTES and, for groups of 32 or 16, SCALE_BYTES a row.
// Rows of 256 bytes run faster than 128, at half as many stages.
template <int F>
struct Format;
template <>
struct Format<AISP_BF16> {
  static constexpr int ROW_BYTES = 256, STAGE_K = 128, SCALE_BYTES = 0;
};
template <>
struct Format<AISP_FP8> {
  static constexpr int ROW_BYTES = 256, STAGE_K = 256, SCALE_BYTES = 0;
};
template <>
struct Format<AISP_W8G32> {
  static constexpr int ROW_BYTES = 256, STAGE_K = 256, SCALE_BYTES = 16;
};
template <>
struct Format<AISP_W4G32> {
  static constexpr int ROW_BYTES = 128, STAGE_K = 256, SCALE_BYTES = 32;
};
template <>
struct Format<AISP_NVFP4> {
  static constexpr int ROW_BYTES = 128, STAGE_K = 256, SCALE_BYTES = 16;
};

template <int F, int MT>
__host__ __device__ constexpr int stage_bytes() {
  return 16 * MT * (Format<F>::ROW_BYTES + Format<F>::SCALE_BYTES);
}
// Kibibytes of a block's rings. Two blocks fit on a large multiprocessor: while one finishes, the next kernel's fills its
// rings. Cards with 99 KiB a block take the small size.
constexpr int RING = 96, SMALL_RING = 64;
template <int F, int MT, int KIB>
__host__ __device__ constexpr int num_stages() {
  constexpr int fit = KIB * 1024 / (LINEAR_WARPS * stage_bytes<F, MT>());
  return fit < 2 ? 2 : fit > 6 ? 6 : fit;
}

#ifdef __CUDACC__
// Queues the copies of one stage. WHOLE: rows are a whole number of stages, so nothing is checked; a tile beyond the last
// repeats that one, and what comes of it is dropped.
template <int F, int MT, bool WHOLE>
__device__ inline void fill_stage(const Tiles &t, int tile, int ks, uint32_t stage, int lane) {
  using Fm = Format<F>;
  constexpr int PIECES = Fm::ROW_BYTES / 16;     // of a row
  constexpr int ROWS_A_COPY = 32 / PIECES;       // rows that 32 lanes copy at once
  const int piece = lane % PIECES;
  const uint32_t column = (uint32_t)ks * Fm::ROW_BYTES + piece * 16;
  const bool in_k = WHOLE || column < t.row_bytes;
  const uint32_t row_bytes = (uint32_t)t.row_bytes;
#pragma unroll
  for (int mt = 0; mt < MT; mt++) {
    const int at = MT == 1 ? tile : min(tile + mt, t.num_tiles - 1);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint8_t *from = t.data + (uint64_t)(half_row(t, at, half) + lane / PIECES) * row_bytes + column;
#pragma unroll
      for (int i = 0; i < 8 / ROWS_A_COPY; i++) {
        const int row = i * ROWS_A_COPY + lane / PIECES;
        const uint32_t to = stage + (mt * 16 + half * 8 + row) * Fm::ROW_BYTES + ((piece ^ ((row & 1) << 2)) * 16);
        const uint8_t *source = from + i * ROWS_A_COPY * row_bytes;
        if constexpr (WHOLE) copy_async_16(to, source);
        else copy_async_16(to, in_k ? source : t.data, in_k);
      }
    }
    if constexpr (Fm::SCALE_BYTES > 0) {
      constexpr int PARTS = Fm::SCALE_BYTES / 16; // 16-byte parts of a row's scales
      if (lane < 16 * PARTS) {
        const int row = lane / PARTS, part = lane % PARTS;
        const int n = half_row(t, at, row / 8) + row % 8;
        const uint32_t to = stage + 16 * MT * Fm::ROW_BYTES + (mt * 16 + row) * Fm::SCALE_BYTES + part * 16;
        // Rows of scales are padded to whole stages.
        copy_async_16(to, t.scales + (uint64_t)n * (uint32_t)t.scale_row_bytes + ks * Fm::SCALE_BYTES + part * 16);
      }
    }
  }
}

// The values of x that a lane will need next, a few pieces of 8 k ahead of the sums: they come from the L2 or the L1, and
// a stage must not wait for them.
template <int F, int NT, bool WHOLE, int WANTED = NT == 1 && (F == AISP_W4G32 || F == AISP_W8G32) ? 2 : NT <= 2 ? 4 : NT == 4 ? 2 : 1>
struct XAhead {
  static constexpr int PIECES = Format<F>::STAGE_K / 32; // of a stage
  static constexpr int DEPTH = WANTED < PIECES ? WANTED : PIECES;
  Columns<NT, WHOLE> columns;
  uint4 ahead[DEPTH][NT];

  __device__ inline void begin(int ks, int c) {
#pragma unroll
    for (int p = 0; p < DEPTH; p++)
#pragma unroll
      for (int nt = 0; nt < NT; nt++) ahead[p][nt] = columns.load(nt, ks * Format<F>::STAGE_K + Unit<F>::place(p, c));
  }
  // Piece p of stage ks; queues the one DEPTH later, which may lie in stage next_ks.
  __device__ inline void take(uint4 (&b)[NT], int p, int ks, int next_ks, int c) {
    const int later = p + DEPTH, stage = later < PIECES ? ks : next_ks;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
      b[nt] = ahead[p % DEPTH][nt];
      ahead[p % DEPTH][nt] = columns.load(nt, stage * Format<F>::STAGE_K + Unit<F>::place(later % PIECES, c));
    }
  }
};

// Where a lane finds its units of a stage.
template <int F, int MT>
struct InStage {
  uint32_t codes_at, scales_at; // of the lane's row in the first half of a tile
  int mt, unit, flip;
  __device__ inline uint4 codes(int half) const {
    return shared_16(codes_at + (mt * 16 + half * 8) * Format<F>::ROW_BYTES + (((unit * 4 + (threadIdx.x & 3)) ^ flip) * 16));
  }
  __device__ inline uint32_t scales_of(int half) const {
    return scales_at + (mt * 16 + half * 8) * Format<F>::SCALE_BYTES + unit * Unit<F>::SCALE_BYTES;
  }
  __device__ inline uint32_t scale_word(int half, int word) const { return shared_4(scales_of(half) + word * 4); }
  __device__ inline uint4 scale_words(int half) const { return shared_16(scales_of(half)); }
};

// acc += W[stage] x[stage].
template <int F, int MT, int NT, class Ahead>
__device__ inline void multiply_stage(float (&acc)[MT][NT][4], uint32_t stage, int ks, int next_ks, Ahead &x, int lane) {
  using Fm = Format<F>;
  constexpr int PIECES = Unit<F>::PIECES;
  const int r = lane / 4, c = lane % 4;
  const uint32_t codes_at = stage + r * Fm::ROW_BYTES, scales_at = stage + 16 * MT * Fm::ROW_BYTES + r * Fm::SCALE_BYTES;
#pragma unroll
  for (int u = 0; u < Fm::STAGE_K / Unit<F>::K; u++) {
    Unit<F> units[MT];
#pragma unroll
    for (int mt = 0; mt < MT; mt++) units[mt].read(InStage<F, MT>{codes_at, scales_at, mt, u, (r & 1) << 2});
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
      uint4 b[NT];
      float sum[NT][4];
      x.take(b, u * PIECES + p, ks, next_ks, c);
#pragma unroll
      for (int nt = 0; nt < NT; nt++) sum_of_x<F>(sum[nt], b[nt]);
#pragma unroll
      for (int mt = 0; mt < MT; mt++) {
        uint32_t a[8];
        units[mt].unpack(a, p);
#pragma unroll
        for (int nt = 0; nt < NT; nt++) units[mt].multiply(acc[mt][nt], a, p, b[nt], sum[nt]);
      }
    }
  }
}

#endif

} // namespace aisp
