//! What a checkpoint's weights add up to: the figures of the start-up table.

use std::collections::BTreeMap;

use candle_core::DType;

use crate::model::Weight;

use super::layout::TensorSpec;

/// Counts parameters, bytes and formats while tensors come in.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Values in all tensors.
    pub(crate) num_parameters: u64,
    /// Bytes in memory of all tensors.
    pub(crate) weight_bytes: u64,
    matrix_values_by_format: BTreeMap<String, u64>,
}

impl Tally {
    /// Adds a tensor; `file_format` is its type in the file.
    pub(crate) fn add(&mut self, spec: &TensorSpec, weight: &Weight, file_format: &str) {
        let num_values = spec.num_values();
        self.num_parameters += num_values;
        let format = match weight {
            Weight::Dense(tensor) => {
                self.weight_bytes += num_values * tensor.dtype().size_in_bytes() as u64;
                dense_format(file_format, tensor.dtype())
            }
            Weight::Quantized(tensor) => {
                self.weight_bytes += tensor.storage_size_in_bytes() as u64;
                file_format.to_owned()
            }
            Weight::Mapped(tensor) => {
                self.weight_bytes += weight.num_bytes();
                if tensor.is_quantized() { file_format.to_owned() } else { file_format.to_lowercase() }
            }
        };
        if !spec.is_vector() {
            *self.matrix_values_by_format.entry(format).or_default() += num_values;
        }
    }

    /// The formats of the matrices, most values first: `Q4_1+Q8_0`.
    pub(crate) fn weight_format(&self) -> String {
        let mut formats: Vec<_> = self.matrix_values_by_format.iter().collect();
        formats.sort_by_key(|(_, num_values)| std::cmp::Reverse(**num_values));
        formats.into_iter().map(|(format, _)| format.as_str()).collect::<Vec<_>>().join("+")
    }
}

/// `bf16`, or `bf16 as f32` when the type was converted.
fn dense_format(file_format: &str, dtype: DType) -> String {
    let file_format = file_format.to_lowercase();
    if file_format == dtype.as_str() { file_format } else { format!("{file_format} as {}", dtype.as_str()) }
}
