//! The tile in plain Rust, without `unsafe`: runs everywhere and is the version to read first.
//!
//! On arm64 the compiler turns the loops over lanes into NEON. Layout: `super::super::format`. Accumulation: i32 within
//! a block, f32 across blocks.

use half::{bf16, f16};

use super::super::activations::ActivationBlock;
use super::super::format::{BLOCK, BlockLayout, E2M1_QUANTS, E4M3_SCALE_BYTES, LANES, PanelFormat};
use super::Lanes;

/// See [`super::block_tile`].
pub(super) fn block_tile<L: BlockLayout, const R: usize>(
    panel: &[u8],
    rows: [&[ActivationBlock]; R],
    out: &mut [Lanes; R],
) {
    *out = [[0.0; LANES]; R];
    for (block_idx, cell) in panel.chunks_exact(L::CELL_BYTES).enumerate() {
        let (quants, vectors) = cell.split_at(L::QUANT_BYTES);
        let scale = read_vector::<L>(vectors, 0);
        let second_scale = if L::HALVES { read_vector::<L>(vectors, 1) } else { scale };
        let min = if L::MINS { read_vector::<L>(vectors, 1) } else { [0.0; LANES] };
        for (row, acc) in rows.iter().zip(out.iter_mut()) {
            let x = &row[block_idx];
            let sums = x.zero_point_sums(L::ZERO);
            let (mut first, mut second) = ([sums[0]; LANES], [sums[1]; LANES]);
            dot_half::<L, 0>(quants, x, &mut first);
            dot_half::<L, 1>(quants, x, &mut second);
            for lane in 0..LANES {
                if L::HALVES {
                    acc[lane] = (first[lane] as f32 * x.scale).mul_add(scale[lane], acc[lane]);
                    acc[lane] = (second[lane] as f32 * x.scale).mul_add(second_scale[lane], acc[lane]);
                } else {
                    acc[lane] = ((first[lane] + second[lane]) as f32 * x.scale).mul_add(scale[lane], acc[lane]);
                }
                if L::MINS {
                    acc[lane] = min[lane].mul_add(x.scaled_sum, acc[lane]);
                }
            }
        }
    }
}

/// Adds the products of half a block.
#[inline(always)]
fn dot_half<L: BlockLayout, const HALF: usize>(quants: &[u8], x: &ActivationBlock, sums: &mut [i32; LANES]) {
    for group in 0..BLOCK / 8 {
        let (start, shift) = if L::NIBBLES { (64 * group, 4 * HALF) } else { (64 * (4 * HALF + group), 0) };
        let mask = if L::NIBBLES { 15 } else { 255 };
        let x = &x.quants[BLOCK / 2 * HALF + 4 * group..][..4];
        for (sum, quants) in sums.iter_mut().zip(quants[start..start + 64].chunks_exact(4)) {
            for (quant, x) in quants.iter().zip(x) {
                let quant = quant >> shift & mask;
                let quant = if L::CODES { E2M1_QUANTS[usize::from(quant & 15)] } else { quant };
                *sum += i32::from(quant) * i32::from(*x);
            }
        }
    }
}

fn read_vector<L: BlockLayout>(vectors: &[u8], idx: usize) -> Lanes {
    let bytes = &vectors[idx * L::SCALE_BYTES..][..L::SCALE_BYTES];
    std::array::from_fn(|lane| {
        if L::WIDE {
            f32::from_le_bytes([bytes[4 * lane], bytes[4 * lane + 1], bytes[4 * lane + 2], bytes[4 * lane + 3]])
        } else {
            f16::from_le_bytes([bytes[2 * lane], bytes[2 * lane + 1]]).to_f32()
        }
    })
}

/// See [`super::dense_tile`].
pub(super) fn dense_tile<const R: usize>(format: PanelFormat, panel: &[u8], rows: [&[f32]; R], out: &mut [Lanes; R]) {
    match format {
        PanelFormat::F32 => dense::<4, R>(panel, rows, out, f32::from_le_bytes),
        PanelFormat::E4m3 => {
            let (codes, scales) = panel.split_at(panel.len() - E4M3_SCALE_BYTES);
            dense::<1, R>(codes, rows, out, |[code]| {
                // The code in the fields of a half, whose exponents are larger by 8.
                f16::from_bits(u16::from(code & 0x80) << 8 | u16::from(code & 0x7f) << 7).to_f32()
            });
            let scales = scales.as_chunks::<4>().0;
            for acc in out {
                acc.iter_mut().zip(scales).for_each(|(acc, scale)| *acc *= f32::from_le_bytes(*scale));
            }
        }
        PanelFormat::F16 => dense::<2, R>(panel, rows, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
        _ => dense::<2, R>(panel, rows, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
    }
}

#[inline(always)]
fn dense<const SIZE: usize, const R: usize>(
    panel: &[u8],
    rows: [&[f32]; R],
    out: &mut [Lanes; R],
    widen: impl Fn([u8; SIZE]) -> f32,
) {
    *out = [[0.0; LANES]; R];
    for (feature, weights) in panel.as_chunks::<SIZE>().0.as_chunks::<LANES>().0.iter().enumerate() {
        let weights = weights.map(&widen);
        for (row, acc) in rows.iter().zip(out.iter_mut()) {
            for (acc, weight) in acc.iter_mut().zip(weights) {
                *acc = fused(weight, row[feature], *acc);
            }
        }
    }
}

/// Fused where the target has it; elsewhere a call into the C library for each weight would cost more than the rest.
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
}
