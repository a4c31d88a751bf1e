// Attention of many query tokens a sequence over paged blocks, causal, ragged.
//
// Formula    out = softmax(scale q K^T + mask) V.
// Shapes     q, out [T, NH, D]; pool by aisp_kv_layer; D in {32, 64, 96, 128, 256}.
// Alignment  16 bytes.
// Bytes      q, out once; K and V once for each 128 rows (a row is a token and one of the heads that share a kv head).
// Flops      4 D a row and visible position, on tensor cores: by wgmma on Hopper for D of 64 and 128, else by mma.
// Launch     grid (tiles of 128 rows, KVH, S), the tile with the longest context first; 8 warps of 16 rows. Tiles of
//            64 positions, two in shared memory, loaded asynchronously while the other is used.
// Sums       in f32; tiles in order with a running maximum. Tiles are aligned to absolute positions and a fully
//            masked tile changes no bit, so a row's result does not depend on its chunk.
#include "hopper.cuh"

namespace aisp {

int prepare_decode_attention(const aisp_ctx *ctx);

namespace {

constexpr int WARPS = 8;
constexpr int ROWS = WARPS * 16;
constexpr int TILE = 64;
constexpr float NEVER = -INFINITY;

struct Call {
  aisp_kv_layer kv;
  aisp_prefill_args args;
  int group;
};

// Where 8 values of a position lie in a tile of keys or values. WGMMA: rows of 64 values, pieces swizzled by row % 8, one such
// tile after the other; else whole rows, apart enough that banks differ.
template <int D, bool WGMMA>
__host__ __device__ constexpr int row_stride() { return WGMMA ? 128 : D * 2 + 16; }
template <int D, bool WGMMA>
__host__ __device__ constexpr int tile_bytes() { return WGMMA ? TILE * D * 2 : TILE * row_stride<D, WGMMA>(); }
template <int D, bool WGMMA>
__host__ __device__ constexpr int shared_bytes() { return 2 * 2 * (tile_bytes<D, WGMMA>() + TILE * 4); } // two tiles and the scales of fp8
template <int D, bool WGMMA>
__device__ inline uint32_t place_of(int row, int piece) {
  return WGMMA ? piece / 8 * TILE * 128 + row * 128 + ((piece ^ row) & 7) * 16 : row * row_stride<D, WGMMA>() + piece * 16;
}

// The pieces of 8 values that a thread copies of each tile. Blocks are looked up a tile ahead.
template <int D, int KV, bool WGMMA>
struct Pieces {
  static constexpr int A_ROW = D / 8, TURNS = TILE * A_ROW / (WARPS * 32);
  int32_t block[TURNS];
  uint2 codes[2][TURNS];     // of keys, of values
  uint32_t scales[2][TURNS]; // of fp4
  int32_t scale_block;       // of fp8: a thread has that of one position, of its key or of its value
  float scale;

  static __device__ inline int row(int turn) { return (turn * WARPS * 32 + (int)threadIdx.x) / A_ROW; }
  static __device__ inline int piece(int turn) { return (turn * WARPS * 32 + (int)threadIdx.x) % A_ROW; }
  __device__ inline void look_up(const int32_t *block_table, int tile, int context) {
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
      const int position = tile * TILE + row(i);
      block[i] = position < context ? block_table[position / AISP_BLOCK_SIZE] : 0;
    }
    if constexpr (KV == AISP_KV_FP8) {
      const int position = tile * TILE + (int)threadIdx.x % TILE;
      scale_block = position < context && threadIdx.x < 2 * TILE ? block_table[position / AISP_BLOCK_SIZE] : -1;
    }
  }
  // Asks for a tile; bf16 goes to its place by itself.
  __device__ inline void load(const Call &call, int kv_head, int tile, int context, uint32_t k_to, uint32_t v_to) {
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
      const int position = tile * TILE + row(i);
      const bool valid = position < context;
      const int64_t at = ((int64_t)block[i] * call.kv.num_kv_heads + kv_head) * AISP_BLOCK_SIZE + position % AISP_BLOCK_SIZE;
      if constexpr (KV == AISP_KV_BF16) {
        const uint32_t to = place_of<D, WGMMA>(row(i), piece(i));
        copy_async_16(k_to + to, static_cast<const __nv_bfloat16 *>(call.kv.k) + at * D + piece(i) * 8, valid);
        copy_async_16(v_to + to, static_cast<const __nv_bfloat16 *>(call.kv.v) + at * D + piece(i) * 8, valid);
      } else {
#pragma unroll
        for (int which = 0; which < 2; which++) {
          const auto *from = static_cast<const uint8_t *>(which ? call.kv.v : call.kv.k) + at * kv_row_bytes(KV, D);
          const void *scale = which ? call.kv.v_scales : call.kv.k_scales; // of fp4
          codes[which][i] = make_uint2(0, 0), scales[which][i] = 0;
          if (!valid) continue;
          if constexpr (KV == AISP_KV_FP8) {
            codes[which][i] = reinterpret_cast<const uint2 *>(from)[piece(i)];
          } else {
            codes[which][i].x = reinterpret_cast<const uint32_t *>(from)[piece(i)];
            scales[which][i] = static_cast<const uint16_t *>(scale)[at * (D / 16) + piece(i) / 2];
          }
        }
      }
    }
    if constexpr (KV == AISP_KV_FP8) {
      const float *from = static_cast<const float *>(threadIdx.x < TILE ? call.kv.k_scales : call.kv.v_scales);
      const int64_t at = ((int64_t)scale_block * call.kv.num_kv_heads + kv_head) * AISP_BLOCK_SIZE + threadIdx.x % AISP_BLOCK_SIZE;
      scale = scale_block < 0 ? 0.0f : from[at];
    }
  }
  // Puts what was asked for in its place, as bf16; of fp8 the codes alone, and their scales to a table.
  __device__ inline void store(uint32_t k_to, uint32_t v_to, float *scale_to) {
    if (KV == AISP_KV_FP8 && threadIdx.x < 2 * TILE) scale_to[threadIdx.x] = scale;
    if constexpr (KV != AISP_KV_BF16)
#pragma unroll
      for (int i = 0; i < TURNS; i++)
#pragma unroll
        for (int which = 0; which < 2; which++) {
          uint32_t w[4];
          if constexpr (KV == AISP_KV_FP8) {
            e4m3x4_to_bf16(codes[which][i].x, w[0], w[1]);
            e4m3x4_to_bf16(codes[which][i].y, w[2], w[3]);
          } else {
#pragma unroll
            for (int j = 0; j < 4; j++) w[j] = e2m1_pair(codes[which][i].x, j, e2m1_factor(scales[which][i] * 0x10001u));
          }
          asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"((which ? v_to : k_to) + place_of<D, WGMMA>(row(i), piece(i))), "r"(w[0]),
                       "r"(w[1]), "r"(w[2]), "r"(w[3]) : "memory");
        }
  }
};

template <int N, typename T>
__device__ inline T (&part_of(T *values, int index))[N] { return *reinterpret_cast<T(*)[N]>(values + index * N); }

// score[16 x 64] = q k^T for a warp's rows; score[4 n ..] are those of positions 8 n + lane % 4 * 2 + {0, 1}, of row lane / 4 and of
// eight below.
template <int D, bool WGMMA>
__device__ inline void multiply_keys(float (&score)[TILE / 2], const uint32_t (&q)[D / 16][4], uint32_t k, int lane) {
#pragma unroll
  for (int i = 0; i < TILE / 2; i++) score[i] = 0;
  if constexpr (WGMMA) {
#ifdef AISP_HOPPER
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < D / 16; j++) wgmma_registers(score, q[j], tile_descriptor(k + j / 4 * TILE * 128) + j % 4 * 2);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_done(score);
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
// o[16 x D] += weights v, the weights where the scores were.
template <int D, bool WGMMA>
__device__ inline void multiply_values(float (&o)[D / 2], const float (&weight)[TILE / 2], uint32_t v, int lane) {
  uint32_t p[TILE / 16][4];
#pragma unroll
  for (int n = 0; n < TILE / 16; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) p[n][i] = pack_bf16(weight[8 * n + 2 * i], weight[8 * n + 2 * i + 1]);
  if constexpr (WGMMA) {
#ifdef AISP_HOPPER
    wgmma_fence();
#pragma unroll
    for (int n = 0; n < TILE / 16; n++)
#pragma unroll
      for (int part = 0; part < D / 64; part++) wgmma_registers_by_rows(part_of<32>(o, part), p[n], tile_descriptor(v + part * TILE * 128 + n * 16 * 128));
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_done(o);
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

template <int D, int KV, bool WGMMA>
__global__ void __launch_bounds__(WARPS * 32, 1) prefill_attention_kernel(const Call call) {
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

  const uint32_t base = shared_address(shared);
  auto k_of = [&](int tile) { return base + (tile & 1) * 2 * tile_bytes<D, WGMMA>(); };
  auto v_of = [&](int tile) { return k_of(tile) + tile_bytes<D, WGMMA>(); };
  auto scales_of = [&](int tile) { return reinterpret_cast<float *>(shared + 4 * tile_bytes<D, WGMMA>()) + (tile & 1) * 2 * TILE; };
  Pieces<D, KV, WGMMA> pieces;
  pieces.look_up(block_table, tile_begin, context);
  pieces.load(call, kv_head, tile_begin, context, k_of(tile_begin), v_of(tile_begin));
  pieces.store(k_of(tile_begin), v_of(tile_begin), scales_of(tile_begin));
  copy_async_commit();
  pieces.look_up(block_table, tile_begin + 1, context);

  constexpr int KSTEPS = D / 16;
  uint32_t q[KSTEPS][4];
#pragma unroll
  for (int j = 0; j < KSTEPS; j++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      q[j][i] = position[i % 2] < 0 ? 0u
                                    : *reinterpret_cast<const uint32_t *>(reinterpret_cast<const __nv_bfloat16 *>(args.q) + row_at[i % 2] +
                                                                          j * 16 + i / 2 * 8 + lane % 4 * 2);
  float o[D / 2];
#pragma unroll
  for (int i = 0; i < D / 2; i++) o[i] = 0;
  float running_max[2] = {NEVER, NEVER}, running_sum[2] = {0, 0};
  constexpr float LATER = KV == AISP_KV_FP4 ? E2M1_LATER : 1.0f; // of keys and of values
  const float scale = args.scale * 1.44269504f * LATER;

#pragma unroll 1
  for (int tile = tile_begin; tile < tile_end; tile++) {
    copy_async_wait<0>();
#ifdef AISP_HOPPER
    if (WGMMA) shared_ready();
#endif
    __syncthreads(); // the tile is here, and the other one is no longer read
    const bool more = tile + 1 < tile_end;
    if (more) {
      pieces.load(call, kv_head, tile + 1, context, k_of(tile + 1), v_of(tile + 1));
      if (!WGMMA) pieces.store(k_of(tile + 1), v_of(tile + 1), scales_of(tile + 1));
      pieces.look_up(block_table, tile + 2, context);
    }
    copy_async_commit();
    if (tile * TILE > high || (tile + 1) * TILE <= low - window + 1) { // nothing visible to these rows
      if (WGMMA && more) pieces.store(k_of(tile + 1), v_of(tile + 1), scales_of(tile + 1));
      continue;
    }

    float score[TILE / 2];
    multiply_keys<D, WGMMA>(score, q, k_of(tile), lane);
    const float *const scales = scales_of(tile) + lane % 4 * 2; // of fp8
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
    if (WGMMA && more) pieces.store(k_of(tile + 1), v_of(tile + 1), scales_of(tile + 1));
    multiply_values<D, WGMMA>(o, score, v_of(tile), lane);
  }

#pragma unroll
  for (int i = 0; i < 2; i++) {
    float sum = running_sum[i];
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    sum += __shfl_xor_sync(ALL_LANES, sum, 2);
    if (position[i] < 0) continue;
    const float by = LATER / sum;
    uint32_t *to = reinterpret_cast<uint32_t *>(reinterpret_cast<__nv_bfloat16 *>(args.out) + row_at[i] + lane % 4 * 2);
#pragma unroll
    for (int j = 0; j < D / 8; j++) to[j * 4] = pack_bf16(o[4 * j + 2 * i] * by, o[4 * j + 2 * i + 1] * by);
  }
}

template <int D, int KV, bool WGMMA>
int start(const aisp_ctx *ctx, const Call &call, aisp_stream stream) {
  const dim3 grid((unsigned)ceil_div((int64_t)call.args.max_query_len * call.group, ROWS), call.kv.num_kv_heads, call.args.num_seqs);
  return launch(ctx, prefill_attention_kernel<D, KV, WGMMA>, grid, WARPS * 32, shared_bytes<D, WGMMA>(), stream, call);
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
