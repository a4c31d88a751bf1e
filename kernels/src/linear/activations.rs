//! Activation rows as the packed kernels read them: quantized once for all layers that share them.
//!
//! Formula, for each block of 32: `scale = max|x| / 127`, `quant = round_to_even(x / scale)` in 8 bits, and
//! `scale * sum(quants)` for the weights' mins. A block with a value that is not finite gets a NaN scale, so that the
//! outputs show it. Identical bits on every instruction set. Layers with float weights read the rows in f32.

use super::format::BLOCK;
use super::kernels;
use super::output::for_each_chunk;
use crate::Isa;
use crate::team::Team;

/// Which forms of the activations a layer reads; layers that share an input ask for the sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationForm {
    /// 8-bit blocks.
    Blocks,
    /// f32 rows.
    Dense,
    /// Both of them.
    Both,
}

impl ActivationForm {
    /// The form that serves `self` and `other`.
    pub fn and(self, other: Self) -> Self {
        if self == other { self } else { Self::Both }
    }

    /// Whether 8-bit blocks are needed.
    pub fn has_blocks(self) -> bool {
        self != Self::Dense
    }

    /// Whether f32 rows are needed.
    pub fn has_dense(self) -> bool {
        self != Self::Blocks
    }
}

/// 32 activations in 8 bits.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C, align(16))]
pub(crate) struct ActivationBlock {
    pub(crate) quants: [i8; BLOCK],
    pub(crate) scale: f32,
    /// `scale * sum(quants)`.
    pub(crate) scaled_sum: f32,
    /// `-8 * sum(quants)`: what a zero point of 8 adds to an integer dot product; sixteen times it for one of 128.
    pub(crate) minus_8_sums: i32,
    /// `-8 * sum(quants)` of the first 16.
    pub(crate) minus_8_sums_first_half: i32,
}

impl ActivationBlock {
    /// Quantizes up to 32 values; missing ones count as zero.
    #[inline(always)]
    pub(crate) fn quantize(values: &[f32; BLOCK]) -> Self {
        /// Added and taken away, it rounds a small f32 to an integer, to even between two.
        const ROUNDING: f32 = 12_582_912.0;
        // As integers, the bits of non-negative floats order as the floats do, and NaN is above infinity.
        let largest = f32::from_bits(values.iter().fold(0, |max, x| (x.to_bits() & 0x7fff_ffff).max(max)));
        let scale = largest / 127.0;
        let inverse = 1.0 / scale;
        if !largest.is_finite() {
            return Self { scale: f32::NAN, scaled_sum: f32::NAN, ..Self::default() };
        }
        if !inverse.is_finite() {
            return Self::default();
        }
        let mut quants = [0i8; BLOCK];
        for (quant, x) in quants.iter_mut().zip(values) {
            let rounded = x * inverse + ROUNDING;
            *quant = rounded.to_bits().wrapping_sub(ROUNDING.to_bits()) as i8;
        }
        let sum_of = |part: &[i8]| part.iter().map(|&quant| i32::from(quant)).sum::<i32>();
        let first = sum_of(&quants[..BLOCK / 2]);
        let sum = first + sum_of(&quants[BLOCK / 2..]);
        Self {
            quants,
            scale,
            scaled_sum: scale * sum as f32,
            minus_8_sums: -8 * sum,
            minus_8_sums_first_half: -8 * first,
        }
    }
}

impl ActivationBlock {
    /// What the integer dot products of the two halves start at.
    pub(crate) fn zero_point_sums(&self, zero: i32) -> [i32; 2] {
        let first = self.minus_8_sums_first_half;
        [first, self.minus_8_sums - first].map(|sum| sum * zero / 8)
    }
}

/// A workspace of activation rows, reused from op to op; it allocates only when it must grow.
#[derive(Debug, Default)]
pub struct Activations {
    blocks: Vec<ActivationBlock>,
    dense: Vec<f32>,
    num_rows: usize,
    in_features: usize,
    form: Option<ActivationForm>,
}

impl Activations {
    /// Room for `max_rows` rows of `max_in_features` in either form.
    pub fn with_capacity(max_rows: usize, max_in_features: usize) -> Self {
        let mut activations = Self::default();
        activations.blocks.reserve_exact(max_rows * max_in_features.div_ceil(BLOCK));
        activations.dense.reserve_exact(max_rows * max_in_features);
        activations
    }

    /// Takes over the rows of `x`, in the form that the layers need.
    ///
    /// Shapes: `x [num_rows, in_features]`.
    /// Cost: reads 4 bytes and writes 1.5 a value for blocks, 4 for f32 rows.
    pub fn load(&mut self, x: &[f32], in_features: usize, form: ActivationForm, isa: Isa, team: &dyn Team) {
        let in_features = in_features.max(1);
        self.num_rows = x.len() / in_features;
        self.in_features = in_features;
        self.form = Some(form);
        if form.has_dense() {
            self.dense.clear();
            self.dense.extend_from_slice(&x[..self.num_rows * in_features]);
        }
        if form.has_blocks() {
            const ROWS_AN_ITEM: usize = 8;
            let num_blocks = in_features.div_ceil(BLOCK);
            self.blocks.resize(self.num_rows * num_blocks, ActivationBlock::default());
            for_each_chunk(team, &mut self.blocks, num_blocks * ROWS_AN_ITEM, |item, blocks| {
                let x = x[item * ROWS_AN_ITEM * in_features..].chunks_exact(in_features);
                for (row, blocks) in x.zip(blocks.chunks_exact_mut(num_blocks)) {
                    kernels::quantize_row(isa, row, blocks);
                }
            });
        }
    }

    /// Rows held.
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Width of a row.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// The blocks of a row; none if they were not asked for.
    pub(crate) fn block_row(&self, row: usize) -> &[ActivationBlock] {
        let num_blocks = self.in_features.div_ceil(BLOCK);
        &self.blocks[row * num_blocks..(row + 1) * num_blocks]
    }

    /// A row in f32.
    pub(crate) fn dense_row(&self, row: usize) -> &[f32] {
        &self.dense[row * self.in_features..(row + 1) * self.in_features]
    }

    /// Whether the form that a layer reads is here.
    pub(crate) fn serves(&self, form: ActivationForm) -> bool {
        self.form.is_some_and(|own| own.and(form) == own)
    }
}

/// A row cut into blocks, the last one filled up with zeros.
#[inline(always)]
pub(crate) fn quantize_row(row: &[f32], blocks: &mut [ActivationBlock]) {
    let (whole, rest) = row.as_chunks::<BLOCK>();
    for (values, block) in whole.iter().zip(blocks.iter_mut()) {
        *block = ActivationBlock::quantize(values);
    }
    if !rest.is_empty() {
        let mut values = [0.0; BLOCK];
        values[..rest.len()].copy_from_slice(rest);
        blocks[whole.len()] = ActivationBlock::quantize(&values);
    }
}
