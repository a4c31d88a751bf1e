// Tiles of keys and values of prefill attention: where they lie in shared memory, and how they get there from paged blocks.
#pragma once

#include "hopper.cuh"

namespace aisp::prefill {

constexpr int WARPS = 8;  // that multiply
constexpr int TILE = 64;  // positions

struct Call {
  aisp_kv_layer kv;
  aisp_prefill_args args;
  int group;
};

// fp8 by wgmma: what is multiplied is f16, into which the card turns codes by one instruction a pair, exactly.
template <int KV, bool WGMMA>
__host__ __device__ constexpr bool in_f16() { return WGMMA && KV == AISP_KV_FP8; }

// Weights times the scales of values would be too small for it. Values beyond 57316 are cut there, as queries are beyond 65504.
constexpr float F16_RANGE = 512.0f;
__device__ inline float f16_range(float x) { return fabsf(x) > 65504.0f ? copysignf(65504.0f, x) : x; } // NaN stays

// Where 8 values of a position lie in a tile of keys or values. WGMMA: rows of 64 values, pieces swizzled by row % 8, one such
// tile after the other; else whole rows, apart enough that banks differ.
template <int D, bool WGMMA>
__host__ __device__ constexpr int row_stride() { return WGMMA ? 128 : D * 2 + 16; }
template <int D, bool WGMMA>
__host__ __device__ constexpr int tile_bytes() { return WGMMA ? TILE * D * 2 : TILE * row_stride<D, WGMMA>(); }
template <bool WGMMA>
__host__ __device__ constexpr int stages() { return WGMMA ? 4 : 2; }
// Warps that copy beside those that multiply; codes are turned on the way.
template <int KV, bool WGMMA>
__host__ __device__ constexpr int copy_warps() { return !WGMMA ? 0 : KV == AISP_KV_BF16 ? 4 : 8; }
template <int KV, bool WGMMA>
__host__ __device__ constexpr int threads() { return 32 * (WARPS + copy_warps<KV, WGMMA>()); }
// Tiles of keys and values, scales of fp8, barriers.
template <int D, bool WGMMA>
__host__ __device__ constexpr int shared_bytes() { return stages<WGMMA>() * (2 * (tile_bytes<D, WGMMA>() + TILE * 4) + 16); }
template <int D, bool WGMMA>
__device__ inline uint32_t place_of(int row, int piece) {
  return WGMMA ? piece / 8 * TILE * 128 + row * 128 + ((piece ^ row) & 7) * 16 : row * row_stride<D, WGMMA>() + piece * 16;
}

// The pieces of 8 values that a thread copies of each tile. Blocks are looked up a tile ahead.
template <int D, int KV, bool WGMMA>
struct Pieces {
  static constexpr int OTHERS = WGMMA ? WARPS * 32 : 0, COPIERS = threads<KV, WGMMA>() - OTHERS; // threads that do not copy, and that do
  static constexpr int A_ROW = D / 8, TURNS = TILE * A_ROW / COPIERS;
  static constexpr int A_TURN = COPIERS / A_ROW;                                       // rows
  static constexpr int A_BLOCK = A_TURN < AISP_BLOCK_SIZE ? AISP_BLOCK_SIZE / A_TURN : 1; // turns
  int32_t block[TURNS / A_BLOCK];
  uint2 codes[2][TURNS];     // of keys, of values
  uint32_t scales[2][TURNS]; // of fp4
  int32_t scale_block;       // of fp8: a thread has that of one position, of its key or of its value
  float scale;

  static __device__ inline int me() { return (int)threadIdx.x - OTHERS; }
  static __device__ inline int row(int turn) { return (turn * COPIERS + me()) / A_ROW; }
  static __device__ inline int piece(int turn) { return (turn * COPIERS + me()) % A_ROW; }
  __device__ inline void look_up(const int32_t *block_table, int tile, int context) {
#pragma unroll
    for (int i = 0; i < TURNS; i += A_BLOCK) {
      // Of a turn of 16 rows or fewer, it is the same for all threads.
      const int position = tile * TILE + (A_TURN <= AISP_BLOCK_SIZE ? i * A_TURN : row(i));
      block[i / A_BLOCK] = position < context ? block_table[position / AISP_BLOCK_SIZE] : 0;
    }
    if constexpr (KV == AISP_KV_FP8) {
      const int position = tile * TILE + me() % TILE;
      scale_block = position < context && me() < 2 * TILE ? block_table[position / AISP_BLOCK_SIZE] : -1;
    }
  }
  // Asks for a tile; bf16 goes to its place by itself.
  __device__ inline void load(const Call &call, int kv_head, int tile, int context, uint32_t k_to, uint32_t v_to) {
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
      const int position = tile * TILE + row(i);
      const bool valid = position < context;
      const int64_t at = ((int64_t)block[i / A_BLOCK] * call.kv.num_kv_heads + kv_head) * AISP_BLOCK_SIZE + position % AISP_BLOCK_SIZE;
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
      const float *from = static_cast<const float *>(me() < TILE ? call.kv.k_scales : call.kv.v_scales);
      const int64_t at = ((int64_t)scale_block * call.kv.num_kv_heads + kv_head) * AISP_BLOCK_SIZE + me() % AISP_BLOCK_SIZE;
      scale = scale_block < 0 ? 0.0f : from[at];
      if (in_f16<KV, WGMMA>() && me() >= TILE) scale = f16_range(scale * F16_RANGE);
    }
  }
  // Puts what was asked for in its place, as bf16 or f16; of fp8 the codes alone, and their scales to a table.
  __device__ inline void store(uint32_t k_to, uint32_t v_to, float *scale_to) {
    if (KV == AISP_KV_FP8 && me() < 2 * TILE) scale_to[me()] = scale;
    if constexpr (KV != AISP_KV_BF16)
#pragma unroll
      for (int i = 0; i < TURNS; i++)
#pragma unroll
        for (int which = 0; which < 2; which++) {
          uint32_t w[4];
          if constexpr (in_f16<KV, WGMMA>()) {
            e4m3x4_to_f16(codes[which][i].x, w[0], w[1]);
            e4m3x4_to_f16(codes[which][i].y, w[2], w[3]);
          } else if constexpr (KV == AISP_KV_FP8) {
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

} // namespace aisp::prefill
