//! Decides which sequences run in the next step and how many of their tokens. Pure bookkeeping: no tensor, no device,
//! no thread.
//!
//! Within a step: every sequence that generates gets its token; prompts fill the rest of the token budget. Order is by
//! priority, then by arrival. When the cache is full, the last in this order gives its room back and is computed again
//! later.

mod admission;
mod prefill;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Instant;

pub use admission::{AdmissionPolicy, AdmissionState, ContinuousBatching, StaticBatching};
pub use prefill::{ChunkedPrefill, PrefillPolicy, PrefillState, WholePrompt};

use crate::RequestId;
use crate::kv_cache::KvCacheManager;
use crate::sequence::Sequence;

/// Bounds of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Sequences in a step.
    pub max_num_seqs: usize,
    /// Tokens in a step. A prompt that is longer on its own still runs, alone or in parts.
    pub max_num_batched_tokens: usize,
}

/// Who may join, and with how much of a prompt.
pub struct SchedulerPolicies {
    /// Who may join.
    pub admission: Box<dyn AdmissionPolicy>,
    /// How much of a prompt runs in a step.
    pub prefill: Box<dyn PrefillPolicy>,
}

/// One sequence's part in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduledSequence {
    /// Whose.
    pub id: RequestId,
    /// Place in [`Scheduler::running`] when it was scheduled.
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
    /// Parts of prompts that did not run in one step.
    pub num_chunks: u64,
    /// Tokens of sequences for which the prefix cache was asked.
    pub num_prefix_queried_tokens: u64,
    /// Tokens of these that it had.
    pub num_prefix_hit_tokens: u64,
}

/// Why the sequence that is next in the queue did not join in the last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WaitingReason {
    /// `max_num_seqs` sequences run.
    Sequences,
    /// The token budget is used up, or the batch is closed.
    Batch,
    /// The KV cache has no room.
    KvCache,
}

impl WaitingReason {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sequences, Self::Batch, Self::KvCache];

    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sequences => "sequences",
            Self::Batch => "batch",
            Self::KvCache => "kv_cache",
        }
    }
}

/// Waiting and running sequences.
pub struct Scheduler {
    config: SchedulerConfig,
    policies: SchedulerPolicies,
    /// By priority, then by arrival.
    waiting: VecDeque<Sequence>,
    /// By priority, then by arrival.
    running: Vec<Sequence>,
    waiting_reason: Option<WaitingReason>,
    counters: SchedulerCounters,
}

impl Scheduler {
    /// An empty scheduler.
    pub fn new(config: SchedulerConfig, policies: SchedulerPolicies) -> Self {
        Self {
            config,
            policies,
            waiting: VecDeque::new(),
            running: Vec::new(),
            waiting_reason: None,
            counters: SchedulerCounters::default(),
        }
    }

    /// Queues a sequence.
    pub fn add(&mut self, sequence: Sequence) {
        let at = self.waiting.partition_point(|other| other.rank() < sequence.rank());
        self.waiting.insert(at, sequence);
    }

    /// Lets a fork run whose tokens up to its last one lie in the cache; it waits for its turn where there is no room.
    pub fn add_fork(&mut self, sequence: Sequence, kv: &mut dyn KvCacheManager) {
        if self.running.len() < self.config.max_num_seqs {
            self.insert_running(sequence);
        } else {
            self.preempt(sequence, kv);
        }
    }

    /// Takes a sequence out, wherever it is, and frees its room. Forks that still hung on it wait on their own.
    pub fn remove(&mut self, id: RequestId, kv: &mut dyn KvCacheManager) -> Option<Sequence> {
        kv.release(id);
        let mut sequence = if let Some(at) = self.running.iter().position(|s| s.id == id) {
            self.running.remove(at)
        } else if let Some(at) = self.waiting.iter().position(|s| s.id == id) {
            self.waiting.remove(at)?
        } else {
            let mut leaders = self.running.iter_mut().chain(&mut self.waiting);
            return leaders.find_map(|leader| leader.take_fork(id));
        };
        for fork in std::mem::take(&mut sequence.forks) {
            self.add(fork);
        }
        Some(sequence)
    }

    /// Sequences with room in the cache, by priority, then by arrival.
    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// The same, to be updated after a step.
    pub fn running_mut(&mut self) -> &mut [Sequence] {
        &mut self.running
    }

    /// Takes note of a step that begins: what it computes counts as computed. `choices` has for each sequence the wanted
    /// row that chooses its next token, if the device does.
    pub fn advance(&mut self, batch: &Batch, choices: impl Iterator<Item = Option<usize>>) {
        for (scheduled, choice) in batch.sequences.iter().zip(choices) {
            self.running[scheduled.running_idx].advance(choice);
        }
    }

    /// Where a sequence of a step is in [`Scheduler::running`] now; none if it ended or was given up meanwhile.
    pub fn find_running(&self, scheduled: &ScheduledSequence) -> Option<usize> {
        match self.running.get(scheduled.running_idx) {
            Some(sequence) if sequence.id == scheduled.id => Some(scheduled.running_idx),
            _ => self.running.iter().position(|sequence| sequence.id == scheduled.id),
        }
    }

    /// Sequences that wait for room.
    pub fn num_waiting(&self) -> usize {
        let hanging: usize = self.running.iter().chain(&self.waiting).map(|leader| leader.forks.len()).sum();
        self.waiting.len() + hanging
    }

    /// Why the first of them did not join in the last step.
    pub fn waiting_reason(&self) -> Option<WaitingReason> {
        self.waiting_reason.filter(|_| !self.waiting.is_empty())
    }

    /// Totals since the start.
    pub fn counters(&self) -> SchedulerCounters {
        self.counters
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// After a step for which the device had no memory: the last of it gives way, and no more sequences than are left run
    /// at once from now on. False where nobody can: one runs alone, or a step under way still needs their room.
    pub(crate) fn give_way(&mut self, kv: &mut dyn KvCacheManager) -> bool {
        if self.running.len() < 2 || self.running.iter().any(|sequence| sequence.num_pending_tokens > 0) {
            return false;
        }
        if let Some(last) = self.running.iter().rposition(|sequence| sequence.num_scheduled_tokens > 0) {
            let last = self.running.remove(last);
            self.preempt(last, kv);
            self.counters.num_preemptions += 1;
        }
        self.config.max_num_seqs = self.running.len();
        true
    }

    /// Chooses the next step and reserves the cache room it needs. Empty only when idle, or when steps under way choose
    /// the last tokens of all.
    pub fn schedule(&mut self, kv: &mut dyn KvCacheManager, now: Instant) -> Batch {
        let batch_was_empty = self.running.is_empty();
        for sequence in &mut self.running {
            sequence.num_scheduled_tokens = 0;
        }
        let mut step = StepBudget { left: self.config.max_num_batched_tokens, num_prefill_tokens: 0, num_decodes: 0 };
        let preempted = self.schedule_decodes(kv, &mut step);
        for at in 0..self.running.len() {
            if self.running[at].num_scheduled_tokens == 0 && !self.running[at].is_complete() {
                self.schedule_prefill(at, &mut step);
            }
        }
        self.waiting_reason = Some(WaitingReason::KvCache);
        if !preempted {
            self.admit(kv, batch_was_empty, &mut step);
        }
        self.batch(now)
    }

    /// One token for every sequence that generates. Returns whether one had to give its room back.
    fn schedule_decodes(&mut self, kv: &mut dyn KvCacheManager, step: &mut StepBudget) -> bool {
        let mut preempted = false;
        let mut at = 0;
        while at < self.running.len() {
            let sequence = &mut self.running[at];
            let decodes = sequence.num_uncomputed_tokens() == 1 && sequence.num_computed_tokens > 0;
            if !decodes || sequence.is_complete() {
                at += 1;
            } else if kv.reserve(sequence.id, sequence.num_tokens(), sequence.max_total_tokens) {
                sequence.num_scheduled_tokens = 1;
                step.num_decodes += 1;
                step.left = step.left.saturating_sub(1);
                at += 1;
            } else if let Some(last) = self.running.pop() {
                // The last in order gives way; its turn in this step has not come yet.
                self.preempt(last, kv);
                self.counters.num_preemptions += 1;
                preempted = true;
            }
        }
        preempted
    }

    fn preempt(&mut self, mut sequence: Sequence, kv: &mut dyn KvCacheManager) {
        debug_assert_eq!(sequence.num_pending_tokens, 0, "a step under way still needs its room");
        kv.release(sequence.id);
        sequence.start_over();
        self.add(sequence);
    }

    fn schedule_prefill(&mut self, at: usize, step: &mut StepBudget) {
        let sequence = &mut self.running[at];
        let num_uncomputed_tokens = sequence.num_uncomputed_tokens();
        let num_new_tokens = self.policies.prefill.num_new_tokens(PrefillState {
            num_uncomputed_tokens,
            budget_left: step.left,
            num_prefill_tokens: step.num_prefill_tokens,
            num_decodes: step.num_decodes,
        });
        sequence.num_scheduled_tokens = num_new_tokens;
        step.num_prefill_tokens += num_new_tokens;
        step.left = step.left.saturating_sub(num_new_tokens);
        self.counters.num_chunks += u64::from((1..num_uncomputed_tokens).contains(&num_new_tokens));
    }

    fn admit(&mut self, kv: &mut dyn KvCacheManager, batch_was_empty: bool, step: &mut StepBudget) {
        self.waiting_reason = loop {
            let Some(sequence) = self.waiting.front() else { break None };
            if self.running.len() >= self.config.max_num_seqs {
                break Some(WaitingReason::Sequences);
            }
            if !self.policies.admission.may_admit(AdmissionState { batch_was_empty, budget_left: step.left }) {
                break Some(WaitingReason::Batch);
            }
            // Log-probabilities of a prompt are those of its computation, so it is computed.
            let num_cached_tokens = match sequence.prompt_logprobs {
                None => kv.attach_prefix(sequence.id, &sequence.tokens, sequence.cache_salt.as_ref()),
                Some(_) => 0,
            };
            if !kv.reserve(sequence.id, sequence.num_tokens(), sequence.max_total_tokens) {
                kv.release(sequence.id);
                break Some(WaitingReason::KvCache);
            }
            let Some(mut sequence) = self.waiting.pop_front() else { break None };
            sequence.num_computed_tokens = num_cached_tokens;
            self.counters.num_joined_running_batch += u64::from(!batch_was_empty);
            self.counters.num_prefix_queried_tokens += sequence.num_tokens() as u64;
            self.counters.num_prefix_hit_tokens += num_cached_tokens as u64;
            let at = self.insert_running(sequence);
            self.schedule_prefill(at, step);
        };
    }

    fn insert_running(&mut self, sequence: Sequence) -> usize {
        let at = self.running.partition_point(|other| other.rank() < sequence.rank());
        self.running.insert(at, sequence);
        at
    }

    fn batch(&mut self, now: Instant) -> Batch {
        let mut batch = Batch::default();
        for (running_idx, sequence) in self.running.iter_mut().enumerate() {
            let num_new_tokens = sequence.num_scheduled_tokens;
            if num_new_tokens > 0 {
                sequence.mark_scheduled(now);
                batch.sequences.push(ScheduledSequence { id: sequence.id, running_idx, num_new_tokens });
                batch.num_tokens += num_new_tokens;
            }
        }
        batch
    }
}

/// What a step can still take while it is planned.
struct StepBudget {
    left: usize,
    num_prefill_tokens: usize,
    num_decodes: usize,
}
