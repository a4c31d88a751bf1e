//! Token embedding: a row of the table for each token. A quantized table stays quantized; only the rows asked for are
//! expanded, so that a large vocabulary costs no second copy in memory.

mod rows;

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{DType, Device, Result, Tensor};

use crate::Cost;

pub use rows::{RowTable, embedding_rows};

/// The table, `[vocab_size, hidden_size]`.
#[derive(Debug, Clone)]
pub enum Embedding {
    /// Plain values.
    Dense(Tensor),
    /// Rows of quantized blocks.
    Quantized(Arc<QTensor>),
}

impl Embedding {
    /// Looks tokens up.
    ///
    /// Shapes: `tokens [num_tokens]`, result `[num_tokens, hidden_size]` in `dtype`.
    /// Errors: a token outside the table.
    pub fn forward(&self, tokens: &[u32], dtype: DType, device: &Device) -> Result<Tensor> {
        match self {
            Self::Dense(table) => {
                let tokens = Tensor::new(tokens, device)?;
                table.index_select(&tokens, 0)?.to_dtype(dtype)
            }
            Self::Quantized(table) => quantized_rows(table, tokens, device)?.to_dtype(dtype),
        }
    }

    /// Bytes of one row as it is held.
    pub fn row_bytes(&self) -> u64 {
        let (table_bytes, dims) = match self {
            Self::Dense(table) => (table.elem_count() * table.dtype().size_in_bytes(), table.dims()),
            Self::Quantized(table) => (table.storage_size_in_bytes(), table.shape().dims()),
        };
        (table_bytes / dims.first().copied().unwrap_or(1).max(1)) as u64
    }
}

fn quantized_rows(table: &QTensor, tokens: &[u32], device: &Device) -> Result<Tensor> {
    let (vocab_size, hidden_size) = table.shape().dims2()?;
    let data = table.data()?;
    let row_bytes = data.len() / vocab_size;
    let mut rows = Vec::with_capacity(tokens.len() * row_bytes);
    for &token in tokens {
        let start = token as usize * row_bytes;
        match data.get(start..start + row_bytes) {
            Some(row) => rows.extend_from_slice(row),
            None => candle_core::bail!("token {token} is outside the vocabulary of {vocab_size}"),
        }
    }
    let storage = QStorage::from_data(Cow::Owned(rows), &Device::Cpu, table.dtype())?;
    QTensor::new(storage, (tokens.len(), hidden_size))?.dequantize(device)
}

/// One read of the rows as stored and one write as f32.
pub fn cost(num_tokens: usize, stored_row_bytes: usize, hidden_size: usize) -> Cost {
    Cost { bytes: (num_tokens * (stored_row_bytes + 4 * hidden_size)) as u64, flops: 0 }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;

    use super::*;
    use crate::testing::{bits, tensor};

    #[test]
    fn quantized_rows_equal_those_of_the_whole_table() -> Result<()> {
        for dtype in [GgmlDType::Q8_0, GgmlDType::Q4_1, GgmlDType::Q6K] {
            let quantized = QTensor::quantize(&tensor(&[100, 256], 1)?, dtype)?;
            let whole = quantized.dequantize(&Device::Cpu)?;
            let tokens = [0u32, 99, 7, 7];
            let embedding = Embedding::Quantized(Arc::new(quantized));
            let rows = embedding.forward(&tokens, DType::F32, &Device::Cpu)?;
            assert_eq!(bits(&rows), bits(&whole.index_select(&Tensor::new(&tokens, &Device::Cpu)?, 0)?));
            assert!(embedding.forward(&[100], DType::F32, &Device::Cpu).is_err());
        }
        Ok(())
    }
}
