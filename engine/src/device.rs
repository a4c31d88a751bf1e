//! Where a model runs, as users write it: `cpu`, `cuda` or `cuda:1`.

use std::fmt;
use std::str::FromStr;

use aisp_kernels::{ProbeKind, ProbeRow};
use candle_core::Device;

use crate::error::EngineError;
use crate::loader::available_memory_bytes;

/// A kind of device; decides which optimizations apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DeviceKind {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        })
    }
}

/// The value of `--device`.
///
/// ```
/// use aisp_engine::DeviceChoice;
///
/// assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda { index: 0 }));
/// assert_eq!("cuda:3".parse::<DeviceChoice>().unwrap().to_string(), "cuda:3");
/// assert!("gpu".parse::<DeviceChoice>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DeviceChoice {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// From 0.
        index: usize,
    },
}

/// A device that cannot be named so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown device `{0}`; choose cpu, cuda or cuda:N")]
pub struct UnknownDevice(String);

impl FromStr for DeviceChoice {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        let unknown = || UnknownDevice(text.chars().filter(|c| !c.is_control()).take(40).collect());
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda { index: 0 }),
            Some(("cuda", index)) => match index.parse() {
                Ok(index @ 0..=1023) => Ok(Self::Cuda { index }),
                _ => Err(unknown()),
            },
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda { index: 0 } => f.write_str("cuda"),
            Self::Cuda { index } => write!(f, "cuda:{index}"),
        }
    }
}

impl DeviceChoice {
    /// Its kind.
    pub fn kind(self) -> DeviceKind {
        match self {
            Self::Cpu => DeviceKind::Cpu,
            Self::Cuda { .. } => DeviceKind::Cuda,
        }
    }

    /// What a GPU is called; none for the processor.
    ///
    /// Errors: a build without CUDA; no driver or device.
    pub fn name(self) -> Result<Option<String>, EngineError> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda { index } => gpu_name(index).map(Some),
        }
    }

    /// Bytes of memory that are free; none where the system does not say.
    ///
    /// Errors: as [`DeviceChoice::name`].
    pub(crate) fn free_bytes(self) -> Result<Option<u64>, EngineError> {
        match self {
            Self::Cpu => Ok(available_memory_bytes()),
            Self::Cuda { index } => gpu_free_bytes(index).map(Some),
        }
    }

    /// The device of candle's ops.
    ///
    /// Errors: a build without CUDA; no driver, library or device.
    pub(crate) fn candle(self) -> Result<Device, EngineError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda { index } => candle_cuda(index),
        }
    }
}

/// Measures what a GPU reaches; tells `next` what comes.
///
/// Cost: about 1 s, 4 GiB of the card and 256 MiB of the host.
/// Errors: a build without CUDA; no driver or device; a card that fails.
#[cfg(feature = "cuda")]
pub fn probe_gpu(index: usize, next: &mut dyn FnMut(ProbeKind)) -> Result<Vec<ProbeRow>, EngineError> {
    Ok(aisp_kernels::cuda::probe(&aisp_kernels::cuda::Gpu::open(index)?, next)?)
}

/// Measures what a GPU reaches, in a build with CUDA.
///
/// Errors: always, with the way to a build that can.
#[cfg(not(feature = "cuda"))]
pub fn probe_gpu(_: usize, _: &mut dyn FnMut(ProbeKind)) -> Result<Vec<ProbeRow>, EngineError> {
    Err(no_cuda())
}

#[cfg(feature = "cuda")]
fn candle_cuda(index: usize) -> Result<Device, EngineError> {
    // Its message is better than candle's: it says what is missing and how to get it.
    drop(aisp_kernels::cuda::Gpu::open(index)?);
    aisp_kernels::cuda::open_candle_libraries()?;
    Ok(Device::new_cuda_with_stream(index)?)
}

#[cfg(feature = "cuda")]
fn gpu_free_bytes(index: usize) -> Result<u64, EngineError> {
    Ok(aisp_kernels::cuda::Gpu::open(index)?.free_bytes()?)
}

#[cfg(not(feature = "cuda"))]
fn gpu_free_bytes(_: usize) -> Result<u64, EngineError> {
    Err(no_cuda())
}

#[cfg(feature = "cuda")]
fn gpu_name(index: usize) -> Result<String, EngineError> {
    Ok(aisp_kernels::cuda::Gpu::open(index)?.info().name.clone())
}

#[cfg(not(feature = "cuda"))]
fn gpu_name(_: usize) -> Result<String, EngineError> {
    Err(no_cuda())
}

#[cfg(not(feature = "cuda"))]
fn candle_cuda(_: usize) -> Result<Device, EngineError> {
    Err(no_cuda())
}

/// What a build without CUDA says.
#[cfg(not(feature = "cuda"))]
pub(crate) fn no_cuda() -> EngineError {
    let message = "needs a build with CUDA: `make cuda`, or cargo's `--features cuda`; or choose cpu".into();
    EngineError::InvalidSetting { name: "--device cuda", message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_shown_again() {
        for (text, device) in [
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda { index: 0 }),
            ("cuda:7", DeviceChoice::Cuda { index: 7 }),
        ] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda:0".parse(), Ok(DeviceChoice::Cuda { index: 0 }));
        for text in ["", "CPU", "cpu:0", "cuda:", "cuda:-1", "cuda:99999", "cuda:0:1", "metal"] {
            let message = text.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(message.contains("choose cpu, cuda or cuda:N"), "{message}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_how_to_get_one() {
        let message = DeviceChoice::Cuda { index: 0 }.candle().unwrap_err().to_string();
        assert!(message.contains("make cuda") && message.lines().count() == 1, "{message}");
    }
}
