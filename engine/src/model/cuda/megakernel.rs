//! All layers of a step of one row in one kernel: made once the pool is there, used where it was faster.

use aisp_kernels::cuda::{CudaKv, Megakernel, MegakernelLayer, MegakernelShape, MegakernelStep};

use super::{CudaDecoder, StepAddresses, Workspace};
use crate::error::EngineError;
use crate::runner::StepShape;

impl CudaDecoder {
    /// Makes the kernel for contexts up to `max_context_len`; without one where there is no code for the model or the
    /// card.
    ///
    /// Errors: out of memory.
    pub fn make_megakernel(&mut self, kv: &CudaKv, max_context_len: usize) -> Result<(), EngineError> {
        let shape = MegakernelShape {
            num_heads: self.config.num_heads,
            max_context_len,
            sliding_window: self.config.sliding_window,
            eps: self.eps(),
            rope: &self.rope,
        };
        let layers = self.layers.iter().enumerate().map(|(index, layer)| MegakernelLayer {
            qkv: &layer.qkv_proj,
            o: &layer.o_proj,
            gate_up: &layer.gate_up_proj,
            down: &layer.down_proj,
            qkv_bias: layer.qkv_bias.as_ref(),
            head_norms: layer.qk_norm.as_ref().map(|(q, k)| (q, k)),
            post_attention_norm: &layer.post_attention_norm,
            next_norm: self.next_norm(index),
        });
        let layers: Vec<_> = layers.collect();
        self.megakernel = Megakernel::new(&self.gpu, shape, &layers, kv)?;
        Ok(())
    }

    /// Takes it, or leaves it for ops of their own; the one before.
    pub fn set_megakernel(&mut self, kernel: Option<Megakernel>) -> Option<Megakernel> {
        std::mem::replace(&mut self.megakernel, kernel)
    }

    /// The kernel of all layers, if steps of this shape are computed by it.
    pub fn megakernel(&self, shape: &StepShape) -> Option<&Megakernel> {
        let one = shape.is_decode() && shape.num_rows == 1;
        self.megakernel.as_ref().filter(|kernel| one && shape.max_context_len <= kernel.max_context_len())
    }

    pub(super) fn all_layers(kernel: &Megakernel, at: &StepAddresses<'_>, w: &Workspace) -> Result<(), EngineError> {
        kernel.run(MegakernelStep {
            residual: w.residual.all(),
            x: w.x.all(),
            sumsq: w.sumsq.all(),
            positions: at.positions,
            slots: at.slots,
            block_tables: at.block_tables,
            context_lens: at.context_lens,
        })?;
        Ok(())
    }
}
