//! The way from settings to an engine whose fast ops run on a GPU: weights first, then a KV cache for the memory that is
//! left.

use crate::builder::EngineBuilder;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::optimizations::Selection;
use crate::runner::ModelRunner;

#[cfg(not(feature = "cuda"))]
impl EngineBuilder {
    /// Errors: always, with the way to a build that can.
    pub(crate) fn build_cuda(
        self,
        _: Selection,
        _: impl FnOnce(Box<dyn ModelRunner>) -> Box<dyn ModelRunner>,
    ) -> Result<Engine, EngineError> {
        Err(crate::device::no_cuda())
    }
}

#[cfg(feature = "cuda")]
mod build {
    use aisp_kernels::cuda::{CudaKv, CudaKvShape, CudaKvType, Gpu};
    use candle_core::DType;

    use super::*;
    use crate::builder::Built;
    use crate::components::{self, Bookkeeping, Engagement};
    use crate::compute::Compute;
    use crate::device::DeviceChoice;
    use crate::kv_cache::BLOCK_SIZE;
    use crate::loader::{self, LoadOptions, ModelSource};
    use crate::model::{CudaDecoder, ModelConfig, PackedWeights, Workspace, WorkspaceSize};
    use crate::optimizations::Optimization;
    use crate::plan::{ActivationKind, KvTypeKind, LoadingKind, Plan, ProductsKind};
    use crate::runner::{CudaLimits, CudaRunner};

    /// Part of the device's memory that everything together takes when it is not given.
    const MEMORY_SHARE: f64 = 0.9;

    /// Bytes that recorded steps and libraries take beside what is allocated here.
    const RESERVE_BYTES: u64 = 512 << 20;

    impl EngineBuilder {
        /// Builds the engine around own kernels.
        ///
        /// Errors: as [`EngineBuilder::build`]; no driver, no device, out of its memory.
        pub(crate) fn build_cuda(
            self,
            selection: Selection,
            wrap: impl FnOnce(Box<dyn ModelRunner>) -> Box<dyn ModelRunner>,
        ) -> Result<Engine, EngineError> {
            let DeviceChoice::Cuda { index } = self.device else {
                return Err(EngineError::Runner("own CUDA kernels for another device".into()));
            };
            let plan = selection.plan();
            let gpu = Gpu::open(index)?;
            // The host still draws tokens.
            let compute = Compute::build(&plan, self.threads)?;
            let mut checkpoint = self.checkpoint(&plan)?;
            let mut engagement = Engagement::default();
            engagement.add(Optimization::MmapLoading, checkpoint.weights.num_mapped() as u64);
            let config = checkpoint.config.clone();
            let longest = self.longest_context(&config);
            let (model, packed) = CudaDecoder::new(&gpu, &config, &mut checkpoint.weights, &plan, longest)?;
            let (matrices, kv) = (model.matrices(), kv_shape(&plan, &config));
            let (share, total) = (self.memory_utilization.unwrap_or(MEMORY_SHARE), gpu.info().total_bytes);
            let used = total.saturating_sub(gpu.free_bytes()?);
            let limits = self.cuda_limits(longest);
            let beside = limits.num_bytes(config.vocab_size)
                + Workspace::num_bytes(&config, workspace_size(&limits, &plan))
                + RESERVE_BYTES;
            let budget_bytes = ((total as f64 * share) as u64).saturating_sub(used + beside);
            let size = self.size_cache(&config, kv.bytes_per_token() as u64, budget_bytes)?;
            let limits = self.cuda_limits(size.max_model_len);
            let workspace = Workspace::new(&gpu, &config, workspace_size(&limits, &plan))?;
            let blocks = CudaKv::new(&gpu, CudaKvShape { num_blocks: size.num_kv_slots / BLOCK_SIZE, ..kv })?;
            let optimizations = components::cuda_optimizations(&plan, &packed);
            let runner = CudaRunner::new(model, blocks, workspace, limits, (&plan, self.products), optimizations)?;
            let place = format!("cuda:{index} ({}), bf16", gpu.info().name);
            // Every byte of the checkpoint left the host.
            let packed = PackedWeights { released_bytes: checkpoint.weight_bytes, ..packed };
            let Bookkeeping { policies, kv_manager, sampler } =
                Bookkeeping::build(&plan, size.num_kv_slots, self.chunk_tokens(), compute.isa);
            let runner = wrap(Box::new(runner));
            let built = Built { runner, kv: kv_manager, policies, sampler, packed, matrices, engagement, place };
            self.finish(checkpoint, size, selection, components::weight_type(&plan).1, built)
        }

        /// The checkpoint on the host, with what a device can draw itself left undrawn.
        fn checkpoint(&self, plan: &Plan) -> Result<loader::Checkpoint, EngineError> {
            let options = &self.load;
            if options.dtype.is_some_and(|dtype| dtype != DType::BF16) {
                let message = "must be `auto` or `bfloat16` for own CUDA kernels; or leave fused-ops, fast-linear and \
                               flash-attention out"
                    .into();
                return Err(EngineError::InvalidSetting { name: "--dtype", message });
            }
            let options = LoadOptions {
                mapped: plan.loading == LoadingKind::Mapped,
                drawn_on_device: true,
                // Of a random matrix nothing is kept on the host; vectors and what a file holds keep their precision.
                dtype: Some(if matches!(self.model, ModelSource::Dummy(_)) { DType::BF16 } else { DType::F32 }),
                ..options.clone()
            };
            let mut checkpoint = loader::load(&self.model, &options)?;
            if self.dequantize {
                checkpoint.weights.dequantize()?;
            }
            Ok(checkpoint)
        }

        fn cuda_limits(&self, max_model_len: usize) -> CudaLimits {
            CudaLimits { max_num_tokens: self.max_num_batched_tokens, max_num_seqs: self.max_num_seqs, max_model_len }
        }

        fn longest_context(&self, config: &ModelConfig) -> usize {
            self.max_model_len.unwrap_or(config.max_position_embeddings).min(config.max_position_embeddings)
        }
    }

    fn kv_shape(plan: &Plan, config: &ModelConfig) -> CudaKvShape {
        CudaKvShape {
            num_layers: config.num_layers,
            num_blocks: 0,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            kv_type: match plan.kv_type {
                KvTypeKind::Fp8 => CudaKvType::Fp8,
                KvTypeKind::Fp4 => CudaKvType::Fp4,
                KvTypeKind::Model | KvTypeKind::F16 => CudaKvType::Bf16,
            },
        }
    }

    fn workspace_size(limits: &CudaLimits, plan: &Plan) -> WorkspaceSize {
        let fp8 = plan.activations == ActivationKind::Fp8;
        WorkspaceSize {
            max_rows: limits.max_rows(),
            max_sequences: limits.max_sequences(),
            max_context_len: limits.max_model_len.next_multiple_of(BLOCK_SIZE),
            library: plan.products == ProductsKind::Library || fp8,
            fp8,
        }
    }
}
