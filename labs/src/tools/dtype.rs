//! Number formats of weights and caches, by the bits one element takes.

use serde::Serialize;

/// A number format. Scales of block formats are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
    /// 16 bits.
    Bf16,
    /// 8 bits.
    Fp8,
    /// 8 bits.
    Int8,
    /// 4 bits.
    Int4,
    /// 4 bits.
    Fp4,
}

impl Dtype {
    /// Bits of one element.
    pub fn bits(self) -> u64 {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::Fp8 | Self::Int8 => 8,
            Self::Int4 | Self::Fp4 => 4,
        }
    }

    /// Bytes of one element; half a byte for 4-bit formats.
    pub fn bytes(self) -> f64 {
        self.bits() as f64 / 8.0
    }

    /// The name that `--dtype` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Fp4 => "fp4",
        }
    }
}
