//! Arms that are engines: the engine that ships, in process, one selection of switches an arm.

use std::collections::BTreeMap;
use std::time::Instant;

use aisp_engine::optimizations::Exactness;
use aisp_engine::{Engine, EngineBuilder, Optimization, Selection};
use bench_client::{Cost, Slo, TokenTotals};

use super::requests::{Answers, RequestMix, RequestSet, Served};
use crate::gate::{Measure, Outputs, Tolerance};
use crate::lab::{ArmSpec, Experiment, LabContext, Measured};
use crate::record::{EngagedRecord, Workload};
use crate::roofline::ArmWork;
use crate::{LabError, stats};

/// Models up to this size get the full workload; larger ones a part, so that an iteration takes seconds, not minutes.
const SMALL_MODEL_PARAMETERS: u64 = 50_000_000;

/// USD per hour of a cloud machine of two virtual cores, as in the load generator's price list.
const CPU_HOURLY_RATE: f64 = 0.10;

/// Which pass shows the probabilities of prompts' tokens, by which arms that round are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatePass {
    /// The timed one, whose time they are a small part of.
    Timed,
    /// One after it over the first prompts: a GPU computes faster than it hands logits over.
    Apart,
    /// One by an engine that computes prompts row by row, as it does answers; of one prompt at a time, so that what depends
    /// on the batch is left to the engine's tests.
    RowByRow,
}

/// Prompt tokens of a pass of its own.
const GATE_TOKENS: usize = 256;

/// Bounds of the engines, and what their requests are held against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineSettings {
    /// Sequences in a step.
    pub max_num_seqs: usize,
    /// Tokens in a step.
    pub max_num_batched_tokens: usize,
    /// Tokens that prompt and answer may have together.
    pub max_model_len: usize,
    /// Tokens that the KV cache holds: scarce, as it is where it matters.
    pub num_kv_tokens: usize,
    /// Whether weights that are quantized in the file are expanded first: a switch of the weight type converts dense ones.
    pub dense_weights: bool,
    /// Whether all prompts begin alike, as far as the longest goes.
    pub common_beginning: bool,
    /// How arms that round are compared.
    pub gate: GatePass,
    /// Whether every answer is greedy, so that the sampler is no part of what is compared.
    pub is_greedy: bool,
    /// What makes a request good.
    pub slo: Slo,
    /// USD per hour of the machine.
    pub hourly_rate: f64,
}

impl Default for EngineSettings {
    fn default() -> Self {
        let slo = Slo { ttft_ms: Some(1000.0), tpot_ms: Some(100.0), e2el_ms: None };
        Self {
            max_num_seqs: 16,
            max_num_batched_tokens: 2048,
            max_model_len: 256,
            num_kv_tokens: 1024,
            dense_weights: false,
            common_beginning: false,
            gate: GatePass::Timed,
            is_greedy: false,
            slo,
            hourly_rate: CPU_HOURLY_RATE,
        }
    }
}

/// One arm.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineArm {
    /// Name within the lab.
    pub name: String,
    /// Its switches.
    pub selection: Selection,
}

/// Engines over one workload.
pub struct EngineExperiment {
    context: LabContext,
    requests: RequestSet,
    settings: EngineSettings,
    kv_cache_bytes: u64,
    arms: Vec<EngineArm>,
    engines: Vec<Engine>,
    /// What is served apart from the timed pass to compare arms.
    gate: Option<RequestSet>,
    /// What came of it where another engine serves it, by arm.
    row_by_row: Vec<Vec<f32>>,
    fingerprint: String,
}

/// The lengths that chats and searches mix, scaled to the model.
pub fn mixed_requests(num_parameters: u64) -> RequestMix {
    let full = RequestMix {
        num_requests: 32,
        max_prompt_tokens: 90,
        max_answer_tokens: 40,
        answers: Answers::Even,
        arrivals_per_step: 2,
        allowed_tokens: None,
    };
    scaled(full, num_parameters)
}

/// A quarter of the requests, with shorter prompts and answers, for models that are not small.
pub fn scaled(mix: RequestMix, num_parameters: u64) -> RequestMix {
    if num_parameters <= SMALL_MODEL_PARAMETERS {
        return mix;
    }
    RequestMix {
        num_requests: mix.num_requests.div_ceil(4),
        max_prompt_tokens: mix.max_prompt_tokens.div_ceil(4),
        max_answer_tokens: mix.max_answer_tokens.div_ceil(4),
        ..mix
    }
}

/// The gate that the loosest switch of an arm allows.
pub fn tolerance(exactness: Exactness) -> Tolerance {
    let logprobs =
        |allowed, reason: &str| Tolerance { measure: Measure::MeanDifference, allowed, reason: reason.to_owned() };
    // The engine's own tests hold every switch to the bounds of the registry, over all logits; these here are for what
    // a lab sees of its run, timed or apart: the probability of one token a position.
    match exactness {
        Exactness::Bitwise | Exactness::SameTokens => Tolerance::exact("the greedy tokens of every request"),
        Exactness::Tolerance => {
            logprobs(0.1, "log-probabilities of real text; either arm rounds activations to 8 bits")
        }
        Exactness::Lossy => logprobs(1.0, "log-probabilities of real text; values of as few as 4 bits"),
    }
}

/// The loosest class among switches.
pub fn loosest(selections: &[Selection]) -> Exactness {
    let classes = selections.iter().flat_map(Selection::iter).map(|optimization| optimization.spec().exactness);
    classes.max().unwrap_or(Exactness::Bitwise)
}

impl EngineExperiment {
    /// Loads the model once to draw a workload for it.
    ///
    /// Errors: a model that cannot be loaded.
    pub fn new(
        context: &LabContext,
        mix: fn(u64) -> RequestMix,
        settings: EngineSettings,
        arms: Vec<EngineArm>,
    ) -> Result<Self, LabError> {
        let mut arms = arms;
        for arm in &mut arms {
            arm.selection = context.on_device(&arm.selection)?;
        }
        let probe = context.probe().max_model_len(Some(settings.max_model_len)).max_num_seqs(1).build()?;
        let info = probe.model_info();
        let kv_bytes_per_token = info.kv_cache_bytes / info.num_kv_slots.max(1) as u64;
        let mut requests = RequestSet::draw(mix(info.num_parameters), &probe, context.seed)?;
        requests.is_greedy = settings.is_greedy;
        if settings.common_beginning {
            requests.begin_alike();
        }
        // What all arms share rounds the same in all of them.
        let shared = |switch: &Optimization| arms.iter().all(|arm| arm.selection.contains(*switch));
        let differing = arms.iter().flat_map(|arm| arm.selection.iter()).filter(|switch| !shared(switch));
        let rounds = !differing.map(|o| o.spec().exactness).all(Exactness::is_lossless);
        requests.with_prompt_logprobs = rounds && settings.gate == GatePass::Timed;
        let apart = rounds && settings.gate != GatePass::Timed;
        Ok(Self {
            fingerprint: requests.fingerprint(&context.model.to_string()),
            context: context.clone(),
            gate: apart.then(|| requests.prompts_of_first(GATE_TOKENS)),
            row_by_row: Vec::new(),
            requests,
            settings,
            kv_cache_bytes: kv_bytes_per_token * settings.num_kv_tokens as u64,
            arms,
            engines: Vec::new(),
        })
    }

    fn builder(&self, selection: Selection) -> EngineBuilder {
        self.context
            .engine(selection)
            .dequantize(self.settings.dense_weights)
            .max_num_seqs(self.settings.max_num_seqs)
            .max_num_batched_tokens(self.settings.max_num_batched_tokens)
            .max_model_len(Some(self.settings.max_model_len))
            .kv_cache_memory_bytes(Some(self.kv_cache_bytes))
    }

    /// What an arm is compared by, after a pass.
    fn outputs(&mut self, arm: usize, served: &Served) -> Result<Outputs, LabError> {
        Ok(match &self.gate {
            None if self.requests.with_prompt_logprobs => Outputs::Values(served.prompt_logprobs.clone()),
            None => Outputs::Tokens(served.answers.clone()),
            Some(_) if self.settings.gate == GatePass::RowByRow => Outputs::Values(self.row_by_row[arm].clone()),
            Some(gate) => Outputs::Values(gate.serve(&mut self.engines[arm])?.prompt_logprobs),
        })
    }
}

impl Experiment for EngineExperiment {
    fn workload(&self) -> Workload {
        self.requests.workload(&self.context.model.to_string())
    }

    fn arms(&self) -> Vec<ArmSpec> {
        self.arms.iter().map(|arm| ArmSpec::stack(&arm.name, &arm.selection)).collect()
    }

    fn set_up(&mut self, arm: usize) -> Result<(), LabError> {
        let selection = self.arms[arm].selection.clone();
        if let (Some(gate), GatePass::RowByRow) = (&self.gate, self.settings.gate) {
            let chunks = selection.iter().chain([Optimization::ChunkedPrefill]);
            let in_parts = Selection::closed_on(self.context.device.kind(), chunks);
            let mut engine = self.builder(in_parts).max_num_batched_tokens(1).max_num_seqs(1).build()?;
            self.row_by_row.push(gate.serve(&mut engine)?.prompt_logprobs);
        }
        self.engines.push(self.builder(selection).build()?);
        Ok(())
    }

    fn run(&mut self, arm: usize) -> Result<Measured, LabError> {
        let engine = &mut self.engines[arm];
        // Every pass is the first: what an earlier one left in a prefix cache is not this one's.
        engine.reset_prefix_cache();
        let before = engine.stats();
        let started = Instant::now();
        let served = self.requests.serve(engine)?;
        let duration = started.elapsed();
        let after = engine.stats();
        let work = ArmWork::since(&before.work, engine);
        let outputs = self.outputs(arm, &served)?;
        let engine = &self.engines[arm];
        let mut measured = Measured::new(duration, self.fingerprint.clone(), outputs);
        measured.engaged = engaged(engine, &self.arms[arm].selection);
        measured.work = Some(work);
        let info = engine.model_info();
        let bytes_per_token = info.kv_cache_bytes / info.num_kv_slots.max(1) as u64;
        measured.reserved_bytes = Some(after.kv.peak_reserved_tokens as u64 * bytes_per_token);
        measured.metrics = metrics(&served, duration.as_secs_f64(), &self.requests, &self.settings);
        let num_steps = (after.work - before.work).num_steps as f64;
        measured.metrics.insert("num_steps".into(), num_steps);
        let preemptions = after.scheduler.num_preemptions - before.scheduler.num_preemptions;
        measured.metrics.insert("num_preemptions".into(), preemptions as f64);
        Ok(measured)
    }
}

/// What became of the switches of a selection.
pub fn engaged(engine: &Engine, selection: &Selection) -> Vec<EngagedRecord> {
    let statuses = engine.optimizations().into_iter();
    let asked = statuses.filter(|s| Optimization::by_name(s.name).is_some_and(|o| selection.contains(o)));
    let record = |status: aisp_engine::OptimizationStatus| EngagedRecord {
        name: status.name.to_owned(),
        engaged: status.engaged,
        count: status.count,
        counts: status.counts.to_owned(),
        reason: status.reason,
    };
    asked.map(record).collect()
}

/// Figures of one pass through the workload, named as the load generator's are.
pub fn metrics(
    served: &Served,
    seconds: f64,
    requests: &RequestSet,
    settings: &EngineSettings,
) -> BTreeMap<String, f64> {
    let output: usize = served.answers.iter().map(Vec::len).sum();
    let input: usize = requests.requests.iter().map(|request| request.prompt.len()).sum();
    let tokens = TokenTotals { input: input as u64, output: output as u64, good_output: None };
    let good = served.latencies.iter().filter(|latency| latency.meets(&settings.slo)).count();
    let median_ms = |samples: &[f64]| Some(stats::median(samples)? * 1e3);
    let ttft_s: Vec<f64> = served.latencies.iter().map(|latency| latency.ttft_s).collect();
    let tpot_s: Vec<f64> = served.latencies.iter().filter_map(|latency| latency.tpot_s).collect();
    let figures = [
        ("ttft_p50_ms", median_ms(&ttft_s)),
        ("tpot_p50_ms", median_ms(&tpot_s)),
        ("itl_p50_ms", median_ms(&served.itl_s)),
        ("itl_p99_ms", stats::percentile(&served.itl_s, 0.99).map(|seconds| seconds * 1e3)),
        ("output_tokens_per_s", Some(output as f64 / seconds)),
        ("goodput_requests_per_s", Some(good as f64 / seconds)),
        ("usd_per_million_tokens", Cost::of(settings.hourly_rate, seconds, tokens).per_million_total_tokens),
    ];
    figures.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}
