// The work of decode_attention.cu's blocks: one split of one kv head of one sequence, by four warps.
#pragma once

#include "decode_operands.cuh"

namespace aisp::decode {

constexpr int WARPS = 4;
constexpr int SPLIT_UNIT = WARPS * AISP_BLOCK_SIZE; // splits are whole blocks of every warp
constexpr size_t COUNTER_BYTES = 256 * 1024; // one counter a sequence and kv head, in front of the workspace
constexpr float NEVER = -INFINITY;

template <int D, int KV, int NT, int RING>
struct Shape {
  static constexpr int ROW = kv_row_bytes(KV, D);     // bytes of a position in the pool
  // In shared memory, padded where lanes would meet in a bank otherwise.
  static constexpr int K_STRIDE = KV == AISP_KV_BF16 || (KV == AISP_KV_FP8 && D > 64) ? ROW + 16 : ROW;
  static constexpr int V_STRIDE = ROW + 16;
  static constexpr int HALF = 16 * K_STRIDE;          // K of a block; V lies behind it
  static constexpr int SCALES_AT = HALF + 16 * V_STRIDE;
  static constexpr int SCALES = 16 * kv_scale_bytes(KV, D); // of K, and again of V
  static constexpr int STAGE = SCALES_AT + 2 * SCALES;
  static constexpr int RESULT = NT * 8 * D * 4;             // O of a warp, in place of its ring
  static constexpr int WARP_BYTES = RING * STAGE > RESULT ? RING * STAGE : RESULT;
};

struct Call {
  aisp_kv_layer kv;
  aisp_decode_args args;
  int group;       // query heads a kv head
  int max_splits;
};

// Positions of a split where a context has so many.
__host__ __device__ inline int split_size(const aisp_decode_args &args, int positions) {
  if (args.num_splits == 0) return AISP_SPLIT_SIZE;
  const int units = (positions + SPLIT_UNIT - 1) / SPLIT_UNIT;
  return (units + args.num_splits - 1) / args.num_splits * SPLIT_UNIT;
}

template <int D, int KV, int NT, int RING>
__host__ __device__ constexpr int shared_bytes() {
  return WARPS * Shape<D, KV, NT, RING>::WARP_BYTES;
}

// Where the warps of a split meet.
template <int NT>
struct Meet {
  float max[WARPS][NT * 8], sum[WARPS][NT * 8];
  int is_last;
};

// What a split of a cluster leaves with the first.
constexpr int MAX_CLUSTER = 16, ANY_CLUSTER = 8; // where there is room, and on any card that has clusters
template <int D, int NT>
struct Gathered {
  float2 max_sum[NT * 8];
  float2 o[NT * 8 * D / 2];
};

// Most positions that all splits of a context hold.
inline int most_positions(const aisp_decode_args &args) {
  const int window = args.sliding_window > 0 ? args.sliding_window + AISP_BLOCK_SIZE - 1 : args.max_context_len;
  return window < args.max_context_len ? window : args.max_context_len;
}
// Splits that hold positions of a context: of fixed size from position 0 on, or equal parts of what is seen.
struct Splits {
  int begin, end;
  int first_position; // within the sliding window
  int origin, size;   // split i begins at origin + i * size
};
__device__ inline Splits splits_of(const aisp_decode_args &args, int context) {
  const int first = args.sliding_window > 0 && context > args.sliding_window ? context - args.sliding_window : 0;
  if (args.num_splits == 0) return {first / AISP_SPLIT_SIZE, (context + AISP_SPLIT_SIZE - 1) / AISP_SPLIT_SIZE, first, 0, AISP_SPLIT_SIZE};
  const int origin = first / AISP_BLOCK_SIZE * AISP_BLOCK_SIZE, size = max(split_size(args, context - origin), SPLIT_UNIT);
  return {0, (context - origin + size - 1) / size, first, origin, size};
}

// What differs between callers:
//   newest_position()  returns once queries can be read and the newest position stands in the pool; all before it are there
//   HAS_NEWEST         the newest position need not be in the pool: it is in near, unless slot, its place, is below 0
//   gathered           where the first of a context's splits takes the results of all (Gathered, in order), if these are a cluster whose
//                      blocks have arrived once and whose ranks are the splits; else null, and they meet in the workspace
//   query(h)           bf16 [D] of a head of the group
//   store(i, two)      values i and i + 1 of the group's [heads, D], in bf16
//   MAY_CLUSTER        there is a `gathered`
// For whole blocks of four warps. NT: groups of 8 heads. ALL_AT_ONCE: the ring holds all blocks of a warp, which are worked on
// at once, so that what one waits for is hidden by the others; the bits are the same.
template <int D, int KV, int NT, int RING, bool ALL_AT_ONCE, class Caller>
__device__ inline void attend_split(const Call &call, int s, int kv_head, int split, int context, const Splits &splits,
                                    uint8_t *shared, Meet<NT> *meet, Caller &caller) {
  using Sh = Shape<D, KV, NT, RING>;
  constexpr int AT_ONCE = ALL_AT_ONCE ? RING : 1;
  const aisp_decode_args &args = call.args;
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int group = call.group, num_heads = args.num_heads;
  const int begin = splits.first_position;

  // Blocks of 16 positions that this warp walks.
  const int warp_positions = splits.size / WARPS;
  const int warp_begin = splits.origin + split * splits.size + warp * warp_positions;
  const int walk_begin = max(warp_begin, begin / AISP_BLOCK_SIZE * AISP_BLOCK_SIZE);
  const int walk_end = min(warp_begin + warp_positions, context);
  const int num_blocks = walk_end > walk_begin ? (walk_end - walk_begin + AISP_BLOCK_SIZE - 1) / AISP_BLOCK_SIZE : 0;
  const int32_t *block_table = args.block_tables + (int64_t)s * args.max_blocks + walk_begin / AISP_BLOCK_SIZE;
  const uint32_t ring = shared_address(shared) + warp * Sh::WARP_BYTES;

  // Of a ring that holds all blocks of the warp, their places are asked for at once.
  int32_t places[AT_ONCE] = {};
  if constexpr (ALL_AT_ONCE) {
#pragma unroll
    for (int i = 0; i < RING; i++) places[i] = i < num_blocks ? block_table[i] : 0;
  }
  auto fill = [&](int i) {
    if (i < num_blocks) {
      const int32_t place = ALL_AT_ONCE ? places[i % AT_ONCE] : block_table[i];
      const int64_t at = (int64_t)place * call.kv.num_kv_heads + kv_head; // of a block's head
      const uint8_t *k = static_cast<const uint8_t *>(call.kv.k) + at * 16 * Sh::ROW;
      const uint8_t *v = static_cast<const uint8_t *>(call.kv.v) + at * 16 * Sh::ROW;
      const uint32_t stage = ring + i % RING * Sh::STAGE;
      constexpr int PIECES = Sh::ROW / 16;
#pragma unroll
      for (int p = lane; p < 16 * PIECES; p += 32) {
        copy_async_16(stage + p / PIECES * Sh::K_STRIDE + p % PIECES * 16, k + p * 16, true);
        copy_async_16(stage + Sh::HALF + p / PIECES * Sh::V_STRIDE + p % PIECES * 16, v + p * 16, true);
      }
      if constexpr (Sh::SCALES > 0) {
        constexpr int SCALE_PIECES = Sh::SCALES / 16;
#pragma unroll
        for (int p = lane; p < 2 * SCALE_PIECES; p += 32) {
          const void *from = p < SCALE_PIECES ? call.kv.k_scales : call.kv.v_scales;
          copy_async_16(stage + Sh::SCALES_AT + p * 16,
                        static_cast<const uint8_t *>(from) + at * Sh::SCALES + p % SCALE_PIECES * 16, true);
        }
      }
    }
    copy_async_commit();
  };
  // The predecessor stores the newest position, in this block; all before it are settled.
  const int newest = (context - 1) / AISP_BLOCK_SIZE - walk_begin / AISP_BLOCK_SIZE;
  const int early = Caller::HAS_NEWEST ? RING : newest;
#pragma unroll
  for (int i = 0; i < RING; i++)
    if (i < early) fill(i);
  caller.newest_position();
#pragma unroll
  for (int i = 0; i < RING; i++)
    if (i >= early) fill(i);

  // Q^T as the operand of columns: column h = lane / 4 of each group of eight.
  constexpr int KSTEPS = D / 16;
  uint32_t q[NT][KSTEPS][2];
#pragma unroll
  for (int nt = 0; nt < NT; nt++) {
    const int h = nt * 8 + lane / 4;
#pragma unroll
    for (int j = 0; j < KSTEPS; j++) {
      if constexpr (KV == AISP_KV_BF16) {
#pragma unroll
        for (int i = 0; i < 2; i++) q[nt][j][i] = h < group ? *reinterpret_cast<const uint32_t *>(caller.query(h) + key_dim<D, KV>(j, i)) : 0u;
      } else { // neighbours
        const uint2 both = h < group ? *reinterpret_cast<const uint2 *>(caller.query(h) + key_dim<D, KV>(j, 0)) : make_uint2(0, 0);
        q[nt][j][0] = query_operand<KV>(both.x), q[nt][j][1] = query_operand<KV>(both.y);
      }
    }
  }

  float o[D / 16][NT][4]; // rows: dimensions, columns: heads
  float running_max[NT][2], running_sum[NT][2];
#pragma unroll
  for (int nt = 0; nt < NT; nt++) {
#pragma unroll
    for (int i = 0; i < 2; i++) running_max[nt][i] = NEVER, running_sum[nt][i] = 0;
#pragma unroll
    for (int j = 0; j < D / 16; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) o[j][nt][i] = 0;
  }
  constexpr float LATER = KV == AISP_KV_FP4 ? E2M1_LATER : 1.0f; // of keys, and of values:
  constexpr float VALUES_LATER = KV == AISP_KV_FP8 ? 1 / FP8_TIMES : LATER;
  const float scale = args.scale * 1.44269504f * LATER; // exponents are taken to base 2

#pragma unroll 1
  for (int first = 0; first < num_blocks; first += AT_ONCE) {
    copy_async_wait<RING - AT_ONCE>();
    __syncwarp();
    auto stage_of = [&](int u) { return ring + (first + u) % RING * Sh::STAGE; };
    if constexpr (Caller::HAS_NEWEST) {
      if (caller.slot >= 0 && newest >= first && newest < first + AT_ONCE) {
        const uint32_t stage = stage_of(newest - first);
        const int row = (context - 1) % AISP_BLOCK_SIZE;
        constexpr int SCALE = Sh::SCALES / 16;
        caller.near.copy_row(false, stage + row * Sh::K_STRIDE, stage + Sh::SCALES_AT + row * SCALE);
        caller.near.copy_row(true, stage + Sh::HALF + row * Sh::V_STRIDE, stage + Sh::SCALES_AT + Sh::SCALES + row * SCALE);
        __syncwarp();
      }
    }

    // score[u][nt][0, 1]: position lane / 4 of block u, heads 2 (lane % 4) and the next; [2, 3]: position + 8.
    float score[AT_ONCE][NT][4], v_scale[AT_ONCE][2];
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
      const uint32_t stage = stage_of(u);
#pragma unroll
      for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int j = 0; j < 4; j++) score[u][nt][j] = 0;
      if constexpr (KV == AISP_KV_FP4) {
        fp4_scores<D, NT>(score[u], q, stage, stage + Sh::SCALES_AT);
      } else if constexpr (KV == AISP_KV_FP8) {
        fp8_scores<D, NT>(score[u], q, stage, Sh::K_STRIDE);
      } else {
        const uint32_t matrix_row = lane % 16 * Sh::K_STRIDE + lane / 16 * 16;
#pragma unroll
        for (int j = 0; j < KSTEPS; j++) {
          uint32_t a[4]; // positions by 16 dimensions
          ldmatrix_x4(a, stage + matrix_row + j * 32);
#pragma unroll
          for (int nt = 0; nt < NT; nt++) mma_bf16(score[u][nt], a[0], a[1], a[2], a[3], q[nt][j][0], q[nt][j][1]);
        }
      }
    }
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int position = walk_begin + (first + u) * AISP_BLOCK_SIZE + lane / 4 + 8 * h;
        const bool in = position >= begin && position < walk_end;
        float k_scale = scale;
        v_scale[u][h] = 1;
        if constexpr (KV == AISP_KV_FP8) {
          const uint32_t at = stage_of(u) + Sh::SCALES_AT + (lane / 4 + 8 * h) * 4;
          k_scale = scale * __uint_as_float(shared_4(at));
          v_scale[u][h] = in ? fp8_value_scale(__uint_as_float(shared_4(at + Sh::SCALES))) : 0.0f;
        }
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
          for (int c = 0; c < 2; c++) score[u][nt][2 * h + c] = in ? score[u][nt][2 * h + c] * k_scale : NEVER;
      }
    }

    float most[AT_ONCE][NT][2];
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++)
#pragma unroll
      for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int c = 0; c < 2; c++) most[u][nt][c] = fmaxf(score[u][nt][c], score[u][nt][c + 2]);
#pragma unroll
    for (int offset = 4; offset < 32; offset <<= 1)
#pragma unroll
      for (int u = 0; u < AT_ONCE; u++)
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
          for (int c = 0; c < 2; c++) most[u][nt][c] = fmaxf(most[u][nt][c], __shfl_xor_sync(ALL_LANES, most[u][nt][c], offset));
    uint32_t p[AT_ONCE][NT][2];
    float shrink[AT_ONCE][NT][2];
    bool moved = false;
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++)
#pragma unroll
      for (int nt = 0; nt < NT; nt++) {
#pragma unroll
        for (int c = 0; c < 2; c++) {
          const float next = fmaxf(running_max[nt][c], most[u][nt][c]);
          shrink[u][nt][c] = running_max[nt][c] == next ? 1.0f : exp2_fast(running_max[nt][c] - next);
          moved |= running_max[nt][c] != next;
          running_max[nt][c] = next;
          const float base = next == NEVER ? 0.0f : next;
          score[u][nt][c] = exp2_fast(score[u][nt][c] - base);
          score[u][nt][c + 2] = exp2_fast(score[u][nt][c + 2] - base);
          // A lane sums its own positions; lanes meet at the end.
          running_sum[nt][c] = fmaf(running_sum[nt][c], shrink[u][nt][c], score[u][nt][c] + score[u][nt][c + 2]);
        }
        // P^T from positions-by-heads to heads-by-positions, the operand of columns.
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const uint32_t two = weight_operand<KV>(score[u][nt][2 * h] * v_scale[u][h], score[u][nt][2 * h + 1] * v_scale[u][h]);
          asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(p[u][nt][h]) : "r"(two));
        }
      }

    // V [16 positions, D] read transposed: rows become dimensions.
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
      if (AT_ONCE > 1 && first + u >= num_blocks) break;
      if (AT_ONCE > 1 || __any_sync(ALL_LANES, moved)) {
#pragma unroll
        for (int j = 0; j < D / 16; j++)
#pragma unroll
          for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int e = 0; e < 4; e++) o[j][nt][e] *= shrink[u][nt][e % 2];
      }
      // Positions of the last block that were never written may hold anything, and 0 * NaN would stay.
      const int keep = context - (walk_begin + (first + u) * AISP_BLOCK_SIZE);
      const uint32_t stage = stage_of(u), v_at = stage + Sh::HALF;
      if constexpr (KV == AISP_KV_FP4) {
        fp4_values<D, NT>(o, p[u], v_at, Sh::V_STRIDE, stage + Sh::SCALES_AT + Sh::SCALES, keep);
      } else if constexpr (KV == AISP_KV_FP8) {
        fp8_values<D, NT>(o, p[u], v_at, Sh::V_STRIDE, keep);
      } else {
        if (keep < 16) {
          for (int piece = lane; piece < (16 - keep) * (D / 8); piece += 32) {
            const uint32_t to = v_at + (keep + piece / (D / 8)) * Sh::V_STRIDE + piece % (D / 8) * 16;
            asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};" ::"r"(to), "r"(0) : "memory");
          }
          __syncwarp();
        }
        const uint32_t transposed = (lane % 8 + lane / 16 * 8) * Sh::V_STRIDE + lane / 8 % 2 * 16;
#pragma unroll
        for (int j = 0; j < D / 16; j++) {
          uint32_t a[4];
          ldmatrix_x4_trans(a, v_at + transposed + j * 32);
#pragma unroll
          for (int nt = 0; nt < NT; nt++) mma_bf16(o[j][nt], a[0], a[1], a[2], a[3], p[u][nt][0], p[u][nt][1]);
        }
      }
    }
    __syncwarp();
    if constexpr (!ALL_AT_ONCE) fill(first + RING);
  }
  copy_async_wait<0>();
  __syncwarp();

  // The warps' results meet: maxima, sums and O, which takes the place of the warp's ring.
  auto result_of = [&](int w) { return reinterpret_cast<float *>(shared + w * Sh::WARP_BYTES); }; // [heads][D]
#pragma unroll
  for (int nt = 0; nt < NT; nt++)
#pragma unroll
    for (int c = 0; c < 2; c++) {
      float sum = running_sum[nt][c];
#pragma unroll
      for (int offset = 4; offset < 32; offset <<= 1) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
      if (lane < 4) {
        meet->max[warp][nt * 8 + lane * 2 + c] = running_max[nt][c];
        meet->sum[warp][nt * 8 + lane * 2 + c] = sum;
      }
      const int h = nt * 8 + lane % 4 * 2 + c;
      if (h < group) {
#pragma unroll
        for (int j = 0; j < D / 16; j++)
#pragma unroll
          for (int half = 0; half < 2; half++) result_of(warp)[h * D + j * 16 + half * 8 + lane / 4] = o[j][nt][c + 2 * half];
      }
    }
  __syncthreads();

  const int num_splits = splits.end - splits.begin;
  // Of each split and head: O, and behind all of those the maximum and the sum.
  float *all_o = reinterpret_cast<float *>(static_cast<uint8_t *>(args.workspace) + COUNTER_BYTES);
  const int64_t first_row = ((int64_t)s * num_heads + kv_head * group) * call.max_splits;
  float *o_of = all_o + first_row * D;
  float2 *max_sum_of = reinterpret_cast<float2 *>(all_o + (int64_t)args.num_seqs * num_heads * call.max_splits * D) + first_row;
  Gathered<D, NT> *gathered = nullptr;
  if constexpr (Caller::MAY_CLUSTER) gathered = caller.gathered;
  [[maybe_unused]] const bool clustered = gathered && num_splits > 1;
#ifdef AISP_CLUSTERS
  if (clustered) cluster_wait(); // the first split runs
#endif
  for (int i = thread; i < group * (D / 2); i += WARPS * 32) {
    const int h = i / (D / 2), d = i % (D / 2) * 2;
    float most = NEVER, sum = 0, value[2] = {0, 0};
#pragma unroll
    for (int w = 0; w < WARPS; w++) most = fmaxf(most, meet->max[w][h]);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      const float by = meet->max[w][h] == NEVER ? 0.0f : exp2_fast(meet->max[w][h] - most);
      sum = fmaf(meet->sum[w][h], by, sum);
#pragma unroll
      for (int e = 0; e < 2; e++) value[e] = fmaf(result_of(w)[h * D + value_place<D, KV>(d + e)], by * VALUES_LATER, value[e]);
    }
    if (num_splits == 1) {
      caller.store(h * D + d, pack_bf16(value[0] / sum, value[1] / sum));
#ifdef AISP_CLUSTERS
    } else if (clustered) {
      if (d == 0) cluster_put(shared_address(&gathered[split - splits.begin].max_sum[h]), splits.begin, make_float2(most, sum));
      cluster_put(shared_address(&gathered[split - splits.begin].o[i]), splits.begin, make_float2(value[0], value[1]));
#endif
    } else {
      if (d == 0) __stcg(max_sum_of + h * call.max_splits + split, make_float2(most, sum));
      __stcg(reinterpret_cast<float2 *>(o_of + ((int64_t)h * call.max_splits + split) * D + d), make_float2(value[0], value[1]));
    }
  }
  if (num_splits == 1) return;

  // A value out of those of all splits, in order.
  auto meet_splits = [&](auto &&max_sum_at, auto &&value_at, auto &value, float &sum) {
    float most = NEVER;
    for (int at = 0; at < num_splits; at++) most = fmaxf(most, max_sum_at(at).x);
    sum = 0;
#pragma unroll 8
    for (int at = 0; at < num_splits; at++) {
      const auto part = value_at(at);
      const float2 own = max_sum_at(at);
      const float by = exp2_fast(own.x - most);
      sum = fmaf(own.y, by, sum);
      value.x = fmaf(part.x, by, value.x), value.y = fmaf(part.y, by, value.y);
      if constexpr (sizeof part == 16) value.z = fmaf(part.z, by, value.z), value.w = fmaf(part.w, by, value.w);
    }
  };
#ifdef AISP_CLUSTERS
  if (clustered) {
    cluster_arrive();
    cluster_wait();
    if (split != splits.begin) return;
    for (int i = thread; i < group * (D / 2); i += WARPS * 32) {
      const int h = i / (D / 2);
      float2 value = {0, 0};
      float sum;
      meet_splits([&](int at) { return gathered[at].max_sum[h]; }, [&](int at) { return gathered[at].o[i]; }, value, sum);
      caller.store(2 * i, pack_bf16(value.x / sum, value.y / sum));
    }
    return;
  }
#endif
  __threadfence();
  __syncthreads();
  int *counter = static_cast<int *>(args.workspace) + (int64_t)s * call.kv.num_kv_heads + kv_head;
  if (thread == 0) meet->is_last = atomicAdd(counter, 1) == num_splits - 1;
  __syncthreads();
  if (!meet->is_last) return;
  __threadfence();
  // Maxima and sums come to shared memory if they fit, in place of the exchange, which is no longer read.
  float2 *near = reinterpret_cast<float2 *>(shared);
  const bool fits = (int64_t)group * num_splits * 8 <= shared_bytes<D, KV, NT, RING>();
  if (fits) {
    for (int i = thread; i < group * num_splits; i += WARPS * 32)
      near[i] = __ldcg(max_sum_of + i / num_splits * call.max_splits + splits.begin + i % num_splits);
    __syncthreads();
  }
  for (int i = thread; i < group * (D / 4); i += WARPS * 32) {
    const int h = i / (D / 4), d = i % (D / 4) * 4;
    auto max_sum = [&](int at) {
      return fits ? near[h * num_splits + at] : __ldcg(max_sum_of + h * call.max_splits + splits.begin + at);
    };
    const float4 *from = reinterpret_cast<const float4 *>(o_of + ((int64_t)h * call.max_splits + splits.begin) * D + d);
    float4 value = {0, 0, 0, 0};
    float sum;
    meet_splits(max_sum, [&](int at) { return __ldcg(from + at * (D / 4)); }, value, sum);
    caller.store(h * D + d, pack_bf16(value.x / sum, value.y / sum));
    caller.store(h * D + d + 2, pack_bf16(value.z / sum, value.w / sum));
  }
  if (thread == 0) *counter = 0; // for the next call
}

} // namespace aisp::decode
