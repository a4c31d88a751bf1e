//! What the GPU is told of a step: tables of plain numbers in one piece of memory, so that one copy brings them over.
//! Rows are put in the order that its kernels want: first the sequences with a single token, then the others.

use std::ops::Range;

use super::step_input::{SequenceInput, StepInput, TokenChoice};
use crate::error::EngineError;
use crate::kv_cache::{BLOCK_SIZE, KvPlacement};

/// Tables start at multiples of this many values: 16 bytes.
const ALIGNMENT: usize = 4;

/// Contexts up to this many tokens, one split of attention, share a recorded step; each next class is four times as long.
const FIRST_CONTEXT: usize = 256;

/// Batches up to this size have a recorded step of their own; larger ones are filled up to a power of two.
const EXACT_ROWS: usize = 8;

/// How large the tables of a step are. Two steps of one shape have their tables at the same addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StepShape {
    /// Rows, padding included.
    pub num_rows: usize,
    /// Sequences of one row, which stand first; padding included.
    pub num_decodes: usize,
    /// The others.
    pub num_prefills: usize,
    /// Rows of the longest of the others.
    pub max_query_len: usize,
    /// Rows whose next token is wanted, padding included.
    pub num_logit_rows: usize,
    /// No context is longer; a multiple of the block size.
    pub max_context_len: usize,
    /// Whether tokens are drawn; else the most likely ones are taken.
    pub draws: bool,
}

impl StepShape {
    /// A step of so many sequences of one row, padding included, each of which has a row of logits.
    pub fn decodes(num_rows: usize, max_context_len: usize, draws: bool) -> Self {
        Self {
            num_rows,
            num_decodes: num_rows,
            num_prefills: 0,
            max_query_len: 1,
            num_logit_rows: num_rows,
            max_context_len,
            draws,
        }
    }

    /// Width of a block table.
    pub fn max_blocks(&self) -> usize {
        self.max_context_len / BLOCK_SIZE
    }

    /// Whether every row belongs to a sequence of one.
    pub fn is_decode(&self) -> bool {
        self.num_prefills == 0
    }

    /// Where each table lies.
    pub fn layout(&self) -> TableLayout {
        let num_draws = if self.draws { self.num_logit_rows } else { 0 };
        let mut end = 0;
        let mut table = |len: usize| {
            let start = end;
            end = (start + len).next_multiple_of(ALIGNMENT);
            start..start + len
        };
        TableLayout {
            token_ids: table(self.num_rows),
            positions: table(self.num_rows),
            slots: table(self.num_rows),
            logit_rows: table(self.num_logit_rows),
            context_lens: table(self.num_decodes),
            prefill_context_lens: table(self.num_prefills),
            cu_seqlens: table(self.num_prefills + 1),
            block_tables: table(self.num_decodes * self.max_blocks()),
            prefill_block_tables: table(self.num_prefills * self.max_blocks()),
            temperatures: table(num_draws),
            top_ks: table(num_draws),
            top_ps: table(num_draws),
            min_ps: table(num_draws),
            uniforms: table(2 * num_draws),
            len: end,
        }
    }

    /// Values of the largest tables that steps of these bounds come to.
    pub fn most_values(max_rows: usize, max_sequences: usize, max_context_len: usize) -> usize {
        let sequences = max_sequences.min(max_rows);
        let max_context_len = max_context_len.next_multiple_of(BLOCK_SIZE);
        let shape = Self {
            num_rows: max_rows,
            num_decodes: rows_bucket(sequences),
            num_prefills: sequences,
            max_query_len: max_rows,
            num_logit_rows: max_rows,
            max_context_len,
            draws: true,
        };
        shape.layout().len
    }
}

/// Positions of the tables in their memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableLayout {
    /// `[num_rows]`; -1 - i is the token that the step before chose in its wanted row i.
    pub token_ids: Range<usize>,
    /// `[num_rows]`.
    pub positions: Range<usize>,
    /// `[num_rows]`; -1 stores nothing.
    pub slots: Range<usize>,
    /// `[num_logit_rows]`.
    pub logit_rows: Range<usize>,
    /// Of sequences of one row, `[num_decodes]`; 0 is padding.
    pub context_lens: Range<usize>,
    /// Of the others, `[num_prefills]`.
    pub prefill_context_lens: Range<usize>,
    /// First row of each of the others, counted from the first of them, and the end, `[num_prefills + 1]`.
    pub cu_seqlens: Range<usize>,
    /// `[num_decodes, max_blocks]`.
    pub block_tables: Range<usize>,
    /// `[num_prefills, max_blocks]`.
    pub prefill_block_tables: Range<usize>,
    /// Bits of f32, `[num_logit_rows]` if tokens are drawn; 0 takes the most likely one.
    pub temperatures: Range<usize>,
    /// `[num_logit_rows]` if tokens are drawn.
    pub top_ks: Range<usize>,
    /// Bits of f32, `[num_logit_rows]` if tokens are drawn.
    pub top_ps: Range<usize>,
    /// Bits of f32, `[num_logit_rows]` if tokens are drawn.
    pub min_ps: Range<usize>,
    /// Bits of f64, two values each, `[num_logit_rows]` if tokens are drawn.
    pub uniforms: Range<usize>,
    /// Values of all.
    pub len: usize,
}

/// A batch size that steps are recorded for.
pub fn rows_bucket(num_rows: usize) -> usize {
    if num_rows <= EXACT_ROWS { num_rows.max(1) } else { num_rows.next_power_of_two() }
}

/// A context length that steps are recorded for; at most `max_model_len`, rounded up to whole blocks.
pub fn context_bucket(context_len: usize, max_model_len: usize) -> usize {
    let longest = max_model_len.next_multiple_of(BLOCK_SIZE);
    let mut bucket = FIRST_CONTEXT;
    while bucket < context_len {
        bucket *= 4;
    }
    bucket.min(longest)
}

/// A step in the order of the GPU.
#[derive(Debug, Default)]
pub struct StepTables {
    /// Sequences of the step by their index in the input: those of one row first, and of these those that want logits, so
    /// that in a step of such sequences alone the wanted rows are the first on the device, in order.
    order: Vec<usize>,
    /// Row on the device of each row of the input.
    device_rows: Vec<i32>,
}

impl StepTables {
    /// The shape of a step. Steps in which every sequence has one row are filled up to a recorded size.
    pub fn shape(&mut self, input: &StepInput, max_model_len: usize) -> StepShape {
        let single = |index: &usize| input.sequences[*index].rows.len() == 1;
        let wants_logits = |index: &usize| !input.sequences[*index].logits.is_empty();
        self.order.clear();
        self.order.extend((0..input.sequences.len()).filter(|index| single(index) && wants_logits(index)));
        self.order.extend((0..input.sequences.len()).filter(|index| single(index) && !wants_logits(index)));
        let num_decodes = self.order.len();
        self.order.extend((0..input.sequences.len()).filter(|index| !single(index)));
        let longest = input.sequences.iter().map(SequenceInput::context_len).max().unwrap_or(1);
        let max_context_len = context_bucket(longest, max_model_len);
        let draws = input.sequences.iter().any(|sequence| matches!(sequence.choice, TokenChoice::Drawn(_)));
        if num_decodes == input.sequences.len() {
            // Parts of prompts of one token want no logits; the rows are there all the same.
            return StepShape::decodes(rows_bucket(num_decodes), max_context_len, draws);
        }
        StepShape {
            num_rows: input.token_ids.len(),
            num_decodes,
            num_prefills: input.sequences.len() - num_decodes,
            max_query_len: input.sequences.iter().map(|sequence| sequence.rows.len()).max().unwrap_or(1),
            num_logit_rows: input.logit_rows.len(),
            max_context_len,
            draws,
        }
    }

    /// Writes the tables of a step whose shape was just asked for.
    ///
    /// Errors: a sequence that does not lie in blocks, or has more of them than the shape allows.
    pub fn fill(&mut self, input: &StepInput, shape: &StepShape, tables: &mut [i32]) -> Result<(), EngineError> {
        let layout = shape.layout();
        self.device_rows.clear();
        self.device_rows.resize(input.token_ids.len(), 0);
        tables[layout.token_ids.clone()].fill(0);
        tables[layout.positions.clone()].fill(0);
        tables[layout.slots.clone()].fill(-1);
        tables[layout.context_lens.clone()].fill(0);
        let (mut row, mut prefill_rows, max_blocks) = (0, 0, shape.max_blocks());
        for (at, &index) in self.order.iter().enumerate() {
            let sequence = &input.sequences[index];
            let blocks = block_table(sequence)?;
            let num_blocks = sequence.context_len().div_ceil(BLOCK_SIZE);
            if num_blocks > blocks.len() || num_blocks > max_blocks {
                let message = format!("request {} has {} blocks for {num_blocks}", sequence.id, blocks.len());
                return Err(EngineError::Runner(message));
            }
            let (context_lens, block_tables, at) = if sequence.rows.len() == 1 {
                (&layout.context_lens, &layout.block_tables, at)
            } else {
                let at = at - shape.num_decodes;
                tables[layout.cu_seqlens.start + at] = prefill_rows;
                prefill_rows += sequence.rows.len() as i32;
                (&layout.prefill_context_lens, &layout.prefill_block_tables, at)
            };
            tables[context_lens.start + at] = sequence.context_len() as i32;
            let target = &mut tables[block_tables.start + at * max_blocks..][..num_blocks];
            target.iter_mut().zip(blocks).for_each(|(to, block)| *to = block.0 as i32);
            for (offset, from) in sequence.rows.clone().enumerate() {
                let position = sequence.query_start + offset;
                let slot = blocks[position / BLOCK_SIZE].0 as usize * BLOCK_SIZE + position % BLOCK_SIZE;
                tables[layout.token_ids.start + row] = input.token_ids[from] as i32;
                tables[layout.positions.start + row] = position as i32;
                tables[layout.slots.start + row] = slot as i32;
                self.device_rows[from] = row as i32;
                row += 1;
            }
        }
        for pending in &input.pending {
            let row = self.device_rows[pending.row] as usize;
            tables[layout.token_ids.start + row] = -1 - pending.choice as i32;
        }
        tables[layout.cu_seqlens.end - 1] = prefill_rows;
        if shape.draws {
            fill_draws(input, &layout, tables);
        }
        let logit_rows = &mut tables[layout.logit_rows];
        for (index, to) in logit_rows.iter_mut().enumerate() {
            *to = input.logit_rows.get(index).map_or(0, |&from| self.device_rows[from as usize]);
        }
        Ok(())
    }
}

/// Rows that are not drawn take the most likely token.
fn fill_draws(input: &StepInput, layout: &TableLayout, tables: &mut [i32]) {
    tables[layout.temperatures.clone()].fill(0);
    for sequence in &input.sequences {
        let (TokenChoice::Drawn(draw), Some(at)) = (sequence.choice, sequence.logits.clone().last()) else { continue };
        tables[layout.temperatures.start + at] = draw.temperature.to_bits() as i32;
        tables[layout.top_ks.start + at] = draw.top_k.min(i32::MAX as usize) as i32;
        tables[layout.top_ps.start + at] = draw.top_p.to_bits() as i32;
        tables[layout.min_ps.start + at] = draw.min_p.to_bits() as i32;
        let uniform = draw.uniform.to_bits();
        tables[layout.uniforms.start + 2 * at] = uniform as i32;
        tables[layout.uniforms.start + 2 * at + 1] = (uniform >> 32) as i32;
    }
}

fn block_table(sequence: &SequenceInput) -> Result<&[crate::kv_cache::BlockId], EngineError> {
    match &sequence.placement {
        KvPlacement::Paged { block_table } => Ok(block_table),
        KvPlacement::Contiguous { .. } => Err(EngineError::Runner(format!("request {} lies in one run", sequence.id))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RequestId;
    use crate::kv_cache::BlockId;
    use crate::runner::{Draw, PendingToken};

    fn input(sequences: &[(usize, usize)]) -> StepInput {
        let mut input = StepInput {
            token_ids: vec![],
            positions: vec![],
            sequences: vec![],
            logit_rows: vec![],
            copies: vec![],
            pending: vec![],
        };
        for (index, &(query_start, len)) in sequences.iter().enumerate() {
            let rows = input.token_ids.len()..input.token_ids.len() + len;
            input.token_ids.extend((0..len).map(|i| (100 * index + i) as u32));
            input.positions.extend((0..len).map(|i| (query_start + i) as u32));
            input.logit_rows.push(rows.end as u32 - 1);
            let blocks = (query_start + len).div_ceil(BLOCK_SIZE);
            input.sequences.push(SequenceInput {
                id: RequestId(index as u64),
                rows,
                query_start,
                placement: KvPlacement::Paged {
                    block_table: (0..blocks).map(|block| BlockId((10 * index + block) as u32)).collect(),
                },
                logits: index..index + 1,
                choice: TokenChoice::MostLikely,
            });
        }
        input
    }

    fn filled(input: &StepInput) -> (StepShape, Vec<i32>) {
        let mut tables = StepTables::default();
        let shape = tables.shape(input, 4096);
        let mut values = vec![77; shape.layout().len];
        tables.fill(input, &shape, &mut values).unwrap();
        (shape, values)
    }

    #[test]
    fn buckets_are_exact_then_powers_of_two() {
        let buckets: Vec<usize> = [1, 2, 7, 8, 9, 16, 17, 100, 256].map(rows_bucket).into();
        assert_eq!(buckets, [1, 2, 7, 8, 16, 16, 32, 128, 256]);
        let contexts: Vec<usize> = [1, 256, 257, 1025, 5000].map(|len| context_bucket(len, 10_000)).into();
        assert_eq!(contexts, [256, 256, 1024, 4096, 10_000]);
        assert_eq!(context_bucket(1, 100), 112);
    }

    #[test]
    fn a_decode_step_is_padded_with_rows_that_store_nothing() {
        let sequences: Vec<(usize, usize)> = (0..9).map(|i| (20 + i, 1)).collect();
        let (shape, values) = filled(&input(&sequences));
        assert_eq!((shape.num_rows, shape.num_decodes, shape.num_logit_rows), (16, 16, 16));
        let layout = shape.layout();
        assert_eq!(values[layout.slots.clone()][..2], [(1 << 4) + 4, (11 << 4) + 5]);
        assert!(values[layout.slots][9..].iter().all(|slot| *slot == -1));
        assert_eq!(values[layout.context_lens.clone()][8..], [29, 0, 0, 0, 0, 0, 0, 0]);
        assert!(values[layout.logit_rows].iter().enumerate().all(|(i, &row)| row == if i < 9 { i as i32 } else { 0 }));
    }

    #[test]
    fn single_rows_come_first_and_logits_follow_them() {
        let mut input = input(&[(0, 20), (33, 1), (16, 3)]);
        let (_, known) = filled(&input);
        input.pending.push(PendingToken { row: 20, choice: 4 });
        let (shape, mut values) = filled(&input);
        assert_eq!(std::mem::replace(&mut values[shape.layout().token_ids.start], 100), -5);
        assert_eq!(values, known);
        assert_eq!((shape.num_rows, shape.num_decodes, shape.num_prefills, shape.max_query_len), (24, 1, 2, 20));
        let layout = shape.layout();
        assert_eq!(values[layout.token_ids][..3], [100, 0, 1]);
        assert_eq!(values[layout.positions.clone()][0], 33);
        assert_eq!(values[layout.positions][21..], [16, 17, 18]);
        assert_eq!(values[layout.cu_seqlens], [0, 20, 23]);
        assert_eq!(values[layout.context_lens], [34]);
        assert_eq!(values[layout.prefill_context_lens], [20, 19]);
        // The input's rows 19, 20 and 23.
        assert_eq!(values[layout.logit_rows], [20, 0, 23]);
        let width = shape.max_blocks();
        assert_eq!(values[layout.prefill_block_tables][width..][..2], [20, 21]);
        assert_eq!(values[layout.block_tables][..3], [10, 11, 12]);
    }

    #[test]
    fn wanted_rows_of_decodes_are_the_first_and_in_order() {
        let mut input = input(&[(20, 1), (33, 1), (40, 1)]);
        // The first is a part of a prompt.
        input.logit_rows.remove(0);
        for (sequence, logits) in input.sequences.iter_mut().zip([0..0, 0..1, 1..2]) {
            sequence.logits = logits;
        }
        let (shape, values) = filled(&input);
        let layout = shape.layout();
        assert_eq!(values[layout.logit_rows][..2], [0, 1]);
        assert_eq!(values[layout.context_lens], [34, 41, 21]);
        assert_eq!(values[layout.token_ids][..3], [100, 200, 0]);
    }

    #[test]
    fn draws_stand_beside_the_rows_that_want_them() {
        let mut input = input(&[(0, 20), (33, 1), (16, 3)]);
        assert!(filled(&input).0.layout().temperatures.is_empty());
        let draw = Draw { temperature: 0.5, top_k: 9, top_p: 0.75, min_p: 0.25, uniform: 0.1 };
        input.sequences[1].choice = TokenChoice::Drawn(draw);
        let (shape, values) = filled(&input);
        let layout = shape.layout();
        let float = |at: usize| f32::from_bits(values[at] as u32);
        assert_eq!(layout.temperatures.clone().map(float).collect::<Vec<_>>(), [0.0, 0.5, 0.0]);
        assert_eq!(values[layout.top_ks.start + 1], 9);
        assert_eq!((float(layout.top_ps.start + 1), float(layout.min_ps.start + 1)), (0.75, 0.25));
        let bits =
            bytemuck::cast::<[i32; 2], u64>([values[layout.uniforms.start + 2], values[layout.uniforms.start + 3]]);
        assert_eq!(f64::from_bits(bits), 0.1);
    }

    #[test]
    fn tables_do_not_overlap_and_start_aligned() {
        for input in [input(&[(0, 20), (33, 1), (16, 3)]), input(&[(5, 1)]), input(&[(0, 7)])] {
            let shape = filled(&input).0;
            let layout = shape.layout();
            assert_eq!(shape.is_decode(), input.token_ids.len() == 1);
            assert!(layout.len <= StepShape::most_values(32, 4, 4096));
            let tables = [
                layout.token_ids,
                layout.positions,
                layout.slots,
                layout.logit_rows,
                layout.context_lens,
                layout.prefill_context_lens,
                layout.cu_seqlens,
                layout.block_tables,
                layout.prefill_block_tables,
                layout.temperatures,
                layout.uniforms,
            ];
            assert!(tables.windows(2).all(|pair| pair[0].end <= pair[1].start && pair[1].start % ALIGNMENT == 0));
            assert!(tables[10].end <= layout.len);
        }
    }

    #[test]
    fn too_few_blocks_are_an_error() {
        let mut input = input(&[(40, 1)]);
        input.sequences[0].placement = KvPlacement::Paged { block_table: vec![BlockId(0)] };
        let mut tables = StepTables::default();
        let shape = tables.shape(&input, 4096);
        assert!(tables.fill(&input, &shape, &mut vec![0; shape.layout().len]).is_err());
    }
}
