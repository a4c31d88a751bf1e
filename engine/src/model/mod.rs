//! The decoder: its shape, its weights, its forward pass.

mod config;
mod weights;

pub use config::{Architecture, ModelConfig, RopeScaling, RopeStyle};
pub use weights::{Weight, Weights};
