// From logits to token ids: the largest in two stages, and a draw under temperature, top-k, top-p and min-p without a sort.
//
// Bytes   argmax: the logits once. Draw: the logits three to six times, of which all but the first come from the L2.
// Launch  argmax: 64 blocks a row, then a warp a row. Draw: a block of 1024 threads a row.
// Sums    of probabilities are integers (the weight of a token relative to the best, in units of 2^-40), so they are exact
//         and in no order: the same draw on every run.
// Ties    the lower id is the likelier one.
//
// The draw. A logit becomes an order-preserving 32-bit key. top-k and top-p ask for the same thing: the largest key at
// which the count (or the weight) of all keys above reaches a target; a radix descent finds it in three
// passes of 11, 11 and 10 bits over histograms in shared memory. The token of `uniform` is found the same way, by its weight.
#include "common.cuh"

namespace aisp {
namespace {

constexpr int PARTS = 64;
constexpr int NO_TOKEN = 0x7fffffff;
constexpr int NAN_FOUND = -1;

struct Best {
  float value;
  int at;
};
__device__ inline Best better(Best a, Best b) { return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a; }
// A logit as a candidate; one that is not a number wins over all others.
__device__ inline Best candidate(float value, int at) { return value == value ? Best{value, at} : Best{INFINITY, NAN_FOUND}; }
// What is reported.
__device__ inline int token_of(Best best) { return best.at == NAN_FOUND ? NO_TOKEN : best.at; }
__device__ inline Best warp_best(Best x) {
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) {
    const Best other = {__shfl_xor_sync(ALL_LANES, x.value, offset), __shfl_xor_sync(ALL_LANES, x.at, offset)};
    x = better(x, other);
  }
  return x;
}

__global__ void __launch_bounds__(256) argmax_parts(const float *logits, int64_t ld, int vocab, Best *parts) {
  __shared__ Best warps[8];
  pdl_wait();
  pdl_launch();
  const float *row = logits + blockIdx.y * ld;
  const int per = (vocab + PARTS - 1) / PARTS, begin = blockIdx.x * per, end = min(begin + per, vocab);
  Best best = {-INFINITY, NO_TOKEN};
#pragma unroll 4
  for (int i = begin + threadIdx.x; i < end; i += 256) best = better(best, candidate(row[i], i));
  best = warp_best(best);
  if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < 8; w++) best = better(best, warps[w]);
    parts[blockIdx.y * PARTS + blockIdx.x] = best;
  }
}

__global__ void argmax_rows(const Best *parts, int32_t *token_ids) {
  pdl_wait();
  pdl_launch();
  const Best *row = parts + blockIdx.x * PARTS;
  Best best = {-INFINITY, NO_TOKEN};
  for (int i = threadIdx.x; i < PARTS; i += 32) {
    const float2 raw = __ldcg(reinterpret_cast<const float2 *>(row + i));
    best = better(best, {raw.x, __float_as_int(raw.y)});
  }
  best = warp_best(best);
  if (threadIdx.x == 0) token_ids[blockIdx.x] = token_of(best);
}

// ------------------------------------------------------------------------------------------------------------ draw

constexpr int THREADS = 1024;
constexpr int BINS = 2048;
constexpr double UNIT = 1099511627776.0; // 2^40; a vocabulary of 2^20 sums to less than 2^61

__device__ inline uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct DrawShared {
  unsigned long long bins[BINS];
  unsigned long long warp_sums[THREADS / 32];
  unsigned long long above; // sum of all bins beyond the chosen one
  int chosen;
  Best best[THREADS / 32];
};

struct Row {
  const float *logits;
  int vocab;
  float best;
  double inverse_temperature;
  __device__ unsigned long long weight(float x) const {
    if (!(x > -INFINITY)) return 0; // also NaN
    return (unsigned long long)(exp((double)(x - best) * inverse_temperature) * UNIT);
  }
};

// The key at which the sum over larger keys stays below `target` and reaches it with the key's own tokens: of weights, or of
// counts. Only keys of at least `floor` take part. Leaves in *above the sum over larger keys. Target is at least 1.
template <bool COUNT>
__device__ uint32_t descend(const Row &row, uint32_t floor, unsigned long long target, unsigned long long *above, DrawShared &shared) {
  uint32_t prefix = 0;
  unsigned long long passed = 0;
#pragma unroll 1
  for (int pass = 0; pass < 3; pass++) {
    const int shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, bits = pass == 2 ? 10 : 11;
    const uint32_t done = pass == 0 ? 0u : pass == 1 ? 0xffe00000u : 0xfffffc00u;
    __syncthreads();
    for (int i = threadIdx.x; i < BINS; i += THREADS) shared.bins[i] = 0;
    if (threadIdx.x == 0) shared.chosen = -1;
    __syncthreads();
    for (int i = threadIdx.x; i < row.vocab; i += THREADS) {
      const float x = row.logits[i];
      const uint32_t key = key_of(x);
      if (key < floor || (key & done) != prefix) continue;
      const unsigned long long add = COUNT ? 1ull : row.weight(x);
      if (add) atomicAdd(&shared.bins[key >> shift & ((1u << bits) - 1)], add);
    }
    __syncthreads();
    // Sums from the largest bin down: a thread has two neighbours, warps and then all meet.
    const int high = BINS - 1 - 2 * (int)threadIdx.x;
    const unsigned long long b1 = shared.bins[high], b0 = shared.bins[high - 1];
    unsigned long long sum = b1 + b0;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int offset = 1; offset < 32; offset <<= 1) {
      const unsigned long long other = __shfl_up_sync(ALL_LANES, sum, offset);
      if (lane >= offset) sum += other;
    }
    if (lane == 31) shared.warp_sums[warp] = sum;
    __syncthreads();
    unsigned long long before = passed;
    for (int w = 0; w < warp; w++) before += shared.warp_sums[w];
    before += sum - (b1 + b0);
    if (before < target && before + b1 >= target) shared.chosen = high, shared.above = before;
    else if (before + b1 < target && before + b1 + b0 >= target) shared.chosen = high - 1, shared.above = before + b1;
    __syncthreads();
    if (shared.chosen < 0) { // less in all than the target: everything takes part
      *above = 0;
      return floor;
    }
    prefix |= (uint32_t)shared.chosen << shift;
    passed = shared.above;
  }
  *above = passed;
  return prefix;
}

// Sum of weights, or of counts, over keys of at least `floor`.
template <bool COUNT>
__device__ unsigned long long total_of(const Row &row, uint32_t floor, DrawShared &shared) {
  unsigned long long sum = 0;
  for (int i = threadIdx.x; i < row.vocab; i += THREADS) {
    const float x = row.logits[i];
    if (key_of(x) >= floor) sum += COUNT ? 1ull : row.weight(x);
  }
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) shared.warp_sums[threadIdx.x >> 5] = sum;
  __syncthreads();
  sum = 0;
  for (int w = 0; w < THREADS / 32; w++) sum += shared.warp_sums[w];
  return sum;
}

// The `rank`-th token (from 0) in order of id among those of one key.
__device__ int nth_of_key(const Row &row, uint32_t key, unsigned long long rank, DrawShared &shared) {
  unsigned long long seen = 0;
  __syncthreads();
  if (threadIdx.x == 0) shared.chosen = -1;
  for (int begin = 0; begin < row.vocab; begin += THREADS) {
    const int i = begin + threadIdx.x;
    const bool hit = i < row.vocab && key_of(row.logits[i]) == key;
    const unsigned votes = __ballot_sync(ALL_LANES, hit);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) shared.warp_sums[threadIdx.x >> 5] = __popc(votes);
    __syncthreads();
    unsigned long long before = seen;
    for (int w = 0; w < (int)(threadIdx.x >> 5); w++) before += shared.warp_sums[w];
    if (hit && before + __popc(votes & ((1u << (threadIdx.x & 31)) - 1)) == rank) shared.chosen = i;
    for (int w = 0; w < THREADS / 32; w++) seen += shared.warp_sums[w];
    if (seen > rank) break; // the same for all threads
  }
  __syncthreads();
  return shared.chosen;
}

__global__ void __launch_bounds__(THREADS) draw_kernel(const float *logits, int64_t ld, int vocab, const aisp_sampling params,
                                                       int32_t *token_ids) {
  __shared__ DrawShared shared;
  pdl_wait();
  pdl_launch();
  const int r = blockIdx.x;
  Row row = {logits + r * ld, vocab, 0, 0};
  Best best = {-INFINITY, NO_TOKEN};
  for (int i = threadIdx.x; i < vocab; i += THREADS) best = better(best, candidate(row.logits[i], i));
  best = warp_best(best);
  if ((threadIdx.x & 31) == 0) shared.best[threadIdx.x >> 5] = best;
  __syncthreads();
  for (int w = 0; w < THREADS / 32; w++) best = better(best, shared.best[w]);
  const float temperature = params.temperature[r];
  if (!(temperature > 0) || best.value == INFINITY) {
    if (threadIdx.x == 0) token_ids[r] = token_of(best);
    return;
  }
  row.best = best.value;
  row.inverse_temperature = 1.0 / (double)temperature;

  // What takes part: keys above `floor`, and of the key `floor` itself the first `kept` tokens by id.
  uint32_t floor = 0;
  unsigned long long kept = ~0ull, above = 0;
  const int top_k = params.top_k ? params.top_k[r] : 0;
  if (top_k > 0 && top_k < vocab) {
    floor = descend<true>(row, 0, top_k, &above, shared);
    kept = top_k - above;
  }
  // Weight of what takes part. The tokens of one key weigh the same.
  auto key_weight = [&](uint32_t key) {
    return row.weight(__uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key));
  };
  // `descend` counts every token of the floor's key, those beyond `kept` too; they come last in the order, so targets within
  // the total of what takes part never reach them.
  auto total_kept = [&]() {
    if (kept == ~0ull) return total_of<false>(row, floor, shared);
    const unsigned long long larger = floor == 0xffffffffu ? 0 : total_of<false>(row, floor + 1, shared);
    return larger + kept * key_weight(floor);
  };
  const float top_p = params.top_p ? params.top_p[r] : 1.0f;
  if (top_p < 1.0f) {
    const unsigned long long total = total_kept();
    unsigned long long target = (unsigned long long)ceil((double)top_p * (double)total);
    target = target < 1 ? 1 : target > total ? total : target;
    const uint32_t at = descend<false>(row, floor, target, &above, shared);
    const unsigned long long each = key_weight(at);
    const unsigned long long needed = each ? (target - above + each - 1) / each : 1;
    kept = at == floor && kept < needed ? kept : needed;
    floor = at;
  }
  const float min_p = params.min_p ? params.min_p[r] : 0.0f;
  if (min_p > 0) {
    // weight >= min_p: the boundary is the smallest logit that keeps it.
    const float least = row.best + (float)(log((double)min_p) * (double)temperature);
    const uint32_t at = min(key_of(least), key_of(row.best));
    if (at > floor) floor = at, kept = ~0ull;
  }
  const unsigned long long total = total_kept();
  unsigned long long target = (unsigned long long)(params.uniform[r] * (double)total) + 1;
  target = target > total ? total : target;
  int token = best.at;
  if (total > 0) {
    const uint32_t at = descend<false>(row, floor, target, &above, shared);
    const unsigned long long each = key_weight(at);
    const unsigned long long rank = each ? (target - above - 1) / each : 0;
    const int found = nth_of_key(row, at, rank, shared);
    if (found >= 0) token = found;
  }
  if (threadIdx.x == 0) token_ids[r] = token;
}

} // namespace
} // namespace aisp

using namespace aisp;

extern "C" {

size_t aisp_argmax_workspace_bytes(int32_t max_rows) { return (size_t)max_rows * PARTS * sizeof(Best); }

int aisp_argmax(const aisp_ctx *ctx, const float *logits, int64_t ld, int32_t num_rows, int32_t vocab_size, int32_t *token_ids,
                void *workspace, aisp_stream stream) {
  if (num_rows == 0) return 0;
  Best *parts = static_cast<Best *>(workspace);
  if (int code = launch(ctx, argmax_parts, dim3(PARTS, num_rows), 256, 0, stream, logits, ld, vocab_size, parts)) return code;
  return launch(ctx, argmax_rows, num_rows, 32, 0, stream, parts, token_ids);
}

int aisp_sample(const aisp_ctx *ctx, const float *logits, int64_t ld, int32_t num_rows, int32_t vocab_size,
                const aisp_sampling *params, int32_t *token_ids, aisp_stream stream) {
  if (num_rows == 0) return 0;
  if (vocab_size > 1 << 20) return cudaErrorInvalidValue;
  return launch(ctx, draw_kernel, num_rows, THREADS, 0, stream, logits, ld, vocab_size, *params, token_ids);
}

} // extern "C"
