//! The tensor types of GGUF files: their numbers, names and block sizes.

use candle_core::quantized::GgmlDType;

use super::super::error::FieldError;

/// Number in the file, name as llama.cpp writes it, the type.
const TYPES: [(u32, &str, GgmlDType); 13] = [
    (0, "F32", GgmlDType::F32),
    (1, "F16", GgmlDType::F16),
    (2, "Q4_0", GgmlDType::Q4_0),
    (3, "Q4_1", GgmlDType::Q4_1),
    (6, "Q5_0", GgmlDType::Q5_0),
    (7, "Q5_1", GgmlDType::Q5_1),
    (8, "Q8_0", GgmlDType::Q8_0),
    (10, "Q2_K", GgmlDType::Q2K),
    (11, "Q3_K", GgmlDType::Q3K),
    (12, "Q4_K", GgmlDType::Q4K),
    (13, "Q5_K", GgmlDType::Q5K),
    (14, "Q6_K", GgmlDType::Q6K),
    (30, "BF16", GgmlDType::BF16),
];

/// A type that tensors of a checkpoint may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TensorType(GgmlDType);

impl TensorType {
    /// By its number in the file.
    pub(crate) fn from_number(number: u32, field: &str) -> Result<Self, FieldError> {
        TYPES.iter().find(|(known, ..)| *known == number).map(|(.., dtype)| Self(*dtype)).ok_or_else(|| {
            let names = TYPES.map(|(_, name, _)| name).join(", ");
            FieldError::unsupported(field, format!("type {number}"), format!("tensor types are {names}"))
        })
    }

    /// As llama.cpp writes it.
    pub(crate) fn name(self) -> &'static str {
        TYPES.iter().find(|(.., dtype)| *dtype == self.0).map_or("?", |(_, name, _)| name)
    }

    /// The tensor library's type.
    pub(crate) fn ggml(self) -> GgmlDType {
        self.0
    }

    /// Values in a block; rows are whole blocks.
    pub(crate) fn block_values(self) -> u64 {
        self.0.block_size() as u64
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(self) -> u64 {
        self.0.type_size() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_those_of_the_format() {
        for (number, name, block_values, block_bytes) in [
            (0, "F32", 1, 4),
            (1, "F16", 1, 2),
            (30, "BF16", 1, 2),
            (2, "Q4_0", 32, 18),
            (3, "Q4_1", 32, 20),
            (6, "Q5_0", 32, 22),
            (7, "Q5_1", 32, 24),
            (8, "Q8_0", 32, 34),
            (10, "Q2_K", 256, 84),
            (11, "Q3_K", 256, 110),
            (12, "Q4_K", 256, 144),
            (13, "Q5_K", 256, 176),
            (14, "Q6_K", 256, 210),
        ] {
            let t = TensorType::from_number(number, "f").unwrap();
            assert_eq!((t.name(), t.block_values(), t.block_bytes()), (name, block_values, block_bytes));
        }
        assert!(TensorType::from_number(9, "f").is_err());
    }
}
