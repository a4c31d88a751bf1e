// Between products and decode attention: queries of a kv head's group, and its newest K and V, turned, in shared memory.
#pragma once

#include "rope.cuh"

namespace aisp {

constexpr int MAX_GROUP = 8; // query heads of a kv head

template <int D, int KV>
struct Newest {
  static constexpr int ROW = kv_row_bytes(KV, D), SCALES = kv_scale_bytes(KV, D); // as in the pool
  static constexpr int SCALES_ROOM = 16, ROOM = 2 * D + SCALES_ROOM;
  static_assert(SCALES <= SCALES_ROOM);
  static constexpr int Q_STRIDE = D + 8; // in values: lanes that read neighbouring heads do not meet in a bank
  static constexpr int BYTES = MAX_GROUP * Q_STRIDE * 2 + 2 * D * 4 + 2 * ROOM;

  __nv_bfloat16 *q; // [group][Q_STRIDE]
  float *natural;   // a K and a V in f32, on their way to 4 bits
  uint8_t *rows;    // a K and a V and their scales

  __device__ explicit Newest(uint8_t *at)
      : q(reinterpret_cast<__nv_bfloat16 *>(at)), natural(reinterpret_cast<float *>(q + MAX_GROUP * Q_STRIDE)), rows(reinterpret_cast<uint8_t *>(natural + 2 * D)) {}

  __device__ __nv_bfloat16 *query(int h) const { return q + h * Q_STRIDE; }
  // By a whole warp, as the others here.
  __device__ void put(const Head<pairs_a_lane(D)> &head, bool is_v) const {
    uint8_t *row = rows + is_v * ROOM, *scales = row + 2 * D;
    store_kv(head, {row, row, scales, scales, KV, 1, D}, KV, is_v, 0, 0, natural + is_v * D);
  }
  // To other places in shared memory.
  __device__ void copy_row(bool is_v, uint32_t to, uint32_t scales_to) const {
    const uint32_t from = shared_address(rows) + is_v * ROOM;
    each(ROW, [&](int i) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + i), "r"(shared_4(from + i)) : "memory"); });
    each(SCALES, [&](int i) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(scales_to + i), "r"(shared_4(from + 2 * D + i)) : "memory"); });
  }
  // To the pool.
  __device__ void store(const aisp_kv_layer &kv, int kv_head, int slot) const {
    const int64_t at = pool_row(kv, kv_head, slot);
    for (int is_v = 0; is_v < 2; is_v++) {
      const uint32_t from = shared_address(rows) + is_v * ROOM;
      auto *data = static_cast<uint8_t *>(is_v ? kv.v : kv.k) + at * ROW, *scales = static_cast<uint8_t *>(is_v ? kv.v_scales : kv.k_scales) + at * SCALES;
      each(ROW, [&](int i) { *reinterpret_cast<uint32_t *>(data + i) = shared_4(from + i); });
      each(SCALES, [&](int i) { *reinterpret_cast<uint32_t *>(scales + i) = shared_4(from + 2 * D + i); });
    }
  }

private:
  template <class Word>
  static __device__ void each(int bytes, Word word) {
    for (int i = (threadIdx.x & 31) * 4; i < bytes; i += 128) word(i);
  }
};

} // namespace aisp
