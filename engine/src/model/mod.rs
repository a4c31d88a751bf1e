//! The decoder: its shape, its weights, its forward pass.

mod config;
mod decoder;
mod rope_frequencies;
mod weights;

pub use config::{Architecture, ModelConfig, RopeScaling, RopeStyle};
pub use decoder::Decoder;
pub use weights::{Weight, Weights};
