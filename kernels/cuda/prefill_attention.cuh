// What both kernels of prefill attention share: which rows a warp has, tiles of keys and values in shared memory and how they get
// there from paged blocks, and the softmax that goes along.
#pragma once

#include "hopper.cuh"

namespace aisp::prefill {

constexpr int TILE = 64;             // positions
constexpr int SCALES = TILE + 4 * 4; // floats of a table of theirs, see Scales
constexpr float NEVER = -INFINITY;
constexpr float LOG2_E = 1.44269504f;
constexpr int NO_WINDOW = 0x3fffffff;

struct Call {
  aisp_kv_layer kv;
  aisp_prefill_args args;
  int group;
};

// fp8 by wgmma: what is multiplied is f16, into which the card turns codes by one instruction a pair. Keys and values stand eightfold
// in it, so that the scale of one whose largest entry is 0.004 or more is a normal number (of less it has fewer bits: 2 % at 0.0001). One
// whose largest entry is beyond 8176 is scaled down to that, which f16 holds; queries are cut at 65504.
template <int KV, bool WGMMA>
__host__ __device__ constexpr bool in_f16() { return WGMMA && KV == AISP_KV_FP8; }
constexpr float F16_TIMES = 8, MOST_F16_SCALE = 146; // times 448, the largest code, 65408
// By what scores and results are to be multiplied later, as keys and values were not.
template <int KV, bool WGMMA>
__host__ __device__ constexpr float later() { return in_f16<KV, WGMMA>() ? 1 / F16_TIMES : KV == AISP_KV_FP4 ? E2M1_LATER : 1.0f; }

// Where 8 values of a position lie in a tile of keys or values. WGMMA: rows of 64 values, pieces swizzled by row % 8, one such
// tile after the other; else whole rows, apart enough that banks differ.
template <int D, bool WGMMA>
__host__ __device__ constexpr int row_stride() { return WGMMA ? 128 : D * 2 + 16; }
template <int D, bool WGMMA>
__host__ __device__ constexpr int tile_bytes() { return WGMMA ? TILE * D * 2 : TILE * row_stride<D, WGMMA>(); }
template <bool WGMMA>
__host__ __device__ constexpr int stages() { return WGMMA ? 4 : 2; }
// Warps that multiply, each 16 rows; by wgmma in groups of four, of which heads of 64 leave registers for a third.
template <int D, bool WGMMA>
__host__ __device__ constexpr int warps() { return WGMMA && D == 64 ? 12 : 8; }
// Warps that copy beside them; codes are turned on the way.
template <int KV, bool WGMMA>
__host__ __device__ constexpr int copy_warps() { return !WGMMA ? 0 : KV == AISP_KV_BF16 ? 4 : 8; }
template <int D, int KV, bool WGMMA>
__host__ __device__ constexpr int threads() { return 32 * (warps<D, WGMMA>() + copy_warps<KV, WGMMA>()); }
// Tiles of keys and values; with them barriers, or by mma scales of fp8.
template <int D, bool WGMMA>
__host__ __device__ constexpr int shared_bytes() { return stages<WGMMA>() * (2 * tile_bytes<D, WGMMA>() + (WGMMA ? 16 : 2 * SCALES * 4)); }
template <int D, bool WGMMA>
__device__ inline uint32_t place_of(int row, int piece) {
  return WGMMA ? piece / 8 * TILE * 128 + row * 128 + ((piece ^ row) & 7) * 16 : row * row_stride<D, WGMMA>() + piece * 16;
}

// The rows of a block: a row is a token and one of the heads that share a kv head. A lane has row `lane / 4` of its warp's 16, and the
// eighth after it; TOGETHER of them, aligned, are multiplied together.
template <int D, bool WGMMA>
struct Rows {
  static constexpr int COUNT = 16 * warps<D, WGMMA>(), TOGETHER = WGMMA ? 64 : 16;
  int position[2];   // -1 of a row that does not exist
  int64_t at[2];     // of its first value in q and out
  int low, high;     // least and greatest position of those that are multiplied together; high is -1 where none exists
  int begin, end;    // tiles that the block wants

  __device__ Rows(const Call &call, int row_tile, int first_token, int num_queries, int context, int window, int kv_head, int warp, int lane) {
    const int group = call.group, num_rows = num_queries * group, first_position = context - num_queries;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int row = row_tile * COUNT + warp * 16 + lane / 4 + 8 * i;
      position[i] = row < num_rows ? first_position + row / group : -1;
      at[i] = ((int64_t)(first_token + row / group) * call.args.num_heads + kv_head * group + row % group) * D;
    }
    const int first = row_tile * COUNT + warp * 16 / TOGETHER * TOGETHER;
    low = first_position + first / group;
    high = first < num_rows ? first_position + (min(first + TOGETHER, num_rows) - 1) / group : -1;
    const int block_low = first_position + row_tile * COUNT / group;
    const int block_high = first_position + (min(row_tile * COUNT + COUNT, num_rows) - 1) / group;
    begin = max(block_low - window + 1, 0) / TILE, end = block_high / TILE + 1;
  }
  // Whether one of those that are multiplied together sees a position of the tile; whether all see all.
  __device__ inline bool sees(int tile, int window) const { return tile * TILE <= high && (tile + 1) * TILE > low - window + 1; }
  __device__ inline bool sees_all(int tile, int window) const { return (tile + 1) * TILE - 1 <= low && tile * TILE > high - window; }
  // Scores of positions that a row does not see.
  __device__ inline void mask(float (&score)[TILE / 2], int tile, int window, int lane) const {
#pragma unroll
    for (int i = 0; i < TILE / 2; i++) {
      const int seen = tile * TILE + i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (seen > position[i / 2 % 2] || seen <= position[i / 2 % 2] - window) score[i] = NEVER;
    }
  }
  template <bool F16>
  __device__ inline void load_queries(const Call &call, uint32_t (&q)[D / 16][4], int lane) const {
#pragma unroll
    for (int j = 0; j < D / 16; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const auto *from = reinterpret_cast<const __nv_bfloat16 *>(call.args.q) + at[i % 2] + j * 16 + i / 2 * 8 + lane % 4 * 2;
        q[j][i] = position[i % 2] < 0 ? 0u : *reinterpret_cast<const uint32_t *>(from);
        if constexpr (F16) q[j][i] = bf16x2_to_f16(q[j][i]);
      }
  }
  // `sum` is that of this lane's part of each row.
  __device__ inline void store(const Call &call, const float (&o)[D / 2], const float (&sum)[2], float by, int lane) const {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float whole = row_sum(sum[i]), factor = by / whole;
      if (position[i] < 0) continue;
      uint32_t *to = reinterpret_cast<uint32_t *>(reinterpret_cast<__nv_bfloat16 *>(call.args.out) + at[i] + lane % 4 * 2);
#pragma unroll
      for (int j = 0; j < D / 8; j++) to[j * 4] = pack_bf16(o[4 * j + 2 * i] * factor, o[4 * j + 2 * i + 1] * factor);
    }
  }
  static __device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
  }
};

// Starts a kernel: a block for so many rows of a sequence's kv head, those of the longest contexts first.
template <int D, int KV, bool WGMMA>
int start_kernel(const aisp_ctx *ctx, void (*kernel)(Call), const Call &call, aisp_stream stream) {
  const int64_t rows = (int64_t)call.args.max_query_len * call.group;
  const dim3 grid((unsigned)ceil_div(rows, Rows<D, WGMMA>::COUNT), call.kv.num_kv_heads, call.args.num_seqs);
  return launch(ctx, kernel, grid, threads<D, KV, WGMMA>(), shared_bytes<D, WGMMA>(), stream, call);
}
template <int D, bool WGMMA>
int raise_kernel_limit(void (*kernel)(Call)) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes<D, WGMMA>());
}

template <int N, typename T>
__device__ inline T (&part_of(T *values, int index))[N] { return *reinterpret_cast<T(*)[N]>(values + index * N); }

// Softmax of two rows a lane, tile after tile: the maximum so far, and this lane's part of the sum below it.
struct RunningSoftmax {
  float max[2] = {NEVER, NEVER}, sum[2] = {0, 0};

  // Turns scores into weights; what came of earlier tiles is to be multiplied by `shrink`. `scale` is for powers of two.
  __device__ inline void weigh(float (&score)[TILE / 2], float scale, float (&shrink)[2]) {
    float most[4] = {max[0], max[1], NEVER, NEVER};
#pragma unroll
    for (int i = 0; i < TILE / 2; i++) most[i / 2 % 2 + i % 2 * 2] = fmaxf(most[i / 2 % 2 + i % 2 * 2], score[i]);
    float floor[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float m = fmaxf(most[i], most[i + 2]);
      m = fmaxf(m, __shfl_xor_sync(ALL_LANES, m, 1));
      m = fmaxf(m, __shfl_xor_sync(ALL_LANES, m, 2));
      shrink[i] = max[i] == m ? 1.0f : exp2_fast((max[i] - m) * scale);
      max[i] = m;
      floor[i] = m == NEVER ? 0.0f : m * scale;
      sum[i] *= shrink[i];
    }
#pragma unroll
    for (int i = 0; i < TILE / 2; i++) {
      score[i] = exp2_fast(fmaf(score[i], scale, -floor[i / 2 % 2]));
      sum[i / 2 % 2] += score[i];
    }
  }
};

// Of fp8 by mma: the scales of a tile's keys or values, as lanes want them: a lane's positions, 8 n + lane % 4 * 2 + {0, 1}, follow each other.
struct Scales {
  static constexpr int A_LANE = TILE / 4, STRIDE = SCALES / 4; // so that banks differ
  float of[A_LANE];

  static __device__ inline int place(int position) { return position % 8 / 2 * STRIDE + position / 8 * 2 + position % 2; }
  __device__ inline Scales(const float *table, int lane) {
#pragma unroll
    for (int i = 0; i < A_LANE / 4; i++) {
      const float4 v = *reinterpret_cast<const float4 *>(table + lane % 4 * STRIDE + 4 * i);
      of[4 * i] = v.x, of[4 * i + 1] = v.y, of[4 * i + 2] = v.z, of[4 * i + 3] = v.w;
    }
  }
  __device__ inline void multiply(float (&score)[TILE / 2]) const {
#pragma unroll
    for (int i = 0; i < TILE / 2; i++) score[i] *= of[i / 4 * 2 + i % 2];
  }
};

// N words at a multiple of their size.
template <int N>
__device__ inline void load_words(uint32_t (&words)[N], const void *from) {
  if constexpr (N == 1) words[0] = *static_cast<const uint32_t *>(from);
  if constexpr (N == 2) {
    const uint2 v = *static_cast<const uint2 *>(from);
    words[0] = v.x, words[1] = v.y;
  }
  if constexpr (N == 4) {
    const uint4 v = *static_cast<const uint4 *>(from);
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
  }
}

// The pieces of a row, of so many values, that a thread copies of each tile. Blocks are looked up a tile ahead.
template <int D, int KV, bool WGMMA>
struct Pieces {
  static constexpr int PIECE = WGMMA && KV != AISP_KV_BF16 ? 16 : 8, HALVES = PIECE / 8;
  static constexpr int WORDS = KV == AISP_KV_FP8 ? PIECE / 4 : PIECE / 8; // of codes
  static constexpr int OTHERS = WGMMA ? warps<D, WGMMA>() * 32 : 0;       // threads that do not copy
  static constexpr int COPIERS = WGMMA ? 128 : warps<D, WGMMA>() * 32;    // that share a tile
  static constexpr int A_ROW = D / PIECE, TURNS = TILE * A_ROW / COPIERS;
  static constexpr int A_TURN = COPIERS / A_ROW;                                          // rows
  static constexpr int A_BLOCK = A_TURN < AISP_BLOCK_SIZE ? AISP_BLOCK_SIZE / A_TURN : 1; // turns
  // A thread's piece and row % 8 are the same in every turn.
  static constexpr bool EVEN = COPIERS % A_ROW == 0 && A_TURN % 8 == 0;
  int32_t block[TURNS / A_BLOCK];
  uint32_t codes[2][TURNS][WORDS]; // of keys, of values
  uint32_t scales[2][TURNS];       // of fp4, and of fp8 by wgmma
  // Of fp8 by mma, which multiplies by them afterwards: a thread has that of one position, of its key or of its value.
  static constexpr bool TABLE = KV == AISP_KV_FP8 && !WGMMA;
  int32_t scale_block;
  float scale;

  static __device__ inline int me() { return ((int)threadIdx.x - OTHERS) % COPIERS; }
  static __device__ inline int row(int turn) { return EVEN ? turn * A_TURN + me() / A_ROW : (turn * COPIERS + me()) / A_ROW; }
  static __device__ inline int piece(int turn) { return EVEN ? me() % A_ROW : (turn * COPIERS + me()) % A_ROW; }
  // Of its first 8 values; the others, in the same eighth of 128 bytes, are at ^ 16.
  static __device__ inline uint32_t place(int turn) {
    if (!EVEN) return place_of<D, WGMMA>(row(turn), piece(turn) * HALVES);
    return place_of<D, WGMMA>(me() / A_ROW, piece(0) * HALVES) + turn * A_TURN * row_stride<D, WGMMA>();
  }
  // Row of the pool's block and head.
  static __device__ inline int row_in_block(int turn) {
    return EVEN ? turn * A_TURN % AISP_BLOCK_SIZE + me() / A_ROW % AISP_BLOCK_SIZE : row(turn) % AISP_BLOCK_SIZE;
  }
  __device__ inline void look_up(const int32_t *block_table, int tile, int context) {
#pragma unroll
    for (int i = 0; i < TURNS; i += A_BLOCK) {
      // Of a turn of 16 rows or fewer, it is the same for all threads.
      const int position = tile * TILE + (A_TURN <= AISP_BLOCK_SIZE ? i * A_TURN : row(i));
      block[i / A_BLOCK] = position < context ? block_table[position / AISP_BLOCK_SIZE] : 0;
    }
    if constexpr (TABLE) {
      const int position = tile * TILE + me() % TILE;
      scale_block = position < context && me() < 2 * TILE ? block_table[position / AISP_BLOCK_SIZE] : -1;
    }
  }
  // Asks for a tile; bf16 goes to its place by itself. Positions beyond the context are zeros.
  __device__ inline void load(const Call &call, int kv_head, int tile, int context, uint32_t k_to, uint32_t v_to) {
    if (KV != AISP_KV_BF16 && (tile + 1) * TILE <= context) load<true>(call, kv_head, tile, context, k_to, v_to);
    else load<false>(call, kv_head, tile, context, k_to, v_to);
  }
  template <bool WHOLE>
  __device__ inline void load(const Call &call, int kv_head, int tile, int context, uint32_t k_to, uint32_t v_to) {
    constexpr int ROW_BYTES = kv_row_bytes(KV, D);
    const int num_kv_heads = call.kv.num_kv_heads;
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
      const bool valid = WHOLE || tile * TILE + row(i) < context;
      // Within a block 32 bits will do.
      const int64_t first = num_kv_heads * AISP_BLOCK_SIZE * ROW_BYTES * (int64_t)block[i / A_BLOCK];
      const int at = kv_head * AISP_BLOCK_SIZE + row_in_block(i), bytes = at * ROW_BYTES + piece(i) * (ROW_BYTES / A_ROW);
#pragma unroll
      for (int which = 0; which < 2; which++) {
        const auto *from = static_cast<const uint8_t *>(which ? call.kv.v : call.kv.k) + bytes + first;
        if constexpr (KV == AISP_KV_BF16) {
          copy_async_16((which ? v_to : k_to) + place(i), from, valid);
        } else {
          if (!valid) {
#pragma unroll
            for (int w = 0; w < WORDS; w++) codes[which][i][w] = 0;
            scales[which][i] = 0;
            continue;
          }
          load_words(codes[which][i], from);
          if constexpr (in_f16<KV, WGMMA>()) {
            const auto *scale = static_cast<const uint32_t *>(which ? call.kv.v_scales : call.kv.k_scales);
            scales[which][i] = (scale + at)[num_kv_heads * AISP_BLOCK_SIZE * (int64_t)block[i / A_BLOCK]];
          }
          if constexpr (KV == AISP_KV_FP4) {
            const auto *scale = static_cast<const uint16_t *>(which ? call.kv.v_scales : call.kv.k_scales);
            scales[which][i] = (scale + at * (D / 16) + piece(i) * HALVES / 2)[num_kv_heads * AISP_BLOCK_SIZE * (D / 16) * (int64_t)block[i / A_BLOCK]];
          }
        }
      }
    }
    if constexpr (TABLE) {
      const float *from = static_cast<const float *>(me() < TILE ? call.kv.k_scales : call.kv.v_scales);
      const int64_t at = ((int64_t)scale_block * num_kv_heads + kv_head) * AISP_BLOCK_SIZE + me() % AISP_BLOCK_SIZE;
      scale = scale_block < 0 ? 0.0f : from[at];
    }
  }
  // Puts what was asked for in its place, as bf16 or f16; of fp8 by mma the codes alone, and their scales to a table.
  __device__ inline void store(uint32_t k_to, uint32_t v_to, float *scale_to) {
    if (TABLE && me() < 2 * TILE) scale_to[me() / TILE * SCALES + Scales::place(me() % TILE)] = scale;
    if constexpr (KV != AISP_KV_BF16)
#pragma unroll
      for (int i = 0; i < TURNS; i++)
#pragma unroll
        for (int which = 0; which < 2; which++) {
          uint32_t factor = 0;
          if constexpr (KV == AISP_KV_FP4) factor = e2m1_factor(scales[which][i] * 0x10001u);
          if constexpr (in_f16<KV, WGMMA>()) {
            const float times = __uint_as_float(scales[which][i]) * F16_TIMES, by = times > MOST_F16_SCALE ? MOST_F16_SCALE : times; // NaN stays
            factor = pack_f16(by, by);
          }
#pragma unroll
          for (int half = 0; half < HALVES; half++) {
            uint32_t w[4];
            if constexpr (KV == AISP_KV_FP8) {
#pragma unroll
              for (int j = 0; j < 2; j++) {
                const uint32_t four = codes[which][i][half * 2 + j];
                if constexpr (in_f16<KV, WGMMA>()) {
                  e4m3x4_to_f16(four, w[2 * j], w[2 * j + 1]);
                  w[2 * j] = multiply_f16x2(w[2 * j], factor), w[2 * j + 1] = multiply_f16x2(w[2 * j + 1], factor);
                } else {
                  e4m3x4_to_bf16(four, w[2 * j], w[2 * j + 1]);
                }
              }
            } else {
#pragma unroll
              for (int j = 0; j < 4; j++) w[j] = e2m1_pair(codes[which][i][half], j, factor);
            }
            asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"((which ? v_to : k_to) + (place(i) ^ half * 16)), "r"(w[0]), "r"(w[1]),
                         "r"(w[2]), "r"(w[3]) : "memory");
          }
        }
  }
};

} // namespace aisp::prefill
