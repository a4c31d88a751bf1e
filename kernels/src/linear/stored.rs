//! A tensor as a file holds it, before anything is copied out of the file.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Result, Tensor};

/// Bytes with a type and a shape, row-major.
#[derive(Debug, Clone, Copy)]
pub struct StoredTensor<'a> {
    /// All values; no alignment is asked for.
    pub bytes: &'a [u8],
    /// How values are stored.
    pub dtype: GgmlDType,
    /// Outer dimension first: a projection is `[out_features, in_features]`.
    pub dims: &'a [usize],
}

impl StoredTensor<'_> {
    /// A copy whose blocks stay as they are.
    ///
    /// Errors: a length that does not fit the shape; allocation on the device.
    pub fn to_qtensor(&self, device: &Device) -> Result<QTensor> {
        let words: Vec<u32>;
        let bytes = if self.bytes.as_ptr().align_offset(align_of::<u32>()) == 0 {
            self.bytes
        } else {
            let mut copy = vec![0_u32; self.bytes.len().div_ceil(size_of::<u32>())];
            bytemuck::cast_slice_mut::<_, u8>(&mut copy)[..self.bytes.len()].copy_from_slice(self.bytes);
            words = copy;
            &bytemuck::cast_slice(&words)[..self.bytes.len()]
        };
        QTensor::new(QStorage::from_data(Cow::Borrowed(bytes), device, self.dtype)?, self.dims)
    }

    /// A copy in plain values: floats in the type they have, blocks as f32.
    ///
    /// Errors: a length that does not fit the shape; allocation on the device.
    pub fn to_tensor(&self, device: &Device) -> Result<Tensor> {
        let dtype = match self.dtype {
            GgmlDType::F32 => DType::F32,
            GgmlDType::F16 => DType::F16,
            GgmlDType::BF16 => DType::BF16,
            _ => return self.to_qtensor(device)?.dequantize(device),
        };
        Tensor::from_raw_buffer(self.bytes, dtype, self.dims, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_at_any_address_give_the_same_values() -> Result<()> {
        let block: Vec<u8> = [0x00, 0x3c].into_iter().chain((0..32).map(|i| i as u8)).collect();
        let floats: Vec<u8> = (0..16).flat_map(|i| (i as f32).to_le_bytes()).collect();
        for (dtype, bytes, dims) in [(GgmlDType::Q8_0, &block, [1, 32]), (GgmlDType::F32, &floats, [2, 8])] {
            for shift in 0..4 {
                let shifted: Vec<u8> = std::iter::repeat_n(0, shift).chain(bytes.iter().copied()).collect();
                let stored = StoredTensor { bytes: &shifted[shift..], dtype, dims: &dims };
                let values = stored.to_tensor(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
                let expected: Vec<f32> = (0..dims[0] * dims[1]).map(|i| i as f32).collect();
                assert_eq!(values, expected, "{dtype:?} at {shift}");
            }
        }
        Ok(())
    }
}
