// Attention of many query tokens a sequence over paged blocks, causal, ragged.
//
// Formula    out = softmax(scale q K^T + mask) V.
// Shapes     q, out [T, NH, D]; pool by aisp_kv_layer; D in {32, 64, 96, 128, 256}.
// Alignment  16 bytes.
// Bytes      q, out once; K and V once for each 128 rows (a row is a token and one of the heads that share a kv head).
// Flops      4 D a row and visible position, on tensor cores.
// Launch     grid (tiles of 128 rows, KVH, S), the tile with the longest context first; 8 warps of 16 rows. Tiles of
//            64 positions, two in shared memory, loaded asynchronously while the other is used.
// Sums       mma in f32; tiles in order with a running maximum. Tiles are aligned to absolute positions and a fully
//            masked tile changes no bit, so a row's result does not depend on its chunk.
#include "common.cuh"

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

template <int D>
__host__ __device__ constexpr int row_stride() { return D * 2 + 16; }
template <int D>
__host__ __device__ constexpr int shared_bytes() { return 2 * 2 * TILE * row_stride<D>(); }

// The pieces of 8 values that a thread copies of each tile, and their blocks, which are looked up a tile ahead.
template <int D>
struct Pieces {
  static constexpr int A_ROW = D / 8, TURNS = TILE * A_ROW / (WARPS * 32);
  int32_t block[TURNS];
  static __device__ inline int row(int turn) { return (turn * WARPS * 32 + (int)threadIdx.x) / A_ROW; }
  __device__ inline void look_up(const int32_t *block_table, int tile, int context) {
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
      const int position = tile * TILE + row(i);
      block[i] = position < context ? block_table[position / AISP_BLOCK_SIZE] : 0;
    }
  }
};

template <int D, int KV>
__device__ inline void fill_tile(const Call &call, const Pieces<D> &pieces, int kv_head, int tile, int context, uint32_t k_to,
                                 uint32_t v_to) {
  using P = Pieces<D>;
#pragma unroll
  for (int i = 0; i < P::TURNS; i++) {
    const int row = P::row(i), piece = (i * WARPS * 32 + (int)threadIdx.x) % P::A_ROW, position = tile * TILE + row;
    const bool valid = position < context;
    const int64_t at = ((int64_t)pieces.block[i] * call.kv.num_kv_heads + kv_head) * AISP_BLOCK_SIZE + position % AISP_BLOCK_SIZE;
    const uint32_t to = row * row_stride<D>() + piece * 16;
    if constexpr (KV == AISP_KV_BF16) {
      copy_async_16(k_to + to, static_cast<const __nv_bfloat16 *>(call.kv.k) + at * D + piece * 8, valid);
      copy_async_16(v_to + to, static_cast<const __nv_bfloat16 *>(call.kv.v) + at * D + piece * 8, valid);
    } else {
#pragma unroll
      for (int which = 0; which < 2; which++) {
        const auto *codes = static_cast<const uint8_t *>(which ? call.kv.v : call.kv.k) + at * kv_row_bytes(KV, D);
        const void *scales = which ? call.kv.v_scales : call.kv.k_scales;
        uint32_t w[4] = {0, 0, 0, 0};
        if constexpr (KV == AISP_KV_FP8) {
          uint2 eight = make_uint2(0, 0);
          float scale = 0;
          if (valid) {
            eight = reinterpret_cast<const uint2 *>(codes)[piece];
            scale = static_cast<const float *>(scales)[at];
          }
          e4m3x4_to_bf16(eight.x, w[0], w[1]);
          e4m3x4_to_bf16(eight.y, w[2], w[3]);
#pragma unroll
          for (int j = 0; j < 4; j++) w[j] = pack_bf16(bf16_low(w[j]) * scale, bf16_high(w[j]) * scale);
        } else {
          uint32_t eight = 0, scale = 0;
          if (valid) {
            eight = reinterpret_cast<const uint32_t *>(codes)[piece];
            scale = static_cast<const uint16_t *>(scales)[at * (D / 16) + piece / 2];
          }
#pragma unroll
          for (int j = 0; j < 4; j++) w[j] = e2m1_pair(eight, j, e2m1_factor(scale * 0x10001u));
        }
        asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"((which ? v_to : k_to) + to), "r"(w[0]), "r"(w[1]), "r"(w[2]),
                     "r"(w[3]) : "memory");
      }
    }
  }
}

template <int D, int KV>
__global__ void __launch_bounds__(WARPS * 32, 1) prefill_attention_kernel(const Call call) {
  extern __shared__ __align__(128) uint8_t shared[];
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
  const int warp_first_row = row_tile * ROWS + warp * 16;
  const int warp_low = first_position + warp_first_row / group; // of its positions
  const int warp_high = warp_first_row < num_rows ? first_position + (min(warp_first_row + 16, num_rows) - 1) / group : -1;
  const int block_low = first_position + row_tile * ROWS / group;
  const int block_high = first_position + (min(row_tile * ROWS + ROWS, num_rows) - 1) / group;
  const int tile_begin = max(block_low - window + 1, 0) / TILE, tile_end = block_high / TILE + 1;

  const uint32_t base = shared_address(shared);
  auto k_of = [&](int tile) { return base + (tile & 1) * 2 * TILE * row_stride<D>(); };
  auto v_of = [&](int tile) { return k_of(tile) + TILE * row_stride<D>(); };
  Pieces<D> pieces;
  pieces.look_up(block_table, tile_begin, context);
  fill_tile<D, KV>(call, pieces, kv_head, tile_begin, context, k_of(tile_begin), v_of(tile_begin));
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
  float o[D / 8][4];
#pragma unroll
  for (int j = 0; j < D / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) o[j][i] = 0;
  float running_max[2] = {NEVER, NEVER}, running_sum[2] = {0, 0};
  constexpr float LATER = KV == AISP_KV_FP4 ? E2M1_LATER : 1.0f; // of keys and of values
  const float scale = args.scale * 1.44269504f * LATER;

#pragma unroll 1
  for (int tile = tile_begin; tile < tile_end; tile++) {
    copy_async_wait<0>();
    __syncthreads(); // the tile is here, and the other one is no longer read
    if (tile + 1 < tile_end) {
      fill_tile<D, KV>(call, pieces, kv_head, tile + 1, context, k_of(tile + 1), v_of(tile + 1));
      pieces.look_up(block_table, tile + 2, context);
    }
    copy_async_commit();
    if (tile * TILE > warp_high || (tile + 1) * TILE <= warp_low - window + 1) continue; // nothing visible to this warp

    float score[TILE / 8][4];
#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) score[n][i] = 0;
    const uint32_t k_at = k_of(tile) + (lane % 8 + lane / 16 * 8) * row_stride<D>() + lane / 8 % 2 * 16;
#pragma unroll
    for (int j = 0; j < KSTEPS; j++)
#pragma unroll
      for (int n = 0; n < TILE / 16; n++) {
        uint32_t b[4];
        ldmatrix_x4(b, k_at + n * 16 * row_stride<D>() + j * 32);
        mma_bf16(score[2 * n], q[j][0], q[j][1], q[j][2], q[j][3], b[0], b[1]);
        mma_bf16(score[2 * n + 1], q[j][0], q[j][1], q[j][2], q[j][3], b[2], b[3]);
      }

    const bool whole = (tile + 1) * TILE - 1 <= warp_low && tile * TILE > warp_high - window;
    if (!whole) {
#pragma unroll
      for (int n = 0; n < TILE / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int at = tile * TILE + n * 8 + lane % 4 * 2 + i % 2;
          if (at > position[i / 2] || at <= position[i / 2] - window) score[n][i] = NEVER;
        }
    }
    float most[2] = {running_max[0], running_max[1]};
#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) most[i / 2] = fmaxf(most[i / 2], score[n][i]);
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
    for (int n = 0; n < TILE / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        score[n][i] = exp2_fast(fmaf(score[n][i], scale, -floor[i / 2]));
        running_sum[i / 2] += score[n][i];
      }
#pragma unroll
    for (int j = 0; j < D / 8; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) o[j][i] *= shrink[i / 2];
    const uint32_t v_at = v_of(tile) + lane % 16 * row_stride<D>() + lane / 16 * 16;
#pragma unroll
    for (int n = 0; n < TILE / 16; n++) {
      const uint32_t p[4] = {pack_bf16(score[2 * n][0], score[2 * n][1]), pack_bf16(score[2 * n][2], score[2 * n][3]),
                             pack_bf16(score[2 * n + 1][0], score[2 * n + 1][1]), pack_bf16(score[2 * n + 1][2], score[2 * n + 1][3])};
#pragma unroll
      for (int j = 0; j < D / 16; j++) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, v_at + n * 16 * row_stride<D>() + j * 32);
        mma_bf16(o[2 * j], p[0], p[1], p[2], p[3], b[0], b[1]);
        mma_bf16(o[2 * j + 1], p[0], p[1], p[2], p[3], b[2], b[3]);
      }
    }
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
    for (int j = 0; j < D / 8; j++) to[j * 4] = pack_bf16(o[j][2 * i] * by, o[j][2 * i + 1] * by);
  }
}

template <int D, int KV>
int start(const aisp_ctx *ctx, const Call &call, aisp_stream stream) {
  const dim3 grid((unsigned)ceil_div((int64_t)call.args.max_query_len * call.group, ROWS), call.kv.num_kv_heads, call.args.num_seqs);
  return launch(ctx, prefill_attention_kernel<D, KV>, grid, WARPS * 32, shared_bytes<D>(), stream, call);
}
template <int D, int KV>
int raise_limit() {
  return cudaFuncSetAttribute(prefill_attention_kernel<D, KV>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes<D>());
}
template <int KV>
int raise_limits() {
  return raise_all({raise_limit<32, KV>, raise_limit<64, KV>, raise_limit<96, KV>, raise_limit<128, KV>, raise_limit<256, KV>});
}
template <int KV>
int choose_dim(const aisp_ctx *ctx, const Call &call, aisp_stream stream) {
  switch (call.kv.head_dim) {
    case 32: return start<32, KV>(ctx, call, stream);
    case 64: return start<64, KV>(ctx, call, stream);
    case 96: return start<96, KV>(ctx, call, stream);
    case 128: return start<128, KV>(ctx, call, stream);
    case 256: return start<256, KV>(ctx, call, stream);
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
