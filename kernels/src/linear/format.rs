//! Packed forms of a weight matrix: what one panel of 16 output rows looks like in memory.
//!
//! Block forms: a panel is a row of cells, one for each 32 input features, in rising order; a cell is
//! `quants | scales | mins`. Quants stand in groups of four features: byte `64 g + 4 lane + j` is feature `4 g + j` of
//! output row `lane`; with nibbles the low half is feature `4 g + j`, the high one `16 + 4 g + j`. A scale or min
//! vector has one f16 or f32 for each lane. Dense forms: 16 values, one a lane, for each input feature; e4m3 ends with
//! 16 f32 scales.

use candle_core::quantized::GgmlDType;

/// Output rows of a panel: the 32-bit lanes of a 512-bit vector.
pub(crate) const LANES: usize = 16;
/// Input features that share a scale, in weights and in activations.
pub(crate) const BLOCK: usize = 32;

/// The scales at the end of a panel of e4m3.
pub(crate) const E4M3_SCALE_BYTES: usize = LANES * 4;
/// Twice the values of the e2m1 codes.
pub(crate) const E2M1_TIMES_2: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
/// The same as unsigned quants around [`E2m1::ZERO`](BlockLayout::ZERO).
pub(crate) const E2M1_QUANTS: [u8; 16] = {
    let mut quants = [0; 16];
    let mut code = 0;
    while code < 16 {
        quants[code] = (E2M1_TIMES_2[code] + 16) as u8;
        code += 1;
    }
    quants
};

/// What a kernel over block-quantized weights must know at compile time.
///
/// The value of a quant `q` is `scale (q - zero) + min`.
pub(crate) trait BlockLayout {
    /// Two quants a byte.
    const NIBBLES: bool;
    /// Scales and mins are f32, else f16.
    const WIDE: bool;
    /// One scale for 16 features, else for 32.
    const HALVES: bool;
    /// There are mins.
    const MINS: bool;
    /// The stored nibbles are codes of [`E2M1_QUANTS`].
    const CODES: bool;
    /// The quant that means zero: 0, 8, 16 or 128.
    const ZERO: i32;

    /// Bytes of the quants of a cell.
    const QUANT_BYTES: usize = LANES * BLOCK / if Self::NIBBLES { 2 } else { 1 };
    /// Bytes of one vector of scales or mins.
    const SCALE_BYTES: usize = LANES * if Self::WIDE { 4 } else { 2 };
    /// Bytes of a cell.
    const CELL_BYTES: usize =
        Self::QUANT_BYTES + Self::SCALE_BYTES * (if Self::HALVES { 2 } else { 1 } + if Self::MINS { 1 } else { 0 });
}

macro_rules! block_layouts {
    ($($(#[$doc:meta])* $name:ident: $nibbles:literal $wide:literal $halves:literal $mins:literal $codes:literal $zero:literal;)*) => {
        $($(#[$doc])* #[derive(Debug, Clone, Copy)] pub(crate) struct $name;
        impl BlockLayout for $name {
            const NIBBLES: bool = $nibbles;
            const WIDE: bool = $wide;
            const HALVES: bool = $halves;
            const MINS: bool = $mins;
            const CODES: bool = $codes;
            const ZERO: i32 = $zero;
        })*
    };
}

block_layouts! {
    // nibbles, wide, halves, mins, codes, zero
    /// Q4_0: 4.5 bits a weight.
    Nibbles: true false false false false 8;
    /// Q4_1: 5 bits.
    NibblesMin: true false false true false 0;
    /// Q8_0 and Q5_0: 8.5 bits.
    Bytes: false false false false false 128;
    /// Q5_1: 9 bits.
    BytesMin: false false false true false 0;
    /// Q4_K: 6 bits, since the two-level scales are multiplied out.
    NibblesWideMin: true true false true false 0;
    /// Q5_K: 10 bits.
    BytesWideMin: false true false true false 0;
    /// Q6_K: 10 bits.
    BytesWideHalves: false true true false false 128;
    /// fp4: 5 bits.
    E2m1: true false true false true 16;
}

/// A packed form, chosen from the element type of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PanelFormat {
    Nibbles,
    NibblesMin,
    Bytes,
    BytesMin,
    NibblesWideMin,
    BytesWideMin,
    BytesWideHalves,
    E2m1,
    E4m3,
    F32,
    F16,
    Bf16,
}

/// Runs `$body` with `$layout` standing for the block layout of `$format`, or `$dense` for a dense one.
macro_rules! with_layout {
    ($format:expr, $layout:ident => $body:expr, dense => $dense:expr) => {
        match $format {
            PanelFormat::Nibbles => {
                type $layout = $crate::linear::format::Nibbles;
                $body
            }
            PanelFormat::NibblesMin => {
                type $layout = $crate::linear::format::NibblesMin;
                $body
            }
            PanelFormat::Bytes => {
                type $layout = $crate::linear::format::Bytes;
                $body
            }
            PanelFormat::BytesMin => {
                type $layout = $crate::linear::format::BytesMin;
                $body
            }
            PanelFormat::NibblesWideMin => {
                type $layout = $crate::linear::format::NibblesWideMin;
                $body
            }
            PanelFormat::BytesWideMin => {
                type $layout = $crate::linear::format::BytesWideMin;
                $body
            }
            PanelFormat::BytesWideHalves => {
                type $layout = $crate::linear::format::BytesWideHalves;
                $body
            }
            PanelFormat::E2m1 => {
                type $layout = $crate::linear::format::E2m1;
                $body
            }
            PanelFormat::E4m3 | PanelFormat::F32 | PanelFormat::F16 | PanelFormat::Bf16 => $dense,
        }
    };
}
pub(crate) use with_layout;

impl PanelFormat {
    /// The form for a GGUF type, if there is one.
    pub(crate) fn of(dtype: GgmlDType) -> Option<Self> {
        Some(match dtype {
            GgmlDType::Q4_0 => Self::Nibbles,
            GgmlDType::Q4_1 => Self::NibblesMin,
            GgmlDType::Q5_0 | GgmlDType::Q8_0 => Self::Bytes,
            GgmlDType::Q5_1 => Self::BytesMin,
            GgmlDType::Q4K => Self::NibblesWideMin,
            GgmlDType::Q5K => Self::BytesWideMin,
            GgmlDType::Q6K => Self::BytesWideHalves,
            GgmlDType::F32 => Self::F32,
            GgmlDType::F16 => Self::F16,
            GgmlDType::BF16 => Self::Bf16,
            _ => return None,
        })
    }

    /// Whether weights are floats, multiplied with activations in f32.
    pub(crate) fn is_dense(self) -> bool {
        matches!(self, Self::E4m3 | Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Bytes of a panel of [`LANES`] rows.
    pub(crate) fn panel_bytes(self, in_features: usize) -> usize {
        with_layout!(self, L => in_features.div_ceil(BLOCK) * L::CELL_BYTES, dense => match self {
            Self::F32 => in_features * LANES * 4,
            Self::E4m3 => in_features * LANES + E4M3_SCALE_BYTES,
            _ => in_features * LANES * 2,
        })
    }
}

/// One block of one row before packing: `value = scale[half] (quant - zero) + min`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecodedBlock {
    pub(crate) quants: [u8; BLOCK],
    pub(crate) scales: [f32; 2],
    pub(crate) min: f32,
}

impl DecodedBlock {
    /// Writes the block as one lane of a cell.
    pub(crate) fn write<L: BlockLayout>(&self, cell: &mut [u8], lane: usize) {
        for (group, quants) in self.quants.chunks_exact(4).enumerate() {
            let (group, shift) = if L::NIBBLES { (group % 4, group / 4 * 4) } else { (group, 0) };
            for (j, quant) in quants.iter().enumerate() {
                cell[64 * group + 4 * lane + j] |= quant << shift;
            }
        }
        let mut vectors = cell[L::QUANT_BYTES..L::CELL_BYTES].chunks_exact_mut(L::SCALE_BYTES);
        let scales = &self.scales[..if L::HALVES { 2 } else { 1 }];
        let mins = &[self.min][..usize::from(L::MINS)];
        for (&value, vector) in scales.iter().chain(mins).zip(&mut vectors) {
            if L::WIDE {
                vector[4 * lane..4 * lane + 4].copy_from_slice(&value.to_le_bytes());
            } else {
                vector[2 * lane..2 * lane + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
            }
        }
    }
}
