//! One tile of a packed layer: 16 output rows times a few activation rows, on the instruction set chosen.
//!
//! Order of sums, the same for any number of rows and on every set: blocks in rising order; in each, the exact integer
//! dot product, then `acc = fma(scale, dot * x_scale, acc)`, then with mins `acc = fma(min, x_scaled_sum, acc)`.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::activations::{self, ActivationBlock};
use super::format::{BlockLayout, LANES, PanelFormat};
use crate::Isa;

/// Results of one activation row in a tile.
pub(crate) type Lanes = [f32; LANES];

/// `out[r] = panel * rows[r]` over block-quantized weights.
///
/// The caller vouches for `isa`: it comes from [`Isa::select`] and its like.
pub(crate) fn block_tile<L: BlockLayout, const R: usize>(
    isa: Isa,
    panel: &[u8],
    rows: [&[ActivationBlock]; R],
    out: &mut [Lanes; R],
) {
    assert!(rows.iter().all(|row| row.len() * L::CELL_BYTES == panel.len()));
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::block_tile_dispatch::<L, R>(panel, rows, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::block_tile_dispatch::<L, R>(panel, rows, out),
        _ => portable::block_tile::<L, R>(panel, rows, out),
    }
}

/// `out[r] = panel * rows[r]` over float weights: FMA in rising order of features; e4m3 is scaled at the end.
pub(crate) fn dense_tile<const R: usize>(
    isa: Isa,
    format: PanelFormat,
    panel: &[u8],
    rows: [&[f32]; R],
    out: &mut [Lanes; R],
) {
    assert!(rows.iter().all(|row| format.panel_bytes(row.len()) == panel.len()));
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::dense_tile_dispatch::<R>(format, panel, rows, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::dense_tile_dispatch::<R>(format, panel, rows, out),
        _ => portable::dense_tile::<R>(format, panel, rows, out),
    }
}

/// Quantizes one row.
pub(crate) fn quantize_row(isa: Isa, row: &[f32], blocks: &mut [ActivationBlock]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::quantize_row_dispatch(row, blocks),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::quantize_row_dispatch(row, blocks),
        _ => activations::quantize_row(row, blocks),
    }
}
