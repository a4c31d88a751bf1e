// Weights from the order of files to the order of the kernels, on the host. Rows are independent of one another.
#include <cstring>

#include "common.cuh"

namespace {

float half_to_float(uint16_t bits) { return __half2float(__half(__half_raw{bits})); }
uint16_t float_to_half(float x) { return __half_raw(__float2half_rn(x)).x; }

void put_w4(uint8_t *row, int64_t k, int code) {
  uint32_t word;
  uint8_t *at = row + aisp::w4_word(k);
  memcpy(&word, at, 4);
  word |= (uint32_t)(code & 15) << 4 * aisp::w4_nibble(k);
  memcpy(at, &word, 4);
}
void put_fp4(uint8_t *row, int64_t k, int code) {
  uint32_t word;
  uint8_t *at = row + aisp::fp4_word(k);
  memcpy(&word, at, 4);
  word |= (uint32_t)(code & 15) << 4 * aisp::fp4_nibble(k);
  memcpy(at, &word, 4);
}

// Six-bit scale and min of sub-block j of a Q4_K block. Source: the GGUF format of llama.cpp, Q4_K.
void q4k_scale_min(const uint8_t *scales, int j, int &scale, int &min) {
  if (j < 4) {
    scale = scales[j] & 63;
    min = scales[j + 4] & 63;
  } else {
    scale = (scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4;
    min = (scales[j + 4] >> 4) | (scales[j] >> 6) << 4;
  }
}

} // namespace

extern "C" {

int32_t aisp_packed_k(int32_t format, int32_t k) { return (int32_t)aisp::packed_k(format, k); }
size_t aisp_weight_data_bytes(int32_t format, int32_t n, int32_t k) { return (size_t)(n * aisp::row_bytes(format, k)); }
size_t aisp_weight_scales_bytes(int32_t format, int32_t n, int32_t k) {
  return (size_t)(n * aisp::scale_row_bytes(format, k));
}

int aisp_pack_rows(int32_t format, int32_t n_begin, int32_t n_end, int32_t k, const void *codes, const void *scales,
                   void *dst_data, void *dst_scales) {
  const int group = format == AISP_NVFP4 || format == AISP_FP8 ? 16 : 32;
  if (format < AISP_FP8 || format > AISP_NVFP4 || k <= 0 || k % group || n_begin < 0 || n_end < n_begin)
    return cudaErrorInvalidValue;
  const int64_t row_size = aisp::row_bytes(format, k), scale_size = aisp::scale_row_bytes(format, k);
  const int64_t natural_scales = format == AISP_FP8 ? 4 : (int64_t)k / group * (format == AISP_W8G32 ? 2 : format == AISP_W4G32 ? 4 : 1);
  for (int64_t n = n_begin; n < n_end; n++) {
    uint8_t *row = static_cast<uint8_t *>(dst_data) + n * row_size;
    uint8_t *row_scales = static_cast<uint8_t *>(dst_scales) + n * scale_size;
    memset(row, 0, row_size);
    memset(row_scales, 0, scale_size);
    memcpy(row_scales, static_cast<const uint8_t *>(scales) + n * natural_scales, natural_scales);
    const uint8_t *from = static_cast<const uint8_t *>(codes) + n * k;
    for (int64_t i = 0; i < k; i++) {
      if (format == AISP_FP8) row[aisp::fp8_byte(i)] = from[i];
      else if (format == AISP_W8G32) row[aisp::w8_byte(i)] = from[i];
      else if (format == AISP_W4G32) put_w4(row, i, from[i]);
      else put_fp4(row, i, from[i]);
    }
  }
  return 0;
}

int aisp_pack_gguf_rows(int32_t ggml_type, int32_t n_begin, int32_t n_end, int32_t k, const void *blocks, void *dst_data,
                        void *dst_scales) {
  enum { Q4_0 = 2, Q4_1 = 3, Q8_0 = 8, Q4_K = 12 };
  const int block_k = ggml_type == Q4_K ? 256 : 32;
  const int block_bytes = ggml_type == Q4_0 ? 18 : ggml_type == Q4_1 ? 20 : ggml_type == Q8_0 ? 34 : ggml_type == Q4_K ? 144 : 0;
  if (!block_bytes || k <= 0 || k % block_k || n_begin < 0 || n_end < n_begin) return cudaErrorInvalidValue;
  const int format = ggml_type == Q8_0 ? AISP_W8G32 : AISP_W4G32;
  const int64_t row_size = aisp::row_bytes(format, k), scale_size = aisp::scale_row_bytes(format, k);
  const uint8_t *block = static_cast<const uint8_t *>(blocks);
  for (int64_t n = n_begin; n < n_end; n++) {
    uint8_t *row = static_cast<uint8_t *>(dst_data) + n * row_size;
    uint16_t *row_scales = reinterpret_cast<uint16_t *>(static_cast<uint8_t *>(dst_scales) + n * scale_size);
    memset(row, 0, row_size);
    memset(row_scales, 0, scale_size);
    for (int64_t k0 = 0; k0 < k; k0 += block_k, block += block_bytes) {
      uint16_t d, m;
      memcpy(&d, block, 2);
      memcpy(&m, block + 2, 2);
      switch (ggml_type) {
        case Q8_0:
          row_scales[k0 / 32] = d;
          for (int i = 0; i < 32; i++) row[aisp::w8_byte(k0 + i)] = block[2 + i];
          break;
        case Q4_0:
        case Q4_1: {
          const uint8_t *codes = block + (ggml_type == Q4_0 ? 2 : 4);
          row_scales[k0 / 16] = d;
          row_scales[k0 / 16 + 1] = ggml_type == Q4_1 ? m : float_to_half(-8.0f * half_to_float(d));
          for (int i = 0; i < 16; i++) {
            put_w4(row, k0 + i, codes[i] & 15);
            put_w4(row, k0 + 16 + i, codes[i] >> 4);
          }
          break;
        }
        default:
          for (int j = 0; j < 8; j++) {
            int scale, min;
            q4k_scale_min(block + 4, j, scale, min);
            row_scales[(k0 / 32 + j) * 2] = float_to_half(half_to_float(d) * scale);
            row_scales[(k0 / 32 + j) * 2 + 1] = float_to_half(-half_to_float(m) * min);
            const uint8_t *codes = block + 16 + j / 2 * 32;
            for (int i = 0; i < 32; i++) put_w4(row, k0 + j * 32 + i, j & 1 ? codes[i] >> 4 : codes[i] & 15);
          }
      }
    }
  }
  return 0;
}

} // extern "C"
