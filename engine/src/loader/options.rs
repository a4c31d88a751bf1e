//! How to load: device, compute type, seed, where the hub is.

use candle_core::{DType, Device};

use super::error::LoadError;
use super::hub::HubOptions;

/// How to load a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where the weights go.
    pub device: Device,
    /// Type of every weight that is not quantized. `None`: f32 on the CPU, bf16 elsewhere.
    pub dtype: Option<DType>,
    /// Leave matrices in the file, mapped, until they are packed. On the CPU alone.
    pub mapped: bool,
    /// Leave the matrices of a dummy model to be drawn by the device that uses them.
    pub drawn_on_device: bool,
    /// Seed of a dummy model's weights.
    pub seed: u64,
    /// Show progress bars on standard error.
    pub progress: bool,
    /// Where downloads come from and go to.
    pub hub: HubOptions,
}

impl Default for LoadOptions {
    /// On the CPU, quiet, the hub as the environment says.
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            dtype: None,
            mapped: false,
            drawn_on_device: false,
            seed: 0,
            progress: false,
            hub: HubOptions::from_env(),
        }
    }
}

impl LoadOptions {
    /// Whether matrices stay in the file.
    pub(crate) fn maps(&self) -> bool {
        self.mapped && self.device.is_cpu()
    }

    /// The type of weights that are not quantized.
    ///
    /// Errors: a type that nothing computes in.
    pub fn compute_dtype(&self) -> Result<DType, LoadError> {
        match self.dtype {
            None if self.device.is_cpu() => Ok(DType::F32),
            None => Ok(DType::BF16),
            Some(dtype @ (DType::F32 | DType::BF16 | DType::F16)) => Ok(dtype),
            Some(dtype) => Err(LoadError::UnsupportedDtype { dtype: dtype.as_str().into() }),
        }
    }
}
