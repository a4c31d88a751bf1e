//! The gate of a SwiGLU feed-forward layer: `y = silu(gate) * up` with `silu(v) = v / (1 + exp(-v))`.
//! Source: arXiv 2002.05202.

mod rows;

use candle_core::{Result, Tensor};

use crate::Cost;

pub use rows::silu_mul_rows;

/// Value by value.
///
/// Shapes: `gate`, `up` and the result are equal.
/// Errors: shapes that differ.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

/// The same in f64.
pub fn reference(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
}

/// Two reads and one write of `num_values` values of `value_bytes`.
pub fn cost(num_values: usize, value_bytes: usize) -> Cost {
    Cost { bytes: (3 * num_values * value_bytes) as u64, flops: 5 * num_values as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{nmse, tensor, values};

    #[test]
    fn agrees_with_the_reference_and_a_swap_is_seen() -> Result<()> {
        let (gate, up) = (tensor(&[7, 512], 1)?, tensor(&[7, 512], 2)?);
        let expected = reference(&values(&gate), &values(&up));
        assert!(nmse(&values(&silu_mul(&gate, &up)?), &expected) < 1e-12);
        assert!(nmse(&values(&silu_mul(&up, &gate)?), &expected) > 1e-3);
        Ok(())
    }
}
