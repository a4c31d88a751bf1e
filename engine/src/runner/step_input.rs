//! Everything a model needs for one step, complete when it exists.

use std::ops::Range;

use crate::kv_cache::{BlockCopy, KvCacheManager, KvPlacement};
use crate::scheduler::Batch;
use crate::sequence::Sequence;
use crate::{RequestId, TokenId};

/// The tokens of a step, sequences one after another.
#[derive(Debug, Clone, PartialEq)]
pub struct StepInput {
    /// `[num_tokens]`.
    pub token_ids: Vec<TokenId>,
    /// Absolute position of each token, `[num_tokens]`.
    pub positions: Vec<u32>,
    /// One entry a sequence.
    pub sequences: Vec<SequenceInput>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
    /// Blocks to copy before anything is written.
    pub copies: Vec<BlockCopy>,
    /// Tokens that the step before this one chooses, and only the device knows yet; `token_ids` has 0 there.
    pub pending: Vec<PendingToken>,
}

/// A token that is not known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingToken {
    /// Its row.
    pub row: usize,
    /// Which of the wanted rows of the step before chooses it.
    pub choice: usize,
}

/// One sequence's part of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceInput {
    /// Whose.
    pub id: RequestId,
    /// Its rows in `token_ids`.
    pub rows: Range<usize>,
    /// Position of its first token in this step; earlier ones are in the cache.
    pub query_start: usize,
    /// Where its keys and values lie.
    pub placement: KvPlacement,
    /// Its entries in `logit_rows`; the last one is that of the next token, unless this is a part of a prompt.
    pub logits: Range<usize>,
    /// Who picks its next token.
    pub choice: TokenChoice,
}

/// Who picks a token from logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TokenChoice {
    /// The host.
    Host,
    /// The runner may: the most likely one.
    MostLikely,
    /// The runner: a draw.
    Drawn(Draw),
}

impl TokenChoice {
    /// Whether the runner may pick it.
    pub fn is_runners(&self) -> bool {
        !matches!(self, Self::Host)
    }
}

/// How a token is drawn; see [`crate::SamplingParams`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Over 0.
    pub temperature: f32,
    /// 0: off.
    pub top_k: usize,
    /// 1: off.
    pub top_p: f32,
    /// 0: off.
    pub min_p: f32,
    /// The place of the draw in the mass that is left, `[0, 1)`.
    pub uniform: f64,
}

impl SequenceInput {
    /// Tokens that the sequence has once the step is done.
    pub fn context_len(&self) -> usize {
        self.query_start + self.rows.len()
    }
}

impl StepInput {
    /// Lays out a scheduled batch for a runner that draws tokens or does not. Sequences without a place in the cache are
    /// left out; the scheduler reserved one for each.
    pub fn prepare(batch: &Batch, running: &[Sequence], kv: &mut dyn KvCacheManager, draws: bool) -> Self {
        let mut input = Self {
            token_ids: Vec::with_capacity(batch.num_tokens),
            positions: Vec::with_capacity(batch.num_tokens),
            sequences: Vec::with_capacity(batch.sequences.len()),
            logit_rows: Vec::with_capacity(batch.sequences.len()),
            copies: kv.take_copies(),
            pending: Vec::new(),
        };
        for scheduled in &batch.sequences {
            let sequence = &running[scheduled.running_idx];
            let Some(placement) = kv.placement(scheduled.id) else { continue };
            let start = sequence.num_computed_tokens;
            let end = start + scheduled.num_new_tokens;
            let first_row = input.token_ids.len();
            let known = sequence.tokens.len().clamp(start, end);
            input.token_ids.extend_from_slice(&sequence.tokens[start..known]);
            if known < end {
                input.pending.push(PendingToken { row: input.token_ids.len(), choice: sequence.pending_choice });
                input.token_ids.push(0);
            }
            input.positions.extend(start as u32..end as u32);
            let rows = first_row..input.token_ids.len();
            let first_logit = input.logit_rows.len();
            let wanted = match (&sequence.prompt_logprobs, end == sequence.num_tokens()) {
                (Some(_), _) => rows.clone(),
                (None, true) => rows.end - 1..rows.end,
                (None, false) => rows.end..rows.end,
            };
            input.logit_rows.extend(wanted.map(|row| row as u32));
            input.sequences.push(SequenceInput {
                id: scheduled.id,
                rows,
                query_start: start,
                placement: placement.clone(),
                logits: first_logit..input.logit_rows.len(),
                choice: match first_logit == input.logit_rows.len() {
                    // A part of a prompt brings no token.
                    true => TokenChoice::MostLikely,
                    false => sequence.choice(draws),
                },
            });
        }
        input
    }

    /// The part of a step that computes these rows. Parts that are computed in order come to the same: later ones read
    /// what earlier ones stored. Blocks are copied with the first.
    pub fn part(&self, rows: Range<usize>) -> Self {
        let first_logit = self.logit_rows.partition_point(|&row| (row as usize) < rows.start);
        let last_logit = self.logit_rows.partition_point(|&row| (row as usize) < rows.end);
        let inside = |whole: &Range<usize>, part: &Range<usize>| {
            let (start, end) = (whole.start.max(part.start), whole.end.min(part.end));
            start - part.start..end.max(start) - part.start
        };
        let cut = |whole: &SequenceInput| {
            let common = whole.rows.start.max(rows.start)..whole.rows.end.min(rows.end);
            (!common.is_empty()).then(|| SequenceInput {
                id: whole.id,
                rows: common.start - rows.start..common.end - rows.start,
                query_start: whole.query_start + common.start - whole.rows.start,
                placement: whole.placement.clone(),
                logits: inside(&whole.logits, &(first_logit..last_logit)),
                choice: whole.choice,
            })
        };
        Self {
            token_ids: self.token_ids[rows.clone()].to_vec(),
            positions: self.positions[rows.clone()].to_vec(),
            sequences: self.sequences.iter().filter_map(cut).collect(),
            logit_rows: self.logit_rows[first_logit..last_logit].iter().map(|row| row - rows.start as u32).collect(),
            copies: if rows.start == 0 { self.copies.clone() } else { Vec::new() },
            pending: self
                .pending
                .iter()
                .filter(|pending| rows.contains(&pending.row))
                .map(|pending| PendingToken { row: pending.row - rows.start, ..*pending })
                .collect(),
        }
    }

    /// Whether the runner may pick every token that this step comes to.
    pub fn is_chosen_by_runner(&self) -> bool {
        self.sequences.iter().all(|sequence| sequence.choice.is_runners() || sequence.logits.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_cache::BlockId;

    #[test]
    fn parts_have_every_row_and_logit_once() {
        let sequence = |id, rows: Range<usize>, query_start, logits| SequenceInput {
            id: RequestId(id),
            rows,
            query_start,
            placement: KvPlacement::Paged { block_table: vec![BlockId(id as u32)] },
            logits,
            choice: TokenChoice::MostLikely,
        };
        let whole = StepInput {
            token_ids: (0..10).collect(),
            positions: vec![3, 0, 1, 2, 3, 4, 5, 6, 7, 9],
            sequences: vec![sequence(0, 0..1, 3, 0..1), sequence(1, 1..9, 0, 1..4), sequence(2, 9..10, 9, 4..5)],
            logit_rows: vec![0, 6, 7, 8, 9],
            copies: vec![BlockCopy { from: BlockId(1), to: BlockId(2) }],
            pending: vec![PendingToken { row: 0, choice: 3 }, PendingToken { row: 9, choice: 1 }],
        };
        assert_eq!(whole.part(0..10), whole);
        let parts = [whole.part(0..4), whole.part(4..8), whole.part(8..10)];
        assert_eq!(parts.each_ref().map(|part| part.sequences.len()), [2, 1, 2]);
        assert_eq!(parts.each_ref().map(|part| part.logit_rows.clone()), [vec![0], vec![2, 3], vec![0, 1]]);
        assert_eq!(parts.each_ref().map(|part| part.copies.len()), [1, 0, 0]);
        assert_eq!(parts.each_ref().map(|part| part.pending.len()), [1, 0, 1]);
        assert_eq!(parts[2].pending[0], PendingToken { row: 1, choice: 1 });
        assert_eq!((parts[1].sequences[0].query_start, parts[1].sequences[0].rows.clone()), (3, 0..4));
        assert_eq!((parts[1].sequences[0].logits.clone(), parts[2].sequences[0].logits.clone()), (0..2, 0..1));
        assert_eq!(parts[2].sequences[1].logits, 1..2);
        assert!(parts[0].sequences[1].logits.is_empty());
    }
}
