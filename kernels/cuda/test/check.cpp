// Every op against a reference in f64 on fresh inputs, bitwise invariance to the batch, and faults that must be seen.
// Usage: check [FILTER] (a word of a group's name). VERBOSE=1 prints what passed; SMALL=1 leaves out large linears and long contexts; SEED, NO_PDL.
#include <array>
#include <numeric>

#include "harness.hpp"

// Rounding to bf16 is off by at most 2^-8 of the value; where one outlier carries the sum, that is the error: (2^-8)^2.
static constexpr double BF16_ROUNDING = 1.6e-5;
static aisp_ctx *CTX;
static uint64_t SEED = 1;

// A weight with its natural values.
struct Weight {
  int format, n, k;
  std::vector<float> values; // [N, K]
  Device<uint8_t> data, scales;
  float tensor_scale = 1;
  aisp_weight view() const { return {format, n, k, tensor_scale, data.ptr, scales.ptr}; }
};

static Weight make_weight(int format, int n, int k, uint64_t seed) {
  Weight w;
  w.format = format, w.n = n, w.k = k;
  w.values.resize((size_t)n * k);
  Random random(seed);
  std::vector<uint8_t> data(aisp_weight_data_bytes(format, n, k)), scales(aisp_weight_scales_bytes(format, n, k));
  const float std = 1.0f / std::sqrt((float)k);
  if (format == AISP_BF16) {
    for (size_t i = 0; i < w.values.size(); i++) {
      const aisp_bf16 b = float_to_bf16(rough(random, i, std));
      std::memcpy(data.data() + 2 * i, &b, 2);
      w.values[i] = bf16_to_float(b);
    }
  } else if (format == AISP_FP8) {
    std::vector<uint8_t> codes((size_t)n * k);
    std::vector<float> natural(n);
    for (int r = 0; r < n; r++) {
      natural[r] = std * (float)(0.5 + random.uniform()) / 100;
      for (int c = 0; c < k; c++) {
        uint8_t code = (uint8_t)random.next();
        if ((code & 127) == 127) code ^= 1; // NaN
        codes[(size_t)r * k + c] = code;
        w.values[(size_t)r * k + c] = e4m3_value(code) * natural[r];
      }
    }
    CK(aisp_pack_rows(format, 0, n, k, codes.data(), natural.data(), data.data(), scales.data()));
  } else {
    const int group = format == AISP_NVFP4 ? 16 : 32, groups = k / group;
    std::vector<uint8_t> codes((size_t)n * k);
    for (auto &c : codes) c = format == AISP_W8G32 ? (uint8_t)random.next() : (uint8_t)random.below(16);
    if (format == AISP_NVFP4) {
      w.tensor_scale = std / 300;
      std::vector<uint8_t> natural((size_t)n * groups);
      for (auto &s : natural) s = (uint8_t)random.below(127);
      for (size_t i = 0; i < codes.size(); i++) w.values[i] = e2m1_value(codes[i]) * e4m3_value(natural[i / 16]) * w.tensor_scale;
      CK(aisp_pack_rows(format, 0, n, k, codes.data(), natural.data(), data.data(), scales.data()));
    } else {
      const int per = format == AISP_W8G32 ? 1 : 2;
      std::vector<uint16_t> natural((size_t)n * groups * per);
      for (size_t i = 0; i < natural.size(); i++) {
        float x = std * (float)(0.2 + random.uniform()) * (format == AISP_W8G32 ? 1.0f / 64 : 1.0f / 4);
        if (per == 2 && i % 2) x *= (float)(-8 - 4 * random.uniform());
        natural[i] = float_to_half(x);
      }
      for (size_t i = 0; i < codes.size(); i++)
        w.values[i] = per == 1 ? (float)(int8_t)codes[i] * half_to_float(natural[i / 32])
                               : (float)((double)codes[i] * half_to_float(natural[i / 32 * 2]) + half_to_float(natural[i / 32 * 2 + 1]));
      const int middle = n / 3; // two calls, as threads would
      CK(aisp_pack_rows(format, 0, middle, k, codes.data(), natural.data(), data.data(), scales.data()));
      CK(aisp_pack_rows(format, middle, n, k, codes.data(), natural.data(), data.data(), scales.data()));
    }
  }
  w.data = Device<uint8_t>(data);
  w.scales = Device<uint8_t>(scales);
  return w;
}

// x W^T in f64 for some columns.
static std::vector<double> product(const std::vector<aisp_bf16> &x, int rows, const Weight &w, const std::vector<int> &columns) {
  std::vector<double> out((size_t)rows * columns.size());
  parallel((int)columns.size(), [&](int c) {
    const float *row = &w.values[(size_t)columns[c] * w.k];
    for (int t = 0; t < rows; t++) {
      double sum = 0;
      for (int k = 0; k < w.k; k++) sum += (double)bf16_to_float(x[(size_t)t * w.k + k]) * row[k];
      out[(size_t)t * columns.size() + c] = sum;
    }
  });
  return out;
}

// Where value k of a row of e4m3 codes stands: words of a unit of 16 hold values 2i, 2i + 1, 8 + 2i and 9 + 2i.
static size_t fp8_place(size_t at) {
  const size_t k = at % 16;
  return at / 16 * 16 + k % 8 / 2 * 4 + k / 8 * 2 + k % 2;
}

static std::vector<int> some_columns(int n, int count) {
  std::vector<int> columns;
  if (n <= count) {
    columns.resize(n);
    std::iota(columns.begin(), columns.end(), 0);
    return columns;
  }
  Random random(SEED++);
  for (int i = 0; i < count / 4; i++) columns.push_back(i), columns.push_back(n - 1 - i);
  while ((int)columns.size() < count) columns.push_back(random.below(n));
  return columns;
}

using Linear = int (*)(const aisp_ctx *, const aisp_weight *, const aisp_linear_args *, aisp_stream);

// Rows of e4m3 values times a power of two, the largest in each 64, so that aisp_quantize_groups finds just them.
static std::vector<aisp_bf16> coded_bf16(int rows, int k, uint64_t seed) {
  Random random(seed);
  std::vector<aisp_bf16> x((size_t)rows * k);
  for (size_t i = 0; i < x.size(); i++) {
    const int code = i % 64 == i / k % 64 ? 448 : (8 + random.below(8)) << random.below(5); // four bits and an exponent
    x[i] = float_to_bf16(std::ldexp(random.below(2) ? -(float)code : (float)code, -(int)(i / k % 8)));
  }
  return x;
}

// Codes [rows, n] with a scale for each 64, 256 rows apart: near what they stand for, and none wider than needed.
static void expect_codes(const std::vector<uint8_t> &codes, const std::vector<float> &scales, int rows, int n,
                         const std::function<double(int, int)> &expected, const std::string &name) {
  Nmse e, off;
  int wide = 0;
  for (int t = 0; t < rows; t++)
    for (int group = 0; group < n / 64; group++) {
      double most = 0;
      for (int c = group * 64; c < group * 64 + 64; c++) {
        const double value = e4m3_value(codes[(size_t)t * n + fp8_place(c)]), scale = scales[(size_t)group * 256 + t];
        e.add(value * scale, expected(t, c));
        off.add(value * scale, expected(t, c ^ 1));
        most = std::max(most, std::fabs((double)value));
      }
      wide += most != 448;
    }
  expect_below(e.value(), 1.5e-3, name + " in e4m3");
  expect_above(off.value(), 1e-2, name + " in e4m3, columns exchanged");
  expect(wide == 0, name + " in e4m3: groups whose largest is not 448", wide, 0);
}

// `all_rows`: the most first. `invariant`: bits do not depend on the rows in the call, and rows may be chosen. `rounded`:
// integer codes become bf16. `codes`: of x too, which is such that nothing is lost by it; the matrix unit's sums are short then.
static void check_products(const std::string &kind, Linear linear, const std::vector<int> &all_rows, bool invariant, bool rounded, bool codes = false) {
  const int shapes[][2] = {{960, 576}, {576, 1536}, {48, 64}, {6144, 4096}, {1024, 14336}, {4096, 2048}, {64, 2208}, {8192, 576}};
  const int T = all_rows[0];
  const auto formats = codes ? std::vector<int>{AISP_FP8} : std::vector<int>{AISP_BF16, AISP_FP8, AISP_W8G32, AISP_W4G32, AISP_NVFP4};
  for (int format : formats)
    for (auto [n, k] : shapes) {
      if (std::getenv("SMALL") && n * k > 1000000) continue; // under a sanitizer
      if (codes && k % 64) continue;
      const std::string name = kind + " " + format_name(format) + " " + std::to_string(n) + "x" + std::to_string(k);
      const double tolerance = codes ? 1e-7 : rounded && (format == AISP_W8G32 || format == AISP_W4G32) ? BF16_ROUNDING : 1e-9;
      Weight w = make_weight(format, n, k, SEED++);
      const aisp_weight view = w.view();
      const auto x = codes ? coded_bf16(T, k, SEED++) : rough_bf16((size_t)T * k, SEED++);
      const Device<aisp_bf16> dx(x);
      const auto columns = some_columns(n, 96);
      const auto expected = product(x, T, w, columns);
      Device<float> out((size_t)T * n);
      aisp_linear_args args = {};
      args.x = dx.ptr, args.ldx = k, args.output = AISP_OUT_F32, args.out = out.ptr, args.ldo = n;
      std::vector<float> whole;
      for (int rows : all_rows) {
        out.poison();
        args.num_rows = rows;
        CK(linear(CTX, &view, &args, STREAM));
        const auto y = out.get();
        if (rows == T) {
          whole = y;
          Nmse e, off;
          for (int t = 0; t < T; t++)
            for (size_t c = 0; c < columns.size(); c++) {
              e.add(y[(size_t)t * n + columns[c]], expected[t * columns.size() + c]);
              off.add(y[(size_t)t * n + (columns[c] + 1) % n], expected[t * columns.size() + c]);
            }
          expect_below(e.value(), tolerance, name);
          expect_above(off.value(), 1e-2, name + ", columns shifted by one");
          double finite = 0;
          for (float v : y) finite += std::isfinite(v);
          expect(finite == (double)y.size(), name + " writes everything", finite, (double)y.size());
        } else if (invariant) {
          expect_same_bits(y.data(), whole.data(), (size_t)rows * n, name + " rows " + std::to_string(rows));
        } else {
          Nmse e;
          for (size_t i = 0; i < (size_t)rows * n; i++) e.add(y[i], whole[i]);
          expect_below(e.value(), 1e-9, name + " rows " + std::to_string(rows));
          expect(std::isnan(y[(size_t)rows * n]), name + " writes no other row", y[(size_t)rows * n], NAN);
        }
      }
      // Bias, the norm's scale, chosen rows, bf16.
      const auto bias = rough_f32(n, SEED++, 0.5f);
      const Device<float> dbias(bias);
      Random random(SEED++);
      std::vector<float> sumsq((size_t)T * (k / 16));
      for (auto &s : sumsq) s = (float)(random.uniform() * 30);
      const Device<float> dsumsq(sumsq);
      std::vector<int32_t> ids = {60, 3, 17, 17, 0, 63};
      if (!invariant) ids = {0, 1, 2, 3, 4, 5};
      const Device<int32_t> dids(ids);
      Device<aisp_bf16> half((size_t)ids.size() * n);
      half.poison();
      aisp_linear_args second = args;
      second.num_rows = (int)ids.size(), second.bias = dbias.ptr, second.x_sumsq = dsumsq.ptr, second.eps = 1e-5f;
      second.row_ids = invariant ? dids.ptr : nullptr, second.output = AISP_OUT_BF16, second.out = half.ptr;
      CK(linear(CTX, &view, &second, STREAM));
      const auto h = half.get();
      Nmse e;
      std::vector<double> rms(T);
      for (int t = 0; t < T; t++)
        rms[t] = 1 / std::sqrt(std::accumulate(&sumsq[(size_t)t * (k / 16)], &sumsq[(size_t)(t + 1) * (k / 16)], 0.0) / k + 1e-5);
      for (size_t i = 0; i < ids.size(); i++)
        for (size_t c = 0; c < columns.size(); c++)
          e.add(bf16_to_float(h[i * n + columns[c]]), expected[ids[i] * columns.size() + c] * rms[ids[i]] + bias[columns[c]]);
      expect_below(e.value(), BF16_ROUNDING, name + " bias, norm, row ids");

      // Residual and what the next norm needs.
      const auto residual = rough_f32((size_t)T * n, SEED++, 2), weight = rough_f32(n, SEED++, 0.3f);
      const Device<float> dweight(weight);
      for (int rows : {5, T}) {
        Device<float> r(residual), sq((size_t)T * (n / 16));
        Device<aisp_bf16> next((size_t)T * n);
        sq.poison();
        next.poison();
        aisp_linear_args third = args;
        third.num_rows = rows, third.output = AISP_OUT_RESIDUAL, third.out = r.ptr, third.next_norm_weight = dweight.ptr;
        third.next_x = next.ptr, third.next_sumsq = sq.ptr;
        CK(linear(CTX, &view, &third, STREAM));
        const auto ry = r.get(), sy = sq.get();
        const auto ny = next.get();
        Nmse er, en, es;
        for (int t = 0; t < rows; t++) {
          for (size_t c = 0; c < columns.size(); c++) {
            const size_t at = (size_t)t * n + columns[c];
            const double v = expected[t * columns.size() + c] + residual[at];
            er.add(ry[at], v);
            en.add(bf16_to_float(ny[at]), v * weight[columns[c]]);
          }
          for (int g = 0; g < n / 16; g++) {
            double sum = 0;
            for (int i = 0; i < 16; i++) sum += (double)ry[(size_t)t * n + g * 16 + i] * ry[(size_t)t * n + g * 16 + i];
            es.add(sy[(size_t)t * (n / 16) + g], sum);
          }
        }
        expect_below(er.value(), tolerance, name + " residual");
        expect_below(en.value(), BF16_ROUNDING, name + " next x");
        expect_below(es.value(), 1e-10, name + " next sumsq");
        if (rows == 5) expect_same_bits(ry.data() + 5 * n, residual.data() + 5 * n, (size_t)(T - 5) * n, name + " other rows untouched");
      }

      // Gate and up.
      Device<aisp_bf16> gated((size_t)T * (n / 2));
      std::vector<aisp_bf16> gated_whole;
      for (int rows : {T, 1, 8}) {
        gated.poison();
        aisp_linear_args fourth = args;
        fourth.num_rows = rows, fourth.output = AISP_OUT_SILU_MUL, fourth.out = gated.ptr, fourth.ldo = n / 2;
        CK(linear(CTX, &view, &fourth, STREAM));
        const auto gy = gated.get();
        if (rows == T) {
          gated_whole = gy;
          Nmse eg;
          for (int t = 0; t < T; t++)
            for (int i = 0; i < n / 2; i++) {
              const double g = whole[(size_t)t * n + i], u = whole[(size_t)t * n + n / 2 + i];
              eg.add(bf16_to_float(gy[(size_t)t * (n / 2) + i]), g / (1 + std::exp(-g)) * u);
            }
          expect_below(eg.value(), BF16_ROUNDING, name + " silu mul");
        } else if (invariant) {
          expect_same_bits(gy.data(), gated_whole.data(), (size_t)rows * (n / 2), name + " silu mul rows " + std::to_string(rows));
        }
      }

      // What the next product reads, in e4m3.
      if (invariant || n % 128) continue;
      for (int rows : {T, 5}) {
        Device<float> r(residual), sq((size_t)T * (n / 16)), scales((size_t)n / 64 * 256);
        Device<uint8_t> next((size_t)T * n), gates((size_t)T * (n / 2));
        aisp_linear_args fifth = args;
        fifth.num_rows = rows, fifth.output = AISP_OUT_RESIDUAL, fifth.out = r.ptr, fifth.next_norm_weight = dweight.ptr, fifth.ld_scales = 256;
        fifth.next_x = reinterpret_cast<aisp_bf16 *>(next.ptr), fifth.next_sumsq = sq.ptr, fifth.next_scales = scales.ptr;
        CK(linear(CTX, &view, &fifth, STREAM));
        const auto residual_now = r.get();
        expect_codes(next.get(), scales.get(), rows, n, [&](int t, int c) { return (double)residual_now[(size_t)t * n + c] * weight[c]; }, name + " next x");
        fifth.output = AISP_OUT_SILU_MUL, fifth.out = gates.ptr, fifth.ldo = n / 2, fifth.next_norm_weight = nullptr;
        CK(linear(CTX, &view, &fifth, STREAM));
        expect_codes(gates.get(), scales.get(), rows, n / 2, [&](int t, int c) {
          const double g = whole[(size_t)t * n + c], u = whole[(size_t)t * n + n / 2 + c];
          return g / (1 + std::exp(-g)) * u;
        }, name + " silu mul");
      }
    }
}

static void check_linear() { check_products("linear", aisp_linear, {64, 1, 2, 3, 8, 9, 16, 17, 32, 33}, true, false); }
static void check_wide() {
  if (!aisp_has_wide_linear(CTX)) return;
  check_products("wide linear", aisp_wide_linear, {200, 1, 9, 32, 33, 64, 65, 128, 129}, false, true);
  check_products("wide linear of codes", linear_of_codes, {200, 1, 9, 32, 33, 64, 65, 128, 129}, false, false, true);
}

static void check_weights() {
  // Packed and back, through the kernel that takes single values out.
  for (int format : {AISP_BF16, AISP_FP8, AISP_W8G32, AISP_W4G32, AISP_NVFP4}) {
    const int n = 64, k = 576;
    Weight w = make_weight(format, n, k, SEED++);
    const aisp_weight view = w.view();
    Device<aisp_bf16> out((size_t)n * k);
    out.poison();
    CK(aisp_dequantize(CTX, &view, out.ptr, STREAM));
    const auto y = out.get();
    size_t differ = 0;
    for (size_t i = 0; i < y.size(); i++) differ += std::fabs(bf16_to_float(y[i]) - w.values[i]) > std::fabs(w.values[i]) * 0x1p-8f;
    expect(differ == 0, std::string("dequantize ") + format_name(format), (double)differ, 0);

    // bf16 to the format on the device.
    const auto source = rough_bf16((size_t)n * k, SEED++, 0.02f);
    const Device<aisp_bf16> from(source);
    if (format == AISP_BF16) continue;
    Device<float> most(1);
    CK(aisp_absmax(CTX, from.ptr, source.size(), most.ptr, STREAM));
    float largest = 0;
    for (auto b : source) largest = std::max(largest, std::fabs(bf16_to_float(b)));
    expect(most.get()[0] == largest, "absmax", most.get()[0], largest);
    Weight lossy;
    lossy.format = format, lossy.n = n, lossy.k = k, lossy.tensor_scale = largest / (448 * 6);
    lossy.data = Device<uint8_t>(aisp_weight_data_bytes(format, n, k));
    lossy.scales = Device<uint8_t>(aisp_weight_scales_bytes(format, n, k));
    lossy.data.poison();
    lossy.scales.poison();
    CK(aisp_quantize_weight(CTX, format, n, k, from.ptr, lossy.tensor_scale, lossy.data.ptr, lossy.scales.ptr, STREAM));
    const aisp_weight lossy_view = lossy.view();
    CK(aisp_dequantize(CTX, &lossy_view, out.ptr, STREAM));
    const auto z = out.get();
    Nmse e;
    for (size_t i = 0; i < z.size(); i++) e.add(bf16_to_float(z[i]), bf16_to_float(source[i]));
    expect_below(e.value(), format == AISP_W8G32 ? 2e-4 : format == AISP_FP8 ? 1e-3 : 2e-2, std::string("quantize ") + format_name(format));
  }
  // GGUF blocks.
  for (auto [type, block_k, block_bytes] : {std::array<int, 3>{2, 32, 18}, {3, 32, 20}, {8, 32, 34}, {12, 256, 144}}) {
    const int n = 32, k = 768;
    Random random(SEED++);
    std::vector<uint8_t> blocks((size_t)n * (k / block_k) * block_bytes);
    for (auto &b : blocks) b = (uint8_t)random.next();
    std::vector<float> values;
    for (size_t at = 0; at < blocks.size(); at += block_bytes) {
      uint8_t *b = &blocks[at];
      const uint16_t d = float_to_half((float)(0.001 + 0.01 * random.uniform())), m = float_to_half((float)(-0.05 * random.uniform() - 0.001));
      std::memcpy(b, &d, 2);
      if (type == 3 || type == 12) std::memcpy(b + 2, &m, 2);
      const float fd = half_to_float(d), fm = half_to_float(m);
      if (type == 8)
        for (int i = 0; i < 32; i++) values.push_back(fd * (int8_t)b[2 + i]);
      if (type == 2)
        for (int i = 0; i < 32; i++) values.push_back(fd * ((i < 16 ? b[2 + i] & 15 : b[2 + i - 16] >> 4) - 8));
      if (type == 3)
        for (int i = 0; i < 32; i++) values.push_back(fd * (i < 16 ? b[4 + i] & 15 : b[4 + i - 16] >> 4) + fm);
      if (type == 12)
        for (int i = 0; i < 256; i++) {
          const int j = i / 32;
          const uint8_t *s = b + 4;
          const int sc = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6 << 4);
          const int mn = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | (s[j] >> 6 << 4);
          const uint8_t q = b[16 + j / 2 * 32 + i % 32];
          values.push_back(fd * sc * (j & 1 ? q >> 4 : q & 15) - fm * mn);
        }
    }
    Weight w;
    w.format = type == 8 ? AISP_W8G32 : AISP_W4G32, w.n = n, w.k = k;
    std::vector<uint8_t> data(aisp_weight_data_bytes(w.format, n, k)), scales(aisp_weight_scales_bytes(w.format, n, k));
    CK(aisp_pack_gguf_rows(type, 0, n, k, blocks.data(), data.data(), scales.data()));
    w.data = Device<uint8_t>(data);
    w.scales = Device<uint8_t>(scales);
    Device<aisp_bf16> out((size_t)n * k);
    const aisp_weight view = w.view();
    CK(aisp_dequantize(CTX, &view, out.ptr, STREAM));
    const auto y = out.get();
    Nmse e;
    for (size_t i = 0; i < y.size(); i++) e.add(bf16_to_float(y[i]), values[i]);
    expect_below(e.value(), BF16_ROUNDING, "GGUF type " + std::to_string(type));
  }
  Device<aisp_bf16> noise(1 << 20);
  Device<float> noise32(1 << 20);
  CK(aisp_fill_normal(CTX, noise.ptr, noise.count, 7, 0.5f, 0.25f, STREAM));
  CK(aisp_fill_normal_f32(CTX, noise32.ptr, noise32.count, 7, 0.5f, 0.25f, STREAM));
  const auto y = noise.get();
  const auto y32 = noise32.get();
  double mean = 0, square = 0;
  size_t differ = 0;
  for (size_t i = 0; i < y.size(); i++) mean += bf16_to_float(y[i]), differ += y[i] != float_to_bf16(y32[i]);
  mean /= (double)y.size();
  for (auto b : y) square += (bf16_to_float(b) - mean) * (bf16_to_float(b) - mean);
  expect(std::fabs(mean - 0.5) < 2e-3 && differ == 0, "fill mean", mean, 0.5);
  expect(std::fabs(std::sqrt(square / (double)y.size()) - 0.25) < 2e-3, "fill std", std::sqrt(square / (double)y.size()), 0.25);
}

static void check_pointwise() {
  for (int hidden : {64, 576, 4096, 16384, 16400}) {
    const int T = 7;
    const std::string at = " " + std::to_string(hidden);
    const auto residual = rough_f32((size_t)T * hidden, SEED++, 3), weight = rough_f32(hidden, SEED++, 1), gate_up = rough_f32((size_t)T * 2 * hidden, SEED++, 2);
    std::vector<aisp_bf16> gate_up16(gate_up.size());
    for (size_t i = 0; i < gate_up.size(); i++) gate_up16[i] = float_to_bf16(gate_up[i]);
    const Device<float> r(residual), dw(weight);
    const Device<aisp_bf16> g16(gate_up16);
    // Each op as bf16, then as e4m3, which is to have the bits of the rounding of what it leaves as bf16.
    for (bool norm : {true, false}) {
      const std::string name = (norm ? "rms_norm" : "silu_mul") + at;
      auto run = [&](const aisp_rows &out) {
        if (norm) CK(aisp_rms_norm(CTX, r.ptr, dw.ptr, 1e-5f, T, hidden, &out, STREAM));
        else CK(aisp_silu_mul(CTX, g16.ptr, T, hidden, &out, STREAM));
      };
      Device<aisp_bf16> out((size_t)T * hidden);
      Device<uint8_t> codes(out.count), wanted_codes(out.count);
      Device<float> scales(T), wanted_scales(T);
      out.poison(), codes.poison(), scales.poison(), wanted_codes.poison(), wanted_scales.poison();
      run({out.ptr, nullptr, nullptr});
      run({nullptr, codes.ptr, scales.ptr});
      CK(aisp_quantize_rows(CTX, out.ptr, T, hidden, wanted_codes.ptr, wanted_scales.ptr, STREAM));
      const auto y = out.get();
      const auto cy = codes.get(), wanted = wanted_codes.get();
      const auto sy = scales.get(), wanted_sy = wanted_scales.get();
      Nmse e, wrong, rounded;
      for (int t = 0; t < T; t++) {
        double sum = 0;
        for (int i = 0; i < hidden; i++) sum += (double)residual[(size_t)t * hidden + i] * residual[(size_t)t * hidden + i];
        for (int i = 0; i < hidden; i++) {
          const size_t p = (size_t)t * hidden + i, pair = (size_t)t * 2 * hidden + i;
          const double g = bf16_to_float(gate_up16[pair]), u = bf16_to_float(gate_up16[pair + hidden]);
          const double v = norm ? residual[p] * weight[i] / std::sqrt(sum / hidden + 1e-5) : g / (1 + std::exp(-g)) * u;
          e.add(bf16_to_float(y[p]), v);
          wrong.add(bf16_to_float(y[p]), v * 1.01);
          rounded.add(e4m3_value(cy[fp8_place(p)]) * sy[t], bf16_to_float(y[p]));
        }
      }
      expect_below(e.value(), BF16_ROUNDING, name);
      expect_above(wrong.value(), BF16_ROUNDING, name + " off by a hundredth");
      expect_below(rounded.value(), 1e-3, name + " as e4m3");
      expect_same_bits(cy.data(), wanted.data(), cy.size(), name + " codes");
      expect_same_bits(sy.data(), wanted_sy.data(), sy.size(), name + " scales");
    }
  }
  for (int format : {AISP_BF16, AISP_FP8, AISP_W8G32, AISP_W4G32, AISP_NVFP4})
    for (int T : {1, 7, 80}) {
      const int vocab = 96, hidden = 576;
      const Weight w = make_weight(format, vocab, hidden, SEED++);
      std::vector<int32_t> ids(T);
      Random random(SEED++);
      for (auto &id : ids) id = random.below(vocab);
      ids[0] = vocab - 1;
      if (T > 1) ids[1] = vocab;
      const auto weight = rough_f32(hidden, SEED++, 1);
      const Device<float> dw(weight);
      // The third token was chosen by an op before.
      const std::vector<int32_t> choices = {vocab - 2, 5};
      std::vector<int32_t> given = ids;
      if (T > 2) ids[2] = choices[1], given[2] = -2;
      const Device<int32_t> dids(given), dchoices(choices);
      Device<float> r((size_t)T * hidden), sq((size_t)T * (hidden / 16));
      Device<aisp_bf16> next((size_t)T * hidden);
      r.poison(), sq.poison(), next.poison();
      const aisp_weight view = w.view();
      CK(aisp_embedding(CTX, &view, dids.ptr, dchoices.ptr, 2, T, r.ptr, dw.ptr, next.ptr, sq.ptr, STREAM));
      const auto ry = r.get(), sy = sq.get();
      const auto ny = next.get();
      Nmse e, en, es;
      for (int t = 0; t < T; t++)
        for (int g = 0; g < hidden / 16; g++) {
          double sum = 0;
          for (int i = g * 16; i < g * 16 + 16; i++) {
            const double v = ids[t] < vocab ? w.values[(size_t)ids[t] * hidden + i] : 0;
            e.add(ry[(size_t)t * hidden + i], v);
            en.add(bf16_to_float(ny[(size_t)t * hidden + i]), v * weight[i]);
            sum += v * v;
          }
          es.add(sy[(size_t)t * (hidden / 16) + g], sum);
        }
      expect_below(e.value(), 1e-12, std::string("embedding ") + format_name(format));
      expect_below(en.value(), BF16_ROUNDING, std::string("embedding next x ") + format_name(format));
      expect_below(es.value(), 1e-10, std::string("embedding sumsq ") + format_name(format));
    }
}

static const char *kv_name(int format) { return format == AISP_KV_FP8 ? " fp8" : format == AISP_KV_FP4 ? " fp4" : ""; }

// A pool with garbage wherever nothing was stored, and tables of shuffled blocks.
struct Pool {
  int kvh, dim, format, num_blocks, max_blocks, num_seqs;
  std::vector<double> k, v; // [num_blocks, KVH, 16, D] as stored
  Device<uint8_t> dk, dv, dks, dvs;
  std::vector<int32_t> tables;
  Device<int32_t> dtables;

  Pool(int num_seqs, int max_context, int kvh, int dim, int format, const std::vector<int> &contexts, bool fill)
      : kvh(kvh), dim(dim), format(format), max_blocks((max_context + 15) / 16), num_seqs(num_seqs) {
    num_blocks = num_seqs * max_blocks + 3;
    const size_t count = (size_t)num_blocks * kvh * 16 * dim, positions = count / dim;
    Random random(SEED++);
    std::vector<int32_t> order(num_blocks);
    std::iota(order.begin(), order.end(), 0);
    for (int i = num_blocks - 1; i > 0; i--) std::swap(order[i], order[random.below(i + 1)]);
    tables.assign(order.begin(), order.begin() + (size_t)num_seqs * max_blocks);
    dtables = Device<int32_t>(tables);
    k.assign(count, NAN);
    v.assign(count, NAN);
    const size_t row = aisp_kv_row_bytes(format, dim), scale_row = aisp_kv_scale_bytes(format, dim);
    std::vector<uint8_t> bk(positions * row, 0xff), bv = bk, ks(positions * scale_row, 0xff), vs = ks; // NaN, but for codes of 4 bits
    if (fill)
      for (int s = 0; s < num_seqs; s++)
        for (int p = 0; p < contexts[s]; p++)
          for (int h = 0; h < kvh; h++) {
            const size_t at = place(s, p, h);
            for (int which = 0; which < 2; which++) {
              auto &bytes = which ? bv : bk, &scales = which ? vs : ks;
              auto &values = which ? v : k;
              for (size_t b = at * row; b < (at + 1) * row; b++) {
                bytes[b] = (uint8_t)random.next();
                if (format == AISP_KV_FP8 && (bytes[b] & 127) == 127) bytes[b] ^= 1;
              }
              for (int d = 0; d < dim; d++) {
                if (format == AISP_KV_BF16) {
                  const aisp_bf16 b = float_to_bf16(rough(random, at * dim + d, which ? 1.0f : 0.7f));
                  std::memcpy(&bytes[(at * dim + d) * 2], &b, 2);
                } else if (format == AISP_KV_FP8 && d == 0) {
                  const float scale = (float)(0.5 + random.uniform()) / 100;
                  std::memcpy(&scales[at * 4], &scale, 4);
                } else if (format == AISP_KV_FP4 && d % 16 == 0) { // now and then a group of outliers
                  const aisp_bf16 scale = float_to_bf16((float)(0.1 + random.uniform()) * (random.below(9) ? 0.3f : 2.0f));
                  std::memcpy(&scales[at * scale_row + d / 16 * 2], &scale, 2);
                }
                const double stored = value(bytes, scales, at, d); // attention rounds code times scale of fp4
                values[at * dim + d] = format == AISP_KV_FP4 ? bf16_to_float(float_to_bf16((float)stored)) : stored;
              }
            }
          }
    dk = Device<uint8_t>(bk), dv = Device<uint8_t>(bv);
    dks = Device<uint8_t>(ks), dvs = Device<uint8_t>(vs);
  }
  // Value d of a position's row, as stored.
  double value(const std::vector<uint8_t> &bytes, const std::vector<uint8_t> &scales, size_t at, int d) const {
    const uint8_t *row = &bytes[at * aisp_kv_row_bytes(format, dim)];
    aisp_bf16 half;
    if (format == AISP_KV_BF16) {
      std::memcpy(&half, row + 2 * d, 2);
      return bf16_to_float(half);
    }
    const uint8_t *scale = &scales[at * aisp_kv_scale_bytes(format, dim)];
    if (format == AISP_KV_FP8) {
      float whole;
      std::memcpy(&whole, scale, 4);
      return e4m3_value(row[d]) * (double)whole;
    }
    uint32_t word;
    std::memcpy(&word, row + d / 8 * 4, 4);
    std::memcpy(&half, scale + d / 16 * 2, 2);
    return e2m1_value(word >> (d % 8 / 2 * 4 + d % 2 * 16) & 15) * (double)bf16_to_float(half);
  }
  size_t place(int s, int p, int h) const { return ((size_t)tables[(size_t)s * max_blocks + p / 16] * kvh + h) * 16 + p % 16; }
  aisp_kv_layer view() const { return {dk.ptr, dv.ptr, dks.ptr, dvs.ptr, format, kvh, dim}; }

  // Attention of one query head in f64 over positions [begin, end).
  std::vector<double> attend(const aisp_bf16 *q, int s, int h, int begin, int end, double scale) const {
    std::vector<double> score(end - begin), out(dim, 0.0);
    double most = -INFINITY, sum = 0;
    for (int p = begin; p < end; p++) {
      double dot = 0;
      for (int d = 0; d < dim; d++) dot += bf16_to_float(q[d]) * k[place(s, p, h) * dim + d];
      score[p - begin] = dot * scale;
      most = std::max(most, dot * scale);
    }
    for (auto &x : score) x = std::exp(x - most), sum += x;
    for (int p = begin; p < end; p++)
      for (int d = 0; d < dim; d++) out[d] += score[p - begin] / sum * v[place(s, p, h) * dim + d];
    return out;
  }
};

struct DecodeCase {
  int dim, heads, kvh, format, window;
};

// Heads turned on their way to attention: the bits of the two ops, in the result and in the pool.
static void check_rope_decode(const DecodeCase &c, Pool &pool, const std::vector<int> &contexts, void *workspace, const std::string &name) {
  const int S = (int)contexts.size(), most = 2048, width = (c.heads + 2 * c.kvh) * c.dim;
  const size_t row = (size_t)c.heads * c.dim;
  const auto noise = [](size_t n, float mean) {
    auto x = rough_f32(n, SEED++, 1);
    for (auto &v : x) v += mean;
    return x;
  };
  const Device<float> qkv(noise((size_t)S * width, 0)), cos(noise((size_t)most * c.dim / 2, 0)), sin(noise((size_t)most * c.dim / 2, 0)),
      q_norm(noise(c.dim, 1)), k_norm(noise(c.dim, 1));
  const bool normed = c.heads == 9 || c.window > 0;
  const aisp_rope rope = {cos.ptr, sin.ptr, c.format == AISP_KV_FP8 ? AISP_ROPE_INTERLEAVED : AISP_ROPE_NEOX, normed ? q_norm.ptr : nullptr,
                          normed ? k_norm.ptr : nullptr, 1e-6f};
  std::vector<int32_t> lens(contexts.begin(), contexts.end()), positions, slots;
  for (int s = 0; s < S; s++) {
    const int at = std::max(contexts[s] - 1, 0);
    positions.push_back(at);
    slots.push_back(contexts[s] && s != 4 ? pool.tables[(size_t)s * pool.max_blocks + at / 16] * 16 + at % 16 : -1);
  }
  const Device<int32_t> dlens(lens), dpositions(positions), dslots(slots);
  Device<aisp_bf16> q((size_t)S * row), out(q.count);
  const aisp_kv_layer kv = pool.view();
  const auto k = pool.dk.get(), v = pool.dv.get(), ks = pool.dks.get(), vs = pool.dvs.get();
  auto run = [&](bool whole, int s, int count, int num_splits = 0) {
    pool.dk.put(k), pool.dv.put(v), pool.dks.put(ks), pool.dvs.put(vs);
    q.poison(), out.poison();
    aisp_decode_args args = {q.ptr + s * row, out.ptr + s * row, pool.dtables.ptr + (size_t)s * pool.max_blocks, pool.max_blocks, dlens.ptr + s, count,
                             c.heads, most, c.window, 1 / std::sqrt((float)c.dim), workspace, count == 1, num_splits};
    const float *from = qkv.ptr + (size_t)s * width;
    if (whole) {
      CK(aisp_rope_decode_attention(CTX, from, &rope, dpositions.ptr + s, dslots.ptr + s, &kv, &args, STREAM));
    } else {
      CK(aisp_rope_store(CTX, from, AISP_F32, &rope, dpositions.ptr + s, dslots.ptr + s, count, c.heads, &kv, args.q, STREAM));
      CK(aisp_decode_attention(CTX, &kv, &args, STREAM));
    }
    CK(aisp_stream_synchronize(STREAM));
    return out.get();
  };
  const auto parts = run(false, 0, S);
  const auto k_parts = pool.dk.get(), v_parts = pool.dv.get(), ks_parts = pool.dks.get(), vs_parts = pool.dvs.get();
  const auto whole = run(true, 0, S);
  expect_same_bits(whole.data(), parts.data(), parts.size(), name + " turned in it");
  const bool same_pool = pool.dk.get() == k_parts && pool.dv.get() == v_parts && pool.dks.get() == ks_parts && pool.dvs.get() == vs_parts;
  expect(same_pool && k != k_parts && v != v_parts, name + " turned in it, the pool", same_pool, 1);
  for (int s = 0; s < S; s++) {
    const auto alone = run(true, s, 1);
    expect_same_bits(alone.data() + s * row, parts.data() + s * row, row, name + " turned in it, alone");
  }
  for (int num_splits : {1, 7, 8, 16}) { // of streams, alone and in clusters; with all of a warp's blocks at once, four and two
    const auto apart = run(false, 0, S, num_splits);
    const std::string split = name + " turned in it, " + std::to_string(num_splits) + " splits";
    expect_same_bits(run(true, 0, S, num_splits).data(), apart.data(), apart.size(), split);
    for (int s = S / 2; s < S; s++)
      expect_same_bits(run(true, s, 1, num_splits).data() + s * row, apart.data() + s * row, row, split + " alone");
  }
  pool.dk.put(k), pool.dv.put(v), pool.dks.put(ks), pool.dvs.put(vs);
}

static void check_decode() {
  const DecodeCase cases[] = {{128, 32, 8, AISP_KV_BF16, 0}, {64, 9, 3, AISP_KV_BF16, 0},  {128, 32, 8, AISP_KV_FP8, 0},  {64, 8, 8, AISP_KV_FP8, 0},
                              {96, 12, 2, AISP_KV_BF16, 0},  {256, 8, 2, AISP_KV_BF16, 0}, {32, 16, 1, AISP_KV_BF16, 0},  {128, 16, 2, AISP_KV_BF16, 300},
                              {64, 14, 2, AISP_KV_BF16, 20}, {128, 32, 2, AISP_KV_FP8, 0}, {256, 4, 2, AISP_KV_FP8, 511}, {128, 64, 8, AISP_KV_BF16, 0},
                              {128, 32, 8, AISP_KV_FP4, 0},  {64, 9, 3, AISP_KV_FP4, 0},   {32, 16, 1, AISP_KV_FP4, 20},  {96, 12, 2, AISP_KV_FP4, 0},
                              {256, 8, 2, AISP_KV_FP4, 511}, {128, 32, 2, AISP_KV_FP4, 300}};
  std::vector<int> contexts = {1, 15, 16, 17, 64, 65, 257, 0, 700, 255, 256, 1025, 2000};
  if (std::getenv("SMALL")) contexts.resize(9); // under a sanitizer
  for (const auto &c : cases) {
    const std::string name = "decode D " + std::to_string(c.dim) + " heads " + std::to_string(c.heads) + "/" + std::to_string(c.kvh) +
                             kv_name(c.format) + " window " + std::to_string(c.window);
    const int S = (int)contexts.size(), most = 2048;
    Pool pool(S, most, c.kvh, c.dim, c.format, contexts, true);
    const auto q = rough_bf16((size_t)S * c.heads * c.dim, SEED++, 0.7f);
    const Device<aisp_bf16> dq(q);
    Device<aisp_bf16> out(q.size());
    Device<uint8_t> workspace(aisp_decode_workspace_bytes(S, c.heads, c.dim, 4096));
    CK(aisp_memset(workspace.ptr, 0, workspace.count, STREAM));
    std::vector<int32_t> lens(contexts.begin(), contexts.end());
    const Device<int32_t> dlens(lens);
    const double scale = 1 / std::sqrt((double)c.dim);
    const aisp_kv_layer kv = pool.view();
    auto run = [&](int s, int count, int max_context, const int32_t *tables, int num_splits = 0) {
      out.poison();
      const size_t row = (size_t)c.heads * c.dim;
      aisp_decode_args args = {dq.ptr + s * row, out.ptr + s * row, tables + (size_t)s * pool.max_blocks, pool.max_blocks, dlens.ptr + s, count,
                               c.heads, max_context, c.window, (float)scale, workspace.ptr, 0, num_splits};
      CK(aisp_decode_attention(CTX, &kv, &args, STREAM));
      return out.get();
    };
    const auto whole = run(0, S, most, pool.dtables.ptr);
    auto error = [&](const std::vector<aisp_bf16> &y) {
      std::vector<Nmse> parts(S);
      parallel(S, [&](int s) {
        for (int h = 0; h < c.heads; h++) {
          const int begin = c.window ? std::max(0, contexts[s] - c.window) : 0;
          const size_t at = ((size_t)s * c.heads + h) * c.dim;
          const auto e = contexts[s] ? pool.attend(&q[at], s, h / (c.heads / c.kvh), begin, contexts[s], scale) : std::vector<double>(c.dim, 0.0);
          for (int d = 0; d < c.dim; d++) parts[s].add(bf16_to_float(y[at + d]), e[d]);
        }
      });
      Nmse all;
      for (auto &p : parts) all.difference += p.difference, all.square += p.square;
      return all.value();
    };
    expect_below(error(whole), 2e-5, name);
    for (int s = 0; s < S; s++) {
      const auto alone = run(s, 1, s % 2 ? 4096 : most, pool.dtables.ptr);
      const size_t row = (size_t)c.heads * c.dim;
      expect_same_bits(alone.data() + s * row, whole.data() + s * row, row, name + " alone");
    }
    const auto again = run(0, S, 4096, pool.dtables.ptr);
    expect_same_bits(again.data(), whole.data(), whole.size(), name + " again, larger grid");
    for (int batch = 1; batch <= 512; batch *= 2)
      for (int context : {1, 64, 256, 1000, 1024, 4096, 8704, 131072}) { // what is chosen has room
        const aisp_decode_args args = {nullptr, nullptr, nullptr, 0, nullptr, batch, c.heads, context, c.window};
        const int splits = aisp_decode_splits(CTX, &kv, &args);
        const bool fits = splits >= 1 && (int64_t)splits * batch <= std::max<int64_t>(1024, (int64_t)batch * ((context + 255) / 256));
        if (!fits) expect(false, name + ", splits of batch " + std::to_string(batch) + " context " + std::to_string(context), splits, 1024);
      }
    for (int num_splits : {1, 3, 8, 20}) {
      const std::string split = name + ", " + std::to_string(num_splits) + " splits";
      const auto parts = run(0, S, most, pool.dtables.ptr, num_splits);
      expect_below(error(parts), 2e-5, split);
      const size_t row = (size_t)c.heads * c.dim;
      for (int s = S / 2; s < S; s++) { // a number of splits cuts a context alike in any batch
        const auto alone = run(s, 1, most, pool.dtables.ptr, num_splits);
        expect_same_bits(alone.data() + s * row, parts.data() + s * row, row, split + " alone");
      }
    }
    auto broken = pool.tables; // one block of one sequence: of 65 positions, so that it weighs
    broken[(size_t)5 * pool.max_blocks + 3] = broken[(size_t)5 * pool.max_blocks + 2];
    const Device<int32_t> dbroken(broken);
    expect_above(error(run(0, S, most, dbroken.ptr)), 2e-5, name + ", one block wrong");
    check_rope_decode(c, pool, contexts, workspace.ptr, name);
    if (c.format != AISP_KV_FP4) continue;
    for (bool of_keys : {true, false}) { // each group takes its neighbour's scale
      auto moved = (of_keys ? pool.dks : pool.dvs).get();
      for (auto row = moved.begin(); row != moved.end(); row += c.dim / 8) std::rotate(row, row + 2, row + c.dim / 8);
      const Device<uint8_t> dmoved(moved);
      aisp_kv_layer wrong = kv;
      (of_keys ? wrong.k_scales : wrong.v_scales) = dmoved.ptr;
      out.poison();
      aisp_decode_args args = {dq.ptr, out.ptr, pool.dtables.ptr, pool.max_blocks, dlens.ptr, S, c.heads, most, c.window, (float)scale, workspace.ptr};
      CK(aisp_decode_attention(CTX, &wrong, &args, STREAM));
      expect_above(error(out.get()), 1e-3, name + (of_keys ? ", scales of keys moved" : ", scales of values moved"));
    }
  }
}

static void check_prefill() {
  struct Case {
    int dim, heads, kvh, format, window;
  };
  const Case cases[] = {{128, 32, 8, AISP_KV_BF16, 0}, {64, 9, 3, AISP_KV_BF16, 0},   {128, 8, 8, AISP_KV_FP8, 0},  {64, 14, 2, AISP_KV_BF16, 100},
                        {96, 12, 2, AISP_KV_BF16, 0},  {256, 4, 2, AISP_KV_BF16, 77}, {32, 16, 1, AISP_KV_BF16, 0},
                        {128, 32, 8, AISP_KV_FP4, 0},  {64, 9, 3, AISP_KV_FP4, 100},  {96, 12, 2, AISP_KV_FP4, 0},
                        {64, 9, 3, AISP_KV_FP8, 100},  {128, 16, 1, AISP_KV_FP8, 0},  {64, 16, 1, AISP_KV_BF16, 0},
                        {64, 9, 3, AISP_KV_FP8, 0},    {64, 9, 3, AISP_KV_FP4, 0}};
  for (const auto &c : cases) {
    const std::string name = "prefill D " + std::to_string(c.dim) + " heads " + std::to_string(c.heads) + "/" + std::to_string(c.kvh) +
                             kv_name(c.format) + " window " + std::to_string(c.window);
    // The last goes three times around a ring of four tiles.
    const std::vector<int> contexts = {300, 1, 64, 129, 37, 1100}, queries = {300, 1, 3, 129, 20, 40};
    const int S = (int)contexts.size();
    const Pool pool(S, 1104, c.kvh, c.dim, c.format, contexts, true);
    std::vector<int32_t> cu = {0};
    for (int n : queries) cu.push_back(cu.back() + n);
    const int T = cu.back();
    const size_t row = (size_t)c.heads * c.dim;
    const auto q = rough_bf16(T * row, SEED++, 0.7f);
    const Device<aisp_bf16> dq(q);
    Device<aisp_bf16> out(q.size());
    const double scale = 1 / std::sqrt((double)c.dim);
    const aisp_kv_layer kv = pool.view();
    auto run = [&](const aisp_bf16 *from, aisp_bf16 *to, const std::vector<int32_t> &cu_seqlens, const std::vector<int32_t> &lens, int first_seq) {
      const Device<int32_t> dcu(cu_seqlens), dlens(lens);
      int longest = 0;
      for (size_t s = 0; s + 1 < cu_seqlens.size(); s++) longest = std::max(longest, cu_seqlens[s + 1] - cu_seqlens[s]);
      aisp_prefill_args args = {from, to, pool.dtables.ptr + (size_t)first_seq * pool.max_blocks, pool.max_blocks, dcu.ptr, dlens.ptr,
                                (int)lens.size(), longest, c.heads, c.window, (float)scale};
      CK(aisp_prefill_attention(CTX, &kv, &args, STREAM));
      CK(aisp_stream_synchronize(STREAM));
    };
    out.poison();
    run(dq.ptr, out.ptr, cu, std::vector<int32_t>(contexts.begin(), contexts.end()), 0);
    const auto whole = out.get();
    std::vector<Nmse> parts(T), shifted(T);
    for (int s = 0; s < S; s++)
      parallel(queries[s], [&](int i) {
        const int end = contexts[s] - queries[s] + i + 1, begin = c.window ? std::max(0, end - c.window) : 0, t = cu[s] + i;
        for (int h = 0; h < c.heads; h++) {
          const size_t at = t * row + (size_t)h * c.dim;
          const auto e = pool.attend(&q[at], s, h / (c.heads / c.kvh), begin, end, scale);
          const auto f = pool.attend(&q[at], s, h / (c.heads / c.kvh), begin, std::max(end - 1, begin + 1), scale);
          for (int d = 0; d < c.dim; d++) parts[t].add(bf16_to_float(whole[at + d]), e[d]), shifted[t].add(bf16_to_float(whole[at + d]), f[d]);
        }
      });
    Nmse all, off;
    for (auto &p : parts) all.difference += p.difference, all.square += p.square;
    for (auto &p : shifted) off.difference += p.difference, off.square += p.square;
    expect_below(all.value(), c.format == AISP_KV_BF16 ? 3e-5 : 5e-5, name);
    expect_above(off.value(), 1e-4, name + ", mask off by one");
    // The first prompt in chunks.
    out.poison();
    for (int begin = 0, step = 37; begin < 300; begin += step, step += 13) {
      const int end = std::min(300, begin + step);
      run(dq.ptr + begin * row, out.ptr + begin * row, {0, end - begin}, {end}, 0);
    }
    const auto chunked = out.get();
    expect_same_bits(chunked.data(), whole.data(), 300 * row, name + " in chunks");
  }
}

// A row in 4 bits by the rule of the CPU's pool, and back.
static std::vector<float> through_fp4(const float *row, int dim) {
  std::vector<float> out(dim);
  for (int g = 0; g < dim; g += 16) {
    float most = 0;
    for (int i = g; i < g + 16; i++) most = std::max(most, std::fabs(row[i]));
    most /= 6;
    uint32_t bits;
    std::memcpy(&bits, &most, 4);
    const float scale = bf16_to_float((aisp_bf16)((bits + 0xffff) >> 16)), by = 1 / scale;
    for (int i = g; i < g + 16; i++) {
      const float a = std::fabs(row[i] * by);
      int code = 0;
      while (code < 7 && a > (e2m1_value(code) + e2m1_value(code + 1)) / 2) code++;
      out[i] = e2m1_value(std::signbit(row[i]) ? code | 8 : code) * scale;
    }
  }
  return out;
}

static void check_rope() {
  for (int style : {AISP_ROPE_NEOX, AISP_ROPE_INTERLEAVED})
    for (int format : {AISP_KV_BF16, AISP_KV_FP8, AISP_KV_FP4})
      for (int qkv_format : {AISP_BF16, AISP_F32})
        // The last two have many tokens, of which a warp takes several heads.
        for (auto [dim, heads, kvh, T] : {std::array<int, 4>{128, 32, 8, 5}, {64, 9, 3, 5}, {96, 4, 4, 5}, {256, 4, 1, 5}, {64, 9, 3, 300}, {96, 7, 2, 300}}) {
          const bool normed = dim != 64;
          const int positions_max = 304;
          const std::string name =
              "rope style " + std::to_string(style) + " kv " + std::to_string(format) + " D " + std::to_string(dim) + " tokens " + std::to_string(T);
          Pool pool(1, positions_max, kvh, dim, format, {0}, false);
          const int width = (heads + 2 * kvh) * dim;
          const auto qkv = rough_f32((size_t)T * width, SEED++, 1);
          std::vector<aisp_bf16> qkv16(qkv.size());
          for (size_t i = 0; i < qkv.size(); i++) qkv16[i] = float_to_bf16(qkv[i]);
          std::vector<int32_t> positions = {0, 1, 17, 100, 199}, slots;
          if (T > 5) positions.resize(T), std::iota(positions.begin(), positions.end(), 0);
          for (int p : positions) slots.push_back(pool.tables[p / 16] * 16 + p % 16);
          slots[3] = -1;
          std::vector<float> cos((size_t)positions_max * dim / 2), sin(cos.size());
          for (int p = 0; p < positions_max; p++)
            for (int i = 0; i < dim / 2; i++) {
              const double angle = p * std::pow(10000.0, -2.0 * i / dim);
              cos[(size_t)p * dim / 2 + i] = (float)std::cos(angle), sin[(size_t)p * dim / 2 + i] = (float)std::sin(angle);
            }
          const auto qw = rough_f32(dim, SEED++, 1), kw = rough_f32(dim, SEED++, 1);
          const Device<float> dcos(cos), dsin(sin), dqw(qw), dkw(kw), d32(qkv);
          const Device<aisp_bf16> d16(qkv16);
          const Device<int32_t> dpos(positions), dslots(slots);
          Device<aisp_bf16> q((size_t)T * heads * dim);
          q.poison();
          const aisp_rope rope = {dcos.ptr, dsin.ptr, style, normed ? dqw.ptr : nullptr, normed ? dkw.ptr : nullptr, 1e-6f};
          const aisp_kv_layer kv = pool.view();
          CK(aisp_rope_store(CTX, qkv_format == AISP_BF16 ? (void *)d16.ptr : (void *)d32.ptr, qkv_format, &rope, dpos.ptr, dslots.ptr, T, heads, &kv, q.ptr, STREAM));
          const auto qy = q.get();
          const auto ky = pool.dk.get(), vy = pool.dv.get();
          const auto ks = pool.dks.get(), vs = pool.dvs.get();
          Nmse eq, ek, ev, wrong;
          size_t differ = 0;
          for (int t = 0; t < T; t++)
            for (int h = 0; h < heads + 2 * kvh; h++) {
              std::vector<double> x(dim), y(dim);
              double sum = 0;
              for (int d = 0; d < dim; d++) {
                const size_t p = (size_t)t * width + (size_t)h * dim + d;
                x[d] = qkv_format == AISP_BF16 ? bf16_to_float(qkv16[p]) : qkv[p];
                sum += x[d] * x[d];
              }
              const bool is_q = h < heads, is_v = h >= heads + kvh;
              if (!is_v && normed)
                for (int d = 0; d < dim; d++) x[d] *= (is_q ? qw : kw)[d] / std::sqrt(sum / dim + 1e-6);
              y = x;
              if (!is_v)
                for (int i = 0; i < dim / 2; i++) {
                  const int a = style == AISP_ROPE_NEOX ? i : 2 * i, b = style == AISP_ROPE_NEOX ? i + dim / 2 : 2 * i + 1;
                  const double angle = positions[t] * std::pow(10000.0, -2.0 * i / dim);
                  y[a] = x[a] * std::cos(angle) - x[b] * std::sin(angle);
                  y[b] = x[a] * std::sin(angle) + x[b] * std::cos(angle);
                }
              const std::vector<float> natural(x.begin(), x.end());
              const auto narrow = is_v && format == AISP_KV_FP4 ? through_fp4(natural.data(), dim) : natural;
              for (int d = 0; d < dim; d++) {
                if (is_q) {
                  eq.add(bf16_to_float(qy[((size_t)t * heads + h) * dim + d]), y[d]);
                  wrong.add(bf16_to_float(qy[((size_t)t * heads + h) * dim + d]), x[d]);
                } else if (slots[t] >= 0) {
                  const size_t at = ((size_t)(slots[t] / 16) * kvh + (h - heads) % kvh) * 16 + slots[t] % 16;
                  const double got = is_v ? pool.value(vy, vs, at, d) : pool.value(ky, ks, at, d);
                  (is_v ? ev : ek).add(got, y[d]);
                  differ += is_v && format == AISP_KV_FP4 && got != narrow[d];
                }
              }
            }
          expect_below(eq.value(), BF16_ROUNDING, name + " q");
          const double limit = format == AISP_KV_FP4 ? 1.5e-2 : format == AISP_KV_FP8 ? 1.5e-3 : BF16_ROUNDING;
          expect_below(ek.value(), limit, name + " k");
          expect_below(ev.value(), limit, name + " v");
          expect(differ == 0, name + " v is what the CPU stores", (double)differ, 0);
          expect_above(wrong.value(), 1e-3, name + ", not turned");
          // What was not stored is as it was.
          size_t written = 0;
          for (size_t i = 0; i + 1 < ky.size(); i += 2) written += ky[i] != 0xff || ky[i + 1] != 0xff;
          const size_t stored = (size_t)(T - 1) * kvh * aisp_kv_row_bytes(format, dim) / 2;
          expect(written <= stored && written > stored * 9 / 10, name + " stores only its slots", (double)written, (double)stored);
        }
  for (int format : {AISP_KV_BF16, AISP_KV_FP8, AISP_KV_FP4}) {
    const Pool pool(2, 64, 3, 64, format, {64, 64}, true);
    const auto before = pool.dv.get();
    const auto scales = pool.dvs.get();
    const std::vector<int32_t> pairs = {1, 4, 2, 6};
    const Device<int32_t> dpairs(pairs);
    const aisp_kv_layer kv = pool.view();
    CK(aisp_copy_blocks(CTX, &kv, dpairs.ptr, 2, STREAM));
    const auto after = pool.dv.get();
    const auto scales_after = pool.dvs.get();
    const size_t block = before.size() / pool.num_blocks, sb = scales.size() / pool.num_blocks;
    bool ok = true;
    for (int b = 0; b < pool.num_blocks; b++) {
      const int from = b == 4 ? 1 : b == 6 ? 2 : b;
      ok &= std::memcmp(&after[b * block], &before[from * block], block) == 0;
      if (sb) ok &= std::memcmp(&scales_after[b * sb], &scales[from * sb], sb) == 0;
    }
    expect(ok, "copy_blocks");
  }
}

static void check_sampling() {
  const int vocab = 49152, rows = 48;
  Random random(SEED++);
  auto logits = rough_f32((size_t)rows * vocab, SEED++, 2);
  for (int i = 0; i < vocab; i++) logits[i] = (float)(i % 5 == 3);                // many ties
  for (int i = 0; i < vocab; i++) logits[(size_t)vocab + i] = i == 77 ? NAN : -3;
  logits[(size_t)2 * vocab + vocab - 1] = 1e30f;
  for (size_t i = 0; i < (size_t)24 * vocab; i++) // flatter rows, where a draw can go anywhere
    logits[(size_t)(rows - 24) * vocab + i] = (float)std::round(random.normal() * 40) / 20;
  const Device<float> dl(logits);
  Device<int32_t> ids(rows);
  Device<uint8_t> workspace(aisp_argmax_workspace_bytes(rows));
  ids.poison();
  CK(aisp_argmax(CTX, dl.ptr, vocab, rows, vocab, ids.ptr, workspace.ptr, STREAM));
  auto got = ids.get();
  for (int r = 0; r < rows; r++) {
    int best = -1;
    for (int i = 0; i < vocab; i++)
      if (!std::isnan(logits[(size_t)r * vocab + i]) && (best < 0 || logits[(size_t)r * vocab + i] > logits[(size_t)r * vocab + best])) best = i;
    if (r == 1) best = 0x7fffffff; // a NaN is reported
    expect(got[r] == best, "argmax row " + std::to_string(r), got[r], best);
  }
  // Draws against a sort in f64; rows 0 and 1 stay odd cases.
  std::vector<float> temperature(rows), top_p(rows), min_p(rows);
  std::vector<int32_t> top_k(rows);
  std::vector<double> uniform(rows);
  const float temps[] = {1.0f, 0.7f, 1.5f, 0.0f, 0.3f};
  const int ks[] = {0, 1, 40, 5, 1000};
  const float ps[] = {1.0f, 0.9f, 0.5f, 0.95f}, ms[] = {0.0f, 0.0f, 0.05f};
  for (int r = 0; r < rows; r++)
    temperature[r] = temps[r % 5], top_k[r] = ks[r / 2 % 5], top_p[r] = ps[r / 3 % 4], min_p[r] = ms[r % 3], uniform[r] = random.uniform();
  uniform[5] = 0, uniform[6] = 1 - 0x1p-53;
  const Device<float> dtemp(temperature), dp(top_p), dm(min_p);
  const Device<int32_t> dk(top_k);
  const Device<double> du(uniform);
  const aisp_sampling params = {dtemp.ptr, dk.ptr, dp.ptr, dm.ptr, du.ptr};
  ids.poison();
  CK(aisp_sample(CTX, dl.ptr, vocab, rows, vocab, &params, ids.ptr, STREAM));
  got = ids.get();
  int wrong = 0, moved = 0;
  for (int r = 0; r < rows; r++) {
    if (r == 1) {
      expect(got[r] == 0x7fffffff, "a NaN is reported", got[r], 0);
      continue;
    }
    const float *l = &logits[(size_t)r * vocab];
    std::vector<int> order(vocab);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return l[a] > l[b]; });
    int token = order[0];
    if (temperature[r] > 0) {
      std::vector<double> w;
      for (int id : order) w.push_back(std::exp(((double)l[id] - l[order[0]]) / temperature[r]));
      if (top_k[r] > 0) w.resize(std::min<size_t>(w.size(), top_k[r]));
      if (top_p[r] < 1) {
        const double target = top_p[r] * std::accumulate(w.begin(), w.end(), 0.0);
        double sum = 0;
        size_t n = 0;
        while (n < w.size() && sum < target) sum += w[n++];
        w.resize(n);
      }
      while (w.size() > 1 && w.back() < min_p[r]) w.pop_back();
      double left = uniform[r] * std::accumulate(w.begin(), w.end(), 0.0);
      token = order[w.size() - 1];
      for (size_t i = 0; i < w.size(); i++)
        if ((left -= w[i]) < 0) {
          token = order[i];
          break;
        }
    }
    moved += token != order[0];
    if (got[r] != token) wrong++, std::printf("draw row %d: %d, expected %d\n", r, got[r], token);
  }
  std::printf("draws: %d of %d are not the likeliest token\n", moved, rows);
  expect(wrong == 0 && moved > rows / 8, "draws", wrong, 0);
}

static void check_gemm() {
  if (!aisp_ctx_has_cublaslt(CTX)) {
    std::printf("no cuBLASLt\n");
    return;
  }
  Device<uint8_t> workspace(32 << 20);
  for (auto [n, k] : {std::pair{768, 1024}, {320, 192}})
    for (int format : {AISP_BF16, AISP_FP8})
      for (int output : {AISP_GEMM_BF16, AISP_GEMM_F32, AISP_GEMM_ADD})
        for (int rows : {16, 33, 200}) {
          const std::string name = std::string(output == AISP_GEMM_ADD ? "gemm, added, " : "gemm ") + format_name(format) + " " + std::to_string(n) + "x" + std::to_string(k) + " rows ";
          const bool fp8 = format == AISP_FP8;
          const Weight w = make_weight(format, n, k, SEED++);
          auto x = rough_bf16((size_t)rows * k, SEED++);
          std::fill_n(x.begin() + k, k, 0); // a row whose scale is the least
          const Device<aisp_bf16> dx(x);
          Device<uint8_t> codes((size_t)rows * k);
          Device<float> scales(rows);
          CK(aisp_quantize_rows(CTX, dx.ptr, rows, k, codes.ptr, scales.ptr, STREAM));
          const auto cy = codes.get();
          const auto sy = scales.get();
          aisp_gemm *gemm;
          CK(aisp_gemm_create(CTX, format, output, n, k, &gemm));
          const auto before = rough_f32((size_t)rows * n, SEED++, 1);
          Device<float> out((size_t)rows * n); // room for either
          const void *from = fp8 ? (void *)codes.ptr : (void *)dx.ptr;
          const float *xs = fp8 ? scales.ptr : nullptr, *ws = fp8 ? (float *)w.scales.ptr : nullptr;
          float us = 0;
          const int code = aisp_gemm_tune(gemm, rows, from, xs, w.data.ptr, ws, out.ptr, workspace.ptr, workspace.count, nullptr, 0, STREAM, &us);
          if (code) {
            expect(false, name + std::to_string(rows) + ": " + aisp_error_string(code), code, 0);
            CK(aisp_gemm_destroy(gemm));
            continue;
          }
          // The plan is for fewer rows too.
          for (int used : {rows, rows - 5}) {
            if (output == AISP_GEMM_ADD) out.put(before);
            else out.poison();
            if (fp8) { // right before the product, as in a step
              codes.poison(), scales.poison();
              CK(aisp_quantize_rows(CTX, dx.ptr, used, k, codes.ptr, scales.ptr, STREAM));
            }
            CK(aisp_gemm_run(gemm, used, from, xs, w.data.ptr, ws, out.ptr, workspace.ptr, workspace.count, STREAM));
            const auto y = out.get();
            Nmse e, wrong;
            const auto columns = some_columns(n, 64);
            for (int t = 0; t < used; t++)
              for (int c : columns) {
                double sum = 0;
                for (int i = 0; i < k; i++) {
                  const size_t at = (size_t)t * k + i;
                  sum += (fp8 ? (double)e4m3_value(cy[fp8_place(at)]) : (double)bf16_to_float(x[at])) * w.values[(size_t)c * k + i];
                }
                const size_t at = (size_t)t * n + c;
                const double got = output != AISP_GEMM_BF16 ? y[at] : bf16_to_float(((const aisp_bf16 *)y.data())[at]);
                const double base = output == AISP_GEMM_ADD ? before[at] : 0;
                e.add(got, base + (fp8 ? sum * sy[t] : sum));
                wrong.add(got, base + (fp8 ? sum * sy[(t + 2) % used] : sum * 1.01));
              }
            const double limit = fp8 ? 1e-5 : BF16_ROUNDING;
            expect_below(e.value(), limit, name + std::to_string(used) + " of " + std::to_string(rows));
            expect_above(wrong.value(), limit, name + (fp8 ? "with another row's scale" : "off by a hundredth"));
          }
          CK(aisp_gemm_destroy(gemm));
        }
}


int main(int argc, char **argv) {
  aisp_device_info info;
  CK(aisp_device_get_info(0, &info));
  std::printf("%s, sm_%d%d, %d multiprocessors, driver %d, runtime %d, %.1f GiB free\n", info.name, info.compute_major, info.compute_minor,
              info.sm_count, info.driver_version, info.runtime_version, (double)info.free_bytes / (1u << 30));
  CK(aisp_ctx_create(0, std::getenv("NO_PDL") ? 0 : AISP_CTX_PDL, &CTX));
  CK(aisp_stream_create(&STREAM));
  if (const char *seed = std::getenv("SEED")) SEED = std::strtoull(seed, nullptr, 10);
  const std::pair<const char *, void (*)()> groups[] = {{"weights", check_weights}, {"linear", check_linear}, {"wide", check_wide}, {"pointwise", check_pointwise},
                                                        {"rope", check_rope},       {"decode", check_decode}, {"prefill", check_prefill},
                                                        {"sampling", check_sampling}, {"gemm", check_gemm}};
  for (auto [name, run] : groups) {
    if (argc > 1 && !std::strstr(argv[1], name)) continue;
    const int failed = FAILED, passed = PASSED;
    run();
    CK(aisp_stream_synchronize(STREAM));
    std::printf("%-10s %d passed, %d failed\n", name, PASSED - passed, FAILED - failed);
    std::fflush(stdout);
  }
  CK(aisp_ctx_destroy(CTX));
  return FAILED ? 1 : 0;
}
