// Ops that touch each value once: embedding, norms, silu * mul, quantization of rows, probes.
//
// Bytes   inputs once, outputs once; a row is kept in registers between the sum of squares and its use.
// Launch  a block a row (norms, embedding), or a thread eight values.
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

// DELTA: 0 none, 1 bf16, 2 f32.
template <int DELTA>
__global__ void __launch_bounds__(ROW_THREADS) rms_norm_kernel(float *residual, const void *delta, const float *weight, float eps,
                                                               int hidden, __nv_bfloat16 *out) {
  constexpr int KEPT = 8; // float4 a thread, so rows up to 8192 are read once
  __shared__ float shared[ROW_THREADS / 32];
  pdl_wait();
  pdl_launch();
  const int64_t t = blockIdx.x;
  float4 *row = reinterpret_cast<float4 *>(residual + t * hidden);
  const int count = hidden / 4;
  auto load = [&](int i) {
    float4 v = __ldcg(row + i);
    if constexpr (DELTA == 1) {
      const uint2 d = reinterpret_cast<const uint2 *>(static_cast<const __nv_bfloat16 *>(delta) + t * hidden)[i];
      v.x += bf16_low(d.x), v.y += bf16_high(d.x), v.z += bf16_low(d.y), v.w += bf16_high(d.y);
    }
    if constexpr (DELTA == 2) {
      const float4 d = reinterpret_cast<const float4 *>(static_cast<const float *>(delta) + t * hidden)[i];
      v.x += d.x, v.y += d.y, v.z += d.z, v.w += d.w;
    }
    if constexpr (DELTA != 0) row[i] = v;
    return v;
  };
  float4 kept[KEPT];
  float sum = 0;
#pragma unroll
  for (int j = 0; j < KEPT; j++) {
    const int i = threadIdx.x + j * ROW_THREADS;
    if (i < count) {
      kept[j] = load(i);
      sum += kept[j].x * kept[j].x + kept[j].y * kept[j].y + kept[j].z * kept[j].z + kept[j].w * kept[j].w;
    }
  }
  for (int i = threadIdx.x + KEPT * ROW_THREADS; i < count; i += ROW_THREADS) {
    const float4 v = load(i);
    sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  const float scale = rsqrtf(block_sum(sum, shared) / hidden + eps);
  auto store = [&](int i, float4 v) {
    const float4 g = reinterpret_cast<const float4 *>(weight)[i];
    reinterpret_cast<uint2 *>(out + t * hidden)[i] =
        make_uint2(pack_bf16(v.x * scale * g.x, v.y * scale * g.y), pack_bf16(v.z * scale * g.z, v.w * scale * g.w));
  };
#pragma unroll
  for (int j = 0; j < KEPT; j++) {
    const int i = threadIdx.x + j * ROW_THREADS;
    if (i < count) store(i, kept[j]);
  }
  for (int i = threadIdx.x + KEPT * ROW_THREADS; i < count; i += ROW_THREADS) store(i, row[i]);
}

template <bool F32>
__global__ void silu_mul_kernel(const void *gate_up, int64_t num_tokens, int64_t inner, __nv_bfloat16 *out) {
  pdl_wait();
  pdl_launch();
  const int64_t quads = inner / 4;
  for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < num_tokens * quads; i += (int64_t)gridDim.x * blockDim.x) {
    const int64_t t = i / quads, at = t * 2 * inner + i % quads * 4;
    float g[4], u[4];
    if constexpr (F32) {
      const float *from = static_cast<const float *>(gate_up) + at;
      *reinterpret_cast<float4 *>(g) = *reinterpret_cast<const float4 *>(from);
      *reinterpret_cast<float4 *>(u) = *reinterpret_cast<const float4 *>(from + inner);
    } else {
      const __nv_bfloat16 *from = static_cast<const __nv_bfloat16 *>(gate_up) + at;
      const uint2 gate = *reinterpret_cast<const uint2 *>(from), up = *reinterpret_cast<const uint2 *>(from + inner);
      g[0] = bf16_low(gate.x), g[1] = bf16_high(gate.x), g[2] = bf16_low(gate.y), g[3] = bf16_high(gate.y);
      u[0] = bf16_low(up.x), u[1] = bf16_high(up.x), u[2] = bf16_low(up.y), u[3] = bf16_high(up.y);
    }
    reinterpret_cast<uint2 *>(out + t * inner)[i % quads] = make_uint2(pack_bf16(silu(g[0]) * u[0], silu(g[1]) * u[1]),
                                                                       pack_bf16(silu(g[2]) * u[2], silu(g[3]) * u[3]));
  }
}

__global__ void __launch_bounds__(ROW_THREADS) quantize_rows_kernel(const __nv_bfloat16 *x, const float *x_sumsq, float eps, int k,
                                                                    uint8_t *out, float *scales) {
  __shared__ float shared[ROW_THREADS / 32];
  __shared__ float norm;
  pdl_wait();
  pdl_launch();
  const int64_t t = blockIdx.x;
  const uint4 *row = reinterpret_cast<const uint4 *>(x + t * k);
  if (threadIdx.x < 32) {
    const float scale = x_sumsq ? rms_scale(x_sumsq + t * (k / 16), k / 16, k, eps) : 1.0f;
    if (threadIdx.x == 0) norm = scale;
  }
  float most = 0;
  for (int i = threadIdx.x; i < k / 8; i += ROW_THREADS) {
    const uint4 v = row[i];
    const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; j++) most = fmaxf(most, fmaxf(fabsf(bf16_low(pairs[j])), fabsf(bf16_high(pairs[j]))));
  }
  most = warp_max(most);
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = most;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < ROW_THREADS / 32; w++) most = fmaxf(most, shared[w]);
  const float scale = e4m3_scale(most), inverse = 1.0f / scale;
  // In the order of weights: word i of 16 values holds values 2i, 2i + 1, 8 + 2i and 9 + 2i.
  auto codes = [&](uint32_t pair) -> uint32_t {
    return floats_to_e4m3x2(bf16_low(pair) * inverse, bf16_high(pair) * inverse);
  };
  for (int i = threadIdx.x; i < k / 16; i += ROW_THREADS) {
    const uint4 a = row[2 * i], b = row[2 * i + 1];
    reinterpret_cast<uint4 *>(out + t * k)[i] = make_uint4(codes(a.x) | codes(b.x) << 16, codes(a.y) | codes(b.y) << 16,
                                                           codes(a.z) | codes(b.z) << 16, codes(a.w) | codes(b.w) << 16);
  }
  if (threadIdx.x == 0) scales[t] = scale * norm;
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
                  int32_t hidden_size, aisp_bf16 *out, aisp_stream stream) {
  if (num_tokens == 0) return 0;
  if (hidden_size % 4) return cudaErrorInvalidValue;
  return launch(ctx, rms_norm_kernel<0>, num_tokens, ROW_THREADS, 0, stream, const_cast<float *>(residual), nullptr, weight, eps,
                hidden_size, reinterpret_cast<__nv_bfloat16 *>(out));
}

int aisp_residual_rms_norm(const aisp_ctx *ctx, float *residual, const void *delta, int32_t delta_format, const float *weight,
                           float eps, int32_t num_tokens, int32_t hidden_size, aisp_bf16 *out, aisp_stream stream) {
  if (num_tokens == 0) return 0;
  if (hidden_size % 4 || (delta_format != AISP_BF16 && delta_format != AISP_F32)) return cudaErrorInvalidValue;
  auto kernel = delta_format == AISP_BF16 ? rms_norm_kernel<1> : rms_norm_kernel<2>;
  return launch(ctx, kernel, num_tokens, ROW_THREADS, 0, stream, residual, delta, weight, eps, hidden_size,
                reinterpret_cast<__nv_bfloat16 *>(out));
}

int aisp_silu_mul(const aisp_ctx *ctx, const void *gate_up, int32_t format, int32_t num_tokens, int32_t intermediate_size,
                  aisp_bf16 *out, aisp_stream stream) {
  if (num_tokens == 0) return 0;
  if (intermediate_size % 4 || (format != AISP_BF16 && format != AISP_F32)) return cudaErrorInvalidValue;
  const int64_t quads = (int64_t)num_tokens * intermediate_size / 4;
  const int64_t blocks = ceil_div(quads, 256), most = ctx->sm_count * 16;
  auto kernel = format == AISP_BF16 ? silu_mul_kernel<false> : silu_mul_kernel<true>;
  return launch(ctx, kernel, (unsigned)(blocks < most ? blocks : most), 256, 0, stream, gate_up, num_tokens, intermediate_size,
                reinterpret_cast<__nv_bfloat16 *>(out));
}

int aisp_quantize_rows(const aisp_ctx *ctx, const aisp_bf16 *x, const float *x_sumsq, float eps, int32_t num_rows, int32_t k,
                       uint8_t *out, float *scales, aisp_stream stream) {
  if (num_rows == 0) return 0;
  if (k % 16) return cudaErrorInvalidValue;
  return launch(ctx, quantize_rows_kernel, num_rows, ROW_THREADS, 0, stream, reinterpret_cast<const __nv_bfloat16 *>(x), x_sumsq,
                eps, k, out, scales);
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
