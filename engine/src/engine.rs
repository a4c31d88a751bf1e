//! The engine: requests in, tokens out, one step at a time. Owns all state; knows no threads and no HTTP.

mod step;

use std::time::{Duration, Instant};

use step::Step;

use crate::builder::EngineBuilder;
use crate::components::Engagement;
use crate::kv_cache::{BlockCopy, KvCacheManager, KvUsage};
use crate::model::{ModelWork, WorkTotals};
use crate::optimizations::{Exactness, Optimization, Selection};
use crate::plan::StepLoopKind;
use crate::request::{Request, RequestError, RequestId, RequestOutput, SamplingParams, TokenId};
use crate::runner::{DeviceIdle, Logits, ModelRunner};
use crate::sampler::Sampler;
use crate::scheduler::{Scheduler, SchedulerConfig, SchedulerCounters, SchedulerPolicies, WaitingReason};
use crate::sequence::Sequence;
use crate::text::{ChatTemplate, Tokenizer};

/// Logits that a request for prompt log-probabilities may need at once.
const MAX_PROMPT_LOGITS_BYTES: usize = 1 << 30;

/// What the engine serves.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Id in `/v1/models`.
    pub name: String,
    /// Types of the weights, for people.
    pub weight_format: String,
    /// Values in all tensors.
    pub num_parameters: u64,
    /// Bytes of all tensors in memory.
    pub weight_bytes: u64,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Tokens that prompt and answer may have together.
    pub max_model_len: usize,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<TokenId>,
    /// Token slots of the KV cache.
    pub num_kv_slots: usize,
    /// Bytes of the KV cache.
    pub kv_cache_bytes: u64,
    /// Where it runs and the type it computes in, for people.
    pub device: String,
    /// What its steps must read and compute at least.
    pub work: ModelWork,
}

/// Tells the time. A simulation brings its own.
pub type Clock = Box<dyn Fn() -> Instant + Send>;

/// The parts an engine is made of; [`EngineBuilder`] puts them together.
pub struct EngineParts {
    /// What is served.
    pub info: ModelInfo,
    /// Computes steps.
    pub runner: Box<dyn ModelRunner>,
    /// Hands out cache slots.
    pub kv: Box<dyn KvCacheManager>,
    /// Decides who joins, and with how much of a prompt.
    pub policies: SchedulerPolicies,
    /// Draws tokens.
    pub sampler: Box<dyn Sampler>,
    /// Bounds of a step.
    pub scheduler: SchedulerConfig,
    /// What was asked for.
    pub selection: Selection,
    /// What the load has used already.
    pub engagement: Engagement,
    /// Text to tokens, if the model has a vocabulary.
    pub tokenizer: Option<Tokenizer>,
    /// Messages to a prompt, if the model has a template.
    pub chat_template: Option<ChatTemplate>,
    /// Feeds requests without a seed of their own.
    pub seed: u64,
    /// [`Instant::now`], but for simulations.
    pub clock: Clock,
}

/// An inference engine. See the crate's example.
pub struct Engine {
    info: ModelInfo,
    runner: Box<dyn ModelRunner>,
    kv: Box<dyn KvCacheManager>,
    sampler: Box<dyn Sampler>,
    scheduler: Scheduler,
    selection: Selection,
    engagement: Engagement,
    tokenizer: Option<Tokenizer>,
    chat_template: Option<ChatTemplate>,
    seed: u64,
    clock: Clock,
    logits: Logits,
    /// Whether a step may start while another is under way.
    overlaps: bool,
    under_way: Option<Step>,
    /// Copies of a step that did not fit; the next one makes them.
    unfinished_copies: Vec<BlockCopy>,
    next_id: u64,
    work: WorkTotals,
    last_step: Option<StepStats>,
    undelivered: Vec<RequestOutput>,
}

/// One step in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepStats {
    /// Tokens computed.
    pub num_tokens: usize,
    /// Sequences that took part.
    pub num_sequences: usize,
    /// From plan to sampled tokens.
    pub duration: Duration,
}

/// The engine in numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineStats {
    /// Sequences with room in the cache.
    pub num_requests_running: usize,
    /// Sequences that wait for room.
    pub num_requests_waiting: usize,
    /// Why the first of them waits.
    pub waiting_reason: Option<WaitingReason>,
    /// How full the cache is.
    pub kv: KvUsage,
    /// The scheduler's totals.
    pub scheduler: SchedulerCounters,
    /// What all steps since the start computed.
    pub work: WorkTotals,
    /// The latest step.
    pub last_step: Option<StepStats>,
    /// How long the device waited for the host.
    pub device_idle: Option<DeviceIdle>,
}

/// Whether an optimization was asked for and whether it really ran.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct OptimizationStatus {
    /// Its name.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// The part that it replaces.
    pub slot: String,
    /// What stands there without it.
    pub baseline: &'static str,
    /// How outputs compare with the baseline's.
    pub exactness: String,
    /// Whether `exact` selects it.
    pub lossless: bool,
    /// It was asked for.
    pub requested: bool,
    /// It ran at least once.
    pub engaged: bool,
    /// How often it ran.
    pub count: u64,
    /// What `count` counts.
    pub counts: &'static str,
    /// Why it has not run.
    pub reason: Option<String>,
    /// Paper or URL.
    pub source: &'static str,
}

impl Engine {
    /// Starts a configuration.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    /// Joins parts; for runners other than the built-in model's.
    pub fn from_parts(mut parts: EngineParts) -> Self {
        let overlaps = parts.selection.plan().step_loop == StepLoopKind::Overlapped;
        let overlaps = overlaps && parts.runner.overlapped().is_some();
        Self {
            info: parts.info,
            runner: parts.runner,
            kv: parts.kv,
            sampler: parts.sampler,
            scheduler: Scheduler::new(parts.scheduler, parts.policies),
            selection: parts.selection,
            engagement: parts.engagement,
            tokenizer: parts.tokenizer,
            chat_template: parts.chat_template,
            seed: parts.seed,
            clock: parts.clock,
            logits: Logits::default(),
            overlaps,
            under_way: None,
            unfinished_copies: Vec::new(),
            next_id: 0,
            work: WorkTotals::default(),
            last_step: None,
            undelivered: Vec::new(),
        }
    }

    /// Takes a request; its tokens come out of later steps.
    ///
    /// Errors: a parameter out of range, or a request that could never run.
    pub fn add_request(&mut self, request: Request) -> Result<RequestId, RequestError> {
        self.check(&request)?;
        let sequence = self.sequence(request);
        let id = sequence.id;
        self.scheduler.add(sequence);
        Ok(id)
    }

    /// Takes a request whose prompt is answered once for each of `params`. The prompt is computed once; where the cache
    /// can share blocks, the answers share it until they part.
    ///
    /// Errors: as [`Engine::add_request`]; then none is taken.
    pub fn add_parallel(
        &mut self,
        request: Request,
        params: Vec<SamplingParams>,
    ) -> Result<Vec<RequestId>, RequestError> {
        let requests: Vec<Request> = params.into_iter().map(|params| Request { params, ..request.clone() }).collect();
        for request in &requests {
            self.check(request)?;
        }
        let mut sequences = requests.into_iter().map(|request| self.sequence(request));
        let Some(mut leader) = sequences.next() else { return Ok(Vec::new()) };
        leader.forks = sequences.collect();
        let ids = std::iter::once(&leader).chain(&leader.forks).map(|sequence| sequence.id).collect();
        self.scheduler.add(leader);
        Ok(ids)
    }

    fn sequence(&mut self, request: Request) -> Sequence {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let seed = self.seed.wrapping_add(id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Sequence::new(id, request, seed, self.info.max_model_len)
    }

    fn check(&self, request: &Request) -> Result<(), RequestError> {
        let (vocab_size, max_model_len) = (self.info.vocab_size, self.info.max_model_len);
        request.params.validate(vocab_size)?;
        let prompt_tokens = request.prompt.len();
        if prompt_tokens == 0 {
            return Err(RequestError::EmptyPrompt);
        }
        if prompt_tokens >= max_model_len {
            return Err(RequestError::PromptTooLong { prompt_tokens, max_model_len });
        }
        if let Some(&token) = request.prompt.iter().find(|token| **token as usize >= vocab_size) {
            return Err(RequestError::TokenOutOfRange { token, vocab_size });
        }
        let total_tokens = self.kv.usage().total_tokens;
        let needed_tokens = prompt_tokens.saturating_add(request.params.max_tokens).min(max_model_len);
        if needed_tokens > total_tokens {
            return Err(RequestError::ExceedsKvCache { needed_tokens, total_tokens });
        }
        let logits_bytes = prompt_tokens * vocab_size * size_of::<f32>();
        if request.params.prompt_logprobs.is_some() && logits_bytes > MAX_PROMPT_LOGITS_BYTES {
            let most = MAX_PROMPT_LOGITS_BYTES / vocab_size / size_of::<f32>();
            let message = format!("takes prompts of at most {most} tokens, this one has {prompt_tokens}");
            return Err(RequestError::InvalidParam { field: "prompt_logprobs", message });
        }
        Ok(())
    }

    /// Gives a request up: it produces nothing more and its room is free at once. False if it is not there any more.
    pub fn abort(&mut self, id: RequestId) -> bool {
        self.undelivered.retain(|output| output.id != id);
        self.scheduler.remove(id, self.kv.as_mut()).is_some()
    }

    /// Whether a step would do anything.
    pub fn has_unfinished(&self) -> bool {
        !self.scheduler.is_idle() || !self.undelivered.is_empty()
    }

    /// Forgets every known prompt beginning. Returns false, and forgets nothing, while requests run.
    pub fn reset_prefix_cache(&mut self) -> bool {
        self.kv.reset_prefix_cache()
    }

    /// Keeps outputs for the next [`Engine::step`]; for callers that wait for one request among several.
    pub(crate) fn defer(&mut self, outputs: impl IntoIterator<Item = RequestOutput>) {
        self.undelivered.extend(outputs);
    }

    /// What is served.
    pub fn model_info(&self) -> &ModelInfo {
        &self.info
    }

    /// Text to tokens and back; none for `dummy:` shapes without a vocabulary.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Messages to a prompt.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// The engine in numbers.
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            num_requests_running: self.scheduler.running().len(),
            num_requests_waiting: self.scheduler.num_waiting(),
            waiting_reason: self.scheduler.waiting_reason(),
            kv: self.kv.usage(),
            scheduler: self.scheduler.counters(),
            work: self.work,
            last_step: self.last_step,
            device_idle: self.runner.device_idle(),
        }
    }

    /// Every optimization of the registry: asked for, and really used.
    pub fn optimizations(&self) -> Vec<OptimizationStatus> {
        Optimization::ALL.into_iter().map(|optimization| self.status(optimization)).collect()
    }

    fn status(&self, optimization: Optimization) -> OptimizationStatus {
        let spec = optimization.spec();
        let requested = self.selection.contains(optimization);
        let count = match optimization {
            Optimization::ContinuousBatching if requested => self.scheduler.counters().num_joined_running_batch,
            Optimization::ChunkedPrefill if requested => self.scheduler.counters().num_chunks,
            Optimization::PrefixCache => self.scheduler.counters().num_prefix_hit_tokens,
            Optimization::FastSampler => self.sampler.num_engaged() + self.engagement.count(optimization),
            _ => self.engagement.count(optimization),
        };
        let reason = match (requested, count) {
            (false, _) => Some("not requested".to_owned()),
            (true, 0) => Some(format!("engages when {}", spec.engages_when)),
            (true, _) => None,
        };
        OptimizationStatus {
            name: spec.name,
            summary: spec.summary,
            slot: spec.slot.to_string(),
            baseline: spec.baseline,
            exactness: Exactness::to_string(&spec.exactness),
            lossless: spec.exactness.is_lossless(),
            requested,
            engaged: count > 0,
            count,
            counts: spec.counts,
            reason,
            source: spec.source,
        }
    }
}
