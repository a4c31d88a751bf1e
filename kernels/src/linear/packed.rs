//! A linear layer repacked at load: 16 output rows interleaved, so that one vector holds one weight of each.
//!
//! Formula: `y = x W^T + b`, with `W` block-quantized and `x` quantized to 8 bits, or both in floats. Bytes: the weights
//! once a call for up to some rows, as stored in the file for Q4_0, Q4_1, Q8_0 and floats (`format` lists the others,
//! `quantize` what floats can be converted to).
//! Flops: `2 num_rows in out`. Loop order: chunks of panels over all threads, then panels, then tiles of rows, then K
//! in rising order with one accumulator an output: the order of sums knows neither the other rows nor the threads.
#![allow(unsafe_code)]

use std::ops::Range;

use candle_core::quantized::QTensor;
use candle_core::{DType, Tensor};

use super::activations::{ActivationForm, Activations};
use super::format::{LANES, PanelFormat, with_layout};
use super::kernels::{self, Lanes};
use super::output::SharedMatrix;
use super::quantize::WeightType;
use super::repack::{self, PanelBytes};
use super::stored::StoredTensor;
use crate::team::{Team, for_each_item};
use crate::{Isa, KernelError};

/// The least weights that a thread takes at a time.
const LEAST_CHUNK_BYTES: usize = 8 << 10;
/// Activation rows that a thread takes at a time, so that few panels still share out evenly.
const ROWS_AN_ITEM: usize = 128;

/// One of the matrices that are stacked in a layer, `[out_i, in_features]`, with its bias `[out_i]`.
#[derive(Debug, Clone, Copy)]
pub enum LinearSource<'a> {
    /// GGUF blocks.
    Quantized(&'a QTensor, Option<&'a Tensor>),
    /// Weights in f32, f16 or bf16.
    Dense(&'a Tensor, Option<&'a Tensor>),
    /// GGUF blocks or plain floats, in place.
    Stored(StoredTensor<'a>, Option<&'a Tensor>),
}

/// A layer, or several that share their input, ready for one instruction set.
#[derive(Debug)]
pub struct PackedLinear {
    segments: Vec<Segment>,
    chunks: Vec<Chunk>,
    in_features: usize,
    out_features: usize,
    num_converted: usize,
    isa: Isa,
}

/// The rows of one source.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) format: PanelFormat,
    pub(crate) panels: PanelBytes,
    pub(crate) panel_bytes: usize,
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) outputs: Range<usize>,
}

/// Panels of a segment that one thread takes at a time.
#[derive(Debug)]
struct Chunk {
    segment_idx: usize,
    panels: Range<usize>,
}

impl PackedLinear {
    /// Stacks the rows of `parts`, which may have different types, for `isa`.
    ///
    /// Errors: parts of different widths, a type without a packed form.
    /// Cost: reads every part once and holds as many bytes again.
    pub fn pack(parts: &[LinearSource<'_>], isa: Isa, team: &dyn Team) -> Result<Self, KernelError> {
        Self::pack_as(parts, WeightType::Stored, isa, team)
    }

    /// The same with those parts that are dense converted to `weight_type`.
    ///
    /// Errors: as [`PackedLinear::pack`].
    /// Cost: int4 and fp4 try several scales, a few hundred instructions for each group.
    pub fn pack_as(
        parts: &[LinearSource<'_>],
        weight_type: WeightType,
        isa: Isa,
        team: &dyn Team,
    ) -> Result<Self, KernelError> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut in_features = 0;
        for (part_idx, part) in parts.iter().enumerate() {
            let dims = part.dims();
            let (rows, columns) = match dims {
                &[rows, columns] if rows * columns > 0 => (rows, columns),
                _ => return Err(shape_error(part_idx, dims, "a matrix with a row and a column at least")),
            };
            if part_idx > 0 && columns != in_features {
                return Err(shape_error(part_idx, dims, &format!("[_, {in_features}] like the first")));
            }
            in_features = columns;
            let first = segments.last().map_or(0, |segment| segment.outputs.end);
            let (format, panels) = repack::pack_panels(part, weight_type, rows, columns, team)?;
            let panel_bytes = format.panel_bytes(columns);
            let bias = part.bias().map(|bias| read_bias(part_idx, bias, rows)).transpose()?;
            segments.push(Segment { format, panels, panel_bytes, bias, outputs: first..first + rows });
        }
        let chunks = cut(&segments, team.num_threads());
        let out_features = segments.last().map_or(0, |segment| segment.outputs.end);
        let converts = |part: &LinearSource<'_>| weight_type != WeightType::Stored && part.is_dense();
        let num_converted = parts.iter().filter(|part| converts(part)).count();
        Ok(Self { segments, chunks, in_features, out_features, num_converted, isa })
    }

    /// Width of the input.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Width of the output: the rows of all parts.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Bytes that one call reads of the weights.
    pub fn weight_bytes(&self) -> usize {
        let bytes = |segment: &Segment| segment.panel_bytes * segment.outputs.len().div_ceil(LANES);
        self.segments.iter().map(bytes).sum()
    }

    /// Parts that were dense and have been converted.
    pub fn num_converted(&self) -> usize {
        self.num_converted
    }

    /// The instruction set that the layer was packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Which form of activations the layer reads.
    pub fn form(&self) -> ActivationForm {
        let form = |segment: &Segment| {
            if segment.format.is_dense() { ActivationForm::Dense } else { ActivationForm::Blocks }
        };
        self.segments.iter().map(form).reduce(ActivationForm::and).unwrap_or(ActivationForm::Blocks)
    }

    /// Applies the layer to every row of `x`; it panics if `x` or `y` have other shapes or `x` lacks the form.
    ///
    /// Shapes: `x [num_rows, in_features]`, `y [num_rows, out_features]`.
    /// Cost: [`super::cost`] with [`PackedLinear::weight_bytes`]; no allocation, one barrier.
    pub fn forward(&self, x: &Activations, y: &mut [f32], team: &dyn Team) {
        let num_rows = x.num_rows();
        assert_eq!(x.in_features(), self.in_features, "activations of another width");
        assert_eq!(y.len(), num_rows * self.out_features, "output of another shape");
        assert!(x.serves(self.form()), "activations in another form");
        let y = SharedMatrix::new(y, self.out_features);
        let num_items = num_rows.div_ceil(ROWS_AN_ITEM) * self.chunks.len();
        for_each_item(team, num_items, |item| {
            let start = item / self.chunks.len() * ROWS_AN_ITEM;
            let rows = start..(start + ROWS_AN_ITEM).min(num_rows);
            self.forward_chunk(&self.chunks[item % self.chunks.len()], x, rows, &y);
        });
    }

    fn forward_chunk(&self, chunk: &Chunk, x: &Activations, rows: Range<usize>, y: &SharedMatrix<'_, f32>) {
        let segment = &self.segments[chunk.segment_idx];
        for panel in chunk.panels.clone() {
            let mut row = rows.start;
            while row < rows.end {
                row += match rows.end - row {
                    8.. => self.forward_tile::<8>(segment, panel, x, row, y),
                    4.. => self.forward_tile::<4>(segment, panel, x, row, y),
                    2.. => self.forward_tile::<2>(segment, panel, x, row, y),
                    _ => self.forward_tile::<1>(segment, panel, x, row, y),
                };
            }
        }
    }

    /// Computes and stores one panel times `R` rows; returns `R`.
    fn forward_tile<const R: usize>(
        &self,
        segment: &Segment,
        panel: usize,
        x: &Activations,
        row: usize,
        y: &SharedMatrix<'_, f32>,
    ) -> usize {
        let mut tile: [Lanes; R] = [[0.0; LANES]; R];
        let bytes = &segment.panels.bytes()[panel * segment.panel_bytes..][..segment.panel_bytes];
        with_layout!(segment.format, L => {
            let rows = std::array::from_fn(|r| x.block_row(row + r));
            kernels::block_tile::<L, R>(self.isa, bytes, rows, &mut tile);
        }, dense => {
            let rows = std::array::from_fn(|r| x.dense_row(row + r));
            kernels::dense_tile::<R>(self.isa, segment.format, bytes, rows, &mut tile);
        });
        let first = panel * LANES;
        let num_lanes = LANES.min(segment.outputs.len() - first);
        for (r, lanes) in tile.iter_mut().enumerate() {
            let lanes = &mut lanes[..num_lanes];
            if let Some(bias) = &segment.bias {
                lanes.iter_mut().zip(&bias[first..]).for_each(|(lane, bias)| *lane += bias);
            }
            // SAFETY: a pair of row and panel belongs to one item, and each item is handed out once.
            unsafe { y.write(row + r, segment.outputs.start + first, lanes) };
        }
        R
    }
}

impl LinearSource<'_> {
    /// Whether its weights are f32, f16 or bf16, in a GGUF file or not.
    pub fn is_dense(&self) -> bool {
        match self {
            Self::Quantized(weight, _) => PanelFormat::of(weight.dtype()).is_some_and(PanelFormat::is_dense),
            Self::Dense(weight, _) => matches!(weight.dtype(), DType::F32 | DType::F16 | DType::BF16),
            Self::Stored(tensor, _) => PanelFormat::of(tensor.dtype).is_some_and(PanelFormat::is_dense),
        }
    }

    fn dims(&self) -> &[usize] {
        match self {
            Self::Quantized(weight, _) => weight.shape().dims(),
            Self::Dense(weight, _) => weight.dims(),
            Self::Stored(tensor, _) => tensor.dims,
        }
    }

    fn bias(&self) -> Option<&Tensor> {
        match self {
            Self::Quantized(_, bias) | Self::Dense(_, bias) | Self::Stored(_, bias) => *bias,
        }
    }
}

/// Chunks that shrink: long ones first, which memory streams best, short ones last, so that all threads end together.
fn cut(segments: &[Segment], num_threads: usize) -> Vec<Chunk> {
    let num_panels = |segment: &Segment| segment.outputs.len().div_ceil(LANES);
    let mut bytes_left: usize = segments.iter().map(|segment| segment.panel_bytes * num_panels(segment)).sum();
    let mut chunks = Vec::new();
    for (segment_idx, segment) in segments.iter().enumerate() {
        let mut start = 0;
        while start < num_panels(segment) {
            let chunk_bytes = (bytes_left / (2 * num_threads)).max(LEAST_CHUNK_BYTES);
            let end = (start + (chunk_bytes / segment.panel_bytes).max(1)).min(num_panels(segment));
            chunks.push(Chunk { segment_idx, panels: start..end });
            bytes_left -= (end - start) * segment.panel_bytes;
            start = end;
        }
    }
    chunks
}

fn read_bias(part_idx: usize, bias: &Tensor, rows: usize) -> Result<Vec<f32>, KernelError> {
    if bias.dims() != [rows] {
        return Err(shape_error(part_idx, bias.dims(), &format!("a bias of [{rows}]")));
    }
    Ok(bias.to_dtype(DType::F32)?.to_vec1()?)
}

fn shape_error(part_idx: usize, actual: &[usize], expected: &str) -> KernelError {
    KernelError::Shape { part_idx, actual: format!("{actual:?}"), expected: expected.to_owned() }
}
