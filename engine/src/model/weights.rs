//! A checkpoint's tensors under one naming scheme, whatever file they came from.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use aisp_kernels::MappedFile;
use aisp_kernels::linear::StoredTensor;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use crate::error::EngineError;

/// One tensor of a checkpoint.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Plain values.
    Dense(Tensor),
    /// Blocks of quantized values, as in a GGUF file.
    Quantized(Arc<QTensor>),
    /// Either, still in its file.
    Mapped(MappedTensor),
}

/// One tensor of a checkpoint, in the heap.
#[derive(Debug, Clone)]
pub enum HeapWeight {
    /// Plain values.
    Dense(Tensor),
    /// Blocks of quantized values.
    Quantized(Arc<QTensor>),
}

/// Bytes of a file that are there without having been read into the heap.
#[derive(Debug, Clone)]
pub enum FileBytes {
    /// Part of the program.
    Static(&'static [u8]),
    /// A file of the page cache.
    Mapped(Arc<MappedFile>),
}

impl AsRef<[u8]> for FileBytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Static(bytes) => bytes,
            Self::Mapped(file) => file,
        }
    }
}

/// A tensor in its file. The file stays mapped as long as one of its tensors lives.
#[derive(Debug, Clone)]
pub struct MappedTensor {
    file: FileBytes,
    range: Range<usize>,
    dtype: GgmlDType,
    shape: Vec<usize>,
}

impl MappedTensor {
    /// The bytes `range` of a file; `None` if they are outside of it or do not fit the shape.
    pub fn new(file: FileBytes, range: Range<usize>, dtype: GgmlDType, shape: &[usize]) -> Option<Self> {
        let num_values = shape.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim))?;
        let fits = num_values.is_multiple_of(dtype.block_size())
            && (num_values / dtype.block_size()).checked_mul(dtype.type_size()) == Some(range.len());
        file.as_ref().get(range.clone()).filter(|_| fits)?;
        Some(Self { file, range, dtype, shape: shape.to_vec() })
    }

    /// Where it lies.
    pub fn stored(&self) -> StoredTensor<'_> {
        let bytes = self.file.as_ref().get(self.range.clone()).unwrap_or_default();
        StoredTensor { bytes, dtype: self.dtype, dims: &self.shape }
    }

    /// Whether its values are in blocks.
    pub fn is_quantized(&self) -> bool {
        !matches!(self.dtype, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16)
    }
}

impl Weight {
    /// Outer dimension first: a projection is `[out_features, in_features]`.
    pub fn dims(&self) -> &[usize] {
        match self {
            Self::Dense(tensor) => tensor.dims(),
            Self::Quantized(tensor) => tensor.shape().dims(),
            Self::Mapped(tensor) => &tensor.shape,
        }
    }

    /// The same in the heap: blocks as they are, plain values too.
    ///
    /// Errors: out of memory.
    pub fn into_heap(self) -> candle_core::Result<HeapWeight> {
        Ok(match self {
            Self::Dense(tensor) => HeapWeight::Dense(tensor),
            Self::Quantized(tensor) => HeapWeight::Quantized(tensor),
            Self::Mapped(tensor) if tensor.is_quantized() => {
                HeapWeight::Quantized(Arc::new(tensor.stored().to_qtensor(&Device::Cpu)?))
            }
            Self::Mapped(tensor) => HeapWeight::Dense(tensor.stored().to_tensor(&Device::Cpu)?),
        })
    }

    /// The same in plain values: floats in the type they have, blocks as f32.
    ///
    /// Errors: out of memory.
    pub fn into_tensor(self) -> candle_core::Result<Tensor> {
        match self {
            Self::Dense(tensor) => Ok(tensor),
            Self::Quantized(tensor) => tensor.dequantize(&tensor.device()),
            Self::Mapped(tensor) => tensor.stored().to_tensor(&Device::Cpu),
        }
    }

    /// Bytes in memory.
    pub fn num_bytes(&self) -> u64 {
        match self {
            Self::Dense(tensor) => (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64,
            Self::Quantized(tensor) => tensor.storage_size_in_bytes() as u64,
            Self::Mapped(tensor) => tensor.range.len() as u64,
        }
    }
}

/// A matrix of normal values that nobody has drawn yet: the device that uses it draws it.
#[derive(Debug, Clone, PartialEq)]
pub struct RandomWeight {
    /// Outer dimension first.
    pub dims: Vec<usize>,
    /// Decides every value.
    pub seed: u64,
    /// Standard deviation; the mean is 0.
    pub deviation: f32,
}

/// Tensors by their Hugging Face names (`model.layers.0.self_attn.q_proj.weight`, `model.embed_tokens.weight`,
/// `model.norm.weight`, `lm_head.weight`); the GGUF loader renames.
#[derive(Debug, Default)]
pub struct Weights {
    tensors: HashMap<String, Weight>,
    random: HashMap<String, RandomWeight>,
}

impl Weights {
    /// Adds a tensor.
    pub fn insert(&mut self, name: impl Into<String>, weight: Weight) {
        self.tensors.insert(name.into(), weight);
    }

    /// Adds a matrix that is still to be drawn.
    pub fn insert_random(&mut self, name: impl Into<String>, weight: RandomWeight) {
        self.random.insert(name.into(), weight);
    }

    /// Takes out a matrix that is still to be drawn.
    pub fn take_random(&mut self, name: &str) -> Option<RandomWeight> {
        self.random.remove(name)
    }

    /// Takes a tensor out, so that each is used once.
    pub fn take(&mut self, name: &str) -> Option<Weight> {
        self.tensors.remove(name)
    }

    /// The same for a tensor that must be there in a shape.
    ///
    /// Errors: it is missing or has another shape.
    pub fn take_shaped(&mut self, name: &str, shape: &[usize]) -> Result<Weight, EngineError> {
        let fail = |message: String| EngineError::Weight { name: name.to_owned(), message };
        let weight = self.take(name).ok_or_else(|| fail("is missing from the checkpoint".into()))?;
        if weight.dims() != shape {
            return Err(fail(format!("has shape {:?}, the config asks for {shape:?}", weight.dims())));
        }
        Ok(weight)
    }

    /// Expands every quantized tensor to f32.
    ///
    /// Errors: out of memory.
    pub fn dequantize(&mut self) -> candle_core::Result<()> {
        for weight in self.tensors.values_mut() {
            match weight {
                Weight::Quantized(tensor) => *weight = Weight::Dense(tensor.dequantize(&tensor.device())?),
                Weight::Mapped(tensor) if tensor.is_quantized() => {
                    *weight = Weight::Dense(tensor.stored().to_tensor(&Device::Cpu)?);
                }
                Weight::Mapped(_) | Weight::Dense(_) => {}
            }
        }
        Ok(())
    }

    /// Bytes in memory of all tensors not taken yet.
    pub fn num_bytes(&self) -> u64 {
        self.tensors.values().map(Weight::num_bytes).sum()
    }

    /// How many of the tensors not taken yet are still in their file.
    pub fn num_mapped(&self) -> usize {
        self.tensors.values().filter(|weight| matches!(weight, Weight::Mapped(_))).count()
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
