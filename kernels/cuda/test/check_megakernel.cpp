// aisp_megakernel against the ops it stands for: the same bits, in what it leaves and in the pool.
#include "harness.hpp"

namespace {

struct Case {
  int hidden, heads, kvh, dim, inner, layers, format, kv_format, window, style;
  bool biased, normed; // a bias of QKV; norms over heads
};

const char *KV_FORMATS[] = {"bf16", "", "fp8", "fp4"};

Device<float> noise(const aisp_ctx *ctx, size_t count, uint64_t seed, float mean, float std) {
  Device<float> d(count);
  CK(aisp_fill_normal_f32(ctx, d.ptr, count, seed, mean, std, STREAM));
  return d;
}

// Keys and values of one layer.
struct Pool {
  Device<uint8_t> parts[4];
  Pool(const Case &c, int num_blocks) {
    const size_t rows = (size_t)num_blocks * c.kvh * AISP_BLOCK_SIZE;
    for (int i = 0; i < 4; i++) {
      parts[i] = Device<uint8_t>(rows * (i < 2 ? aisp_kv_row_bytes(c.kv_format, c.dim) : aisp_kv_scale_bytes(c.kv_format, c.dim)));
      parts[i].poison();
    }
  }
  aisp_kv_layer view(const Case &c) const { return {parts[0].ptr, parts[1].ptr, parts[2].ptr, parts[3].ptr, c.kv_format, c.kvh, c.dim}; }
};

struct Decoder {
  const aisp_ctx *ctx;
  Case c;
  static constexpr int MAX_CONTEXT = 1600, VOCAB = 64;
  int num_blocks = MAX_CONTEXT / AISP_BLOCK_SIZE;
  std::vector<Matrix> matrices; // four a layer
  std::vector<Device<float>> norms, biases, q_norms, k_norms;
  Matrix table;
  Device<float> cos, sin, residual, sumsq, qkv;
  Device<aisp_bf16> x, q, attention, gated;
  Device<int32_t> ids, position, slot, context, blocks;
  Device<uint8_t> workspace;
  std::vector<int32_t> block_table;

  Decoder(const aisp_ctx *ctx, const Case &c, uint64_t seed)
      : ctx(ctx), c(c), table(make_matrix(ctx, AISP_BF16, VOCAB, c.hidden, seed)), cos(noise(ctx, (size_t)MAX_CONTEXT * c.dim / 2, seed, 0, 0.7f)),
        sin(noise(ctx, cos.count, seed + 1, 0, 0.7f)), residual(c.hidden), sumsq(c.hidden / 16), qkv((size_t)MAX_CONTEXT * all_heads() * c.dim),
        x(c.hidden), q((size_t)MAX_CONTEXT * c.heads * c.dim), attention(c.heads * c.dim), gated(c.inner), ids(1), position(1), slot(1), context(1),
        workspace(aisp_decode_workspace_bytes(1, c.heads, c.dim, MAX_CONTEXT)), block_table(num_blocks) {
    CK(aisp_memset(workspace.ptr, 0, workspace.count, STREAM));
    for (int l = 0; l < c.layers; l++) {
      const int shapes[4][2] = {{all_heads() * c.dim, c.hidden}, {c.hidden, c.heads * c.dim}, {2 * c.inner, c.hidden}, {c.hidden, c.inner}};
      for (auto [n, k] : shapes) matrices.push_back(make_matrix(ctx, c.format, n, k, seed = seed * 31 + 7));
      for (int i = 0; i < 2; i++) norms.push_back(noise(ctx, c.hidden, seed + i, 1, 0.1f));
      biases.push_back(noise(ctx, all_heads() * c.dim, seed + 3, 0, 0.1f));
      q_norms.push_back(noise(ctx, c.dim, seed + 4, 1, 0.1f));
      k_norms.push_back(noise(ctx, c.dim, seed + 5, 1, 0.1f));
    }
    for (int i = 0; i < num_blocks; i++) block_table[i] = i * 37 % num_blocks; // 37 and 100 have no common divisor
    blocks = Device<int32_t>(block_table);
  }
  int all_heads() const { return c.heads + 2 * c.kvh; }
  float scale() const { return 1 / std::sqrt((float)c.dim); }
  aisp_rope rope(int l) const {
    return {cos.ptr, sin.ptr, c.style, c.normed ? q_norms[l].ptr : nullptr, c.normed ? k_norms[l].ptr : nullptr, 1e-6f};
  }
  const float *next_norm(int l) const { return norms[(2 * l + 2) % norms.size()].ptr; }
  std::vector<Pool> pools() const {
    std::vector<Pool> all;
    for (int l = 0; l < c.layers; l++) all.emplace_back(c, num_blocks);
    return all;
  }

  // Noise for the positions before `to`.
  void fill(const std::vector<Pool> &pools, int to) {
    std::vector<int32_t> at(to), slots(to);
    for (int p = 0; p < to; p++) at[p] = p, slots[p] = block_table[p / AISP_BLOCK_SIZE] * AISP_BLOCK_SIZE + p % AISP_BLOCK_SIZE;
    const Device<int32_t> positions(at), places(slots);
    for (int l = 0; l < c.layers; l++) {
      CK(aisp_fill_normal_f32(ctx, qkv.ptr, (size_t)to * all_heads() * c.dim, 1000 + l, 0, 1, STREAM));
      const aisp_kv_layer kv = pools[l].view(c);
      const aisp_rope turn = rope(l);
      CK(aisp_rope_store(ctx, qkv.ptr, AISP_F32, &turn, positions.ptr, places.ptr, to, c.heads, &kv, q.ptr, STREAM));
    }
    CK(aisp_stream_synchronize(STREAM));
  }

  // A step's tables and its embedding.
  void begin(int at, bool empty) {
    position.put({at}), slot.put({empty ? -1 : block_table[at / AISP_BLOCK_SIZE] * AISP_BLOCK_SIZE + at % AISP_BLOCK_SIZE});
    context.put({empty ? 0 : at + 1}), ids.put({at * 31 % VOCAB});
    const aisp_weight rows = table.view();
    CK(aisp_embedding(ctx, &rows, ids.ptr, nullptr, 0, 1, residual.ptr, norms[0].ptr, x.ptr, sumsq.ptr, STREAM));
  }

  void linear(const Matrix &w, const aisp_bf16 *from, int output, void *out, bool normed, const float *bias, const float *next) {
    const aisp_weight view = w.view();
    aisp_linear_args args = {};
    args.x = from, args.ldx = w.k, args.output = output, args.out = out, args.num_rows = 1, args.bias = bias;
    args.ldo = output == AISP_OUT_SILU_MUL ? w.n / 2 : w.n;
    if (normed) args.x_sumsq = sumsq.ptr, args.eps = 1e-5f;
    if (next) args.next_norm_weight = next, args.next_x = x.ptr, args.next_sumsq = sumsq.ptr;
    CK(aisp_linear(ctx, &view, &args, STREAM));
  }
  void by_ops(const std::vector<Pool> &pools) {
    for (int l = 0; l < c.layers; l++) {
      const Matrix *m = &matrices[4 * l];
      linear(m[0], x.ptr, AISP_OUT_F32, qkv.ptr, true, c.biased ? biases[l].ptr : nullptr, nullptr);
      const aisp_kv_layer kv = pools[l].view(c);
      const aisp_rope turn = rope(l);
      CK(aisp_rope_store(ctx, qkv.ptr, AISP_F32, &turn, position.ptr, slot.ptr, 1, c.heads, &kv, q.ptr, STREAM));
      const aisp_decode_args args = {q.ptr, attention.ptr, blocks.ptr, num_blocks, context.ptr, 1, c.heads, MAX_CONTEXT, c.window, scale(), workspace.ptr};
      CK(aisp_decode_attention(ctx, &kv, &args, STREAM));
      linear(m[1], attention.ptr, AISP_OUT_RESIDUAL, residual.ptr, false, nullptr, norms[2 * l + 1].ptr);
      linear(m[2], x.ptr, AISP_OUT_SILU_MUL, gated.ptr, true, nullptr, nullptr);
      linear(m[3], gated.ptr, AISP_OUT_RESIDUAL, residual.ptr, false, nullptr, next_norm(l));
    }
  }

  int create(const std::vector<Pool> &pools, bool swapped, aisp_megakernel **out) const {
    std::vector<aisp_decoder_layer> layers;
    for (int l = 0; l < c.layers; l++) {
      const Matrix *m = &matrices[4 * l];
      layers.push_back({m[0].view(), m[1].view(), m[2].view(), m[3].view(), c.biased ? biases[l].ptr : nullptr, norms[2 * l + 1].ptr, next_norm(l),
                        rope(l).q_norm, rope(l).k_norm, pools[l].parts[0].ptr, pools[l].parts[1].ptr, pools[l].parts[2].ptr, pools[l].parts[3].ptr});
    }
    if (swapped) std::swap(layers[0].o, layers[1].o);
    const aisp_decoder decoder = {c.layers, c.heads, MAX_CONTEXT, c.window, scale(), 1e-5f, rope(0), pools[0].view(c)};
    return aisp_megakernel_create(ctx, &decoder, layers.data(), out);
  }
  void by_megakernel(const aisp_megakernel *mega) {
    const aisp_megakernel_args args = {residual.ptr, x.ptr, sumsq.ptr, position.ptr, slot.ptr, blocks.ptr, context.ptr};
    CK(aisp_megakernel_run(ctx, mega, &args, STREAM));
  }
};

void check(const aisp_ctx *ctx, const Case &c, uint64_t seed) {
  const std::string name = std::string("megakernel ") + format_name(c.format) + " kv " + KV_FORMATS[c.kv_format] + " D " + std::to_string(c.dim) +
                           " H " + std::to_string(c.hidden);
  Decoder d(ctx, c, seed);
  const auto expected = d.pools(), found = d.pools();
  aisp_megakernel *mega = nullptr;
  CK(d.create(found, false, &mega));
  int filled = 0;
  for (int at : {0, 1, 15, 16, 17, 254, 255, 256, 257, 700, 701, -1, 1599}) {
    const bool empty = at < 0;
    if (at > filled) {
      d.fill(expected, at);
      d.fill(found, at);
      filled = at + 1;
    }
    const std::string step = name + " at " + std::to_string(at);
    d.begin(std::max(at, 0), empty);
    d.by_ops(expected);
    const auto residual = d.residual.get(), sumsq = d.sumsq.get();
    const auto x = d.x.get();
    d.begin(std::max(at, 0), empty);
    d.by_megakernel(mega);
    expect_same_bits(d.residual.get().data(), residual.data(), residual.size(), step);
    expect_same_bits(d.x.get().data(), x.data(), x.size(), step + " next_x");
    expect_same_bits(d.sumsq.get().data(), sumsq.data(), sumsq.size(), step + " next_sumsq");
  }
  for (int l = 0; l < c.layers; l++)
    for (int i = 0; i < 4; i++)
      expect_same_bits(found[l].parts[i].get().data(), expected[l].parts[i].get().data(), found[l].parts[i].count, name + " pool");
  CK(aisp_megakernel_destroy(mega));

  aisp_megakernel *broken = nullptr;
  CK(d.create(found, true, &broken));
  d.begin(20, false);
  d.by_ops(expected);
  const auto residual = d.residual.get();
  d.begin(20, false);
  d.by_megakernel(broken);
  const auto other = d.residual.get();
  size_t differ = 0;
  for (size_t i = 0; i < residual.size(); i++) differ += residual[i] != other[i];
  expect_above((double)differ, 0, name + ", two layers' weights swapped");
  CK(aisp_megakernel_destroy(broken));
}

} // namespace

// Steps at the borders of blocks and splits, one after another, so that words of the step before are there.
void check_megakernel(const aisp_ctx *ctx, uint64_t seed) {
  const bool small = std::getenv("SMALL") != nullptr;
  {
    const Decoder any(ctx, {576, 9, 3, 64, 1536, 2, AISP_BF16, AISP_KV_BF16, 0, AISP_ROPE_NEOX, false, false}, seed);
    aisp_megakernel *mega = nullptr;
    const int code = any.create(any.pools(), false, &mega);
    CK(aisp_megakernel_destroy(mega));
    if (code == 801) {
      std::printf("no megakernel for this card\n");
      return;
    }
  }
  for (int format : {AISP_BF16, AISP_FP8, AISP_W8G32, AISP_W4G32, AISP_NVFP4})
    for (int kv : {AISP_KV_BF16, AISP_KV_FP8, AISP_KV_FP4}) {
      if (small && (format != AISP_W4G32) != (kv == AISP_KV_FP4)) continue;
      check(ctx, {576, 9, 3, 64, 1536, 3, format, kv, 0, AISP_ROPE_INTERLEAVED, false, false}, seed++);
      check(ctx, {1024, 16, 2, 128, 2816, 2, format, kv, 300, AISP_ROPE_NEOX, true, true}, seed++);
    }
  if (!small) {
    check(ctx, {4096, 32, 8, 128, 14336, 2, AISP_BF16, AISP_KV_BF16, 0, AISP_ROPE_NEOX, false, false}, seed++);
    check(ctx, {2048, 32, 8, 64, 8192, 4, AISP_BF16, AISP_KV_FP8, 0, AISP_ROPE_NEOX, false, false}, seed++);
    check(ctx, {4096, 32, 8, 128, 14336, 2, AISP_W4G32, AISP_KV_BF16, 0, AISP_ROPE_NEOX, false, false}, seed++);
  }
  // What there is no code for is refused.
  for (int which = 0; which < 3; which++) {
    Case c = {576, 9, 3, 64, 1536, 2, AISP_BF16, AISP_KV_BF16, 0, AISP_ROPE_NEOX, false, false};
    if (which == 0) c.dim = 32;
    if (which == 1) c.heads = 27;
    if (which == 2) c.inner = 65536;
    const Decoder d(ctx, c, seed++);
    aisp_megakernel *mega = nullptr;
    const int code = d.create(d.pools(), false, &mega);
    expect(code == 801 && !mega, "a shape without code is refused", code, 801);
  }
}
