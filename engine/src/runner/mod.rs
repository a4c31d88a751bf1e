//! Turns a scheduler's decision into device-ready input and runs the model on it. Owns the memory of the KV cache.

mod kv_store;
mod mock;
mod step_input;

use candle_core::Tensor;

pub use kv_store::{ContiguousStore, KvPool, KvStore, PagedStore};
pub use mock::{MockFault, MockRunner};
pub use step_input::{SequenceInput, StepInput};

use crate::components::Engagement;
use crate::error::EngineError;
use crate::model::Decoder;

/// Computes one step.
pub trait ModelRunner: Send {
    /// Runs the step and returns the logits of `input.logit_rows`, `[num_logit_rows, vocab_size]` f32.
    ///
    /// Errors: a failed op; the engine is then dead.
    fn execute(&mut self, input: &StepInput, engagement: &mut Engagement) -> Result<Tensor, EngineError>;
}

/// The decoder over its KV cache.
pub struct DecoderRunner {
    model: Decoder,
    kv: Box<dyn KvStore>,
}

impl DecoderRunner {
    /// Joins a model and a cache of its shape.
    pub fn new(model: Decoder, kv: Box<dyn KvStore>) -> Self {
        Self { model, kv }
    }
}

impl ModelRunner for DecoderRunner {
    fn execute(&mut self, input: &StepInput, engagement: &mut Engagement) -> Result<Tensor, EngineError> {
        self.kv.copy_blocks(&input.copies)?;
        let logits = self.model.forward(input, self.kv.as_mut())?;
        if let Some(optimization) = self.kv.optimization() {
            engagement.add(optimization, input.token_ids.len() as u64);
        }
        Ok(logits)
    }
}
