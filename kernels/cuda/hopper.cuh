// What only Hopper has: matrix instructions of four warps, tiles copied by the tensor memory accelerator, clusters.
// Source: the PTX ISA manual, 8.0 and newer. In code for sm_90a alone.
#pragma once

#include <cuda.h>

#include "common.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define AISP_HOPPER 1

namespace aisp {

// ------------------------------------------------------------------------------------------------ matrix instructions

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Sums that were waited for; the compiler may not read them earlier.
template <int N>
__device__ inline void wgmma_done(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// A tile of rows of 64 bf16 each, pieces of 16 bytes swizzled by row % 8, at a multiple of 1024 bytes. 16 values on: + 2.
__device__ inline uint64_t tile_descriptor(uint32_t address) {
  return (uint64_t)(address >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

#define AISP_0_15 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define AISP_16_31 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define AISP_32_63                                                                                                            \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define AISP_SUMS_8(d, i)                                                                                                     \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define AISP_SUMS_16(d, i) AISP_SUMS_8(d, i), AISP_SUMS_8(d, i + 8)
#define AISP_SUMS_32(d, i) AISP_SUMS_16(d, i), AISP_SUMS_16(d, i + 16)
#define AISP_WGMMA_OF(type, n, sums, operands) \
  "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" sums "}, " operands ";\n}\n"
#define AISP_WGMMA(n, sums, operands) AISP_WGMMA_OF("bf16", n, sums, operands)

// d[64 x columns] += a[64 x 16] b[16 x columns], bf16 with f32 sums; a in registers, b [columns][16] in shared memory.
__device__ inline void wgmma_registers(float (&d)[16], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(AISP_WGMMA("32", AISP_0_15, "{%16,%17,%18,%19}, %20, p, 1, 1, 0")
               : AISP_SUMS_16(d, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void wgmma_registers(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(AISP_WGMMA("64", AISP_0_15 "," AISP_16_31, "{%32,%33,%34,%35}, %36, p, 1, 1, 0")
               : AISP_SUMS_32(d, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void wgmma_registers(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(AISP_WGMMA("128", AISP_0_15 "," AISP_16_31 "," AISP_32_63, "{%64,%65,%66,%67}, %68, p, 1, 1, 0")
               : AISP_SUMS_32(d, 0), AISP_SUMS_32(d, 32)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// The same with b as [16][64] in shared memory, rows of 64 as in a tile; 16 rows on: 2048 bytes.
__device__ inline void wgmma_registers_by_rows(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(AISP_WGMMA("64", AISP_0_15 "," AISP_16_31, "{%32,%33,%34,%35}, %36, p, 1, 1, 1")
               : AISP_SUMS_32(d, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// Both of f16.
__device__ inline void wgmma_f16(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(AISP_WGMMA_OF("f16", "64", AISP_0_15 "," AISP_16_31, "{%32,%33,%34,%35}, %36, p, 1, 1, 0")
               : AISP_SUMS_32(d, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void wgmma_f16_by_rows(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(AISP_WGMMA_OF("f16", "64", AISP_0_15 "," AISP_16_31, "{%32,%33,%34,%35}, %36, p, 1, 1, 1")
               : AISP_SUMS_32(d, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// bf16 as above, a [64][16] and b [columns][16] both in shared memory.
__device__ inline void wgmma_shared(float (&d)[16], uint64_t a, uint64_t b) {
  asm volatile(AISP_WGMMA("32", AISP_0_15, "%16, %17, p, 1, 1, 0, 0") : AISP_SUMS_16(d, 0) : "l"(a), "l"(b));
}
__device__ inline void wgmma_shared(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile(AISP_WGMMA("64", AISP_0_15 "," AISP_16_31, "%32, %33, p, 1, 1, 0, 0") : AISP_SUMS_32(d, 0) : "l"(a), "l"(b));
}
__device__ inline void wgmma_shared(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile(AISP_WGMMA("128", AISP_0_15 "," AISP_16_31 "," AISP_32_63, "%64, %65, p, 1, 1, 0, 0")
               : AISP_SUMS_32(d, 0), AISP_SUMS_32(d, 32)
               : "l"(a), "l"(b));
}

#define AISP_WGMMA_E4M3(n, sums, flag, operands)                                                                              \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " flag ", 0;\nwgmma.mma_async.sync.aligned.m64n" n "k32.f32.e4m3.e4m3 {" sums "}, " operands ", p, 1, 1;\n}\n"
// d[64 x columns] = a[64 x 32] b[32 x columns], e4m3, + d if `add`; both in shared memory. Sums keep some 14 bits.
__device__ inline void wgmma_e4m3(float (&d)[16], uint64_t a, uint64_t b, bool add) {
  asm volatile(AISP_WGMMA_E4M3("32", AISP_0_15, "%18", "%16, %17") : AISP_SUMS_16(d, 0) : "l"(a), "l"(b), "r"((int)add));
}
__device__ inline void wgmma_e4m3(float (&d)[32], uint64_t a, uint64_t b, bool add) {
  asm volatile(AISP_WGMMA_E4M3("64", AISP_0_15 "," AISP_16_31, "%34", "%32, %33") : AISP_SUMS_32(d, 0) : "l"(a), "l"(b), "r"((int)add));
}
__device__ inline void wgmma_e4m3(float (&d)[64], uint64_t a, uint64_t b, bool add) {
  asm volatile(AISP_WGMMA_E4M3("128", AISP_0_15 "," AISP_16_31 "," AISP_32_63, "%66", "%64, %65")
               : AISP_SUMS_32(d, 0), AISP_SUMS_32(d, 32)
               : "l"(a), "l"(b), "r"((int)add));
}

// Registers a thread, for all four warps of a group: given back, or taken from what others gave.
template <int COUNT>
__device__ inline void registers_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ inline void registers_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// ----------------------------------------------------------------------------------------------- barriers and copies

__device__ inline void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// What this thread put into shared memory by itself, barriers too, is there for copies and matrix instructions; for those that other
// threads begin after a barrier.
__device__ inline void shared_ready() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ inline void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and expects so many bytes of copies.
__device__ inline void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ inline void barrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra done;\nbra again;\ndone:\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// A tile of a tensor to shared memory; what lies outside the tensor is zero.
__device__ inline void copy_tile(uint32_t to, const CUtensorMap &map, uint32_t barrier, int c0, int c1) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
               "l"(&map), "r"(barrier), "r"(c0), "r"(c1)
               : "memory");
}
__device__ inline void copy_tile(uint32_t to, const CUtensorMap &map, uint32_t barrier, int c0, int c1, int c2, int c3) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
               "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
               : "memory");
}
__device__ inline void prefetch_map(const CUtensorMap &map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// ----------------------------------------------------------------------------------------------------------- clusters

__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// When this block has read what it wanted of the others, and before it ends.
__device__ inline void cluster_leave() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
// Four floats at `address` of the shared memory of another block of the cluster.
__device__ inline float4 cluster_floats(uint32_t address, int rank) {
  uint32_t there;
  float4 v;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(there) : "memory");
  return v;
}

} // namespace aisp
#endif
