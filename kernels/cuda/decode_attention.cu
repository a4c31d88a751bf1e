// Attention of one query token a sequence over paged blocks, split along the context.
//
// Formula    out = softmax(scale q K^T) V; all query heads of a kv head share its loads. With heads as the products left
//            them, each block turns the queries that it needs, and the last of a context stores the newest K and V.
// Shapes     q, out [S, NH, D]; pool by aisp_kv_layer; D in {32, 64, 96, 128, 256}; any NH / KVH.
// Alignment  16 bytes.
// Bytes      K and V of the context once; q, out; with more than one split, (D + 2) floats a split and head, unless they meet in a cluster.
// Launch     grid (splits of the longest context, KVH, S), 4 warps; a split beyond a context leaves at once. A warp owns
//            a quarter of the split's positions, 64 of 256, and walks its blocks of 16 through a private ring of two stages in
//            shared memory, or where few thread blocks run has all there at once.
//            S^T = K Q^T and O^T = V^T P^T, so that positions and dimensions fill the tensor cores' 16 rows and heads
//            their 8 columns. fp8 and fp4 are widened in registers, to f16 (bf16 before sm_89) and bf16; scales of fp8 meet scores and
//            weights, those of fp4 the codes, rounded to bf16.
// Sums       scores over D by mma in f32; a block's 16 positions by mma; blocks of a warp in order with a running maximum;
//            warps in order; splits in order by whichever block comes last, or by the first of their cluster. Nothing
//            depends on the batch, but for what num_splits says.
#include "decode_attention.cuh"
#include "decode_splits.cuh"
#include "newest.cuh"

namespace aisp {

int prepare_decode_attention(const aisp_ctx *ctx);

namespace {

using namespace decode;

struct Block {
  static constexpr bool HAS_NEWEST = false, MAY_CLUSTER = false;
  const Call &call;
  int s, kv_head;
  __device__ int64_t first() const { return ((int64_t)s * call.args.num_heads + kv_head * call.group) * call.kv.head_dim; }
  __device__ void newest_position() const {
    pdl_wait();
    pdl_launch();
  }
  __device__ const __nv_bfloat16 *query(int h) const {
    return reinterpret_cast<const __nv_bfloat16 *>(call.args.q) + first() + h * call.kv.head_dim;
  }
  __device__ void store(int i, uint32_t two) const { *reinterpret_cast<uint32_t *>(call.args.out + first() + i) = two; }
};

// What a block does whose split holds nothing of the context; of none at all, the first writes zeros.
template <int D>
__device__ inline void leave(const Block &block, int context, int split) {
  block.newest_position();
  if (context <= 0 && split == 0)
    for (int i = threadIdx.x; i < block.call.group * (D / 2); i += WARPS * 32) block.store(2 * i, 0);
}

// Heads as the products left them.
struct Heads {
  const float *qkv; // [S, (NH + 2 KVH) D]
  aisp_rope rope;
  const int32_t *positions, *slot_mapping; // [S]
  bool clustered;                          // the blocks of a sequence and kv head are a cluster
};

template <int D, int KV>
struct TurningBlock : Block {
  static constexpr bool HAS_NEWEST = true, MAY_CLUSTER = true;
  const Heads &heads;
  int slot; // of the newest position, below 0 if another split has it
  static constexpr int PAIRS = pairs_a_lane(D);
  Turn<PAIRS> angles;
  Newest<D, KV> near;
  Gathered<D, 1> *gathered;

  __device__ Head<PAIRS> read_head(int index, bool apart) const {
    Head<PAIRS> head;
    head.pairs = D / 2, head.apart = apart;
    const float *from = heads.qkv + ((int64_t)s * (call.args.num_heads + 2 * call.kv.num_kv_heads) + index) * D;
#pragma unroll
    for (int j = 0; j < PAIRS; j++) head.a[j] = __ldcg(from + head.a_at(j)), head.b[j] = __ldcg(from + head.b_at(j));
    return head;
  }
  __device__ void newest_position() const {
    const int warp = threadIdx.x >> 5;
    const aisp_rope &rope = heads.rope;
    const bool neox = rope.style == AISP_ROPE_NEOX;
    pdl_wait();
    pdl_launch();
    // All are asked for at once: queries, and by the last two warps K and V.
    constexpr int ROUNDS = MAX_GROUP / WARPS;
    const bool has_kv = slot >= 0 && warp >= WARPS - 2, is_v = warp == WARPS - 2;
    Head<PAIRS> head[ROUNDS], kv;
#pragma unroll
    for (int i = 0; i < ROUNDS; i++)
      if (warp + i * WARPS < call.group) head[i] = read_head(kv_head * call.group + warp + i * WARPS, neox);
    if (has_kv) kv = read_head(call.args.num_heads + kv_head + (is_v ? call.kv.num_kv_heads : 0), neox && !is_v);
#pragma unroll
    for (int i = 0; i < ROUNDS; i++)
      if (warp + i * WARPS < call.group) {
        turn_head(head[i], angles, rope.q_norm, rope.norm_eps);
        store_bf16(head[i], near.query(warp + i * WARPS));
      }
    if (has_kv) {
      if (!is_v) turn_head(kv, angles, rope.k_norm, rope.norm_eps);
      near.put(kv, is_v);
    }
    __syncthreads();
  }
  __device__ const __nv_bfloat16 *query(int h) const { return near.query(h); }
};

template <int D, int KV, int NT, int RING, bool ALL_AT_ONCE> // NT: groups of 8 heads
__global__ void __launch_bounds__(WARPS * 32) decode_attention_kernel(const Call call) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ Meet<NT> meet;
  const int split = blockIdx.x, kv_head = blockIdx.y, s = blockIdx.z;
  // Tables and older positions were written before the step began (see the interface), so they may be read before the wait.
  const int context = __ldcg(call.args.context_lens + s);
  const Splits splits = splits_of(call.args, context);
  Block block = {call, s, kv_head};
  if (context > 0 && split >= splits.begin && split < splits.end) {
    attend_split<D, KV, NT, RING, ALL_AT_ONCE>(call, s, kv_head, split, context, splits, shared, &meet, block);
    return;
  }
  leave<D>(block, context, split);
}

template <int D, int KV, int RING>
constexpr int turning_bytes = shared_bytes<D, KV, 1, RING>() + Newest<D, KV>::BYTES; // whole pieces of 16

template <int D, int KV, int RING, bool ALL_AT_ONCE>
__global__ void __launch_bounds__(WARPS * 32) rope_decode_attention_kernel(const Call call, const Heads heads) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ Meet<1> meet;
  const int split = blockIdx.x, kv_head = blockIdx.y, s = blockIdx.z;
  if (call.args.next_is_small) pdl_launch();
  const int context = __ldcg(call.args.context_lens + s), position = __ldcg(heads.positions + s), newest = __ldcg(heads.slot_mapping + s);
  const Splits splits = splits_of(call.args, context);
#ifdef AISP_CLUSTERS
  if (heads.clustered) cluster_arrive();
#endif
  if (context <= 0 || split < splits.begin || split >= splits.end) {
    leave<D>({call, s, kv_head}, context, split);
    return;
  }
  const int slot = split == splits.end - 1 ? newest : -1;
  TurningBlock<D, KV> block = {{call, s, kv_head}, heads, slot, Turn<pairs_a_lane(D)>(heads.rope, position, D / 2),
                               Newest<D, KV>(shared + shared_bytes<D, KV, 1, RING>()),
                               heads.clustered ? reinterpret_cast<Gathered<D, 1> *>(shared + turning_bytes<D, KV, RING>) : nullptr};
  attend_split<D, KV, 1, RING, ALL_AT_ONCE>(call, s, kv_head, split, context, splits, shared, &meet, block);
  if (slot >= 0 && threadIdx.x < 32) block.near.store(call.kv, kv_head, slot);
}

template <int D, int KV, int NT, int RING, bool ALL_AT_ONCE>
int raise_limit_of() {
  return cudaFuncSetAttribute(decode_attention_kernel<D, KV, NT, RING, ALL_AT_ONCE>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              shared_bytes<D, KV, NT, RING>());
}
template <int D, int KV, int NT>
int raise_limit() {
  if (int code = raise_limit_of<D, KV, NT, 2, false>()) return code;
  if constexpr (D <= 128) return raise_limit_of<D, KV, NT, 4, true>();
  return 0;
}

// A few blocks load all they need at once; many share the multiprocessors, and more of them hide more.
bool are_few(const aisp_ctx *ctx, const dim3 &grid) { return (int64_t)grid.x * grid.y * grid.z <= ctx->sm_count; }
dim3 grid_of(const Call &call) { return dim3(call.max_splits, call.kv.num_kv_heads, call.args.num_seqs); }
// Whether each warp may have all of its blocks at once in a ring of so many.
bool fit_at_once(const aisp_ctx *ctx, const Call &call, int ring) {
  return are_few(ctx, grid_of(call)) && split_size(call.args, most_positions(call.args)) <= ring * SPLIT_UNIT;
}

template <int D, int KV, int NT>
int start(const aisp_ctx *ctx, const Call &call, aisp_stream stream) {
  if constexpr (D <= 128) {
    if (fit_at_once(ctx, call, 4) && shared_bytes<D, KV, NT, 4>() <= ctx->shared_bytes_per_block)
      return launch(ctx, decode_attention_kernel<D, KV, NT, 4, true>, grid_of(call), WARPS * 32, shared_bytes<D, KV, NT, 4>(), stream, call);
  }
  return launch(ctx, decode_attention_kernel<D, KV, NT, 2, false>, grid_of(call), WARPS * 32, shared_bytes<D, KV, NT, 2>(), stream, call);
}

template <int D, int KV>
int choose_group(const aisp_ctx *ctx, const Call &call, aisp_stream stream) {
  if (call.group <= 8) return start<D, KV, 1>(ctx, call, stream);
  if constexpr (D <= 128) {
    if (call.group <= 16) return start<D, KV, 2>(ctx, call, stream);
  }
  return cudaErrorNotSupported;
}
template <int KV>
int raise_limits() {
  return raise_all({raise_limit<32, KV, 1>, raise_limit<64, KV, 1>, raise_limit<96, KV, 1>, raise_limit<128, KV, 1>, raise_limit<256, KV, 1>,
                     raise_limit<32, KV, 2>, raise_limit<64, KV, 2>, raise_limit<96, KV, 2>, raise_limit<128, KV, 2>});
}
// Where heads are turned in the kernel of attention. Each split turns the same queries: of many that move few bytes each it
// costs more than a kernel of its own.
bool are_turned(const aisp_ctx *ctx, const Call &call) {
  return call.group <= MAX_GROUP && (call.kv.head_dim == 64 || call.kv.head_dim == 128) &&
         (call.kv.kv_format == AISP_KV_BF16 || call.max_splits == 1 || are_few(ctx, grid_of(call)));
}

// Shared memory of a block of a cluster of so many, and whether a card has so much beside what the kernel declares itself.
template <int D, int KV, int RING>
int clustered_bytes(int cluster) { return turning_bytes<D, KV, RING> + cluster * (int)sizeof(Gathered<D, 1>); }
bool has_shared(const aisp_ctx *ctx, int bytes) { return bytes + (int)sizeof(Meet<1>) <= ctx->shared_bytes_per_block; }

template <int D, int KV, int RING, bool ALL_AT_ONCE>
int raise_turning_limit_of() {
  auto raise = [](int bytes) {
    return (int)cudaFuncSetAttribute(rope_decode_attention_kernel<D, KV, RING, ALL_AT_ONCE>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  };
  if (cudaFuncSetAttribute(rope_decode_attention_kernel<D, KV, RING, ALL_AT_ONCE>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1))
    cudaGetLastError(); // cards without clusters
  for (int cluster = MAX_CLUSTER; cluster > 1; cluster--) {
    const int code = raise(clustered_bytes<D, KV, RING>(cluster));
    if (code != cudaErrorInvalidValue) return code;
    cudaGetLastError(); // the card has too little for the blocks of such a cluster
  }
  return raise(turning_bytes<D, KV, RING>);
}
template <int D, int KV>
int raise_turning_limit() {
  return raise_all({raise_turning_limit_of<D, KV, 2, false>, raise_turning_limit_of<D, KV, 2, true>, raise_turning_limit_of<D, KV, 4, true>});
}
// Of more than 8 blocks, a multiprocessor each, not all parts of a card have room.
template <class Kernel>
bool fit_clusters(const Launch &as, Kernel kernel, int num_clusters) {
  int most = 0;
  if (most_clusters(as, kernel, &most) == 0) return num_clusters <= most;
  cudaGetLastError();
  return false;
}
template <int D, int KV, int RING, bool ALL_AT_ONCE>
int start_turning_of(const aisp_ctx *ctx, const Call &call, Heads heads, aisp_stream stream) {
  const dim3 grid = grid_of(call);
  const auto kernel = rope_decode_attention_kernel<D, KV, RING, ALL_AT_ONCE>;
  const int cluster_bytes = clustered_bytes<D, KV, RING>(grid.x);
  Launch as = {grid, WARPS * 32, (size_t)turning_bytes<D, KV, RING>, 1, ALL_AT_ONCE && call.args.next_is_small};
  if (ctx->compute_capability >= 90 && are_few(ctx, grid) && grid.x > 1 && grid.x <= MAX_CLUSTER && has_shared(ctx, cluster_bytes)) {
    const Launch clustered = {grid, as.block, (size_t)cluster_bytes, (int)grid.x, as.most_shared};
    heads.clustered = grid.x <= ANY_CLUSTER || fit_clusters(clustered, kernel, grid.y * grid.z);
    if (heads.clustered) as = clustered;
  }
  return launch_as(ctx, as, kernel, stream, call, heads);
}
template <int D, int KV>
int start_turning(const aisp_ctx *ctx, const Call &call, const Heads &heads, aisp_stream stream) {
  if (fit_at_once(ctx, call, 2)) return start_turning_of<D, KV, 2, true>(ctx, call, heads, stream);
  if (fit_at_once(ctx, call, 4) && has_shared(ctx, turning_bytes<D, KV, 4>)) return start_turning_of<D, KV, 4, true>(ctx, call, heads, stream);
  return start_turning_of<D, KV, 2, false>(ctx, call, heads, stream);
}

// Splits of all sequences that the workspace has room for.
int64_t most_rows(int num_seqs, int max_context_len) {
  constexpr int64_t FEW_SEQUENCES = 1024; // short splits of a few sequences
  return std::max(num_seqs * ceil_div(max_context_len, AISP_SPLIT_SIZE), FEW_SEQUENCES);
}
bool make_call(const aisp_kv_layer &kv, const aisp_decode_args &args, Call *out) {
  if (args.num_heads % kv.num_kv_heads || (int64_t)args.num_seqs * kv.num_kv_heads * 4 > (int64_t)COUNTER_BYTES || args.max_context_len <= 0 ||
      args.num_splits < 0 || (int64_t)args.num_splits * args.num_seqs > most_rows(args.num_seqs, args.max_context_len))
    return false;
  const int splits = args.num_splits > 0 ? args.num_splits : (int)ceil_div(args.max_context_len, AISP_SPLIT_SIZE);
  *out = {kv, args, args.num_heads / kv.num_kv_heads, splits};
  return true;
}

} // namespace

int prepare_decode_attention(const aisp_ctx *) {
  if (int code = raise_all({raise_turning_limit<64, AISP_KV_BF16>, raise_turning_limit<64, AISP_KV_FP8>, raise_turning_limit<64, AISP_KV_FP4>,
                            raise_turning_limit<128, AISP_KV_BF16>, raise_turning_limit<128, AISP_KV_FP8>, raise_turning_limit<128, AISP_KV_FP4>}))
    return code;
  if (int code = raise_limits<AISP_KV_BF16>()) return code;
  if (int code = raise_limits<AISP_KV_FP8>()) return code;
  return raise_limits<AISP_KV_FP4>();
}

} // namespace aisp

extern "C" {

size_t aisp_decode_workspace_bytes(int32_t max_seqs, int32_t num_heads, int32_t head_dim, int32_t max_context_len) {
  return aisp::decode::COUNTER_BYTES + (size_t)aisp::most_rows(max_seqs, max_context_len) * num_heads * (head_dim + 2) * sizeof(float);
}

int32_t aisp_decode_splits(const aisp_ctx *ctx, const aisp_kv_layer *kv, const aisp_decode_args *args) {
  using namespace aisp;
  Load load = {ctx->sm_count, 1, (int64_t)args->num_seqs * kv->num_kv_heads, most_positions(*args), 0, args->next_is_small != 0};
  if (load.walks <= 0 || load.positions <= 0) return 1;
  load.bytes_per_position = 2 * (kv_row_bytes(kv->kv_format, kv->head_dim) + kv_scale_bytes(kv->kv_format, kv->head_dim));
  with_kv_format(kv->kv_format, [&](auto format) {
    return with_head_dim(kv->head_dim, [&](auto dim) {
      constexpr int D = decltype(dim)::value, KV = decltype(format)::value;
      return (int)cudaOccupancyMaxActiveBlocksPerMultiprocessor(&load.blocks_per_sm, decode_attention_kernel<D, KV, 1, 2, false>, decode::WARPS * 32,
                                                                decode::shared_bytes<D, KV, 1, 2>());
    });
  });
  load.blocks_per_sm = std::max(load.blocks_per_sm, 1);
  return num_splits_for(load);
}

int aisp_decode_attention(const aisp_ctx *ctx, const aisp_kv_layer *kv, const aisp_decode_args *args, aisp_stream stream) {
  using namespace aisp;
  if (args->num_seqs == 0) return 0;
  Call call;
  if (!make_call(*kv, *args, &call)) return cudaErrorInvalidValue;
  return with_kv_format(kv->kv_format, [&](auto format) {
    return with_head_dim(kv->head_dim, [&](auto dim) { return choose_group<decltype(dim)::value, decltype(format)::value>(ctx, call, stream); });
  });
}

int aisp_rope_decode_attention(const aisp_ctx *ctx, const float *qkv, const aisp_rope *rope, const int32_t *positions, const int32_t *slot_mapping,
                               const aisp_kv_layer *kv, const aisp_decode_args *args, aisp_stream stream) {
  using namespace aisp;
  if (args->num_seqs == 0) return 0;
  Call call;
  if (!make_call(*kv, *args, &call)) return cudaErrorInvalidValue;
  if (!are_turned(ctx, call)) {
    if (int code = aisp_rope_store(ctx, qkv, AISP_F32, rope, positions, slot_mapping, args->num_seqs, args->num_heads, kv, args->q, stream)) return code;
    return aisp_decode_attention(ctx, kv, args, stream);
  }
  const Heads heads = {qkv, *rope, positions, slot_mapping, false};
  return with_kv_format(kv->kv_format, [&](auto format) {
    constexpr int KV = decltype(format)::value;
    return kv->head_dim == 64 ? start_turning<64, KV>(ctx, call, heads, stream) : start_turning<128, KV>(ctx, call, heads, stream);
  });
}

} // extern "C"
