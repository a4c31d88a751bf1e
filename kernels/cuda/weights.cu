// Weights made on the device: seeded noise, lossy formats out of bf16, and back.
//
// Bytes   each input read once (quantizers of a whole channel twice), each output written once.
// Launch  one thread a value, a pair or four of them; a block a row where a row shares a scale.
// None of it is on the path of a step, except aisp_dequantize before a prefill.
#include "common.cuh"

namespace aisp {
namespace {

// splitmix64. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
__device__ inline uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// Values 2 pair and 2 pair + 1 of the stream of `seed`, by Box and Muller.
__device__ inline float2 normals(uint64_t seed, uint64_t pair) {
  const uint64_t bits = mix(mix(seed) ^ pair);
  const float u = ((uint32_t)(bits >> 40) + 1) * 0x1p-24f; // (0, 1]
  const float turn = (uint32_t)(bits & 0xffffff) * 0x1p-23f;
  const float radius = sqrtf(-2.0f * logf(u));
  return make_float2(radius * cospif(turn), radius * sinpif(turn));
}

template <typename T>
__device__ inline T cast(float x);
template <>
__device__ inline float cast<float>(float x) { return x; }
template <>
__device__ inline __nv_bfloat16 cast<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

template <typename T>
__global__ void fill_normal(T *out, size_t count, uint64_t seed, float mean, float std) {
  pdl_wait();
  pdl_launch();
  const size_t pairs = (count + 1) / 2;
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < pairs; i += (size_t)gridDim.x * blockDim.x) {
    const float2 z = normals(seed, i);
    out[2 * i] = cast<T>(mean + std * z.x);
    if (2 * i + 1 < count) out[2 * i + 1] = cast<T>(mean + std * z.y);
  }
}

__device__ inline float block_max(float x, float *shared) {
  x = warp_max(x);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
  __syncthreads();
  x = shared[0];
  for (int w = 1; w < blockDim.x / 32; w++) x = fmaxf(x, shared[w]);
  return x;
}

__global__ void absmax_kernel(const __nv_bfloat16 *x, size_t count, int *out) {
  __shared__ float shared[32];
  pdl_wait();
  pdl_launch();
  float most = 0;
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x)
    most = fmaxf(most, fabsf(__bfloat162float(x[i])));
  most = block_max(most, shared);
  // Bits of floats that are not negative are ordered as the floats are.
  if (threadIdx.x == 0) atomicMax(out, __float_as_int(most));
}

__global__ void quantize_fp8_kernel(const __nv_bfloat16 *w, int k, uint8_t *data, float *scales) {
  __shared__ float shared[32];
  pdl_wait();
  pdl_launch();
  const int64_t n = blockIdx.x;
  float most = 0;
  for (int i = threadIdx.x; i < k; i += blockDim.x) most = fmaxf(most, fabsf(__bfloat162float(w[n * k + i])));
  const float scale = e4m3_scale(block_max(most, shared));
  for (int i = threadIdx.x; i < k; i += blockDim.x) data[n * k + fp8_byte(i)] = float_to_e4m3(__bfloat162float(w[n * k + i]) / scale);
  if (threadIdx.x == 0) scales[n] = scale;
}

__device__ inline int float_to_e2m1(float x) {
  const float a = fabsf(x);
  // Halfway points go to the even code.
  const int code = a <= 0.25f ? 0 : a < 0.75f ? 1 : a <= 1.25f ? 2 : a < 1.75f ? 3 : a <= 2.5f ? 4 : a < 3.5f ? 5 : a <= 5.0f ? 6 : 7;
  return code | (x < 0 ? 8 : 0);
}

// Codes of four neighbouring values at `k`: nibbles in two neighbouring words.
__device__ inline uint2 nibble_words(const uint32_t (&codes)[4], int nibble) {
  return make_uint2((codes[0] | codes[1] << 16) << 4 * nibble, (codes[2] | codes[3] << 16) << 4 * nibble);
}
__device__ inline uint2 or_across(uint2 words, int lanes) {
  return make_uint2(words.x | __shfl_xor_sync(ALL_LANES, words.x, lanes), words.y | __shfl_xor_sync(ALL_LANES, words.y, lanes));
}

// One warp 128 values of a row, a lane four of them; the padding of a row is written by warps beyond k.
__global__ void quantize_groups_kernel(int format, const __nv_bfloat16 *w, int n, int k, float tensor_scale, uint8_t *data,
                                       uint8_t *scales) {
  pdl_wait();
  pdl_launch();
  const int lane = threadIdx.x & 31;
  const int64_t spans = round_up(k, 256) / 128;
  const int64_t at = blockIdx.x * (int64_t)(blockDim.x / 32) + threadIdx.x / 32;
  if (at >= spans * n) return;
  const int64_t row = at / spans, k0 = at % spans * 128 + lane * 4;
  uint8_t *row_data = data + row * row_bytes(format, k);
  uint8_t *row_scales = scales + row * scale_row_bytes(format, k);
  const bool stored = k0 < packed_k(format, k);
  float v[4], low = INFINITY, high = -INFINITY;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    v[i] = k0 + i < k ? __bfloat162float(w[row * k + k0 + i]) : 0.0f;
    low = fminf(low, v[i]);
    high = fmaxf(high, v[i]);
  }
  // Over the lanes of a group: 8 for 32 values, 4 for 16.
  for (int offset = format == AISP_NVFP4 ? 2 : 4; offset; offset >>= 1) {
    low = fminf(low, __shfl_xor_sync(ALL_LANES, low, offset));
    high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, offset));
  }
  const float most = fmaxf(fabsf(low), fabsf(high));
  uint32_t codes[4];
  if (format == AISP_W8G32) {
    const __half scale = __float2half_rn(most / 127.0f);
    const float inverse = __half2float(scale) > 0 ? 1.0f / __half2float(scale) : 0.0f;
    if (lane % 8 == 0) reinterpret_cast<__half *>(row_scales)[k0 / 32] = scale;
#pragma unroll
    for (int i = 0; i < 4; i++) codes[i] = (uint8_t)(int8_t)fminf(fmaxf(rintf(v[i] * inverse), -127.0f), 127.0f);
    if (stored) {
      *reinterpret_cast<uint16_t *>(row_data + w8_byte(k0)) = (uint16_t)(codes[0] | codes[1] << 8);
      *reinterpret_cast<uint16_t *>(row_data + w8_byte(k0 + 2)) = (uint16_t)(codes[2] | codes[3] << 8);
    }
  } else if (format == AISP_W4G32) {
    const __half scale = __float2half_rn((high - low) / 15.0f), min = __float2half_rn(low);
    const float inverse = __half2float(scale) > 0 ? 1.0f / __half2float(scale) : 0.0f;
    if (lane % 8 == 0) reinterpret_cast<__half2 *>(row_scales)[k0 / 32] = __halves2half2(scale, min);
#pragma unroll
    for (int i = 0; i < 4; i++) codes[i] = (uint32_t)fminf(fmaxf(rintf((v[i] - __half2float(min)) * inverse), 0.0f), 15.0f);
    const uint2 words = or_across(or_across(nibble_words(codes, w4_nibble(k0)), 8), 16);
    if (stored && lane < 8) *reinterpret_cast<uint2 *>(row_data + w4_word(k0)) = words;
  } else {
    const uint8_t scale = float_to_e4m3(most / (6.0f * tensor_scale));
    const float step = e4m3_to_float(scale) * tensor_scale;
    const float inverse = step > 0 ? 1.0f / step : 0.0f;
    if (lane % 4 == 0) row_scales[k0 / 16] = scale;
#pragma unroll
    for (int i = 0; i < 4; i++) codes[i] = (uint32_t)float_to_e2m1(v[i] * inverse);
    const uint2 words = or_across(or_across(nibble_words(codes, fp4_nibble(k0)), 2), 4);
    if (stored && lane % 8 < 2) *reinterpret_cast<uint2 *>(row_data + fp4_word(k0)) = words;
  }
}

// One thread eight values of a row.
__global__ void dequantize_kernel(const aisp_weight w, __nv_bfloat16 *out) {
  pdl_wait();
  pdl_launch();
  const int64_t eighths = w.k / 8, total = eighths * w.n;
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < total; i += (int64_t)gridDim.x * blockDim.x) {
    const int64_t n = i / eighths, k = i % eighths * 8;
    uint32_t pairs[4];
    for (int j = 0; j < 4; j++) pairs[j] = pack_bf16(weight_value(w, n, k + 2 * j), weight_value(w, n, k + 2 * j + 1));
    *reinterpret_cast<uint4 *>(out + n * w.k + k) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }
}

} // namespace
} // namespace aisp

using namespace aisp;

extern "C" {

int aisp_fill_normal(const aisp_ctx *ctx, aisp_bf16 *out, size_t count, uint64_t seed, float mean, float std, aisp_stream stream) {
  return launch(ctx, fill_normal<__nv_bfloat16>, ctx->sm_count * 8, 256, 0, stream, reinterpret_cast<__nv_bfloat16 *>(out), count,
                seed, mean, std);
}
int aisp_fill_normal_f32(const aisp_ctx *ctx, float *out, size_t count, uint64_t seed, float mean, float std, aisp_stream stream) {
  return launch(ctx, fill_normal<float>, ctx->sm_count * 8, 256, 0, stream, out, count, seed, mean, std);
}

int aisp_absmax(const aisp_ctx *ctx, const aisp_bf16 *x, size_t count, float *out, aisp_stream stream) {
  if (int code = cudaMemsetAsync(out, 0, sizeof(float), static_cast<cudaStream_t>(stream))) return code;
  return launch(ctx, absmax_kernel, ctx->sm_count * 4, 256, 0, stream, reinterpret_cast<const __nv_bfloat16 *>(x), count,
                reinterpret_cast<int *>(out));
}

int aisp_quantize_weight(const aisp_ctx *ctx, int32_t format, int32_t n, int32_t k, const aisp_bf16 *w, float tensor_scale,
                         void *data, void *scales, aisp_stream stream) {
  const auto *from = reinterpret_cast<const __nv_bfloat16 *>(w);
  if (format == AISP_FP8 && k % 16) return cudaErrorInvalidValue;
  if (format == AISP_FP8)
    return launch(ctx, quantize_fp8_kernel, n, 256, 0, stream, from, k, static_cast<uint8_t *>(data), static_cast<float *>(scales));
  if (format < AISP_W8G32 || format > AISP_NVFP4) return cudaErrorInvalidValue;
  const int64_t warps = round_up(k, 256) / 128 * n;
  return launch(ctx, quantize_groups_kernel, (unsigned)ceil_div(warps, 8), 256, 0, stream, format, from, n, k, tensor_scale,
                static_cast<uint8_t *>(data), static_cast<uint8_t *>(scales));
}

int aisp_dequantize(const aisp_ctx *ctx, const aisp_weight *w, aisp_bf16 *out, aisp_stream stream) {
  if (w->k % (w->format == AISP_FP8 ? 16 : 8)) return cudaErrorInvalidValue;
  return launch(ctx, dequantize_kernel, ctx->sm_count * 8, 256, 0, stream, *w, reinterpret_cast<__nv_bfloat16 *>(out));
}

} // extern "C"
