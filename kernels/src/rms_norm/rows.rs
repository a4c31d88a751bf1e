//! Root-mean-square norm on plain slices, alone and after the addition of a residual.
//!
//! Formula: `x += delta; y = x / sqrt(mean(x^2) + eps) * weight`. Rows `[num_rows, n]`, contiguous, no alignment.
//! Bytes: x and y once (x twice with delta); flops: 4 a value. Loop: row by row, the row stays in the first-level cache.
//! Accumulation: f32, four vectors of 16 lanes in turn, folded in one order; a row's bits depend on the row alone.

use candle_core::{Result, bail};

use crate::Cost;
use crate::isa::Isa;
use crate::shared::{Rows, for_row_parts};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::team::Team;

/// What a norm is made of.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// One factor a value of a row.
    pub weight: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
}

/// Norms every row of `x` into `out`.
///
/// Shapes: `x` and `out [num_rows, weight.len()]`.
/// Errors: lengths that do not fit.
pub fn rms_norm_rows(x: &[f32], norm: Norm<'_>, out: &mut [f32], isa: Isa, team: &dyn Team) -> Result<()> {
    let n = check(x.len(), out.len(), norm)?;
    let rows = Rows { values: out, row_len: n };
    for_row_parts(team, x.len() / n, [rows], &|first, [out]| {
        let x = &x[first * n..first * n + out.len()];
        dispatch(isa, NormRows { x, norm, out });
    });
    Ok(())
}

/// Norms every row of `x` in place: the heads of queries and keys.
///
/// Shapes: `x [num_rows, weight.len()]`.
/// Errors: lengths that do not fit.
pub fn rms_norm_in_place(x: &mut [f32], norm: Norm<'_>, isa: Isa, team: &dyn Team) -> Result<()> {
    let n = check(x.len(), x.len(), norm)?;
    let num_rows = x.len() / n;
    for_row_parts(team, num_rows, [Rows { values: x, row_len: n }], &|_, [x]| {
        dispatch(isa, NormInPlace { x, norm });
    });
    Ok(())
}

/// Adds a layer's result to the residual stream and norms the sum for the next: `x += delta; out = norm(x)`.
///
/// Shapes: all `[num_rows, weight.len()]`.
/// Errors: lengths that do not fit.
pub fn residual_add_rms_norm(
    x: &mut [f32],
    delta: &[f32],
    norm: Norm<'_>,
    out: &mut [f32],
    isa: Isa,
    team: &dyn Team,
) -> Result<()> {
    let n = check(x.len(), out.len(), norm)?;
    check(x.len(), delta.len(), norm)?;
    let num_rows = x.len() / n;
    let slices = [Rows { values: x, row_len: n }, Rows { values: out, row_len: n }];
    for_row_parts(team, num_rows, slices, &|first, [x, out]| {
        let delta = &delta[first * n..first * n + x.len()];
        dispatch(isa, AddNormRows { x, delta, norm, out });
    });
    Ok(())
}

/// Of [`residual_add_rms_norm`]: two reads and two writes.
pub fn residual_add_cost(num_rows: usize, n: usize) -> Cost {
    Cost { bytes: 4 * (4 * num_rows * n + n) as u64, flops: 5 * (num_rows * n) as u64 }
}

fn check(len: usize, other: usize, norm: Norm) -> Result<usize> {
    let n = norm.weight.len();
    if n == 0 || len != other || !len.is_multiple_of(n) {
        bail!("rows of {n} do not make up {len} and {other} values");
    }
    Ok(n)
}

struct NormRows<'a> {
    x: &'a [f32],
    norm: Norm<'a>,
    out: &'a mut [f32],
}

struct NormInPlace<'a> {
    x: &'a mut [f32],
    norm: Norm<'a>,
}

struct AddNormRows<'a> {
    x: &'a mut [f32],
    delta: &'a [f32],
    norm: Norm<'a>,
    out: &'a mut [f32],
}

impl Kernel for NormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.norm.weight.len();
        for (x, out) in self.x.chunks_exact(n).zip(self.out.chunks_exact_mut(n)) {
            let scale = inverse_rms(s, x, self.norm.eps);
            scale_row(x, self.norm.weight, scale, out);
        }
    }
}

impl Kernel for NormInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.x.chunks_exact_mut(self.norm.weight.len()).for_each(|x| norm_head(s, x, self.norm));
    }
}

impl Kernel for AddNormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.norm.weight.len();
        let rows = self.x.chunks_exact_mut(n).zip(self.delta.chunks_exact(n));
        for ((x, delta), out) in rows.zip(self.out.chunks_exact_mut(n)) {
            for (x, delta) in x.iter_mut().zip(delta) {
                *x += delta;
            }
            let scale = inverse_rms(s, x, self.norm.eps);
            scale_row(x, self.norm.weight, scale, out);
        }
    }
}

/// One row in place.
#[inline(always)]
pub(crate) fn norm_head<S: Simd>(s: S, x: &mut [f32], norm: Norm) {
    let scale = inverse_rms(s, x, norm.eps);
    for (x, weight) in x.iter_mut().zip(norm.weight) {
        *x = *x * scale * weight;
    }
}

#[inline(always)]
fn scale_row(x: &[f32], weight: &[f32], scale: f32, out: &mut [f32]) {
    for ((x, weight), out) in x.iter().zip(weight).zip(out) {
        *out = x * scale * weight;
    }
}

#[inline(always)]
fn inverse_rms<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    let (vectors, rest) = x.as_chunks::<LANES>();
    let (fours, ones) = vectors.as_chunks::<4>();
    let mut sums = [s.zero(); 4];
    for four in fours {
        for i in 0..4 {
            let v = s.load(&four[i]);
            sums[i] = s.fma(v, v, sums[i]);
        }
    }
    for one in ones {
        let v = s.load(one);
        sums[0] = s.fma(v, v, sums[0]);
    }
    let mut tail = [0.0; LANES];
    tail[..rest.len()].copy_from_slice(rest);
    let v = s.load(&tail);
    sums[1] = s.fma(v, v, sums[1]);
    let sum = s.reduce_add(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])));
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rms_norm::reference;
    use crate::team::SingleThread;
    use crate::testing::{Threads, activations, nmse};

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|x| f64::from(*x)).collect()
    }

    #[test]
    fn agrees_with_the_reference_for_one_row_and_many_on_every_isa() -> Result<()> {
        for (rows, n) in [(1, 8), (5, 192), (37, 576), (64, 64), (3, 100)] {
            for isa in Isa::available() {
                let (x, delta, weight) = (activations(rows * n, 1), activations(rows * n, 2), activations(n, 3));
                let norm = Norm { weight: &weight, eps: 1e-5 };
                let (mut sum, mut out) = (x.clone(), vec![0.0; rows * n]);
                residual_add_rms_norm(&mut sum, &delta, norm, &mut out, isa, &Threads(2))?;
                let expected_sum: Vec<f32> = x.iter().zip(&delta).map(|(a, b)| a + b).collect();
                assert_eq!(sum, expected_sum);
                let expected = reference(&wide(&sum), &wide(&weight), 1e-5);
                assert!(nmse(&wide(&out), &expected) < 1e-12, "{rows}x{n} {isa:?}");
                assert!(nmse(&wide(&out), &reference(&wide(&sum), &wide(&weight), 1e-1)) > 1e-9, "a wrong eps");
                let mut plain = vec![0.0; rows * n];
                rms_norm_rows(&sum, norm, &mut plain, isa, &Threads(3))?;
                assert_eq!(plain, out);
                let mut in_place = sum.clone();
                rms_norm_in_place(&mut in_place, norm, isa, &Threads(2))?;
                assert_eq!(in_place, out);
                for row in 0..rows {
                    let mut alone = vec![0.0; n];
                    rms_norm_rows(&sum[row * n..(row + 1) * n], norm, &mut alone, isa, &SingleThread)?;
                    assert_eq!(alone, out[row * n..(row + 1) * n]);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn lengths_that_do_not_fit_are_errors() {
        let norm = Norm { weight: &[1.0; 4], eps: 0.0 };
        assert!(rms_norm_rows(&[0.0; 6], norm, &mut [0.0; 6], Isa::Portable, &SingleThread).is_err());
        assert!(rms_norm_rows(&[0.0; 8], norm, &mut [0.0; 4], Isa::Portable, &SingleThread).is_err());
        let empty = Norm { weight: &[], eps: 0.0 };
        assert!(rms_norm_in_place(&mut [], empty, Isa::Portable, &SingleThread).is_err());
    }
}
