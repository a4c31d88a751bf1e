//! From the rows of a source to panels of 16 interleaved rows.

use bytemuck::Zeroable;
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
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
            LinearSource::Stored(tensor, _) => tensor.to_tensor(&Device::Cpu)?.to_dtype(DType::F32)?,
        };
        let values = values.flatten_all()?.to_vec1::<f32>()?;
        return Ok((format, pack_converted(&values, weight_type, format, columns, team)));
    }
    match source {
        LinearSource::Quantized(weight, _) => pack_stored(&weight.data()?, weight.dtype(), rows, columns, team),
        LinearSource::Dense(weight, _) => pack_dense(weight, rows, columns, team),
        LinearSource::Stored(tensor, _) => pack_stored(tensor.bytes, tensor.dtype, rows, columns, team),
    }
}

fn pack_stored(
    data: &[u8],
    dtype: GgmlDType,
    rows: usize,
    columns: usize,
    team: &dyn Team,
) -> Result<(PanelFormat, PanelBytes), KernelError> {
    let unsupported = || KernelError::UnsupportedType { dtype: format!("{dtype:?}") };
    let format = PanelFormat::of(dtype).ok_or_else(unsupported)?;
    let whole_blocks = columns.is_multiple_of(dtype.block_size());
    if !whole_blocks || data.len() != rows * columns / dtype.block_size() * dtype.type_size() {
        return Err(unsupported());
    }
    if format.is_dense() {
        return Ok((format, interleave(data, rows, columns, dtype.type_size(), team)));
    }
    let pack = with_layout!(format, L => pack_blocks::<L>, dense => return Err(unsupported()));
    Ok((format, pack(data, dtype, rows, columns, team)))
}

fn pack_blocks<L: BlockLayout>(
    data: &[u8],
    dtype: GgmlDType,
    rows: usize,
    columns: usize,
    team: &dyn Team,
) -> PanelBytes {
    let row_bytes = columns / dtype.block_size() * dtype.type_size();
    fill_panels(data, row_bytes, rows, columns / BLOCK * L::CELL_BYTES, team, |lane, row, panel| {
        for (block_idx, cell) in panel.chunks_exact_mut(L::CELL_BYTES).enumerate() {
            if let Some(block) = gguf::decode_block(dtype, row, block_idx) {
                block.write::<L>(cell, lane);
            }
        }
    })
}

/// Quantizes floats, row-major.
fn pack_converted(values: &[f32], to: WeightType, format: PanelFormat, columns: usize, team: &dyn Team) -> PanelBytes {
    fill_panels(values, columns, values.len() / columns, format.panel_bytes(columns), team, |lane, row, panel| {
        with_layout!(format, L => {
            for (block, cell) in to.blocks(row).iter().zip(panel.chunks_exact_mut(L::CELL_BYTES)) {
                block.write::<L>(cell, lane);
            }
        }, dense => write_e4m3(row, panel, lane));
    })
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
    fill_panels(data, columns * size, rows, columns * LANES * size, team, |lane, row, panel| {
        for (element, vector) in row.chunks_exact(size).zip(panel.chunks_exact_mut(LANES * size)) {
            vector[lane * size..(lane + 1) * size].copy_from_slice(element);
        }
    })
}

/// Panels of [`LANES`] rows each; `write` puts a row of `row_len` elements into its lane of its panel.
fn fill_panels<T: Sync>(
    data: &[T],
    row_len: usize,
    rows: usize,
    panel_bytes: usize,
    team: &dyn Team,
    write: impl Fn(usize, &[T], &mut [u8]) + Sync,
) -> PanelBytes {
    let num_bytes = rows.div_ceil(LANES) * panel_bytes;
    let mut panels = PanelBytes::zeroed(num_bytes);
    for_each_chunk(team, &mut panels.bytes_mut()[..num_bytes], panel_bytes.max(1), |panel_idx, panel| {
        for (lane, row) in data.chunks_exact(row_len).skip(panel_idx * LANES).take(LANES).enumerate() {
            write(lane, row, panel);
        }
    });
    panels
}
