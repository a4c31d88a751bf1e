//! What layers must read and compute at least, call by call and row by row: [`super::cost`] without the activations,
//! which a caller may keep in the caches.

use std::iter::Sum;
use std::ops::Add;

use candle_core::quantized::QMatMul;
use candle_core::{DType, Tensor};

use super::{Linear, LinearWeight, PackedLinear, cost};
use crate::{Arithmetic, Cost};

/// The least work of one layer, or of several that run one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinearWork {
    /// Bytes of the weights as they are held; a call reads them once.
    pub weight_bytes: u64,
    /// Operations for each row; a multiply-add is two.
    pub flops_per_row: u64,
    /// What is multiplied; of several kinds the one with the highest peak, so that least times stay least.
    pub arithmetic: Arithmetic,
}

impl LinearWork {
    /// Of a layer of this shape.
    pub fn new(in_features: usize, out_features: usize, weight_bytes: u64, arithmetic: Arithmetic) -> Self {
        let flops_per_row = cost(1, in_features, out_features, weight_bytes).flops;
        Self { weight_bytes, flops_per_row, arithmetic }
    }

    /// Of so many calls over so many rows together.
    pub fn cost(&self, num_calls: u64, num_rows: u64) -> Cost {
        Cost { bytes: num_calls * self.weight_bytes, flops: num_rows * self.flops_per_row }
    }

    fn dense(weight: &Tensor) -> Self {
        let arithmetic = match weight.dtype() {
            // On the CPU candle widens them to f32.
            DType::BF16 | DType::F16 if !weight.device().is_cpu() => Arithmetic::Bf16,
            _ => Arithmetic::F32,
        };
        Self::matrix(weight.dims(), weight.elem_count() * weight.dtype().size_in_bytes(), arithmetic)
    }

    /// Of `[out_features, in_features]`.
    fn matrix(dims: &[usize], weight_bytes: usize, arithmetic: Arithmetic) -> Self {
        let &[out_features, in_features] = dims else { return Self::default() };
        Self::new(in_features, out_features, weight_bytes as u64, arithmetic)
    }
}

impl Add for LinearWork {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            weight_bytes: self.weight_bytes + other.weight_bytes,
            flops_per_row: self.flops_per_row + other.flops_per_row,
            arithmetic: self.arithmetic.max(other.arithmetic),
        }
    }
}

impl Sum for LinearWork {
    fn sum<I: Iterator<Item = Self>>(layers: I) -> Self {
        layers.fold(Self::default(), Add::add)
    }
}

impl Linear {
    /// What the layer reads and computes at least.
    pub fn work(&self) -> LinearWork {
        match &self.weight {
            LinearWeight::Dense(weight) => LinearWork::dense(weight),
            LinearWeight::Quantized(QMatMul::Tensor(weight) | QMatMul::TensorF16(weight)) => LinearWork::dense(weight),
            LinearWeight::Quantized(QMatMul::QTensor(weight)) => {
                LinearWork::matrix(weight.shape().dims(), weight.storage_size_in_bytes(), Arithmetic::Int8)
            }
            LinearWeight::Packed(op) => op.packed().work(),
        }
    }
}

impl PackedLinear {
    /// What the layer reads and computes at least.
    pub fn work(&self) -> LinearWork {
        let arithmetic = if self.form().has_blocks() { Arithmetic::Int8 } else { Arithmetic::F32 };
        LinearWork::new(self.in_features(), self.out_features(), self.weight_bytes() as u64, arithmetic)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::Result;
    use candle_core::quantized::{GgmlDType, QTensor};

    use super::*;
    use crate::Isa;
    use crate::linear::{LinearSource, WeightType};
    use crate::team::RayonTeam;
    use crate::testing::tensor;

    #[test]
    fn bytes_are_those_held_and_products_know_their_numbers() -> Result<()> {
        let weight = tensor(&[48, 64], 1)?;
        let q8 = QTensor::quantize(&weight, GgmlDType::Q8_0)?;
        let packed = |weight_type| {
            let source = LinearSource::Dense(&weight, None);
            PackedLinear::pack_as(&[source], weight_type, Isa::detect(), &RayonTeam).map_err(candle_core::Error::wrap)
        };
        // 34 bytes for 32 weights in 8-bit blocks, one byte a weight and 4 a row in e4m3.
        let cases = [
            (Linear::dense(weight.clone(), None).work(), 48 * 64 * 4, Arithmetic::F32),
            (Linear::quantized(Arc::new(q8), None)?.work(), 48 * 2 * 34, Arithmetic::Int8),
            (packed(WeightType::Stored)?.work(), 48 * 64 * 4, Arithmetic::F32),
            (packed(WeightType::Fp8)?.work(), 48 * (64 + 4), Arithmetic::F32),
            (Linear::packed(packed(WeightType::Int8)?, Arc::new(RayonTeam)).work(), 48 * 2 * 34, Arithmetic::Int8),
        ];
        for (work, weight_bytes, arithmetic) in cases {
            assert_eq!(work, LinearWork { weight_bytes, flops_per_row: 2 * 48 * 64, arithmetic });
        }
        let all: LinearWork = cases.iter().map(|(work, ..)| *work).sum();
        assert_eq!((all.flops_per_row, all.arithmetic), (10 * 48 * 64, Arithmetic::Int8));
        assert_eq!(cases[1].0.cost(2, 5), Cost { bytes: 2 * 48 * 68, flops: 10 * 48 * 64 });
        Ok(())
    }
}
