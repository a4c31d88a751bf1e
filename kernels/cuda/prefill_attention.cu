// Attention of many query tokens a sequence over paged blocks, causal, ragged.
//
// Formula    out = softmax(scale q K^T + mask) V.
// Shapes     q, out [T, NH, D]; pool by aisp_kv_layer; D in {32, 64, 96, 128, 256}.
// Alignment  16 bytes.
// Bytes      q, out once; K and V once for each 128 rows (a row is a token and one of the heads that share a kv head).
// Flops      4 D a row and visible position, on tensor cores: by wgmma on Hopper for D of 64 and 128, else by mma.
// Launch     grid (tiles of 128 rows, KVH, S), the tile with the longest context first; 8 warps of 16 rows. Tiles of
//            64 positions. By mma, two in shared memory, loaded while the other is used. By wgmma, a ring of four, filled by four
//            warps more (of fp8 and fp4 eight); values of a tile are multiplied together with the keys of the next.
// Sums       in f32; tiles in order with a running maximum. Tiles are aligned to absolute positions and a fully
//            masked tile changes no bit, so a row's result does not depend on its chunk.
#include "prefill_tiles.cuh"

namespace aisp {

int prepare_decode_attention(const aisp_ctx *ctx);

namespace {

using namespace prefill;

constexpr int ROWS = WARPS * 16;
constexpr float NEVER = -INFINITY;

template <int N, typename T>
__device__ inline T (&part_of(T *values, int index))[N] { return *reinterpret_cast<T(*)[N]>(values + index * N); }

// score[16 x 64] += q k^T for a warp's rows; score[4 n ..] are those of positions 8 n + lane % 4 * 2 + {0, 1}, of row lane / 4 and of
// eight below. By wgmma it is only begun.
template <int D, int KV, bool WGMMA>
__device__ inline void multiply_keys(float (&score)[TILE / 2], const uint32_t (&q)[D / 16][4], uint32_t k, int lane) {
  if constexpr (WGMMA) {
#ifdef AISP_HOPPER
#pragma unroll
    for (int j = 0; j < D / 16; j++) {
      const uint64_t keys = tile_descriptor(k + j / 4 * TILE * 128) + j % 4 * 2;
      if constexpr (in_f16<KV, WGMMA>()) wgmma_f16(score, q[j], keys);
      else wgmma_registers(score, q[j], keys);
    }
#endif
  } else {
    const uint32_t at = k + (lane % 8 + lane / 16 * 8) * row_stride<D, WGMMA>() + lane / 8 % 2 * 16;
#pragma unroll
    for (int j = 0; j < D / 16; j++)
#pragma unroll
      for (int n = 0; n < TILE / 16; n++) {
        uint32_t b[4];
        ldmatrix_x4(b, at + n * 16 * row_stride<D, WGMMA>() + j * 32);
        mma_bf16(part_of<4>(score, 2 * n), q[j][0], q[j][1], q[j][2], q[j][3], b[0], b[1]);
        mma_bf16(part_of<4>(score, 2 * n + 1), q[j][0], q[j][1], q[j][2], q[j][3], b[2], b[3]);
      }
  }
}
// o[16 x D] += p v, the weights in bf16 or f16 where the scores were. By wgmma it is only begun.
template <int D, int KV, bool WGMMA>
__device__ inline void multiply_values(float (&o)[D / 2], const uint32_t (&p)[TILE / 16][4], uint32_t v, int lane) {
  if constexpr (WGMMA) {
#ifdef AISP_HOPPER
#pragma unroll
    for (int n = 0; n < TILE / 16; n++)
#pragma unroll
      for (int part = 0; part < D / 64; part++) {
        const uint64_t values = tile_descriptor(v + part * TILE * 128 + n * 16 * 128);
        if constexpr (in_f16<KV, WGMMA>()) wgmma_f16_by_rows(part_of<32>(o, part), p[n], values);
        else wgmma_registers_by_rows(part_of<32>(o, part), p[n], values);
      }
#endif
  } else {
    const uint32_t at = v + lane % 16 * row_stride<D, WGMMA>() + lane / 16 * 16;
#pragma unroll
    for (int n = 0; n < TILE / 16; n++)
#pragma unroll
      for (int j = 0; j < D / 16; j++) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, at + n * 16 * row_stride<D, WGMMA>() + j * 32);
        mma_bf16(part_of<4>(o, 2 * j), p[n][0], p[n][1], p[n][2], p[n][3], b[0], b[1]);
        mma_bf16(part_of<4>(o, 2 * j + 1), p[n][0], p[n][1], p[n][2], p[n][3], b[2], b[3]);
      }
  }
}

#ifdef AISP_HOPPER
// What the copying warps do: tiles [begin, end) into the ring.
template <int D, int KV, typename KOf, typename VOf, typename ScalesOf>
__device__ inline void fill_ring(const Call &call, const int32_t *block_table, int kv_head, int begin, int end, int context, uint32_t full,
                                 KOf k_of, VOf v_of, ScalesOf scales_of) {
  constexpr int STAGES = stages<true>();
  Pieces<D, KV, true> pieces;
  auto arrive = [&](int tile) {
    shared_ready();
    barrier_arrive(full + (tile - begin) % STAGES * 16);
  };
  pieces.look_up(block_table, begin, context);
#pragma unroll 1
  for (int tile = begin; tile < end; tile++) {
    const int n = tile - begin;
    auto make_room = [&]() {
      if (n >= STAGES) barrier_wait(full + n % STAGES * 16 + 8, (n / STAGES - 1) & 1);
    };
    if constexpr (KV == AISP_KV_BF16) {
      make_room();
      pieces.load(call, kv_head, tile, context, k_of(n), v_of(n));
      pieces.look_up(block_table, tile + 1, context);
      copy_async_commit();
      copy_async_wait<1>();
      if (n > 0) arrive(tile - 1);
    } else {
      pieces.load(call, kv_head, tile, context, 0, 0);
      pieces.look_up(block_table, tile + 1, context);
      make_room();
      pieces.store(k_of(n), v_of(n), scales_of(n));
      arrive(tile);
    }
  }
  if constexpr (KV == AISP_KV_BF16) {
    copy_async_wait<0>();
    arrive(end - 1);
  }
}
#endif

template <int D, int KV, bool WGMMA>
__global__ void __launch_bounds__(threads<KV, WGMMA>(), 1) prefill_attention_kernel(const Call call) {
#if !defined(AISP_HOPPER)
  if constexpr (WGMMA) return;
#endif
  extern __shared__ __align__(1024) uint8_t shared[];
  pdl_wait();
  pdl_launch();
  const aisp_prefill_args &args = call.args;
  const int s = blockIdx.z, kv_head = blockIdx.y, group = call.group;
  const int first_token = args.cu_seqlens_q[s], num_queries = args.cu_seqlens_q[s + 1] - first_token;
  const int num_rows = num_queries * group;
  const int row_tile = (int)(gridDim.x - 1 - blockIdx.x);
  if (row_tile * ROWS >= num_rows) return;
  const int context = args.context_lens[s];
  const int first_position = context - num_queries;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int32_t *block_table = args.block_tables + (int64_t)s * args.max_blocks;

  // This lane's rows, `lane / 4` and eight below; position -1 for rows that do not exist.
  int position[2];
  int64_t row_at[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int row = row_tile * ROWS + warp * 16 + lane / 4 + 8 * i;
    position[i] = row < num_rows ? first_position + row / group : -1;
    row_at[i] = ((int64_t)(first_token + row / group) * args.num_heads + kv_head * group + row % group) * D;
  }
  const int window = args.sliding_window > 0 ? args.sliding_window : 0x3fffffff;
  // Positions of the rows that multiply together.
  constexpr int TOGETHER = WGMMA ? 64 : 16;
  const int first_of_them = row_tile * ROWS + warp * 16 / TOGETHER * TOGETHER;
  const int low = first_position + first_of_them / group;
  const int high = first_of_them < num_rows ? first_position + (min(first_of_them + TOGETHER, num_rows) - 1) / group : -1;
  const int block_low = first_position + row_tile * ROWS / group;
  const int block_high = first_position + (min(row_tile * ROWS + ROWS, num_rows) - 1) / group;
  const int tile_begin = max(block_low - window + 1, 0) / TILE, tile_end = block_high / TILE + 1;

  // Of the n-th tile: `full` and, eight bytes on, `empty` are barriers.
  constexpr int STAGES = stages<WGMMA>();
  const uint32_t base = shared_address(shared), full = base + shared_bytes<D, WGMMA>() - STAGES * 16;
  auto k_of = [&](int n) { return base + n % STAGES * 2 * tile_bytes<D, WGMMA>(); };
  auto v_of = [&](int n) { return k_of(n) + tile_bytes<D, WGMMA>(); };
  auto scales_of = [&](int n) { return reinterpret_cast<float *>(shared + STAGES * 2 * tile_bytes<D, WGMMA>()) + n % STAGES * 2 * TILE; };
#ifdef AISP_HOPPER
  if constexpr (WGMMA) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < STAGES; i++) barrier_init(full + i * 16, Pieces<D, KV, true>::COPIERS), barrier_init(full + i * 16 + 8, WARPS);
      shared_ready();
    }
    __syncthreads();
    if (warp >= WARPS) {
      registers_down<copy_warps<KV, WGMMA>() == 4 ? 88 : 56>(); // all together no more than the block has
      fill_ring<D, KV>(call, block_table, kv_head, tile_begin, tile_end, context, full, k_of, v_of, scales_of);
      return;
    }
    registers_up<copy_warps<KV, WGMMA>() == 4 ? 208 : 200>();
  }
#endif
  Pieces<D, KV, WGMMA> pieces;
  if constexpr (!WGMMA) {
    pieces.look_up(block_table, tile_begin, context);
    pieces.load(call, kv_head, tile_begin, context, k_of(0), v_of(0));
    pieces.store(k_of(0), v_of(0), scales_of(0));
    copy_async_commit();
    pieces.look_up(block_table, tile_begin + 1, context);
  }

  constexpr int KSTEPS = D / 16;
  uint32_t q[KSTEPS][4];
#pragma unroll
  for (int j = 0; j < KSTEPS; j++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      q[j][i] = position[i % 2] < 0 ? 0u
                                    : *reinterpret_cast<const uint32_t *>(reinterpret_cast<const __nv_bfloat16 *>(args.q) + row_at[i % 2] +
                                                                          j * 16 + i / 2 * 8 + lane % 4 * 2);
  if constexpr (in_f16<KV, WGMMA>())
#pragma unroll
    for (int j = 0; j < KSTEPS; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) q[j][i] = pack_f16(f16_range(bf16_low(q[j][i])), f16_range(bf16_high(q[j][i])));
  float o[D / 2];
#pragma unroll
  for (int i = 0; i < D / 2; i++) o[i] = 0;
  float running_max[2] = {NEVER, NEVER}, running_sum[2] = {0, 0};
  constexpr float LATER = KV == AISP_KV_FP4 ? E2M1_LATER : 1.0f; // of keys and of values
  const float scale = args.scale * 1.44269504f * LATER;

  uint32_t p[TILE / 16][4] = {}; // weights of tile `weighed`, whose values are still to be multiplied (wgmma)
  int weighed = -1;
  auto leave = [&](int n) {
#ifdef AISP_HOPPER
    __syncwarp(); // all lanes have read its scales
    if (lane == 0) barrier_arrive(full + n % STAGES * 16 + 8);
#endif
  };
  auto add_weighed = [&]() {
#ifdef AISP_HOPPER
    wgmma_fence();
    multiply_values<D, KV, WGMMA>(o, p, v_of(weighed), lane);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_done(o);
    leave(weighed);
    weighed = -1;
#pragma unroll
    for (int i = 0; i < TILE / 4; i++) p[i / 4][i % 4] = 0;
#endif
  };

#pragma unroll 1
  for (int tile = tile_begin; tile < tile_end; tile++) {
    const int n = tile - tile_begin;
    const bool visible = tile * TILE <= high && (tile + 1) * TILE > low - window + 1; // to these rows
    float score[TILE / 2];
#pragma unroll
    for (int i = 0; i < TILE / 2; i++) score[i] = 0;
    if constexpr (WGMMA) {
#ifdef AISP_HOPPER
      barrier_wait(full + n % STAGES * 16, n / STAGES & 1);
      if (!visible) {
        if (weighed >= 0) add_weighed();
        leave(n);
        continue;
      }
      // Of the first tile its own values, by weights of zero: a branch here would make each instruction wait.
      const uint32_t values = v_of(weighed < 0 ? n : weighed);
      wgmma_fence();
      multiply_values<D, KV, WGMMA>(o, p, values, lane);
      multiply_keys<D, KV, WGMMA>(score, q, k_of(n), lane);
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_done(o);
      wgmma_done(score);
      if (weighed >= 0) leave(weighed);
      weighed = n;
#endif
    } else {
      copy_async_wait<0>();
      __syncthreads(); // the tile is here, and the other one is no longer read
      if (tile + 1 < tile_end) {
        pieces.load(call, kv_head, tile + 1, context, k_of(n + 1), v_of(n + 1));
        pieces.store(k_of(n + 1), v_of(n + 1), scales_of(n + 1));
        pieces.look_up(block_table, tile + 2, context);
      }
      copy_async_commit();
      if (!visible) continue;
      multiply_keys<D, KV, WGMMA>(score, q, k_of(n), lane);
    }
    const float *const scales = scales_of(n) + lane % 4 * 2; // of fp8
    if constexpr (KV == AISP_KV_FP8)
#pragma unroll
      for (int i = 0; i < TILE / 2; i++) score[i] *= scales[i / 4 * 8 + i % 2];
    const bool whole = (tile + 1) * TILE - 1 <= low && tile * TILE > high - window;
    if (!whole) {
#pragma unroll
      for (int i = 0; i < TILE / 2; i++) {
        const int at = tile * TILE + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (at > position[i / 2 % 2] || at <= position[i / 2 % 2] - window) score[i] = NEVER;
      }
    }
    float most[2] = {running_max[0], running_max[1]};
#pragma unroll
    for (int i = 0; i < TILE / 2; i++) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], score[i]);
    float shrink[2], floor[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      most[i] = fmaxf(most[i], __shfl_xor_sync(ALL_LANES, most[i], 1));
      most[i] = fmaxf(most[i], __shfl_xor_sync(ALL_LANES, most[i], 2));
      shrink[i] = running_max[i] == most[i] ? 1.0f : exp2_fast((running_max[i] - most[i]) * scale);
      running_max[i] = most[i];
      floor[i] = most[i] == NEVER ? 0.0f : most[i] * scale;
      running_sum[i] *= shrink[i];
    }
#pragma unroll
    for (int i = 0; i < TILE / 2; i++) {
      score[i] = exp2_fast(fmaf(score[i], scale, -floor[i / 2 % 2]));
      running_sum[i / 2 % 2] += score[i];
      if constexpr (KV == AISP_KV_FP8) score[i] *= scales[TILE + i / 4 * 8 + i % 2];
    }
#pragma unroll
    for (int i = 0; i < D / 2; i++) o[i] *= shrink[i / 2 % 2];
#pragma unroll
    for (int i = 0; i < TILE / 4; i++) p[i / 4][i % 4] = in_f16<KV, WGMMA>() ? pack_f16(score[2 * i], score[2 * i + 1]) : pack_bf16(score[2 * i], score[2 * i + 1]);
    if (!WGMMA) multiply_values<D, KV, WGMMA>(o, p, v_of(n), lane);
  }
  if (WGMMA && weighed >= 0) add_weighed();

#pragma unroll
  for (int i = 0; i < 2; i++) {
    float sum = running_sum[i];
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    sum += __shfl_xor_sync(ALL_LANES, sum, 2);
    if (position[i] < 0) continue;
    const float by = (in_f16<KV, WGMMA>() ? 1 / F16_RANGE : LATER) / sum;
    uint32_t *to = reinterpret_cast<uint32_t *>(reinterpret_cast<__nv_bfloat16 *>(args.out) + row_at[i] + lane % 4 * 2);
#pragma unroll
    for (int j = 0; j < D / 8; j++) to[j * 4] = pack_bf16(o[4 * j + 2 * i] * by, o[4 * j + 2 * i + 1] * by);
  }
}

template <int D, int KV, bool WGMMA>
int start(const aisp_ctx *ctx, const Call &call, aisp_stream stream) {
  const dim3 grid((unsigned)ceil_div((int64_t)call.args.max_query_len * call.group, ROWS), call.kv.num_kv_heads, call.args.num_seqs);
  return launch(ctx, prefill_attention_kernel<D, KV, WGMMA>, grid, threads<KV, WGMMA>(), shared_bytes<D, WGMMA>(), stream, call);
}
template <int D, int KV>
int choose(const aisp_ctx *ctx, const Call &call, aisp_stream stream) {
  if constexpr (D % 64 == 0 && D <= 128)
    if (aisp_has_wide_linear(ctx)) return start<D, KV, true>(ctx, call, stream);
  return start<D, KV, false>(ctx, call, stream);
}
template <int D, int KV, bool WGMMA>
int raise_limit() {
  return cudaFuncSetAttribute(prefill_attention_kernel<D, KV, WGMMA>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes<D, WGMMA>());
}
template <int KV>
int raise_limits() {
  return raise_all({raise_limit<32, KV, false>, raise_limit<64, KV, false>, raise_limit<96, KV, false>, raise_limit<128, KV, false>,
                    raise_limit<256, KV, false>, raise_limit<64, KV, true>, raise_limit<128, KV, true>});
}
template <int KV>
int choose_dim(const aisp_ctx *ctx, const Call &call, aisp_stream stream) {
  switch (call.kv.head_dim) {
    case 32: return choose<32, KV>(ctx, call, stream);
    case 64: return choose<64, KV>(ctx, call, stream);
    case 96: return choose<96, KV>(ctx, call, stream);
    case 128: return choose<128, KV>(ctx, call, stream);
    case 256: return choose<256, KV>(ctx, call, stream);
    default: return cudaErrorNotSupported;
  }
}

} // namespace

int prepare_attention(const aisp_ctx *ctx) {
  if (int code = raise_limits<AISP_KV_BF16>()) return code;
  if (int code = raise_limits<AISP_KV_FP8>()) return code;
  if (int code = raise_limits<AISP_KV_FP4>()) return code;
  return prepare_decode_attention(ctx);
}

} // namespace aisp

extern "C" int aisp_prefill_attention(const aisp_ctx *ctx, const aisp_kv_layer *kv, const aisp_prefill_args *args,
                                      aisp_stream stream) {
  using namespace aisp;
  if (args->num_seqs == 0 || args->max_query_len == 0) return 0;
  if (args->num_heads % kv->num_kv_heads) return cudaErrorInvalidValue;
  const Call call = {*kv, *args, args->num_heads / kv->num_kv_heads};
  switch (kv->kv_format) {
    case AISP_KV_BF16: return choose_dim<AISP_KV_BF16>(ctx, call, stream);
    case AISP_KV_FP8: return choose_dim<AISP_KV_FP8>(ctx, call, stream);
    case AISP_KV_FP4: return choose_dim<AISP_KV_FP4>(ctx, call, stream);
    default: return cudaErrorInvalidValue;
  }
}
