//! `ch16:prefix_caching`: long prompts whose first nine tenths are known, with and without the prefix cache; and what the
//! cache costs where nothing is ever known.

use std::time::{Duration, Instant};

use aisp_engine::optimizations::Exactness;
use aisp_engine::{Engine, ModelSource, Optimization, Request, SamplingParams, Selection, TokenId};

use super::engine_experiment::{engaged, tolerance};
use super::requests::TEXT;
use crate::LabError;
use crate::fingerprint::Fingerprint;
use crate::gate::Outputs;
use crate::lab::{ArmSpec, Experiment, Lab, LabContext, LabInfo, Measured};
use crate::record::{Goal, Workload};
use crate::roofline::ArmWork;

/// Tokens of a prompt, where the model's context allows.
const PROMPT_TOKENS: usize = 1024;

/// Timed prompts of a pass.
const NUM_PROMPTS: usize = 4;

/// What prompts have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompts {
    /// Nine tenths, computed once before the clock starts.
    Shared,
    /// Nothing.
    Distinct,
}

/// The lab.
#[derive(Debug, Clone, Copy)]
pub struct PrefixCachingLab(pub Prompts);

impl Lab for PrefixCachingLab {
    fn info(&self) -> LabInfo {
        let (name, summary) = match self.0 {
            Prompts::Shared => ("prefix_caching", "time to first token where 90 % of a long prompt is known"),
            Prompts::Distinct => ("prefix_caching_without_hits", "what the prefix cache costs where nothing is known"),
        };
        LabInfo {
            id: format!("ch16:{name}"),
            summary: summary.into(),
            goal: Goal::Latency,
            tags: vec!["engine".into()],
            tolerance: tolerance(Exactness::SameTokens),
        }
    }

    fn prepare(&self, context: &LabContext) -> Result<Box<dyn Experiment>, LabError> {
        // The same kernels in both arms.
        let kernels = [Optimization::FusedOps, Optimization::KvF16];
        let with = Selection::closed(kernels.into_iter().chain([Optimization::PrefixCache]));
        let arms = vec![("none", Selection::closed(kernels)), ("prefix-cache", with)];
        let probe = Engine::builder().model(context.model.clone()).max_num_seqs(1).build()?;
        let prompt_tokens = PROMPT_TOKENS.min(probe.model_info().max_model_len - 2);
        let text = long_text(&probe, 2 * PROMPT_TOKENS)?;
        let num_shared = match self.0 {
            Prompts::Shared => prompt_tokens * 9 / 10,
            Prompts::Distinct => 0,
        };
        let prompt = |at: usize| {
            let own = text[7 * at + 1..].iter().take(prompt_tokens - num_shared);
            text[..num_shared].iter().chain(own).copied().collect::<Vec<TokenId>>()
        };
        let prompts: Vec<Vec<TokenId>> = (0..=NUM_PROMPTS).map(prompt).collect();
        let mut hash = Fingerprint::default();
        hash.add(context.model.to_string().as_bytes());
        for prompt in &prompts {
            hash.add_u32(prompt);
        }
        Ok(Box::new(PrefixCaching {
            model: context.model.clone(),
            fingerprint: hash.finish(),
            num_shared,
            prompts,
            arms,
            engines: Vec::new(),
        }))
    }
}

/// Real text, repeated until it is long enough.
pub fn long_text(engine: &Engine, num_tokens: usize) -> Result<Vec<TokenId>, LabError> {
    let text = match engine.tokenizer() {
        Some(tokenizer) => tokenizer.encode(TEXT, false).map_err(aisp_engine::EngineError::from)?,
        None => (0..512).map(|at| at % engine.model_info().vocab_size as u32).collect(),
    };
    Ok(text.iter().cycle().take(num_tokens).copied().collect())
}

struct PrefixCaching {
    model: ModelSource,
    fingerprint: String,
    num_shared: usize,
    /// The first is not timed: it makes the common part known.
    prompts: Vec<Vec<TokenId>>,
    arms: Vec<(&'static str, Selection)>,
    engines: Vec<Engine>,
}

impl PrefixCaching {
    fn first_token(engine: &mut Engine, prompt: &[TokenId]) -> Result<(Duration, TokenId), LabError> {
        let started = Instant::now();
        let request = Request::new(prompt.to_vec(), SamplingParams::greedy(1));
        engine.add_request(request).map_err(aisp_engine::EngineError::from)?;
        loop {
            if let Some(token) = engine.step()?.first().and_then(|output| output.tokens.first()) {
                return Ok((started.elapsed(), token.id));
            }
        }
    }
}

impl Experiment for PrefixCaching {
    fn workload(&self) -> Workload {
        let len = self.prompts[0].len();
        Workload {
            description: format!(
                "{}: {NUM_PROMPTS} prompts of {len} tokens, {} of them common, one after another",
                self.model, self.num_shared
            ),
            fingerprint: self.fingerprint.clone(),
            requests: Some(NUM_PROMPTS as u64),
            tokens: Some((NUM_PROMPTS * len) as u64),
            bytes: None,
            flops: None,
        }
    }

    fn arms(&self) -> Vec<ArmSpec> {
        self.arms.iter().map(|(name, selection)| ArmSpec::stack(name, selection)).collect()
    }

    fn set_up(&mut self, arm: usize) -> Result<(), LabError> {
        let builder = Engine::builder().model(self.model.clone()).optimizations(self.arms[arm].1.clone());
        let max_model_len = self.prompts[0].len() + 2;
        self.engines.push(builder.max_model_len(Some(max_model_len)).max_num_seqs(8).build()?);
        Ok(())
    }

    fn run(&mut self, arm: usize) -> Result<Measured, LabError> {
        let engine = &mut self.engines[arm];
        engine.reset_prefix_cache();
        let (first, timed) = self.prompts.split_at(1);
        // Twice, so that the cache is seen to work also where the timed prompts have nothing in common.
        for _ in 0..2 {
            Self::first_token(engine, &first[0])?;
        }
        let before = engine.stats().work;
        let (mut duration, mut tokens) = (Duration::ZERO, Vec::new());
        for prompt in timed {
            let (took, token) = Self::first_token(engine, prompt)?;
            duration += took;
            tokens.push(vec![token]);
        }
        let mut measured = Measured::new(duration, self.fingerprint.clone(), Outputs::Tokens(tokens));
        measured.work = Some(ArmWork::since(&before, engine));
        measured.engaged = engaged(engine, &self.arms[arm].1);
        measured.metrics.insert("ttft_ms".into(), duration.as_secs_f64() * 1e3 / NUM_PROMPTS as f64);
        Ok(measured)
    }
}
