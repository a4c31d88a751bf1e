// Products of many rows through cuBLASLt, with the fastest of its algorithms for each shape.
//
// The library is loaded when a context is made, so neither its headers at build time nor its presence at run time is
// needed by what does not use it. The declarations below are the part of its C interface used here (CUDA 12 and 13).
//
// Orders: cuBLASLt is column-major. Row-major out [T, N] = x [T, K] W^T is column-major out' [N, T] = W'^T x' with
// W' [K, N] and x' [K, T], which are the same bytes as W [N, K] and x [T, K].
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <new>
#include <type_traits>

#include "common.cuh"

namespace aisp {
namespace {

using Handle = void *;
struct Algorithm {
  uint64_t data[8];
};
// Opaque to callers; the library says when a size is too small, so these leave room over versions 12 and 13.
struct Layout {
  uint64_t data[32];
};
struct Descriptor {
  uint64_t data[64];
};
struct Preference {
  uint64_t data[32];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};
enum {
  COMPUTE_32F = 68,
  DESC_TRANSA = 3,
  DESC_A_SCALE_POINTER = 17,
  DESC_B_SCALE_POINTER = 18,
  DESC_A_SCALE_MODE = 31,
  DESC_B_SCALE_MODE = 32,
  SCALE_OUTER_VEC_32F = 3,
  PREF_MAX_WORKSPACE_BYTES = 1,
  OP_T = 1,
};

struct Api {
  int (*create)(Handle *);
  int (*destroy)(Handle);
  int (*descriptor_init)(Descriptor *, size_t, int, int);
  int (*descriptor_set)(Descriptor *, int, const void *, size_t);
  int (*layout_init)(Layout *, size_t, int, uint64_t, uint64_t, int64_t);
  int (*preference_init)(Preference *, size_t);
  int (*preference_set)(Preference *, int, const void *, size_t);
  int (*heuristic)(Handle, Descriptor *, Layout *, Layout *, Layout *, Layout *, Preference *, int, Heuristic *, int *);
  int (*matmul)(Handle, Descriptor *, const void *, const void *, Layout *, const void *, Layout *, const void *, const void *,
                Layout *, void *, Layout *, const Algorithm *, void *, size_t, cudaStream_t);
};

// Finds the library once a process; it stays loaded.
const Api *load_api() {
  static Api api;
  static const bool found = [] {
    void *library = nullptr;
    for (const char *name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"})
      if ((library = dlopen(name, RTLD_NOW | RTLD_GLOBAL))) break;
    if (!library) return false;
    auto take = [&](auto &function, const char *name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      return function != nullptr;
    };
    return take(api.create, "cublasLtCreate") && take(api.destroy, "cublasLtDestroy") &&
           take(api.descriptor_init, "cublasLtMatmulDescInit_internal") && take(api.descriptor_set, "cublasLtMatmulDescSetAttribute") &&
           take(api.layout_init, "cublasLtMatrixLayoutInit_internal") &&
           take(api.preference_init, "cublasLtMatmulPreferenceInit_internal") &&
           take(api.preference_set, "cublasLtMatmulPreferenceSetAttribute") &&
           take(api.heuristic, "cublasLtMatmulAlgoGetHeuristic") && take(api.matmul, "cublasLtMatmul");
  }();
  return found ? &api : nullptr;
}

int lt_error(int status) { return status ? 100000 + status : 0; }

} // namespace

int prepare_gemm(aisp_ctx *ctx) {
  const Api *api = load_api();
  if (!api) return 0;
  ctx->lt_api = api;
  return lt_error(api->create(&ctx->cublaslt));
}
void release_gemm(aisp_ctx *ctx) {
  if (ctx->cublaslt) static_cast<const Api *>(ctx->lt_api)->destroy(ctx->cublaslt);
  ctx->cublaslt = nullptr;
}

} // namespace aisp

struct aisp_gemm {
  const aisp_ctx *ctx;
  const aisp::Api *api;
  int type, out_type; // cudaDataType
  int n, k;
  float beta; // 1 where results are added to what is there
  std::mutex lock;
  std::map<int, aisp::Algorithm> tuned;   // by num_rows, the most a call may have
  std::map<int, aisp::Algorithm> guessed; // the first heuristic, by num_rows
};

namespace aisp {
namespace {

struct Problem {
  Descriptor descriptor;
  Layout w, x, out;
};

int describe(const aisp_gemm &gemm, int num_rows, const float *x_scales, const float *w_scales, Problem *p) {
  const Api &api = *gemm.api;
  const int op = OP_T;
  int status = api.descriptor_init(&p->descriptor, sizeof p->descriptor, COMPUTE_32F, CUDA_R_32F);
  if (!status) status = api.descriptor_set(&p->descriptor, DESC_TRANSA, &op, sizeof op);
  if (!status && w_scales) {
    const int32_t mode = SCALE_OUTER_VEC_32F;
    status = api.descriptor_set(&p->descriptor, DESC_A_SCALE_MODE, &mode, sizeof mode);
    if (!status) status = api.descriptor_set(&p->descriptor, DESC_B_SCALE_MODE, &mode, sizeof mode);
    if (!status) status = api.descriptor_set(&p->descriptor, DESC_A_SCALE_POINTER, &w_scales, sizeof w_scales);
    if (!status) status = api.descriptor_set(&p->descriptor, DESC_B_SCALE_POINTER, &x_scales, sizeof x_scales);
  }
  if (!status) status = api.layout_init(&p->w, sizeof p->w, gemm.type, gemm.k, gemm.n, gemm.k);
  if (!status) status = api.layout_init(&p->x, sizeof p->x, gemm.type, gemm.k, num_rows, gemm.k);
  if (!status) status = api.layout_init(&p->out, sizeof p->out, gemm.out_type, gemm.n, num_rows, gemm.n);
  return lt_error(status);
}

int ask(const aisp_gemm &gemm, Problem *p, size_t workspace_bytes, Heuristic *results, int most, int *found) {
  const Api &api = *gemm.api;
  Preference preference;
  int status = api.preference_init(&preference, sizeof preference);
  if (!status) status = api.preference_set(&preference, PREF_MAX_WORKSPACE_BYTES, &workspace_bytes, sizeof workspace_bytes);
  *found = 0;
  if (!status)
    status = api.heuristic(gemm.ctx->cublaslt, &p->descriptor, &p->w, &p->x, &p->out, &p->out, &preference, most, results, found);
  if (!status && *found == 0) status = 15;
  return lt_error(status);
}

int multiply(const aisp_gemm &gemm, Problem *p, const Algorithm &algorithm, const void *x, const void *w, void *out, void *workspace,
             size_t workspace_bytes, aisp_stream stream) {
  const float one = 1;
  return lt_error(gemm.api->matmul(gemm.ctx->cublaslt, &p->descriptor, &one, w, &p->w, x, &p->x, &gemm.beta, out, &p->out, out, &p->out,
                                   &algorithm, workspace, workspace_bytes, static_cast<cudaStream_t>(stream)));
}

} // namespace
} // namespace aisp

using namespace aisp;

extern "C" {

int aisp_gemm_create(const aisp_ctx *ctx, int32_t format, int32_t output, int32_t n, int32_t k, aisp_gemm **out) {
  *out = nullptr;
  if (!ctx->cublaslt) return cudaErrorNotSupported;
  if ((format != AISP_BF16 && format != AISP_FP8) || output < AISP_GEMM_BF16 || output > AISP_GEMM_ADD) return cudaErrorInvalidValue;
  aisp_gemm *gemm = new (std::nothrow) aisp_gemm();
  if (!gemm) return cudaErrorMemoryAllocation;
  gemm->ctx = ctx;
  gemm->api = static_cast<const Api *>(ctx->lt_api);
  gemm->type = format == AISP_BF16 ? CUDA_R_16BF : CUDA_R_8F_E4M3;
  gemm->out_type = output == AISP_GEMM_BF16 ? CUDA_R_16BF : CUDA_R_32F;
  gemm->beta = output == AISP_GEMM_ADD ? 1.0f : 0.0f;
  gemm->n = n;
  gemm->k = k;
  *out = gemm;
  return 0;
}

int aisp_gemm_destroy(aisp_gemm *gemm) {
  delete gemm;
  return 0;
}

int aisp_gemm_tune(aisp_gemm *gemm, int32_t num_rows, const void *x, const float *x_scales, const void *w, const float *w_scales,
                   void *out, void *workspace, size_t workspace_bytes, void *flush, size_t flush_bytes, aisp_stream stream,
                   float *best_us) {
  constexpr int MOST = 32, REPEATS = 3;
  Problem problem;
  if (int code = describe(*gemm, num_rows, x_scales, w_scales, &problem)) return code;
  Heuristic results[MOST];
  int found = 0;
  if (int code = ask(*gemm, &problem, workspace_bytes, results, MOST, &found)) return code;
  cudaEvent_t start, end;
  if (int code = cudaEventCreate(&start)) return code;
  if (int code = cudaEventCreate(&end)) {
    cudaEventDestroy(start);
    return code;
  }
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  float best = INFINITY;
  int code = 0;
  for (int i = 0; i < found && !code; i++) {
    if (results[i].state) continue;
    float least = INFINITY;
    for (int r = 0; r < REPEATS + 1 && !code; r++) { // the first warms up
      if (flush) code = cudaMemsetAsync(flush, r, flush_bytes, s);
      if (!code) code = cudaEventRecord(start, s);
      // An algorithm that does not run is passed over.
      if (!code && multiply(*gemm, &problem, results[i].algorithm, x, w, out, workspace, workspace_bytes, stream)) break;
      if (!code) code = cudaEventRecord(end, s);
      if (!code) code = cudaEventSynchronize(end);
      float ms = 0;
      if (!code) code = cudaEventElapsedTime(&ms, start, end);
      if (!code && r && ms < least) least = ms;
    }
    if (!code && least < best) {
      best = least;
      const std::lock_guard<std::mutex> guard(gemm->lock);
      gemm->tuned[num_rows] = results[i].algorithm;
    }
  }
  cudaEventDestroy(start);
  cudaEventDestroy(end);
  if (best_us) *best_us = best * 1000;
  return code ? code : best == INFINITY ? lt_error(15) : 0;
}

int aisp_gemm_run(aisp_gemm *gemm, int32_t num_rows, const void *x, const float *x_scales, const void *w, const float *w_scales,
                  void *out, void *workspace, size_t workspace_bytes, aisp_stream stream) {
  if (num_rows == 0) return 0;
  Problem problem;
  if (int code = describe(*gemm, num_rows, x_scales, w_scales, &problem)) return code;
  Algorithm algorithm;
  {
    const std::lock_guard<std::mutex> guard(gemm->lock);
    auto plan = gemm->tuned.lower_bound(num_rows);
    if (plan == gemm->tuned.end()) {
      plan = gemm->guessed.find(num_rows);
      if (plan == gemm->guessed.end()) {
        Heuristic result;
        int found = 0;
        if (int code = ask(*gemm, &problem, workspace_bytes, &result, 1, &found)) return code;
        plan = gemm->guessed.emplace(num_rows, result.algorithm).first;
      }
    }
    algorithm = plan->second;
  }
  return multiply(*gemm, &problem, algorithm, x, w, out, workspace, workspace_bytes, stream);
}

} // extern "C"
