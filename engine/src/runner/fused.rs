//! The decoder on slices over its block pool.

use aisp_kernels::kv::KvBuffer;

use super::{BlockLayout, Logits, ModelRunner, StepInput};
use crate::components::Engagement;
use crate::error::EngineError;
use crate::model::FusedDecoder;
use crate::optimizations::Optimization;

/// Runs a [`FusedDecoder`].
pub struct FusedRunner {
    model: FusedDecoder,
    kv: KvBuffer,
    layout: BlockLayout,
    optimizations: Vec<Optimization>,
}

impl FusedRunner {
    /// Joins a model and a pool of its shape; `optimizations` are those that both stand for.
    pub fn new(model: FusedDecoder, kv: KvBuffer, optimizations: Vec<Optimization>) -> Self {
        Self { model, kv, layout: BlockLayout::default(), optimizations }
    }
}

impl ModelRunner for FusedRunner {
    fn execute(
        &mut self,
        input: &StepInput,
        logits: &mut Logits,
        engagement: &mut Engagement,
    ) -> Result<(), EngineError> {
        for copy in &input.copies {
            self.kv.copy_block(copy.from.0, copy.to.0)?;
        }
        self.layout.update(input)?;
        self.model.forward(input, &self.layout, &mut self.kv, logits)?;
        engagement.add_all(&self.optimizations, input);
        Ok(())
    }
}
