// What the products of many rows share (wide_linear.cu, fp8_linear.cu): tensors as the copy engine sees them, norms of
// rows, and how the sums of a cluster's blocks meet.
#pragma once

#include "hopper.cuh"
#include "linear.cuh"

namespace aisp {

constexpr int MAX_SPLITS = 8; // blocks of a cluster

// Floats from a row of a block's sums to the next; the padding spreads a fragment over the banks.
__host__ __device__ constexpr int sum_row(int rows_of_w) { return rows_of_w + 4; }

constexpr int SCALED_K = 64;  // e4m3 values of a row of x that share a scale

// x in e4m3 too: fp8_linear.cu.
int fp8_linear(const aisp_ctx *ctx, const Tiles &tiles, const aisp_linear_args &args, aisp_stream stream);
int prepare_fp8_linear();

// ------------------------------------------------------------------------------------------------------------- host

using EncodeTiled = CUresult (*)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *,
                                 const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// A tensor of `rank` dimensions, the innermost first; `strides` are those of the outer ones, in bytes.
inline int make_map(const aisp_ctx *ctx, CUtensorMap *map, CUtensorMapDataType type, int rank, const void *data, const cuuint64_t *sizes,
                    const cuuint64_t *strides, const cuuint32_t *box, CUtensorMapSwizzle swizzle) {
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const auto encode = reinterpret_cast<EncodeTiled>(ctx->encode_tiled);
  return encode(map, type, (cuuint32_t)rank, const_cast<void *>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
             ? cudaErrorInvalidValue
             : 0;
}

// W as tiles of two halves of eight rows, wherever the halves lie: boxes of `num_tiles` tiles, `bytes` of their rows.
inline int make_weight_map(const aisp_ctx *ctx, CUtensorMap *map, const Tiles &tiles, int bytes, int num_tiles) {
  const auto row = (cuuint64_t)tiles.row_bytes;
  const cuuint64_t sizes[4] = {row, 8, 2, (cuuint64_t)tiles.num_tiles};
  const cuuint64_t strides[3] = {row, (tiles.paired ? tiles.n / 2 : 8) * row, (tiles.paired ? 8 : 16) * row};
  const cuuint32_t box[4] = {(cuuint32_t)bytes, 8, 2, (cuuint32_t)num_tiles};
  return make_map(ctx, map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 4, tiles.data, sizes, strides, box,
                  bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B);
}

// x, boxes of `rows` rows and 128 bytes of each.
inline int make_row_map(const aisp_ctx *ctx, CUtensorMap *map, const Tiles &tiles, const aisp_linear_args &args, int rows) {
  const bool codes = args.x_scales != nullptr;
  const cuuint64_t sizes[2] = {(cuuint64_t)tiles.k, (cuuint64_t)args.num_rows}, strides[1] = {(cuuint64_t)args.ldx * (codes ? 1 : 2)};
  const cuuint32_t box[2] = {codes ? 128u : 64u, (cuuint32_t)rows};
  return make_map(ctx, map, codes ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, args.x, sizes, strides, box,
                  CU_TENSOR_MAP_SWIZZLE_128B);
}

// The scales of x [K / 64, T], boxes of `groups` of them for `rows` rows.
inline int make_scale_map(const aisp_ctx *ctx, CUtensorMap *map, const Tiles &tiles, const aisp_linear_args &args, int rows, int groups) {
  const cuuint64_t sizes[2] = {(cuuint64_t)args.num_rows, (cuuint64_t)(tiles.k / SCALED_K)}, strides[1] = {(cuuint64_t)args.ld_scales * 4};
  const cuuint32_t box[2] = {(cuuint32_t)rows, (cuuint32_t)groups};
  return make_map(ctx, map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 2, args.x_scales, sizes, strides, box, CU_TENSOR_MAP_SWIZZLE_NONE);
}

#ifdef AISP_HOPPER

// ----------------------------------------------------------------------------------------------------------- device

// What rows [begin, end) of x are multiplied by, from their sums of squares: eight lanes a row, so that all loads of a block
// are under way at once.
template <int WARPS>
__device__ inline void row_norms(float *scales, const aisp_linear_args &args, int k, int first_row, int begin, int end) {
  const int lane = threadIdx.x & 31, count = k / 16;
  for (int four = begin + (int)threadIdx.x / 32 * 4; four < end; four += WARPS * 4) {
    const int t = four + lane / 8;
    float sum = 0;
    if (t < end) {
      const float *row = args.x_sumsq + (int64_t)(first_row + t) * count;
      if (count % 4 == 0) {
#pragma unroll 8
        for (int i = lane % 8; i < count / 4; i += 8) {
          const float4 v = __ldcg(reinterpret_cast<const float4 *>(row) + i);
          sum += (v.x + v.y) + (v.z + v.w);
        }
      } else {
        for (int i = lane % 8; i < count; i += 8) sum += __ldcg(row + i);
      }
    }
#pragma unroll
    for (int offset = 4; offset; offset >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    if (t < end && lane % 8 == 0) scales[t] = rsqrtf(sum / k + args.eps);
  }
}

// Four neighbouring columns of a row: a quarter of a tile.
struct Place {
  int tile, quarter, t; // t: of all rows
  bool valid;
};
// What they are finished with; asked for before their sums are there.
struct QuadOperands {
  float4 scale, bias, norm, residual;
};
template <bool CHANNEL_SCALES>
__device__ inline QuadOperands ask_quad(const aisp_linear_args &args, const Tiles &tiles, const Place &at) {
  QuadOperands with = {};
  if (!at.valid) return with;
  const int n = half_row(tiles, at.tile, at.quarter / 2) + at.quarter % 2 * 4;
  if (CHANNEL_SCALES) with.scale = *reinterpret_cast<const float4 *>(reinterpret_cast<const float *>(tiles.scales) + n);
  if (args.bias) with.bias = *reinterpret_cast<const float4 *>(args.bias + n);
  if (args.output == AISP_OUT_RESIDUAL) {
    with.residual = __ldcg(reinterpret_cast<const float4 *>(static_cast<const float *>(args.out) + at.t * args.ldo + n));
    if (args.next_norm_weight) with.norm = *reinterpret_cast<const float4 *>(args.next_norm_weight + n);
  }
  return with;
}
template <bool CHANNEL_SCALES>
__device__ inline float4 scaled_quad(float4 z, float scale, const QuadOperands &with) {
  if (CHANNEL_SCALES) z.x *= with.scale.x, z.y *= with.scale.y, z.z *= with.scale.z, z.w *= with.scale.w;
  return make_float4(fmaf(z.x, scale, with.bias.x), fmaf(z.y, scale, with.bias.y), fmaf(z.z, scale, with.bias.z), fmaf(z.w, scale, with.bias.w));
}
__device__ inline uint2 half_of(float4 v) { return make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w)); }

// Values of columns c to c + 3 of row t as e4m3 codes in the order of weights. Sixteen lanes in a row hold the 64 columns that share
// a scale; all lanes of a warp take part.
__device__ inline void store_codes(uint8_t *row, const aisp_linear_args &args, int c, int t, float4 v, bool valid) {
  float most = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
#pragma unroll
  for (int offset = 8; offset; offset >>= 1) most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, offset));
  const float scale = e4m3_scale(most), inverse = 1.0f / scale;
  const uint32_t low = floats_to_e4m3x2(v.x * inverse, v.y * inverse);
  const uint32_t high = floats_to_e4m3x2(v.z * inverse, v.w * inverse);
  // A word holds two columns of the first eight of a tile and the two eight further: lanes two apart trade halves.
  const bool first = c % 16 < 8;
  const uint32_t other = __shfl_xor_sync(ALL_LANES, first ? high : low, 2);
  if (!valid) return;
  const int word = c % 8 / 2 + (first ? 0 : 1);
  *reinterpret_cast<uint32_t *>(row + c / 16 * 16 + word * 4) = first ? low | other << 16 : other | high << 16;
  if (c % SCALED_K == 0) args.next_scales[(int64_t)(c / SCALED_K) * args.ld_scales + t] = scale;
}

// What becomes of their sums; all lanes of a warp take part, and four in a row hold a tile.
template <bool CHANNEL_SCALES>
__device__ inline void finish_quad(const aisp_linear_args &args, const Tiles &tiles, const Place &at, float4 z, float scale,
                                   const QuadOperands &with) {
  z = scaled_quad<CHANNEL_SCALES>(z, scale, with);
  const int n = half_row(tiles, at.tile, at.quarter / 2) + at.quarter % 2 * 4;
  const int64_t place = at.t * args.ldo + n;
  switch (args.output) {
    case AISP_OUT_BF16:
      if (at.valid) *reinterpret_cast<uint2 *>(static_cast<aisp_bf16 *>(args.out) + place) = half_of(z);
      break;
    case AISP_OUT_F32:
      if (at.valid) *reinterpret_cast<float4 *>(static_cast<float *>(args.out) + place) = z;
      break;
    case AISP_OUT_RESIDUAL: {
      const float4 h = make_float4(with.residual.x + z.x, with.residual.y + z.y, with.residual.z + z.z, with.residual.w + z.w);
      if (at.valid) __stcg(reinterpret_cast<float4 *>(static_cast<float *>(args.out) + place), h);
      if (args.next_norm_weight) {
        const float4 x = make_float4(h.x * with.norm.x, h.y * with.norm.y, h.z * with.norm.z, h.w * with.norm.w);
        if (args.next_scales)
          store_codes(reinterpret_cast<uint8_t *>(args.next_x) + (int64_t)at.t * tiles.n, args, n, at.t, x, at.valid);
        else if (at.valid)
          *reinterpret_cast<uint2 *>(args.next_x + (int64_t)at.t * tiles.n + n) = half_of(x);
        float sum = (h.x * h.x + h.y * h.y) + (h.z * h.z + h.w * h.w);
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        if (at.valid && at.quarter == 0) args.next_sumsq[(int64_t)at.t * (tiles.n / 16) + at.tile] = sum;
      }
      break;
    }
  }
}
// The same for gates, in the first two quarters of a tile, and the ups of the same columns, two quarters on.
template <bool CHANNEL_SCALES>
__device__ inline void finish_gated(const aisp_linear_args &args, const Tiles &tiles, const Place &at, float4 gate, float4 up, float scale) {
  gate = scaled_quad<CHANNEL_SCALES>(gate, scale, ask_quad<CHANNEL_SCALES>(args, tiles, at));
  up = scaled_quad<CHANNEL_SCALES>(up, scale, ask_quad<CHANNEL_SCALES>(args, tiles, {at.tile, at.quarter + 2, at.t, at.valid}));
  const float4 v = make_float4(silu(gate.x) * up.x, silu(gate.y) * up.y, silu(gate.z) * up.z, silu(gate.w) * up.w);
  const int c = at.tile * 8 + at.quarter * 4;
  if (args.next_scales)
    store_codes(static_cast<uint8_t *>(args.out) + at.t * args.ldo, args, c, at.t, v, at.valid);
  else if (at.valid)
    *reinterpret_cast<uint2 *>(static_cast<aisp_bf16 *>(args.out) + at.t * args.ldo + c) = half_of(v);
}

// The end of a block of BM rows of W: a lane's sums, as wgmma leaves them, go to the start of the block's shared memory, `shared`,
// [rows of x][sum_row(BM)], which nobody reads any more. Those of the cluster's blocks are added in order, and rows [t_begin, t_end)
// are finished here.
template <bool CHANNEL_SCALES, int BM, int THREADS, int N>
__device__ inline void finish_sums(const float (&sums)[N], const aisp_linear_args &args, const Tiles &tiles, uint8_t *shared, int splits, int first_tile, int first_row,
                                   int t_begin, int t_end, const float *row_scale, float tensor_scale) {
  constexpr int ROW_QUADS = BM / 4, BATCH = 2; // quads of a thread that are under way at once
  const int rows = t_end - t_begin, thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
#pragma unroll
  for (int i = 0; i < N; i++)
    reinterpret_cast<float *>(shared)[(i / 4 * 8 + lane % 4 * 2 + i % 2) * sum_row(BM) + warp * 16 + lane / 4 + i / 2 % 2 * 8] = sums[i];
  const uint32_t mine = shared_address(shared);
  auto gather = [&](int t, int quad) {
    const int at = (t * sum_row(BM) + quad * 4) * 4;
    if (splits == 1) return *reinterpret_cast<const float4 *>(shared + at);
    float4 parts[MAX_SPLITS];
#pragma unroll
    for (int s = 0; s < MAX_SPLITS; s++)
      if (s < splits) parts[s] = cluster_floats(mine + at, s);
    float4 sum = parts[0];
#pragma unroll
    for (int s = 1; s < MAX_SPLITS; s++)
      if (s < splits) sum.x += parts[s].x, sum.y += parts[s].y, sum.z += parts[s].z, sum.w += parts[s].w;
    return sum;
  };
  auto scale_of = [&](int t) { return args.x_sumsq ? tensor_scale * row_scale[t] : tensor_scale; };
  if (args.output == AISP_OUT_SILU_MUL) {
    if (splits > 1) cluster_sync();
    else __syncthreads();
    // The same number of rounds for all lanes of a warp.
#pragma unroll 2
    for (int first = 0; first < rows * (ROW_QUADS / 2); first += THREADS) {
      const int o = first + thread, t = t_begin + o / (ROW_QUADS / 2), tile = o % (ROW_QUADS / 2) / 2, quarter = o % 2;
      const bool valid = t < t_end && first_tile + tile < tiles.num_tiles;
      float4 gate = {}, up = {};
      if (valid) gate = gather(t, tile * 4 + quarter), up = gather(t, tile * 4 + quarter + 2);
      finish_gated<CHANNEL_SCALES>(args, tiles, {first_tile + tile, quarter, first_row + t, valid}, gate, up, valid ? scale_of(t) : 0);
    }
  } else {
    Place at[BATCH];
    QuadOperands with[BATCH];
    auto ask = [&](int first) {
#pragma unroll
      for (int b = 0; b < BATCH; b++) {
        const int o = first + b * THREADS + thread, tile = first_tile + o % ROW_QUADS / 4;
        at[b] = {tile, o % 4, first_row + t_begin + o / ROW_QUADS, o < rows * ROW_QUADS && tile < tiles.num_tiles};
        with[b] = ask_quad<CHANNEL_SCALES>(args, tiles, at[b]);
      }
    };
    ask(0);
    if (splits > 1) cluster_sync();
    else __syncthreads();
#pragma unroll 1
    for (int first = 0; first < rows * ROW_QUADS; first += BATCH * THREADS) {
      if (first) ask(first);
      float4 z[BATCH] = {};
#pragma unroll
      for (int b = 0; b < BATCH; b++)
        if (at[b].valid) z[b] = gather(at[b].t - first_row, (at[b].tile - first_tile) * 4 + at[b].quarter);
#pragma unroll
      for (int b = 0; b < BATCH; b++) finish_quad<CHANNEL_SCALES>(args, tiles, at[b], z[b], at[b].valid ? scale_of(at[b].t - first_row) : 0, with[b]);
    }
  }
  if (splits > 1) cluster_leave();
}
#endif

} // namespace aisp
