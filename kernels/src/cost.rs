//! What an op must move and compute at least, so that a measured time can be set against the machine's ceilings.

/// Work of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Bytes read and written, each operand counted once.
    pub bytes: u64,
    /// Arithmetic operations; a multiply-add is two.
    pub flops: u64,
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, flops: self.flops + other.flops }
    }
}

/// What the products of a computation multiply, in rising order of peak: each has a ceiling of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Arithmetic {
    /// f32, or narrower floats that are widened to f32 first.
    #[default]
    F32,
    /// 16-bit floats, summed in f32.
    Bf16,
    /// 8-bit integers, summed in 32 bits.
    Int8,
    /// 8-bit floats, summed in f32.
    Fp8,
}

impl Arithmetic {
    /// Every kind, in rising order of peak.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Int8, Self::Fp8];

    /// The name under which peaks are kept.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Fp8 => "fp8",
        }
    }
}
