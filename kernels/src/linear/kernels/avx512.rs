//! The tile in AVX-512 VNNI: one zmm is 16 output rows times four input features.
//!
//! A block of a row is 8 `vpdpbusd` (unsigned weights from the panel, four signed activations broadcast from memory),
//! one conversion, one multiplication and one or two FMA. Nibbles are taken apart once for all rows of the tile. The
//! zero point costs nothing: the integer sum starts at `-zero * sum(x)`. Panels need no alignment; bytes and layout:
//! `super::super::format`. Accumulation: i32 within a block, f32 across blocks.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::super::activations::{self, ActivationBlock};
use super::super::format::{BLOCK, BlockLayout, E2M1_QUANTS, E4M3_SCALE_BYTES, LANES, PanelFormat};
use super::Lanes;

/// How far ahead of the loads the panel is fetched.
const PREFETCH_BYTES: usize = 4096;

/// See [`super::block_tile`]. The caller has checked the lengths and that the machine has AVX-512.
pub(super) fn block_tile_dispatch<L: BlockLayout, const R: usize>(
    panel: &[u8],
    rows: [&[ActivationBlock]; R],
    out: &mut [Lanes; R],
) {
    // SAFETY: `Isa::Avx512` exists only where the features were detected; `super::block_tile` checked the lengths.
    unsafe { block_tile::<L, R>(panel, rows, out) }
}

/// See [`super::dense_tile`].
pub(super) fn dense_tile_dispatch<const R: usize>(
    format: PanelFormat,
    panel: &[u8],
    rows: [&[f32]; R],
    out: &mut [Lanes; R],
) {
    // SAFETY: as above, with the lengths checked by `super::dense_tile`.
    unsafe {
        match format {
            PanelFormat::F32 => dense_tile::<F32, R>(panel, rows, out),
            PanelFormat::E4m3 => dense_tile::<E4m3, R>(panel, rows, out),
            PanelFormat::F16 => dense_tile::<F16, R>(panel, rows, out),
            _ => dense_tile::<BF16, R>(panel, rows, out),
        }
    }
}

/// See [`super::quantize_row`].
pub(super) fn quantize_row_dispatch(row: &[f32], blocks: &mut [ActivationBlock]) {
    // SAFETY: the features were detected.
    unsafe { quantize_row(row, blocks) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn quantize_row(row: &[f32], blocks: &mut [ActivationBlock]) {
    activations::quantize_row(row, blocks);
}

/// # Safety
/// Each row has as many blocks as the panel has cells.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn block_tile<L: BlockLayout, const R: usize>(
    panel: &[u8],
    rows: [&[ActivationBlock]; R],
    out: &mut [Lanes; R],
) {
    let mut acc = [_mm512_setzero_ps(); R];
    let low_nibbles = _mm512_set1_epi8(15);
    // SAFETY: the table has 16 bytes.
    let codes = unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(E2M1_QUANTS.as_ptr().cast())) };
    let rows = rows.map(<[ActivationBlock]>::as_ptr);
    for (block_idx, cell) in panel.chunks_exact(L::CELL_BYTES).enumerate() {
        let cell = cell.as_ptr();
        // SAFETY: all reads from `cell` are below `L::CELL_BYTES`, those of rows at blocks below the number of cells;
        // a prefetch may point anywhere.
        unsafe {
            for line in 0..L::CELL_BYTES.div_ceil(64) {
                _mm_prefetch::<_MM_HINT_T0>(cell.wrapping_add(PREFETCH_BYTES + 64 * line).cast());
            }
            let mut first = [_mm512_setzero_si512(); R];
            let mut second = [_mm512_setzero_si512(); R];
            for r in 0..R {
                let x = &*rows[r].add(block_idx);
                (first[r], second[r]) = start::<L>(x);
            }
            for group in 0..4 {
                let (mut low, mut high) = if L::NIBBLES {
                    let both = _mm512_loadu_si512(cell.add(64 * group).cast());
                    (_mm512_and_si512(both, low_nibbles), _mm512_and_si512(_mm512_srli_epi16::<4>(both), low_nibbles))
                } else {
                    (
                        _mm512_loadu_si512(cell.add(64 * group).cast()),
                        _mm512_loadu_si512(cell.add(64 * (group + 4)).cast()),
                    )
                };
                if L::CODES {
                    (low, high) = (_mm512_shuffle_epi8(codes, low), _mm512_shuffle_epi8(codes, high));
                }
                for r in 0..R {
                    let x = (*rows[r].add(block_idx)).quants.as_ptr();
                    let x_low = _mm512_set1_epi32(x.add(4 * group).cast::<i32>().read_unaligned());
                    first[r] = _mm512_dpbusd_epi32(first[r], low, x_low);
                    let x_high = _mm512_set1_epi32(x.add(BLOCK / 2 + 4 * group).cast::<i32>().read_unaligned());
                    if L::HALVES || R == 1 {
                        second[r] = _mm512_dpbusd_epi32(second[r], high, x_high);
                    } else {
                        first[r] = _mm512_dpbusd_epi32(first[r], high, x_high);
                    }
                }
            }
            let scale = vector::<L>(cell, 0);
            let next = vector::<L>(cell, if L::HALVES || L::MINS { 1 } else { 0 });
            for r in 0..R {
                let x = &*rows[r].add(block_idx);
                let x_scale = _mm512_set1_ps(x.scale);
                if L::HALVES {
                    let dot = _mm512_mul_ps(_mm512_cvtepi32_ps(first[r]), x_scale);
                    acc[r] = _mm512_fmadd_ps(dot, scale, acc[r]);
                    let dot = _mm512_mul_ps(_mm512_cvtepi32_ps(second[r]), x_scale);
                    acc[r] = _mm512_fmadd_ps(dot, next, acc[r]);
                } else {
                    let sum = if R == 1 { _mm512_add_epi32(first[r], second[r]) } else { first[r] };
                    let dot = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), x_scale);
                    acc[r] = _mm512_fmadd_ps(dot, scale, acc[r]);
                }
                if L::MINS {
                    acc[r] = _mm512_fmadd_ps(next, _mm512_set1_ps(x.scaled_sum), acc[r]);
                }
            }
        }
    }
    store(acc, out);
}

/// What the integer sums of a row start at: all of the zero point in the first one, or half by half.
#[inline]
#[target_feature(enable = "avx512f")]
fn start<L: BlockLayout>(x: &ActivationBlock) -> (__m512i, __m512i) {
    let zero = _mm512_setzero_si512();
    if L::ZERO == 0 {
        return (zero, zero);
    }
    let all = times_zero_point::<L>(x.minus_8_sums);
    if L::HALVES {
        let first = times_zero_point::<L>(x.minus_8_sums_first_half);
        (first, _mm512_sub_epi32(all, first))
    } else {
        (all, zero)
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn times_zero_point<L: BlockLayout>(minus_8_sums: i32) -> __m512i {
    let sums = _mm512_set1_epi32(minus_8_sums);
    match L::ZERO {
        128 => _mm512_slli_epi32::<4>(sums),
        16 => _mm512_slli_epi32::<1>(sums),
        _ => sums,
    }
}

/// Vector `idx` of the scales and mins of a cell.
///
/// # Safety
/// The cell has it.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn vector<L: BlockLayout>(cell: *const u8, idx: usize) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let at = cell.add(L::QUANT_BYTES + idx * L::SCALE_BYTES);
        if L::WIDE { _mm512_loadu_ps(at.cast()) } else { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store<const R: usize>(acc: [__m512; R], out: &mut [Lanes; R]) {
    for r in 0..R {
        // SAFETY: `Lanes` is 16 floats.
        unsafe { _mm512_storeu_ps(out[r].as_mut_ptr(), acc[r]) };
    }
}

/// A float type of weights.
trait Element {
    const BYTES: usize;
    /// Bytes of a scale for each lane, after all values.
    const SCALE_BYTES: usize = 0;

    /// 16 values in f32, exactly.
    ///
    /// # Safety
    /// `16 * BYTES` bytes can be read, and the machine has AVX-512.
    unsafe fn load(at: *const u8) -> __m512;
}

struct F32;
struct F16;
struct BF16;
struct E4m3;

impl Element for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(at.cast()) }
    }
}

impl Element for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }
}

impl Element for BF16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
}

impl Element for E4m3 {
    const BYTES: usize = 1;
    const SCALE_BYTES: usize = E4M3_SCALE_BYTES;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m512 {
        // Sign-extended and shifted, the code stands in the fields of a half: the copy of the sign over the exponent's
        // top bit is masked away.
        // SAFETY: the caller's promise.
        unsafe {
            let wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(at.cast()));
            _mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16::<7>(wide), _mm256_set1_epi16(0xbf80_u16 as i16)))
        }
    }
}

/// # Safety
/// Each row has as many values as the panel has vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn dense_tile<E: Element, const R: usize>(panel: &[u8], rows: [&[f32]; R], out: &mut [Lanes; R]) {
    let mut acc = [_mm512_setzero_ps(); R];
    let rows = rows.map(<[f32]>::as_ptr);
    let (values, scales) = panel.split_at(panel.len() - E::SCALE_BYTES);
    for (feature, weights) in values.chunks_exact(LANES * E::BYTES).enumerate() {
        let weights = weights.as_ptr();
        // SAFETY: a chunk is one vector; `feature` is below the length of the rows.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(weights.wrapping_add(PREFETCH_BYTES).cast());
            let weights = E::load(weights);
            for r in 0..R {
                acc[r] = _mm512_fmadd_ps(weights, _mm512_set1_ps(*rows[r].add(feature)), acc[r]);
            }
        }
    }
    if E::SCALE_BYTES > 0 {
        // SAFETY: the scales are 16 floats.
        let scale = unsafe { _mm512_loadu_ps(scales.as_ptr().cast()) };
        acc = acc.map(|acc| _mm512_mul_ps(acc, scale));
    }
    store(acc, out);
}
