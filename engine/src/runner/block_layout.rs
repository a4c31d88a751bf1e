//! Where the tokens of a step lie in blocks, as the CPU kernels want it: slots and tables of plain numbers.

use std::ops::Range;

use aisp_kernels::attention::flash::FlashSequence;
use candle_core::Result;

use super::step_input::StepInput;
use crate::kv_cache::{BLOCK_SIZE, KvPlacement};

/// Slots and block tables of a step, in memory that is used again by the next.
#[derive(Debug, Default)]
pub struct BlockLayout {
    /// Slot of each token, `[num_tokens]`.
    pub slots: Vec<u32>,
    /// Blocks of all sequences, one after another.
    pub tables: Vec<u32>,
    /// All sequences, with their rows of the step.
    pub sequences: Vec<FlashSequence>,
}

impl BlockLayout {
    /// Takes a step over.
    ///
    /// Errors: a sequence that does not lie in blocks.
    pub fn update(&mut self, input: &StepInput) -> Result<()> {
        self.slots.clear();
        self.tables.clear();
        self.sequences.clear();
        for sequence in &input.sequences {
            let KvPlacement::Paged { block_table } = &sequence.placement else {
                candle_core::bail!("request {} lies in one run", sequence.id)
            };
            let start = self.tables.len();
            self.tables.extend(block_table.iter().map(|block| block.0));
            let table = start..self.tables.len();
            let positions = sequence.query_start..sequence.context_len();
            let blocks = &self.tables[table.clone()];
            self.slots
                .extend(positions.map(|at| blocks[at / BLOCK_SIZE] * BLOCK_SIZE as u32 + (at % BLOCK_SIZE) as u32));
            let (rows, query_start) = (sequence.rows.clone(), sequence.query_start);
            self.sequences.push(FlashSequence { rows, query_start, block_table: table });
        }
        Ok(())
    }

    /// Leaves in `part` the sequences that have rows among these, counted from the first of these.
    pub fn cut(&self, rows: Range<usize>, part: &mut Vec<FlashSequence>) {
        part.clear();
        for whole in &self.sequences {
            let common = whole.rows.start.max(rows.start)..whole.rows.end.min(rows.end);
            if !common.is_empty() {
                part.push(FlashSequence {
                    query_start: whole.query_start + common.start - whole.rows.start,
                    rows: common.start - rows.start..common.end - rows.start,
                    block_table: whole.block_table.clone(),
                });
            }
        }
    }
}
