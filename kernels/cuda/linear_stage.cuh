// A warp's stage of x W^T for few rows: 16 or 32 rows of W by 128 or 256 k, how it is copied and how it is multiplied.
// Of a block of 8 warps, warp s sums slice s of K; whoever adds the slices in order has the sums that linear.cu documents.
#pragma once

#include "linear.cuh"

namespace aisp {

constexpr int LINEAR_WARPS = 8;

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
// Stages of K that warp `warp` of 8 sums.
__host__ __device__ inline int slice_begin(int warp, int num_stages) { return warp * num_stages / LINEAR_WARPS; }

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

__device__ inline uint32_t int8_codes(uint32_t word, int half) {
  const float2 codes = int8_pair(word ^ 0x80808080u, half);
  return pack_bf16(codes.x, codes.y);
}

// The values of x that a lane will need next, a few pieces of 8 k ahead of the sums: they come from the L2 or the L1, and
// a stage must not wait for them.
template <int F, int NT, bool WHOLE, int WANTED = NT == 1 && (F == AISP_W4G32 || F == AISP_W8G32) ? 2 : NT <= 2 ? 4 : NT == 4 ? 2 : 1>
struct XAhead {
  static constexpr int PIECES = Format<F>::STAGE_K / 32; // of a stage
  static constexpr int DEPTH = WANTED < PIECES ? WANTED : PIECES;
  Columns<NT, WHOLE> columns;
  uint4 ahead[DEPTH][NT];

  // First k of piece p in a stage, for this lane.
  static __device__ inline int place(int p, int c) {
    if constexpr (F == AISP_FP8) return p / 2 * 64 + c * 16 + p % 2 * 8;
    if constexpr (F == AISP_NVFP4) return p / 4 * 128 + c * 32 + p % 4 * 8;
    return p * 32 + c * 8;
  }
  __device__ inline void begin(int ks, int c) {
#pragma unroll
    for (int p = 0; p < DEPTH; p++)
#pragma unroll
      for (int nt = 0; nt < NT; nt++) ahead[p][nt] = columns.load(nt, ks * Format<F>::STAGE_K + place(p, c));
  }
  // Piece p of stage ks; queues the one DEPTH later, which may lie in stage next_ks.
  __device__ inline void take(uint4 (&b)[NT], int p, int ks, int next_ks, int c) {
    const int later = p + DEPTH, stage = later < PIECES ? ks : next_ks;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
      b[nt] = ahead[p % DEPTH][nt];
      ahead[p % DEPTH][nt] = columns.load(nt, stage * Format<F>::STAGE_K + place(later % PIECES, c));
    }
  }
};

__device__ inline uint32_t word_of(const uint4 &v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// acc += W[stage] x[stage].
template <int F, int MT, int NT, class Ahead>
__device__ inline void multiply_stage(float (&acc)[MT][NT][4], uint32_t stage, int ks, int next_ks, Ahead &x, int lane) {
  using Fm = Format<F>;
  const int r = lane / 4, c = lane % 4;
  const uint32_t row_at = stage + r * Fm::ROW_BYTES;
  const uint32_t flip = (r & 1) << 2;
  const uint32_t scales_at = stage + 16 * MT * Fm::ROW_BYTES;
  auto rows = [&](int mt, int piece, uint4 &low, uint4 &high) {
    const uint32_t at = row_at + mt * 16 * Fm::ROW_BYTES + ((piece ^ flip) * 16);
    low = shared_16(at);
    high = shared_16(at + 8 * Fm::ROW_BYTES);
  };
  uint4 b[NT];

  if constexpr (F == AISP_BF16) {
#pragma unroll
    for (int p = 0; p < Fm::STAGE_K / 32; p++) { // 32 k
      x.take(b, p, ks, next_ks, c);
#pragma unroll
      for (int mt = 0; mt < MT; mt++) {
        uint4 low, high;
        rows(mt, p * 4 + c, low, high);
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
          mma_bf16(acc[mt][nt], low.x, high.x, low.y, high.y, b[nt].x, b[nt].y);
          mma_bf16(acc[mt][nt], low.z, high.z, low.w, high.w, b[nt].z, b[nt].w);
        }
      }
    }
  } else if constexpr (F == AISP_FP8) {
#pragma unroll
    for (int chunk = 0; chunk < Fm::STAGE_K / 64; chunk++) { // 64 k; a lane holds 16 values of a row
      uint4 low[MT], high[MT], b2[NT];
#pragma unroll
      for (int mt = 0; mt < MT; mt++) rows(mt, chunk * 4 + c, low[mt], high[mt]);
      x.take(b, chunk * 2, ks, next_ks, c);
      x.take(b2, chunk * 2 + 1, ks, next_ks, c);
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
          uint32_t a0, a1, a2, a3;
          e4m3x4_to_bf16(word_of(low[mt], i), a0, a2);
          e4m3x4_to_bf16(word_of(high[mt], i), a1, a3);
#pragma unroll
          for (int nt = 0; nt < NT; nt++) mma_bf16(acc[mt][nt], a0, a1, a2, a3, word_of(b[nt], i), word_of(b2[nt], i));
        }
      }
    }
  } else if constexpr (F == AISP_W8G32) {
#pragma unroll
    for (int chunk = 0; chunk < 4; chunk++) { // 64 k, two groups
      uint4 low[MT], high[MT];
      float2 s_low[MT], s_high[MT];
#pragma unroll
      for (int mt = 0; mt < MT; mt++) {
        rows(mt, chunk * 4 + c, low[mt], high[mt]);
        const uint32_t s0 = shared_4(scales_at + (mt * 16 + r) * 16 + chunk * 4), s1 = shared_4(scales_at + (mt * 16 + 8 + r) * 16 + chunk * 4);
        s_low[mt] = __half22float2(*reinterpret_cast<const __half2 *>(&s0));
        s_high[mt] = __half22float2(*reinterpret_cast<const __half2 *>(&s1));
      }
#pragma unroll
      for (int g = 0; g < 2; g++) {
        x.take(b, chunk * 2 + g, ks, next_ks, c);
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
          uint32_t a[8]; // group g stands in half g of each word
#pragma unroll
          for (int i = 0; i < 4; i++) {
            a[2 * i] = int8_codes(word_of(low[mt], i), g);
            a[2 * i + 1] = int8_codes(word_of(high[mt], i), g);
          }
          const float sl = g ? s_low[mt].y : s_low[mt].x, sh = g ? s_high[mt].y : s_high[mt].x;
#pragma unroll
          for (int nt = 0; nt < NT; nt++) {
            float d[4];
            mma_bf16_first(d, a[0], a[1], a[2], a[3], b[nt].x, b[nt].y);
            mma_bf16(d, a[4], a[5], a[6], a[7], b[nt].z, b[nt].w);
            acc[mt][nt][0] = fmaf(sl, d[0], acc[mt][nt][0]);
            acc[mt][nt][1] = fmaf(sl, d[1], acc[mt][nt][1]);
            acc[mt][nt][2] = fmaf(sh, d[2], acc[mt][nt][2]);
            acc[mt][nt][3] = fmaf(sh, d[3], acc[mt][nt][3]);
          }
        }
      }
    }
  } else if constexpr (F == AISP_W4G32) {
#pragma unroll
    for (int chunk = 0; chunk < 2; chunk++) { // 128 k, four groups
      uint4 low[MT], high[MT], s_low[MT], s_high[MT];
#pragma unroll
      for (int mt = 0; mt < MT; mt++) {
        rows(mt, chunk * 4 + c, low[mt], high[mt]);
        s_low[mt] = shared_16(scales_at + (mt * 16 + r) * 32 + chunk * 16);
        s_high[mt] = shared_16(scales_at + (mt * 16 + 8 + r) * 32 + chunk * 16);
      }
#pragma unroll
      for (int g = 0; g < 4; g++) {
        x.take(b, chunk * 4 + g, ks, next_ks, c);
        float sum[NT][4]; // of x over the group: rows of ones times x; [0] and [1] are this lane's columns
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
          constexpr uint32_t ONES = 0x3f803f80u;
          mma_bf16_first(sum[nt], ONES, ONES, ONES, ONES, b[nt].x, b[nt].y);
          mma_bf16(sum[nt], ONES, ONES, ONES, ONES, b[nt].z, b[nt].w);
        }
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
          const uint32_t sl = word_of(s_low[mt], g), sh = word_of(s_high[mt], g);
          const float2 fl = __half22float2(*reinterpret_cast<const __half2 *>(&sl));
          const float2 fh = __half22float2(*reinterpret_cast<const __half2 *>(&sh));
          const float ml = fmaf(-128.0f, fl.x, fl.y), mh = fmaf(-128.0f, fh.x, fh.y);
          uint32_t a[8]; // group g stands in nibbles g and g + 4 of each word
#pragma unroll
          for (int i = 0; i < 4; i++) {
            a[2 * i] = w4_pair(word_of(low[mt], i), g);
            a[2 * i + 1] = w4_pair(word_of(high[mt], i), g);
          }
#pragma unroll
          for (int nt = 0; nt < NT; nt++) {
            float d[4];
            mma_bf16_first(d, a[0], a[1], a[2], a[3], b[nt].x, b[nt].y);
            mma_bf16(d, a[4], a[5], a[6], a[7], b[nt].z, b[nt].w);
            acc[mt][nt][0] = fmaf(ml, sum[nt][0], fmaf(fl.x, d[0], acc[mt][nt][0]));
            acc[mt][nt][1] = fmaf(ml, sum[nt][1], fmaf(fl.x, d[1], acc[mt][nt][1]));
            acc[mt][nt][2] = fmaf(mh, sum[nt][0], fmaf(fh.x, d[2], acc[mt][nt][2]));
            acc[mt][nt][3] = fmaf(mh, sum[nt][1], fmaf(fh.x, d[3], acc[mt][nt][3]));
          }
        }
      }
    }
  } else {
#pragma unroll
    for (int chunk = 0; chunk < 2; chunk++) { // 128 k; a lane holds 32 values of a row, two groups of 16
      uint4 low[MT], high[MT];
      uint32_t scale[MT][2][2];
#pragma unroll
      for (int mt = 0; mt < MT; mt++) {
        rows(mt, chunk * 4 + c, low[mt], high[mt]);
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const uint32_t four = shared_4(scales_at + (mt * 16 + half * 8 + r) * 16 + chunk * 8 + c / 2 * 4);
          uint32_t s01, unused;
          e4m3x4_to_bf16(c % 2 ? four >> 16 : four, s01, unused);
          fp4_scales(scale[mt][half], s01);
        }
      }
#pragma unroll
      for (int j = 0; j < 4; j++) { // chunks
        x.take(b, chunk * 4 + j, ks, next_ks, c);
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
          uint32_t a[8];
#pragma unroll
          for (int i = 0; i < 4; i++) {
            a[2 * i] = fp4_pair(word_of(low[mt], i), j, scale[mt][0][j / 2]);
            a[2 * i + 1] = fp4_pair(word_of(high[mt], i), j, scale[mt][1][j / 2]);
          }
#pragma unroll
          for (int nt = 0; nt < NT; nt++) {
            mma_bf16(acc[mt][nt], a[0], a[1], a[2], a[3], b[nt].x, b[nt].y);
            mma_bf16(acc[mt][nt], a[4], a[5], a[6], a[7], b[nt].z, b[nt].w);
          }
        }
      }
    }
  }
}

#endif

} // namespace aisp
