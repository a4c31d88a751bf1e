// The work of decode_attention.cu's blocks: one split of one kv head of one sequence, by four warps.
#pragma once

#include "common.cuh"

namespace aisp::decode {

constexpr int WARPS = 4;
constexpr int WARP_POSITIONS = AISP_SPLIT_SIZE / WARPS;
constexpr size_t COUNTER_BYTES = 256 * 1024; // one counter a sequence and kv head, in front of the workspace
constexpr float NEVER = -INFINITY;

template <int D, int KV, int RING>
struct Shape {
  static constexpr int ROW = kv_row_bytes(KV, D);     // bytes of a position in the pool
  static constexpr int ROW_STRIDE = D * 2 + 16;       // in shared memory as bf16; an odd number of 16 bytes: no conflicts
  static constexpr int K_STRIDE = KV == AISP_KV_BF16 ? ROW_STRIDE : ROW;
  static constexpr int V_STRIDE = KV == AISP_KV_BF16 ? ROW_STRIDE : KV == AISP_KV_FP4 ? ROW + 16 : ROW;
  static constexpr int HALF = 16 * K_STRIDE;          // K of a block; V lies behind it
  static constexpr int SCALES_AT = HALF + 16 * V_STRIDE;
  static constexpr int SCALES = 16 * kv_scale_bytes(KV, D); // of K, and again of V
  static constexpr int STAGE = SCALES_AT + 2 * SCALES;
  static constexpr int WORK = KV == AISP_KV_FP8 ? 2 * 16 * ROW_STRIDE : 0; // the block as bf16
  static constexpr int WARP_BYTES = RING * STAGE + WORK;
};

struct Call {
  aisp_kv_layer kv;
  aisp_decode_args args;
  int group;       // query heads a kv head
  int max_splits;
};

template <int D, int KV, int NT, int RING>
__host__ __device__ constexpr int shared_bytes() {
  constexpr int ring = WARPS * Shape<D, KV, RING>::WARP_BYTES;
  constexpr int exchange = WARPS * NT * 8 * D * 4;
  return ring > exchange ? ring : exchange;
}

// Keys and values of 4 bits become operands in registers. Sums over dimensions may take them in any order and rows of V^T
// may stand in any order, so the order is such that a lane's codes lie in whole words of 8 values where they can:
// of a key, lane c of four takes words [c D / 32, (c + 1) D / 32); of a value, lane group r of eight takes WHOLE words from
// r WHOLE on and, if D is an odd multiple of 32, half of one of the last four.
template <int D>
constexpr int WHOLE = D / 64;

// First of the two dimensions that this lane holds of Q^T, and of a key, in register i of step j.
template <int D, int KV>
__device__ inline int key_dim(int j, int i) {
  const int lane = threadIdx.x & 31;
  return KV == AISP_KV_FP4 ? lane % 4 * (D / 4) + j * 4 + i * 2 : j * 16 + i * 8 + lane % 4 * 2;
}

// Where dimension d of O^T stands: row of a step's 16, steps in order.
template <int D, int KV>
__device__ inline int value_place(int d) {
  if constexpr (KV != AISP_KV_FP4) return d;
  const int word = d / 8, at = d % 8;
  if constexpr (WHOLE<D> > 0) {
    if (word < 8 * WHOLE<D>) return (word % WHOLE<D> * 4 + at / 2) * 16 + at % 2 * 8 + word / WHOLE<D>;
  }
  return (WHOLE<D> * 4 + at % 4 / 2) * 16 + at % 2 * 8 + (word - 8 * WHOLE<D>) * 2 + at / 4;
}

// score = K Q^T of 16 positions, out of codes [16, D / 2] and scales [16, D / 16] in shared memory.
template <int D, int NT>
__device__ inline void fp4_scores(float (&score)[NT][4], const uint32_t (&q)[NT][D / 16][2], uint32_t codes_at, uint32_t scales_at) {
  const int lane = threadIdx.x & 31, column = lane % 4;
  uint32_t code[2][D / 32], factor[2];
#pragma unroll
  for (int h = 0; h < 2; h++) shared_words(code[h], codes_at + (lane / 4 + 8 * h) * (D / 2) + column * (D / 8));
#pragma unroll
  for (int w = 0; w < D / 32; w++) {
    if (w % 2 == 0 || D % 64 != 0) {
#pragma unroll
      for (int h = 0; h < 2; h++)
        factor[h] = e2m1_factor(shared_2(scales_at + ((lane / 4 + 8 * h) * (D / 16) + (column * (D / 32) + w) / 2) * 2) * 0x10001u);
    }
#pragma unroll
    for (int u = 0; u < 2; u++) {
      uint32_t a[4]; // positions by 16 dimensions
#pragma unroll
      for (int i = 0; i < 4; i++) a[i] = e2m1_pair(code[i % 2][w], 2 * u + i / 2, factor[i % 2]);
#pragma unroll
      for (int nt = 0; nt < NT; nt++) mma_bf16(score[nt], a[0], a[1], a[2], a[3], q[nt][2 * w + u][0], q[nt][2 * w + u][1]);
    }
  }
}

// O^T += V^T P^T of 16 positions, of which those from `keep` on may hold anything.
template <int D, int NT>
__device__ inline void fp4_values(float (&o)[D / 16][NT][4], const uint32_t (&p)[NT][2], uint32_t codes_at, int stride,
                                  uint32_t scales_at, int keep) {
  const int r = (threadIdx.x & 31) / 4, first = (threadIdx.x & 3) * 2; // positions first, first + 1 and 8 more
  auto factor_of = [&](int word, int t) {
    uint32_t pair = 0;
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const int position = first + e + 8 * t;
      const uint32_t scale = shared_2(scales_at + (position * (D / 16) + word / 2) * 2);
      pair |= (position < keep ? scale : 0u) << 16 * e;
    }
    return e2m1_factor(pair);
  };
  // Of one word, `steps` rows of 16: even dimensions of both positions, then odd ones.
  auto multiply = [&](int first_step, int steps, const uint32_t (&even)[2], const uint32_t (&odd)[2], const uint32_t (&factor)[2]) {
#pragma unroll
    for (int j = 0; j < steps; j++) {
      const uint32_t a[4] = {e2m1_pair(even[0], j, factor[0]), e2m1_pair(odd[0], j, factor[0]),
                             e2m1_pair(even[1], j, factor[1]), e2m1_pair(odd[1], j, factor[1])};
#pragma unroll
      for (int nt = 0; nt < NT; nt++) mma_bf16(o[first_step + j][nt], a[0], a[1], a[2], a[3], p[nt][0], p[nt][1]);
    }
  };
  uint32_t even[2], odd[2], factor[2];
  if constexpr (WHOLE<D> > 0) {
    uint32_t code[4][WHOLE<D>];
#pragma unroll
    for (int i = 0; i < 4; i++) shared_words(code[i], codes_at + (first + i % 2 + i / 2 * 8) * stride + r * WHOLE<D> * 4);
#pragma unroll
    for (int w = 0; w < WHOLE<D>; w++) {
#pragma unroll
      for (int t = 0; t < 2; t++) {
        even[t] = __byte_perm(code[2 * t][w], code[2 * t + 1][w], 0x5410);
        odd[t] = __byte_perm(code[2 * t][w], code[2 * t + 1][w], 0x7632);
        if (w % 2 == 0 || WHOLE<D> % 2 != 0) factor[t] = factor_of(r * WHOLE<D> + w, t);
      }
      multiply(4 * w, 4, even, odd, factor);
    }
  }
  if constexpr (D % 64 != 0) {
    const int word = 8 * WHOLE<D> + r / 2;
#pragma unroll
    for (int t = 0; t < 2; t++) {
      const uint32_t one = shared_4(codes_at + (first + 8 * t) * stride + word * 4);
      const uint32_t other = shared_4(codes_at + (first + 1 + 8 * t) * stride + word * 4);
      even[t] = __byte_perm(one, other, 0x5410) >> r % 2 * 8;
      odd[t] = __byte_perm(one, other, 0x7632) >> r % 2 * 8;
      factor[t] = factor_of(word, t);
    }
    multiply(4 * WHOLE<D>, 2, even, odd, factor);
  }
}


// Where the warps of a split meet.
template <int NT>
struct Meet {
  float max[WARPS][NT * 8], sum[WARPS][NT * 8];
  int is_last;
};

// Splits that hold positions of a context.
struct Splits {
  int begin, end;
  int first_position; // within the sliding window
};
__device__ inline Splits splits_of(const aisp_decode_args &args, int context) {
  const int first = args.sliding_window > 0 && context > args.sliding_window ? context - args.sliding_window : 0;
  return {first / AISP_SPLIT_SIZE, (context + AISP_SPLIT_SIZE - 1) / AISP_SPLIT_SIZE, first};
}

// What differs between callers:
//   newest_position()  returns once queries can be read and the newest position stands in the pool; all before it are there
//   HAS_NEWEST         the newest position need not be in the pool: newest_row() writes the bytes of its K (0) or V (1), and
//                      of their scales, to shared memory; a warp calls it
//   query(h)           bf16 [D] of a head of the group
//   sync()             a barrier of the four warps
//   store(i, x)        value i of the group's [heads, D]; whole warps call it with neighbouring i
//   store(i, ab, cd)   the same for four as pairs of bf16
// `thread` is 0..127; `shared` and `meet` are the four warps' own. NT: groups of 8 heads.
template <int D, int KV, int NT, int RING, class Caller>
__device__ inline void attend_split(const Call &call, int s, int kv_head, int split, int context, const Splits &splits, int thread,
                                    uint8_t *shared, Meet<NT> *meet, Caller &caller) {
  using Sh = Shape<D, KV, RING>;
  const aisp_decode_args &args = call.args;
  const int lane = thread & 31, warp = thread >> 5;
  const int group = call.group, num_heads = args.num_heads;
  const int begin = splits.first_position;

  // Blocks of 16 positions that this warp walks.
  const int warp_begin = split * AISP_SPLIT_SIZE + warp * WARP_POSITIONS;
  const int walk_begin = max(warp_begin, begin / AISP_BLOCK_SIZE * AISP_BLOCK_SIZE);
  const int walk_end = min(warp_begin + WARP_POSITIONS, context);
  const int num_blocks = walk_end > walk_begin ? (walk_end - walk_begin + AISP_BLOCK_SIZE - 1) / AISP_BLOCK_SIZE : 0;
  const int32_t *block_table = args.block_tables + (int64_t)s * args.max_blocks + walk_begin / AISP_BLOCK_SIZE;
  const uint32_t ring = shared_address(shared) + warp * Sh::WARP_BYTES;

  auto fill = [&](int i) {
    if (i < num_blocks) {
      const int64_t at = (int64_t)block_table[i] * call.kv.num_kv_heads + kv_head; // of a block's head
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
  int filled = 0;
#pragma unroll 1
  for (; filled < RING && filled < early; filled++) fill(filled);
  caller.newest_position();
#pragma unroll 1
  for (; filled < RING; filled++) fill(filled);

  // Q^T as the operand of columns: column h = lane / 4 of each group of eight.
  constexpr int KSTEPS = D / 16;
  uint32_t q[NT][KSTEPS][2];
#pragma unroll
  for (int nt = 0; nt < NT; nt++) {
    const int h = nt * 8 + lane / 4;
#pragma unroll
    for (int j = 0; j < KSTEPS; j++)
#pragma unroll
      for (int i = 0; i < 2; i++)
        q[nt][j][i] = h < group ? *reinterpret_cast<const uint32_t *>(caller.query(h) + key_dim<D, KV>(j, i)) : 0u;
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
  constexpr float LATER = KV == AISP_KV_FP4 ? E2M1_LATER : 1.0f; // of keys and of values
  const float scale = args.scale * 1.44269504f * LATER;            // exponents are taken to base 2

#pragma unroll 1
  for (int i = 0; i < num_blocks; i++) {
    copy_async_wait<RING - 1>();
    __syncwarp();
    const uint32_t stage = ring + i % RING * Sh::STAGE;
    if constexpr (Caller::HAS_NEWEST) {
      if (i == newest) {
        const int row = (context - 1) % AISP_BLOCK_SIZE;
        constexpr int SCALE = Sh::SCALES / 16;
        caller.newest_row(0, stage + row * Sh::K_STRIDE, Sh::ROW, stage + Sh::SCALES_AT + row * SCALE, SCALE);
        caller.newest_row(1, stage + Sh::HALF + row * Sh::V_STRIDE, Sh::ROW, stage + Sh::SCALES_AT + Sh::SCALES + row * SCALE, SCALE);
        __syncwarp();
      }
    }
    uint32_t k_at = stage, v_at = stage + Sh::HALF;
    if constexpr (KV == AISP_KV_FP8) {
      k_at = ring + RING * Sh::STAGE;
      v_at = k_at + 16 * Sh::ROW_STRIDE;
#pragma unroll
      for (int p = lane; p < 2 * D; p += 32) { // 16 codes
        const int half = p / D, piece = p % D, row = piece / (D / 16), column = piece % (D / 16);
        const uint4 codes = shared_16(stage + half * Sh::HALF + piece * 16);
        uint32_t w[8];
        e4m3x4_to_bf16(codes.x, w[0], w[1]);
        e4m3x4_to_bf16(codes.y, w[2], w[3]);
        e4m3x4_to_bf16(codes.z, w[4], w[5]);
        e4m3x4_to_bf16(codes.w, w[6], w[7]);
        const uint32_t to = (half ? v_at : k_at) + row * Sh::ROW_STRIDE + column * 32;
        asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]) : "memory");
        asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(to + 16), "r"(w[4]), "r"(w[5]), "r"(w[6]), "r"(w[7]) : "memory");
      }
      __syncwarp();
    }

    float score[NT][4];
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
      for (int j = 0; j < 4; j++) score[nt][j] = 0;
    if constexpr (KV == AISP_KV_FP4) {
      fp4_scores<D, NT>(score, q, k_at, stage + Sh::SCALES_AT);
    } else {
      const uint32_t matrix_row = lane % 16 * Sh::ROW_STRIDE + lane / 16 * 16;
#pragma unroll
      for (int j = 0; j < KSTEPS; j++) {
        uint32_t a[4]; // positions by 16 dimensions
        ldmatrix_x4(a, k_at + matrix_row + j * 32);
#pragma unroll
        for (int nt = 0; nt < NT; nt++) mma_bf16(score[nt], a[0], a[1], a[2], a[3], q[nt][j][0], q[nt][j][1]);
      }
    }

    // score[nt][0, 1]: position lane / 4, heads 2 (lane % 4) and the next; [2, 3]: position + 8.
    const int position = walk_begin + i * AISP_BLOCK_SIZE + lane / 4;
    const bool in[2] = {position >= begin && position < context, position + 8 >= begin && position + 8 < context};
    float k_scale[2] = {scale, scale}, v_scale[2] = {1, 1};
    if constexpr (KV == AISP_KV_FP8) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float ks, vs;
        asm volatile("ld.shared.f32 %0, [%1];" : "=f"(ks) : "r"(stage + Sh::SCALES_AT + (lane / 4 + 8 * h) * 4) : "memory");
        asm volatile("ld.shared.f32 %0, [%1];" : "=f"(vs) : "r"(stage + Sh::SCALES_AT + 64 + (lane / 4 + 8 * h) * 4) : "memory");
        k_scale[h] = in[h] ? scale * ks : 0.0f;
        v_scale[h] = in[h] ? vs : 0.0f;
      }
    }
    uint32_t p[NT][2];
    bool moved = false;
    float shrink[NT][2];
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
#pragma unroll
      for (int j = 0; j < 4; j++) score[nt][j] = in[j / 2] ? score[nt][j] * k_scale[j / 2] : NEVER;
#pragma unroll
      for (int c = 0; c < 2; c++) {
        float most = fmaxf(score[nt][c], score[nt][c + 2]);
#pragma unroll
        for (int offset = 4; offset < 32; offset <<= 1) most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, offset));
        const float next = fmaxf(running_max[nt][c], most);
        shrink[nt][c] = running_max[nt][c] == next ? 1.0f : exp2_fast(running_max[nt][c] - next);
        moved |= running_max[nt][c] != next;
        running_max[nt][c] = next;
        const float base = next == NEVER ? 0.0f : next;
        score[nt][c] = exp2_fast(score[nt][c] - base);
        score[nt][c + 2] = exp2_fast(score[nt][c + 2] - base);
        // A lane sums its own positions; lanes meet at the end.
        running_sum[nt][c] = running_sum[nt][c] * shrink[nt][c] + (score[nt][c] + score[nt][c + 2]);
      }
      // P^T from positions-by-heads to heads-by-positions, the operand of columns.
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const uint32_t two = pack_bf16(score[nt][2 * h] * v_scale[h], score[nt][2 * h + 1] * v_scale[h]);
        asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(p[nt][h]) : "r"(two));
      }
    }
    if (__any_sync(ALL_LANES, moved)) {
#pragma unroll
      for (int j = 0; j < D / 16; j++)
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
          for (int e = 0; e < 4; e++) o[j][nt][e] *= shrink[nt][e % 2];
    }
    // V [16 positions, D] read transposed: rows become dimensions.
    // Positions of the last block that were never written may hold anything, and 0 * NaN would stay.
    const int keep = context - (walk_begin + i * AISP_BLOCK_SIZE);
    if constexpr (KV == AISP_KV_FP4) {
      fp4_values<D, NT>(o, p, v_at, Sh::V_STRIDE, stage + Sh::SCALES_AT + Sh::SCALES, keep);
    } else {
      if (keep < 16) {
        for (int piece = lane; piece < (16 - keep) * (D / 8); piece += 32) {
          const uint32_t to = v_at + (keep + piece / (D / 8)) * Sh::ROW_STRIDE + piece % (D / 8) * 16;
          asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};" ::"r"(to), "r"(0) : "memory");
        }
        __syncwarp();
      }
      const uint32_t transposed = (lane % 8 + lane / 16 * 8) * Sh::ROW_STRIDE + lane / 8 % 2 * 16;
#pragma unroll
      for (int j = 0; j < D / 16; j++) {
        uint32_t a[4];
        ldmatrix_x4_trans(a, v_at + transposed + j * 32);
#pragma unroll
        for (int nt = 0; nt < NT; nt++) mma_bf16(o[j][nt], a[0], a[1], a[2], a[3], p[nt][0], p[nt][1]);
      }
    }
    __syncwarp();
    fill(i + RING);
  }
  copy_async_wait<0>();

  // The warps' results meet: maxima and sums first, then each warp's O, scaled to the common maximum.
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
    }
  caller.sync(); // also: the rings are free
  float *exchange = reinterpret_cast<float *>(shared); // [WARPS][heads][D]
#pragma unroll
  for (int nt = 0; nt < NT; nt++)
#pragma unroll
    for (int c = 0; c < 2; c++) {
      const int h = nt * 8 + lane % 4 * 2 + c;
      float most = NEVER;
#pragma unroll
      for (int w = 0; w < WARPS; w++) most = fmaxf(most, meet->max[w][h]);
      const float by = running_max[nt][c] == NEVER ? 0.0f : exp2_fast(running_max[nt][c] - most) * LATER;
      if (h < group) {
#pragma unroll
        for (int j = 0; j < D / 16; j++)
#pragma unroll
          for (int half = 0; half < 2; half++)
            exchange[(warp * group + h) * D + j * 16 + half * 8 + lane / 4] = o[j][nt][c + 2 * half] * by;
      }
    }
  caller.sync();

  const int num_splits = splits.end - splits.begin;
  // Of each split and head: O, and behind all of those the maximum and the sum.
  float *all_o = reinterpret_cast<float *>(static_cast<uint8_t *>(args.workspace) + COUNTER_BYTES);
  const int64_t first_row = ((int64_t)s * num_heads + kv_head * group) * call.max_splits;
  float *o_of = all_o + first_row * D;
  float2 *max_sum_of = reinterpret_cast<float2 *>(all_o + (int64_t)args.num_seqs * num_heads * call.max_splits * D) + first_row;
  for (int i = thread; i < group * D; i += WARPS * 32) {
    const int h = i / D, d = i % D;
    float most = meet->max[0][h];
#pragma unroll
    for (int w = 1; w < WARPS; w++) most = fmaxf(most, meet->max[w][h]);
    float sum = 0, value = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      sum += meet->max[w][h] == NEVER ? 0.0f : meet->sum[w][h] * exp2_fast(meet->max[w][h] - most);
      value += exchange[(w * group + h) * D + value_place<D, KV>(d)];
    }
    if (num_splits == 1) {
      caller.store(i, value / sum);
    } else {
      if (d == 0) __stcg(max_sum_of + h * call.max_splits + split, make_float2(most, sum));
      __stcg(o_of + ((int64_t)h * call.max_splits + split) * D + d, value);
    }
  }
  if (num_splits == 1) return;

  __threadfence();
  caller.sync();
  int *counter = static_cast<int *>(args.workspace) + (int64_t)s * call.kv.num_kv_heads + kv_head;
  if (thread == 0) meet->is_last = atomicAdd(counter, 1) == num_splits - 1;
  caller.sync();
  if (!meet->is_last) return;
  __threadfence();
  // Maxima and sums come to shared memory if they fit, in place of the exchange, which is no longer read.
  float2 *near = reinterpret_cast<float2 *>(shared);
  const bool fits = (int64_t)group * num_splits * 8 <= shared_bytes<D, KV, NT, RING>();
  if (fits) {
    for (int i = thread; i < group * num_splits; i += WARPS * 32)
      near[i] = __ldcg(max_sum_of + i / num_splits * call.max_splits + splits.begin + i % num_splits);
    caller.sync();
  }
  for (int i = thread; i < group * (D / 4); i += WARPS * 32) {
    const int h = i / (D / 4), d = i % (D / 4) * 4;
    auto max_sum = [&](int at) {
      return fits ? near[h * num_splits + at] : __ldcg(max_sum_of + h * call.max_splits + splits.begin + at);
    };
    float most = NEVER;
    for (int at = 0; at < num_splits; at++) most = fmaxf(most, max_sum(at).x);
    const float4 *from = reinterpret_cast<const float4 *>(o_of + ((int64_t)h * call.max_splits + splits.begin) * D + d);
    float sum = 0;
    float4 value = make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (int at = 0; at < num_splits; at++) {
      const float4 part = __ldcg(from + at * (D / 4));
      const float2 own = max_sum(at);
      const float by = exp2_fast(own.x - most);
      sum += own.y * by;
      value.x += part.x * by, value.y += part.y * by, value.z += part.z * by, value.w += part.w * by;
    }
    caller.store(h * D + d, pack_bf16(value.x / sum, value.y / sum), pack_bf16(value.z / sum, value.w / sum));
  }
  if (thread == 0) *counter = 0; // for the next call
}

} // namespace aisp::decode
