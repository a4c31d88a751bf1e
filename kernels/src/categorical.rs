//! What a random draw needs of a row of logits: the weight of every token, the mass of those above a floor, and the
//! tokens between two floors.
//!
//! Formula: `w[i] = exp((x[i] - max) / T)`; `mass(floor) = sum { w[i] : x[i] >= floor }`. Sums go in f32 over 256 values
//! and in f64 beyond. Bytes: the row once for each call, and the weights. Inputs hold no NaN and no infinity above.

use crate::Cost;
use crate::isa::Isa;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Bound of the relative error of [`weights`]' total, and of a mass relative to that total. The exponent is rounded to
/// f32, which costs a weight of `e^-a` at most `2e-7 (1 + a)`; the mean of `a` over a draw from `2^18` tokens stays
/// below 13. The sums of 256 add `1.2e-6` at most.
pub const RELATIVE_ERROR: f64 = 5e-6;

/// Vectors that are added up in f32.
const VECTORS_A_SUM: usize = 16;

/// The tokens at or above a floor.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Mass {
    /// Of their weights.
    pub sum: f64,
    /// How many they are.
    pub count: usize,
}

/// Fills `out` with the weights and returns their sum; `max` is the largest logit.
///
/// Shapes: `logits [vocab_size]`, `out` is resized to it.
pub fn weights(logits: &[f32], max: f32, temperature: f32, out: &mut Vec<f32>, isa: Isa) -> f64 {
    out.resize(logits.len(), 0.0);
    dispatch(isa, Weights { logits, max, scale: 1.0 / temperature, out })
}

/// The mass of the tokens whose logit is at least `floor`.
///
/// Shapes: `logits [vocab_size]`, `weights [vocab_size]`.
pub fn mass(logits: &[f32], weights: &[f32], floor: f32, isa: Isa) -> Mass {
    dispatch(isa, MassAbove { logits, weights, floor })
}

/// Puts the tokens with `low <= logit < high` into `out`, in rising order.
pub fn tokens_between(logits: &[f32], low: f32, high: f32, out: &mut Vec<u32>, isa: Isa) {
    out.clear();
    dispatch(isa, Between { logits, low, high, out });
}

/// One call of [`weights`].
pub fn cost(vocab_size: usize) -> Cost {
    Cost { bytes: 8 * vocab_size as u64, flops: 20 * vocab_size as u64 }
}

struct Weights<'a> {
    logits: &'a [f32],
    max: f32,
    scale: f32,
    out: &'a mut [f32],
}

impl Kernel for Weights<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let (max, scale) = (s.splat(self.max), s.splat(self.scale));
        let mut total = 0.0;
        let blocks = self.logits.chunks(VECTORS_A_SUM * LANES).zip(self.out.chunks_mut(VECTORS_A_SUM * LANES));
        for (logits, out) in blocks {
            let (vectors, rest) = logits.as_chunks::<LANES>();
            let (to, to_rest) = out.as_chunks_mut::<LANES>();
            let mut sum = s.zero();
            for (x, to) in vectors.iter().zip(to) {
                let weight = s.exp(s.mul(s.sub(s.load(x), max), scale));
                s.store(to, weight);
                sum = s.add(sum, weight);
            }
            if !rest.is_empty() {
                let mut last = [f32::NEG_INFINITY; LANES];
                last[..rest.len()].copy_from_slice(rest);
                let weight = s.exp(s.mul(s.sub(s.load(&last), max), scale));
                s.store(&mut last, weight);
                to_rest.copy_from_slice(&last[..rest.len()]);
                sum = s.add(sum, weight);
            }
            total += f64::from(s.reduce_add(sum));
        }
        total
    }
}

struct MassAbove<'a> {
    logits: &'a [f32],
    weights: &'a [f32],
    floor: f32,
}

impl Kernel for MassAbove<'_> {
    type Output = Mass;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Mass {
        let (floor, one) = (s.splat(self.floor), s.splat(1.0));
        let mut mass = Mass::default();
        let blocks = self.logits.chunks(VECTORS_A_SUM * LANES).zip(self.weights.chunks(VECTORS_A_SUM * LANES));
        for (logits, weights) in blocks {
            let (vectors, rest) = logits.as_chunks::<LANES>();
            let (mut sum, mut count) = (s.zero(), s.zero());
            for (x, weight) in vectors.iter().zip(weights.as_chunks::<LANES>().0) {
                let x = s.load(x);
                sum = s.add(sum, s.zero_unless_ge(x, floor, s.load(weight)));
                count = s.add(count, s.zero_unless_ge(x, floor, one));
            }
            mass.sum += f64::from(s.reduce_add(sum));
            mass.count += s.reduce_add(count) as usize;
            for (x, weight) in rest.iter().zip(&weights[LANES * vectors.len()..]) {
                if *x >= self.floor {
                    mass.sum += f64::from(*weight);
                    mass.count += 1;
                }
            }
        }
        mass
    }
}

struct Between<'a> {
    logits: &'a [f32],
    low: f32,
    high: f32,
    out: &'a mut Vec<u32>,
}

impl Kernel for Between<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const AT_ONCE: usize = 4;
        let (low, high, one) = (s.splat(self.low), s.splat(self.high), s.splat(1.0));
        for (block, logits) in self.logits.chunks(AT_ONCE * LANES).enumerate() {
            let (vectors, rest) = logits.as_chunks::<LANES>();
            let mut inside = s.zero();
            for x in vectors {
                let x = s.load(x);
                let above = s.zero_unless_ge(x, high, one);
                inside = s.add(inside, s.sub(s.zero_unless_ge(x, low, one), above));
            }
            if !rest.is_empty() || s.reduce_add(inside) > 0.0 {
                let first = block * AT_ONCE * LANES;
                let ids = logits.iter().enumerate().filter(|(_, x)| **x >= self.low && **x < self.high);
                self.out.extend(ids.map(|(at, _)| (first + at) as u32));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::activations;

    fn rows() -> impl Iterator<Item = (Vec<f32>, f32)> {
        let lens = [1, 15, 16, 17, 255, 256, 257, 1000, 49_152].into_iter();
        lens.flat_map(|len| {
            [(0.3, 1.0), (3.0, 0.05), (40.0, 2.0)].map(|(spread, temperature)| {
                let row: Vec<f32> = activations(len, len as u64 + 1).iter().map(|x| x * spread).collect();
                (row, temperature)
            })
        })
    }

    #[test]
    fn sums_are_within_their_bound_on_every_isa() {
        for isa in Isa::available() {
            for (mut row, temperature) in rows() {
                if row.len() > 20 {
                    row[3] = f32::NEG_INFINITY;
                }
                let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let exact = |x: f32| (f64::from(x - max) / f64::from(temperature)).exp();
                let exact_total: f64 = row.iter().map(|x| exact(*x)).sum();
                let mut out = Vec::new();
                let total = weights(&row, max, temperature, &mut out, isa);
                assert!((total / exact_total - 1.0).abs() < RELATIVE_ERROR, "{isa} {}: {total}", row.len());
                for floor in [f32::NEG_INFINITY, max - 9.0, max - 1.0, max, max + 1.0] {
                    let found = mass(&row, &out, floor, isa);
                    let above = row.iter().filter(|x| **x >= floor);
                    let expected: f64 = above.clone().map(|x| exact(*x)).sum();
                    assert_eq!(found.count, above.count());
                    assert!((found.sum - expected).abs() <= RELATIVE_ERROR * exact_total, "{isa} {}", row.len());
                }
            }
        }
    }

    #[test]
    fn tokens_between_two_floors_are_found_on_every_isa() {
        for isa in Isa::available() {
            for (row, _) in rows() {
                let mut found = vec![7];
                for (low, high) in [(f32::NEG_INFINITY, f32::INFINITY), (-0.1, 0.1), (row[0], row[0]), (0.0, 1.5)] {
                    tokens_between(&row, low, high, &mut found, isa);
                    let inside = (0..row.len()).filter(|i| row[*i] >= low && row[*i] < high);
                    assert_eq!(found, inside.map(|i| i as u32).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn a_wrong_temperature_is_seen() {
        let row = activations(500, 3);
        let mut out = Vec::new();
        let isa = Isa::available()[0];
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (total, wrong) = (weights(&row, max, 1.0, &mut out, isa), weights(&row, max, 1.0001, &mut out, isa));
        assert!((total / wrong - 1.0).abs() > RELATIVE_ERROR);
    }
}
