//! From the rows of a source to panels of 16 interleaved rows.

use bytemuck::Zeroable;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Tensor};
use half::{bf16, f16};

use super::format::{BLOCK, BlockLayout, E4M3_SCALE_BYTES, LANES, PanelFormat, with_layout};
use super::gguf;
use super::output::for_each_chunk;
use super::packed::LinearSource;
use super::quantize::{self, WeightType};
use crate::KernelError;
use crate::team::Team;

/// Bytes that start on a cache line.
#[derive(Debug)]
pub(crate) struct PanelBytes(Vec<CacheLine>);

#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

impl PanelBytes {
    fn zeroed(num_bytes: usize) -> Self {
        Self(vec![CacheLine::zeroed(); num_bytes.div_ceil(64)])
    }

    /// All bytes, at least as many as were asked for.
    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// Packs a matrix `[rows, columns]`, floats as `weight_type`; missing rows of the last panel are zero.
///
/// Errors: a type without a packed form.
pub(crate) fn pack_panels(
    source: &LinearSource<'_>,
    weight_type: WeightType,
    rows: usize,
    columns: usize,
    team: &dyn Team,
) -> Result<(PanelFormat, PanelBytes), KernelError> {
    if let Some(format) = weight_type.format()
        && source.is_dense()
    {
        let values = match source {
            LinearSource::Quantized(weight, _) => weight.dequantize(&weight.device())?,
            LinearSource::Dense(weight, _) => weight.to_dtype(DType::F32)?,
        };
        let values = values.flatten_all()?.to_vec1::<f32>()?;
        return Ok((format, pack_converted(&values, weight_type, format, columns, team)));
    }
    match source {
        LinearSource::Quantized(weight, _) => pack_quantized(weight, rows, columns, team),
        LinearSource::Dense(weight, _) => pack_dense(weight, rows, columns, team),
    }
}

fn pack_quantized(
    weight: &QTensor,
    rows: usize,
    columns: usize,
    team: &dyn Team,
) -> Result<(PanelFormat, PanelBytes), KernelError> {
    let dtype = weight.dtype();
    let unsupported = || KernelError::UnsupportedType { dtype: format!("{dtype:?}") };
    let format = PanelFormat::of(dtype).ok_or_else(unsupported)?;
    let data = weight.data()?;
    if format.is_dense() {
        return Ok((format, interleave(&data, rows, columns, dtype.type_size(), team)));
    }
    if !columns.is_multiple_of(dtype.block_size())
        || data.len() < rows * columns / dtype.block_size() * dtype.type_size()
    {
        return Err(unsupported());
    }
    let pack = with_layout!(format, L => pack_blocks::<L>, dense => return Err(unsupported()));
    Ok((format, pack(&data, dtype, rows, columns, team)))
}

fn pack_blocks<L: BlockLayout>(
    data: &[u8],
    dtype: GgmlDType,
    rows: usize,
    columns: usize,
    team: &dyn Team,
) -> PanelBytes {
    let num_cells = columns / BLOCK;
    let panel_bytes = num_cells * L::CELL_BYTES;
    let row_bytes = columns / dtype.block_size() * dtype.type_size();
    let num_panels = rows.div_ceil(LANES);
    let mut panels = PanelBytes::zeroed(num_panels * panel_bytes);
    for_each_chunk(
        team,
        &mut panels.bytes_mut()[..num_panels * panel_bytes],
        panel_bytes.max(1),
        |panel_idx, panel| {
            for (lane, row) in data.chunks_exact(row_bytes).skip(panel_idx * LANES).take(LANES).enumerate() {
                for (block_idx, cell) in panel.chunks_exact_mut(L::CELL_BYTES).enumerate() {
                    if let Some(block) = gguf::decode_block(dtype, row, block_idx) {
                        block.write::<L>(cell, lane);
                    }
                }
            }
        },
    );
    panels
}

/// Quantizes floats, row-major.
fn pack_converted(values: &[f32], to: WeightType, format: PanelFormat, columns: usize, team: &dyn Team) -> PanelBytes {
    let panel_bytes = format.panel_bytes(columns);
    let num_panels = (values.len() / columns).div_ceil(LANES);
    let mut panels = PanelBytes::zeroed(num_panels * panel_bytes);
    for_each_chunk(team, &mut panels.bytes_mut()[..num_panels * panel_bytes], panel_bytes, |panel_idx, panel| {
        let rows = values.chunks_exact(columns).skip(panel_idx * LANES).take(LANES);
        for (lane, row) in rows.enumerate() {
            with_layout!(format, L => {
                for (block, cell) in to.blocks(row).iter().zip(panel.chunks_exact_mut(L::CELL_BYTES)) {
                    block.write::<L>(cell, lane);
                }
            }, dense => write_e4m3(row, panel, lane));
        }
    });
    panels
}

fn write_e4m3(row: &[f32], panel: &mut [u8], lane: usize) {
    let (codes, scale) = quantize::e4m3_row(row);
    let (vectors, scales) = panel.split_at_mut(panel.len() - E4M3_SCALE_BYTES);
    for (code, vector) in codes.into_iter().zip(vectors.chunks_exact_mut(LANES)) {
        vector[lane] = code;
    }
    scales[4 * lane..4 * lane + 4].copy_from_slice(&scale.to_le_bytes());
}

fn pack_dense(
    weight: &Tensor,
    rows: usize,
    columns: usize,
    team: &dyn Team,
) -> Result<(PanelFormat, PanelBytes), KernelError> {
    let flat = weight.flatten_all()?;
    Ok(match weight.dtype() {
        DType::F32 => {
            (PanelFormat::F32, interleave(bytemuck::cast_slice(&flat.to_vec1::<f32>()?), rows, columns, 4, team))
        }
        DType::F16 => {
            let bytes: Vec<[u8; 2]> = flat.to_vec1::<f16>()?.into_iter().map(f16::to_le_bytes).collect();
            (PanelFormat::F16, interleave(bytes.as_flattened(), rows, columns, 2, team))
        }
        DType::BF16 => {
            let bytes: Vec<[u8; 2]> = flat.to_vec1::<bf16>()?.into_iter().map(bf16::to_le_bytes).collect();
            (PanelFormat::Bf16, interleave(bytes.as_flattened(), rows, columns, 2, team))
        }
        dtype => return Err(KernelError::UnsupportedType { dtype: format!("{dtype:?}") }),
    })
}

/// Elements of `size` bytes: for each column, one of each row of the panel.
fn interleave(data: &[u8], rows: usize, columns: usize, size: usize, team: &dyn Team) -> PanelBytes {
    let panel_bytes = columns * LANES * size;
    let num_panels = rows.div_ceil(LANES);
    let mut panels = PanelBytes::zeroed(num_panels * panel_bytes);
    for_each_chunk(
        team,
        &mut panels.bytes_mut()[..num_panels * panel_bytes],
        panel_bytes.max(1),
        |panel_idx, panel| {
            for (lane, row) in data.chunks_exact(columns * size).skip(panel_idx * LANES).take(LANES).enumerate() {
                for (element, vector) in row.chunks_exact(size).zip(panel.chunks_exact_mut(LANES * size)) {
                    vector[lane * size..(lane + 1) * size].copy_from_slice(element);
                }
            }
        },
    );
    panels
}
