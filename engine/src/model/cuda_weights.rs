//! Takes tensors out of a checkpoint onto the device: compressed ones stay compressed where a kernel reads their format,
//! everything else becomes bf16.

use std::borrow::Cow;
use std::sync::Arc;

use aisp_kernels::cuda::{DeviceBuffer, DeviceWeight, Gpu, Staging, WeightFormat};
use aisp_kernels::linear::StoredTensor;
use candle_core::DType;
use candle_core::quantized::GgmlDType;
use half::bf16;

use super::take::PackedWeights;
use super::weights::{Weight, Weights};
use crate::error::EngineError;

/// What a vector is for, and what makes it smaller.
const VECTORS: (&str, &str) = ("norms and biases", "the model");

/// A checkpoint under way to a device.
pub(super) struct CudaTake<'a> {
    pub gpu: &'a Arc<Gpu>,
    pub weights: &'a mut Weights,
    /// There once something is uploaded.
    pub staging: Option<Staging>,
    /// What dense projections become.
    pub format: WeightFormat,
    pub packed: PackedWeights,
}

/// One of the matrices that are stacked: its name and its rows.
pub(super) type Part<'a> = (&'a str, usize);

impl CudaTake<'_> {
    /// A vector in f32.
    pub fn vector(&mut self, name: &str, len: usize) -> Result<DeviceBuffer<f32>, EngineError> {
        let values = self.values(name, len)?;
        Ok(DeviceBuffer::of(self.gpu, &values, VECTORS)?)
    }

    /// Vectors, one after the other.
    pub fn vectors(&mut self, parts: &[Part<'_>]) -> Result<DeviceBuffer<f32>, EngineError> {
        let mut all = Vec::new();
        for (name, len) in parts {
            all.extend(self.values(name, *len)?);
        }
        Ok(DeviceBuffer::of(self.gpu, &all, VECTORS)?)
    }

    fn values(&mut self, name: &str, len: usize) -> Result<Vec<f32>, EngineError> {
        let tensor = self.weights.take_shaped(name, &[len])?.into_tensor()?;
        Ok(tensor.to_dtype(DType::F32)?.to_vec1()?)
    }

    /// Matrices of one input, stacked; dense ones take the format asked for.
    pub fn projection(&mut self, parts: &[Part<'_>], k: usize) -> Result<DeviceWeight, EngineError> {
        let stored = self.stored(parts, k)?;
        if self.format == WeightFormat::Bf16 || stored.format() != WeightFormat::Bf16 {
            self.packed.packed_bytes += stored.num_bytes();
            return Ok(stored);
        }
        let converted = stored.quantized(self.gpu, self.format)?;
        self.packed.num_converted += parts.len();
        self.packed.packed_bytes += converted.num_bytes();
        Ok(converted)
    }

    /// The same in the checkpoint's format.
    pub fn stored(&mut self, parts: &[Part<'_>], k: usize) -> Result<DeviceWeight, EngineError> {
        if let Some(random) = self.random(parts) {
            return Ok(DeviceWeight::random(self.gpu, k, &random)?);
        }
        let n = parts.iter().map(|(_, rows)| rows).sum();
        let mut weights = Vec::with_capacity(parts.len());
        for &(name, rows) in parts {
            let weight = self.weights.take_shaped(&format!("{name}.weight"), &[rows, k])?;
            self.packed.released_bytes += weight.num_bytes();
            weights.push((rows, weight));
        }
        let formats: Vec<_> = weights.iter().map(|(_, weight)| gguf_format(weight)).collect();
        if let Some(Some((format, _))) = formats.first().copied()
            && formats.iter().all(|other| other.is_some_and(|(other, _)| other == format))
        {
            let bytes: Vec<Cow<'_, [u8]>> =
                weights.iter().map(|(_, weight)| gguf_bytes(weight)).collect::<candle_core::Result<_>>()?;
            let parts: Vec<(i32, usize, &[u8])> = formats
                .iter()
                .flatten()
                .zip(&weights)
                .zip(&bytes)
                .map(|((&(_, ggml_type), (rows, _)), bytes)| (ggml_type, *rows, bytes.as_ref()))
                .collect();
            return Ok(DeviceWeight::gguf(self.gpu, self.staging()?, format, k, &parts)?);
        }
        let values: Vec<Cow<'_, [bf16]>> =
            weights.iter().map(|(_, weight)| bf16_values(weight)).collect::<candle_core::Result<_>>()?;
        let slices: Vec<&[bf16]> = values.iter().map(AsRef::as_ref).collect();
        Ok(DeviceWeight::bf16(self.gpu, self.staging()?, n, k, &slices)?)
    }

    fn staging(&mut self) -> Result<&mut Staging, EngineError> {
        let staging = match self.staging.take() {
            Some(staging) => staging,
            None => Staging::new(self.gpu)?,
        };
        Ok(self.staging.insert(staging))
    }

    /// Rows, seed and deviation of each part, if all are still to be drawn.
    fn random(&mut self, parts: &[Part<'_>]) -> Option<Vec<(usize, u64, f32)>> {
        let drawn = parts.iter().map(|(name, rows)| {
            let random = self.weights.take_random(&format!("{name}.weight"))?;
            Some((*rows, random.seed, random.deviation))
        });
        drawn.collect()
    }
}

fn gguf_format(weight: &Weight) -> Option<(WeightFormat, i32)> {
    match weight {
        Weight::Dense(_) => None,
        Weight::Quantized(tensor) => WeightFormat::of_gguf(tensor.dtype()),
        Weight::Mapped(tensor) => WeightFormat::of_gguf(tensor.stored().dtype),
    }
}

fn gguf_bytes(weight: &Weight) -> candle_core::Result<Cow<'_, [u8]>> {
    match weight {
        Weight::Dense(_) => Ok(Cow::Borrowed(&[])),
        Weight::Quantized(tensor) => tensor.data(),
        Weight::Mapped(tensor) => Ok(Cow::Borrowed(tensor.stored().bytes)),
    }
}

/// Values as bf16; straight out of the file where they are bf16 already.
fn bf16_values(weight: &Weight) -> candle_core::Result<Cow<'_, [bf16]>> {
    if let Weight::Mapped(tensor) = weight
        && let StoredTensor { bytes, dtype: GgmlDType::BF16, .. } = tensor.stored()
    {
        // A file may begin its values at an odd byte.
        return Ok(match bytemuck::try_cast_slice(bytes) {
            Ok(values) => Cow::Borrowed(values),
            Err(_) => bytes.as_chunks().0.iter().map(|pair| bf16::from_le_bytes(*pair)).collect(),
        });
    }
    Ok(Cow::Owned(weight.clone().into_tensor()?.to_dtype(DType::BF16)?.flatten_all()?.to_vec1()?))
}
