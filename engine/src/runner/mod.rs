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
pub use step_input::{Draw, PendingToken, SequenceInput, StepInput, TokenChoice};

use std::time::Duration;

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

    /// Whether it draws tokens itself.
    fn draws(&self) -> bool {
        false
    }

    /// The same runner as one that starts a step while another is under way, if it can.
    fn overlapped(&mut self) -> Option<&mut dyn OverlappedRunner> {
        None
    }

    /// How long the device waited for the host, if it is one of its own.
    fn device_idle(&self) -> Option<DeviceIdle> {
        None
    }
}

/// Starts steps first and waits for them later, in order. Two at most are under way.
pub trait OverlappedRunner {
    /// Starts a step. Its pending tokens are those that the step before it chooses.
    ///
    /// Errors: as [`ModelRunner::execute`].
    fn submit(&mut self, input: &StepInput, engagement: &mut Engagement) -> Result<(), EngineError>;

    /// Whether the tokens that a step chooses are there for the next one before the host knows them.
    fn keeps_choices(&self, input: &StepInput) -> bool;

    /// Waits for the earliest step under way and leaves what it came to in `logits`.
    ///
    /// Errors: as [`ModelRunner::execute`].
    fn collect(&mut self, logits: &mut Logits) -> Result<(), EngineError>;
}

/// Time that a device waited for the host between a step and one of decodes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceIdle {
    /// Since the start.
    pub total: Duration,
    /// Between how many steps.
    pub num_gaps: u64,
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
