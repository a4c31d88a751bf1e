//! Linear layer: `y = x W^T + b`, over plain or block-quantized weights.

mod activations;
mod format;
mod gguf;
mod kernels;
mod output;
mod packed;
#[cfg(test)]
mod packed_tests;
mod quantize;
#[cfg(test)]
mod quantize_tests;
mod repack;
mod stored;
mod tensor_op;
mod work;

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{D, DType, Module, Result, Tensor};

pub use self::activations::{ActivationForm, Activations};
pub use self::packed::{LinearSource, PackedLinear};
pub use self::quantize::WeightType;
pub use self::stored::StoredTensor;
pub use self::work::LinearWork;
use crate::{Cost, matmul};

/// Weights `[out_features, in_features]` and an optional bias `[out_features]`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: LinearWeight,
    bias: Option<Tensor>,
}

#[derive(Debug, Clone)]
enum LinearWeight {
    Dense(Tensor),
    Quantized(QMatMul),
    Packed(tensor_op::TensorOp),
}

impl Linear {
    /// Over plain weights.
    pub fn dense(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: LinearWeight::Dense(weight), bias }
    }

    /// Over quantized weights; activations are quantized to 8 bits on the way, row by row.
    ///
    /// Errors: a type that candle cannot multiply with.
    pub fn quantized(weight: Arc<QTensor>, bias: Option<Tensor>) -> Result<Self> {
        Ok(Self { weight: LinearWeight::Quantized(QMatMul::from_arc(weight)?), bias })
    }

    /// Over packed weights, whose bias is packed with them. Inputs are f32.
    pub fn packed(packed: PackedLinear, team: Arc<dyn crate::team::Team>) -> Self {
        Self { weight: LinearWeight::Packed(tensor_op::TensorOp::new(packed, team)), bias: None }
    }

    /// Applies the layer to every row.
    ///
    /// Shapes: `x [num_rows, in_features]`, result `[num_rows, out_features]`.
    /// Errors: widths that do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.weight {
            LinearWeight::Dense(weight) => matmul::batch_invariant(x, &weight.t()?)?,
            LinearWeight::Quantized(weight) if x.dtype() == DType::F32 => quantized_matmul(&x.contiguous()?, weight)?,
            // candle multiplies blocks with f32 only.
            LinearWeight::Quantized(weight) => {
                quantized_matmul(&x.to_dtype(DType::F32)?.contiguous()?, weight)?.to_dtype(x.dtype())?
            }
            LinearWeight::Packed(op) => op.forward(x)?,
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// Q6K has a route of its own for a single row, Q4K one for 32 rows and more on machines with AMX; both are avoided.
fn quantized_matmul(x: &Tensor, weight: &QMatMul) -> Result<Tensor> {
    const ROWS_BELOW_AMX: usize = 31;
    let dtype = match weight {
        QMatMul::QTensor(weight) => weight.dtype(),
        QMatMul::Tensor(weight) | QMatMul::TensorF16(weight) => return matmul::batch_invariant(x, &weight.t()?),
    };
    let num_rows = x.dim(0)?;
    match dtype {
        GgmlDType::Q6K if num_rows == 1 => weight.forward(&Tensor::cat(&[x, x], 0)?)?.narrow(0, 0, 1),
        GgmlDType::Q4K if num_rows > ROWS_BELOW_AMX => {
            let starts = (0..num_rows).step_by(ROWS_BELOW_AMX);
            let tile = |start| weight.forward(&x.narrow(0, start, ROWS_BELOW_AMX.min(num_rows - start))?);
            Tensor::cat(&starts.map(tile).collect::<Result<Vec<_>>>()?, 0)
        }
        _ => weight.forward(x),
    }
}

/// The same in f64, for weights in f64, row-major.
pub fn reference(x: &[f64], weight: &[f64], in_features: usize) -> Vec<f64> {
    x.chunks(in_features)
        .flat_map(|row| weight.chunks(in_features).map(move |w| row.iter().zip(w).map(|(a, b)| a * b).sum::<f64>()))
        .collect()
}

/// One read of the weights as stored, one read of `x` and one write of `y` in f32.
pub fn cost(num_rows: usize, in_features: usize, out_features: usize, weight_bytes: u64) -> Cost {
    Cost {
        bytes: weight_bytes + 4 * (num_rows * (in_features + out_features)) as u64,
        flops: 2 * (num_rows * in_features * out_features) as u64,
    }
}

/// Picks rows of a matrix, for instance those whose logits are wanted.
///
/// Shapes: `x [num_rows, n]`, `rows [m] u32`, result `[m, n]`.
/// Errors: a row that is not there.
pub fn select_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    if rows.len() == x.dim(0)? && rows.iter().enumerate().all(|(i, &row)| i == row as usize) {
        return Ok(x.clone());
    }
    debug_assert_eq!(x.dim(D::Minus1)?, x.dims()[1]);
    x.index_select(&Tensor::new(rows, x.device())?, 0)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::testing::{bits, nmse, tensor, values};

    const SHAPES: [(usize, usize); 5] = [(64, 192), (192, 512), (192, 64), (576, 1536), (1536, 576)];

    fn layers(in_features: usize, out_features: usize) -> Result<Vec<(String, Linear, Tensor)>> {
        let weight = tensor(&[out_features, in_features], 9)?;
        let mut layers = vec![("f32".to_owned(), Linear::dense(weight.clone(), None), weight.clone())];
        for dtype in [
            GgmlDType::Q8_0,
            GgmlDType::Q4_0,
            GgmlDType::Q4_1,
            GgmlDType::Q5_0,
            GgmlDType::Q5_1,
            GgmlDType::Q4K,
            GgmlDType::Q5K,
            GgmlDType::Q6K,
        ] {
            if !in_features.is_multiple_of(dtype.block_size()) {
                continue;
            }
            let quantized = QTensor::quantize(&weight, dtype)?;
            let dequantized = quantized.dequantize(&Device::Cpu)?;
            layers.push((format!("{dtype:?}"), Linear::quantized(Arc::new(quantized), None)?, dequantized));
        }
        Ok(layers)
    }

    #[test]
    fn agrees_with_the_reference() -> Result<()> {
        for (in_features, out_features) in SHAPES {
            for (name, layer, weight) in layers(in_features, out_features)? {
                let x = tensor(&[5, in_features], 11)?;
                let expected = reference(&values(&x), &values(&weight), in_features);
                let distance = nmse(&values(&layer.forward(&x)?), &expected);
                let bound = if name == "f32" { 1e-10 } else { 5e-4 };
                assert!(distance < bound, "{name} {in_features}->{out_features}: nmse {distance:e}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_shifted_weight_row_is_seen() -> Result<()> {
        let weight = tensor(&[64, 192], 9)?;
        let shifted = Tensor::cat(&[&weight.narrow(0, 1, 63)?, &weight.narrow(0, 0, 1)?], 0)?;
        let x = tensor(&[3, 192], 1)?;
        let expected = reference(&values(&x), &values(&weight), 192);
        assert!(nmse(&values(&Linear::dense(shifted, None).forward(&x)?), &expected) > 1e-2);
        Ok(())
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() -> Result<()> {
        for (in_features, out_features) in SHAPES {
            for (name, layer, _) in layers(in_features, out_features)? {
                let x = tensor(&[100, in_features], 13)?;
                let all = layer.forward(&x)?;
                for (start, count) in [(0, 1), (99, 1), (1, 2), (3, 7), (17, 64), (30, 65)] {
                    let part = layer.forward(&x.narrow(0, start, count)?)?;
                    let same = bits(&part) == bits(&all.narrow(0, start, count)?);
                    assert!(same, "{name} {in_features}->{out_features}: rows {start}+{count} differ");
                }
            }
        }
        Ok(())
    }
}
