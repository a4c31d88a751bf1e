//! The decoder: its shape, its weights, its forward pass.

mod config;
mod decoder;
mod fused;
mod rope_frequencies;
mod take;
mod weights;

pub use config::{Architecture, ModelConfig, RopeScaling, RopeStyle};
pub use decoder::Decoder;
pub use fused::FusedDecoder;
pub use weights::{Weight, Weights};

use candle_core::{DType, Device};

use crate::compute::Compute;
use crate::error::EngineError;
use crate::plan::LinearKind;

/// What a model is built for.
#[derive(Debug, Clone)]
pub struct ModelContext<'a> {
    /// The model's shape.
    pub config: &'a ModelConfig,
    /// Positions there are.
    pub max_model_len: usize,
    /// Type of plain weights and activations.
    pub dtype: DType,
    /// Where it runs.
    pub device: &'a Device,
    /// How projections are computed.
    pub linear: LinearKind,
    /// What CPU kernels run with.
    pub compute: Compute,
}

impl ModelContext<'_> {
    /// The decoder in candle ops.
    ///
    /// Errors: a tensor that is missing or does not fit the config.
    pub fn decoder(&self, weights: &mut Weights) -> Result<Decoder, EngineError> {
        Decoder::new(self, self.take(weights))
    }

    /// The decoder on slices.
    ///
    /// Errors: a tensor that is missing, does not fit the config or cannot be packed.
    pub fn fused_decoder(&self, weights: &mut Weights) -> Result<FusedDecoder, EngineError> {
        FusedDecoder::new(self.config, self.take(weights), self.max_model_len)
    }

    fn take<'b>(&'b self, weights: &'b mut Weights) -> take::Take<'b> {
        take::Take { weights, dtype: self.dtype, kind: self.linear, compute: &self.compute }
    }
}
