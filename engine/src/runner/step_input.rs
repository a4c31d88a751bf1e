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
    /// Its next token is the most likely one and nothing else is asked of its logits: a device may choose it.
    pub greedy: bool,
}

impl SequenceInput {
    /// Tokens that the sequence has once the step is done.
    pub fn context_len(&self) -> usize {
        self.query_start + self.rows.len()
    }
}

impl StepInput {
    /// Lays out a scheduled batch. Sequences without a place in the cache are left out; the scheduler reserved one for
    /// each.
    pub fn prepare(batch: &Batch, running: &[Sequence], kv: &mut dyn KvCacheManager) -> Self {
        let mut input = Self {
            token_ids: Vec::with_capacity(batch.num_tokens),
            positions: Vec::with_capacity(batch.num_tokens),
            sequences: Vec::with_capacity(batch.sequences.len()),
            logit_rows: Vec::with_capacity(batch.sequences.len()),
            copies: kv.take_copies(),
        };
        for scheduled in &batch.sequences {
            let sequence = &running[scheduled.running_idx];
            let Some(placement) = kv.placement(scheduled.id) else { continue };
            let start = sequence.num_computed_tokens;
            let end = start + scheduled.num_new_tokens;
            let first_row = input.token_ids.len();
            input.token_ids.extend_from_slice(&sequence.tokens[start..end]);
            input.positions.extend(start as u32..end as u32);
            let rows = first_row..input.token_ids.len();
            let first_logit = input.logit_rows.len();
            let wanted = match (&sequence.prompt_logprobs, end == sequence.tokens.len()) {
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
                greedy: sequence.takes_most_likely(),
            });
        }
        input
    }
}
