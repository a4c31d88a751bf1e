// Attention of many query tokens a sequence over paged blocks, causal, ragged; by mma. By wgmma: prefill_wgmma.cu.
//
// Formula    out = softmax(scale q K^T + mask) V.
// Shapes     q, out [T, NH, D]; pool by aisp_kv_layer; D in {32, 64, 96, 128, 256}.
// Alignment  16 bytes.
// Bytes      q, out once; K and V once for each 128 rows (a row is a token and one of the heads that share a kv head).
// Flops      4 D a row and visible position, on tensor cores.
// Launch     grid (tiles of 128 rows, KVH, S), the tile with the longest context first; 8 warps of 16 rows. Tiles of
//            64 positions, two in shared memory, loaded while the other is used.
// Sums       in f32; tiles in order with a running maximum. Tiles are aligned to absolute positions and a fully
//            masked tile changes no bit, so a row's result does not depend on its chunk.
#include "prefill_attention.cuh"

namespace aisp {

int prepare_decode_attention(const aisp_ctx *ctx);
int prepare_prefill_wgmma();
int start_prefill_wgmma(const aisp_ctx *ctx, const prefill::Call &call, aisp_stream stream);

namespace {

using namespace prefill;

// score[16 x 64] += q k^T for a warp's rows; score[4 n ..] are those of positions 8 n + lane % 4 * 2 + {0, 1}, of row lane / 4 and of
// eight below.
template <int D>
__device__ inline void multiply_keys(float (&score)[TILE / 2], const uint32_t (&q)[D / 16][4], uint32_t k, int lane) {
  const uint32_t at = k + (lane % 8 + lane / 16 * 8) * row_stride<D, false>() + lane / 8 % 2 * 16;
#pragma unroll
  for (int j = 0; j < D / 16; j++)
#pragma unroll
    for (int n = 0; n < TILE / 16; n++) {
      uint32_t b[4];
      ldmatrix_x4(b, at + n * 16 * row_stride<D, false>() + j * 32);
      mma_bf16(part_of<4>(score, 2 * n), q[j][0], q[j][1], q[j][2], q[j][3], b[0], b[1]);
      mma_bf16(part_of<4>(score, 2 * n + 1), q[j][0], q[j][1], q[j][2], q[j][3], b[2], b[3]);
    }
}
// o[16 x D] += p v, the weights in bf16 where the scores were.
template <int D>
__device__ inline void multiply_values(float (&o)[D / 2], const float (&score)[TILE / 2], uint32_t v, int lane) {
  const uint32_t at = v + lane % 16 * row_stride<D, false>() + lane / 16 * 16;
#pragma unroll
  for (int n = 0; n < TILE / 16; n++) {
    uint32_t p[4];
#pragma unroll
    for (int i = 0; i < 4; i++) p[i] = pack_bf16(score[8 * n + 2 * i], score[8 * n + 2 * i + 1]);
#pragma unroll
    for (int j = 0; j < D / 16; j++) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, at + n * 16 * row_stride<D, false>() + j * 32);
      mma_bf16(part_of<4>(o, 2 * j), p[0], p[1], p[2], p[3], b[0], b[1]);
      mma_bf16(part_of<4>(o, 2 * j + 1), p[0], p[1], p[2], p[3], b[2], b[3]);
    }
  }
}

template <int D, int KV>
__global__ void __launch_bounds__(threads<D, KV, false>(), 1) prefill_attention_kernel(const Call call) {
  extern __shared__ __align__(1024) uint8_t shared[];
  pdl_wait();
  pdl_launch();
  const aisp_prefill_args &args = call.args;
  const int s = blockIdx.z, kv_head = blockIdx.y, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int first_token = args.cu_seqlens_q[s], num_queries = args.cu_seqlens_q[s + 1] - first_token;
  const int row_tile = (int)(gridDim.x - 1 - blockIdx.x), context = args.context_lens[s];
  if (row_tile * Rows<D, false>::COUNT >= num_queries * call.group) return;
  const int32_t *block_table = args.block_tables + (int64_t)s * args.max_blocks;
  const int window = args.sliding_window > 0 ? args.sliding_window : NO_WINDOW;
  const Rows<D, false> rows(call, row_tile, first_token, num_queries, context, window, kv_head, warp, lane);

  const uint32_t base = shared_address(shared);
  auto k_of = [&](int n) { return base + n % 2 * 2 * tile_bytes<D, false>(); };
  auto v_of = [&](int n) { return k_of(n) + tile_bytes<D, false>(); };
  auto scales_of = [&](int n) { return reinterpret_cast<float *>(shared + 4 * tile_bytes<D, false>()) + n % 2 * 2 * SCALES; };
  Pieces<D, KV, false> pieces;
  pieces.look_up(block_table, rows.begin, context);
  pieces.load(call, kv_head, rows.begin, context, k_of(0), v_of(0));
  pieces.store(k_of(0), v_of(0), scales_of(0));
  copy_async_commit();
  pieces.look_up(block_table, rows.begin + 1, context);

  uint32_t q[D / 16][4];
  rows.template load_queries<false>(call, q, lane);
  float o[D / 2] = {};
  RunningSoftmax softmax;
  constexpr float LATER = later<KV, false>();
  const float scale = args.scale * LOG2_E * LATER;

#pragma unroll 1
  for (int tile = rows.begin; tile < rows.end; tile++) {
    const int n = tile - rows.begin;
    copy_async_wait<0>();
    __syncthreads(); // the tile is here, and the other one is no longer read
    if (tile + 1 < rows.end) {
      pieces.load(call, kv_head, tile + 1, context, k_of(n + 1), v_of(n + 1));
      pieces.store(k_of(n + 1), v_of(n + 1), scales_of(n + 1));
      pieces.look_up(block_table, tile + 2, context);
    }
    copy_async_commit();
    if (!rows.sees(tile, window)) continue;
    float score[TILE / 2] = {};
    multiply_keys<D>(score, q, k_of(n), lane);
    if constexpr (KV == AISP_KV_FP8) Scales(scales_of(n), lane).multiply(score);
    if (!rows.sees_all(tile, window)) rows.mask(score, tile, window, lane);
    float shrink[2];
    softmax.weigh(score, scale, shrink);
    if constexpr (KV == AISP_KV_FP8) Scales(scales_of(n) + SCALES, lane).multiply(score);
#pragma unroll
    for (int i = 0; i < D / 2; i++) o[i] *= shrink[i / 2 % 2];
    multiply_values<D>(o, score, v_of(n), lane);
  }
  rows.store(call, o, softmax.sum, LATER, lane);
}

template <int D, int KV>
int raise_limit() { return raise_kernel_limit<D, false>(prefill_attention_kernel<D, KV>); }
template <int KV>
int raise_limits() {
  return raise_all({raise_limit<32, KV>, raise_limit<64, KV>, raise_limit<96, KV>, raise_limit<128, KV>, raise_limit<256, KV>});
}

} // namespace

int prepare_attention(const aisp_ctx *ctx) {
  if (int code = raise_limits<AISP_KV_BF16>()) return code;
  if (int code = raise_limits<AISP_KV_FP8>()) return code;
  if (int code = raise_limits<AISP_KV_FP4>()) return code;
  if (int code = prepare_prefill_wgmma()) return code;
  return prepare_decode_attention(ctx);
}

} // namespace aisp

extern "C" int aisp_prefill_attention(const aisp_ctx *ctx, const aisp_kv_layer *kv, const aisp_prefill_args *args,
                                      aisp_stream stream) {
  using namespace aisp;
  if (args->num_seqs == 0 || args->max_query_len == 0) return 0;
  if (args->num_heads % kv->num_kv_heads) return cudaErrorInvalidValue;
  const Call call = {*kv, *args, args->num_heads / kv->num_kv_heads};
  if (aisp_has_wide_linear(ctx) && (kv->head_dim == 64 || kv->head_dim == 128)) return start_prefill_wgmma(ctx, call, stream);
  return with_kv_format(kv->kv_format, [&](auto format) {
    return with_head_dim(kv->head_dim, [&](auto dim) {
      constexpr int D = decltype(dim)::value, KV = decltype(format)::value;
      return start_kernel<D, KV, false>(ctx, prefill_attention_kernel<D, KV>, call, stream);
    });
  });
}
