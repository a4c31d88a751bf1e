//! Small valid model files for the loader's tests, and what every test of hostile input checks.
// Each test binary uses its own part of this.
#![allow(dead_code)]

pub mod gguf;
pub mod hf;
#[cfg(feature = "hub")]
pub mod hub;
pub mod mutate;

use aisp_engine::loader::{Checkpoint, LoadError};
use aisp_engine::model::Weight;
use candle_core::Device;

/// An error must fit on one line; a checkpoint must be usable to the last block.
pub fn check_outcome(outcome: &mut Result<Checkpoint, LoadError>) {
    match outcome {
        Err(error) => {
            let message = error.to_string();
            assert_eq!(message.lines().count(), 1, "not one line: {message:?}");
            assert!(message.len() < 2000 && !message.chars().any(char::is_control), "not printable: {message:?}");
        }
        Ok(checkpoint) => check_usable(checkpoint),
    }
}

fn check_usable(checkpoint: &mut Checkpoint) {
    assert!(checkpoint.num_parameters > 0 && checkpoint.weight_bytes > 0);
    let names: Vec<String> = checkpoint.weights.names().into_iter().map(Into::into).collect();
    assert!(!names.is_empty());
    for name in names {
        let weight = checkpoint.weights.take(&name).unwrap();
        if let Weight::Quantized(tensor) = &weight {
            assert_eq!(tensor.dequantize(&Device::Cpu).unwrap().shape(), tensor.shape());
        }
        checkpoint.weights.insert(name, weight);
    }
}
