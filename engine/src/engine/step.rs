//! One step of the engine: schedule, prepare, compute, sample. With a runner that can overlap steps, the next one starts
//! before the tokens of this one are known: the device hands them on itself.
//!
//! A sequence that ends with a token nobody knew of when the next step began has a row in that step for nothing: what it
//! comes to is dropped. Its cache room may be given away at once, for the device takes steps in order.

use std::time::Instant;

use tracing::{debug_span, warn};

use super::{Engine, StepStats};
use crate::error::EngineError;
use crate::kv_cache::BLOCK_SIZE;
use crate::model::WorkTotals;
use crate::optimizations::Optimization;
use crate::request::{FinishReason, GeneratedToken, RequestOutput, TokenId};
use crate::runner::{OverlappedRunner, StepInput};
use crate::sampler::{self, Sampled, Sampler};
use crate::scheduler::Batch;
use crate::sequence::Sequence;

/// A step that began.
pub(super) struct Step {
    batch: Batch,
    input: StepInput,
    started: Instant,
}

impl Engine {
    /// Computes one step and returns what it added to each request; nothing when idle.
    ///
    /// Errors: the model failed; requests under way are lost and the engine should be dropped.
    pub fn step(&mut self) -> Result<Vec<RequestOutput>, EngineError> {
        let mut outputs = std::mem::take(&mut self.undelivered);
        let step = match self.under_way.take() {
            Some(step) => Some(step),
            None => self.begin()?,
        };
        let Some(step) = step else { return Ok(outputs) };
        if self.may_begin_next(&step) {
            self.under_way = match self.begin() {
                // Once this one has ended, sequences can give way.
                Err(error) if error.is_out_of_memory() => None,
                begun => begun?,
            };
            if let Some(next) = &self.under_way {
                self.engagement.add(Optimization::OverlappedScheduling, next.input.pending.len() as u64);
            }
        }
        if self.overlaps {
            debug_span!("forward").in_scope(|| match self.runner.overlapped() {
                Some(runner) => runner.collect(&mut self.logits),
                None => Ok(()),
            })?;
        }
        if !step.batch.sequences.iter().any(|scheduled| self.scheduler.find_running(scheduled).is_some()) {
            // All of it ended before this step: it was for nothing, and may have waited for long.
            return Ok(outputs);
        }
        debug_span!("sample").in_scope(|| self.update(&step, &mut outputs))?;
        self.work = self.work + WorkTotals::of(&step.input, self.info.work.sliding_window);
        let now = (self.clock)();
        self.last_step = Some(StepStats {
            num_tokens: step.batch.num_tokens,
            num_sequences: step.batch.sequences.len(),
            duration: now.saturating_duration_since(step.started),
        });
        if let Some(next) = &mut self.under_way {
            // It waited for this one.
            next.started = now;
        }
        debug_assert_eq!(self.kv.check_integrity(), Ok(()));
        Ok(outputs)
    }

    /// Starts the next step, if anything is left to compute. A runner that does not overlap computes all of it here. Where
    /// the device has no memory for it, sequences give way until it has.
    fn begin(&mut self) -> Result<Option<Step>, EngineError> {
        let started = (self.clock)();
        let (batch, input, keeps_choices) = loop {
            let batch = debug_span!("schedule").in_scope(|| self.scheduler.schedule(self.kv.as_mut(), started));
            if batch.sequences.is_empty() {
                return Ok(None);
            }
            let mut input = debug_span!("prepare").in_scope(|| {
                StepInput::prepare(&batch, self.scheduler.running(), self.kv.as_mut(), self.runner.draws())
            });
            input.copies.splice(0..0, std::mem::take(&mut self.unfinished_copies));
            match debug_span!("forward").in_scope(|| self.launch(&input)) {
                Ok(keeps_choices) => break (batch, input, keeps_choices),
                Err(error) if error.is_out_of_memory() => {
                    self.unfinished_copies = input.copies;
                    if !self.scheduler.give_way(self.kv.as_mut()) {
                        return Err(error);
                    }
                    let left = self.scheduler.running().len();
                    warn!(%error, "no memory for a step: at most {left} sequences run at once from now on");
                }
                Err(error) => return Err(error),
            }
        };
        let choices = input
            .sequences
            .iter()
            .map(|part| part.logits.end.checked_sub(1).filter(|_| keeps_choices && !part.logits.is_empty()));
        self.scheduler.advance(&batch, choices);
        Ok(Some(Step { batch, input, started }))
    }

    /// Hands a step to the runner. Returns whether the next one finds its choices on the device.
    fn launch(&mut self, input: &StepInput) -> Result<bool, EngineError> {
        match self.runner.overlapped().filter(|_| self.overlaps) {
            Some(runner) => {
                runner.submit(input, &mut self.engagement)?;
                Ok(runner.keeps_choices(input))
            }
            None => {
                self.runner.execute(input, &mut self.logits, &mut self.engagement)?;
                Ok(false)
            }
        }
    }

    /// Whether the next step can begin before this one ends: its tokens are known to the device, and no sequence would
    /// have to give its room back to one whose end is not known yet.
    fn may_begin_next(&mut self, step: &Step) -> bool {
        let keeps_choices = |runner: &mut dyn OverlappedRunner| runner.keeps_choices(&step.input);
        if !self.overlaps || !self.runner.overlapped().is_some_and(keeps_choices) {
            return false;
        }
        // A token may take a new block and a copy of a shared one.
        let usage = self.kv.usage();
        usage.total_tokens - usage.reserved_tokens >= 2 * BLOCK_SIZE * self.scheduler.running().len()
    }

    /// Samples a token for each sequence whose tokens are all computed, and ends those that are done.
    fn update(&mut self, step: &Step, outputs: &mut Vec<RequestOutput>) -> Result<(), EngineError> {
        let now = (self.clock)();
        let mut forks = Vec::new();
        for (scheduled, part) in step.batch.sequences.iter().zip(&step.input.sequences) {
            let Some(running_idx) = self.scheduler.find_running(scheduled) else { continue };
            let sequence = &mut self.scheduler.running_mut()[running_idx];
            let computed = &sequence.tokens[..part.context_len()];
            self.kv.commit(sequence.id, computed);
            let is_last_part = computed.len() == sequence.tokens.len();
            collect_prompt_logprobs(
                sequence,
                part.query_start,
                part.logits.clone().filter_map(|row| self.logits.row(row)),
            );
            if !is_last_part {
                continue;
            }
            let Some(last) = part.logits.end.checked_sub(1) else { continue };
            if let Some(token) = self.logits.chosen(last) {
                // A device reports logits that are not numbers by a token that is none.
                if token as usize >= self.info.vocab_size {
                    return Err(EngineError::NotANumber { id: sequence.id });
                }
                let sampled = Sampled { id: token, logprobs: None };
                outputs.push(take_token(sampled, sequence, &self.info.eos_token_ids, now));
                continue;
            }
            let Some(row) = self.logits.row_mut(last) else { continue };
            for mut fork in std::mem::take(&mut sequence.forks) {
                if !self.kv.fork(sequence.id, fork.id, part.context_len()) {
                    forks.push((fork, false));
                    continue;
                }
                fork.follow(sequence);
                outputs.push(next_token(
                    &mut row.to_vec(),
                    &mut fork,
                    &self.info.eos_token_ids,
                    self.sampler.as_mut(),
                    now,
                )?);
                forks.push((fork, true));
            }
            outputs.push(next_token(row, sequence, &self.info.eos_token_ids, self.sampler.as_mut(), now)?);
        }
        for (fork, shares) in forks {
            match shares {
                true => self.scheduler.add_fork(fork, self.kv.as_mut()),
                false => self.scheduler.add(fork),
            }
        }
        for output in outputs.iter().filter(|output| output.finish.is_some()) {
            self.scheduler.remove(output.id, self.kv.as_mut());
        }
        Ok(())
    }
}

/// Adds the log-probabilities that a part of a prompt brought. Row i is that of position `first_position` + i and
/// predicts the token after it.
fn collect_prompt_logprobs<'a>(sequence: &mut Sequence, first_position: usize, rows: impl Iterator<Item = &'a [f32]>) {
    let (Some(count), Some(logprobs)) = (sequence.params.prompt_logprobs, &mut sequence.prompt_logprobs) else {
        return;
    };
    let predicted = &sequence.tokens[..sequence.num_prompt_tokens];
    let predicted = predicted.iter().skip(first_position + 1);
    logprobs.extend(rows.zip(predicted).map(|(row, &token)| sampler::prompt_logprobs(row, token, count)));
}

/// Samples the token after a sequence's last one.
fn next_token(
    logits: &mut [f32],
    sequence: &mut Sequence,
    eos_token_ids: &[TokenId],
    sampler: &mut dyn Sampler,
    now: Instant,
) -> Result<RequestOutput, EngineError> {
    let sampled = sampler::sample(logits, sequence, eos_token_ids, sampler)
        .map_err(|_| EngineError::NotANumber { id: sequence.id })?;
    Ok(take_token(sampled, sequence, eos_token_ids, now))
}

/// Adds a token to its sequence.
fn take_token(sampled: Sampled, sequence: &mut Sequence, eos_token_ids: &[TokenId], now: Instant) -> RequestOutput {
    sequence.push(sampled.id, now);
    RequestOutput {
        id: sequence.id,
        finish: finish_reason(sequence, sampled.id, eos_token_ids),
        timings: sequence.timings(),
        tokens: vec![GeneratedToken { id: sampled.id, logprobs: sampled.logprobs }],
        prompt_logprobs: sequence.prompt_logprobs.take(),
    }
}

fn finish_reason(sequence: &Sequence, token: TokenId, eos_token_ids: &[TokenId]) -> Option<FinishReason> {
    let params = &sequence.params;
    let is_eos = !params.ignore_eos && eos_token_ids.contains(&token);
    if (is_eos || params.stop_token_ids.contains(&token)) && sequence.num_generated_tokens() > params.min_tokens {
        return Some(FinishReason::Stop);
    }
    let full = sequence.tokens.len() >= sequence.max_total_tokens;
    (full || sequence.num_generated_tokens() >= params.max_tokens).then_some(FinishReason::Length)
}
