//! Root-mean-square norm: `y = x / sqrt(mean(x^2) + eps) * weight`. Source: arXiv 1910.07467.

mod rows;

use candle_core::{Result, Tensor};

use crate::Cost;

pub(crate) use rows::norm_head;
pub use rows::{Norm, residual_add_cost, residual_add_rms_norm, rms_norm_in_place, rms_norm_rows};

/// Norms every row by itself.
///
/// Shapes: `x [.., n]`, `weight [n]`, result as `x`.
/// Errors: shapes that do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    candle_nn::ops::rms_norm(&x.contiguous()?, weight, eps as f32)
}

/// The same in f64.
pub fn reference(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    x.chunks(weight.len())
        .flat_map(|row| {
            let mean_square = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
            let scale = 1.0 / (mean_square + eps).sqrt();
            row.iter().zip(weight).map(move |(v, w)| v * scale * w)
        })
        .collect()
}

/// One read and one write of `x`, in values of `value_bytes`.
pub fn cost(num_rows: usize, n: usize, value_bytes: usize) -> Cost {
    Cost { bytes: (2 * num_rows * n + n) as u64 * value_bytes as u64, flops: 4 * (num_rows * n) as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bits, nmse, tensor, values};

    #[test]
    fn agrees_with_the_reference() -> Result<()> {
        for (rows, n) in [(1, 8), (5, 192), (3, 576)] {
            let (x, weight) = (tensor(&[rows, n], 1)?, tensor(&[n], 2)?);
            let expected = reference(&values(&x), &values(&weight), 1e-5);
            let distance = nmse(&values(&rms_norm(&x, &weight, 1e-5)?), &expected);
            assert!(distance < 1e-12, "{rows}x{n}: nmse {distance:e}");
        }
        Ok(())
    }

    #[test]
    fn a_wrong_eps_is_seen() -> Result<()> {
        let (x, weight) = (tensor(&[4, 64], 1)?, tensor(&[64], 2)?);
        let expected = reference(&values(&x), &values(&weight), 1e-5);
        assert!(nmse(&values(&rms_norm(&x, &weight, 1e-1)?), &expected) > 1e-7);
        Ok(())
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() -> Result<()> {
        let (x, weight) = (tensor(&[33, 192], 3)?, tensor(&[192], 4)?);
        let all = rms_norm(&x, &weight, 1e-5)?;
        for row in 0..33 {
            let alone = rms_norm(&x.narrow(0, row, 1)?, &weight, 1e-5)?;
            assert_eq!(bits(&alone), bits(&all.narrow(0, row, 1)?));
        }
        Ok(())
    }
}
