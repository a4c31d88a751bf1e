//! The gate of a feed-forward layer on plain slices, from the packed result of one product.
//!
//! Formula: `out = g / (1 + e^-g) * u`. Layout: `x [num_rows, 2 n]`, each row `n` gates, then `n` ups; out `[num_rows, n]`.
//! Bytes: three values a result; flops: 5. Loop: row by row, 16 lanes. No sums; the exponential is attention's.

use candle_core::{Result, bail};

use crate::isa::Isa;
use crate::shared::{Rows, for_row_parts};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::team::Team;

/// Gates every row.
///
/// Shapes: `x [num_rows, 2 n]` (gate, up), `out [num_rows, n]`.
/// Errors: lengths that do not fit.
pub fn silu_mul_rows(x: &[f32], n: usize, out: &mut [f32], isa: Isa, team: &dyn Team) -> Result<()> {
    if n == 0 || x.len() != 2 * out.len() || !out.len().is_multiple_of(n) {
        bail!("{} gates and ups do not give {} rows of {n}", x.len(), out.len());
    }
    let num_rows = out.len() / n;
    for_row_parts(team, num_rows, [Rows { values: out, row_len: n }], &|first, [out]| {
        dispatch(isa, SiluMul { x: &x[2 * n * first..][..2 * out.len()], n, out });
    });
    Ok(())
}

struct SiluMul<'a> {
    x: &'a [f32],
    n: usize,
    out: &'a mut [f32],
}

impl Kernel for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, out) in self.x.chunks_exact(2 * self.n).zip(self.out.chunks_exact_mut(self.n)) {
            let (gate, up) = x.split_at(self.n);
            let ((gates, gate), (ups, up)) = (gate.as_chunks::<LANES>(), up.as_chunks::<LANES>());
            let (outs, out) = out.as_chunks_mut::<LANES>();
            for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
                let y = silu_mul(s, s.load(gate), s.load(up));
                s.store(out, y);
            }
            let (mut last_gate, mut last_up) = ([0.0; LANES], [0.0; LANES]);
            last_gate[..gate.len()].copy_from_slice(gate);
            last_up[..up.len()].copy_from_slice(up);
            let y = silu_mul(s, s.load(&last_gate), s.load(&last_up));
            s.store(&mut last_up, y);
            out.copy_from_slice(&last_up[..out.len()]);
        }
    }
}

#[inline(always)]
fn silu_mul<S: Simd>(s: S, gate: S::F, up: S::F) -> S::F {
    let exp = s.exp(s.sub(s.zero(), gate));
    s.mul(s.div(gate, s.add(s.splat(1.0), exp)), up)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::silu_mul::reference;
    use crate::team::SingleThread;
    use crate::testing::{Threads, activations, nmse};

    #[test]
    fn agrees_with_the_reference_for_one_row_and_many_on_every_isa() -> Result<()> {
        for (rows, n) in [(1, 5), (40, 512), (3, 1536), (7, 100)] {
            for isa in Isa::available() {
                let x = activations(2 * rows * n, 1);
                let mut out = vec![0.0; rows * n];
                silu_mul_rows(&x, n, &mut out, isa, &Threads(2))?;
                let pick = |half: usize| -> Vec<f64> {
                    x.chunks(2 * n).flat_map(|row| &row[half * n..(half + 1) * n]).map(|x| f64::from(*x)).collect()
                };
                let wide: Vec<f64> = out.iter().map(|x| f64::from(*x)).collect();
                assert!(nmse(&wide, &reference(&pick(0), &pick(1))) < 1e-12, "{rows}x{n} {isa:?}");
                assert!(nmse(&wide, &reference(&pick(1), &pick(0))) > 1e-3, "a swap");
                for row in 0..rows {
                    let mut alone = vec![0.0; n];
                    silu_mul_rows(&x[2 * row * n..2 * (row + 1) * n], n, &mut alone, isa, &SingleThread)?;
                    assert_eq!(alone, out[row * n..(row + 1) * n]);
                }
            }
        }
        assert!(silu_mul_rows(&[0.0; 6], 2, &mut [0.0; 3], Isa::Portable, &SingleThread).is_err());
        Ok(())
    }

    #[test]
    fn large_gates_stay_finite() -> Result<()> {
        let x = [1e30, -1e30, 200.0, -200.0, 1.0, 1.0, 1.0, 1.0];
        for isa in Isa::available() {
            let mut out = [0.0; 4];
            silu_mul_rows(&x, 4, &mut out, isa, &SingleThread)?;
            assert!(out[0] == 1e30 && out[2] == 200.0 && out[3].abs() < 1e-30, "{isa:?}: {out:?}");
        }
        Ok(())
    }
}
