//! The tile in AVX2 with FMA and F16C: two ymm are 16 output rows times four input features.
//!
//! `vpmaddubsw` sums pairs in i16. Nibbles cannot overflow it even over a whole block (8 * 2 * 15 * 127 < 2^15), fp4
//! around 16 not over the half that shares a scale (4 * 2 * 28 * 127 < 2^15); bytes
//! around 128 are multiplied as signed ones, `|w| * sign(w) x`, and widened at once. Panels need no alignment; bytes
//! and layout: `super::super::format`. Accumulation: i16 and i32 within a block, f32 across blocks.
#![allow(unsafe_code)]
#![expect(clippy::needless_range_loop, reason = "halves index vectors and panels alike")]

use std::arch::x86_64::*;

use super::super::activations::{self, ActivationBlock};
use super::super::format::{BLOCK, BlockLayout, E2M1_QUANTS, E4M3_SCALE_BYTES, LANES, PanelFormat};
use super::Lanes;

/// How far ahead of the loads the panel is fetched.
const PREFETCH_BYTES: usize = 2048;
/// Lanes of a ymm.
const HALF_LANES: usize = LANES / 2;

/// See [`super::block_tile`]. The caller has checked the lengths and that the machine has AVX2.
pub(super) fn block_tile_dispatch<L: BlockLayout, const R: usize>(
    panel: &[u8],
    rows: [&[ActivationBlock]; R],
    out: &mut [Lanes; R],
) {
    // SAFETY: `Isa::Avx2` exists only where the features were detected; `super::block_tile` checked the lengths.
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

#[target_feature(enable = "avx2,fma,f16c")]
fn quantize_row(row: &[f32], blocks: &mut [ActivationBlock]) {
    activations::quantize_row(row, blocks);
}

/// # Safety
/// Each row has as many blocks as the panel has cells.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn block_tile<L: BlockLayout, const R: usize>(
    panel: &[u8],
    rows: [&[ActivationBlock]; R],
    out: &mut [Lanes; R],
) {
    let mut acc = [[_mm256_setzero_ps(); 2]; R];
    let rows = rows.map(<[ActivationBlock]>::as_ptr);
    for (block_idx, cell) in panel.chunks_exact(L::CELL_BYTES).enumerate() {
        let cell = cell.as_ptr();
        // SAFETY: all reads from `cell` are below `L::CELL_BYTES`, those of rows at blocks below the number of cells;
        // a prefetch may point anywhere.
        unsafe {
            for line in 0..L::CELL_BYTES.div_ceil(64) {
                _mm_prefetch::<_MM_HINT_T0>(cell.wrapping_add(PREFETCH_BYTES + 64 * line).cast());
            }
            for half in 0..2 {
                let quants = cell.add(32 * half);
                let scale = vector::<L>(cell, 0, half);
                let next = vector::<L>(cell, if L::HALVES || L::MINS { 1 } else { 0 }, half);
                for r in 0..R {
                    let x = &*rows[r].add(block_idx);
                    let x_scale = _mm256_set1_ps(x.scale);
                    let (first, second) =
                        if L::NIBBLES { dot_nibbles::<L>(quants, x) } else { dot_bytes::<L>(quants, x) };
                    if L::HALVES {
                        let dot = _mm256_mul_ps(_mm256_cvtepi32_ps(first), x_scale);
                        acc[r][half] = _mm256_fmadd_ps(dot, scale, acc[r][half]);
                        let dot = _mm256_mul_ps(_mm256_cvtepi32_ps(second), x_scale);
                        acc[r][half] = _mm256_fmadd_ps(dot, next, acc[r][half]);
                    } else {
                        let dot = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(first, second)), x_scale);
                        acc[r][half] = _mm256_fmadd_ps(dot, scale, acc[r][half]);
                    }
                    if L::MINS {
                        acc[r][half] = _mm256_fmadd_ps(next, _mm256_set1_ps(x.scaled_sum), acc[r][half]);
                    }
                }
            }
        }
    }
    store(acc, out);
}

/// Dot products of a block of nibbles with one row, from the zero point on.
///
/// # Safety
/// `quants` is 32 bytes into half a vector of each of the four groups of a cell.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot_nibbles<L: BlockLayout>(quants: *const u8, x: &ActivationBlock) -> (__m256i, __m256i) {
    let low_nibbles = _mm256_set1_epi8(15);
    // SAFETY: the table has 16 bytes.
    let codes = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(E2M1_QUANTS.as_ptr().cast())) };
    let mut pairs = [_mm256_setzero_si256(); 2];
    for group in 0..4 {
        // SAFETY: the caller's promise; a row has 32 quants.
        let both = unsafe { _mm256_loadu_si256(quants.add(64 * group).cast()) };
        let mut low = _mm256_and_si256(both, low_nibbles);
        let mut high = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low_nibbles);
        if L::CODES {
            (low, high) = (_mm256_shuffle_epi8(codes, low), _mm256_shuffle_epi8(codes, high));
        }
        pairs[0] = _mm256_add_epi16(pairs[0], _mm256_maddubs_epi16(low, four(x, 4 * group)));
        let second = usize::from(L::HALVES);
        pairs[second] = _mm256_add_epi16(pairs[second], _mm256_maddubs_epi16(high, four(x, BLOCK / 2 + 4 * group)));
    }
    let ones = _mm256_set1_epi16(1);
    if L::HALVES {
        let sum = |half: usize| {
            let start = _mm256_set1_epi32(x.zero_point_sums(L::ZERO)[half]);
            _mm256_add_epi32(_mm256_madd_epi16(pairs[half], ones), start)
        };
        return (sum(0), sum(1));
    }
    let start = _mm256_set1_epi32(if L::ZERO == 0 { 0 } else { x.minus_8_sums });
    (_mm256_madd_epi16(pairs[0], ones), start)
}

/// Dot products of the two halves of a block of bytes with one row, the zero point taken off.
///
/// # Safety
/// `quants` is 32 bytes into half a vector of each of the eight groups of a cell.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot_bytes<L: BlockLayout>(quants: *const u8, x: &ActivationBlock) -> (__m256i, __m256i) {
    let ones = _mm256_set1_epi16(1);
    let sign_bits = _mm256_set1_epi8(-128);
    let mut sums = [_mm256_setzero_si256(); 2];
    for group in 0..8 {
        // SAFETY: the caller's promise; a row has 32 quants.
        let mut weights = unsafe { _mm256_loadu_si256(quants.add(64 * group).cast()) };
        let mut x = four(x, 4 * group);
        if L::ZERO == 128 {
            let signed = _mm256_xor_si256(weights, sign_bits);
            weights = _mm256_abs_epi8(signed);
            x = _mm256_sign_epi8(x, signed);
        }
        let pairs = _mm256_maddubs_epi16(weights, x);
        sums[group / 4] = _mm256_add_epi32(sums[group / 4], _mm256_madd_epi16(pairs, ones));
    }
    (sums[0], sums[1])
}

/// Four quants of a row in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn four(x: &ActivationBlock, at: usize) -> __m256i {
    let quants = &x.quants;
    _mm256_set1_epi32(i32::from_le_bytes(
        [quants[at], quants[at + 1], quants[at + 2], quants[at + 3]].map(i8::cast_unsigned),
    ))
}

/// Half of vector `idx` of the scales and mins of a cell.
///
/// # Safety
/// The cell has it.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn vector<L: BlockLayout>(cell: *const u8, idx: usize, half: usize) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let at = cell.add(L::QUANT_BYTES + idx * L::SCALE_BYTES + half * L::SCALE_BYTES / 2);
        if L::WIDE { _mm256_loadu_ps(at.cast()) } else { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store<const R: usize>(acc: [[__m256; 2]; R], out: &mut [Lanes; R]) {
    for r in 0..R {
        for half in 0..2 {
            // SAFETY: `Lanes` is 16 floats, a half is 8.
            unsafe { _mm256_storeu_ps(out[r].as_mut_ptr().add(HALF_LANES * half), acc[r][half]) };
        }
    }
}

/// A float type of weights.
trait Element {
    const BYTES: usize;
    /// Bytes of a scale for each lane, after all values.
    const SCALE_BYTES: usize = 0;

    /// Eight values in f32, exactly.
    ///
    /// # Safety
    /// `8 * BYTES` bytes can be read, and the machine has AVX2 and F16C.
    unsafe fn load(at: *const u8) -> __m256;
}

struct F32;
struct F16;
struct BF16;
struct E4m3;

impl Element for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(at.cast()) }
    }
}

impl Element for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }
}

impl Element for BF16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
}

impl Element for E4m3 {
    const BYTES: usize = 1;
    const SCALE_BYTES: usize = E4M3_SCALE_BYTES;

    #[inline(always)]
    unsafe fn load(at: *const u8) -> __m256 {
        // Sign-extended and shifted, the code stands in the fields of a half: the copy of the sign over the exponent's
        // top bit is masked away.
        // SAFETY: the caller's promise.
        unsafe {
            let wide = _mm_cvtepi8_epi16(_mm_loadl_epi64(at.cast()));
            _mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16::<7>(wide), _mm_set1_epi16(0xbf80_u16 as i16)))
        }
    }
}

/// # Safety
/// Each row has as many values as the panel has vectors.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dense_tile<E: Element, const R: usize>(panel: &[u8], rows: [&[f32]; R], out: &mut [Lanes; R]) {
    let mut acc = [[_mm256_setzero_ps(); 2]; R];
    let rows = rows.map(<[f32]>::as_ptr);
    let (values, scales) = panel.split_at(panel.len() - E::SCALE_BYTES);
    for (feature, weights) in values.chunks_exact(LANES * E::BYTES).enumerate() {
        let weights = weights.as_ptr();
        // SAFETY: a chunk is one vector; `feature` is below the length of the rows.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(weights.wrapping_add(PREFETCH_BYTES).cast());
            let halves = [E::load(weights), E::load(weights.add(HALF_LANES * E::BYTES))];
            for r in 0..R {
                let x = _mm256_set1_ps(*rows[r].add(feature));
                for half in 0..2 {
                    acc[r][half] = _mm256_fmadd_ps(halves[half], x, acc[r][half]);
                }
            }
        }
    }
    if E::SCALE_BYTES > 0 {
        for half in 0..2 {
            // SAFETY: the scales are 16 floats, a half is 8.
            let scale = unsafe { _mm256_loadu_ps(scales.as_ptr().cast::<f32>().add(HALF_LANES * half)) };
            for r in 0..R {
                acc[r][half] = _mm256_mul_ps(acc[r][half], scale);
            }
        }
    }
    store(acc, out);
}
