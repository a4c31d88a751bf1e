//! The logits of a step, in memory that is used again by the next.

/// Rows of logits, `[num_rows, vocab_size]` f32.
#[derive(Debug, Default)]
pub struct Logits {
    values: Vec<f32>,
    vocab_size: usize,
}

impl Logits {
    /// Makes room for a step's rows; what they held is lost.
    pub fn reset(&mut self, num_rows: usize, vocab_size: usize) -> &mut [f32] {
        self.vocab_size = vocab_size;
        self.values.resize(num_rows * vocab_size, 0.0);
        &mut self.values
    }

    /// Rows there are.
    pub fn num_rows(&self) -> usize {
        self.values.len() / self.vocab_size.max(1)
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
