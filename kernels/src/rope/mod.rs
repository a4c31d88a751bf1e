//! Rotary position embedding: each pair of a head is turned by `position * frequency`. Source: arXiv 2104.09864.

mod rows;
mod store;

use candle_core::{Device, Result, Tensor};

use crate::Cost;

pub use rows::{RopeTable, rope_rows};
pub use store::{Qkv, RopeStore, rope_and_store, rope_and_store_cost};

/// Which two values of a head one rotation mixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(i, i + head_dim / 2)`: Hugging Face checkpoints and GGUF files of the Qwen family.
    Neox,
    /// `(2i, 2i + 1)`: GGUF files of the Llama family, whose Q and K rows are permuted for it.
    Interleaved,
}

/// Cosines and sines of every position up to a maximum, in f32.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    cos: Tensor,
    sin: Tensor,
    style: RopeStyle,
}

/// Cosines and sines of the positions of one step; made once and used by every layer.
#[derive(Debug, Clone)]
pub struct RotaryRows {
    cos: Tensor,
    sin: Tensor,
    style: RopeStyle,
}

impl RotaryTable {
    /// `frequencies` holds `head_dim / 2` radians a position. Angles are computed in f64 and stored in f32.
    ///
    /// Errors: allocation on the device.
    pub fn new(frequencies: &[f64], num_positions: usize, style: RopeStyle, device: &Device) -> Result<Self> {
        let angles = (0..num_positions).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
        let shape = (num_positions, frequencies.len());
        Ok(Self { cos: Tensor::from_vec(cos, shape, device)?, sin: Tensor::from_vec(sin, shape, device)?, style })
    }

    /// Picks the rows of a step.
    ///
    /// Shapes: `positions [num_tokens] u32`.
    /// Errors: a position outside the table.
    pub fn rows(&self, positions: &Tensor) -> Result<RotaryRows> {
        let pick = |table: &Tensor| table.index_select(positions, 0)?.unsqueeze(1);
        Ok(RotaryRows { cos: pick(&self.cos)?, sin: pick(&self.sin)?, style: self.style })
    }
}

impl RotaryRows {
    /// Turns every head of every token.
    ///
    /// Shapes: `x [num_tokens, num_heads, head_dim]`, result as `x`.
    /// Errors: a token count other than that of the rows.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        // Tokens stand on candle's batch axis, each with a sequence of one: no transpose is needed.
        let x = x.unsqueeze(2)?.contiguous()?; // [T, H, D] -> [T, H, 1, D]
        let (cos, sin) = (self.cos.to_dtype(x.dtype())?, self.sin.to_dtype(x.dtype())?);
        match self.style {
            RopeStyle::Neox => candle_nn::rotary_emb::rope(&x, &cos, &sin)?,
            RopeStyle::Interleaved => candle_nn::rotary_emb::rope_i(&x, &cos, &sin)?,
        }
        .squeeze(2)
    }
}

/// One head in f64.
pub fn reference(head: &[f64], position: usize, frequencies: &[f64], style: RopeStyle) -> Vec<f64> {
    let mut out = vec![0.0; head.len()];
    for (i, frequency) in frequencies.iter().enumerate() {
        let (a, b) = match style {
            RopeStyle::Neox => (i, i + head.len() / 2),
            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
        };
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        out[a] = head[a] * cos - head[b] * sin;
        out[b] = head[a] * sin + head[b] * cos;
    }
    out
}

/// One read and one write of the heads, and the table rows.
pub fn cost(num_tokens: usize, num_heads: usize, head_dim: usize, value_bytes: usize) -> Cost {
    let values = num_tokens * num_heads * head_dim;
    Cost { bytes: (2 * values + num_tokens * head_dim) as u64 * value_bytes as u64, flops: 3 * values as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{nmse, tensor, values};

    fn check(style: RopeStyle, expected_style: RopeStyle) -> Result<f64> {
        let frequencies: Vec<f64> = (0..32).map(|i| 1e5f64.powf(-f64::from(i) / 32.0)).collect();
        let positions = [0u32, 1, 7, 2047];
        let table = RotaryTable::new(&frequencies, 2048, style, &Device::Cpu)?;
        let x = tensor(&[4, 3, 64], 5)?;
        let y = table.rows(&Tensor::new(&positions, &Device::Cpu)?)?.apply(&x)?;
        let heads = values(&x);
        let expected: Vec<f64> = heads
            .chunks(64)
            .enumerate()
            .flat_map(|(i, head)| reference(head, positions[i / 3] as usize, &frequencies, expected_style))
            .collect();
        Ok(nmse(&values(&y), &expected))
    }

    #[test]
    fn agrees_with_the_reference_and_a_wrong_pairing_is_seen() -> Result<()> {
        for style in [RopeStyle::Neox, RopeStyle::Interleaved] {
            assert!(check(style, style)? < 1e-12);
        }
        assert!(check(RopeStyle::Neox, RopeStyle::Interleaved)? > 1e-2);
        Ok(())
    }
}
