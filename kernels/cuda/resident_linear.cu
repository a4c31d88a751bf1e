// z = x W^T for few rows and a small W: each warp has its part of W in registers, ready for the product, before the wait on
// the predecessor. What is left behind the wait is x, a few matrix instructions and the exchange.
//
// Shapes     x bf16 [T <= 64, K <= 2048], W [N, K] in any aisp_format with at most two tiles of 16 rows a multiprocessor,
//            result by aisp_output.
// Alignment  16 bytes; K a multiple of 8.
// Bytes      W and its scales once for each 8 rows of x, x once a block (from the L2), results.
// Launch     grid (tiles, groups of 8 rows of x), 8 warps. Warp s owns slice s of K, 128 k up to K = 1024 and 256 beyond.
// Sums       along a slice in f32 by mma.m16n8k16 in order of k, then slices 0..7 in order, whatever T is.
// Codes      as in linear.cu.
#include "linear_unit.cuh"

namespace aisp {
namespace {

constexpr int WARPS = LINEAR_WARPS;
constexpr int ROWS = 8; // of x at a time

// Where a lane finds its unit of W: zeros beyond the end of a row.
template <int F>
struct InMatrix {
  const Tiles &tiles;
  int64_t rows[2];
  int unit; // of the row
  __device__ inline bool in() const { return (unit * 4 + ((int)threadIdx.x & 3)) * 16 < tiles.row_bytes; }
  __device__ inline uint4 codes(int half) const {
    const uint8_t *from = tiles.data + rows[half] * tiles.row_bytes + (unit * 4 + (threadIdx.x & 3)) * 16;
    return in() ? __ldg(reinterpret_cast<const uint4 *>(from)) : make_uint4(0, 0, 0, 0);
  }
  // Rows of scales are padded to 256 k.
  __device__ inline const uint8_t *scales_of(int half) const {
    return tiles.scales + rows[half] * tiles.scale_row_bytes + unit * Unit<F>::SCALE_BYTES;
  }
  __device__ inline uint32_t scale_word(int half, int word) const { return __ldg(reinterpret_cast<const uint32_t *>(scales_of(half)) + word); }
  __device__ inline uint4 scale_words(int half) const { return __ldg(reinterpret_cast<const uint4 *>(scales_of(half))); }
};

template <int F, int SLICE>
__global__ void __launch_bounds__(WARPS * 32, 2) resident_linear_kernel(const Tiles tiles, const float tensor_scale, const aisp_linear_args args) {
  constexpr int UNITS = SLICE / Unit<F>::K, PIECES = SLICE / 32, OUTS = 16 * ROWS;
  constexpr int AHEAD = 4; // pieces unpacked before the wait; all of 256 k would spill
  __shared__ float red[WARPS][OUTS];
  __shared__ float row_scale[ROWS];
  pdl_launch();
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5, r = lane / 4, c = lane % 4;
  const int tile = blockIdx.x, first = blockIdx.y * ROWS; // of x
  const int num_slices = (tiles.k + SLICE - 1) / SLICE, slice = slice_begin(warp, num_slices);
  const bool has_slice = slice_begin(warp + 1, num_slices) > slice;

  Unit<F> units[UNITS];
  uint32_t a[AHEAD][8];
  if (has_slice) {
#pragma unroll
    for (int u = 0; u < UNITS; u++) units[u].read(InMatrix<F>{tiles, {half_row(tiles, tile, 0) + r, half_row(tiles, tile, 1) + r}, slice * UNITS + u});
#pragma unroll
    for (int p = 0; p < AHEAD; p++) {
      units[p / Unit<F>::PIECES].unpack(a[p], p % Unit<F>::PIECES);
#pragma unroll
      for (int i = 0; i < 8; i++) pin(a[p][i]);
    }
  }
  // Also before the wait: where this lane's x is, where results go, and of those what never changes.
  auto row_of = [&](int t) { return (int64_t)(args.row_ids ? args.row_ids[t] : t); };
  const int k_begin = slice * SLICE + Unit<F>::place(0, c), left = tiles.k - k_begin;
  const auto *x = reinterpret_cast<const __nv_bfloat16 *>(args.x) + row_of(first + r < args.num_rows ? first + r : 0) * args.ldx + k_begin;
  const int num_sums = tiles.k / 16, sums_left = num_sums - lane;
  const float *sums = args.x_sumsq && first + warp < args.num_rows ? args.x_sumsq + row_of(first + warp) * num_sums + lane : nullptr;
  Operands with;
  if (thread < OUTS) with = ask<F>(args, tiles, tile, thread % 16, first + thread / 16);
  pin(x), pin(sums), pin(with.to), pin(with.next_x), pin(with.next_sumsq);
#pragma unroll
  for (int u = 0; u < UNITS; u++) units[u].pin_all(u * Unit<F>::PIECES >= AHEAD);
  pdl_wait();

  uint4 b[PIECES];
  if (has_slice) {
#pragma unroll
    for (int p = 0; p < PIECES; p++)
      b[p] = Unit<F>::place(p, 0) < left ? __ldcg(reinterpret_cast<const uint4 *>(x + Unit<F>::place(p, 0))) : make_uint4(0, 0, 0, 0);
  }
  ask_residual(args, with);
  float squares = 0;
  if (sums) {
#pragma unroll
    for (int i = 0; i < MOST_RESIDENT_K / 16; i += 32) squares += i < sums_left ? __ldcg(sums + i) : 0.0f;
  }
  float acc[4] = {0, 0, 0, 0};
  if (has_slice) {
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
      float sum[4];
      sum_of_x<F>(sum, b[p]);
      uint32_t late[8];
      const Unit<F> &unit = units[p / Unit<F>::PIECES];
      if (p >= AHEAD) unit.unpack(late, p % Unit<F>::PIECES);
      unit.multiply(acc, p < AHEAD ? a[p % AHEAD] : late, p % Unit<F>::PIECES, b[p], sum);
    }
  }
  if (sums) {
    const float scale = rsqrtf(warp_sum(squares) / tiles.k + args.eps);
    if (lane == 0) row_scale[warp] = scale;
  }
#pragma unroll
  for (int i = 0; i < 4; i++) red[warp][(c * 2 + i % 2) * 16 + r + i / 2 * 8] = acc[i];
  __syncthreads();
  if (thread >= OUTS || first + warp * 2 >= args.num_rows) return; // a warp holds two rows
  float z = red[0][thread];
#pragma unroll
  for (int w = 1; w < WARPS; w++) z += red[w][thread];
  if constexpr (F == AISP_NVFP4) z *= tensor_scale;
  if constexpr (F == AISP_FP8) z = __fmul_rn(z, with.scale); // never one with a later sum
  if (args.x_sumsq) z *= row_scale[thread / 16];
  finish(args, thread % 16, z, with);
}

template <int F>
int start(const aisp_ctx *ctx, const Tiles &tiles, float tensor_scale, const aisp_linear_args &args, aisp_stream stream) {
  const Launch as = {dim3(tiles.num_tiles, (unsigned)ceil_div(args.num_rows, ROWS)), WARPS * 32, 0, 1, true};
  return launch_as(ctx, as, tiles.k <= MOST_RESIDENT_K / 2 ? resident_linear_kernel<F, 128> : resident_linear_kernel<F, 256>, stream, tiles, tensor_scale, args);
}

} // namespace

int resident_linear(const aisp_ctx *ctx, int format, const Tiles &tiles, float tensor_scale, const aisp_linear_args &args, aisp_stream stream) {
  switch (format) {
    case AISP_BF16: return start<AISP_BF16>(ctx, tiles, 1, args, stream);
    case AISP_FP8: return start<AISP_FP8>(ctx, tiles, 1, args, stream);
    case AISP_W8G32: return start<AISP_W8G32>(ctx, tiles, 1, args, stream);
    case AISP_W4G32: return start<AISP_W4G32>(ctx, tiles, 1, args, stream);
    case AISP_NVFP4: return start<AISP_NVFP4>(ctx, tiles, tensor_scale * NVFP4_LATER, args, stream);
    default: return cudaErrorInvalidValue;
  }
}

} // namespace aisp
