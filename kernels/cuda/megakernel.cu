// All layers of a decode step of one row in one kernel: blocks stay on their multiprocessors, weights stream through their
// rings across the borders of layers, and results pass between blocks as words that carry their own validity.
//
// Formula    linear.cu, rope_store.cu and decode_attention.cu in turn, with their sums and so their bits.
// Shapes     one row; matrices of one format; D in {64, 128}; up to 8 query heads a kv head.
// Bytes      weights and the context's K and V once; what blocks tell each other stays in the L2.
// Launch     cooperative: one block of 16 warps a multiprocessor, in two teams of 8 warps. The first blocks do all attention, a
//            team a split of a kv head. The teams of the others take tiles as blocks of linear.cu do; weights do not depend
//            on the row, so a warp asks for them up to a ring ahead, across products and layers.
// Words      8 bytes: 4 of data and 4 of a flag that names step and layer, written at once and read at once: a reader who
//            finds the flag has the data, with no barrier and no fence between them (as NCCL's LL protocol). A word is
//            written again only a layer later, by blocks that have, through others, what all its readers made of it.
#include <algorithm>
#include <new>
#include <vector>

#include "decode_attention.cuh"
#include "linear_stage.cuh"
#include "newest.cuh"

namespace aisp {
namespace {

constexpr int TEAMS = 2, TEAM_THREADS = LINEAR_WARPS * 32, THREADS = TEAMS * TEAM_THREADS;
constexpr int MOST_ATTENTION_BLOCKS = 16;
// A team asks for all its 256 positions at once; of wide heads one team's fit in shared memory.
constexpr int ATTENTION_RING = 4;
__host__ __device__ constexpr int attention_teams(int dim) { return dim == 64 ? TEAMS : 1; }
enum Product { QKV, O, GATE_UP, DOWN, PRODUCTS };
// All blocks read the inputs of products at once; each of so many copies serves some of them.
constexpr int COPIES = 4;

// What every warp needs of a layer at once.
struct Pointers {
  const uint8_t *data[PRODUCTS], *scales[PRODUCTS];
  const float *norm[2]; // after O, after DOWN
  const float *qkv_bias;
};
struct Layer {
  Pointers pointers;
  float tensor_scale[PRODUCTS];
  const float *q_norm, *k_norm;
  void *k, *v, *k_scales, *v_scales;
};

// What a matrix is in every layer.
struct Sizes {
  int n, k, num_tiles, paired, num_stages, row_bytes, scale_row_bytes;
};

struct Mega {
  Sizes sizes[PRODUCTS];
  aisp_decoder decoder;
  const Layer *layers;
  // Words: inputs of the products (pairs of bf16), QKV (f32), sums of squares of 16 (f32) behind O and behind DOWN. Of all
  // but QKV there are copies, a stride apart.
  uint2 *in[PRODUCTS], *qkv, *sumsq[2];
  int in_stride[PRODUCTS], sumsq_stride;
  void *attention_space;
  int attention_blocks;
  uint32_t *epoch, *arrivals; // steps so far, and blocks done with this one
  int x_bytes;
};

template <int F>
__host__ __device__ constexpr int ring_bytes() {
  return num_stages<F, 1, RING>() * stage_bytes<F, 1>();
}
constexpr int RED_FLOATS = 2 * LINEAR_WARPS * 16; // of a team
template <int F>
int product_bytes(const Mega &m) {
  return TEAMS * LINEAR_WARPS * ring_bytes<F>() + m.x_bytes + TEAMS * RED_FLOATS * 4 + m.decoder.num_layers * (int)sizeof(Pointers);
}
template <int D, int KV> // of a team
__host__ __device__ constexpr int attention_bytes() {
  return decode::shared_bytes<D, KV, 1, ATTENTION_RING>() + Newest<D, KV>::BYTES;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// Barriers of the block: of each team, of the warps that share a slice of x, of each team's four warps in attention.
constexpr int TEAM_BARRIER = 1, SLICE_BARRIER = TEAM_BARRIER + TEAMS, ATTENTION_BARRIER = SLICE_BARRIER + LINEAR_WARPS;
constexpr int MOST_POLLS = 1 << 22; // seconds

// Of whole warps, whose lanes have met.
__device__ inline void barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// ------------------------------------------------------------------------------------------------------------- words

__device__ inline void put(uint2 *to, uint32_t value, uint32_t flag) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"((uint64_t)flag << 32 | value) : "memory");
}
__device__ inline uint64_t look(const uint2 *from) {
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
  return word;
}
struct Two {
  uint64_t a, b;
};
__device__ inline Two look_two(const uint2 *from) {
  Two words;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(words.a), "=l"(words.b) : "l"(from) : "memory");
  return words;
}
// The flag of the first layer of this step.
__device__ inline uint32_t first_flag_of(const Mega &m) { return __ldcg(m.epoch) * (uint32_t)(m.decoder.num_layers + 1) + 1; }
// Reads again until the flag is there.
__device__ inline uint32_t wait_for(uint64_t word, const uint2 *from, uint32_t flag) {
  for (int polls = 0; (uint32_t)(word >> 32) != flag; polls++) {
    if (polls > MOST_POLLS) __trap();
    word = look(from);
  }
  return (uint32_t)word;
}

// --------------------------------------------------------------------------------------------------------- attention

template <int D, int KV>
struct Team {
  static constexpr bool HAS_NEWEST = true, MAY_CLUSTER = false;
  const Layer &layer;
  const aisp_decoder &decoder;
  const uint2 *qkv; // words
  uint2 *out;
  int out_stride;
  uint32_t flag;
  int team, warp;
  int kv_head, group;
  int slot; // of the newest position, below 0 if another split has it
  const Turn &angles;
  Newest<D, KV> near;

  __device__ void sync_team() const { barrier(TEAM_BARRIER + team, TEAM_THREADS); }

  // A head of Q, K or V as the products left it.
  __device__ Head read_head(int index, bool apart) const {
    Head head;
    head.pairs = D / 2, head.apart = apart;
    const uint2 *from = qkv + index * D;
    uint64_t a[D / 64], b[D / 64];
#pragma unroll
    for (int j = 0; j < D / 64; j++) a[j] = look(from + head.a_at(j)), b[j] = look(from + head.b_at(j));
#pragma unroll
    for (int j = 0; j < MAX_PAIRS; j++) {
      head.a[j] = j < D / 64 ? __uint_as_float(wait_for(a[j % (D / 64)], from + head.a_at(j), flag)) : 0;
      head.b[j] = j < D / 64 ? __uint_as_float(wait_for(b[j % (D / 64)], from + head.b_at(j), flag)) : 0;
    }
    __syncwarp();
    return head;
  }

  // For attend_split(): heads of the group, one a warp, and K and V by two warps that do not attend.
  __device__ void newest_position() const {
    const bool neox = decoder.rope.style == AISP_ROPE_NEOX;
    if (warp < group) {
      Head head = read_head(kv_head * group + warp, neox);
      turn_head(head, angles, layer.q_norm, decoder.rope.norm_eps);
      store_bf16(head, near.q + warp * D);
    }
    if (slot >= 0 && warp >= LINEAR_WARPS - 2) {
      const bool is_v = warp == LINEAR_WARPS - 1;
      Head head = read_head(decoder.num_heads + kv_head + (is_v ? decoder.kv.num_kv_heads : 0), neox && !is_v);
      if (!is_v) turn_head(head, angles, layer.k_norm, decoder.rope.norm_eps);
      near.put(head, is_v);
    }
    __syncwarp();
    sync_team();
    if (slot >= 0 && warp == LINEAR_WARPS - 1) near.store({layer.k, layer.v, layer.k_scales, layer.v_scales, KV, decoder.kv.num_kv_heads, D}, kv_head, slot);
  }
  __device__ const __nv_bfloat16 *query(int h) const { return near.q + h * D; }
  __device__ void sync() const { barrier(ATTENTION_BARRIER + team, decode::WARPS * 32); }
  __device__ void store(int i, uint32_t two) const {
    uint2 *to = out + (kv_head * group * D + i) / 2;
#pragma unroll
    for (int copy = 0; copy < COPIES; copy++) put(to + copy * out_stride, two, flag);
  }
};

// Attention of all layers, for the first blocks. A function of its own, so that its registers are not those of the products.
template <int D, int KV>
__device__ __noinline__ void attend_layers(const Mega &m, const aisp_megakernel_args &args, uint8_t *shared, decode::Meet<1> *meets) {
  const aisp_decoder &d = m.decoder;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32 % LINEAR_WARPS, team = threadIdx.x / TEAM_THREADS;
  if (team >= attention_teams(D)) return;
  constexpr int KV_BYTES = decode::shared_bytes<D, KV, 1, ATTENTION_RING>();
  uint8_t *mine = shared + team * attention_bytes<D, KV>();
  // Tables were written before the predecessor began (see aisp_decode_attention), so they may be read while it runs.
  const int context = __ldcg(args.context_lens), position = __ldcg(args.positions), slot = __ldcg(args.slot_mapping);
  const int num_kv_heads = d.kv.num_kv_heads, group = d.num_heads / num_kv_heads, num_layers = d.num_layers;
  const uint2 *qkv = m.qkv;
  uint2 *out = m.in[O];
  const int out_stride = m.in_stride[O];
  const Layer *layers = m.layers;
  const aisp_decode_args decode_args = {nullptr, nullptr, args.block_tables, 0, nullptr, 1, d.num_heads,
                                        d.max_context_len, d.sliding_window, d.scale, m.attention_space};
  const decode::Splits splits = decode::splits_of(decode_args, context);
  const int units = num_kv_heads * max(splits.end - splits.begin, 1), teams = attention_teams(D) * m.attention_blocks;
  const Turn angles(d.rope, position, D / 2);
  pdl_wait();
  const uint32_t first_flag = first_flag_of(m);
#pragma unroll 1
  for (int index = 0; index < num_layers; index++) {
    const Layer &layer = layers[index];
#pragma unroll 1
    for (int unit = blockIdx.x * attention_teams(D) + team; unit < units; unit += teams) {
      const int split = splits.begin + unit / num_kv_heads;
      Team<D, KV> caller = {layer, d, qkv, out, out_stride, first_flag + index, team, warp, unit % num_kv_heads, group,
                            split == splits.end - 1 ? slot : -1, angles, Newest<D, KV>(mine + KV_BYTES)};
      caller.sync_team(); // the queries of the unit before are read
      if (context <= 0) {
        caller.newest_position();
        for (int i = threadIdx.x % TEAM_THREADS; i < group * (D / 2); i += TEAM_THREADS) caller.store(2 * i, 0);
      } else if (warp >= decode::WARPS) {
        caller.newest_position();
      } else {
        const decode::Call call = {{layer.k, layer.v, layer.k_scales, layer.v_scales, KV, num_kv_heads, D}, decode_args, group,
                                   (int)ceil_div(d.max_context_len, AISP_SPLIT_SIZE)};
        decode::attend_split<D, KV, 1, ATTENTION_RING, D == 64 ? 4 : 2>(call, 0, caller.kv_head, split, context, splits, warp * 32 + lane, mine, &meets[team], caller);
      }
    }
  }
}

template <int D>
__device__ inline void attend_layers(const Mega &m, const aisp_megakernel_args &args, uint8_t *shared, decode::Meet<1> *meets) {
  switch (m.decoder.kv.kv_format) {
    case AISP_KV_BF16: return attend_layers<D, AISP_KV_BF16>(m, args, shared, meets);
    case AISP_KV_FP8: return attend_layers<D, AISP_KV_FP8>(m, args, shared, meets);
    default: return attend_layers<D, AISP_KV_FP4>(m, args, shared, meets);
  }
}

// ---------------------------------------------------------------------------------------------------------- products

// A slice of x, [k_begin, k_end), to shared memory, by two warps of which this is `half`.
__device__ inline void stage_x(const uint2 *words, const aisp_bf16 *plain, uint32_t flag, int k_begin, int k_end, uint8_t *x, int half, int lane) {
  constexpr int AT_ONCE = 4;
  const int pieces = (k_end - k_begin) / 4; // 8 bytes of x, two words
  for (int first = half * 32 + lane; first < pieces; first += AT_ONCE * 64) {
    if (plain) {
      for (int i = first; i < min(pieces, first + AT_ONCE * 64); i += 64)
        *reinterpret_cast<uint2 *>(x + 2 * (k_begin + 4 * i)) = __ldcg(reinterpret_cast<const uint2 *>(plain + k_begin) + i);
      continue;
    }
    const uint2 *from = words + k_begin / 2 + 2 * first;
    Two two[AT_ONCE];
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++)
      if (first + u * 64 < pieces) two[u] = look_two(from + u * 128);
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++)
      if (first + u * 64 < pieces) {
        const uint32_t low = wait_for(two[u].a, from + u * 128, flag), high = wait_for(two[u].b, from + u * 128 + 1, flag);
        *reinterpret_cast<uint2 *>(x + 2 * (k_begin + 4 * (first + u * 64))) = make_uint2(low, high);
      }
  }
}

// What a column's result is finished with. Asked for before x is there, so that it is there before the result is.
struct Finish {
  float norm, residual, factor, bias;
};

// What becomes of value z of column n, the lane's of a tile; as finish() in linear.cuh. Lanes l and l + 16 hold the same.
__device__ inline void finish(const Mega &m, const aisp_megakernel_args &args, const Finish &with, Product product, int tile, int lane, int n,
                              float z, uint32_t flag, bool last_layer) {
  if (product == QKV) {
    if (lane < 16) put(m.qkv + n, __float_as_uint(z), flag);
  } else if (product == GATE_UP) {
    const float up = __shfl_down_sync(ALL_LANES, z, 8);
    const float gated = silu(z) * up;
    const int pair = lane % 4, copy = lane / 4; // of 4 pairs
    const float low = __shfl_sync(ALL_LANES, gated, 2 * pair), high = __shfl_sync(ALL_LANES, gated, 2 * pair + 1);
    if (copy < COPIES) put(m.in[DOWN] + copy * m.in_stride[DOWN] + tile * 4 + pair, pack_bf16(low, high), flag);
  } else {
    const float h = with.residual + z, x = h * with.norm;
    if (lane < 16) __stcg(args.residual + n, h);
    const int pair = lane % 8, copy = lane / 8; // of 8 pairs
    const uint32_t two = pack_bf16(__shfl_sync(ALL_LANES, x, 2 * pair), __shfl_sync(ALL_LANES, x, 2 * pair + 1));
    // The next layer's input is read with the next layer's flag.
    const bool is_result = product == DOWN && last_layer;
    const uint32_t later = product == DOWN ? flag + 1 : flag;
    const Product next = product == O ? GATE_UP : QKV;
    if (is_result && copy == 0) *reinterpret_cast<uint32_t *>(args.x + tile * 16 + 2 * pair) = two;
    if (!is_result && copy < COPIES) put(m.in[next] + copy * m.in_stride[next] + tile * 8 + pair, two, later);
    float sum = h * h;
#pragma unroll
    for (int offset = 8; offset; offset >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    if (is_result && lane == 0) args.sumsq[tile] = sum;
    if (!is_result && lane < COPIES) put(m.sumsq[product == DOWN] + lane * m.sumsq_stride + tile, __float_as_uint(sum), later);
  }
}

// The products of all layers, for the blocks behind those of attention.
template <int F, bool WHOLE>
__device__ inline void multiply_layers(const Mega &m, const aisp_megakernel_args &args, uint8_t *shared) {
  using Fm = Format<F>;
  constexpr int STAGES = num_stages<F, 1, RING>(), STAGE = stage_bytes<F, 1>();
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32 % LINEAR_WARPS, team = threadIdx.x / TEAM_THREADS;
  const uint32_t ring = shared_address(shared) + threadIdx.x / 32 * ring_bytes<F>();
  uint8_t *x = shared + TEAMS * LINEAR_WARPS * ring_bytes<F>();
  float *red = reinterpret_cast<float *>(x + m.x_bytes) + team * RED_FLOATS; // [2][warps][16]
  Pointers *pointers = reinterpret_cast<Pointers *>(x + m.x_bytes + TEAMS * RED_FLOATS * 4);
  const int num_layers = m.decoder.num_layers;
  const int blocks = gridDim.x - m.attention_blocks, block = blockIdx.x - m.attention_blocks;
  const int teams = TEAMS * blocks, me = block + team * blocks;

  for (int i = threadIdx.x; i < num_layers * (int)(sizeof(Pointers) / 8); i += THREADS)
    reinterpret_cast<uint64_t *>(pointers)[i] =
        reinterpret_cast<const uint64_t *>(&m.layers[i / (sizeof(Pointers) / 8)].pointers)[i % (sizeof(Pointers) / 8)];
  __syncthreads();

  // First and last stage of this warp's slice of each product, a byte each.
  uint32_t begins = 0, ends = 0;
#pragma unroll
  for (int product = 0; product < PRODUCTS; product++) {
    begins |= slice_begin(warp, m.sizes[product].num_stages) << 8 * product;
    ends |= slice_begin(warp + 1, m.sizes[product].num_stages) << 8 * product;
  }
  auto begin_of = [&](int product) { return (int)(begins >> 8 * product & 255); };
  auto end_of = [&](int product) { return (int)(ends >> 8 * product & 255); };

  // What this warp will multiply, in order: the next stage to ask for.
  int fill_layer = 0, fill_product = -1, fill_tile = 0, fill_ks = 0, fill_slot = 0;
  auto next_product = [&]() {
    do {
      if (++fill_product == PRODUCTS) fill_product = 0, fill_layer++;
      fill_tile = me, fill_ks = begin_of(fill_product);
    } while (fill_layer < num_layers && (fill_tile >= m.sizes[fill_product].num_tiles || fill_ks == end_of(fill_product)));
  };
  auto fill = [&]() {
    if (fill_layer < num_layers) {
      const Sizes &s = m.sizes[fill_product];
      const Pointers &p = pointers[fill_layer];
      const Tiles tiles = {p.data[fill_product], p.scales[fill_product], s.row_bytes, s.scale_row_bytes, s.n, s.k, s.num_tiles, s.paired};
      fill_stage<F, 1, WHOLE>(tiles, fill_tile, fill_ks, ring + fill_slot * STAGE, lane);
      fill_slot = fill_slot + 1 == STAGES ? 0 : fill_slot + 1;
      if (++fill_ks == end_of(fill_product)) {
        fill_ks = begin_of(fill_product), fill_tile += teams;
        if (fill_tile >= s.num_tiles) next_product();
      }
    }
    copy_async_commit();
  };
  next_product();
#pragma unroll 1
  for (int i = 0; i < STAGES - 1; i++) fill();
  pdl_wait();
  const uint32_t first_flag = first_flag_of(m);

  int slot = 0, buffer = 0;
#pragma unroll 1
  for (int layer = 0; layer < num_layers; layer++) {
    const uint32_t flag = first_flag + layer;
#pragma unroll 1
    for (int index = 0; index < PRODUCTS; index++) {
      const Product product = (Product)index;
      const Sizes &sizes = m.sizes[product];
      if (block >= sizes.num_tiles) continue;

      // Both teams' warps bring the slice of x that they share, once nobody reads the one before. Warp 0 adds up the
      // norm's sums, which come at the same time.
      const int ks_begin = begin_of(product), ks_end = end_of(product);
      const bool normed = product == QKV || product == GATE_UP, plain = product == QKV && layer == 0;
      const int num_sums = normed && warp == 0 ? sizes.k / 16 : 0;
      const uint2 *sums_from = m.sumsq[product == QKV] + block % COPIES * m.sumsq_stride;
      const Pointers &p = pointers[layer];
      const int column = lane % 16;
      auto column_of = [&](int tile) {
        return (sizes.paired ? column / 8 * (sizes.n / 2) + tile * 8 : tile * 16 + column / 8 * 8) + column % 8;
      };
      Finish with = {0, 0, 1, 0};
      auto ask = [&](int tile) {
        if (warp > 0 || tile >= sizes.num_tiles) return;
        const int n = column_of(tile);
        if (product == O || product == DOWN) with.norm = p.norm[product == DOWN][n], with.residual = __ldcg(args.residual + n);
        if constexpr (F == AISP_FP8) with.factor = reinterpret_cast<const float *>(p.scales[product])[n];
        if constexpr (F == AISP_NVFP4) with.factor = m.layers[layer].tensor_scale[product];
        if (product == QKV && p.qkv_bias) with.bias = p.qkv_bias[n];
      };
      ask(me);
      __syncthreads();
      stage_x(m.in[product] + block % COPIES * m.in_stride[product], plain ? args.x : nullptr, flag, ks_begin * Fm::STAGE_K, min(ks_end * Fm::STAGE_K, sizes.k), x, team, lane);
      float row_scale = 1;
      if (num_sums > 0) {
        constexpr int AT_ONCE = 4;
        float squares = 0;
#pragma unroll 1
        for (int first = lane; first < num_sums; first += 32 * AT_ONCE) {
          uint64_t sums[AT_ONCE];
#pragma unroll
          for (int u = 0; u < AT_ONCE; u++)
            if (first + 32 * u < num_sums) sums[u] = look(sums_from + first + 32 * u);
#pragma unroll
          for (int u = 0; u < AT_ONCE; u++)
            if (first + 32 * u < num_sums)
              squares += plain ? __ldcg(args.sumsq + first + 32 * u) : __uint_as_float(wait_for(sums[u], sums_from + first + 32 * u, flag));
        }
        row_scale = rsqrtf(warp_sum(squares) / sizes.k + m.decoder.eps);
      }
      __syncwarp(); // lanes left the waits one by one
      barrier(SLICE_BARRIER + warp, TEAMS * 32);

      XAhead<F, 1, WHOLE, 1> ahead; // x is near
      ahead.columns.row[0] = reinterpret_cast<const __nv_bfloat16 *>(x);
      ahead.columns.k = sizes.k;
      if (ks_begin < ks_end) ahead.begin(ks_begin, lane % 4);
#pragma unroll 1
      for (int tile = me; tile < sizes.num_tiles; tile += teams) {
        float acc[1][1][4] = {};
#pragma unroll 1
        for (int ks = ks_begin; ks < ks_end; ks++) {
          if (ks > ks_begin) fill(); // into the stage that was read last
          copy_async_wait<STAGES - 2>();
          __syncwarp();
          multiply_stage<F, 1, 1>(acc, ring + slot * STAGE, ks, ks + 1 < ks_end ? ks + 1 : ks_begin, ahead, lane);
          slot = slot + 1 == STAGES ? 0 : slot + 1;
        }
        float *all = red + buffer * LINEAR_WARPS * 16;
        if (lane % 4 == 0) {
          all[warp * 16 + lane / 4] = acc[0][0][0];
          all[warp * 16 + lane / 4 + 8] = acc[0][0][2];
        }
        barrier(TEAM_BARRIER + team, TEAM_THREADS);
        buffer ^= 1;
        if (warp == 0) {
          float z = all[column];
#pragma unroll
          for (int w = 1; w < LINEAR_WARPS; w++) z += all[w * 16 + column];
          if constexpr (F == AISP_NVFP4 || F == AISP_FP8) z = __fmul_rn(z, with.factor);
          if (normed) z = __fmul_rn(z, row_scale);
          if (product == QKV && p.qkv_bias) z += with.bias;
          finish(m, args, with, product, tile, lane, column_of(tile), z, flag, layer == num_layers - 1);
          ask(tile + teams);
        }
        if (ks_begin < ks_end) fill(); // after what others wait for
      }
    }
  }
}

#endif // __CUDA_ARCH_FEAT_SM90_ALL

template <int F, bool WHOLE>
__global__ void __launch_bounds__(THREADS, 1) mega_kernel(const __grid_constant__ Mega m, const __grid_constant__ aisp_megakernel_args args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL // elsewhere it is refused, so that nothing need be compiled
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ decode::Meet<1> meets[TEAMS];
  if ((int)blockIdx.x >= m.attention_blocks) multiply_layers<F, WHOLE>(m, args, shared);
  else if (m.decoder.kv.head_dim == 64) attend_layers<64>(m, args, shared, meets);
  else attend_layers<128>(m, args, shared, meets);
  pdl_launch();
  __syncthreads();
  if (threadIdx.x == 0 && atomicAdd(m.arrivals, 1) == gridDim.x - 1) {
    *m.arrivals = 0;
    *m.epoch += 1; // every block has read it
  }
#endif
}

Sizes sizes_of(const aisp_weight &w, bool paired, int stage_k) {
  return {w.n, w.k, w.n / 16, paired, (int)ceil_div(w.k, stage_k), (int)row_bytes(w.format, w.k), (int)scale_row_bytes(w.format, w.k)};
}
template <int F>
bool is_whole(const aisp_weight &w) {
  return row_bytes(F, w.k) % Format<F>::ROW_BYTES == 0 && w.k % Format<F>::STAGE_K == 0;
}

using Kernel = void (*)(Mega, aisp_megakernel_args);
// A kernel and what depends on the format of the weights.
struct Variant {
  Kernel kernel = nullptr;
  int stage_k = 0;
  int (*product_bytes)(const Mega &) = nullptr;
};
template <int F>
Variant variant_of(const aisp_decoder_layer &layer) {
  bool whole = true;
  for (auto *w : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) whole &= is_whole<F>(*w);
  return {whole ? mega_kernel<F, true> : mega_kernel<F, false>, Format<F>::STAGE_K, product_bytes<F>};
}
Variant choose_variant(const aisp_decoder_layer &layer) {
  switch (layer.qkv.format) {
    case AISP_BF16: return variant_of<AISP_BF16>(layer);
    case AISP_FP8: return variant_of<AISP_FP8>(layer);
    case AISP_W8G32: return variant_of<AISP_W8G32>(layer);
    case AISP_W4G32: return variant_of<AISP_W4G32>(layer);
    case AISP_NVFP4: return variant_of<AISP_NVFP4>(layer);
    default: return {};
  }
}

int attention_bytes_of(const aisp_kv_layer &kv) {
  const bool wide = kv.head_dim == 128;
  switch (kv.kv_format) {
    case AISP_KV_BF16: return wide ? attention_bytes<128, AISP_KV_BF16>() : attention_bytes<64, AISP_KV_BF16>();
    case AISP_KV_FP8: return wide ? attention_bytes<128, AISP_KV_FP8>() : attention_bytes<64, AISP_KV_FP8>();
    default: return wide ? attention_bytes<128, AISP_KV_FP4>() : attention_bytes<64, AISP_KV_FP4>();
  }
}

// Whether the layers are what the kernel is written for.
bool is_supported(const aisp_ctx *ctx, const aisp_decoder &d, const aisp_decoder_layer *layers) {
  if (ctx->compute_capability != 90 || d.num_layers < 1 || (d.kv.head_dim != 64 && d.kv.head_dim != 128)) return false;
  if (d.num_heads % d.kv.num_kv_heads || d.num_heads / d.kv.num_kv_heads > MAX_GROUP || d.max_context_len < 1) return false;
  for (int i = 0; i < d.num_layers; i++) {
    const aisp_weight *now[] = {&layers[i].qkv, &layers[i].o, &layers[i].gate_up, &layers[i].down};
    const aisp_weight *first[] = {&layers[0].qkv, &layers[0].o, &layers[0].gate_up, &layers[0].down};
    for (int p = 0; p < PRODUCTS; p++)
      if (now[p]->format != first[0]->format || now[p]->n != first[p]->n || now[p]->k != first[p]->k || now[p]->n % 32 || now[p]->k % 16)
        return false;
  }
  const aisp_decoder_layer &l = layers[0];
  const int q_size = d.num_heads * d.kv.head_dim;
  return l.qkv.n == q_size + 2 * d.kv.num_kv_heads * d.kv.head_dim && l.o.k == q_size && l.o.n == l.qkv.k && l.gate_up.k == l.qkv.k &&
         l.down.n == l.qkv.k && 2 * l.down.k == l.gate_up.n;
}

} // namespace
} // namespace aisp

struct aisp_megakernel {
  aisp::Mega mega = {};
  aisp::Kernel kernel = nullptr;
  int shared_bytes = 0;
  void *memory = nullptr; // all of it
};

extern "C" {

int aisp_megakernel_create(const aisp_ctx *ctx, const aisp_decoder *decoder, const aisp_decoder_layer *layers, aisp_megakernel **out) {
  using namespace aisp;
  *out = nullptr;
  if (!is_supported(ctx, *decoder, layers)) return cudaErrorNotSupported;
  const aisp_decoder_layer &first = layers[0];
  const Variant variant = choose_variant(first);
  if (!variant.kernel || ceil_div(std::max(first.gate_up.k, first.down.k), variant.stage_k) > 255) return cudaErrorNotSupported;
  bool is_there = false;
  if (int code = has_hopper_code(variant.kernel, &is_there)) return code;
  if (!is_there) return cudaErrorNotSupported;
  Mega mega = {};
  mega.decoder = *decoder;
  mega.sizes[QKV] = sizes_of(first.qkv, false, variant.stage_k);
  mega.sizes[O] = sizes_of(first.o, false, variant.stage_k);
  mega.sizes[GATE_UP] = sizes_of(first.gate_up, true, variant.stage_k);
  mega.sizes[DOWN] = sizes_of(first.down, false, variant.stage_k);
  const int hidden = first.qkv.k, q_size = first.o.k, inner = first.down.k;
  mega.x_bytes = (int)round_up(2 * std::max({hidden, q_size, inner}), 128);
  const int splits = (int)ceil_div(decoder->max_context_len, AISP_SPLIT_SIZE);
  mega.attention_blocks = (int)std::min<int64_t>(ceil_div((int64_t)decoder->kv.num_kv_heads * splits, attention_teams(decoder->kv.head_dim)), MOST_ATTENTION_BLOCKS);
  const int shared = std::max(variant.product_bytes(mega), attention_teams(decoder->kv.head_dim) * attention_bytes_of(decoder->kv));
  if (shared > ctx->shared_bytes_per_block) return cudaErrorNotSupported;
  if (int code = cudaFuncSetAttribute(variant.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared)) return code;
  int blocks = 0;
  if (int code = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, variant.kernel, THREADS, shared)) return code;
  if (blocks < 1) return cudaErrorNotSupported;

  std::vector<Layer> described;
  for (int i = 0; i < decoder->num_layers; i++) {
    const aisp_decoder_layer &l = layers[i];
    Layer to = {};
    const aisp_weight *all[] = {&l.qkv, &l.o, &l.gate_up, &l.down};
    for (int p = 0; p < PRODUCTS; p++) {
      to.pointers.data[p] = static_cast<const uint8_t *>(all[p]->data);
      to.pointers.scales[p] = static_cast<const uint8_t *>(all[p]->scales);
      to.tensor_scale[p] = all[p]->tensor_scale * NVFP4_LATER;
    }
    to.pointers.norm[0] = l.post_attention_norm, to.pointers.norm[1] = l.next_norm;
    to.pointers.qkv_bias = l.qkv_bias, to.q_norm = l.q_norm, to.k_norm = l.k_norm;
    to.k = l.k, to.v = l.v, to.k_scales = l.k_scales, to.v_scales = l.v_scales;
    described.push_back(to);
  }
  // One piece of memory, zero where flags and counters stand.
  size_t bytes = 0;
  auto place = [&](size_t of) {
    const size_t at = bytes;
    bytes += round_up(of, 256);
    return at;
  };
  const size_t layers_at = place(described.size() * sizeof(Layer)), epoch_at = place(256), arrivals_at = place(256);
  auto copies = [&](int words, int &stride) {
    stride = (int)round_up(words, 32);
    return place((size_t)COPIES * stride * sizeof(uint2));
  };
  const int inputs[] = {hidden, q_size, hidden, inner};
  size_t in_at[PRODUCTS];
  for (int p = 0; p < PRODUCTS; p++) in_at[p] = copies(inputs[p] / 2, mega.in_stride[p]);
  const size_t qkv_at = place(first.qkv.n * sizeof(uint2));
  const size_t sums_at[] = {copies(hidden / 16, mega.sumsq_stride), copies(hidden / 16, mega.sumsq_stride)};
  const size_t attention_at = place(aisp_decode_workspace_bytes(1, decoder->num_heads, decoder->kv.head_dim, decoder->max_context_len));
  uint8_t *memory = nullptr;
  if (int code = cudaMalloc(&memory, bytes)) return code;
  int code = cudaMemset(memory, 0, bytes);
  if (!code) code = cudaMemcpy(memory + layers_at, described.data(), described.size() * sizeof(Layer), cudaMemcpyHostToDevice);
  if (!code) code = cudaDeviceSynchronize();
  if (code) {
    cudaFree(memory);
    return code;
  }
  auto words = [&](size_t at) { return reinterpret_cast<uint2 *>(memory + at); };
  mega.layers = reinterpret_cast<const Layer *>(memory + layers_at);
  for (int p = 0; p < PRODUCTS; p++) mega.in[p] = words(in_at[p]);
  mega.qkv = words(qkv_at);
  for (int i = 0; i < 2; i++) mega.sumsq[i] = words(sums_at[i]);
  mega.attention_space = memory + attention_at;
  mega.epoch = reinterpret_cast<uint32_t *>(memory + epoch_at), mega.arrivals = reinterpret_cast<uint32_t *>(memory + arrivals_at);
  auto *made = new (std::nothrow) aisp_megakernel{mega, variant.kernel, shared, memory};
  if (!made) {
    cudaFree(memory);
    return cudaErrorMemoryAllocation;
  }
  *out = made;
  return 0;
}

int aisp_megakernel_destroy(aisp_megakernel *mega) {
  if (!mega) return 0;
  const int code = cudaFree(mega->memory);
  delete mega;
  return code;
}

int aisp_megakernel_run(const aisp_ctx *ctx, const aisp_megakernel *mega, const aisp_megakernel_args *args, aisp_stream stream) {
  using namespace aisp;
  return launch_cooperative(ctx, mega->kernel, ctx->sm_count, THREADS, mega->shared_bytes, stream, mega->mega, *args);
}

} // extern "C"
