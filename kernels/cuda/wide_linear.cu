// z = x W^T for many rows on Hopper: the weights, turned to bf16 in registers, are the 64-row operand of wgmma, up to 128
// rows of x its columns in shared memory.
//
// Shapes     x bf16 [T, K], W [N, K] in any aisp_format, result by aisp_output.
// Alignment  16 bytes; K a multiple of 8 (fp8: 16).
// Bytes      W once for each 128 rows of x, x once for each 128 or 256 rows of W (from the L2), results.
// Flops      2 T N K.
// Launch     a block a multiprocessor, of 2 or 4 groups of 4 warps; a group owns 64 rows of W. K is cut among the blocks of
//            a cluster where there are fewer tiles than multiprocessors; their sums meet in distributed shared memory.
//            Stages of a ring hold 64 or 128 k of W and of x, copied whole by one thread. The first stages of W are
//            asked for before the wait on the predecessor (weights never change).
// Sums       each block's slice in order of k (4 bits: of pairs of chunks) by wgmma in f32, then slices in order.
// Codes      e4m3 and e2m1 x e4m3 are exact in bf16; integer codes times their scale are rounded to bf16.
#include "wide.cuh"

namespace aisp {
namespace {

// Steps of 64 k in a stage of BN rows of x; and bytes of such a step in a row of W.
template <int F, int BN>
__host__ __device__ constexpr int span() { return F == AISP_BF16 || ((F == AISP_FP8 || F == AISP_W8G32) && BN > 64) ? 1 : 2; }
template <int F>
__host__ __device__ constexpr int step_bytes() { return F == AISP_BF16 ? 128 : F == AISP_FP8 || F == AISP_W8G32 ? 64 : 32; }

constexpr int SHARED_BYTES = 227 << 10; // of a multiprocessor, for one block

// The sizes of a block: GROUPS x 64 rows of W, BN rows of x.
template <int F, int GROUPS, int BN>
struct Block {
  static constexpr int WARPS = 4 * GROUPS, THREADS = 32 * WARPS, BM = 64 * GROUPS;
  static constexpr int SPAN = span<F, BN>(), STAGE_K = 64 * SPAN, ROW_BYTES = SPAN * step_bytes<F>();
  static constexpr int X_BYTES = BN * 2 * STAGE_K, W_BYTES = BM * ROW_BYTES, STAGE = X_BYTES + W_BYTES;
  static constexpr int SUM_BYTES = BN * sum_row(BM) * 4;
  static constexpr int TABLE_BYTES = 256 + BN * 4; // barriers, and the norm scales of rows of x
  static constexpr int FIT = (SHARED_BYTES - 1024 - TABLE_BYTES) / STAGE, STAGES = FIT < 12 ? FIT : 12;
  static constexpr int RING = STAGES * STAGE > SUM_BYTES ? STAGES * STAGE : SUM_BYTES;
  static constexpr int SHARED = 1024 + RING + TABLE_BYTES; // stages start at multiples of 1024
  static_assert(STAGE % 1024 == 0 && STAGES >= 3, "two stages are read while others arrive");
};

#ifdef AISP_HOPPER
__device__ inline float2 half_pair(uint32_t bits) { return __half22float2(*reinterpret_cast<const __half2 *>(&bits)); }
// Two int8 codes of a word times their scale.
__device__ inline uint32_t int8_pair_scaled(uint32_t biased, int half, float scale) {
  const float2 codes = int8_pair(biased, half);
  return pack_bf16(codes.x * scale, codes.y * scale);
}

// The scales of a lane's two rows, r and r + 8, over SPAN steps: f16 for two groups a step; pairs of f16, scale and minimum,
// for two; e4m3 for four. Read from global memory a stage ahead.
template <int F, int SPAN>
struct Scales {
  static constexpr bool ANY = F == AISP_W8G32 || F == AISP_W4G32 || F == AISP_NVFP4;
  static constexpr int WORDS = !ANY ? 1 : F == AISP_W4G32 ? 2 * SPAN : SPAN;
  uint32_t at[2][WORDS];
  __device__ inline void load(const uint8_t *const (&row)[2], int stage) {
    if constexpr (ANY)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const uint32_t *from = reinterpret_cast<const uint32_t *>(row[i]) + stage * WORDS;
        if constexpr (WORDS == 4) {
          const uint4 v = __ldg(reinterpret_cast<const uint4 *>(from));
          at[i][0] = v.x, at[i][1] = v.y, at[i][2] = v.z, at[i][3] = v.w;
        } else if constexpr (WORDS == 2) {
          const uint2 v = __ldg(reinterpret_cast<const uint2 *>(from));
          at[i][0] = v.x, at[i][1] = v.y;
        } else {
          at[i][0] = __ldg(from);
        }
      }
  }
};

// Which 16 k of a stage instruction i of a step multiplies. Where the chunks of a unit come from different groups, an
// instruction takes neighbouring chunks of one group out of two units.
template <int F>
__device__ constexpr int k16_of(int step, int i) {
  return F == AISP_W8G32 ? 4 * step + i % 2 * 2 + i / 2 : F == AISP_W4G32 ? 2 * i + step : 4 * step + i;
}

// The operand of one step of 64 k out of a stage: 4 instructions of 16 k. `w`: the warp's 16 rows.
template <int F, int SPAN>
__device__ inline void take_weights(uint32_t (&a)[4][4], uint32_t w, const Scales<F, SPAN> &scales, int step, int lane) {
  constexpr int ROW_BYTES = SPAN * step_bytes<F>(), UNITS = step_bytes<F>() / 16; // of a step
  const int row = lane & 15, swizzle = ROW_BYTES == 128 ? row & 7 : row >> 1 & 3;
  auto units = [&](uint32_t (&words)[4], int first) { // unit `first`, rows r and r + 8, then the next unit
    ldmatrix_x4(words, w + row * ROW_BYTES + (((step * UNITS + first + lane / 16) ^ swizzle) * 16));
  };
  uint32_t words[4];
  if constexpr (F == AISP_FP8) {
#pragma unroll
    for (int i = 0; i < 4; i++) { // a unit is 16 k
      if (i % 2 == 0) units(words, i);
      e4m3x4_to_bf16(words[i % 2 * 2], a[i][0], a[i][2]);
      e4m3x4_to_bf16(words[i % 2 * 2 + 1], a[i][1], a[i][3]);
    }
  } else if constexpr (F == AISP_W8G32) {
    const float2 scale[2] = {half_pair(scales.at[0][step]), half_pair(scales.at[1][step])};
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
      units(words, 2 * pair);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const uint32_t biased = words[j] ^ 0x80808080u;
        a[2 * pair][j] = int8_pair_scaled(biased, 0, scale[j % 2].x);
        a[2 * pair + 1][j] = int8_pair_scaled(biased, 1, scale[j % 2].y);
      }
    }
  } else if constexpr (F == AISP_W4G32) {
    units(words, 0);
#pragma unroll
    for (int g = 0; g < 4; g++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        // In f32 and rounded once: scales or minima in bf16 would be off alike for all values of a group, and errors that
        // agree add up (mean KL of a Q4_1 model 5e-4 in place of 3e-5).
        const float2 of = half_pair(scales.at[half][g]);
        const float base = fmaf(-128.0f, of.x, of.y);
#pragma unroll
        for (int u = 0; u < 2; u++) {
          const uint32_t codes = w4_pair(words[2 * u + half], g); // 128 more than they are
          a[g][2 * u + half] = pack_bf16(fmaf(bf16_low(codes), of.x, base), fmaf(bf16_high(codes), of.x, base));
        }
      }
  } else if constexpr (F == AISP_NVFP4) {
    units(words, 0);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t pairs[2];
      e4m3x4_to_bf16(scales.at[half][step], pairs[0], pairs[1]);
#pragma unroll
      for (int u = 0; u < 2; u++) { // a unit is 32 k
        uint32_t scale[2];
        fp4_scales(scale, pairs[u]);
#pragma unroll
        for (int j = 0; j < 4; j++) a[2 * u + j / 2][2 * (j % 2) + half] = fp4_pair(words[2 * u + half], j, scale[j / 2]);
      }
    }
  }
}

#endif

template <int F, int GROUPS, int BN>
__global__ void __launch_bounds__(128 * GROUPS, 1)
    wide_kernel(const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map, const Tiles tiles,
                const float tensor_scale, const aisp_linear_args args) {
#ifdef AISP_HOPPER
  using B = Block<F, GROUPS, BN>;
  constexpr int SPAN = B::SPAN;
  extern __shared__ uint8_t unaligned[];
  const uint32_t ring = (shared_address(unaligned) + 1023) & ~1023u;
  uint8_t *const shared = unaligned + (ring - shared_address(unaligned));
  const uint32_t full = ring + B::RING, empty = full + 8 * B::STAGES; // barriers
  float *const row_scale = reinterpret_cast<float *>(shared + B::RING + 256);

  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int rank = blockIdx.x, splits = gridDim.x;
  const int first_row = blockIdx.y * BN, num_rows = min(args.num_rows - first_row, BN);
  const int first_tile = blockIdx.z * (B::BM / 16);
  const int num_stages = (tiles.k + B::STAGE_K - 1) / B::STAGE_K;
  const int begin = rank * num_stages / splits, total = (rank + 1) * num_stages / splits - begin;

  auto copy_w = [&](int i, int slot) {
    barrier_expect(full + 8 * slot, B::STAGE);
    copy_tile(ring + slot * B::STAGE + B::X_BYTES, w_map, full + 8 * slot, (begin + i) * B::ROW_BYTES, 0, 0, first_tile);
  };
  auto copy_x = [&](int i, int slot) {
#pragma unroll
    for (int step = 0; step < SPAN; step++)
      copy_tile(ring + slot * B::STAGE + step * BN * 128, x_map, full + 8 * slot, (begin + i) * B::STAGE_K + step * 64, first_row);
  };
  if (thread == 0) {
    prefetch_map(x_map);
    for (int slot = 0; slot < B::STAGES; slot++) barrier_init(full + 8 * slot, 1), barrier_init(empty + 8 * slot, B::WARPS);
    shared_ready();
    for (int i = 0; i < B::STAGES && i < total; i++) copy_w(i, i);
  }
  const uint8_t *scale_rows[2] = {nullptr, nullptr};
  Scales<F, SPAN> scales, next_scales;
  if constexpr (Scales<F, SPAN>::ANY) {
    const int tile = min(first_tile + warp, tiles.num_tiles - 1); // beyond the last: computed, then dropped
    for (int half = 0; half < 2; half++)
      scale_rows[half] = tiles.scales + (half_row(tiles, tile, half) + lane / 4) * tiles.scale_row_bytes;
    next_scales.load(scale_rows, begin);
  }
  pdl_wait();
  pdl_launch();
  if (thread == 0)
    for (int i = 0; i < B::STAGES && i < total; i++) copy_x(i, i);
  // Norms of the rows that this block finishes, [t_begin, t_end), while the copies run.
  const int t_begin = rank * num_rows / splits, t_end = (rank + 1) * num_rows / splits;
  if (args.x_sumsq) row_norms<B::WARPS>(row_scale, args, tiles.k, first_row, t_begin, t_end);
  __syncthreads(); // barriers are made

  float sums[BN / 2];
#pragma unroll
  for (int i = 0; i < BN / 2; i++) sums[i] = 0;
  int slot = 0, turn = 0;           // turns alternate with each round of the ring
  int fill_slot = 0, fill_turn = 0; // of stage i - 2, once i is 2
  uint32_t stage = ring;
  auto enter = [&](int i) {
    scales = next_scales;
    if (i + 1 < total) next_scales.load(scale_rows, begin + i + 1);
    barrier_wait(full + 8 * slot, turn);
    stage = ring + slot * B::STAGE;
    if (++slot == B::STAGES) slot = 0, turn ^= 1;
  };
  // While stage i is multiplied: stage i - 2 was read by all, or soon is, and makes room for a new one.
  auto refill = [&](int i) {
    if (i < 2) return;
    if (thread == 0 && i - 2 + B::STAGES < total) {
      barrier_wait(empty + 8 * fill_slot, fill_turn);
      copy_w(i - 2 + B::STAGES, fill_slot);
      copy_x(i - 2 + B::STAGES, fill_slot);
    }
    __syncwarp();
    if (++fill_slot == B::STAGES) fill_slot = 0, fill_turn ^= 1;
  };
  // After the first wait of stage i, the one before has been read.
  auto leave = [&](int i) {
    if (i > 0 && lane == 0) barrier_arrive(empty + 8 * ((slot + B::STAGES - 2) % B::STAGES));
    __syncwarp();
  };
  auto multiply = [&](uint32_t (&a)[4][4], int i_stage, int step) {
    const uint64_t x = tile_descriptor(stage);
    auto columns = [&](int i) { // 32 bytes a 16 k
      const int k16 = k16_of<F>(step, i);
      return x + k16 / 4 * (BN * 128 / 16) + k16 % 4 * 2;
    };
    if constexpr (F == AISP_BF16) {
      const uint64_t rows = tile_descriptor(stage + B::X_BYTES + warp / 4 * 64 * B::ROW_BYTES);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < 4; i++) wgmma_shared(sums, rows + 2 * i, columns(i));
    } else {
      take_weights<F, SPAN>(a, stage + B::X_BYTES + warp * 16 * B::ROW_BYTES, scales, step, lane);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < 4; i++) wgmma_registers(sums, a[i], columns(i));
    }
    wgmma_commit();
    if (step == 0) refill(i_stage);
    wgmma_wait<1>();
    if (step == 0) leave(i_stage);
  };
  // Two operands in turn: one is made while the other is multiplied. (A loop that tests at its top made ptxas wait for
  // every instruction.)
  int i = 0;
#pragma unroll 1
  while (true) {
    uint32_t even[4][4], odd[4][4];
    enter(i);
    multiply(even, i, 0);
    if (SPAN == 1) {
      if (++i == total) break;
      enter(i);
    }
    multiply(odd, i, SPAN - 1);
    if (++i == total) break;
  }
  wgmma_wait<0>();
  __syncthreads(); // the ring has been read

  finish_sums<F == AISP_FP8, B::BM, B::THREADS>(sums, args, tiles, shared, splits, first_tile, first_row, t_begin, t_end, row_scale,
                                                F == AISP_NVFP4 ? tensor_scale : 1.0f);
#endif
}

// ------------------------------------------------------------------------------------------------------------- host

template <int F, int GROUPS, int BN>
int start_wide(const aisp_ctx *ctx, int splits, const Tiles &tiles, float tensor_scale, const aisp_linear_args &args, aisp_stream stream) {
  using B = Block<F, GROUPS, BN>;
  CUtensorMap w_map, x_map;
  if (int code = make_weight_map(ctx, &w_map, tiles, B::ROW_BYTES, B::BM / 16)) return code;
  if (int code = make_row_map(ctx, &x_map, tiles, args, BN)) return code;
  const dim3 grid(splits, (unsigned)ceil_div(args.num_rows, BN), (unsigned)ceil_div(tiles.num_tiles, B::BM / 16));
  return launch_as(ctx, {grid, B::THREADS, B::SHARED, splits}, wide_kernel<F, GROUPS, BN>, stream, w_map, x_map, tiles, tensor_scale, args);
}

// Clocks that a call is expected to take, by what binds a multiprocessor. Rates fit what was timed on an H200 over the
// shapes of an 8B model and 16 to 256 rows: the choice made by them is within 8 % of the best.
template <int F, int GROUPS, int BN>
float expected_clocks(const aisp_ctx *ctx, int splits, const Tiles &tiles, int num_rows) {
  using B = Block<F, GROUPS, BN>;
  constexpr float MEMORY = 2500, L2 = 45;         // bytes a clock: of the card, of a multiprocessor
  constexpr float PRODUCTS = 1400, CODES = 40;    // a clock: multiplied, turned to bf16 beside it
  constexpr float START = 5000, SPLIT = 1000, FINISH = 0.08f; // a block, a block of its cluster, a result
  const int64_t blocks = ceil_div(tiles.num_tiles, B::BM / 16) * ceil_div(num_rows, BN) * splits;
  const int64_t places = (int64_t)ctx->wide_clusters[splits] * splits;
  const int64_t stages = ceil_div(ceil_div(tiles.k, B::STAGE_K), splits);
  const float active = (float)(blocks < places ? blocks : places), weights = B::BM * B::STAGE_K;
  const float codes = F == AISP_BF16 ? 0 : weights / CODES;
  const float stage = fmaxf(fmaxf(B::W_BYTES * active / MEMORY, B::STAGE / L2), weights * BN / PRODUCTS + codes);
  return ceil_div(blocks, places) * (stages * stage + START + SPLIT * (splits - 1) + FINISH * B::BM * BN);
}

template <int F, int BN>
int choose_wide(const aisp_ctx *ctx, const Tiles &tiles, float tensor_scale, const aisp_linear_args &args, aisp_stream stream) {
  const int stages = (int)ceil_div(tiles.k, Block<F, 2, BN>::STAGE_K);
  int best_groups = 2, best_splits = 1;
  float least = INFINITY;
  for (int splits = 1; splits <= MAX_SPLITS && splits <= stages; splits++) {
    if (ctx->wide_clusters[splits] == 0) continue;
    const float two = expected_clocks<F, 2, BN>(ctx, splits, tiles, args.num_rows);
    const float four = expected_clocks<F, 4, BN>(ctx, splits, tiles, args.num_rows);
    if (two < least) least = two, best_groups = 2, best_splits = splits;
    if (four < least) least = four, best_groups = 4, best_splits = splits;
  }
  return best_groups == 2 ? start_wide<F, 2, BN>(ctx, best_splits, tiles, tensor_scale, args, stream)
                          : start_wide<F, 4, BN>(ctx, best_splits, tiles, tensor_scale, args, stream);
}

template <int F>
int choose_wide_rows(const aisp_ctx *ctx, const Tiles &tiles, float tensor_scale, const aisp_linear_args &args, aisp_stream stream) {
  if (args.num_rows <= 32) return choose_wide<F, 32>(ctx, tiles, tensor_scale, args, stream);
  if (args.num_rows <= 64) return choose_wide<F, 64>(ctx, tiles, tensor_scale, args, stream);
  return choose_wide<F, 128>(ctx, tiles, tensor_scale, args, stream);
}

template <int F, int GROUPS, int BN>
int raise_wide_limit() {
  return cudaFuncSetAttribute(wide_kernel<F, GROUPS, BN>, cudaFuncAttributeMaxDynamicSharedMemorySize, Block<F, GROUPS, BN>::SHARED);
}
template <int F>
int raise_wide_limits() {
  return raise_all({raise_wide_limit<F, 2, 32>, raise_wide_limit<F, 2, 64>, raise_wide_limit<F, 2, 128>, raise_wide_limit<F, 4, 32>,
                    raise_wide_limit<F, 4, 64>, raise_wide_limit<F, 4, 128>});
}

} // namespace

int prepare_wide_linear(aisp_ctx *ctx) {
  if (ctx->compute_capability != 90) return 0;
  for (auto raise : {raise_wide_limits<AISP_BF16>, raise_wide_limits<AISP_FP8>, raise_wide_limits<AISP_W8G32>,
                     raise_wide_limits<AISP_W4G32>, raise_wide_limits<AISP_NVFP4>})
    if (int code = raise()) return code;
  const auto kernel = wide_kernel<AISP_FP8, 4, 64>;
  bool is_there = false;
  if (int code = prepare_fp8_linear()) return code;
  if (int code = has_hopper_code(kernel, &is_there)) return code;
  if (!is_there) return 0;
  cudaDriverEntryPointQueryResult found;
  void *encode = nullptr;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000, cudaEnableDefault, &found) ||
      found != cudaDriverEntryPointSuccess) {
    cudaGetLastError(); // linear.cu does without
    return 0;
  }
  ctx->encode_tiled = encode;
  using B = Block<AISP_FP8, 4, 64>;
  for (int splits = 1; splits <= MAX_SPLITS; splits++) {
    const Launch as = {dim3(splits, 1, ctx->sm_count), B::THREADS, B::SHARED, splits};
    if (int code = most_clusters(as, kernel, &ctx->wide_clusters[splits])) return code;
  }
  return 0;
}

} // namespace aisp

extern "C" int32_t aisp_has_wide_linear(const aisp_ctx *ctx) { return ctx->wide_clusters[1] > 0; }

extern "C" int aisp_wide_linear(const aisp_ctx *ctx, const aisp_weight *w, const aisp_linear_args *args, aisp_stream stream) {
  using namespace aisp;
  if (!aisp_has_wide_linear(ctx)) return cudaErrorNotSupported;
  if (args->num_rows == 0) return 0;
  if (!fits(*w, *args) || args->row_ids || args->ldo % 8 || w->k <= 0)
    return cudaErrorInvalidValue;
  const Tiles tiles = tiles_of(*w, args->output == AISP_OUT_SILU_MUL);
  if (args->next_scales && (args->output == AISP_OUT_SILU_MUL ? w->n / 2 : w->n) % SCALED_K) return cudaErrorInvalidValue;
  if (args->x_scales) {
    if (w->format != AISP_FP8 || w->k % SCALED_K || args->ld_scales % 4) return cudaErrorInvalidValue;
    return fp8_linear(ctx, tiles, *args, stream);
  }
  switch (w->format) {
    case AISP_BF16: return choose_wide_rows<AISP_BF16>(ctx, tiles, 1, *args, stream);
    case AISP_FP8: return choose_wide_rows<AISP_FP8>(ctx, tiles, 1, *args, stream);
    case AISP_W8G32: return choose_wide_rows<AISP_W8G32>(ctx, tiles, 1, *args, stream);
    case AISP_W4G32: return choose_wide_rows<AISP_W4G32>(ctx, tiles, 1, *args, stream);
    case AISP_NVFP4: return choose_wide_rows<AISP_NVFP4>(ctx, tiles, w->tensor_scale * NVFP4_LATER, *args, stream);
    default: return cudaErrorInvalidValue;
  }
}
