//! What tests over a real engine share: a runner that writes down all logits and can break what goes in.

#![allow(clippy::unwrap_used, dead_code, reason = "a test may panic; each test uses a part")]

pub mod forced;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aisp_engine::kv_cache::{BLOCK_SIZE, KvPlacement};
use aisp_engine::runner::{Logits, ModelRunner, StepInput};
use aisp_engine::{Engagement, EngineError};

/// Real English.
pub const TEXT: &str = include_str!("../data/english.txt");

/// The second real model, fetched by `scripts/get-model.sh`.
pub const SMOLLM2: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/SmolLM2-135M-Instruct.Q4_1.gguf");

/// Bits of the logits at each position of each request.
pub type LogitBits = BTreeMap<(u64, usize), Vec<u32>>;

/// What the gates exist for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// All is well.
    None,
    /// The block after it is read in place of each full one.
    OffByOneBlock,
    /// A fork writes into the block that it should have copied.
    LostCopy,
}

/// Writes down all logits on their way to the sampler.
pub struct Recorder {
    pub inner: Box<dyn ModelRunner>,
    pub logits: Arc<Mutex<LogitBits>>,
    pub fault: Fault,
}

impl ModelRunner for Recorder {
    fn execute(
        &mut self,
        input: &StepInput,
        logits: &mut Logits,
        engagement: &mut Engagement,
    ) -> Result<(), EngineError> {
        let mut input = input.clone();
        for sequence in &mut input.sequences {
            if let KvPlacement::Paged { block_table } = &mut sequence.placement
                && self.fault == Fault::OffByOneBlock
                && sequence.query_start.div_ceil(BLOCK_SIZE) < block_table.len()
            {
                for at in 0..sequence.query_start / BLOCK_SIZE {
                    block_table[at] = block_table[at + 1];
                }
            }
        }
        if self.fault == Fault::LostCopy {
            input.copies.clear();
        }
        self.inner.execute(&input, logits, engagement)?;
        let mut record = self.logits.lock().unwrap();
        for sequence in &input.sequences {
            // A device that chose the token brings no logits.
            for at in sequence.logits.clone().filter(|&at| logits.chosen(at).is_none()) {
                let position = input.positions[input.logit_rows[at] as usize] as usize;
                let bits: Vec<u32> = logits.row(at).unwrap().iter().map(|logit| logit.to_bits()).collect();
                // A preempted request computes positions again: they must come out the same.
                let key = (sequence.id.0, position);
                let before = record.insert(key, bits.clone());
                let same = before.is_none_or(|before| before == bits) || self.fault != Fault::None;
                assert!(same, "{key:?} differs when computed again");
            }
        }
        Ok(())
    }
}
