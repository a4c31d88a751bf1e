//! The place of the largest value of a row, the first of equals; values that are not numbers never win.
//!
//! Formula: `min { i : x[i] = max x }`. Two passes in vectors of 16: the largest value, then its first place.
//! Bytes: the row, twice at most (the second pass ends at the place and mostly reads from cache); no sums.

use crate::Cost;
use crate::isa::Isa;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Index of the largest value; 0 of an empty row or one without a number.
pub fn argmax(row: &[f32], isa: Isa) -> usize {
    let largest = dispatch(isa, Largest { row });
    row.iter().position(|x| *x == largest).unwrap_or(0)
}

/// Whether a value of the row is not a number.
pub fn has_nan(row: &[f32], isa: Isa) -> bool {
    dispatch(isa, Numbers { row })
}

/// One read of the row.
pub fn cost(len: usize) -> Cost {
    Cost { bytes: 4 * len as u64, flops: len as u64 }
}

struct Largest<'a> {
    row: &'a [f32],
}

impl Kernel for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (vectors, rest) = self.row.as_chunks::<LANES>();
        let mut tops = [s.splat(f32::NEG_INFINITY); 4];
        let (fours, ones) = vectors.as_chunks::<4>();
        for four in fours {
            for i in 0..4 {
                tops[i] = s.max(s.load(&four[i]), tops[i]);
            }
        }
        for one in ones {
            tops[0] = s.max(s.load(one), tops[0]);
        }
        let top = s.reduce_max(s.max(s.max(tops[0], tops[1]), s.max(tops[2], tops[3])));
        rest.iter().fold(top, |top, x| if *x > top { *x } else { top })
    }
}

struct Numbers<'a> {
    row: &'a [f32],
}

impl Kernel for Numbers<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let (vectors, rest) = self.row.as_chunks::<LANES>();
        let one = s.splat(1.0);
        let mut least = one;
        for x in vectors {
            let x = s.load(x);
            least = s.min(s.zero_unless_ge(x, x, one), least);
        }
        let mut lanes = [0.0; LANES];
        s.store(&mut lanes, least);
        lanes.contains(&0.0) || rest.iter().any(|x| x.is_nan())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::activations;

    #[test]
    fn a_nan_is_found_anywhere_on_every_isa() {
        for isa in Isa::available() {
            for len in [1, 16, 17, 100] {
                let mut row = activations(len, 5);
                row[len / 2] = f32::INFINITY;
                assert!(!has_nan(&row, isa));
                for at in 0..len {
                    let kept = std::mem::replace(&mut row[at], f32::NAN);
                    assert!(has_nan(&row, isa), "{isa} {at} of {len}");
                    row[at] = kept;
                }
            }
        }
    }

    #[test]
    fn finds_the_first_of_equals_on_every_isa() {
        for isa in Isa::available() {
            for len in [1, 15, 16, 17, 63, 64, 200, 5000] {
                let mut row = activations(len, len as u64);
                for at in [0, len / 3, len / 2, len - 1] {
                    row[at] = 99.0;
                    row[len - 1] = 99.0;
                    assert_eq!(argmax(&row, isa), row.iter().position(|x| *x == 99.0).unwrap(), "{isa:?} {len}");
                    row[at] = -1.0;
                    row[len - 1] = f32::NAN;
                }
            }
            assert_eq!(argmax(&[], isa), 0);
            assert_eq!(argmax(&[f32::NAN, -2.0, -1.0, f32::NAN], isa), 2);
            assert_eq!(argmax(&[f32::NEG_INFINITY; 20], isa), 0);
        }
    }
}
