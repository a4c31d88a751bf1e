//! Rotary embedding on plain slices.
//!
//! Formula: `(a, b) -> (a cos - b sin, a sin + b cos)` for each pair of a head. Rows `[num_tokens, num_heads, head_dim]`,
//! in place; cosines and sines `[position][head_dim / 2]`. Bytes: heads read and written once, a table row a token;
//! flops: 3 a value. Loop: token, head, pairs. No sums.

use candle_core::{Result, bail};

use super::RopeStyle;
use crate::isa::Isa;
use crate::shared::{Rows, for_row_parts};
use crate::simd::{Kernel, Simd, dispatch};
use crate::team::Team;

/// Cosines and sines of every position up to a maximum.
#[derive(Debug, Clone)]
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    style: RopeStyle,
}

impl RopeTable {
    /// `frequencies` holds `head_dim / 2` radians a position. Angles are computed in f64 and stored in f32.
    pub fn new(frequencies: &[f64], num_positions: usize, style: RopeStyle) -> Self {
        let angles = (0..num_positions).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f));
        let (cos, sin) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
        Self { cos, sin, half: frequencies.len(), style }
    }

    /// Values of a head that it turns.
    pub fn head_dim(&self) -> usize {
        2 * self.half
    }

    /// Errors: a position outside the table.
    pub(super) fn check(&self, positions: &[u32]) -> Result<()> {
        let num_positions = self.cos.len() / self.half.max(1);
        match positions.iter().find(|position| **position as usize >= num_positions) {
            Some(position) => bail!("position {position} is outside a table of {num_positions}"),
            None => Ok(()),
        }
    }

    /// Turns one head in place.
    #[inline(always)]
    pub(super) fn turn(&self, position: u32, x: &mut [f32]) {
        let row = position as usize * self.half;
        let (cos, sin) = (&self.cos[row..row + self.half], &self.sin[row..row + self.half]);
        match self.style {
            RopeStyle::Neox => {
                let (a, b) = x.split_at_mut(self.half);
                for ((a, b), (cos, sin)) in a.iter_mut().zip(b).zip(cos.iter().zip(sin)) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
            RopeStyle::Interleaved => {
                for ([a, b], (cos, sin)) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    }
}

/// Turns every head of every token in place.
///
/// Shapes: `x [positions.len(), num_heads, table.head_dim()]`.
/// Errors: lengths that do not fit, a position outside the table.
pub fn rope_rows(
    x: &mut [f32],
    num_heads: usize,
    positions: &[u32],
    table: &RopeTable,
    isa: Isa,
    team: &dyn Team,
) -> Result<()> {
    let row_len = num_heads * table.head_dim();
    if x.len() != positions.len() * row_len || row_len == 0 {
        bail!("{} values are not {} tokens of {num_heads} heads of {}", x.len(), positions.len(), table.head_dim());
    }
    table.check(positions)?;
    for_row_parts(team, positions.len(), [Rows { values: x, row_len }], &|first, [x]| {
        let positions = &positions[first..first + x.len() / row_len];
        dispatch(isa, Turn { x, row_len, positions, table });
    });
    Ok(())
}

struct Turn<'a> {
    x: &'a mut [f32],
    row_len: usize,
    positions: &'a [u32],
    table: &'a RopeTable,
}

impl Kernel for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        for (row, &position) in self.x.chunks_exact_mut(self.row_len).zip(self.positions) {
            for head in row.chunks_exact_mut(self.table.head_dim()) {
                self.table.turn(position, head);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::reference;
    use crate::team::SingleThread;
    use crate::testing::{Threads, activations, nmse};

    #[test]
    fn agrees_with_the_reference_and_a_wrong_pairing_is_seen() -> Result<()> {
        let frequencies: Vec<f64> = (0..32).map(|i| 1e5f64.powf(-f64::from(i) / 32.0)).collect();
        let positions: Vec<u32> = (0..100).map(|i| i * 20 % 2048).collect();
        let x = activations(100 * 3 * 64, 5);
        for (style, other) in [(RopeStyle::Neox, RopeStyle::Interleaved), (RopeStyle::Interleaved, RopeStyle::Neox)] {
            let table = RopeTable::new(&frequencies, 2048, style);
            let expected = |style| -> Vec<f64> {
                let heads = x.chunks(64).enumerate();
                heads
                    .flat_map(|(i, head)| {
                        let head: Vec<f64> = head.iter().map(|x| f64::from(*x)).collect();
                        reference(&head, positions[i / 3] as usize, &frequencies, style)
                    })
                    .collect()
            };
            for isa in Isa::available() {
                let mut y = x.clone();
                rope_rows(&mut y, 3, &positions, &table, isa, &Threads(2))?;
                let wide: Vec<f64> = y.iter().map(|x| f64::from(*x)).collect();
                assert!(nmse(&wide, &expected(style)) < 1e-12);
                assert!(nmse(&wide, &expected(other)) > 1e-2);
                let mut alone = x[7 * 192..8 * 192].to_vec();
                rope_rows(&mut alone, 3, &positions[7..8], &table, isa, &SingleThread)?;
                assert_eq!(alone, y[7 * 192..8 * 192]);
            }
            assert!(rope_rows(&mut x.clone(), 3, &[2048; 100], &table, Isa::Portable, &SingleThread).is_err());
            assert!(rope_rows(&mut x.clone(), 4, &positions, &table, Isa::Portable, &SingleThread).is_err());
        }
        Ok(())
    }
}
