//! A checkpoint's tensors under one naming scheme, whatever file they came from.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{Shape, Tensor};

/// One tensor of a checkpoint.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Plain values.
    Dense(Tensor),
    /// Blocks of quantized values, as in a GGUF file.
    Quantized(Arc<QTensor>),
}

impl Weight {
    /// Outer dimension first: a projection is `[out_features, in_features]`.
    pub fn shape(&self) -> &Shape {
        match self {
            Self::Dense(tensor) => tensor.shape(),
            Self::Quantized(tensor) => tensor.shape(),
        }
    }

    /// Bytes in memory.
    pub fn num_bytes(&self) -> u64 {
        match self {
            Self::Dense(tensor) => (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64,
            Self::Quantized(tensor) => tensor.storage_size_in_bytes() as u64,
        }
    }
}

/// Tensors by their Hugging Face names (`model.layers.0.self_attn.q_proj.weight`, `model.embed_tokens.weight`,
/// `model.norm.weight`, `lm_head.weight`); the GGUF loader renames.
#[derive(Debug, Default)]
pub struct Weights {
    tensors: HashMap<String, Weight>,
}

impl Weights {
    /// Adds a tensor.
    pub fn insert(&mut self, name: impl Into<String>, weight: Weight) {
        self.tensors.insert(name.into(), weight);
    }

    /// Takes a tensor out, so that each is used once.
    pub fn take(&mut self, name: &str) -> Option<Weight> {
        self.tensors.remove(name)
    }

    /// Expands every quantized tensor to f32.
    ///
    /// Errors: out of memory.
    pub fn dequantize(&mut self) -> candle_core::Result<()> {
        for weight in self.tensors.values_mut() {
            if let Weight::Quantized(tensor) = weight {
                *weight = Weight::Dense(tensor.dequantize(&tensor.device())?);
            }
        }
        Ok(())
    }

    /// Bytes in memory of all tensors not taken yet.
    pub fn num_bytes(&self) -> u64 {
        self.tensors.values().map(Weight::num_bytes).sum()
    }

    /// Whether the tensor is there.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names not taken yet, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }
}
