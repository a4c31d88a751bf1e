//! Compute ops of a decoder: for each a plain baseline in candle ops, a reference in f64 and a cost model.
//!
//! Invariant: ops are batch-invariant. The value computed for a row never depends on which rows stand beside it, nor
//! on how a prompt was cut. Where a candle op breaks this, the wrapper here says how it is mended; what breaks it on a GPU
//! for speed (products by wgmma and cuBLASLt, adaptive splits) is asked for by name.
//!
//! This crate knows tensors; it must not know models, schedulers or requests.
//!
//! ```
//! use aisp_kernels::rms_norm::rms_norm;
//! use candle_core::{Device, Tensor};
//!
//! let x = Tensor::new(&[[3f32, 4.0]], &Device::Cpu)?;
//! let weight = Tensor::new(&[1f32, 1.0], &Device::Cpu)?;
//! let y = rms_norm(&x, &weight, 0.0)?.to_vec2::<f32>()?;
//! assert!((y[0][0] - 3.0 / 12.5f32.sqrt()).abs() < 1e-6);
//! # Ok::<(), candle_core::Error>(())
//! ```
#![deny(unsafe_code)]

pub mod argmax;
pub mod attention;
pub mod categorical;
mod cost;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod embedding;
mod error;
mod isa;
pub mod kv;
pub mod linear;
mod mapped_file;
mod matmul;
pub mod peak;
mod probe;
pub mod rms_norm;
pub mod rope;
mod shared;
pub mod silu_mul;
mod simd;
pub mod team;
#[cfg(test)]
mod testing;

pub use cost::{Arithmetic, Cost};
pub use error::KernelError;
pub use isa::{ISA_VARIABLE, Isa};
pub use mapped_file::MappedFile;
pub use probe::{ProbeKind, ProbeRow};
