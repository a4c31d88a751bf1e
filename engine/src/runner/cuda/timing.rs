//! Which way a step of one row is computed: both are timed once, as steps are launched.

use aisp_kernels::cuda::Event;

use super::super::cuda_tables::{StepShape, context_bucket};
use super::CudaRunner;
use crate::error::EngineError;

/// Steps that are timed.
const TIMED_STEPS: usize = 20;

impl CudaRunner {
    /// Makes the kernel of all layers and leaves it again where ops of their own are faster, over the longest context that
    /// it would have: there it gains least.
    ///
    /// Errors: out of memory; a failed launch.
    pub(super) fn time_megakernel(&mut self) -> Result<(), EngineError> {
        let max_context_len = context_bucket(1, self.limits.max_model_len);
        let shape = StepShape::decodes(1, max_context_len, false);
        self.model.make_megakernel(&self.kv, max_context_len)?;
        if self.model.megakernel(&shape).is_none() {
            return Ok(());
        }
        let layout = shape.layout();
        let mut tables = vec![0; layout.len];
        tables[layout.slots.start] = -1; // nothing is stored
        tables[layout.context_lens.start] = max_context_len as i32;
        self.tables.upload(0, &tables)?;
        let by_megakernel = self.time_steps(&shape)?;
        let kernel = self.model.set_megakernel(None);
        let by_ops = self.time_steps(&shape)?;
        tracing::debug!(by_ops, by_megakernel, "milliseconds of a step of one row");
        if by_megakernel < by_ops {
            self.model.set_megakernel(kernel);
        }
        Ok(())
    }

    /// Milliseconds of a step.
    fn time_steps(&mut self, shape: &StepShape) -> Result<f32, EngineError> {
        let (start, end) = (Event::new(self.model.gpu())?, Event::new(self.model.gpu())?);
        for _ in 0..2 {
            self.launch(shape)?;
        }
        start.record()?;
        for _ in 0..TIMED_STEPS {
            self.launch(shape)?;
        }
        end.record()?;
        let ms = end.ms_since(&start)? / TIMED_STEPS as f32;
        // The other way has another recording.
        self.graphs.remove(shape);
        Ok(ms)
    }
}
