// z = x W^T for few rows: the weights are the traffic, so they are read once, in long asynchronous copies, and go
// through the tensor cores as the 16-row operand with the rows of x as its 8 columns.
//
// Shapes     x bf16 [T <= 64, K], W [N, K] in any aisp_format, result by aisp_output.
// Alignment  16 bytes; K a multiple of 8.
// Bytes      W and its scales once, x once a block (from the L2), results.
// Flops      2 T N K (the tensor cores do 8 ceil(T / 8) rows).
// Launch     at most two blocks of 8 warps a multiprocessor, persistent over tiles of 16 or 32 rows of W. Warp s owns slice
//            s of K and its own ring of stages in shared memory; the ring is filled before the wait on the predecessor
//            (weights never change), so under programmatic launch the first copies run while that one drains.
// Sums       slices of K are cut between stages (128 k of bf16, 256 of others); along a slice in f32 by mma.m16n8k16 in a
//            fixed order of k, then slices 0..7 in order. A column of the product never meets another, so the order does
//            not depend on T, nor on the tile.
// Codes      bf16, e4m3 and e2m1 x e4m3 are exact in bf16; integer codes are, and their scale is applied in f32
//            to the sum of each group of 32.
#include "linear.cuh"

namespace aisp {
namespace {

constexpr int WARPS = 8;

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
  constexpr int fit = KIB * 1024 / (WARPS * stage_bytes<F, MT>());
  return fit < 2 ? 2 : fit > 6 ? 6 : fit;
}
template <int F, int MT, int NT, int KIB>
__host__ __device__ constexpr int shared_bytes() {
  // The exchange of slice sums, twice, and the rows' norm scales.
  constexpr int red = 2 * WARPS * MT * 16 * NT * 8 * 4;
  return WARPS * num_stages<F, MT, KIB>() * stage_bytes<F, MT>() + red + 64 * 4;
}

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
template <int F, int NT, bool WHOLE>
struct XAhead {
  static constexpr int PIECES = Format<F>::STAGE_K / 32; // of a stage
  static constexpr int WANTED = NT <= 2 ? 4 : NT == 4 ? 2 : 1, DEPTH = WANTED < PIECES ? WANTED : PIECES;
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
template <int F, int MT, int NT, bool WHOLE>
__device__ inline void multiply_stage(float (&acc)[MT][NT][4], uint32_t stage, int ks, int next_ks, XAhead<F, NT, WHOLE> &x, int lane) {
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

template <int F, int MT, int NT, int KIB, bool WHOLE>
__global__ void __launch_bounds__(WARPS * 32, NT == 1 ? 2 : 1) linear_kernel(const Tiles tiles, const float tensor_scale, const aisp_linear_args args) {
  using Fm = Format<F>;
  constexpr int STAGES = num_stages<F, MT, KIB>();
  constexpr int STAGE = stage_bytes<F, MT>();
  constexpr int OUTS = MT * 16 * NT * 8;
  extern __shared__ __align__(128) uint8_t shared[];
  float *red = reinterpret_cast<float *>(shared + WARPS * STAGES * STAGE); // [2][WARPS][NT * 8][MT * 16]
  float *row_scale = red + 2 * WARPS * OUTS;                              // [NT * 8]
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const uint32_t ring = shared_address(shared) + warp * STAGES * STAGE;

  const int num_stages_k = (tiles.k + Fm::STAGE_K - 1) / Fm::STAGE_K;
  const int ks_begin = warp * num_stages_k / WARPS, ks_end = (warp + 1) * num_stages_k / WARPS;
  const int per_tile = ks_end - ks_begin;
  const int num_groups = (tiles.num_tiles + MT - 1) / MT;
  const int my_groups = ((int)gridDim.x + num_groups - 1 - (int)blockIdx.x) / (int)gridDim.x;
  const int total = my_groups * per_tile;

  int fill_group = blockIdx.x, fill_ks = ks_begin, fill_slot = 0, left = total;
  auto fill = [&]() {
    if (left > 0) {
      left--;
      fill_stage<F, MT, WHOLE>(tiles, fill_group * MT, fill_ks, ring + fill_slot * STAGE, lane);
      fill_slot = fill_slot + 1 == STAGES ? 0 : fill_slot + 1;
      if (++fill_ks == ks_end) fill_ks = ks_begin, fill_group += gridDim.x;
    }
    copy_async_commit();
  };
#pragma unroll 1
  for (int i = 0; i < STAGES - 1; i++) fill();
  pdl_wait();
  pdl_launch();

  XAhead<F, NT, WHOLE> ahead;
  Columns<NT, WHOLE> &x = ahead.columns;
  x.k = tiles.k;
#pragma unroll
  for (int nt = 0; nt < NT; nt++) {
    const int t = nt * 8 + lane / 4;
    const int known = t < args.num_rows ? t : 0;
    const int64_t row = args.row_ids ? args.row_ids[known] : known;
    x.row[nt] = reinterpret_cast<const __nv_bfloat16 *>(args.x) + row * args.ldx;
  }

  if (total > 0) ahead.begin(ks_begin, lane % 4);
  // The norm of row `warp`: loaded now, needed when the first tile is done.
  float squares = 0;
  if (args.x_sumsq && warp < args.num_rows) {
    const int64_t row = args.row_ids ? args.row_ids[warp] : warp;
    for (int i = lane; i < tiles.k / 16; i += 32) squares += __ldcg(args.x_sumsq + row * (tiles.k / 16) + i);
  }

  int slot = 0, buffer = 0;
  bool first = true;
#pragma unroll 1
  for (int group = blockIdx.x; group < num_groups; group += gridDim.x) {
    float acc[MT][NT][4];
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
#pragma unroll
      for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int i = 0; i < 4; i++) acc[mt][nt][i] = 0;
#pragma unroll 1
    for (int ks = ks_begin; ks < ks_end; ks++) {
      copy_async_wait<STAGES - 2>();
      __syncwarp();
      fill(); // into the stage that was read last
      multiply_stage<F, MT, NT, WHOLE>(acc, ring + slot * STAGE, ks, ks + 1 < ks_end ? ks + 1 : ks_begin, ahead, lane);
      slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    if (first) {
      // The norm's scale of each row, while the copies run.
      first = false;
      if (args.x_sumsq) {
        if (warp < args.num_rows) {
          const float scale = rsqrtf(warp_sum(squares) / tiles.k + args.eps);
          if (lane == 0) row_scale[warp] = scale;
        }
        for (int t = warp + WARPS; t < min(args.num_rows, NT * 8); t += WARPS) {
          const int64_t row = args.row_ids ? args.row_ids[t] : t;
          const float scale = rms_scale(args.x_sumsq + row * (tiles.k / 16), tiles.k / 16, tiles.k, args.eps);
          if (lane == 0) row_scale[t] = scale;
        }
      }
    }
    float *mine = red + (buffer * WARPS + warp) * OUTS;
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
#pragma unroll
      for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int i = 0; i < 4; i++)
          mine[(nt * 8 + lane % 4 * 2 + i % 2) * MT * 16 + mt * 16 + lane / 4 + i / 2 * 8] = acc[mt][nt][i];
    __syncthreads();
    const float *all = red + buffer * WARPS * OUTS;
#pragma unroll 1
    for (int o = threadIdx.x; o < OUTS; o += WARPS * 32) {
      const int t = o / (MT * 16), r = o % (MT * 16);
      if (o - lane >= args.num_rows * MT * 16) break; // whole warps leave together
      float z = all[o];
#pragma unroll
      for (int w = 1; w < WARPS; w++) z += all[w * OUTS + o];
      const int tile = group * MT + r / 16;
      if constexpr (F == AISP_NVFP4) z *= tensor_scale;
      if constexpr (F == AISP_FP8) {
        const int n = half_row(tiles, tile, r % 16 / 8) + r % 8;
        if (n < tiles.n) z *= reinterpret_cast<const float *>(tiles.scales)[n];
      }
      if (args.x_sumsq) z *= row_scale[t];
      finish(args, tiles, tile, r % 16, t, z);
    }
    buffer ^= 1;
  }
}

template <int F, int MT, int NT, int KIB>
int start(const aisp_ctx *ctx, const Tiles &tiles, float tensor_scale, const aisp_linear_args &args, aisp_stream stream) {
  const int groups = (int)ceil_div(tiles.num_tiles, MT);
  const int places = ctx->sm_count * (NT == 1 ? 2 : 1);
  // Rows of W may be padded to whole stages where those of x are not: what lies behind x need not even be a number.
  const bool whole = tiles.row_bytes % Format<F>::ROW_BYTES == 0 && tiles.k % Format<F>::STAGE_K == 0;
  return launch(ctx, whole ? linear_kernel<F, MT, NT, KIB, true> : linear_kernel<F, MT, NT, KIB, false>,
                groups < places ? groups : places, WARPS * 32, shared_bytes<F, MT, NT, KIB>(), stream, tiles, tensor_scale, args);
}

// Two tiles at once halve the reads of x, where that leaves no multiprocessor idle longer.
template <int F, int NT>
int choose_tiles(const aisp_ctx *ctx, const Tiles &tiles, float tensor_scale, const aisp_linear_args &args, aisp_stream stream) {
  const int places = ctx->sm_count, most = ctx->shared_bytes_per_block;
  const int64_t rounds1 = ceil_div(tiles.num_tiles, places), rounds2 = 2 * ceil_div(ceil_div(tiles.num_tiles, 2), places);
  if constexpr (NT == 2 || NT == 4) { // few rows are read cheaply, and with many, two tiles do not fit the registers
    if (shared_bytes<F, 2, NT, RING>() <= most && rounds2 <= rounds1)
      return start<F, 2, NT, RING>(ctx, tiles, tensor_scale, args, stream);
  }
  if constexpr (NT <= 2) {
    if (shared_bytes<F, 1, NT, RING>() > most) return start<F, 1, NT, SMALL_RING>(ctx, tiles, tensor_scale, args, stream);
  }
  return start<F, 1, NT, RING>(ctx, tiles, tensor_scale, args, stream);
}

template <int F>
int choose_rows(const aisp_ctx *ctx, const Tiles &tiles, float tensor_scale, const aisp_linear_args &args, aisp_stream stream) {
  if (args.num_rows <= 8) return choose_tiles<F, 1>(ctx, tiles, tensor_scale, args, stream);
  if (args.num_rows <= 16) return choose_tiles<F, 2>(ctx, tiles, tensor_scale, args, stream);
  if (args.num_rows <= 32) return choose_tiles<F, 4>(ctx, tiles, tensor_scale, args, stream);
  return choose_tiles<F, 8>(ctx, tiles, tensor_scale, args, stream);
}

template <int F, int MT, int NT, int KIB>
int raise_limit(const aisp_ctx *ctx) {
  if (shared_bytes<F, MT, NT, KIB>() > ctx->shared_bytes_per_block) return 0; // never launched there
  for (auto kernel : {linear_kernel<F, MT, NT, KIB, true>, linear_kernel<F, MT, NT, KIB, false>})
    if (int code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes<F, MT, NT, KIB>())) return code;
  return 0;
}
template <int F>
int raise_limits(const aisp_ctx *ctx) {
  int (*const all[])(const aisp_ctx *) = {raise_limit<F, 1, 1, RING>,       raise_limit<F, 1, 2, RING>, raise_limit<F, 1, 4, RING>,
                                          raise_limit<F, 1, 8, RING>,       raise_limit<F, 2, 2, RING>,
                                          raise_limit<F, 2, 4, RING>,       raise_limit<F, 1, 1, SMALL_RING>,
                                          raise_limit<F, 1, 2, SMALL_RING>};
  for (auto raise : all)
    if (int code = raise(ctx)) return code;
  return 0;
}

} // namespace

int prepare_linear(const aisp_ctx *ctx) {
  int (*const all[])(const aisp_ctx *) = {raise_limits<AISP_BF16>, raise_limits<AISP_FP8>, raise_limits<AISP_W8G32>, raise_limits<AISP_W4G32>,
                          raise_limits<AISP_NVFP4>};
  for (auto raise : all)
    if (int code = raise(ctx)) return code;
  return 0;
}

} // namespace aisp

extern "C" int aisp_linear(const aisp_ctx *ctx, const aisp_weight *w, const aisp_linear_args *args, aisp_stream stream) {
  using namespace aisp;
  if (args->num_rows == 0) return 0;
  const bool paired = args->output == AISP_OUT_SILU_MUL;
  if (!fits(*w, *args) || args->num_rows > AISP_LINEAR_MAX_ROWS)
    return cudaErrorInvalidValue;
  const Tiles tiles = tiles_of(*w, paired);
  // Cards with less shared memory take the rows in parts.
  constexpr int FEW = 16, FEW_BYTES = 160 * 1024;
  if (args->num_rows > FEW && ctx->shared_bytes_per_block < FEW_BYTES) {
    aisp_linear_args part = *args;
    for (int32_t begin = 0; begin < args->num_rows; begin += FEW) {
      part.num_rows = args->num_rows - begin < FEW ? args->num_rows - begin : FEW;
      if (int code = aisp_linear(ctx, w, &part, stream)) return code;
      if (part.row_ids) part.row_ids += FEW;
      else {
        part.x += FEW * part.ldx;
        if (part.x_sumsq) part.x_sumsq += FEW * (w->k / 16);
      }
      const bool half = part.output == AISP_OUT_BF16 || part.output == AISP_OUT_SILU_MUL;
      part.out = static_cast<uint8_t *>(part.out) + FEW * part.ldo * (half ? 2 : 4);
      if (part.next_x) part.next_x += (int64_t)FEW * w->n;
      if (part.next_sumsq) part.next_sumsq += (int64_t)FEW * (w->n / 16);
    }
    return 0;
  }
  switch (w->format) {
    case AISP_BF16: return choose_rows<AISP_BF16>(ctx, tiles, 1, *args, stream);
    case AISP_FP8: return choose_rows<AISP_FP8>(ctx, tiles, 1, *args, stream);
    case AISP_W8G32: return choose_rows<AISP_W8G32>(ctx, tiles, 1, *args, stream);
    case AISP_W4G32: return choose_rows<AISP_W4G32>(ctx, tiles, 1, *args, stream);
    case AISP_NVFP4: return choose_rows<AISP_NVFP4>(ctx, tiles, w->tensor_scale * 256.0f, *args, stream);
    default: return cudaErrorInvalidValue;
  }
}
