// z = x W^T for many rows on Hopper, both in e4m3 as wgmma multiplies them: x with a scale for each 64 values of a row, W with
// one a row.
//
// Shapes     x e4m3 [T, K], its scales f32 [K / 64, T], W e4m3 [N, K], result by aisp_output.
// Alignment  16 bytes; K a multiple of 64.
// Bytes      W once for each 128 rows of x, x once for each 128 rows of W (from the L2), results.
// Flops      2 T N K.
// Launch     a block 128 rows of W, two groups of 4 warps that multiply 64 of them each. K is cut among the blocks of a cluster
//            where there are fewer tiles than multiprocessors; their sums meet in distributed shared memory. Up to 64 rows of x
//            a multiprocessor has room for two blocks: the next kernel, let in when a block has asked for the last of its
//            weights, fills its ring with its own (they never change) while the sums here are finished.
// Sums       each block's slice in order of k by wgmma, whose own sums are short, over 64 k; these pieces, times x's scales, in
//            f32; then slices in order.
#include "wide.cuh"

namespace aisp {
namespace {

constexpr int GROUPS = 2, WARPS = 4 * GROUPS, THREADS = 32 * WARPS, BM = 64 * GROUPS;
constexpr int STAGE_K = 128; // bytes of a row of W and of x in a stage

// The sizes of a block for BN rows of x.
template <int BN>
struct Sizes {
  static constexpr int BLOCKS = BN <= 64 ? 2 : 1; // that a multiprocessor has room for
  static constexpr int MOST = (BLOCKS == 2 ? 113 : 227) << 10, TABLE_BYTES = 128 + BN * 4; // barriers, norms of rows
  static constexpr int SCALE_BYTES = STAGE_K / SCALED_K * BN * 4, STAGE = (BN + BM) * STAGE_K;
  static constexpr int FIT = (MOST - TABLE_BYTES) / (STAGE + SCALE_BYTES), STAGES = FIT < 8 ? FIT : 8;
  static constexpr int RING = STAGES * STAGE, SHARED = RING + STAGES * SCALE_BYTES + TABLE_BYTES;
  static_assert(BN * sum_row(BM) * 4 <= RING && STAGES >= 3, "sums take the ring's place");
};

template <int BN>
__global__ void __launch_bounds__(THREADS, Sizes<BN>::BLOCKS)
    fp8_kernel(const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap scale_map,
               const Tiles tiles, const aisp_linear_args args) {
#ifdef AISP_HOPPER
  using S = Sizes<BN>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t ring = shared_address(shared), scales = ring + S::RING, full = scales + S::STAGES * S::SCALE_BYTES, empty = full + 8 * S::STAGES;
  float *const row_scale = reinterpret_cast<float *>(shared + S::SHARED) - BN;

  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int rank = blockIdx.x, splits = gridDim.x, first_tile = blockIdx.z * (BM / 16);
  const int first_row = blockIdx.y * BN, num_rows = min(args.num_rows - first_row, BN);
  const int num_stages = (tiles.k + STAGE_K - 1) / STAGE_K;
  const int begin = rank * num_stages / splits, total = (rank + 1) * num_stages / splits - begin, ahead = min(S::STAGES, total);

  auto copy_w = [&](int i, int slot) {
    barrier_expect(full + 8 * slot, S::STAGE + S::SCALE_BYTES);
    copy_tile(ring + slot * S::STAGE + BN * STAGE_K, w_map, full + 8 * slot, (begin + i) * STAGE_K, 0, 0, first_tile);
  };
  auto copy_x = [&](int i, int slot) {
    copy_tile(ring + slot * S::STAGE, x_map, full + 8 * slot, (begin + i) * STAGE_K, first_row);
    copy_tile(scales + slot * S::SCALE_BYTES, scale_map, full + 8 * slot, first_row, (begin + i) * (STAGE_K / SCALED_K));
  };
  if (thread == 0) {
    prefetch_map(w_map);
    for (int slot = 0; slot < S::STAGES; slot++) barrier_init(full + 8 * slot, 1), barrier_init(empty + 8 * slot, WARPS);
    shared_ready();
    for (int i = 0; i < ahead; i++) copy_w(i, i);
    prefetch_map(x_map), prefetch_map(scale_map);
  }
  pdl_wait();
  if (thread == 0)
    for (int i = 0; i < ahead; i++) copy_x(i, i);
  if (ahead == total) pdl_launch();
  // Norms of the rows that this block finishes, [t_begin, t_end), while the copies run.
  const int t_begin = rank * num_rows / splits, t_end = (rank + 1) * num_rows / splits;
  if (args.x_sumsq) row_norms<WARPS>(row_scale, args, tiles.k, first_row, t_begin, t_end);
  __syncthreads(); // barriers are made

  float sums[BN / 2];
#pragma unroll
  for (int i = 0; i < BN / 2; i++) sums[i] = 0;
  int slot = 0, turn = 0; // turns alternate with each round of the ring
  int next = ahead, fill_slot = 0, fill_turn = 0;
  // A stage that all have read makes room for the next.
  auto refill = [&]() {
    if (thread == 0 && next < total) {
      barrier_wait(empty + 8 * fill_slot, fill_turn);
      copy_w(next, fill_slot);
      copy_x(next, fill_slot);
      if (++next == total) pdl_launch();
      if (++fill_slot == S::STAGES) fill_slot = 0, fill_turn ^= 1;
    }
    __syncwarp();
  };
  float first[BN / 2], second[BN / 2]; // the pieces of a stage: one is added while the other is multiplied
  uint32_t scales_of = scales + lane % 4 * 8;
  auto multiply = [&](float (&part)[BN / 2], int piece) {
    const uint64_t x = tile_descriptor(ring + slot * S::STAGE), w = tile_descriptor(ring + slot * S::STAGE + (BN + warp / 4 * 64) * STAGE_K);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < SCALED_K / 32; j++) wgmma_e4m3(part, w + piece * (SCALED_K / 16) + 2 * j, x + piece * (SCALED_K / 16) + 2 * j, j > 0);
    wgmma_commit();
  };
  auto add = [&](float (&part)[BN / 2], int piece) {
    wgmma_done(part);
#pragma unroll
    for (int j = 0; j < BN / 8; j++) { // part[4 j ..] are those of rows 8 j + lane % 4 * 2 + {0, 1}
      uint32_t pair[2];
      shared_words(pair, scales_of + (piece * BN + 8 * j) * 4);
#pragma unroll
      for (int k = 0; k < 4; k++) sums[4 * j + k] = fmaf(part[4 * j + k], __uint_as_float(pair[k % 2]), sums[4 * j + k]);
    }
  };
#pragma unroll 1
  for (int i = 0; i < total; i++) {
    barrier_wait(full + 8 * slot, turn);
    scales_of = scales + slot * S::SCALE_BYTES + lane % 4 * 8;
    multiply(first, 0);
    multiply(second, 1);
    if (i > 0) refill(); // of the stage before
    wgmma_wait<1>();
    add(first, 0);
    wgmma_wait<0>();
    add(second, 1);
    __syncwarp(); // all lanes have read its scales
    if (lane == 0) barrier_arrive(empty + 8 * slot);
    if (++slot == S::STAGES) slot = 0, turn ^= 1;
  }
  __syncthreads(); // the ring has been read

  finish_sums<true, BM, THREADS>(sums, args, tiles, shared, splits, first_tile, first_row, t_begin, t_end, row_scale, 1);
#endif
}

// ------------------------------------------------------------------------------------------------------------- host

template <int BN>
int start_fp8(const aisp_ctx *ctx, const Tiles &tiles, const aisp_linear_args &args, aisp_stream stream) {
  const int64_t stages = ceil_div(tiles.k, STAGE_K), num_blocks = ceil_div(tiles.num_tiles, BM / 16), rows = ceil_div(args.num_rows, BN);
  int splits = 1; // as many as run at once
  for (int s = 2; s <= MAX_SPLITS && s <= stages; s++)
    if (num_blocks * rows <= ctx->wide_clusters[s] * Sizes<BN>::BLOCKS) splits = s;
  CUtensorMap w_map, x_map, scale_map;
  if (int code = make_weight_map(ctx, &w_map, tiles, STAGE_K, BM / 16)) return code;
  if (int code = make_row_map(ctx, &x_map, tiles, args, BN)) return code;
  if (int code = make_scale_map(ctx, &scale_map, tiles, args, BN, STAGE_K / SCALED_K)) return code;
  const dim3 grid(splits, (unsigned)rows, (unsigned)num_blocks);
  return launch_as(ctx, {grid, THREADS, Sizes<BN>::SHARED, splits, true}, fp8_kernel<BN>, stream, w_map, x_map, scale_map, tiles, args);
}

template <int BN>
int raise_fp8_limit() {
  return cudaFuncSetAttribute(fp8_kernel<BN>, cudaFuncAttributeMaxDynamicSharedMemorySize, Sizes<BN>::SHARED);
}

} // namespace

int fp8_linear(const aisp_ctx *ctx, const Tiles &tiles, const aisp_linear_args &args, aisp_stream stream) {
  if (args.num_rows <= 32) return start_fp8<32>(ctx, tiles, args, stream);
  if (args.num_rows <= 64) return start_fp8<64>(ctx, tiles, args, stream);
  return start_fp8<128>(ctx, tiles, args, stream);
}
int prepare_fp8_linear() { return raise_all({raise_fp8_limit<32>, raise_fp8_limit<64>, raise_fp8_limit<128>}); }

} // namespace aisp
