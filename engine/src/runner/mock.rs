//! A runner without a model: the same logits for the same context, a step time of choice and faults on request. It
//! stands behind the same engine, so that scheduler, cache and HTTP code can be tested at speed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::{Logits, ModelRunner, OverlappedRunner, StepInput};
use crate::components::Engagement;
use crate::error::EngineError;
use crate::kv_cache::{BLOCK_SIZE, KvPlacement};
use crate::{RequestId, TokenId};

/// What goes wrong, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MockFault {
    /// The step with this number, from 0, returns an error.
    ErrorAtStep(u64),
    /// The step with this number panics.
    PanicAtStep(u64),
    /// The device has no memory for steps of more sequences.
    OutOfMemoryAbove(usize),
}

/// Answers every context with logits made from a hash of it. It stores a hash for each cache slot and recomputes it
/// from the slots, so a cache mix-up changes the answer as it would with a model.
#[derive(Debug)]
pub struct MockRunner {
    vocab_size: usize,
    step_time: Duration,
    fault: Option<MockFault>,
    num_steps: u64,
    slots: HashMap<usize, u64>,
    choices: Vec<TokenId>,
    under_way: VecDeque<Logits>,
}

impl MockRunner {
    /// Over a vocabulary of `vocab_size` tokens.
    pub fn new(vocab_size: usize) -> Self {
        Self {
            vocab_size,
            step_time: Duration::ZERO,
            fault: None,
            num_steps: 0,
            slots: HashMap::new(),
            choices: Vec::new(),
            under_way: VecDeque::new(),
        }
    }

    /// Every step takes this long.
    pub fn with_step_time(mut self, step_time: Duration) -> Self {
        self.step_time = step_time;
        self
    }

    /// Something goes wrong.
    pub fn with_fault(mut self, fault: MockFault) -> Self {
        self.fault = Some(fault);
        self
    }

    fn inject(&self, step: u64, input: &StepInput) -> Result<(), EngineError> {
        match self.fault {
            Some(MockFault::OutOfMemoryAbove(most)) if input.sequences.len() > most => {
                Err(candle_core::Error::msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")").into())
            }
            Some(MockFault::ErrorAtStep(at)) if at == step => Err(EngineError::Runner("injected fault".into())),
            #[expect(clippy::panic, reason = "the fault to inject is a panic")]
            Some(MockFault::PanicAtStep(at)) if at == step => panic!("injected panic"),
            _ => Ok(()),
        }
    }

    /// The one token that a context hash answers with.
    fn favourite(&self, hash: u64) -> usize {
        (mix(hash) % self.vocab_size as u64) as usize
    }
}

fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 30;
    hash = hash.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash ^= hash >> 27;
    hash.wrapping_mul(0x94d0_49bb_1331_11eb) ^ (hash >> 31)
}

fn slot(placement: &KvPlacement, position: usize) -> usize {
    match placement {
        KvPlacement::Contiguous { start_slot } => start_slot + position,
        KvPlacement::Paged { block_table } => {
            block_table[position / BLOCK_SIZE].0 as usize * BLOCK_SIZE + position % BLOCK_SIZE
        }
    }
}

impl ModelRunner for MockRunner {
    fn execute(
        &mut self,
        input: &StepInput,
        logits: &mut Logits,
        _engagement: &mut Engagement,
    ) -> Result<(), EngineError> {
        let step = self.num_steps;
        self.num_steps += 1;
        self.inject(step, input)?;
        if !self.step_time.is_zero() {
            std::thread::sleep(self.step_time);
        }
        for copy in &input.copies {
            for at in 0..BLOCK_SIZE {
                let from = self.slots.get(&(copy.from.0 as usize * BLOCK_SIZE + at)).copied();
                from.map(|hash| self.slots.insert(copy.to.0 as usize * BLOCK_SIZE + at, hash));
            }
        }
        let mut token_ids = input.token_ids.clone();
        for pending in &input.pending {
            token_ids[pending.row] = self.choices[pending.choice];
        }
        let mut row_hashes = vec![0u64; token_ids.len()];
        let mut written: HashSet<(RequestId, usize)> = HashSet::new();
        for sequence in &input.sequences {
            for row in sequence.rows.clone() {
                let position = input.positions[row] as usize;
                let before = match position.checked_sub(1) {
                    Some(at) => self.slots.get(&slot(&sequence.placement, at)).copied().unwrap_or(0),
                    None => 1,
                };
                let hash = mix(before ^ (u64::from(token_ids[row]) << 1 | 1));
                self.slots.insert(slot(&sequence.placement, position), hash);
                debug_assert!(written.insert((sequence.id, position)), "a position is computed twice in a step");
                row_hashes[row] = hash;
            }
        }
        let logits = logits.reset(input.logit_rows.len(), self.vocab_size);
        logits.fill(0.0);
        self.choices.clear();
        for (at, &row) in input.logit_rows.iter().enumerate() {
            let favourite = self.favourite(row_hashes[row as usize]);
            self.choices.push(favourite as TokenId);
            logits[at * self.vocab_size + favourite] = 8.0;
        }
        Ok(())
    }

    fn overlapped(&mut self) -> Option<&mut dyn OverlappedRunner> {
        Some(self)
    }
}

/// Computes a step when it is started and tells of it when it is waited for.
impl OverlappedRunner for MockRunner {
    fn submit(&mut self, input: &StepInput, engagement: &mut Engagement) -> Result<(), EngineError> {
        let mut logits = Logits::default();
        self.execute(input, &mut logits, engagement)?;
        self.under_way.push_back(logits);
        Ok(())
    }

    fn keeps_choices(&self, input: &StepInput) -> bool {
        input.is_chosen_by_runner()
    }

    fn collect(&mut self, logits: &mut Logits) -> Result<(), EngineError> {
        *logits = self.under_way.pop_front().ok_or_else(|| EngineError::Runner("no step is under way".into()))?;
        Ok(())
    }
}
