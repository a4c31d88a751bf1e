// How many parts of equal size suit a card: the choice behind aisp_decode_splits, on the host.
#pragma once

#include <algorithm>

#include "decode_attention.cuh"

namespace aisp::decode {

struct Load {
  int sm_count;
  int blocks_per_sm;      // that a multiprocessor holds of those that walk their splits
  int64_t walks;          // sequences times kv heads: blocks if nothing is split
  int positions;          // of the longest context
  int bytes_per_position; // of K and V of a kv head
  bool next_is_small;
};

// Time of a number of splits in a model of a card, in that of one position of a block by itself (some 9 ns on an H200). Blocks
// come in rounds; a round takes as long as a walk by itself, or as the multiprocessor needs for the bytes of all that it holds.
// Fitted to times of 21 layers and 18 steps, whose best choices it misses by 0.9 % in the mean.
inline double time_of(const Load &load, int64_t splits) {
  constexpr double START = 350, EACH = 40, BYTES_AT_ONCE = 400, LEAST_SHARE = 0.4;
  const int64_t units = ceil_div(load.positions, SPLIT_UNIT), size = ceil_div(units, splits) * SPLIT_UNIT;
  const int64_t blocks = load.walks * ceil_div(load.positions, size), places = (int64_t)load.sm_count * load.blocks_per_sm;
  const double share = std::max(LEAST_SHARE, load.bytes_per_position / BYTES_AT_ONCE);
  auto round = [&](int64_t held) { return std::max(size + START, held * (size * share + EACH)); };
  const int64_t rest = blocks % places;
  return (double)(blocks / places) * round(load.blocks_per_sm) + (rest ? round(ceil_div(rest, load.sm_count)) : 0.0);
}

// Of a few sequences so many that all blocks of a warp come at once, or that their splits meet in a cluster; else the fastest.
inline int num_splits_for(const Load &load) {
  constexpr int SHORT = 2 * SPLIT_UNIT, IN_RING = 4 * SPLIT_UNIT, LONG = 16 * SPLIT_UNIT;
  const int64_t in_ring = ceil_div(load.positions, IN_RING), room = load.sm_count / load.walks;
  if (in_ring == 1) return 1;
  if (in_ring <= room) { // every block of a warp comes at once; shorter splits take multiprocessors that a large successor wants
    const int64_t shorter = load.next_is_small ? std::min<int64_t>({ceil_div(load.positions, SHORT), room, ANY_CLUSTER}) : 0;
    return (int)std::max(in_ring, shorter);
  }
  const int64_t least = ceil_div(load.positions, LONG); // a long walk among short ones keeps all waiting
  if (least <= ANY_CLUSTER && ANY_CLUSTER <= room) return ANY_CLUSTER;
  int64_t best = least;
  double best_time = time_of(load, least);
  for (int64_t splits = least + 1; splits <= in_ring; splits++)
    if (const double time = time_of(load, splits); time < best_time) best = splits, best_time = time;
  return (int)best;
}

} // namespace aisp::decode
