// Times: the card's ceilings, linears by shape and format, and whole decode steps in one graph.
// Usage: bench [ceilings] [linear] [step] [prefill] [attention]; MODELS="8b 1b 135m", FORMATS, BATCHES, CONTEXTS narrow the steps,
// KV="bf16 fp8 fp4" the attention, and BATCHES and CONTEXTS, if both are said; SPLITS="0 -1 8" are splits of decode attention to try.
// Weights rotate over more memory than the L2 holds. Bytes are those that must move once; the floor is
// bytes over the read rate measured first.
#include <map>
#include <memory>
#include <sstream>

#include "harness.hpp"

static aisp_ctx *CTX;
static double READ_RATE = 4.4e12; // bytes a second
static bool USE_PDL = true;

static std::vector<std::string> words(const char *variable, const char *otherwise) {
  const char *text = std::getenv(variable);
  std::istringstream in(text ? text : otherwise);
  std::vector<std::string> all;
  for (std::string w; in >> w;) all.push_back(w);
  return all;
}
static int format_named(const std::string &name) {
  for (int f : {AISP_BF16, AISP_FP8, AISP_W8G32, AISP_W4G32, AISP_NVFP4})
    if (name == format_name(f)) return f;
  std::exit(3);
}

// Median microseconds of a graph of `work`, over `repeats` launches.
static double time_graph(const std::function<void()> &work, int repeats = 9, size_t *nodes = nullptr) {
  work(); // warm: lazy loading and choices happen outside the capture
  CK(aisp_stream_synchronize(STREAM));
  CK(aisp_graph_begin_capture(STREAM));
  work();
  aisp_graph graph;
  CK(aisp_graph_end_capture(STREAM, &graph, nodes));
  aisp_event start, end;
  CK(aisp_event_create(&start, 1));
  CK(aisp_event_create(&end, 1));
  std::vector<float> times;
  for (int i = 0; i < repeats + 2; i++) {
    CK(aisp_event_record(start, STREAM));
    CK(aisp_graph_launch(graph, STREAM));
    CK(aisp_event_record(end, STREAM));
    CK(aisp_event_synchronize(end));
    float ms;
    CK(aisp_event_elapsed_ms(&ms, start, end));
    if (i >= 2) times.push_back(ms * 1000);
  }
  CK(aisp_event_destroy(start));
  CK(aisp_event_destroy(end));
  CK(aisp_graph_destroy(graph));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

static void bench_ceilings() {
  const size_t bytes = (size_t)4 << 30;
  Device<aisp_bf16> src(bytes / 2), dst(bytes / 4);
  Device<float> sink(1);
  CK(aisp_fill_normal(CTX, src.ptr, src.count, 1, 0, 1, STREAM));
  const double read_us = time_graph([&] { CK(aisp_probe_read(CTX, src.ptr, bytes, sink.ptr, STREAM)); });
  const double copy_us = time_graph([&] { CK(aisp_probe_copy(CTX, src.ptr, dst.ptr, bytes / 2, STREAM)); });
  const double memcpy_us = time_graph([&] { CK(aisp_memcpy_d2d(dst.ptr, src.ptr, bytes / 2, STREAM)); });
  const double empty_us = time_graph([&] { for (int i = 0; i < 200; i++) CK(aisp_probe_empty(CTX, STREAM)); }) / 200;
  READ_RATE = bytes / read_us * 1e6;
  std::printf("read %.2f TB/s, copy %.2f TB/s (memcpy %.2f), empty kernel in a graph %.2f us\n", READ_RATE / 1e12, bytes / copy_us / 1e6,
              bytes / memcpy_us / 1e6, empty_us);
}

using Linear = int (*)(const aisp_ctx *, const aisp_weight *, const aisp_linear_args *, aisp_stream);
static const std::pair<const char *, Linear> KINDS[] = {{"few", aisp_linear}, {"wide", aisp_wide_linear}, {"codes", linear_of_codes}};

static void bench_linear() {
  const int shapes[][3] = {{6144, 4096, 0}, {4096, 4096, 0}, {28672, 4096, 1}, {4096, 14336, 0}, {128256, 4096, 0},
                           {3072, 2048, 0}, {2048, 2048, 0}, {16384, 2048, 1}, {2048, 8192, 0}, {960, 576, 0}, {3072, 576, 1}};
  std::printf("\n%-12s %-14s", "format", "shape");
  const auto batches = words("BATCHES", "1 8 32 64 128 256");
  int most = 0;
  for (auto &b : batches) std::printf("  T=%-3s us  share", b.c_str()), most = std::max(most, std::stoi(b));
  std::printf("   (floor us)\n");
  for (auto &format_name : words("FORMATS", "bf16 fp8 w8g32 w4g32 nvfp4"))
    for (auto [n, k, gated] : shapes) {
      const auto wanted = words("SHAPES", "");
      if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), std::to_string(n) + "x" + std::to_string(k)) == wanted.end()) continue;
      const int format = format_named(format_name);
      const size_t one = aisp_weight_data_bytes(format, n, k);
      const int copies = (int)std::clamp<size_t>(((size_t)400 << 20) / one, 2, 200);
      std::vector<Matrix> weights;
      for (int i = 0; i < copies; i++) weights.push_back(make_matrix(CTX, format, n, k, i));
      Device<aisp_bf16> x((size_t)most * k);
      Device<float> out((size_t)most * n);
      CK(aisp_fill_normal(CTX, x.ptr, x.count, 5, 0, 1, STREAM));
      const double floor_us = weights[0].bytes() / READ_RATE * 1e6;
      for (auto [name, linear] : KINDS) {
        const bool wide = linear != aisp_linear;
        if (linear == linear_of_codes && format != AISP_FP8) continue;
        std::printf("%-6s %-5s %6dx%-7d", format_name.c_str(), name, n, k);
        for (auto &batch : batches) {
          aisp_linear_args args = {};
          args.x = x.ptr, args.ldx = k, args.output = gated ? AISP_OUT_SILU_MUL : AISP_OUT_F32, args.out = out.ptr, args.ldo = gated ? n / 2 : n;
          args.num_rows = std::stoi(batch);
          if (wide ? args.num_rows <= 8 || !aisp_has_wide_linear(CTX) : args.num_rows > AISP_LINEAR_MAX_ROWS) {
            std::printf("  %8s  %4s ", "-", "");
            continue;
          }
          const double us = time_graph([&] {
            for (auto &w : weights) {
              const aisp_weight view = w.view();
              CK(linear(CTX, &view, &args, STREAM));
            }
          }, 5) / copies;
          std::printf("  %8.2f  %4.2f ", us, floor_us / us);
        }
        std::printf("   %.2f\n", floor_us);
        std::fflush(stdout);
      }
    }
}

// Splits of decode attention to try; 0: of fixed size, -1: as many as suit the card.
static std::vector<int> numbers_of_splits(int batch, int context) {
  std::vector<int> all;
  for (auto &name : words("SPLITS", "0 -1")) {
    const int splits = std::stoi(name);
    if (splits <= context / 64 && splits * batch <= std::max(batch * (context / 256), 1024)) all.push_back(splits);
  }
  return all;
}
// Contexts that the engine records a step for.
static int recorded_context(int context) {
  int most = 256;
  while (most < context) most *= 4;
  return most;
}
static aisp_decode_args with_splits(aisp_decode_args args, const aisp_kv_layer &kv, int splits) {
  args.num_splits = splits < 0 ? aisp_decode_splits(CTX, &kv, &args) : splits;
  return args;
}

struct Shape {
  const char *name;
  int hidden, heads, kvh, dim, inner, layers, vocab;
  bool tied;
};
static const Shape SHAPES[] = {{"8b", 4096, 32, 8, 128, 14336, 32, 128256, false},
                               {"1b", 2048, 32, 8, 64, 8192, 16, 128256, true},
                               {"135m", 576, 9, 3, 64, 1536, 30, 49152, true}};
static Shape shape_named(const std::string &name) {
  for (auto &s : SHAPES)
    if (name == s.name) return s;
  return SHAPES[0];
}

struct Model {
  Shape s;
  std::vector<Matrix> qkv, o, gate_up, down;
  Matrix embed, head;
  Device<float> norm, cos, sin;
  size_t weight_bytes = 0;

  Model(const Shape &shape, int format) : s(shape), norm((size_t)shape.hidden), cos((size_t)8192 * shape.dim / 2), sin(cos.count) {
    for (int l = 0; l < s.layers; l++) {
      qkv.push_back(make_matrix(CTX, format, (s.heads + 2 * s.kvh) * s.dim, s.hidden, 4 * l));
      o.push_back(make_matrix(CTX, format, s.hidden, s.heads * s.dim, 4 * l + 1));
      gate_up.push_back(make_matrix(CTX, format, 2 * s.inner, s.hidden, 4 * l + 2));
      down.push_back(make_matrix(CTX, format, s.hidden, s.inner, 4 * l + 3));
      weight_bytes += qkv[l].bytes() + o[l].bytes() + gate_up[l].bytes() + down[l].bytes();
    }
    head = make_matrix(CTX, AISP_BF16, s.vocab, s.hidden, 999);
    if (!s.tied) embed = make_matrix(CTX, AISP_BF16, s.vocab, s.hidden, 998);
    weight_bytes += head.bytes();
    CK(aisp_fill_normal_f32(CTX, norm.ptr, norm.count, 3, 1, 0.1f, STREAM));
    std::vector<float> c(cos.count), n(cos.count);
    for (size_t i = 0; i < c.size(); i++) {
      const double angle = (double)(i / (s.dim / 2)) * std::pow(500000.0, -2.0 * (double)(i % (s.dim / 2)) / s.dim);
      c[i] = (float)std::cos(angle), n[i] = (float)std::sin(angle);
    }
    cos.put(c), sin.put(n);
  }
};

struct Plans {
  aisp_gemm *qkv = nullptr, *o = nullptr, *gate_up = nullptr, *down = nullptr, *head = nullptr;
};

// A layer's keys and values of noise in any format.
struct Pool {
  Device<uint8_t> k, v, k_scales, v_scales;
  int format, num_kv_heads, dim;

  Pool(int format, int num_kv_heads, int dim, size_t positions, uint64_t seed)
      : k(positions * num_kv_heads * aisp_kv_row_bytes(format, dim)), v(k.count), k_scales(positions * num_kv_heads * aisp_kv_scale_bytes(format, dim)),
        v_scales(k_scales.count), format(format), num_kv_heads(num_kv_heads), dim(dim) {
    fill(k, k_scales, positions * num_kv_heads, seed);
    fill(v, v_scales, positions * num_kv_heads, seed + 1);
  }
  void fill(Device<uint8_t> &data, Device<uint8_t> &scales, size_t rows, uint64_t seed) {
    if (format == AISP_KV_BF16) {
      CK(aisp_fill_normal(CTX, (aisp_bf16 *)data.ptr, rows * dim, seed, 0, 1, STREAM));
      return;
    }
    const Device<aisp_bf16> noise(rows * dim);
    CK(aisp_fill_normal(CTX, noise.ptr, noise.count, seed, 0, 1, STREAM));
    if (format == AISP_KV_FP8) {
      CK(aisp_quantize_rows(CTX, noise.ptr, (int)rows, dim, data.ptr, (float *)scales.ptr, STREAM));
    } else { // codes lie as those of weights do
      const Device<uint8_t> other(aisp_weight_scales_bytes(AISP_NVFP4, (int)rows, dim));
      CK(aisp_quantize_weight(CTX, AISP_NVFP4, (int)rows, dim, noise.ptr, 1.0f / 448, data.ptr, other.ptr, STREAM));
      CK(aisp_fill_normal(CTX, (aisp_bf16 *)scales.ptr, rows * (dim / 16), seed, 0.4f, 0.05f, STREAM));
      CK(aisp_stream_synchronize(STREAM)); // `other` goes
    }
    CK(aisp_stream_synchronize(STREAM));
  }
  aisp_kv_layer view() const { return {k.ptr, v.ptr, k_scales.ptr, v_scales.ptr, format, num_kv_heads, dim}; }
  double bytes() const { return 2.0 * (double)(k.count + k_scales.count); }
};

static int kv_format_named(const std::string &name) { return name == "fp4" ? AISP_KV_FP4 : name == "fp8" ? AISP_KV_FP8 : AISP_KV_BF16; }

// What a step works on.
struct Step {
  Model &m;
  int batch, context, max_context, num_splits = 0;
  Device<float> residual, qkv, logits, sumsq, x_scales, gated_scales;
  Device<aisp_bf16> x, q, attention, gated, gate_up;
  Device<int32_t> ids, positions, slots, lens, tables, cu;
  std::vector<Pool> pools;
  Device<uint8_t> workspace, argmax_space, gemm_space;
  int max_blocks;
  Plans plans;

  Step(Model &model, int rows, int batch, int context, int kv_format = AISP_KV_BF16)
      : m(model), batch(batch), context(context), max_context(recorded_context(context)), residual((size_t)rows * m.s.hidden), qkv((size_t)rows * (m.s.heads + 2 * m.s.kvh) * m.s.dim),
        logits((size_t)std::min(rows, 256) * m.s.vocab), sumsq((size_t)rows * m.s.hidden / 16),
        x_scales((size_t)(rows + 3) * m.s.hidden / 64), gated_scales((size_t)(rows + 3) * m.s.inner / 64), x((size_t)rows * m.s.hidden),
        q((size_t)rows * m.s.heads * m.s.dim), attention(q.count), gated((size_t)rows * m.s.inner), gate_up((size_t)rows * 2 * m.s.inner),
        ids(rows), positions(rows), slots(rows), lens(batch), cu(batch + 1),
        workspace(aisp_decode_workspace_bytes(batch, m.s.heads, m.s.dim, max_context)), argmax_space(aisp_argmax_workspace_bytes(batch)),
        gemm_space(32 << 20), max_blocks(context / 16 + 2) {
    CK(aisp_memset(workspace.ptr, 0, workspace.count, STREAM));
    std::vector<int32_t> t((size_t)batch * max_blocks);
    for (size_t i = 0; i < t.size(); i++) t[i] = (int32_t)((i * 7919) % t.size()); // 7919 is prime: all blocks, out of order
    tables = Device<int32_t>(t);
    for (int l = 0; l < m.s.layers; l++) pools.emplace_back(kv_format, m.s.kvh, m.s.dim, t.size() * 16, 100 + 2 * l);
    std::vector<int32_t> id(rows), p(rows), slot(rows), len(batch, context), starts(batch + 1);
    const int per = rows / batch;
    for (int r = 0; r < rows; r++) {
      const int s = r / per;
      id[r] = (r * 31 + 7) % m.s.vocab;
      p[r] = context - per + r % per;
      slot[r] = t[(size_t)s * max_blocks + p[r] / 16] * 16 + p[r] % 16;
    }
    for (int s = 0; s <= batch; s++) starts[s] = s * per;
    ids.put(id), positions.put(p), slots.put(slot), lens.put(len), cu.put(starts);
  }

  aisp_rope rope() { return {m.cos.ptr, m.sin.ptr, AISP_ROPE_NEOX, nullptr, nullptr, 1e-5f}; }
  aisp_decode_args decode_args(int l) {
    const bool small = m.o[l].format != AISP_BF16 && m.o[l].format != AISP_FP8 && m.o[l].bytes() < (1 << 20);
    return with_splits({q.ptr, attention.ptr, tables.ptr, max_blocks, lens.ptr, batch, m.s.heads, max_context, 0, 1 / std::sqrt((float)m.s.dim), workspace.ptr, small},
                       pools[l].view(), num_splits);
  }
  void turn(int l) {
    const aisp_kv_layer layer = pools[l].view();
    const aisp_rope turn = rope();
    CK(aisp_rope_store(CTX, qkv.ptr, AISP_F32, &turn, positions.ptr, slots.ptr, (int)ids.count, m.s.heads, &layer, q.ptr, STREAM));
  }
  void attend_turned(int l) {
    const aisp_kv_layer layer = pools[l].view();
    const int rows = (int)ids.count;
    if (rows == batch) {
      const aisp_decode_args decode = decode_args(l);
      CK(aisp_decode_attention(CTX, &layer, &decode, STREAM));
    } else {
      const aisp_prefill_args args = {q.ptr, attention.ptr, tables.ptr, max_blocks, cu.ptr, lens.ptr, batch, rows / batch, m.s.heads, 0, 1 / std::sqrt((float)m.s.dim)};
      CK(aisp_prefill_attention(CTX, &layer, &args, STREAM));
    }
  }
  void attend(int l) {
    static const bool apart = std::getenv("APART") != nullptr;
    if ((int)ids.count == batch && !apart) {
      const aisp_kv_layer layer = pools[l].view();
      const aisp_rope turn = rope();
      const aisp_decode_args decode = decode_args(l);
      CK(aisp_rope_decode_attention(CTX, qkv.ptr, &turn, positions.ptr, slots.ptr, &layer, &decode, STREAM));
      return;
    }
    turn(l);
    attend_turned(l);
  }
  Linear product = aisp_linear;
  void linear(const Matrix &w, const aisp_bf16 *from, int output, void *out, bool normed, bool next, const float *scales = nullptr,
              float *next_scales = nullptr) {
    const aisp_weight view = w.view();
    aisp_linear_args args = {};
    args.x = from, args.ldx = w.k, args.output = output, args.out = out, args.ldo = output == AISP_OUT_SILU_MUL ? w.n / 2 : w.n, args.num_rows = (int)ids.count;
    if (normed) args.x_sumsq = sumsq.ptr, args.eps = 1e-5f;
    if (next) args.next_norm_weight = m.norm.ptr, args.next_x = x.ptr, args.next_sumsq = sumsq.ptr;
    args.x_scales = scales, args.next_scales = next_scales, args.ld_scales = ((int)ids.count + 3) / 4 * 4;
    CK(product(CTX, &view, &args, STREAM));
  }
  // All linears our own, norms folded into them. `codes`: x in e4m3, but for the first and the output projections.
  void fused(bool codes = false) {
    float *const xs = codes ? x_scales.ptr : nullptr, *const gs = codes ? gated_scales.ptr : nullptr;
    const aisp_weight table = m.s.tied ? m.head.view() : m.embed.view();
    CK(aisp_embedding(CTX, &table, ids.ptr, nullptr, 0, (int)ids.count, residual.ptr, m.norm.ptr, x.ptr, sumsq.ptr, STREAM));
    for (int l = 0; l < m.s.layers; l++) {
      linear(m.qkv[l], x.ptr, AISP_OUT_F32, qkv.ptr, true, false, l ? xs : nullptr);
      attend(l);
      linear(m.o[l], attention.ptr, AISP_OUT_RESIDUAL, residual.ptr, false, true, nullptr, xs);
      linear(m.gate_up[l], x.ptr, AISP_OUT_SILU_MUL, gated.ptr, true, false, xs, gs);
      linear(m.down[l], gated.ptr, AISP_OUT_RESIDUAL, residual.ptr, false, true, gs, l + 1 < m.s.layers ? xs : nullptr);
    }
    linear(m.head, x.ptr, AISP_OUT_F32, logits.ptr, true, false);
    CK(aisp_argmax(CTX, logits.ptr, m.s.vocab, batch, m.s.vocab, ids.ptr, argmax_space.ptr, STREAM));
  }
  // Products by cuBLASLt, weights and x in bf16 or in e4m3.
  bool fp8 = false;
  Device<uint8_t> codes;
  aisp_rows rows_for_product(aisp_bf16 *x) { return fp8 ? aisp_rows{nullptr, codes.ptr, x_scales.ptr} : aisp_rows{x, nullptr, nullptr}; }
  struct Operands {
    const void *x;
    const float *x_scales;
    const void *w;
    const float *w_scales;
  };
  Operands operands(const Matrix &w, const aisp_bf16 *from) {
    const aisp_weight view = w.view();
    if (w.format == AISP_FP8) return {codes.ptr, x_scales.ptr, view.data, (const float *)view.scales};
    return {from, nullptr, view.data, nullptr};
  }
  void tune(aisp_gemm **plan, int output, const Matrix &w, const aisp_bf16 *from, void *out, int rows) {
    CK(aisp_gemm_create(CTX, w.format, output, w.n, w.k, plan));
    Device<uint8_t> flush((size_t)128 << 20);
    float us;
    if (w.format == AISP_FP8) round(from, rows, w.k);
    const Operands of = operands(w, from);
    CK(aisp_gemm_tune(*plan, rows, of.x, of.x_scales, of.w, of.w_scales, out, gemm_space.ptr, gemm_space.count, flush.ptr, flush.count, STREAM, &us));
    std::printf("  gemm %s %dx%d rows %d: %.1f us, %.0f TFLOP/s\n", format_name(w.format), w.n, w.k, rows, us, 2.0 * w.n * w.k * rows / us / 1e6);
  }
  void tune() {
    const int rows = (int)ids.count;
    fp8 = m.qkv[0].format == AISP_FP8;
    if (fp8) codes = Device<uint8_t>((size_t)rows * std::max(m.s.inner, m.s.hidden));
    tune(&plans.qkv, AISP_GEMM_F32, m.qkv[0], x.ptr, qkv.ptr, rows);
    tune(&plans.o, AISP_GEMM_ADD, m.o[0], attention.ptr, residual.ptr, rows);
    tune(&plans.gate_up, AISP_GEMM_BF16, m.gate_up[0], x.ptr, gate_up.ptr, rows);
    tune(&plans.down, AISP_GEMM_ADD, m.down[0], gated.ptr, residual.ptr, rows);
    tune(&plans.head, AISP_GEMM_F32, m.head, x.ptr, logits.ptr, batch);
  }
  void round(const aisp_bf16 *from, int rows, int k) { CK(aisp_quantize_rows(CTX, from, rows, k, codes.ptr, x_scales.ptr, STREAM)); }
  void gemm(aisp_gemm *plan, const Matrix &w, const aisp_bf16 *from, void *out, int rows) {
    const Operands of = operands(w, from);
    CK(aisp_gemm_run(plan, rows, of.x, of.x_scales, of.w, of.w_scales, out, gemm_space.ptr, gemm_space.count, STREAM));
  }
  void norm(const aisp_rows &out) { CK(aisp_rms_norm(CTX, residual.ptr, m.norm.ptr, 1e-5f, (int)ids.count, m.s.hidden, &out, STREAM)); }
  // What a layer is made of where cuBLASLt multiplies.
  using Op = std::pair<const char *, std::function<void(int)>>;
  std::vector<Op> library_ops() {
    const int rows = (int)ids.count;
    const aisp_rows normed = rows_for_product(x.ptr), gate = rows_for_product(gated.ptr);
    std::vector<Op> ops;
    ops.emplace_back("norm", [=](int) { norm(normed); });
    ops.emplace_back("qkv", [=](int l) { gemm(plans.qkv, m.qkv[l], x.ptr, qkv.ptr, rows); });
    ops.emplace_back("rope and store", [=](int l) { turn(l); });
    ops.emplace_back("attention", [=](int l) { attend_turned(l); });
    if (fp8) ops.emplace_back("round", [=](int) { round(attention.ptr, rows, m.s.heads * m.s.dim); });
    ops.emplace_back("o", [=](int l) { gemm(plans.o, m.o[l], attention.ptr, residual.ptr, rows); });
    ops.emplace_back("norm", [=](int) { norm(normed); });
    ops.emplace_back("gate and up", [=](int l) { gemm(plans.gate_up, m.gate_up[l], x.ptr, gate_up.ptr, rows); });
    ops.emplace_back("silu mul", [=](int) { CK(aisp_silu_mul(CTX, gate_up.ptr, rows, m.s.inner, &gate, STREAM)); });
    ops.emplace_back("down", [=](int l) { gemm(plans.down, m.down[l], gated.ptr, residual.ptr, rows); });
    return ops;
  }
  void library() {
    const int rows = (int)ids.count;
    const aisp_weight table = m.s.tied ? m.head.view() : m.embed.view();
    CK(aisp_embedding(CTX, &table, ids.ptr, nullptr, 0, rows, residual.ptr, nullptr, nullptr, nullptr, STREAM));
    const auto ops = library_ops();
    for (int l = 0; l < m.s.layers; l++)
      for (auto &op : ops) op.second(l);
    norm({x.ptr, nullptr, nullptr});
    gemm(plans.head, m.head, x.ptr, logits.ptr, batch);
    CK(aisp_argmax(CTX, logits.ptr, m.s.vocab, batch, m.s.vocab, ids.ptr, argmax_space.ptr, STREAM));
  }
};

static void bench_step() {
  for (auto &model_name : words("MODELS", "8b 1b 135m"))
    for (auto &format_name : words("FORMATS", "bf16 fp8 w4g32")) {
      const Shape shape = shape_named(model_name);
      Model model(shape, format_named(format_name));
      const std::string kv_name = words("KV", "bf16")[0];
      std::printf("\n%s %s, KV %s: weights a step %.2f GB\n", shape.name, format_name.c_str(), kv_name.c_str(), model.weight_bytes / 1e9);
      for (auto &context_name : words("CONTEXTS", "256 1024"))
        for (auto &batch_name : words("BATCHES", "1 8 32 64 128 256")) {
          const int batch = std::stoi(batch_name), context = std::stoi(context_name);
          Step step(model, batch, batch, context, kv_format_named(kv_name));
          const double kv_bytes = step.pools[0].bytes() / ((double)step.max_blocks * 16) * context * shape.layers;
          const double floor_ms = (model.weight_bytes + kv_bytes) / READ_RATE * 1e3;
          size_t nodes = 0;
          double ms = 0;
          for (auto [name, linear] : KINDS) {
            const bool wide = linear != aisp_linear;
            if (linear == linear_of_codes && format_name != "fp8") continue;
            if (wide ? batch <= 8 || !aisp_has_wide_linear(CTX) : batch > AISP_LINEAR_MAX_ROWS) continue;
            const bool codes = linear == linear_of_codes;
            step.product = codes ? aisp_wide_linear : linear;
            for (int splits : numbers_of_splits(batch, context)) {
              step.num_splits = splits;
              ms = time_graph([&] { step.fused(codes); }, 9, &nodes) / 1000;
              std::printf("%s %s batch %d context %d: %s, %d splits, %.3f ms, floor %.3f, share %.2f, %zu nodes, KV %.2f GB\n", shape.name,
                          format_name.c_str(), batch, context, name, splits, ms, floor_ms, floor_ms / ms, nodes, kv_bytes / 1e9);
            }
          }
          if (format_name == "bf16" && batch > 8 && aisp_ctx_has_cublaslt(CTX)) {
            step.tune();
            ms = time_graph([&] { step.library(); }, 9, &nodes) / 1000;
            std::printf("%s %s batch %d context %d: cuBLASLt %.3f ms, floor %.3f, share %.2f, %zu nodes\n", shape.name, format_name.c_str(), batch,
                        context, ms, floor_ms, floor_ms / ms, nodes);
          }
          std::fflush(stdout);
        }
    }
}

static void bench_prefill() {
  for (auto &model_name : words("MODELS", "8b 1b"))
    for (auto &format_name : words("FORMATS", "bf16 fp8")) {
      const Shape shape = shape_named(model_name);
      Model model(shape, format_named(format_name));
      for (auto &rows_name : words("ROWS", "2048 8192")) {
        const int rows = std::stoi(rows_name);
        const std::string kv_name = words("KV", "bf16")[0];
        Step step(model, rows, 1, rows, kv_format_named(kv_name));
        step.tune();
        const double ms = time_graph([&] { step.library(); }, 5) / 1000;
        double linear = 0;
        for (auto *list : {&model.qkv, &model.o, &model.gate_up, &model.down})
          for (auto &w : *list) linear += 2.0 * w.n * w.k * rows;
        const double attention = 4.0 * rows * rows / 2 * shape.heads * shape.dim * shape.layers;
        std::printf("%s %s prefill of %d, KV %s: %.2f ms, %.0f TFLOP/s; all layers of each by itself, ms:", shape.name, format_name.c_str(), rows,
                    kv_name.c_str(), ms, (linear + attention) / ms / 1e9);
        for (auto &op : step.library_ops())
          std::printf(" %s %.2f,", op.first, time_graph([&] { for (int l = 0; l < shape.layers; l++) op.second(l); }, 5) / 1000);
        std::printf("\n");
        std::fflush(stdout);
      }
    }
}

// The last 2048 tokens of a context, in one layer of 32 heads over 8.
static void bench_prefill_attention(const char *kv_name, int format, int dim) {
  constexpr int ROWS = 2048, HEADS = 32, KVH = 8;
  for (int context : {2048, 8192}) {
    const int max_blocks = context / 16;
    const Pool pool(format, KVH, dim, (size_t)context, 1);
    Device<aisp_bf16> q((size_t)ROWS * HEADS * dim), out(q.count);
    CK(aisp_fill_normal(CTX, q.ptr, q.count, 3, 0, 1, STREAM));
    std::vector<int32_t> t(max_blocks);
    for (int i = 0; i < max_blocks; i++) t[i] = (int32_t)((i * 7919) % max_blocks);
    const Device<int32_t> tables(t), lens(std::vector<int32_t>{context}), cu(std::vector<int32_t>{0, ROWS});
    const aisp_kv_layer kv = pool.view();
    const aisp_prefill_args args = {q.ptr, out.ptr, tables.ptr, max_blocks, cu.ptr, lens.ptr, 1, ROWS, HEADS, 0, 1 / std::sqrt((float)dim)};
    const double us = time_graph([&] { CK(aisp_prefill_attention(CTX, &kv, &args, STREAM)); }, 5);
    const double flops = 4.0 * dim * HEADS * ROWS * (context - ROWS / 2);
    std::printf("prefill attention kv %s D %d, last %d of %d: %.1f us, %.0f TFLOP/s\n", kv_name, dim, ROWS, context, us, flops / us / 1e6);
  }
}

static void bench_attention(const char *kv_name, int format) {
  const Shape shape = {"layer", 4096, 32, 8, 128, 64, 1, 64, true};
  std::vector<std::pair<int, int>> sizes = {{1, 1024}, {1, 4096}, {1, 32768}, {8, 4096}, {32, 1024}, {32, 4096}, {64, 1024}, {64, 4096}, {256, 1024}};
  const auto batches = words("BATCHES", ""), contexts = words("CONTEXTS", "");
  if (!batches.empty() && !contexts.empty()) {
    sizes.clear();
    for (auto &b : batches)
      for (auto &c : contexts) sizes.emplace_back(std::stoi(b), std::stoi(c));
  }
  for (auto [batch, context] : sizes) {
    const int max_blocks = (context + 15) / 16, copies = std::max<int>(1, (int)(400e6 / ((double)batch * context * 16 * (double)(aisp_kv_row_bytes(format, 128) + aisp_kv_scale_bytes(format, 128)))));
    std::vector<Pool> layers;
    for (int i = 0; i < copies; i++) layers.emplace_back(format, shape.kvh, 128, (size_t)batch * max_blocks * 16, 1);
    Device<aisp_bf16> q((size_t)batch * 4096), out(q.count);
    CK(aisp_fill_normal(CTX, q.ptr, q.count, 3, 0, 1, STREAM));
    std::vector<int32_t> t((size_t)batch * max_blocks);
    for (size_t i = 0; i < t.size(); i++) t[i] = (int32_t)((i * 7919) % t.size());
    const Device<int32_t> tables(t), lens(std::vector<int32_t>(batch, context));
    Device<uint8_t> workspace(aisp_decode_workspace_bytes(batch, 32, 128, context));
    CK(aisp_memset(workspace.ptr, 0, workspace.count, STREAM));
    const double bytes = layers[0].bytes();
    std::printf("decode attention kv %s batch %d context %d: %.1f MB, floor %.2f us;", kv_name, batch, context, bytes / 1e6, bytes / READ_RATE * 1e6);
    for (int splits : numbers_of_splits(batch, context)) {
      const double us = time_graph([&] {
        for (int i = 0; i < copies; i++) {
          const aisp_kv_layer kv = layers[i].view();
          const aisp_decode_args args = with_splits({q.ptr, out.ptr, tables.ptr, max_blocks, lens.ptr, batch, 32, context, 0, 0.088f, workspace.ptr}, kv, splits);
          CK(aisp_decode_attention(CTX, &kv, &args, STREAM));
        }
      }, 5) / copies;
      std::printf(" %d splits: %.2f us (%.2f)", splits, us, bytes / READ_RATE * 1e6 / us);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

static void bench_attention() {
  for (auto &name : words("KV", "bf16 fp8 fp4"))
    bench_attention(name.c_str(), kv_format_named(name));
  for (auto &name : words("KV", "bf16 fp8 fp4"))
    for (int dim : {64, 128}) bench_prefill_attention(name.c_str(), kv_format_named(name), dim);
}

int main(int argc, char **argv) {
  USE_PDL = !std::getenv("NO_PDL");
  CK(aisp_ctx_create(0, USE_PDL ? AISP_CTX_PDL : 0, &CTX));
  CK(aisp_stream_create(&STREAM));
  std::vector<std::pair<const char *, void (*)()>> groups = {{"ceilings", bench_ceilings}, {"linear", bench_linear}, {"step", bench_step},
                                                             {"prefill", bench_prefill},   {"attention", bench_attention}};
  for (auto [name, run] : groups) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; i++) wanted |= !std::strcmp(argv[i], name);
    if (wanted) run();
  }
  return 0;
}
