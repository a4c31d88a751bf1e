// Attention of many query tokens a sequence by wgmma, on Hopper, for heads of 64 and 128; else as in prefill_attention.cu.
//
// Launch     grid (tiles of rows, KVH, S); groups of four warps that multiply, 64 rows each (two groups, three for heads of 64), and
//            four that copy (of fp8 and fp4, whose codes they turn, eight). Tiles of 64 positions in a ring of four.
// Order      keys of a tile are multiplied first, then the weights of the tile before with its values; while these go on, the scores
//            become weights. A group's products and softmax run beside the others'.
// Sums       as in prefill_attention.cu.
#include "prefill_attention.cuh"

namespace aisp {
namespace {

using namespace prefill;

constexpr int STAGES = stages<true>();

// Registers a thread that multiplies, or copies; all together no more than the block has.
struct Registers {
  int multiply, copy;
};
template <int D, int KV>
__host__ __device__ constexpr Registers registers() {
  if (D == 64) return KV == AISP_KV_BF16 ? Registers{152, 56} : Registers{128, 48};
  return KV == AISP_KV_BF16 ? Registers{208, 88} : Registers{184, 72};
}

#ifdef AISP_HOPPER

// A descriptor by its lower half, the one that tells of the place: sums of 32 bits are enough.
__device__ inline uint64_t described(uint32_t low) { return tile_descriptor(0) >> 32 << 32 | low; }

// Begins score[64 x 64] += q k^T of a group's rows; score[4 n ..] as by mma. `keys` describes the tile, see described().
template <int D, int KV>
__device__ inline void multiply_keys(float (&score)[TILE / 2], const uint32_t (&q)[D / 16][4], uint32_t keys) {
#pragma unroll
  for (int j = 0; j < D / 16; j++) {
    const uint64_t part = described(keys + j / 4 * (TILE * 128 / 16) + j % 4 * 2);
    if constexpr (in_f16<KV, true>()) wgmma_f16(score, q[j], part);
    else wgmma_registers(score, q[j], part);
  }
}
// Begins o[64 x D] += p v.
template <int D, int KV>
__device__ inline void multiply_values(float (&o)[D / 2], const uint32_t (&p)[TILE / 16][4], uint32_t values) {
#pragma unroll
  for (int n = 0; n < TILE / 16; n++)
#pragma unroll
    for (int part = 0; part < D / 64; part++) {
      const uint64_t at = described(values + (part * TILE * 128 + n * 16 * 128) / 16);
      if constexpr (in_f16<KV, true>()) wgmma_f16_by_rows(part_of<32>(o, part), p[n], at);
      else wgmma_registers_by_rows(part_of<32>(o, part), p[n], at);
    }
}

// A place in the ring, and which time around it is.
struct Turn {
  uint32_t stage = 0, parity = 0;
  __device__ inline void advance() {
    stage = stage + 1 == STAGES ? 0 : stage + 1;
    parity ^= stage == 0;
  }
};

// The ring in shared memory: tiles of keys and of values, and for each tile the barriers `full` and `empty`.
template <int D, int KV>
struct Ring {
  static constexpr int TILE_BYTES = tile_bytes<D, true>();
  uint32_t base;
  __device__ inline uint32_t k(uint32_t stage) const { return base + stage * (2 * TILE_BYTES); }
  __device__ inline uint32_t v(uint32_t stage) const { return k(stage) + TILE_BYTES; }
  __device__ inline uint32_t full(uint32_t stage) const { return base + (shared_bytes<D, true>() - STAGES * 16) + stage * 16; }
  __device__ inline uint32_t empty(uint32_t stage) const { return full(stage) + 8; }
  __device__ inline void init() const {
    for (int i = 0; i < STAGES; i++) barrier_init(full(i), Pieces<D, KV, true>::COPIERS), barrier_init(empty(i), warps<D, true>());
    shared_ready();
  }
  __device__ inline void leave(uint32_t stage, int lane) const {
    if (lane == 0) barrier_arrive(empty(stage));
  }
};

// What the copying warps do.
template <int D, int KV>
__device__ inline void fill_ring(const Call &call, const int32_t *block_table, int kv_head, int begin, int end, int context, Ring<D, KV> ring) {
  // Groups of four warps take tiles by turns.
  constexpr int GROUPS = copy_warps<KV, true>() / 4;
  const int group = (threadIdx.x - Pieces<D, KV, true>::OTHERS) / 128;
  Pieces<D, KV, true> pieces;
  Turn turn, before;
  if (group) turn.advance();
  auto make_room = [&](int tile) {
    if (tile - begin >= STAGES) barrier_wait(ring.empty(turn.stage), turn.parity ^ 1);
  };
  auto arrive = [&](uint32_t stage) {
    shared_ready();
    barrier_arrive(ring.full(stage));
  };
  pieces.look_up(block_table, begin + group, context);
#pragma unroll 1
  for (int tile = begin + group; tile < end; tile += GROUPS) {
    if constexpr (KV == AISP_KV_BF16) {
      make_room(tile);
      pieces.load(call, kv_head, tile, context, ring.k(turn.stage), ring.v(turn.stage));
      pieces.look_up(block_table, tile + 1, context);
      copy_async_commit();
      copy_async_wait<1>();
      if (tile > begin) arrive(before.stage);
      before = turn;
    } else {
      pieces.load(call, kv_head, tile, context, 0, 0);
      pieces.look_up(block_table, tile + GROUPS, context);
      make_room(tile);
      pieces.store(ring.k(turn.stage), ring.v(turn.stage), nullptr);
      arrive(turn.stage);
    }
#pragma unroll
    for (int i = 0; i < GROUPS; i++) turn.advance();
  }
  if constexpr (KV == AISP_KV_BF16) {
    copy_async_wait<0>();
    arrive(before.stage);
  }
}

template <int N>
__device__ inline void pin(uint32_t (&x)[N][4]) {
#pragma unroll
  for (int i = 0; i < N * 4; i++) asm volatile("" : "+r"(x[i / 4][i % 4])::"memory");
}

#endif

template <int D, int KV>
__global__ void __launch_bounds__(threads<D, KV, true>(), 1) prefill_wgmma_kernel(const Call call) {
#ifdef AISP_HOPPER
  extern __shared__ __align__(1024) uint8_t shared[];
  pdl_wait();
  pdl_launch();
  const aisp_prefill_args &args = call.args;
  const int s = blockIdx.z, kv_head = blockIdx.y, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int first_token = args.cu_seqlens_q[s], num_queries = args.cu_seqlens_q[s + 1] - first_token;
  const int row_tile = (int)(gridDim.x - 1 - blockIdx.x), context = args.context_lens[s];
  if (row_tile * Rows<D, true>::COUNT >= num_queries * call.group) return;
  const int window = args.sliding_window > 0 ? args.sliding_window : NO_WINDOW;
  const Rows<D, true> rows(call, row_tile, first_token, num_queries, context, window, kv_head, warp, lane);
  Ring<D, KV> ring = {shared_address(shared)};
  asm volatile("" : "+r"(ring.base)); // not computed again for each tile
  if (threadIdx.x == 0) ring.init();
  __syncthreads();
  if (warp >= warps<D, true>()) {
    registers_down<registers<D, KV>().copy>();
    fill_ring(call, args.block_tables + (int64_t)s * args.max_blocks, kv_head, rows.begin, rows.end, context, ring);
    return;
  }
  registers_up<registers<D, KV>().multiply>();

  uint32_t q[D / 16][4];
  rows.template load_queries<in_f16<KV, true>()>(call, q, lane);
  float o[D / 2] = {};
  RunningSoftmax softmax;
  constexpr float LATER = later<KV, true>();
  const float scale = args.scale * LOG2_E * LATER;
  const uint32_t keys = (uint32_t)tile_descriptor(ring.base), values = (uint32_t)tile_descriptor(ring.v(0));
  constexpr uint32_t STAGE = 2 * Ring<D, KV>::TILE_BYTES / 16;

  // The group's tiles: [rows.begin, first) it passes over, as those from `last` on; [whole, part) need no mask.
  int first = rows.begin, last = rows.end;
  while (first < last && !rows.sees(first, window)) first++;
  while (last > first && !rows.sees(last - 1, window)) last--;
  int whole = first, part = last;
  while (whole < last && !rows.sees_all(whole, window)) whole++;
  while (part > whole && !rows.sees_all(part - 1, window)) part--;

  Turn turn;
  auto pass_over = [&](int from, int to) {
#pragma unroll 1
    for (int tile = from; tile < to; tile++, turn.advance()) {
      barrier_wait(ring.full(turn.stage), turn.parity);
      __syncwarp(); // no lane still waits when the tile may be filled again
      ring.leave(turn.stage, lane);
    }
  };
  // Weights of the tile before, whose values are still to be multiplied. The first has its own values, by weights of zero: a branch
  // would make each instruction wait.
  uint32_t p[TILE / 16][4] = {};
  uint32_t weighed = 0;
  auto multiply = [&](int from, int to, auto masked) {
#pragma unroll 1
    for (int tile = from; tile < to; tile++) {
      barrier_wait(ring.full(turn.stage), turn.parity);
      const bool is_first = tile == first;
      if (is_first) weighed = turn.stage;
      float score[TILE / 2] = {};
      pin(p);
      wgmma_fence();
      multiply_keys<D, KV>(score, q, keys + turn.stage * STAGE);
      wgmma_commit();
      multiply_values<D, KV>(o, p, values + weighed * STAGE);
      wgmma_commit();
      wgmma_wait<1>();
      wgmma_done(score);
      if constexpr (decltype(masked)::value) rows.mask(score, tile, window, lane);
      float shrink[2];
      softmax.weigh(score, scale, shrink);
      wgmma_wait<0>();
      wgmma_done(o);
      if (!is_first) ring.leave(weighed, lane);
#pragma unroll
      for (int i = 0; i < D / 2; i++) o[i] *= shrink[i / 2 % 2];
#pragma unroll
      for (int i = 0; i < TILE / 4; i++)
        p[i / 4][i % 4] = in_f16<KV, true>() ? pack_f16(score[2 * i], score[2 * i + 1]) : pack_bf16(score[2 * i], score[2 * i + 1]);
      weighed = turn.stage;
      turn.advance();
    }
  };
  pass_over(rows.begin, first);
  multiply(first, whole, std::true_type());
  multiply(whole, part, std::false_type());
  multiply(part, last, std::true_type());
  if (first < last) {
    pin(p);
    wgmma_fence();
    multiply_values<D, KV>(o, p, values + weighed * STAGE);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_done(o);
    ring.leave(weighed, lane);
  }
  pass_over(last, rows.end);
  rows.store(call, o, softmax.sum, LATER, lane);
#endif
}

template <int D, int KV>
int start(const aisp_ctx *ctx, const Call &call, aisp_stream stream) {
  return start_kernel<D, KV, true>(ctx, prefill_wgmma_kernel<D, KV>, call, stream);
}
template <int D, int KV>
int raise_limit() { return raise_kernel_limit<D, true>(prefill_wgmma_kernel<D, KV>); }

} // namespace

int prepare_prefill_wgmma() {
  return raise_all({raise_limit<64, AISP_KV_BF16>, raise_limit<64, AISP_KV_FP8>, raise_limit<64, AISP_KV_FP4>, raise_limit<128, AISP_KV_BF16>,
                    raise_limit<128, AISP_KV_FP8>, raise_limit<128, AISP_KV_FP4>});
}
int start_prefill_wgmma(const aisp_ctx *ctx, const Call &call, aisp_stream stream) {
  return with_kv_format(call.kv.kv_format, [&](auto format) {
    constexpr int KV = decltype(format)::value;
    return call.kv.head_dim == 64 ? start<64, KV>(ctx, call, stream) : start<128, KV>(ctx, call, stream);
  });
}

} // namespace aisp
