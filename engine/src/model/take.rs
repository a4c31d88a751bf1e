//! Takes tensors out of a checkpoint and checks their shapes.

use aisp_kernels::linear::{Linear, LinearSource, PackedLinear, WeightType};
use candle_core::{DType, Result, Tensor};

use super::pack_progress::PackProgress;
use super::weights::{HeapWeight, Weight, Weights};
use crate::compute::Compute;
use crate::error::EngineError;
use crate::plan::LinearKind;

/// A checkpoint under way to a model.
pub(super) struct Take<'a> {
    pub weights: &'a mut Weights,
    pub dtype: DType,
    pub kind: LinearKind,
    pub weight_type: WeightType,
    pub compute: &'a Compute,
    pub packed: PackedWeights,
    pub progress: PackProgress,
}

/// What became of the projections that were packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PackedWeights {
    /// Dense ones that were converted to another type.
    pub num_converted: usize,
    /// Bytes of the checkpoint that are no longer held; a tied head's are still there as the embedding.
    pub released_bytes: u64,
    /// Bytes that all of them take.
    pub packed_bytes: u64,
}

/// A projection as the checkpoint has it.
pub(super) struct Projection {
    pub weight: Weight,
    pub bias: Option<Tensor>,
    /// The weight is the embedding too.
    pub tied: bool,
}

impl Projection {
    fn source(&self) -> LinearSource<'_> {
        match &self.weight {
            Weight::Dense(weight) => LinearSource::Dense(weight, self.bias.as_ref()),
            Weight::Quantized(weight) => LinearSource::Quantized(weight, self.bias.as_ref()),
            Weight::Mapped(weight) => LinearSource::Stored(weight.stored(), self.bias.as_ref()),
        }
    }
}

impl Take<'_> {
    pub fn weight(&mut self, name: &str, shape: &[usize]) -> std::result::Result<Weight, EngineError> {
        self.weights.take_shaped(name, shape)
    }

    pub fn vector(&mut self, name: &str, len: usize) -> std::result::Result<Tensor, EngineError> {
        Ok(self.weight(name, &[len])?.into_tensor()?.to_dtype(self.dtype)?)
    }

    pub fn values(&mut self, name: &str, len: usize) -> std::result::Result<Vec<f32>, EngineError> {
        Ok(self.vector(name, len)?.to_dtype(DType::F32)?.to_vec1()?)
    }

    /// `[outputs, inputs]`.
    pub fn projection(
        &mut self,
        name: &str,
        inputs: usize,
        outputs: usize,
        bias: bool,
    ) -> std::result::Result<Projection, EngineError> {
        let weight = self.weight(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = if bias { Some(self.vector(&format!("{name}.bias"), outputs)?) } else { None };
        Ok(Projection { weight, bias, tied: false })
    }

    pub fn linear(
        &mut self,
        name: &str,
        inputs: usize,
        outputs: usize,
        bias: bool,
    ) -> std::result::Result<Linear, EngineError> {
        let projection = self.projection(name, inputs, outputs, bias)?;
        Ok(self.linear_of(projection)?)
    }

    pub fn linear_of(&mut self, projection: Projection) -> Result<Linear> {
        if self.kind == LinearKind::Packed {
            return Ok(Linear::packed(self.pack(&[projection])?, self.compute.team.clone()));
        }
        match projection.weight.into_heap()? {
            HeapWeight::Dense(weight) => Ok(Linear::dense(weight.to_dtype(self.dtype)?, projection.bias)),
            HeapWeight::Quantized(weight) => Linear::quantized(weight, projection.bias),
        }
    }

    /// Stacks projections of one input.
    pub fn pack(&mut self, parts: &[Projection]) -> Result<PackedLinear> {
        let sources: Vec<LinearSource<'_>> = parts.iter().map(Projection::source).collect();
        let Compute { isa, team } = self.compute;
        let packed = PackedLinear::pack_as(&sources, self.weight_type, *isa, team.as_ref());
        let packed = packed.map_err(candle_core::Error::wrap)?;
        self.progress.add(parts.iter().map(|part| part.weight.num_bytes()).sum());
        let released = parts.iter().filter(|part| !part.tied).map(|part| part.weight.num_bytes());
        self.packed.released_bytes += released.sum::<u64>();
        self.packed.packed_bytes += packed.weight_bytes() as u64;
        self.packed.num_converted += packed.num_converted();
        Ok(packed)
    }
}
