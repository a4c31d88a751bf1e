//! What a step says about next tokens, in memory that is used again by the next: logits, or the token itself where the
//! device has chosen it already.

use crate::TokenId;

/// Rows of logits, `[num_rows, vocab_size]` f32, and tokens in place of some of them.
#[derive(Debug, Default)]
pub struct Logits {
    values: Vec<f32>,
    vocab_size: usize,
    chosen: Vec<Option<TokenId>>,
}

impl Logits {
    /// Makes room for a step's rows; what they held is lost.
    pub fn reset(&mut self, num_rows: usize, vocab_size: usize) -> &mut [f32] {
        self.vocab_size = vocab_size;
        self.chosen.clear();
        self.values.resize(num_rows * vocab_size, 0.0);
        &mut self.values
    }

    /// Rows there are.
    pub fn num_rows(&self) -> usize {
        (self.values.len() / self.vocab_size.max(1)).max(self.chosen.len())
    }

    /// Puts a token in the place of a row.
    pub fn choose(&mut self, index: usize, token: TokenId) {
        if self.chosen.len() <= index {
            self.chosen.resize(index + 1, None);
        }
        self.chosen[index] = Some(token);
    }

    /// The token that was chosen in place of a row.
    pub fn chosen(&self, index: usize) -> Option<TokenId> {
        self.chosen.get(index).copied().flatten()
    }

    /// One row, if it is there.
    pub fn row(&self, index: usize) -> Option<&[f32]> {
        self.values.get(index * self.vocab_size..(index + 1) * self.vocab_size)
    }

    /// The same, to be changed.
    pub fn row_mut(&mut self, index: usize) -> Option<&mut [f32]> {
        self.values.get_mut(index * self.vocab_size..(index + 1) * self.vocab_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_rows_or_tokens() {
        let mut logits = Logits::default();
        logits.reset(2, 3).fill(1.0);
        logits.choose(1, 7);
        assert_eq!((logits.num_rows(), logits.chosen(0), logits.chosen(1)), (2, None, Some(7)));
        logits.reset(0, 3);
        logits.choose(0, 4);
        logits.choose(1, 5);
        assert_eq!((logits.num_rows(), logits.chosen(1), logits.row(0)), (2, Some(5), None));
        logits.reset(1, 3);
        assert_eq!((logits.num_rows(), logits.chosen(0)), (1, None));
    }
}
