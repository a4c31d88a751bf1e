//! GGUF blocks taken apart into quants, scale and min, bit-exact with the values that they stand for.
//!
//! Source: the block layouts of ggml, <https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h>

use candle_core::quantized::GgmlDType;
use half::f16;

use super::format::{BLOCK, DecodedBlock};

/// Quants of a K-quant super-block.
const SUPER_BLOCK: usize = 256;

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Block `block_idx` (of 32 features) of a row of `dtype`.
///
/// Errors: `None` for a type that is not made of blocks known here.
pub(crate) fn decode_block(dtype: GgmlDType, row: &[u8], block_idx: usize) -> Option<DecodedBlock> {
    let size = dtype.type_size();
    let per_type_block = dtype.block_size() / BLOCK;
    let block = &row[block_idx / per_type_block * size..][..size];
    let sub_idx = block_idx % per_type_block;
    Some(match dtype {
        GgmlDType::Q4_0 => small(f16_at(block, 0), 0.0, nibbles(&block[2..])),
        GgmlDType::Q4_1 => small(f16_at(block, 0), f16_at(block, 2), nibbles(&block[4..])),
        GgmlDType::Q5_0 => {
            let quants = with_fifth_bits(nibbles(&block[6..]), &block[2..6]);
            small(f16_at(block, 0), 0.0, quants.map(|quant| quant + 128 - 16))
        }
        GgmlDType::Q5_1 => {
            small(f16_at(block, 0), f16_at(block, 2), with_fifth_bits(nibbles(&block[8..]), &block[4..8]))
        }
        GgmlDType::Q8_0 => small(f16_at(block, 0), 0.0, std::array::from_fn(|i| block[2 + i] ^ 0x80)),
        GgmlDType::Q4K => two_level(block, sub_idx, half_bytes(&block[16..], sub_idx)),
        GgmlDType::Q5K => {
            let low = half_bytes(&block[48..], sub_idx);
            two_level(block, sub_idx, std::array::from_fn(|i| low[i] | (block[16 + i] >> sub_idx & 1) << 4))
        }
        GgmlDType::Q6K => six_bit(block, sub_idx),
        _ => return None,
    })
}

fn small(scale: f32, min: f32, quants: [u8; BLOCK]) -> DecodedBlock {
    DecodedBlock { quants, scales: [scale; 2], min }
}

/// Low halves of 16 bytes, then their high halves.
fn nibbles(bytes: &[u8]) -> [u8; BLOCK] {
    std::array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
}

fn with_fifth_bits(quants: [u8; BLOCK], bits: &[u8]) -> [u8; BLOCK] {
    std::array::from_fn(|i| quants[i] | (bits[i / 8] >> (i % 8) & 1) << 4)
}

/// Sub-block `sub_idx` of quants of which two share 32 bytes: the even one the low halves.
fn half_bytes(bytes: &[u8], sub_idx: usize) -> [u8; BLOCK] {
    std::array::from_fn(|i| bytes[sub_idx / 2 * BLOCK + i] >> (sub_idx % 2 * 4) & 15)
}

/// Q4_K and Q5_K: eight 6-bit scales and mins in 12 bytes, under two f16.
fn two_level(block: &[u8], sub_idx: usize, quants: [u8; BLOCK]) -> DecodedBlock {
    let packed = &block[4..16];
    let (scale, min) = if sub_idx < 4 {
        (packed[sub_idx] & 63, packed[sub_idx + 4] & 63)
    } else {
        let shared = packed[sub_idx + 4];
        (shared & 15 | packed[sub_idx - 4] >> 6 << 4, shared >> 4 | packed[sub_idx] >> 6 << 4)
    };
    small(f16_at(block, 0) * f32::from(scale), -(f16_at(block, 2) * f32::from(min)), quants)
}

/// Q6_K: low halves in 128 bytes, upper pairs of bits in 64, a signed scale for every 16, an f16 over all.
fn six_bit(block: &[u8], sub_idx: usize) -> DecodedBlock {
    let (part, lane) = (sub_idx / 4, sub_idx % 4);
    let low = &block[64 * part + BLOCK * (lane % 2)..][..BLOCK];
    let high = &block[SUPER_BLOCK / 2 + BLOCK * part..][..BLOCK];
    let scales = &block[SUPER_BLOCK * 3 / 4 + 2 * sub_idx..][..2];
    let over_all = f16_at(block, SUPER_BLOCK * 3 / 4 + 16);
    DecodedBlock {
        quants: std::array::from_fn(|i| {
            let quant = low[i] >> (lane / 2 * 4) & 15 | (high[i] >> (2 * lane) & 3) << 4;
            quant + 128 - 32
        }),
        scales: [scales[0], scales[1]].map(|scale| over_all * f32::from(scale.cast_signed())),
        min: 0.0,
    }
}
