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
#include "linear_stage.cuh"

namespace aisp {
namespace {

constexpr int WARPS = LINEAR_WARPS;

template <int F, int MT, int NT, int KIB>
__host__ __device__ constexpr int shared_bytes() {
  // The exchange of slice sums, twice, and the rows' norm scales.
  constexpr int red = 2 * WARPS * MT * 16 * NT * 8 * 4;
  return WARPS * num_stages<F, MT, KIB>() * stage_bytes<F, MT>() + red + 64 * 4;
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
  const int ks_begin = slice_begin(warp, num_stages_k), ks_end = slice_begin(warp + 1, num_stages_k);
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
  // The next kernel is launched early, but for packed weights, whose first copies take the instructions that this one needs.
  constexpr bool EARLY = F == AISP_BF16 || F == AISP_FP8;
  if (EARLY) pdl_launch();
#pragma unroll 1
  for (int i = 0; i < STAGES - 1; i++) fill();
  // Also before the wait: where x is, and of the results what never changes.
  XAhead<F, NT, WHOLE> ahead;
  Columns<NT, WHOLE> &x = ahead.columns;
  x.k = tiles.k;
  auto row_of = [&](int t) { return (int64_t)(args.row_ids ? args.row_ids[t] : t); };
#pragma unroll
  for (int nt = 0; nt < NT; nt++) {
    const int t = nt * 8 + lane / 4;
    x.row[nt] = reinterpret_cast<const __nv_bfloat16 *>(args.x) + row_of(t < args.num_rows ? t : 0) * args.ldx;
  }
  const int num_sums = tiles.k / 16;
  const float *sums = args.x_sumsq && warp < args.num_rows ? args.x_sumsq + row_of(warp) * num_sums : nullptr; // of row `warp`
  constexpr bool ONE_EACH = OUTS <= WARPS * 32; // values of a tile a thread, at most
  Operands with;
  auto ask_for = [&](int group, int o) {
    if (o - lane < args.num_rows * MT * 16) with = ask<F>(args, tiles, group * MT + o % (MT * 16) / 16, o % 16, o / (MT * 16));
  };
  if (ONE_EACH) ask_for(blockIdx.x, threadIdx.x);
  pdl_wait();
  if (!EARLY) pdl_launch();

  if (total > 0) ahead.begin(ks_begin, lane % 4);
  if (ONE_EACH) ask_residual(args, with);
  // The norm of a row: loaded now, needed when the first tile is done.
  float few_sums[2], squares = 0;
  const bool are_few = num_sums <= 64;
  if (sums && are_few) {
#pragma unroll
    for (int i = 0; i < 2; i++) few_sums[i] = lane + 32 * i < num_sums ? __ldcg(sums + lane + 32 * i) : 0.0f;
  }
  if (sums && !are_few)
    for (int i = lane; i < num_sums; i += 32) squares += __ldcg(sums + i);

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
      multiply_stage<F, MT, NT>(acc, ring + slot * STAGE, ks, ks + 1 < ks_end ? ks + 1 : ks_begin, ahead, lane);
      slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    if (first) {
      // The norm's scale of each row, while the copies run.
      first = false;
      if (args.x_sumsq) {
        if (sums) {
          if (are_few) squares = few_sums[0] + few_sums[1];
          const float scale = rsqrtf(warp_sum(squares) / tiles.k + args.eps);
          if (lane == 0) row_scale[warp] = scale;
        }
        for (int t = warp + WARPS; t < min(args.num_rows, NT * 8); t += WARPS) {
          const float scale = rms_scale(args.x_sumsq + row_of(t) * num_sums, num_sums, tiles.k, args.eps);
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
    for (int o = threadIdx.x; o - lane < args.num_rows * MT * 16; o += WARPS * 32) { // whole warps leave together
      const int t = o / (MT * 16), r = o % (MT * 16);
      float z = all[o];
#pragma unroll
      for (int w = 1; w < WARPS; w++) z += all[w * OUTS + o];
      if (!ONE_EACH) ask_for(group, o), ask_residual(args, with);
      if constexpr (F == AISP_NVFP4) z *= tensor_scale;
      if constexpr (F == AISP_FP8) z = __fmul_rn(z, with.scale); // never one with a later sum
      if (args.x_sumsq) z *= row_scale[t];
      finish(args, r % 16, z, with);
      if (ONE_EACH) break;
    }
    if (ONE_EACH && group + (int)gridDim.x < num_groups) ask_for(group + gridDim.x, threadIdx.x), ask_residual(args, with);
    buffer ^= 1;
  }
}

template <int F, int MT, int NT, int KIB>
int start(const aisp_ctx *ctx, const Tiles &tiles, float tensor_scale, const aisp_linear_args &args, aisp_stream stream) {
  const int groups = (int)ceil_div(tiles.num_tiles, MT);
  const int places = ctx->sm_count * (NT == 1 ? 2 : 1);
  // Rows of W may be padded to whole stages where those of x are not: what lies behind x need not even be a number.
  const bool whole = tiles.row_bytes % Format<F>::ROW_BYTES == 0 && tiles.k % Format<F>::STAGE_K == 0;
  // Of small matrices, whose kernels follow each other fast; others gain more from an L1 that holds x.
  const bool most_shared = tiles.n * tiles.row_bytes <= 4 << 20;
  const Launch as = {groups < places ? groups : places, WARPS * 32, shared_bytes<F, MT, NT, KIB>(), 1, most_shared};
  return launch_as(ctx, as, whole ? linear_kernel<F, MT, NT, KIB, true> : linear_kernel<F, MT, NT, KIB, false>, stream, tiles, tensor_scale, args);
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
  if (!fits(*w, *args) || args->num_rows > AISP_LINEAR_MAX_ROWS || args->x_scales || args->next_scales) return cudaErrorInvalidValue;
  const Tiles tiles = tiles_of(*w, paired);
  if (is_resident(ctx, tiles)) return resident_linear(ctx, w->format, tiles, w->tensor_scale, *args, stream);
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
    case AISP_NVFP4: return choose_rows<AISP_NVFP4>(ctx, tiles, w->tensor_scale * NVFP4_LATER, *args, stream);
    default: return cudaErrorInvalidValue;
  }
}
