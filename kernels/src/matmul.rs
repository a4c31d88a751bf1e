//! candle's matrix product, kept on the one of its routes whose order of sums is the same for every row.
//!
//! The `gemm` crate under candle sums a product with at most 256 results, or with a single row, in another order than
//! a larger one. Rows of zeros lift small products over both limits; larger ones pass untouched.

use candle_core::{D, Result, Tensor};

/// Products up to this many results take the route for small ones.
const SMALL_PRODUCT: usize = 256;

/// `a b`, each row of the result independent of how many rows `a` has.
///
/// Shapes: `a [.., m, k]`, `b [.., k, n]`, result `[.., m, n]`.
/// Errors: shapes that do not fit.
pub fn batch_invariant(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !a.device().is_cpu() {
        // cuBLAS takes no stacks of matrices whose strides are not plain; it chooses its own order of sums.
        let plain = |x: &Tensor| if x.rank() > 2 { x.contiguous() } else { Ok(x.clone()) };
        return plain(a)?.matmul(&plain(b)?);
    }
    let num_rows = a.dim(D::Minus2)?;
    let least_rows = (SMALL_PRODUCT / b.dim(D::Minus1)?.max(1) + 1).max(2);
    if num_rows >= least_rows {
        return a.matmul(b);
    }
    let padded = a.pad_with_zeros(D::Minus2, 0, least_rows - num_rows)?;
    padded.matmul(b)?.narrow(D::Minus2, 0, num_rows)
}
