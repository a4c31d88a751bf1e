//! Turns a scheduler's decision into device-ready input and runs the model on it. Owns the memory of the KV cache.

mod attention;
mod block_layout;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(any(feature = "cuda", test))]
mod cuda_tables;
mod fused;
mod kv_store;
mod logits;
mod mock;
mod step_input;

pub use attention::{AttentionBackend, FlashAttention, MaterialisedAttention, Qkv};
pub use block_layout::BlockLayout;
#[cfg(feature = "cuda")]
pub use cuda::{CudaLimits, CudaRunner};
#[cfg(feature = "cuda")]
pub use cuda_tables::{StepShape, TableLayout};
pub use fused::FusedRunner;
pub use kv_store::{ContiguousStore, KvPool, KvStore, PagedStore};
pub use logits::Logits;
pub use mock::{MockFault, MockRunner};
pub use step_input::{SequenceInput, StepInput};

use crate::components::Engagement;
use crate::error::EngineError;
use crate::model::Decoder;
use crate::optimizations::Optimization;

/// Computes one step.
pub trait ModelRunner: Send {
    /// Runs the step and leaves the logits of `input.logit_rows` in `logits`.
    ///
    /// Errors: a failed op; the engine is then dead.
    fn execute(
        &mut self,
        input: &StepInput,
        logits: &mut Logits,
        engagement: &mut Engagement,
    ) -> Result<(), EngineError>;
}

/// The decoder in candle ops.
pub struct DecoderRunner {
    model: Decoder,
    attention: Box<dyn AttentionBackend>,
    optimizations: Vec<Optimization>,
}

impl DecoderRunner {
    /// Joins a model and attention over a cache of its shape; `optimizations` are those of the model's own ops.
    pub fn new(model: Decoder, attention: Box<dyn AttentionBackend>, optimizations: Vec<Optimization>) -> Self {
        Self { model, attention, optimizations }
    }
}

impl ModelRunner for DecoderRunner {
    fn execute(
        &mut self,
        input: &StepInput,
        logits: &mut Logits,
        engagement: &mut Engagement,
    ) -> Result<(), EngineError> {
        let rows = self.model.forward(input, self.attention.as_mut())?;
        let (num_rows, vocab_size) = rows.dims2()?;
        logits.reset(num_rows, vocab_size).copy_from_slice(&rows.flatten_all()?.to_vec1::<f32>()?);
        engagement.add_all(self.attention.optimizations(), input);
        engagement.add_all(&self.optimizations, input);
        Ok(())
    }
}
