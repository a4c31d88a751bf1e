//! Tensors that stay in their mapped file.

use std::ops::Range;

use candle_core::quantized::GgmlDType;

use crate::model::{FileBytes, MappedTensor, Weight};

use super::error::LoadError;

/// The bytes `range` of a file whose header has been checked; `name` stands for it in messages.
///
/// Errors: the file is no longer what its header said.
pub(crate) fn mapped_weight(
    file: &FileBytes,
    name: &str,
    range: Range<usize>,
    dtype: GgmlDType,
    shape: &[usize],
) -> Result<Weight, LoadError> {
    let changed = || std::io::Error::other("the file changed while it was opened");
    let mapped = MappedTensor::new(file.clone(), range, dtype, shape);
    mapped.map(Weight::Mapped).ok_or_else(|| LoadError::io(name, "map", &changed()))
}
