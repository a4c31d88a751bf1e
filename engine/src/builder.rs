//! From settings to a running engine: loads the model, sizes the cache, builds what the plan names.

use candle_core::{DType, Device};

use crate::components::{self, BuildContext, Components, Engagement, KvParts};
use crate::compute::Compute;
use crate::device::{DeviceChoice, DeviceKind};
use crate::engine::{Engine, EngineParts, ModelInfo};
use crate::error::EngineError;
use crate::kv_cache::KvCacheManager;
use crate::loader::{self, Checkpoint, LoadOptions, ModelSource};
use crate::model::{MatrixWork, ModelConfig, ModelContext, ModelWork, PackedWeights};
use crate::optimizations::{Optimization, Selection};
use crate::plan::{AttentionKind, LinearKind, LoadingKind, PointwiseKind, Products};
use crate::runner::{DecoderRunner, FusedRunner, ModelRunner};
use crate::sampler::Sampler;
use crate::scheduler::{SchedulerConfig, SchedulerPolicies};
use crate::text::{ChatTemplate, Tokenizer, TokenizerSource};

/// The KV cache takes this part of the free memory at most when its size is not given.
const KV_FREE_MEMORY_SHARE: f64 = 0.25;

/// The same where the system does not say how much memory is free.
const FALLBACK_KV_BYTES: u64 = 1 << 30;

/// Settings of an engine; every one has a default.
///
/// ```
/// use aisp_engine::{Engine, SamplingParams};
///
/// let mut engine = Engine::builder().build()?;
/// let answer = engine.generate("Once upon a time", &SamplingParams::greedy(8))?;
/// assert_eq!(answer.token_ids.len(), 8);
/// # Ok::<(), aisp_engine::EngineError>(())
/// ```
#[derive(Debug, Clone)]
pub struct EngineBuilder {
    pub(crate) model: ModelSource,
    pub(crate) optimizations: Option<Selection>,
    pub(crate) device: DeviceChoice,
    pub(crate) max_model_len: Option<usize>,
    pub(crate) max_num_seqs: usize,
    pub(crate) max_num_batched_tokens: usize,
    pub(crate) prefill_chunk_tokens: Option<usize>,
    pub(crate) kv_cache_memory_bytes: Option<u64>,
    pub(crate) num_kv_slots: Option<usize>,
    pub(crate) products: Option<Products>,
    pub(crate) memory_utilization: Option<f64>,
    pub(crate) threads: Option<usize>,
    pub(crate) dequantize: bool,
    pub(crate) seed: u64,
    pub(crate) load: LoadOptions,
}

impl Default for EngineBuilder {
    fn default() -> Self {
        Self {
            model: ModelSource::Builtin,
            optimizations: None,
            device: DeviceChoice::Cpu,
            max_model_len: None,
            max_num_seqs: 256,
            max_num_batched_tokens: 2048,
            prefill_chunk_tokens: None,
            kv_cache_memory_bytes: None,
            num_kv_slots: None,
            products: None,
            memory_utilization: None,
            threads: None,
            dequantize: false,
            seed: 0,
            load: LoadOptions::default(),
        }
    }
}

impl EngineBuilder {
    /// Which model; the built-in one unless said.
    pub fn model(mut self, model: ModelSource) -> Self {
        self.model = model;
        self
    }

    /// Which optimizations; all that apply on the device unless said.
    pub fn optimizations(mut self, optimizations: Selection) -> Self {
        self.optimizations = Some(optimizations);
        self
    }

    /// Tokens that prompt and answer may have together; what model and cache allow unless said.
    pub fn max_model_len(mut self, max_model_len: Option<usize>) -> Self {
        self.max_model_len = max_model_len;
        self
    }

    /// Sequences in a step; 256 unless said.
    pub fn max_num_seqs(mut self, max_num_seqs: usize) -> Self {
        self.max_num_seqs = max_num_seqs;
        self
    }

    /// Tokens in a step; 2048 unless said.
    pub fn max_num_batched_tokens(mut self, max_num_batched_tokens: usize) -> Self {
        self.max_num_batched_tokens = max_num_batched_tokens;
        self
    }

    /// Prompt tokens that `chunked-prefill` takes into a step with running answers; unless said, 64 on a CPU and 2048 on a GPU.
    pub fn prefill_chunk_tokens(mut self, prefill_chunk_tokens: Option<usize>) -> Self {
        self.prefill_chunk_tokens = prefill_chunk_tokens;
        self
    }

    /// The chunk that was set, or the device's: an H200 serves 2.1 times as many tokens of 8B with 2048 as with 64 (128 in, 128 out).
    pub(crate) fn chunk_tokens(&self) -> usize {
        self.prefill_chunk_tokens.unwrap_or(match self.device.kind() {
            DeviceKind::Cpu => 64,
            DeviceKind::Cuda => 2048,
        })
    }

    /// Bytes of the KV cache; unless said, room for `max_num_seqs` full contexts within a quarter of the free memory.
    pub fn kv_cache_memory_bytes(mut self, bytes: Option<u64>) -> Self {
        self.kv_cache_memory_bytes = bytes;
        self
    }

    /// On the CPU the part of the free memory that the KV cache may take, a quarter unless said. On a GPU the part of
    /// its memory that weights, workspace and KV cache may take together, nine tenths unless said. Above 0, at most 1.
    pub fn memory_utilization(mut self, share: Option<f64>) -> Self {
        self.memory_utilization = share;
        self
    }

    /// Expand quantized weights to plain f32 values: the arithmetic without rounding of activations, against which
    /// kernels over blocks are held. Takes 4 bytes a weight.
    pub fn dequantize(mut self, dequantize: bool) -> Self {
        self.dequantize = dequantize;
        self
    }

    /// Threads of `pinned-pool`; all that are available unless said. Other ops use rayon's global pool.
    pub fn threads(mut self, threads: Option<usize>) -> Self {
        self.threads = threads;
        self
    }

    /// Token slots of the KV cache, in place of its bytes.
    pub fn num_kv_slots(mut self, num_kv_slots: Option<usize>) -> Self {
        self.num_kv_slots = num_kv_slots;
        self
    }

    /// How steps of more than 8 rows on a GPU compute their products, in place of the fastest that the optimizations allow: to
    /// test or measure one.
    pub fn products(mut self, products: Option<Products>) -> Self {
        self.products = products;
        self
    }

    /// Feeds requests without a seed of their own, and the weights of `dummy:` shapes; 0 unless said.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self.load.seed = seed;
        self
    }

    /// Type of plain weights and activations; f32 on CPU unless said.
    pub fn dtype(mut self, dtype: Option<DType>) -> Self {
        self.load.dtype = dtype;
        self
    }

    /// Where the model runs; the CPU unless said.
    pub fn device(mut self, device: DeviceChoice) -> Self {
        self.device = device;
        self
    }

    /// Show progress bars on standard error while loading.
    pub fn progress(mut self, progress: bool) -> Self {
        self.load.progress = progress;
        self
    }

    /// Loads the model and builds the engine.
    ///
    /// Errors: a setting out of range, a model that cannot be read, a cache that does not fit.
    pub fn build(self) -> Result<Engine, EngineError> {
        self.build_around(|runner| runner)
    }

    /// The same with something around the runner, such as a recorder or a fault.
    ///
    /// Errors: as [`EngineBuilder::build`].
    pub fn build_around(
        self,
        wrap: impl FnOnce(Box<dyn ModelRunner>) -> Box<dyn ModelRunner>,
    ) -> Result<Engine, EngineError> {
        at_least_one("--max-num-seqs", self.max_num_seqs)?;
        at_least_one("--max-num-batched-tokens", self.max_num_batched_tokens)?;
        at_least_one("--prefill-chunk-tokens", self.chunk_tokens())?;
        if let Some(share) = self.memory_utilization
            && !(share > 0.0 && share <= 1.0)
        {
            let message = format!("must be above 0 and at most 1, got {share}");
            return Err(EngineError::InvalidSetting { name: "--gpu-memory-utilization", message });
        }
        let selection = match &self.optimizations {
            Some(selection) => selection.on(self.device.kind())?,
            None => Selection::all_on(self.device.kind()),
        };
        let plan = selection.plan();
        if self.device.kind() == DeviceKind::Cuda && plan.pointwise == PointwiseKind::Fused {
            return self.build_cuda(selection, wrap);
        }
        let device = self.device.candle()?;
        let load = LoadOptions { mapped: plan.loading == LoadingKind::Mapped, device, ..self.load.clone() };
        let mut checkpoint = loader::load(&self.model, &load)?;
        if self.dequantize {
            checkpoint.weights.dequantize()?;
            checkpoint.weight_bytes = checkpoint.weights.num_bytes();
        }
        let dtype = load.compute_dtype()?;
        if dtype != DType::F32 && (plan.attention == AttentionKind::Flash || plan.linear == LinearKind::Packed) {
            let message = format!(
                "own CPU kernels compute in f32, not in {}; leave it at `auto` or leave flash-attention and fast-linear out",
                dtype.as_str()
            );
            return Err(EngineError::InvalidSetting { name: "--dtype", message });
        }
        let slot_bytes = components::kv_bytes_per_token(&plan, &checkpoint.config, dtype)?;
        let share = self.memory_utilization.unwrap_or(KV_FREE_MEMORY_SHARE);
        let free = self.device.free_bytes()?;
        let budget_bytes = free.map_or(FALLBACK_KV_BYTES, |free| (free as f64 * share) as u64);
        let size = self.size_cache(&checkpoint.config, slot_bytes, budget_bytes)?;
        self.assemble(checkpoint, (load.device, dtype), size, selection, wrap)
    }

    /// Context length and token slots of the cache.
    pub(crate) fn size_cache(
        &self,
        config: &ModelConfig,
        slot_bytes: u64,
        budget_bytes: u64,
    ) -> Result<CacheSize, EngineError> {
        let claimed = config.max_position_embeddings;
        if let Some(asked) = self.max_model_len
            && !(2..=claimed).contains(&asked)
        {
            let message = format!("must be between 2 and the model's {claimed}, got {asked}");
            return Err(EngineError::InvalidSetting { name: "--max-model-len", message });
        }
        let budget_bytes = self.kv_cache_memory_bytes.unwrap_or(budget_bytes);
        let tile = aisp_kernels::attention::KV_TILE;
        let affordable = usize::try_from(budget_bytes / slot_bytes).unwrap_or(usize::MAX);
        let affordable = self.num_kv_slots.unwrap_or(affordable) / tile * tile;
        let max_model_len = self.max_model_len.unwrap_or(claimed.min(affordable));
        // Whole tiles: attention reads up to the end of the last one.
        let full_context = max_model_len.next_multiple_of(tile);
        if affordable < full_context.max(tile) {
            let needed_bytes = full_context as u64 * slot_bytes;
            return Err(EngineError::KvCacheTooSmall { total_tokens: affordable, max_model_len, needed_bytes });
        }
        let wanted = full_context.saturating_mul(self.max_num_seqs);
        let fixed = self.kv_cache_memory_bytes.is_some() || self.num_kv_slots.is_some();
        let num_kv_slots = if fixed { affordable } else { affordable.min(wanted) };
        Ok(CacheSize { max_model_len, num_kv_slots, kv_cache_bytes: num_kv_slots as u64 * slot_bytes })
    }

    fn assemble(
        self,
        mut checkpoint: Checkpoint,
        (device, dtype): (Device, DType),
        size: CacheSize,
        selection: Selection,
        wrap: impl FnOnce(Box<dyn ModelRunner>) -> Box<dyn ModelRunner>,
    ) -> Result<Engine, EngineError> {
        let CacheSize { max_model_len, num_kv_slots, .. } = size;
        let plan = selection.plan();
        let mut engagement = Engagement::default();
        engagement.add(Optimization::MmapLoading, checkpoint.weights.num_mapped() as u64);
        let compute = Compute::build(&plan, self.threads)?;
        let config = &checkpoint.config;
        let device = &device;
        let context = BuildContext {
            config,
            dtype,
            device,
            num_kv_slots,
            prefill_chunk_tokens: self.chunk_tokens(),
            compute: compute.clone(),
        };
        let components = Components::build(&plan, &context)?;
        let (linear, (weight_type, weight_switch)) = (plan.linear, components::weight_type(&plan));
        let model = ModelContext {
            config,
            max_model_len,
            dtype,
            device,
            linear,
            weight_type,
            compute: compute.clone(),
            progress: self.load.progress,
        };
        let (runner, packed, matrices): (Box<dyn ModelRunner>, _, _) = match components.kv {
            KvParts::Attention(attention) => {
                let (model, packed) = model.decoder(&mut checkpoint.weights)?;
                let (own, matrices) = (components::model_optimizations(&plan, &compute, &packed), model.matrices());
                (Box::new(DecoderRunner::new(model, attention, own)), packed, matrices)
            }
            KvParts::Blocks(blocks) => {
                let (model, packed) = model.fused_decoder(&mut checkpoint.weights)?;
                let own = components::model_optimizations(&plan, &compute, &packed);
                let all = components::kv_optimizations(&plan).into_iter().chain(own).collect();
                let matrices = model.matrices();
                (Box::new(FusedRunner::new(model, blocks, all)), packed, matrices)
            }
        };
        let place = format!("{}, {}", if device.is_cpu() { "cpu" } else { "cuda" }, dtype.as_str());
        let built = Built {
            runner: wrap(runner),
            kv: components.kv_manager,
            policies: components.policies,
            sampler: components.sampler,
            packed,
            matrices,
            engagement,
            place,
        };
        self.finish(checkpoint, size, selection, weight_switch, built)
    }

    /// Joins what was built with what the checkpoint says about text.
    pub(crate) fn finish(
        self,
        checkpoint: Checkpoint,
        size: CacheSize,
        selection: Selection,
        weight_switch: Option<Optimization>,
        built: Built,
    ) -> Result<Engine, EngineError> {
        let CacheSize { max_model_len, num_kv_slots, kv_cache_bytes } = size;
        let (config, packed) = (&checkpoint.config, built.packed);
        let weight_format = match weight_switch {
            Some(switch) if packed.num_converted > 0 => {
                format!("{}, {}", checkpoint.weight_format, switch.name())
            }
            _ => checkpoint.weight_format,
        };
        let tokenizer = match checkpoint.tokenizer {
            TokenizerSource::None => None,
            source => Some(Tokenizer::new(source)?.with_bos_eos_ids(config.bos_token_id, config.eos_token_ids.first())),
        };
        let chat_template = checkpoint.chat_template.as_deref().map(ChatTemplate::new).transpose()?;
        Ok(Engine::from_parts(EngineParts {
            info: ModelInfo {
                name: checkpoint.name,
                weight_format,
                num_parameters: checkpoint.num_parameters,
                weight_bytes: (checkpoint.weight_bytes + packed.packed_bytes).saturating_sub(packed.released_bytes),
                vocab_size: config.vocab_size,
                max_model_len,
                eos_token_ids: config.eos_token_ids.clone(),
                num_kv_slots,
                kv_cache_bytes,
                device: built.place,
                work: ModelWork::new(config, built.matrices, kv_cache_bytes / num_kv_slots.max(1) as u64),
            },
            runner: built.runner,
            kv: built.kv,
            policies: built.policies,
            sampler: built.sampler,
            scheduler: SchedulerConfig {
                max_num_seqs: self.max_num_seqs,
                max_num_batched_tokens: self.max_num_batched_tokens,
            },
            selection,
            engagement: built.engagement,
            tokenizer,
            chat_template,
            seed: self.seed,
            clock: Box::new(std::time::Instant::now),
        }))
    }
}

/// What the KV cache has room for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CacheSize {
    pub max_model_len: usize,
    pub num_kv_slots: usize,
    pub kv_cache_bytes: u64,
}

/// What the plan came to.
pub(crate) struct Built {
    pub runner: Box<dyn ModelRunner>,
    pub kv: Box<dyn KvCacheManager>,
    pub policies: SchedulerPolicies,
    pub sampler: Box<dyn Sampler>,
    pub packed: PackedWeights,
    pub matrices: MatrixWork,
    pub engagement: Engagement,
    /// The device and the type it computes in.
    pub place: String,
}

fn at_least_one(name: &'static str, value: usize) -> Result<(), EngineError> {
    match value {
        0 => Err(EngineError::InvalidSetting { name, message: "must be at least 1, got 0".into() }),
        _ => Ok(()),
    }
}
