// The CUDA runtime behind the C interface: device, memory, streams, events, graphs, and the context.
#include <cstring>
#include <new>

#include "common.cuh"

namespace {
cudaStream_t as_stream(aisp_stream stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t as_event(aisp_event event) { return static_cast<cudaEvent_t>(event); }
cudaGraphExec_t as_graph(aisp_graph graph) { return static_cast<cudaGraphExec_t>(graph); }
} // namespace

extern "C" {

const char *aisp_error_string(int code) {
  if (code >= 100000) {
    switch (code - 100000) {
      case 1: return "cuBLASLt is not initialized";
      case 3: return "cuBLASLt could not allocate";
      case 7: return "cuBLASLt got an invalid value";
      case 8: return "cuBLASLt does not support this device";
      case 13: return "cuBLASLt failed to run the product";
      case 15: return "cuBLASLt has no algorithm for this product";
      default: return "cuBLASLt failed";
    }
  }
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}

int aisp_device_count(int32_t *count) {
  int found = 0;
  const int code = cudaGetDeviceCount(&found);
  *count = code ? 0 : found;
  return code;
}

int aisp_device_get_info(int32_t device, aisp_device_info *info) {
  cudaDeviceProp prop;
  memset(info, 0, sizeof *info);
  if (int code = cudaGetDeviceProperties(&prop, device)) return code;
  static_assert(sizeof info->name <= sizeof prop.name, "a name is copied whole or cut");
  memcpy(info->name, prop.name, sizeof info->name - 1);
  info->compute_major = prop.major;
  info->compute_minor = prop.minor;
  info->sm_count = prop.multiProcessorCount;
  info->l2_bytes = prop.l2CacheSize;
  info->shared_bytes_per_block = (int32_t)prop.sharedMemPerBlockOptin;
  int driver = 0, runtime = 0;
  if (int code = cudaDriverGetVersion(&driver)) return code;
  if (int code = cudaRuntimeGetVersion(&runtime)) return code;
  info->driver_version = driver;
  info->runtime_version = runtime;
  int current = 0;
  if (int code = cudaGetDevice(&current)) return code;
  if (int code = cudaSetDevice(device)) return code;
  size_t free_bytes = 0, total_bytes = 0;
  const int code = cudaMemGetInfo(&free_bytes, &total_bytes);
  info->free_bytes = free_bytes;
  info->total_bytes = total_bytes;
  const int back = cudaSetDevice(current);
  return code ? code : back;
}

int aisp_device_set(int32_t device) { return cudaSetDevice(device); }
int aisp_device_synchronize(void) { return cudaDeviceSynchronize(); }
int aisp_last_error(void) { return cudaGetLastError(); }

int aisp_ctx_create(int32_t device, uint32_t flags, aisp_ctx **out) {
  *out = nullptr;
  if (int code = cudaSetDevice(device)) return code;
  int major = 0, minor = 0, sms = 0, shared = 0;
  if (int code = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device)) return code;
  if (int code = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device)) return code;
  if (int code = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device)) return code;
  if (int code = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) return code;
  aisp_ctx *ctx = new (std::nothrow) aisp_ctx();
  if (!ctx) return cudaErrorMemoryAllocation;
  ctx->device = device;
  ctx->sm_count = sms;
  ctx->compute_capability = 10 * major + minor;
  ctx->shared_bytes_per_block = shared;
  ctx->pdl = (flags & AISP_CTX_PDL) && major >= 9;
  int code = aisp::prepare_linear(ctx);
  if (!code) code = aisp::prepare_wide_linear(ctx);
  if (!code) code = aisp::prepare_attention(ctx);
  if (!code) code = aisp::prepare_gemm(ctx);
  if (code) {
    delete ctx;
    return code;
  }
  *out = ctx;
  return 0;
}

int aisp_ctx_destroy(aisp_ctx *ctx) {
  if (ctx) {
    aisp::release_gemm(ctx);
    delete ctx;
  }
  return 0;
}

int32_t aisp_ctx_has_cublaslt(const aisp_ctx *ctx) { return ctx->cublaslt != nullptr; }

int aisp_malloc(void **out, size_t bytes) { return cudaMalloc(out, bytes); }
int aisp_free(void *ptr) { return cudaFree(ptr); }
int aisp_malloc_host(void **out, size_t bytes) { return cudaMallocHost(out, bytes); }
int aisp_free_host(void *ptr) { return cudaFreeHost(ptr); }
int aisp_memcpy_h2d(void *dst, const void *src, size_t bytes, aisp_stream stream) {
  return cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, as_stream(stream));
}
int aisp_memcpy_d2h(void *dst, const void *src, size_t bytes, aisp_stream stream) {
  return cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, as_stream(stream));
}
int aisp_memcpy_d2d(void *dst, const void *src, size_t bytes, aisp_stream stream) {
  return cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, as_stream(stream));
}
int aisp_memset(void *dst, int32_t byte, size_t bytes, aisp_stream stream) {
  return cudaMemsetAsync(dst, byte, bytes, as_stream(stream));
}

int aisp_stream_create(aisp_stream *out) {
  int lowest = 0, highest = 0;
  if (int code = cudaDeviceGetStreamPriorityRange(&lowest, &highest)) return code;
  cudaStream_t stream = nullptr;
  const int code = cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, highest);
  *out = stream;
  return code;
}
int aisp_stream_destroy(aisp_stream stream) { return cudaStreamDestroy(as_stream(stream)); }
int aisp_stream_synchronize(aisp_stream stream) { return cudaStreamSynchronize(as_stream(stream)); }
int aisp_stream_query(aisp_stream stream) { return cudaStreamQuery(as_stream(stream)); }
int aisp_stream_wait_event(aisp_stream stream, aisp_event event) {
  return cudaStreamWaitEvent(as_stream(stream), as_event(event), 0);
}

int aisp_event_create(aisp_event *out, int32_t with_timing) {
  cudaEvent_t event = nullptr;
  const int code = cudaEventCreateWithFlags(&event, with_timing ? cudaEventDefault : cudaEventDisableTiming);
  *out = event;
  return code;
}
int aisp_event_destroy(aisp_event event) { return cudaEventDestroy(as_event(event)); }
int aisp_event_record(aisp_event event, aisp_stream stream) { return cudaEventRecord(as_event(event), as_stream(stream)); }
int aisp_event_synchronize(aisp_event event) { return cudaEventSynchronize(as_event(event)); }
int aisp_event_query(aisp_event event) { return cudaEventQuery(as_event(event)); }
int aisp_event_elapsed_ms(float *ms, aisp_event start, aisp_event end) {
  return cudaEventElapsedTime(ms, as_event(start), as_event(end));
}

int aisp_graph_begin_capture(aisp_stream stream) {
  return cudaStreamBeginCapture(as_stream(stream), cudaStreamCaptureModeThreadLocal);
}
int aisp_graph_end_capture(aisp_stream stream, aisp_graph *out, size_t *num_nodes) {
  *out = nullptr;
  cudaGraph_t graph = nullptr;
  if (int code = cudaStreamEndCapture(as_stream(stream), &graph)) return code;
  size_t nodes = 0;
  int code = cudaGraphGetNodes(graph, nullptr, &nodes);
  if (num_nodes) *num_nodes = nodes;
  cudaGraphExec_t exec = nullptr;
  if (!code) code = cudaGraphInstantiate(&exec, graph, 0);
  const int freed = cudaGraphDestroy(graph);
  *out = exec;
  return code ? code : freed;
}
int aisp_graph_upload(aisp_graph graph, aisp_stream stream) { return cudaGraphUpload(as_graph(graph), as_stream(stream)); }
int aisp_graph_launch(aisp_graph graph, aisp_stream stream) { return cudaGraphLaunch(as_graph(graph), as_stream(stream)); }
int aisp_graph_destroy(aisp_graph graph) { return cudaGraphExecDestroy(as_graph(graph)); }

} // extern "C"
