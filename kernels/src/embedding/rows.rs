//! Rows of the embedding table on plain slices: only the rows asked for are widened, straight into the result.
//!
//! Layout: the table as in the file, row-major; blocks of 32 values for Q8_0, Q4_0 and Q4_1. Bytes: the rows as stored
//! and as f32. Arithmetic is candle's, bit for bit; block types beyond those listed go through candle, which allocates.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Result, bail};
use half::{bf16, f16};

/// A table as it lies in memory.
#[derive(Debug, Clone, Copy)]
pub struct RowTable<'a> {
    /// All rows.
    pub bytes: &'a [u8],
    /// How values are stored.
    pub dtype: GgmlDType,
    /// Values of a row, a multiple of the type's block.
    pub hidden_size: usize,
}

/// Widens a row for each token.
///
/// Shapes: `out [tokens.len(), hidden_size]`.
/// Errors: a token outside the table, lengths that do not fit.
pub fn embedding_rows(table: RowTable<'_>, tokens: &[u32], out: &mut [f32]) -> Result<()> {
    let RowTable { bytes, dtype, hidden_size } = table;
    let fits = hidden_size > 0 && hidden_size.is_multiple_of(dtype.block_size());
    if !fits || out.len() != tokens.len() * hidden_size {
        bail!("{} tokens of {hidden_size} values in {dtype:?} do not fit {} results", tokens.len(), out.len());
    }
    let row_bytes = hidden_size / dtype.block_size() * dtype.type_size();
    for (&token, out) in tokens.iter().zip(out.chunks_exact_mut(hidden_size)) {
        let Some(row) = bytes.get(token as usize * row_bytes..).and_then(|rest| rest.get(..row_bytes)) else {
            bail!("token {token} is outside the vocabulary of {}", bytes.len() / row_bytes);
        };
        widen(row, dtype, out)?;
    }
    Ok(())
}

fn widen(row: &[u8], dtype: GgmlDType, out: &mut [f32]) -> Result<()> {
    match dtype {
        GgmlDType::F32 => each(row, out, f32::from_le_bytes),
        GgmlDType::F16 => each(row, out, |x| f16::from_le_bytes(x).to_f32()),
        GgmlDType::BF16 => each(row, out, |x| bf16::from_le_bytes(x).to_f32()),
        GgmlDType::Q8_0 => blocks::<34>(row, out, |block, out| {
            let scale = half_at(block, 0);
            for (to, code) in out.iter_mut().zip(&block[2..]) {
                *to = f32::from(*code as i8) * scale;
            }
        }),
        GgmlDType::Q4_0 => blocks::<18>(row, out, |block, out| {
            let scale = half_at(block, 0);
            nibbles(&block[2..], out, |code| (f32::from(code) - 8.0) * scale);
        }),
        GgmlDType::Q4_1 => blocks::<20>(row, out, |block, out| {
            let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
            nibbles(&block[4..], out, |code| f32::from(code) * scale + minimum);
        }),
        _ => {
            let storage = QStorage::from_data(Cow::Borrowed(row), &Device::Cpu, dtype)?;
            let values = QTensor::new(storage, out.len())?.dequantize(&Device::Cpu)?.to_vec1::<f32>()?;
            out.copy_from_slice(&values);
        }
    }
    Ok(())
}

fn each<const N: usize>(row: &[u8], out: &mut [f32], widen: impl Fn([u8; N]) -> f32) {
    for (to, x) in out.iter_mut().zip(row.as_chunks::<N>().0) {
        *to = widen(*x);
    }
}

fn blocks<const N: usize>(row: &[u8], out: &mut [f32], widen: impl Fn(&[u8; N], &mut [f32; 32])) {
    for (to, block) in out.as_chunks_mut::<32>().0.iter_mut().zip(row.as_chunks::<N>().0) {
        widen(block, to);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Low halves of 16 bytes are the first 16 values, high halves the others.
fn nibbles(codes: &[u8], out: &mut [f32; 32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), code) in low.iter_mut().zip(high).zip(codes) {
        (*low, *high) = (value(code & 15), value(code >> 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tensor;

    #[test]
    fn rows_equal_candles_bit_for_bit() -> Result<()> {
        let types = [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16, GgmlDType::Q8_0, GgmlDType::Q4_0];
        for dtype in types.into_iter().chain([GgmlDType::Q4_1, GgmlDType::Q5_0, GgmlDType::Q5_1, GgmlDType::Q6K]) {
            let table = QTensor::quantize(&tensor(&[50, 256], 1)?, dtype)?;
            let whole = table.dequantize(&Device::Cpu)?.to_vec2::<f32>()?;
            let bytes = table.data()?;
            let rows = RowTable { bytes: &bytes, dtype, hidden_size: 256 };
            let tokens = [0u32, 49, 7, 7];
            let mut out = vec![f32::NAN; 4 * 256];
            embedding_rows(rows, &tokens, &mut out)?;
            for (row, token) in out.chunks(256).zip(tokens) {
                assert!(row == whole[token as usize], "{dtype:?}");
            }
            assert!(embedding_rows(rows, &[50], &mut out[..256]).is_err());
            assert!(embedding_rows(rows, &tokens, &mut out[..256]).is_err());
        }
        Ok(())
    }
}
