//! Dense weights made smaller at load, row by row; nothing is calibrated.
//!
//! - int8: `scale * q`, a scale for each 32, largest magnitude at 127.
//! - int4: `scale * q + min`, both for each 128; they stand in every block of 32, so a weight takes 5 bits.
//! - fp4: e2m1 with a scale for each 16, as in NVFP4 but in f16; 5 bits. Twice an e2m1 value is an integer.
//! - fp8: e4m3 with an f32 scale for each row, largest magnitude at 448.
//!
//! int4 and fp4 take of a few scales the one with the least squared error, measured with the scale as stored. A group
//! with a value that is not finite gets a NaN scale, so that the outputs show it.
//!
//! Source: least squares for scale and min after GGML's K-quants; NVFP4 in arXiv 2509.25149; FP8 in arXiv 2209.05433.

use half::f16;

use super::format::{BLOCK, DecodedBlock, E2M1_TIMES_2, PanelFormat};
use crate::simd::encode;

/// Weights that share a scale and a min in int4.
const INT4_GROUP: usize = 128;
/// Weights that share a scale in fp4.
const FP4_GROUP: usize = BLOCK / 2;
/// Largest quant of int4.
const INT4_MAX: f32 = 15.0;

/// What dense weights are held as; weights that are quantized in the checkpoint stay what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WeightType {
    /// As they came.
    #[default]
    Stored,
    /// 8-bit integers with a scale for each 32: 8.5 bits a weight.
    Int8,
    /// 4-bit integers with a scale and a minimum for each 128: 5 bits.
    Int4,
    /// e4m3 with a scale for each row: 8 bits. Activations stay in f32.
    Fp8,
    /// e2m1 with a scale for each 16: 5 bits.
    Fp4,
}

impl WeightType {
    /// The packed form; none for weights as they came.
    pub(crate) fn format(self) -> Option<PanelFormat> {
        match self {
            Self::Stored => None,
            Self::Int8 => Some(PanelFormat::Bytes),
            Self::Int4 => Some(PanelFormat::NibblesMin),
            Self::Fp8 => Some(PanelFormat::E4m3),
            Self::Fp4 => Some(PanelFormat::E2m1),
        }
    }

    /// The blocks of a row in rising order, the last one filled up; none for types that are not made of blocks.
    pub(crate) fn blocks(self, row: &[f32]) -> Vec<DecodedBlock> {
        match self {
            Self::Stored | Self::Fp8 => Vec::new(),
            Self::Int8 => row.chunks(BLOCK).map(int8_block).collect(),
            Self::Int4 => row.chunks(INT4_GROUP).flat_map(int4_blocks).collect(),
            Self::Fp4 => row.chunks(BLOCK).map(fp4_block).collect(),
        }
    }
}

/// A row as e4m3 codes, whose values times 2^-8 the kernels read, and the factor of those.
pub(crate) fn e4m3_row(row: &[f32]) -> (Vec<u8>, f32) {
    let largest = largest(row);
    let inverse = encode::E4M3_MAX / largest;
    if !largest.is_finite() {
        return (vec![0; row.len()], f32::NAN);
    }
    if !inverse.is_finite() {
        return (vec![0; row.len()], 0.0);
    }
    (row.iter().map(|x| encode::e4m3(x * inverse)).collect(), largest / encode::E4M3_MAX)
}

/// The largest magnitude; not finite if one of the values is not.
fn largest(values: &[f32]) -> f32 {
    // As integers, the bits of non-negative floats order as the floats do, and NaN is above infinity.
    f32::from_bits(values.iter().fold(0, |max, x| (x.to_bits() & 0x7fff_ffff).max(max)))
}

/// A scale as it is stored; where f16 has few digits left it is rounded up, so that the largest value stays in reach.
fn stored_scale(scale: f32) -> f32 {
    const ENOUGH: f32 = 0.999;
    let nearest = f16::from_f32(scale);
    let is_short = nearest == f16::ZERO || nearest.to_f32() < ENOUGH * scale;
    f16::from_bits(nearest.to_bits() + u16::from(is_short)).to_f32()
}

fn int8_block(values: &[f32]) -> DecodedBlock {
    const ZERO: u8 = 128;
    let largest = largest(values);
    if !largest.is_finite() {
        return DecodedBlock { quants: [ZERO; BLOCK], scales: [f32::NAN; 2], min: 0.0 };
    }
    let scale = stored_scale(largest / 127.0);
    let quant = |x: f32| ((x / scale).round_ties_even().clamp(-127.0, 127.0) + f32::from(ZERO)) as u8;
    DecodedBlock { quants: fill(ZERO, values, quant), scales: [scale; 2], min: 0.0 }
}

fn fp4_block(values: &[f32]) -> DecodedBlock {
    let (first, second) = values.split_at(values.len().min(FP4_GROUP));
    let scales = [fp4_scale(first), fp4_scale(second)];
    let mut quants = [0; BLOCK];
    for (i, (quant, x)) in quants.iter_mut().zip(values).enumerate() {
        *quant = encode::e2m1(x / scales[i / FP4_GROUP]);
    }
    DecodedBlock { quants, scales, min: 0.0 }
}

/// The best scale of twice the e2m1 values.
fn fp4_scale(values: &[f32]) -> f32 {
    /// Of the scale that takes the largest magnitude to the largest code; the last one takes it to the second largest.
    const CANDIDATES: [f32; 7] = [1.0, 0.85, 0.9, 0.95, 1.1, 1.25, 1.5];
    let largest = largest(values);
    if !largest.is_finite() {
        return f32::NAN;
    }
    // A scale beyond f16 leaves no candidate.
    let mut best = (f32::INFINITY, f32::NAN);
    for candidate in CANDIDATES {
        let scale = stored_scale(candidate * largest / encode::E2M1_MAX);
        let inverse = 1.0 / scale;
        let error = |x: &f32| {
            let code = encode::e2m1(x * inverse);
            (f32::from(E2M1_TIMES_2[usize::from(code)]) * scale - x).powi(2)
        };
        let error = values.iter().map(error).sum();
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

/// A scale and a min with the quants in between.
#[derive(Clone, Copy)]
struct Grid {
    scale: f32,
    min: f32,
}

impl Grid {
    /// As it is stored.
    fn new(scale: f32, min: f32) -> Self {
        Self { scale: stored_scale(scale), min: f16::from_f32(min).to_f32() }
    }

    fn quant(self, x: f32) -> f32 {
        ((x - self.min) / self.scale).round_ties_even().clamp(0.0, INT4_MAX)
    }

    fn squared_error(self, values: &[f32]) -> f32 {
        values.iter().map(|&x| (self.quant(x) * self.scale + self.min - x).powi(2)).sum()
    }

    /// The grid of least squared error for the quants that this one gives.
    fn refit(self, values: &[f32]) -> Self {
        let (mut q_sum, mut q2_sum, mut x_sum, mut qx_sum) = (0.0, 0.0, 0.0, 0.0);
        for &x in values {
            let q = self.quant(x);
            q_sum += q;
            q2_sum += q * q;
            x_sum += x;
            qx_sum += q * x;
        }
        let count = values.len() as f32;
        let determinant = count * q2_sum - q_sum * q_sum;
        let scale = (count * qx_sum - q_sum * x_sum) / determinant;
        if scale.is_finite() { Self::new(scale, (x_sum - scale * q_sum) / count) } else { self }
    }
}

fn int4_blocks(values: &[f32]) -> Vec<DecodedBlock> {
    /// Shares of the range from the least value to the largest that the quants span.
    const SPANS: [f32; 7] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6];
    if !largest(values).is_finite() {
        let block = DecodedBlock { quants: [0; BLOCK], scales: [f32::NAN; 2], min: 0.0 };
        return vec![block; values.len().div_ceil(BLOCK)];
    }
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let span = |share: f32| Grid::new(share * (high - low) / INT4_MAX, low + (1.0 - share) / 2.0 * (high - low));
    let grids = SPANS.into_iter().map(span).flat_map(|grid| [grid, grid.refit(values)]);
    let errors = grids.map(|grid| (grid.squared_error(values), grid));
    let best = errors.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(span(1.0), |(_, grid)| grid);
    let block = |values: &[f32]| DecodedBlock {
        quants: fill(0, values, |x| best.quant(x) as u8),
        scales: [best.scale; 2],
        min: best.min,
    };
    values.chunks(BLOCK).map(block).collect()
}

/// The quants of up to 32 values, `zero` for missing ones.
fn fill(zero: u8, values: &[f32], quant: impl Fn(f32) -> u8) -> [u8; BLOCK] {
    let mut quants = [zero; BLOCK];
    quants.iter_mut().zip(values).for_each(|(to, &x)| *to = quant(x));
    quants
}
