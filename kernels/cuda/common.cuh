// What every kernel file shares: the context, launches, small arithmetic, and the place of a value in each weight format.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <initializer_list>
#include <type_traits>

#include "aisp_cuda.h"

struct aisp_ctx {
  int32_t device;
  int32_t sm_count;
  int32_t compute_capability; // 90 = sm_90
  int32_t shared_bytes_per_block; // what a kernel may ask for
  bool pdl;
  void *cublaslt;      // handle of cuBLASLt, NULL without the library
  const void *lt_api;  // its functions (gemm.cu)
  void *encode_tiled;  // the driver's cuTensorMapEncodeTiled (wide_linear.cu)
  int32_t wide_clusters[9]; // clusters of s blocks that run at once; 0 where wide_linear.cu has no code for the card
};

namespace aisp {

// Asks for the shared memory of a list of kernels.
inline int raise_all(std::initializer_list<int (*)()> raises) {
  for (auto raise : raises)
    if (int code = raise()) {
      // Some kernels want more shared memory than small cards have; if chosen there, they are refused at the launch.
      if (code != cudaErrorInvalidValue) return code;
      cudaGetLastError();
    }
  return 0;
}

// Calls `use` with a format of keys and values, or the size of a head, as a constant: an integral_constant.
template <class Use>
int with_kv_format(int32_t kv_format, Use use) {
  switch (kv_format) {
    case AISP_KV_BF16: return use(std::integral_constant<int, AISP_KV_BF16>());
    case AISP_KV_FP8: return use(std::integral_constant<int, AISP_KV_FP8>());
    case AISP_KV_FP4: return use(std::integral_constant<int, AISP_KV_FP4>());
    default: return cudaErrorInvalidValue;
  }
}
template <class Use>
int with_head_dim(int32_t head_dim, Use use) {
  switch (head_dim) {
    case 32: return use(std::integral_constant<int, 32>());
    case 64: return use(std::integral_constant<int, 64>());
    case 96: return use(std::integral_constant<int, 96>());
    case 128: return use(std::integral_constant<int, 128>());
    case 256: return use(std::integral_constant<int, 256>());
    default: return cudaErrorNotSupported;
  }
}

constexpr uint32_t ALL_LANES = 0xffffffffu;

// Called once a context is made: raises the kernels' shared-memory limits.
int prepare_linear(const aisp_ctx *ctx);
int prepare_wide_linear(aisp_ctx *ctx);
int prepare_attention(const aisp_ctx *ctx);
int prepare_gemm(aisp_ctx *ctx);
void release_gemm(aisp_ctx *ctx);

struct Launch {
  dim3 grid, block;
  size_t shared_bytes = 0;
  int cluster = 1;          // blocks along x that share a cluster (sm_90 and newer)
  // The L1 gives shared memory all that it can. A multiprocessor changes this share only when it is empty, so that a kernel of
  // another share cannot start beside its predecessor: short ones in a row should agree.
  bool most_shared = false;
};
// The same for the runtime, with attributes to be added.
struct LaunchConfig {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attributes[3] = {};

  explicit LaunchConfig(const Launch &as) {
    config.gridDim = as.grid;
    config.blockDim = as.block;
    config.dynamicSmemBytes = as.shared_bytes;
    config.attrs = attributes;
  }
  LaunchConfig(const LaunchConfig &) = delete; // it points into itself
  cudaLaunchAttributeValue &add(cudaLaunchAttributeID id) {
    attributes[config.numAttrs].id = id;
    return attributes[config.numAttrs++].val;
  }
  void add_cluster(int blocks) { add(cudaLaunchAttributeClusterDimension).clusterDim = {(unsigned)blocks, 1, 1}; }
};
// Launches with the programmatic attribute when the context asks for it: the kernel may then start while its
// predecessor drains, and must call pdl_wait() before it reads what that one wrote.
template <typename... P, typename... A>
int launch_as(const aisp_ctx *ctx, const Launch &as, void (*kernel)(P...), aisp_stream stream, A &&...args) {
  LaunchConfig with(as);
  with.config.stream = static_cast<cudaStream_t>(stream);
  if (ctx->pdl) with.add(cudaLaunchAttributeProgrammaticStreamSerialization).programmaticStreamSerializationAllowed = 1;
  if (as.cluster > 1) with.add_cluster(as.cluster);
  if (as.most_shared) with.add(cudaLaunchAttributePreferredSharedMemoryCarveout).sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  return cudaLaunchKernelEx(&with.config, kernel, static_cast<P>(args)...);
}
template <typename... P, typename... A>
int launch(const aisp_ctx *ctx, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, aisp_stream stream,
           A &&...args) {
  return launch_as(ctx, {grid, block, shared_bytes}, kernel, stream, static_cast<P>(args)...);
}

// Clusters of a launch that the card runs at once.
template <typename... P>
int most_clusters(const Launch &as, void (*kernel)(P...), int *most) {
  LaunchConfig with(as);
  with.add_cluster(as.cluster);
  return cudaOccupancyMaxActiveClusters(most, kernel, &with.config);
}

// Whether a kernel that only sm_90a has code for is there: made from PTX, for another architecture, it has an empty body.
template <typename... P>
int has_hopper_code(void (*kernel)(P...), bool *found) {
  cudaFuncAttributes attributes;
  if (int code = cudaFuncGetAttributes(&attributes, kernel)) return code;
  *found = attributes.binaryVersion == 90 && attributes.numRegs >= 32;
  return 0;
}

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
__host__ __device__ inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// -------------------------------------------------------------------------------- places of values in weight formats

// Codes of quantized rows are padded to 128 values, their scales to 256, so that every row starts at 16 bytes.
__host__ __device__ inline int64_t packed_k(int format, int64_t k) {
  return format == AISP_BF16 || format == AISP_FP8 ? k : round_up(k, 128);
}
__host__ __device__ inline int64_t row_bytes(int format, int64_t k) {
  switch (format) {
    case AISP_BF16: return 2 * k;
    case AISP_FP8: return k;
    case AISP_W8G32: return packed_k(format, k);
    default: return packed_k(format, k) / 2;
  }
}
__host__ __device__ inline int64_t scale_row_bytes(int format, int64_t k) {
  switch (format) {
    case AISP_FP8: return 4;
    case AISP_W8G32: return round_up(k, 256) / 32 * 2;
    case AISP_W4G32: return round_up(k, 256) / 32 * 4;
    case AISP_NVFP4: return round_up(k, 256) / 16;
    default: return 0;
  }
}

// The order of codes in a row serves two ways of reading it. A unit of 16 bytes holds chunks of 8 values: two of 8 bits, four
// of 4 bits; its word i holds values 2i and 2i + 1 of each of its chunks. One lane that reads the whole unit has whole
// chunks, for which it reads x in pieces of 16 bytes (linear.cu); four lanes that take a word each (ldmatrix) have the
// operand of a matrix instruction whose k runs over the chunks (wide_linear.cu). For W8G32 and W4G32 the chunks of a unit
// come from neighbouring groups of 32, so that a lane's products with one group can be summed apart.
__host__ __device__ inline int64_t fp8_byte(int64_t k) { return k / 16 * 16 + k % 8 / 2 * 4 + k % 16 / 8 * 2 + (k & 1); }
__host__ __device__ inline int64_t w8_byte(int64_t k) {
  return k / 64 * 64 + k % 32 / 8 * 16 + k % 8 / 2 * 4 + k % 64 / 32 * 2 + (k & 1);
}
// Of 4 bits: the byte at which the 32-bit word of a value starts, and its nibble in it; values 2i and 2i + 1 of a chunk
// stand 16 bits apart, so one mask takes out both.
__host__ __device__ inline int64_t w4_word(int64_t k) { return k / 128 * 64 + k % 32 / 8 * 16 + k % 8 / 2 * 4; }
__host__ __device__ inline int w4_nibble(int64_t k) { return (int)(k % 128 / 32 + 4 * (k & 1)); }
__host__ __device__ inline int64_t fp4_word(int64_t k) { return k / 32 * 16 + k % 8 / 2 * 4; }
__host__ __device__ inline int fp4_nibble(int64_t k) { return (int)(k % 32 / 8 + 4 * (k & 1)); }

// Bytes of K, or of V, and of its scales, that one position of one kv head takes in the pool.
__host__ __device__ constexpr int kv_row_bytes(int kv_format, int dim) {
  return kv_format == AISP_KV_FP4 ? dim / 2 : kv_format == AISP_KV_FP8 ? dim : 2 * dim;
}
__host__ __device__ constexpr int kv_scale_bytes(int kv_format, int dim) {
  return kv_format == AISP_KV_FP4 ? dim / 8 : kv_format == AISP_KV_FP8 ? 4 : 0;
}

__host__ __device__ inline float e4m3_to_float(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float magnitude = exponent ? ldexpf(1.0f + mantissa / 8.0f, exponent - 7) : ldexpf(mantissa / 8.0f, -6);
  return code & 128 ? -magnitude : magnitude;
}
__host__ __device__ inline float e2m1_to_float(int code) {
  const int exponent = code >> 1 & 3, mantissa = code & 1;
  const float magnitude = exponent ? (1.0f + 0.5f * mantissa) * (1 << exponent) * 0.5f : 0.5f * mantissa;
  return code & 8 ? -magnitude : magnitude;
}

#ifdef __CUDACC__
// One value of a weight. For gathers and checks; the products read whole fragments.
__device__ inline float weight_value(const aisp_weight &w, int64_t n, int64_t k) {
  const uint8_t *row = static_cast<const uint8_t *>(w.data) + n * row_bytes(w.format, w.k);
  const uint8_t *scales = static_cast<const uint8_t *>(w.scales) + n * scale_row_bytes(w.format, w.k);
  switch (w.format) {
    case AISP_BF16: return __bfloat162float(reinterpret_cast<const __nv_bfloat16 *>(row)[k]);
    case AISP_FP8: return e4m3_to_float(row[fp8_byte(k)]) * *reinterpret_cast<const float *>(scales);
    case AISP_W8G32:
      return (float)(int8_t)row[w8_byte(k)] * __half2float(reinterpret_cast<const __half *>(scales)[k / 32]);
    case AISP_W4G32: {
      const uint32_t word = *reinterpret_cast<const uint32_t *>(row + w4_word(k));
      const __half *pair = reinterpret_cast<const __half *>(scales) + k / 32 * 2;
      return (float)(word >> 4 * w4_nibble(k) & 15) * __half2float(pair[0]) + __half2float(pair[1]);
    }
    default: {
      const uint32_t word = *reinterpret_cast<const uint32_t *>(row + fp4_word(k));
      return e2m1_to_float(word >> 4 * fp4_nibble(k) & 15) * e4m3_to_float(scales[k / 16]) * w.tensor_scale;
    }
  }
}

// ------------------------------------------------------------------------------------------------ device arithmetic

// Waits until everything before this kernel in the stream is done and visible.
__device__ inline void pdl_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel start. The first kernel of a step calls it after pdl_wait(), so that none of the step starts before; others
// may call it before, and then several of the chain wait at once.
__device__ inline void pdl_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ inline uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

// 16 bytes to shared memory, past the L1; zeros when `valid` is false.
__device__ inline void copy_async_16(uint32_t to, const void *from, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ inline void copy_async_16(uint32_t to, const void *from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Reads of shared memory that asynchronous copies filled. Volatile keeps them behind the waits; they clobber nothing, so
// other loads may pass them.
__device__ inline uint4 shared_16(uint32_t from) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from));
  return v;
}
__device__ inline uint32_t shared_4(uint32_t from) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(from));
  return v;
}

__device__ inline uint32_t shared_2(uint32_t from) {
  uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(from));
  return v;
}
// N words in the widest pieces that N allows; `from` is aligned to them.
template <int N>
__device__ inline void shared_words(uint32_t (&w)[N], uint32_t from) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const uint4 v = shared_16(from + 4 * i);
      w[i] = v.x, w[i + 1] = v.y, w[i + 2] = v.z, w[i + 3] = v.w;
    }
  } else if constexpr (N % 2 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 2) asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(w[i]), "=r"(w[i + 1]) : "r"(from + 4 * i));
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) w[i] = shared_4(from + 4 * i);
  }
}

// d[16 x 8] += a[16 x 16] b[16 x 8], bf16 with f32 sums.
__device__ inline void mma_bf16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same of f16.
__device__ inline void mma_f16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same with zeros in place of d's old values, of bf16.
__device__ inline void mma_bf16_first(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(0.0f));
}

__device__ inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}

__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ inline float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float bf16_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// a * b + c on bf16 pairs; exact uses below rely on fma, which every target has.
__device__ inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}

// Two e4m3 codes, standing in the high bytes of the halves of `pair`, to bf16 pairs. Exact: the bits are put where a
// bf16 has them, and a product by 2^120 moves the exponent's bias (and makes subnormals normal).
__device__ inline uint32_t e4m3_high_bytes_to_bf16x2(uint32_t pair) {
  const uint32_t bits = (pair & 0x80008000u) | (pair >> 4 & 0x07f007f0u);
  return fma_bf16x2(bits, 0x7b807b80u, 0x80008000u); // 2^120; -0 keeps the sign of zeros
}
// Four codes of a word in order to two pairs.
__device__ inline void e4m3x4_to_bf16(uint32_t word, uint32_t &pair01, uint32_t &pair23) {
  pair01 = e4m3_high_bytes_to_bf16x2(__byte_perm(word, 0, 0x1404));
  pair23 = e4m3_high_bytes_to_bf16x2(__byte_perm(word, 0, 0x3424));
}
// The same to f16, where the card has an instruction for it.
__device__ inline void e4m3x4_to_f16(uint32_t word, uint32_t &pair01, uint32_t &pair23) {
  const __half2_raw low = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)word, __NV_E4M3);
  const __half2_raw high = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)(word >> 16), __NV_E4M3);
  pair01 = (uint32_t)low.x | (uint32_t)low.y << 16, pair23 = (uint32_t)high.x | (uint32_t)high.y << 16;
}
__device__ inline uint32_t pack_f16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
// Cut at what f16 holds; NaN stays.
__device__ inline float f16_range(float x) { return fabsf(x) > 65504.0f ? copysignf(65504.0f, x) : x; }
// A bf16 pair.
__device__ inline uint32_t bf16x2_to_f16(uint32_t pair) { return pack_f16(f16_range(bf16_low(pair)), f16_range(bf16_high(pair))); }
__device__ inline uint32_t multiply_f16x2(uint32_t a, uint32_t b) {
  uint32_t r;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
// Rounds to the nearest e4m3, saturating at 448.
__device__ inline uint8_t float_to_e4m3(float x) { return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3); }
__device__ inline uint16_t floats_to_e4m3x2(float low, float high) {
  return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
}
// The scale of values of which `most` is the largest.
__device__ inline float e4m3_scale(float most) { return fmaxf(most, 1e-30f) / 448.0f; }

// The e2m1 codes at bits 4 * `nibble` and 16 more, as bf16 times 2^-126 (there a bf16 has the same bits), times `factor`.
__device__ inline uint32_t e2m1_pair(uint32_t word, int nibble, uint32_t factor) {
  const int sign = 12 - 4 * nibble, magnitude = 6 - 4 * nibble;
  const uint32_t bits = (word << sign & 0x80008000u) | ((magnitude >= 0 ? word << magnitude : word >> -magnitude) & 0x01c001c0u);
  return fma_bf16x2(bits, factor, 0x80008000u);
}
// Factors for it out of bf16 scales of both halves: values leave times 2^-32, so that no scale below 2^33 overflows.
__device__ inline uint32_t e2m1_factor(uint32_t scale_pair) { return fma_bf16x2(scale_pair, 0x6e806e80u, 0x80008000u); } // 2^94
constexpr float E2M1_LATER = 0x1p32f;
// The code of the nearest e2m1, ties towards zero; beyond 6 it is 6.
__device__ inline uint32_t float_to_e2m1(float x) {
  const float a = fabsf(x);
  return (__float_as_uint(x) >> 28 & 8) + (a > 0.25f) + (a > 0.75f) + (a > 1.25f) + (a > 1.75f) + (a > 2.5f) + (a > 3.5f) + (a > 5.0f);
}

// 2^x by the special-function unit; 0 at minus infinity.
__device__ inline float exp2_fast(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
// Blocks of a cluster, in code for sm_90 and newer.
#if __CUDA_ARCH__ >= 900
#define AISP_CLUSTERS 1
__device__ inline void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
// Two floats to `address` of the shared memory of block `rank`.
__device__ inline void cluster_put(uint32_t address, int rank, float2 v) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(there), "f"(v.x), "f"(v.y) : "memory");
}
#endif

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) x += __shfl_xor_sync(ALL_LANES, x, offset);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, offset));
  return x;
}

// By the card's own reciprocal: within 2 units of the last place, and 0 where the exponential is infinite.
__device__ inline float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// What a row's elements are multiplied by, from its sums of squares of 16 columns each. One warp; the same order always.
__device__ inline float rms_scale(const float *sumsq, int count, int k, float eps) {
  float sum = 0;
  for (int i = threadIdx.x & 31; i < count; i += 32) sum += __ldcg(sumsq + i);
  return rsqrtf(warp_sum(sum) / k + eps);
}
#endif

} // namespace aisp
