//! The decoder: its shape, its weights, its forward pass.

mod config;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod cuda_weights;
#[cfg(feature = "cuda")]
mod cuda_workspace;
mod decoder;
mod fused;
mod pack_progress;
mod rope_frequencies;
mod take;
mod weights;
mod work;

pub use config::{Architecture, ModelConfig, RopeScaling, RopeStyle};
#[cfg(feature = "cuda")]
pub use cuda::CudaDecoder;
#[cfg(feature = "cuda")]
pub use cuda_workspace::{StepAddresses, Workspace, WorkspaceSize};
pub use decoder::Decoder;
pub use fused::FusedDecoder;
pub use take::PackedWeights;
pub use weights::{FileBytes, HeapWeight, MappedTensor, RandomWeight, Weight, Weights};
pub use work::{MatrixWork, ModelWork, WorkTotals};

use aisp_kernels::linear::WeightType;
use candle_core::{DType, Device};

use self::pack_progress::PackProgress;
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
    /// What packed projections hold dense weights as.
    pub weight_type: WeightType,
    /// What CPU kernels run with.
    pub compute: Compute,
    /// Show a progress bar on standard error where packing takes long.
    pub progress: bool,
}

impl ModelContext<'_> {
    /// The decoder in candle ops, and what became of the weights that were packed for it.
    ///
    /// Errors: a tensor that is missing or does not fit the config.
    pub fn decoder(&self, weights: &mut Weights) -> Result<(Decoder, PackedWeights), EngineError> {
        let mut take = self.take(weights);
        Ok((Decoder::new(self, &mut take)?, take.packed))
    }

    /// The decoder on slices, and what became of the weights that were packed for it.
    ///
    /// Errors: a tensor that is missing, does not fit the config or cannot be packed.
    pub fn fused_decoder(&self, weights: &mut Weights) -> Result<(FusedDecoder, PackedWeights), EngineError> {
        let mut take = self.take(weights);
        Ok((FusedDecoder::new(self.config, &mut take, self.max_model_len)?, take.packed))
    }

    fn take<'b>(&'b self, weights: &'b mut Weights) -> take::Take<'b> {
        take::Take {
            progress: PackProgress::new(weights.num_bytes(), self.progress),
            weights,
            dtype: self.dtype,
            kind: self.linear,
            weight_type: self.weight_type,
            compute: &self.compute,
            packed: PackedWeights::default(),
        }
    }
}
