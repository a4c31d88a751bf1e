//! The card: safe handles over the kernels of `cuda/`, whose C interface is `cuda/aisp_cuda.h`.
//!
//! A [`Gpu`] is one device with one stream; every op is put on that stream in order and returns at once. Memory is a
//! [`DeviceBuffer`]; ops check the sizes of their operands against their shapes. What stands in a table on the device
//! (tokens, slots, block ids) no host can check: who writes the tables answers for it.

mod buffer;
mod error;
mod ffi;
mod gemm;
mod gpu;
mod graph;
mod kv;
mod libraries;
mod linear;
mod ops;
mod probe;
mod sampling;
mod staging;
mod weight;

pub use buffer::{DeviceBuffer, DeviceSlice, PinnedBuffer};
pub use error::CudaError;
pub use gemm::{Fp8Rows, Gemm, GemmInput, GemmOperands, GemmOutput, GemmScratch};
pub use gpu::{Event, Gpu, GpuInfo};
pub use graph::Graph;
pub use kv::{CudaKv, CudaKvShape, CudaKvType};
pub use libraries::open_candle_libraries;
pub use linear::{FP8_GROUP, Fp8Groups, LINEAR_MAX_ROWS, LinearInput, LinearOutput, NextNorm, Rows};
pub use ops::{DecodeAttention, PrefillAttention, Rope, RopeNorms, decode_workspace_bytes};
pub use probe::probe;
pub use sampling::{DrawTables, MAX_DRAWN_VOCAB, argmax_workspace_bytes};
pub use staging::Staging;
pub use weight::{DeviceWeight, WeightFormat};
