//! Decides which sequences run in the next step and how many of their tokens. Pure bookkeeping: no tensor, no device,
//! no thread.
//!
//! Order within a step: sequences that generate come first, each with one token; prompts fill the rest of the token
//! budget in order of arrival. When the cache is full, the newest sequence gives its room back and is computed again
//! later.

mod admission;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Instant;

pub use admission::{AdmissionPolicy, AdmissionState, ContinuousBatching, StaticBatching};

use crate::RequestId;
use crate::kv_cache::KvCacheManager;
use crate::sequence::Sequence;

/// Bounds of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Sequences in a step.
    pub max_num_seqs: usize,
    /// Tokens in a step. A prompt that is longer on its own still runs, alone.
    pub max_num_batched_tokens: usize,
}

/// One sequence's part in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduledSequence {
    /// Whose.
    pub id: RequestId,
    /// Place in [`Scheduler::running`] until the step is over.
    pub running_idx: usize,
    /// Tokens to compute, from `num_computed_tokens` on.
    pub num_new_tokens: usize,
}

/// The decision for one step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// Who runs.
    pub sequences: Vec<ScheduledSequence>,
    /// Tokens of all.
    pub num_tokens: usize,
}

/// Totals since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SchedulerCounters {
    /// Sequences that gave their room back.
    pub num_preemptions: u64,
    /// Sequences that joined a batch already under way.
    pub num_joined_running_batch: u64,
}

/// Waiting and running sequences.
pub struct Scheduler {
    config: SchedulerConfig,
    admission: Box<dyn AdmissionPolicy>,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    counters: SchedulerCounters,
}

impl Scheduler {
    /// An empty scheduler.
    pub fn new(config: SchedulerConfig, admission: Box<dyn AdmissionPolicy>) -> Self {
        Self {
            config,
            admission,
            waiting: VecDeque::new(),
            running: Vec::new(),
            counters: SchedulerCounters::default(),
        }
    }

    /// Queues a sequence.
    pub fn add(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// Takes a sequence out, wherever it is, and frees its room.
    pub fn remove(&mut self, id: RequestId, kv: &mut dyn KvCacheManager) -> Option<Sequence> {
        kv.release(id);
        if let Some(at) = self.running.iter().position(|s| s.id == id) {
            return Some(self.running.remove(at));
        }
        let at = self.waiting.iter().position(|s| s.id == id)?;
        self.waiting.remove(at)
    }

    /// Sequences with room in the cache, oldest admission first.
    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// The same, to be updated after a step.
    pub fn running_mut(&mut self) -> &mut [Sequence] {
        &mut self.running
    }

    /// Sequences that wait for room.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Totals since the start.
    pub fn counters(&self) -> SchedulerCounters {
        self.counters
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Chooses the next step and reserves the cache room it needs. Empty only when idle.
    pub fn schedule(&mut self, kv: &mut dyn KvCacheManager, now: Instant) -> Batch {
        let mut batch = Batch::default();
        let preempted = self.schedule_decodes(kv, &mut batch);
        if !preempted {
            self.admit(kv, batch.num_tokens);
        }
        self.schedule_prefills(&mut batch);
        for scheduled in &batch.sequences {
            self.running[scheduled.running_idx].mark_scheduled(now);
        }
        batch
    }

    /// One token for every sequence that generates. Returns whether one had to give its room back.
    fn schedule_decodes(&mut self, kv: &mut dyn KvCacheManager, batch: &mut Batch) -> bool {
        let mut preempted = false;
        let mut at = 0;
        while at < self.running.len() {
            let sequence = &self.running[at];
            let (id, len) = (sequence.id, sequence.num_tokens());
            if sequence.num_uncomputed_tokens() != 1 || sequence.num_computed_tokens == 0 {
                at += 1;
            } else if kv.reserve(id, len, sequence.max_total_tokens) {
                batch.push(id, at, 1);
                at += 1;
            } else {
                // The newest gives way; it stands at the end and is not in the batch yet.
                self.preempt_newest(kv);
                preempted = true;
            }
        }
        preempted
    }

    fn preempt_newest(&mut self, kv: &mut dyn KvCacheManager) {
        if let Some(mut sequence) = self.running.pop() {
            kv.release(sequence.id);
            sequence.num_computed_tokens = 0;
            self.waiting.push_front(sequence);
            self.counters.num_preemptions += 1;
        }
    }

    fn admit(&mut self, kv: &mut dyn KvCacheManager, num_scheduled_tokens: usize) {
        let batch_was_empty = self.running.is_empty();
        let pending: usize = self.running.iter().map(|s| s.num_uncomputed_tokens()).filter(|&n| n > 1).sum();
        let mut budget_left = self.config.max_num_batched_tokens.saturating_sub(num_scheduled_tokens + pending);
        while self.running.len() < self.config.max_num_seqs
            && self.admission.may_admit(AdmissionState { batch_was_empty, budget_left })
            && let Some(sequence) = self.waiting.front()
            && kv.reserve(sequence.id, sequence.num_tokens(), sequence.max_total_tokens)
        {
            budget_left = budget_left.saturating_sub(sequence.num_tokens());
            self.counters.num_joined_running_batch += u64::from(!batch_was_empty);
            self.running.extend(self.waiting.pop_front());
        }
    }

    /// Whole prompts while the budget lasts; the first always runs, so that none waits for ever.
    fn schedule_prefills(&self, batch: &mut Batch) {
        for (at, sequence) in self.running.iter().enumerate() {
            let num_new = sequence.num_uncomputed_tokens();
            let is_prefill = num_new > 1 || sequence.num_computed_tokens == 0;
            if !is_prefill {
                continue;
            }
            let fits = batch.num_tokens + num_new <= self.config.max_num_batched_tokens;
            let first_prefill = batch.sequences.iter().all(|s| s.num_new_tokens == 1);
            if fits || first_prefill {
                batch.push(sequence.id, at, num_new);
            }
        }
    }
}

impl Batch {
    fn push(&mut self, id: RequestId, running_idx: usize, num_new_tokens: usize) {
        self.sequences.push(ScheduledSequence { id, running_idx, num_new_tokens });
        self.num_tokens += num_new_tokens;
    }
}
