//! `serving:chunked_prefill`: how long running answers wait while a long prompt arrives, whole or in parts.

use std::time::Instant;

use aisp_engine::model::WorkTotals;
use aisp_engine::optimizations::Exactness;
use aisp_engine::{Engine, ModelSource, Optimization, Request, RequestId, SamplingParams, Selection, TokenId};

use super::engine_experiment::{engaged, tolerance};
use super::prefix_caching::long_text;
use crate::fingerprint::Fingerprint;
use crate::gate::Outputs;
use crate::lab::{ArmSpec, Experiment, Lab, LabContext, LabInfo, Measured};
use crate::record::{Goal, Workload};
use crate::roofline::ArmWork;
use crate::{LabError, stats};

/// Tokens of the prompt that arrives, where the model's context allows.
const PROMPT_TOKENS: usize = 4096;

/// Answers under way.
const NUM_ANSWERS: usize = 4;

/// Steps that are measured before the prompt arrives.
const STEADY_STEPS: usize = 30;

/// Prompt tokens that a step takes beside answers.
const CHUNK_TOKENS: usize = 4;

/// The lab.
#[derive(Debug, Clone, Copy)]
pub struct ChunkedPrefillLab;

impl Lab for ChunkedPrefillLab {
    fn info(&self) -> LabInfo {
        LabInfo {
            id: "serving:chunked_prefill".into(),
            summary: "99th percentile of the time between tokens of running answers while a long prompt arrives".into(),
            goal: Goal::Latency,
            tags: vec!["engine".into()],
            tolerance: tolerance(Exactness::SameTokens),
        }
    }

    fn prepare(&self, context: &LabContext) -> Result<Box<dyn Experiment>, LabError> {
        // The same kernels in both arms.
        let rest = [Optimization::ContinuousBatching, Optimization::FusedOps, Optimization::KvF16];
        let with = Selection::closed(rest.into_iter().chain([Optimization::ChunkedPrefill]));
        let arms = vec![("whole", Selection::closed(rest)), ("chunked", with)];
        let probe = Engine::builder().model(context.model.clone()).max_num_seqs(1).build()?;
        let len = PROMPT_TOKENS.min(probe.model_info().max_model_len / 2);
        let prompt = long_text(&probe, len)?;
        let mut hash = Fingerprint::default();
        hash.add(context.model.to_string().as_bytes()).add_u32(&prompt);
        let model = context.model.clone();
        Ok(Box::new(ChunkedPrefill { model, fingerprint: hash.finish(), prompt, arms, engines: Vec::new() }))
    }
}

struct ChunkedPrefill {
    model: ModelSource,
    fingerprint: String,
    prompt: Vec<TokenId>,
    arms: Vec<(&'static str, Selection)>,
    engines: Vec<Engine>,
}

impl Experiment for ChunkedPrefill {
    fn workload(&self) -> Workload {
        let len = self.prompt.len();
        Workload {
            description: format!("{}: a prompt of {len} tokens arrives beside {NUM_ANSWERS} answers", self.model),
            fingerprint: self.fingerprint.clone(),
            requests: Some(NUM_ANSWERS as u64 + 1),
            tokens: Some(len as u64),
            bytes: None,
            flops: None,
        }
    }

    fn arms(&self) -> Vec<ArmSpec> {
        self.arms.iter().map(|(name, selection)| ArmSpec::stack(name, selection)).collect()
    }

    fn set_up(&mut self, arm: usize) -> Result<(), LabError> {
        let builder = Engine::builder().model(self.model.clone()).optimizations(self.arms[arm].1.clone());
        let builder = builder.prefill_chunk_tokens(Some(CHUNK_TOKENS)).max_num_seqs(NUM_ANSWERS + 1);
        self.engines.push(builder.max_model_len(Some(2 * self.prompt.len())).build()?);
        Ok(())
    }

    fn run(&mut self, arm: usize) -> Result<Measured, LabError> {
        let engine = &mut self.engines[arm];
        engine.reset_prefix_cache();
        let add = |engine: &mut Engine, prompt: &[TokenId], max_tokens| {
            let params = SamplingParams { ignore_eos: true, ..SamplingParams::greedy(max_tokens) };
            engine.add_request(Request::new(prompt.to_vec(), params)).map_err(aisp_engine::EngineError::from)
        };
        let mut answers: Vec<RequestId> = Vec::new();
        for at in 0..NUM_ANSWERS {
            answers.push(add(engine, &self.prompt[at..at + 12], self.prompt.len() - 16)?);
        }
        engine.step()?;
        let steady = gaps(engine, |_, step| step == STEADY_STEPS)?;
        let long = add(engine, &self.prompt, 1)?;
        let during = gaps(engine, |ended, _| ended == Some(long))?;
        let mut tokens: Vec<Vec<TokenId>> = vec![during.first_token.into_iter().collect()];
        // Answers of both arms have come to different lengths by now; their common beginning is compared.
        tokens.extend(steady.answers);
        for id in answers {
            engine.abort(id);
        }
        let worst = stats::percentile(&during.seconds, 0.99).unwrap_or_default();
        let usual = stats::percentile(&steady.seconds, 0.5).unwrap_or_default();
        let mut measured =
            Measured::new(std::time::Duration::from_secs_f64(worst), self.fingerprint.clone(), Outputs::Tokens(tokens));
        measured.engaged = engaged(engine, &self.arms[arm].1);
        // What is timed is one step, so the work is that step's.
        let timed = during.seconds.iter().position(|seconds| *seconds == worst);
        measured.work = timed.and_then(|step| during.work.get(step)).map(|totals| ArmWork::of(totals, engine));
        measured.metrics.insert("itl_p99_ms".into(), worst * 1e3);
        measured.metrics.insert("steady_itl_p50_ms".into(), usual * 1e3);
        measured.metrics.insert("itl_p99_over_steady".into(), worst / usual);
        Ok(measured)
    }
}

/// Times between the tokens of running answers.
struct Gaps {
    seconds: Vec<f64>,
    /// What each of those steps computed.
    work: Vec<WorkTotals>,
    answers: Vec<Vec<TokenId>>,
    first_token: Option<TokenId>,
}

fn gaps(engine: &mut Engine, done: impl Fn(Option<RequestId>, usize) -> bool) -> Result<Gaps, LabError> {
    let mut gaps =
        Gaps { seconds: Vec::new(), work: Vec::new(), answers: vec![Vec::new(); NUM_ANSWERS], first_token: None };
    for step in 1.. {
        let before = engine.stats().work;
        let started = Instant::now();
        let outputs = engine.step()?;
        gaps.seconds.push(started.elapsed().as_secs_f64());
        gaps.work.push(engine.stats().work - before);
        let ended = outputs.iter().find(|output| output.finish.is_some());
        for (answer, output) in gaps.answers.iter_mut().zip(&outputs) {
            answer.extend(output.tokens.iter().map(|token| token.id));
        }
        if done(ended.map(|output| output.id), step) {
            gaps.first_token = ended.and_then(|output| output.tokens.first()).map(|token| token.id);
            break;
        }
    }
    Ok(gaps)
}
