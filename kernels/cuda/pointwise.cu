// Ops that touch each value once: embedding, norms, silu * mul, quantization of rows, probes.
//
// Bytes   inputs once, outputs once; a row is kept in registers between the sum of squares, or its largest value, and its use.
// Launch  a block a row, or a thread eight values (scales of 64 values, probes).
// Sums    a row's squares: each thread in order over its own columns, lanes by halves, warps in order.
#include "common.cuh"

namespace aisp {
namespace {

constexpr int ROW_THREADS = 256;

__device__ inline float block_sum(float x, float *shared) {
  x = warp_sum(x);
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
  __syncthreads();
  float sum = shared[0];
#pragma unroll
  for (int w = 1; w < ROW_THREADS / 32; w++) sum += shared[w];
  return sum;
}

// One warp 32 columns at a time; half-warps hold the 16 columns of a partial sum.
__global__ void embedding_kernel(const aisp_weight table, const int32_t *token_ids, const int32_t *choices, int num_choices,
                                 float *residual, const float *norm_weight, __nv_bfloat16 *next_x, float *next_sumsq) {
  pdl_wait();
  pdl_launch();
  const int64_t t = blockIdx.x, hidden = table.k;
  int32_t id = token_ids[t];
  if (id < 0 && id >= -num_choices) id = choices[-1 - id];
  const bool known = id >= 0 && id < table.n;
  for (int64_t k0 = (int64_t)blockIdx.y * blockDim.x; k0 < hidden; k0 += (int64_t)gridDim.y * blockDim.x) {
    const int64_t k = k0 + threadIdx.x;
    const bool valid = k < hidden;
    const float value = valid && known ? weight_value(table, id, k) : 0.0f;
    if (valid) residual[t * hidden + k] = value;
    if (next_x) {
      if (valid) next_x[t * hidden + k] = __float2bfloat16_rn(value * norm_weight[k]);
      float sum = value * value;
#pragma unroll
      for (int offset = 8; offset; offset >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
      if (valid && threadIdx.x % 16 == 0) next_sumsq[t * (hidden / 16) + k / 16] = sum;
    }
  }
}

// Leaves a row of k values in bf16, or what e4m3 makes of them, for the next product. `quad(j, i)`: values 4 i to 4 i + 3 in bf16, the
// j-th that this thread computes; from the KEPT-th on they are computed twice.
template <bool FP8, int KEPT, typename Quad>
__device__ inline void leave_row(const aisp_rows &out, int64_t t, int k, Quad quad) {
  // All threads come along, so that lanes may exchange.
  auto for_each = [&](auto use) {
#pragma unroll
    for (int j = 0; j < KEPT; j++)
      if (j * ROW_THREADS < k / 4) use(j, threadIdx.x + j * ROW_THREADS);
    for (int first = KEPT * ROW_THREADS; first < k / 4; first += ROW_THREADS) use(KEPT, threadIdx.x + first);
  };
  if constexpr (!FP8) {
    for_each([&](int j, int i) {
      if (i < k / 4) reinterpret_cast<uint2 *>(out.x + t * k)[i] = quad(j, i);
    });
  } else {
    __shared__ float shared[ROW_THREADS / 32];
    uint2 kept[KEPT];
    float most = 0;
    for_each([&](int j, int i) {
      const uint2 q = i < k / 4 ? quad(j, i) : make_uint2(0, 0);
      if (j < KEPT) kept[j] = q;
      most = fmaxf(fmaxf(most, fmaxf(fabsf(bf16_low(q.x)), fabsf(bf16_high(q.x)))), fmaxf(fabsf(bf16_low(q.y)), fabsf(bf16_high(q.y))));
    });
    most = warp_max(most);
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = most;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < ROW_THREADS / 32; w++) most = fmaxf(most, shared[w]);
    const float scale = e4m3_scale(most), inverse = 1.0f / scale;
    auto code = [&](uint32_t pair) -> uint32_t { return floats_to_e4m3x2(bf16_low(pair) * inverse, bf16_high(pair) * inverse); };
    for_each([&](int j, int i) {
      const bool valid = i < k / 4, later = threadIdx.x & 2;
      const uint2 q = j < KEPT ? kept[j] : valid ? quad(j, i) : make_uint2(0, 0);
      // A word of codes holds two values of each half of 16, of which four lanes have a quarter each.
      const uint32_t first = code(q.x), second = code(q.y), other = __shfl_xor_sync(ALL_LANES, later ? first : second, 2);
      if (valid) reinterpret_cast<uint32_t *>(out.codes + t * k)[i / 4 * 4 + i % 2 * 2 + later] = later ? other | second << 16 : first | other << 16;
    });
    if (threadIdx.x == 0) out.scales[t] = scale;
  }
}

template <bool FP8>
__global__ void __launch_bounds__(ROW_THREADS) rms_norm_kernel(const float *residual, const float *weight, float eps, int hidden, const aisp_rows out) {
  constexpr int KEPT = 8; // float4 a thread, so rows up to 8192 are read once
  __shared__ float shared[ROW_THREADS / 32];
  pdl_wait();
  pdl_launch();
  const int64_t t = blockIdx.x;
  const float4 *row = reinterpret_cast<const float4 *>(residual + t * hidden);
  const int count = hidden / 4;
  float4 kept[KEPT];
  float sum = 0;
  auto add = [&](float4 v) { sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; };
#pragma unroll
  for (int j = 0; j < KEPT; j++) {
    const int i = threadIdx.x + j * ROW_THREADS;
    if (i < count) add(kept[j] = __ldcg(row + i));
  }
  for (int i = threadIdx.x + KEPT * ROW_THREADS; i < count; i += ROW_THREADS) add(__ldcg(row + i));
  const float scale = rsqrtf(block_sum(sum, shared) / hidden + eps);
  leave_row<FP8, KEPT>(out, t, hidden, [&](int j, int i) {
    const float4 v = j < KEPT ? kept[j] : __ldcg(row + i), g = reinterpret_cast<const float4 *>(weight)[i];
    return make_uint2(pack_bf16(v.x * scale * g.x, v.y * scale * g.y), pack_bf16(v.z * scale * g.z, v.w * scale * g.w));
  });
}

template <bool FP8>
__global__ void __launch_bounds__(ROW_THREADS) silu_mul_kernel(const __nv_bfloat16 *gate_up, int inner, const aisp_rows out) {
  pdl_wait();
  pdl_launch();
  const int64_t t = blockIdx.x;
  const uint2 *gates = reinterpret_cast<const uint2 *>(gate_up + t * 2 * inner), *ups = gates + inner / 4;
  leave_row<FP8, 16>(out, t, inner, [&](int, int i) {
    const uint2 g = __ldcg(gates + i), u = __ldcg(ups + i);
    return make_uint2(pack_bf16(silu(bf16_low(g.x)) * bf16_low(u.x), silu(bf16_high(g.x)) * bf16_high(u.x)),
                      pack_bf16(silu(bf16_low(g.y)) * bf16_low(u.y), silu(bf16_high(g.y)) * bf16_high(u.y)));
  });
}

__global__ void __launch_bounds__(ROW_THREADS) quantize_rows_kernel(const __nv_bfloat16 *x, int k, const aisp_rows out) {
  pdl_wait();
  pdl_launch();
  const int64_t t = blockIdx.x;
  leave_row<true, 16>(out, t, k, [&](int, int i) { return __ldcg(reinterpret_cast<const uint2 *>(x + t * k) + i); });
}

// Eight lanes share 64 values.
__global__ void quantize_groups_kernel(const uint4 *x, int num_rows, int k, uint8_t *out, float *scales, int64_t ld_scales) {
  pdl_wait();
  pdl_launch();
  const int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x, t = i / (k / 8), at = i % (k / 8) * 8;
  const bool valid = t < num_rows;
  const uint4 v = valid ? x[i] : make_uint4(0, 0, 0, 0);
  const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
  float most = 0;
#pragma unroll
  for (int j = 0; j < 4; j++) most = fmaxf(most, fmaxf(fabsf(bf16_low(pairs[j])), fabsf(bf16_high(pairs[j]))));
#pragma unroll
  for (int offset = 4; offset; offset >>= 1) most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, offset));
  const float scale = e4m3_scale(most), inverse = 1.0f / scale;
  if (!valid) return;
#pragma unroll
  for (int j = 0; j < 4; j++)
    *reinterpret_cast<uint16_t *>(out + t * k + fp8_byte(at + 2 * j)) = floats_to_e4m3x2(bf16_low(pairs[j]) * inverse, bf16_high(pairs[j]) * inverse);
  if (at % 64 == 0) scales[at / 64 * ld_scales + t] = scale;
}

__global__ void __launch_bounds__(256) probe_copy_kernel(const uint4 *src, uint4 *dst, size_t count) {
  pdl_wait();
  pdl_launch();
  const size_t step = (size_t)gridDim.x * blockDim.x;
  size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
  for (; i + 3 * step < count; i += 4 * step) {
    uint4 v[4];
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = __ldcs(src + i + j * step);
#pragma unroll
    for (int j = 0; j < 4; j++) __stcs(dst + i + j * step, v[j]);
  }
  for (; i < count; i += step) __stcs(dst + i, __ldcs(src + i));
}

__global__ void __launch_bounds__(256) probe_read_kernel(const uint4 *src, size_t count, float *out) {
  pdl_wait();
  pdl_launch();
  uint32_t x = 0;
  const size_t step = (size_t)gridDim.x * blockDim.x;
  size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
  for (; i + 7 * step < count; i += 8 * step) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = __ldcs(src + i + j * step);
#pragma unroll
    for (int j = 0; j < 8; j++) x ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  for (; i < count; i += step) {
    const uint4 v = __ldcs(src + i);
    x ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (x == 0x12345678u) *out = 1; // keeps the loads
}

__global__ void empty_kernel() {
  pdl_wait();
  pdl_launch();
}

} // namespace
} // namespace aisp

using namespace aisp;

extern "C" {

int aisp_embedding(const aisp_ctx *ctx, const aisp_weight *table, const int32_t *token_ids, const int32_t *choices, int32_t num_choices,
                   int32_t num_tokens, float *residual, const float *next_norm_weight, aisp_bf16 *next_x, float *next_sumsq, aisp_stream stream) {
  if (num_tokens == 0) return 0;
  if (next_x && (table->k % 16 || !next_norm_weight || !next_sumsq)) return cudaErrorInvalidValue;
  const dim3 grid(num_tokens, num_tokens < 64 ? (unsigned)ceil_div(table->k, 256) : 1);
  return launch(ctx, embedding_kernel, grid, 256, 0, stream, *table, token_ids, choices, (int)num_choices, residual, next_norm_weight,
                reinterpret_cast<__nv_bfloat16 *>(next_x), next_sumsq);
}

int aisp_rms_norm(const aisp_ctx *ctx, const float *residual, const float *weight, float eps, int32_t num_tokens,
                  int32_t hidden_size, const aisp_rows *out, aisp_stream stream) {
  if (num_tokens == 0) return 0;
  if (hidden_size % (out->codes ? 16 : 4)) return cudaErrorInvalidValue;
  return launch(ctx, out->codes ? rms_norm_kernel<true> : rms_norm_kernel<false>, num_tokens, ROW_THREADS, 0, stream, residual, weight, eps,
                hidden_size, *out);
}

int aisp_silu_mul(const aisp_ctx *ctx, const aisp_bf16 *gate_up, int32_t num_tokens, int32_t intermediate_size, const aisp_rows *out,
                  aisp_stream stream) {
  if (num_tokens == 0) return 0;
  if (intermediate_size % (out->codes ? 16 : 4)) return cudaErrorInvalidValue;
  return launch(ctx, out->codes ? silu_mul_kernel<true> : silu_mul_kernel<false>, num_tokens, ROW_THREADS, 0, stream,
                reinterpret_cast<const __nv_bfloat16 *>(gate_up), intermediate_size, *out);
}

int aisp_quantize_rows(const aisp_ctx *ctx, const aisp_bf16 *x, int32_t num_rows, int32_t k, uint8_t *codes, float *scales,
                       aisp_stream stream) {
  if (num_rows == 0) return 0;
  if (k % 16) return cudaErrorInvalidValue;
  return launch(ctx, quantize_rows_kernel, num_rows, ROW_THREADS, 0, stream, reinterpret_cast<const __nv_bfloat16 *>(x), k,
                aisp_rows{nullptr, codes, scales});
}

int aisp_quantize_groups(const aisp_ctx *ctx, const aisp_bf16 *x, int32_t num_rows, int32_t k, uint8_t *out, float *scales,
                         int64_t ld_scales, aisp_stream stream) {
  if (num_rows == 0) return 0;
  if (k % 64) return cudaErrorInvalidValue;
  return launch(ctx, quantize_groups_kernel, (unsigned)ceil_div((int64_t)num_rows * k / 8, 256), 256, 0, stream,
                reinterpret_cast<const uint4 *>(x), num_rows, k, out, scales, ld_scales);
}

int aisp_probe_read(const aisp_ctx *ctx, const void *src, size_t bytes, float *out, aisp_stream stream) {
  return launch(ctx, probe_read_kernel, ctx->sm_count * 8, 256, 0, stream, static_cast<const uint4 *>(src), bytes / 16, out);
}

int aisp_probe_copy(const aisp_ctx *ctx, const void *src, void *dst, size_t bytes, aisp_stream stream) {
  return launch(ctx, probe_copy_kernel, ctx->sm_count * 8, 256, 0, stream, static_cast<const uint4 *>(src), static_cast<uint4 *>(dst),
                bytes / 16);
}

int aisp_probe_empty(const aisp_ctx *ctx, aisp_stream stream) { return launch(ctx, empty_kernel, 1, 32, 0, stream); }

} // extern "C"
