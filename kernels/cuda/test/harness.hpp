// What the checks and the benchmark share: random inputs, device buffers, comparison.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "../aisp_cuda.h"

#define CK(call)                                                                                  \
  do {                                                                                            \
    const int code_ = (call);                                                                     \
    if (code_) {                                                                                  \
      std::printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, aisp_error_string(code_));        \
      std::fflush(stdout);                                                                        \
      std::exit(2);                                                                               \
    }                                                                                             \
  } while (0)

inline float bf16_to_float(aisp_bf16 b) {
  const uint32_t bits = (uint32_t)b << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline aisp_bf16 float_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return (aisp_bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float half_to_float(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const float magnitude = exponent ? std::ldexp(1.0f + mantissa / 1024.0f, exponent - 15) : std::ldexp(mantissa / 1024.0f, -14);
  return h & 0x8000 ? -magnitude : magnitude;
}
// A positive or negative normal half near x (truncated).
inline uint16_t float_to_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const int exponent = (int)(bits >> 23 & 255) - 127 + 15;
  if (exponent <= 0) return (uint16_t)(bits >> 16 & 0x8000);
  return (uint16_t)((bits >> 16 & 0x8000) | (exponent & 31) << 10 | (bits >> 13 & 1023));
}
inline float e4m3_value(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float magnitude = exponent ? std::ldexp(1.0f + mantissa / 8.0f, exponent - 7) : std::ldexp(mantissa / 8.0f, -6);
  return code & 128 ? -magnitude : magnitude;
}
inline float e2m1_value(int code) {
  static const float table[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  return code & 8 ? -table[code & 7] : table[code & 7];
}

struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15ull + 1) {}
  uint64_t next() {
    uint64_t x = state += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
  }
  double uniform() { return (double)(next() >> 11) * 0x1p-53; }
  int below(int n) { return (int)(next() % (uint64_t)n); }
  double normal() {
    const double u = 1.0 - uniform();
    return std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * uniform());
  }
};

// Normal values with an outlier of 20 times in 37 and, on top, an alternating sign in every other run of 64.
inline float rough(Random &random, size_t i, float std) {
  double x = random.normal() * std;
  if (i % 37 == 5) x *= 20;
  if (i / 64 % 2) x = (i & 1 ? -1 : 1) * std::fabs(x);
  return (float)x;
}
inline std::vector<aisp_bf16> rough_bf16(size_t count, uint64_t seed, float std = 1) {
  Random random(seed);
  std::vector<aisp_bf16> v(count);
  for (size_t i = 0; i < count; i++) v[i] = float_to_bf16(rough(random, i, std));
  return v;
}
inline std::vector<float> rough_f32(size_t count, uint64_t seed, float std = 1) {
  Random random(seed);
  std::vector<float> v(count);
  for (size_t i = 0; i < count; i++) v[i] = rough(random, i, std);
  return v;
}

inline aisp_stream STREAM = nullptr;

template <typename T>
struct Device {
  T *ptr = nullptr;
  size_t count = 0;
  Device() = default;
  explicit Device(size_t n) : count(n) { CK(aisp_malloc((void **)&ptr, std::max<size_t>(n, 1) * sizeof(T))); }
  explicit Device(const std::vector<T> &v) : Device(v.size()) { put(v); }
  Device(Device &&other) noexcept : ptr(other.ptr), count(other.count) { other.ptr = nullptr; }
  Device &operator=(Device &&other) noexcept {
    std::swap(ptr, other.ptr);
    std::swap(count, other.count);
    return *this;
  }
  ~Device() {
    if (ptr) aisp_free(ptr);
  }
  void put(const std::vector<T> &v) {
    CK(aisp_memcpy_h2d(ptr, v.data(), v.size() * sizeof(T), STREAM));
    CK(aisp_stream_synchronize(STREAM));
  }
  void poison() { CK(aisp_memset(ptr, 0xff, count * sizeof(T), STREAM)); } // NaN in every float type
  std::vector<T> get() const {
    std::vector<T> v(count);
    CK(aisp_memcpy_d2h(v.data(), ptr, count * sizeof(T), STREAM));
    CK(aisp_stream_synchronize(STREAM));
    return v;
  }
};

// aisp_wide_linear over x as e4m3 codes, which it makes of it first.
inline int linear_of_codes(const aisp_ctx *ctx, const aisp_weight *w, const aisp_linear_args *args, aisp_stream stream) {
  static const Device<uint8_t> codes((size_t)32 << 20);
  static const Device<float> scales((size_t)1 << 20);
  aisp_linear_args rest = *args;
  rest.ld_scales = 256;
  if (int code = aisp_quantize_groups(ctx, args->x, args->num_rows, w->k, codes.ptr, scales.ptr, rest.ld_scales, stream)) return code;
  rest.x = reinterpret_cast<const aisp_bf16 *>(codes.ptr), rest.x_scales = scales.ptr;
  return aisp_wide_linear(ctx, w, &rest, stream);
}

inline const char *format_name(int format) {
  static const char *names[] = {"bf16", "f32", "fp8", "w8g32", "w4g32", "nvfp4"};
  return names[format];
}

// A weight matrix of noise on the device, in any format.
struct Matrix {
  int format = 0, n = 0, k = 0;
  Device<uint8_t> data, scales;
  float tensor_scale = 1;
  aisp_weight view() const { return {format, n, k, tensor_scale, data.ptr, scales.ptr}; }
  size_t bytes() const { return data.count + scales.count; }
};

inline Matrix make_matrix(const aisp_ctx *ctx, int format, int n, int k, uint64_t seed) {
  static Device<aisp_bf16> scratch;
  const size_t count = (size_t)n * k;
  Matrix m;
  m.format = format, m.n = n, m.k = k;
  m.data = Device<uint8_t>(aisp_weight_data_bytes(format, n, k));
  m.scales = Device<uint8_t>(aisp_weight_scales_bytes(format, n, k));
  const float std = 1 / std::sqrt((float)k);
  if (format == AISP_BF16) {
    CK(aisp_fill_normal(ctx, (aisp_bf16 *)m.data.ptr, count, seed, 0, std, STREAM));
    return m;
  }
  if (scratch.count < count) scratch = Device<aisp_bf16>(count);
  CK(aisp_fill_normal(ctx, scratch.ptr, count, seed, 0, std, STREAM));
  m.tensor_scale = 6 * std / (448 * 6);
  CK(aisp_quantize_weight(ctx, format, n, k, scratch.ptr, m.tensor_scale, m.data.ptr, m.scales.ptr, STREAM));
  return m;
}

inline void parallel(int count, const std::function<void(int)> &work) {
  std::atomic<int> next{0};
  std::vector<std::thread> threads;
  const int n = std::max(1u, std::min(16u, std::thread::hardware_concurrency()));
  for (int t = 0; t < n; t++)
    threads.emplace_back([&] {
      for (int i; (i = next++) < count;) work(i);
    });
  for (auto &t : threads) t.join();
}

inline double as_double(float x) { return x; }
inline double as_double(aisp_bf16 x) { return bf16_to_float(x); }

// Sum of squared differences over sum of squares; NaN or infinity anywhere gives infinity.
struct Nmse {
  double difference = 0, square = 0;
  void add(double value, double expected) {
    if (!std::isfinite(value)) difference = INFINITY;
    difference += (value - expected) * (value - expected);
    square += expected * expected;
  }
  double value() const { return std::isfinite(difference) ? difference / std::max(square, 1e-300) : INFINITY; }
};

inline int FAILED = 0, PASSED = 0;
inline void expect(bool ok, const std::string &what, double value = 0, double limit = 0) {
  if (ok) PASSED++;
  else FAILED++;
  static const bool verbose = std::getenv("VERBOSE") != nullptr;
  if (!ok || verbose) std::printf("%s %-72s %.3g (limit %.3g)\n", ok ? "ok  " : "FAIL", what.c_str(), value, limit);
}
inline void expect_below(double value, double limit, const std::string &what) { expect(value <= limit, what, value, limit); }
inline void expect_above(double value, double limit, const std::string &what) { expect(value > limit, "a fault is seen: " + what, value, limit); }
template <typename T>
void expect_same_bits(const T *a, const T *b, size_t count, const std::string &what) {
  size_t differ = 0;
  for (size_t i = 0; i < count; i++) differ += std::memcmp(a + i, b + i, sizeof(T)) != 0;
  expect(differ == 0, "same bits: " + what, (double)differ, 0);
}
