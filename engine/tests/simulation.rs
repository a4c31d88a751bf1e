//! The engine without a model: scheduler, KV cache and a virtual clock under random loads, replayed from a seed.
//!
//! `AISP_SIMULATIONS=100000` runs as many; `AISP_SIMULATION_SEED=17` runs that one.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aisp_engine::kv_cache::{ContiguousManager, KvCacheManager, PagedManager};
use aisp_engine::model::ModelWork;
use aisp_engine::prefix_cache::{BlockChain, NoPrefixCache, PrefixCache};
use aisp_engine::runner::{Logits, MockFault, MockRunner, ModelRunner, OverlappedRunner, StepInput};
use aisp_engine::sampler::SortSampler;
use aisp_engine::scheduler::{
    AdmissionPolicy, ChunkedPrefill, ContinuousBatching, PrefillPolicy, SchedulerConfig, SchedulerPolicies,
    StaticBatching, WholePrompt,
};
use aisp_engine::{
    Engagement, Engine, EngineError, EngineParts, ModelInfo, Optimization, Request, RequestId, SamplingParams,
    Selection, TokenId,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const VOCAB_SIZE: usize = 32;
const MAX_MODEL_LEN: usize = 256;

/// A step takes as long as its tokens, in virtual time.
struct TimedRunner {
    inner: MockRunner,
    now_us: Arc<AtomicU64>,
    lose_copies: bool,
    /// The device mistakes whose token is whose.
    swaps_choices: bool,
}

impl TimedRunner {
    fn seen(&self, input: &StepInput) -> StepInput {
        self.now_us.fetch_add(100 + 10 * input.token_ids.len() as u64, Ordering::Relaxed);
        let mut input = input.clone();
        if self.lose_copies {
            input.copies.clear();
        }
        if self.swaps_choices
            && let [first, second, ..] = input.pending.as_mut_slice()
        {
            std::mem::swap(&mut first.choice, &mut second.choice);
        }
        input
    }
}

impl ModelRunner for TimedRunner {
    fn execute(
        &mut self,
        input: &StepInput,
        logits: &mut Logits,
        engagement: &mut Engagement,
    ) -> Result<(), EngineError> {
        self.inner.execute(&self.seen(input), logits, engagement)
    }

    fn overlapped(&mut self) -> Option<&mut dyn OverlappedRunner> {
        Some(self)
    }
}

impl OverlappedRunner for TimedRunner {
    fn submit(&mut self, input: &StepInput, engagement: &mut Engagement) -> Result<(), EngineError> {
        self.inner.submit(&self.seen(input), engagement)
    }

    fn keeps_choices(&self, input: &StepInput) -> bool {
        self.inner.keeps_choices(input)
    }

    fn collect(&mut self, logits: &mut Logits) -> Result<(), EngineError> {
        self.inner.collect(logits)
    }
}

#[derive(Debug, Clone, Copy)]
struct Config {
    continuous: bool,
    chunk_tokens: Option<usize>,
    paged: bool,
    prefix_cache: bool,
    num_kv_slots: usize,
    scheduler: SchedulerConfig,
    overlapped: bool,
    fault: Option<MockFault>,
    lose_copies: bool,
    swaps_choices: bool,
}

impl Config {
    const ROOMY: Self = Self {
        continuous: false,
        chunk_tokens: None,
        paged: false,
        prefix_cache: false,
        num_kv_slots: 1 << 16,
        scheduler: SchedulerConfig { max_num_seqs: 64, max_num_batched_tokens: 1 << 14 },
        overlapped: false,
        fault: None,
        lose_copies: false,
        swaps_choices: false,
    };

    fn draw(rng: &mut ChaCha8Rng) -> Self {
        let paged = rng.random_bool(0.8);
        Self {
            continuous: rng.random_bool(0.8),
            chunk_tokens: rng.random_bool(0.7).then(|| rng.random_range(1..80)),
            paged,
            prefix_cache: paged && rng.random_bool(0.7),
            num_kv_slots: rng.random_range(MAX_MODEL_LEN..4 * MAX_MODEL_LEN) / 32 * 32,
            scheduler: SchedulerConfig {
                max_num_seqs: rng.random_range(1..12),
                max_num_batched_tokens: rng.random_range(1..300),
            },
            overlapped: rng.random_bool(0.5),
            ..Self::ROOMY
        }
    }

    fn engine(self, now_us: &Arc<AtomicU64>, start: Instant) -> Engine {
        let mut inner = MockRunner::new(VOCAB_SIZE);
        if let Some(fault) = self.fault {
            inner = inner.with_fault(fault);
        }
        let prefix: Box<dyn PrefixCache> =
            if self.prefix_cache { Box::new(BlockChain::default()) } else { Box::new(NoPrefixCache) };
        let kv: Box<dyn KvCacheManager> = match self.paged {
            true => Box::new(PagedManager::new(self.num_kv_slots, prefix)),
            false => Box::new(ContiguousManager::new(self.num_kv_slots, 32)),
        };
        let admission: Box<dyn AdmissionPolicy> =
            if self.continuous { Box::new(ContinuousBatching) } else { Box::new(StaticBatching) };
        let prefill: Box<dyn PrefillPolicy> = match self.chunk_tokens {
            Some(chunk_tokens) => Box::new(ChunkedPrefill { chunk_tokens }),
            None => Box::new(WholePrompt),
        };
        let clock = now_us.clone();
        Engine::from_parts(EngineParts {
            info: ModelInfo {
                name: "mock".into(),
                weight_format: String::new(),
                num_parameters: 0,
                weight_bytes: 0,
                vocab_size: VOCAB_SIZE,
                max_model_len: MAX_MODEL_LEN,
                eos_token_ids: vec![0],
                num_kv_slots: self.num_kv_slots,
                kv_cache_bytes: 0,
                device: "mock".into(),
                work: ModelWork::default(),
            },
            runner: Box::new(TimedRunner {
                inner,
                now_us: now_us.clone(),
                lose_copies: self.lose_copies,
                swaps_choices: self.swaps_choices,
            }),
            kv,
            policies: SchedulerPolicies { admission, prefill },
            sampler: Box::new(SortSampler),
            scheduler: self.scheduler,
            selection: match self.overlapped {
                true => Selection::closed([Optimization::OverlappedScheduling]),
                false => Selection::none(),
            },
            engagement: Engagement::default(),
            tokenizer: None,
            chat_template: None,
            seed: 0,
            clock: Box::new(move || start + Duration::from_micros(clock.load(Ordering::Relaxed))),
        })
    }
}

/// What happens at a virtual time.
#[derive(Debug, Clone)]
struct Arrival {
    at_us: u64,
    request: Request,
    params: Vec<SamplingParams>,
    /// Steps after which the client hangs up on its first answer.
    abort_after: Option<u64>,
}

fn draw_load(rng: &mut ChaCha8Rng, start: Instant) -> Vec<Arrival> {
    let mut at_us = 0;
    (0..rng.random_range(1..25))
        .map(|_| {
            at_us += rng.random_range(0..4000);
            // Few beginnings, so that prompts share them.
            let family = rng.random_range(0..3u32);
            let prompt: Vec<TokenId> =
                (0..rng.random_range(1..150u32)).map(|at| 1 + (at / 50 * family + at) % 30).collect();
            let first = SamplingParams {
                ignore_eos: rng.random_bool(0.5),
                prompt_logprobs: rng.random_bool(0.1).then_some(1),
                ..SamplingParams::greedy(rng.random_range(1..100))
            };
            let num_choices: u64 = if rng.random_bool(0.2) { rng.random_range(2..5) } else { 1 };
            let choice = |at: u64| SamplingParams { seed: Some(at), temperature: 3.0 * at as f32, ..first.clone() };
            let abort_after = rng.random_bool(0.1).then(|| rng.random_range(0..40));
            let request = Request {
                arrival: start + Duration::from_micros(at_us),
                priority: rng.random_range(-1..2),
                cache_salt: rng.random_bool(0.3).then(|| Arc::from("salt")),
                ..Request::new(prompt, SamplingParams::default())
            };
            Arrival { at_us, request, params: (0..num_choices).map(choice).collect(), abort_after }
        })
        .collect()
}

/// Tokens of every answer; those that were aborted are not complete.
#[derive(Debug, PartialEq)]
struct Outcome {
    answers: BTreeMap<RequestId, Vec<TokenId>>,
    aborted: BTreeSet<RequestId>,
    num_preemptions: u64,
    num_hit_tokens: u64,
    num_overlapped: u64,
    failed: bool,
}

fn run(config: Config, load: &[Arrival], start: Instant) -> Outcome {
    let now_us = Arc::new(AtomicU64::new(0));
    let mut engine = config.engine(&now_us, start);
    let mut answers: BTreeMap<RequestId, Vec<TokenId>> = BTreeMap::new();
    let (mut ended, mut aborted) = (BTreeSet::new(), BTreeSet::new());
    let mut hang_ups: Vec<(u64, RequestId)> = Vec::new();
    let mut arrivals = load.iter().peekable();
    let most_steps = 2000 + 40 * load.iter().map(|a| 250 * a.params.len() as u64).sum::<u64>();
    let mut failed = false;
    for step in 0.. {
        assert!(step < most_steps, "somebody starves");
        while let Some(arrival) =
            arrivals.next_if(|a| a.at_us <= now_us.load(Ordering::Relaxed) || !engine.has_unfinished())
        {
            now_us.fetch_max(arrival.at_us, Ordering::Relaxed);
            let ids = engine.add_parallel(arrival.request.clone(), arrival.params.clone()).unwrap();
            hang_ups.extend(arrival.abort_after.map(|after| (step + after, ids[0])));
            answers.extend(ids.into_iter().map(|id| (id, Vec::new())));
        }
        for &(_, id) in hang_ups.iter().filter(|(at, id)| *at == step && !ended.contains(id)) {
            assert!(engine.abort(id), "{id} is gone before its end");
            aborted.insert(id);
        }
        if !engine.has_unfinished() && arrivals.peek().is_none() {
            break;
        }
        let Ok(outputs) = engine.step() else {
            // What was under way is lost, but nothing that it held.
            for &id in answers.keys() {
                engine.abort(id);
            }
            failed = true;
            break;
        };
        for output in outputs {
            assert!(!ended.contains(&output.id) && !aborted.contains(&output.id), "an output after the end");
            answers.get_mut(&output.id).unwrap().extend(output.tokens.iter().map(|token| token.id));
            let timings = output.timings;
            assert!(Some(timings.arrival) <= timings.first_scheduled && timings.first_scheduled <= timings.first_token);
            if output.finish.is_some() {
                ended.insert(output.id);
            }
        }
    }
    let stats = engine.stats();
    assert_eq!(stats.kv.reserved_tokens, 0, "room is left reserved");
    assert_eq!((stats.num_requests_running, stats.num_requests_waiting), (0, 0));
    assert!(engine.reset_prefix_cache());
    if !failed {
        assert_eq!(ended.len() + aborted.len(), answers.len(), "somebody was forgotten");
    }
    Outcome {
        answers,
        aborted,
        num_preemptions: stats.scheduler.num_preemptions,
        num_hit_tokens: stats.scheduler.num_prefix_hit_tokens,
        num_overlapped: engine.optimizations()[Optimization::OverlappedScheduling as usize].count,
        failed,
    }
}

/// Whether two runs gave the same answers, as far as both went.
fn agree(a: &Outcome, b: &Outcome) -> bool {
    a.answers.iter().all(|(id, tokens)| {
        let other = &b.answers[id];
        let cut = a.aborted.contains(id) || b.aborted.contains(id);
        let common = if cut { tokens.len().min(other.len()) } else { tokens.len().max(other.len()) };
        tokens.get(..common).is_some_and(|tokens| Some(tokens) == other.get(..common))
    })
}

fn check(seed: u64) -> [u64; 3] {
    let start = Instant::now();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let load = draw_load(&mut rng, start);
    let config = Config::draw(&mut rng);
    let expected = run(Config::ROOMY, &load, start);
    let outcome = run(config, &load, start);
    assert!(agree(&expected, &outcome), "seed {seed}: pressure changes answers under {config:?}");
    assert!(outcome == run(config, &load, start), "seed {seed}: the replay differs");
    [outcome.num_preemptions, outcome.num_hit_tokens, outcome.num_overlapped]
}

#[test]
fn no_random_load_breaks_anything() {
    if let Ok(seed) = std::env::var("AISP_SIMULATION_SEED") {
        check(seed.parse().unwrap());
        return;
    }
    let count: u64 = std::env::var("AISP_SIMULATIONS").map_or(300, |count| count.parse().unwrap());
    let mut sums = [0; 3];
    for seed in 0..count {
        sums.iter_mut().zip(check(seed)).for_each(|(sum, value)| *sum += value);
    }
    let [num_preemptions, num_hit_tokens, num_overlapped] = sums;
    assert!(num_preemptions > count / 4, "{num_preemptions} preemptions");
    assert!(num_hit_tokens > count, "{num_hit_tokens} tokens of known beginnings");
    assert!(num_overlapped > count, "{num_overlapped} tokens handed on by the device");
}

#[test]
fn a_failure_at_any_step_leaves_nothing_behind() {
    [false, true].into_iter().for_each(fails_at_any_step);
}

fn fails_at_any_step(overlapped: bool) {
    let start = Instant::now();
    let mut rng = ChaCha8Rng::seed_from_u64(20);
    let load = draw_load(&mut rng, start);
    let config = Config {
        continuous: true,
        chunk_tokens: Some(16),
        paged: true,
        prefix_cache: true,
        num_kv_slots: 512,
        scheduler: SchedulerConfig { max_num_seqs: 4, max_num_batched_tokens: 128 },
        overlapped,
        ..Config::ROOMY
    };
    let mut num_failures = 0;
    for step in 0.. {
        let outcome = run(Config { fault: Some(MockFault::ErrorAtStep(step)), ..config }, &load, start);
        if !outcome.failed {
            break;
        }
        num_failures += 1;
    }
    assert!(num_failures > 50, "{num_failures} steps");
}

#[test]
fn sequences_give_way_where_a_device_has_no_memory() {
    let start = Instant::now();
    let paged = Config { paged: true, continuous: true, ..Config::ROOMY };
    let mut num_preemptions = 0;
    for seed in 0..40 {
        let tight = Config { fault: Some(MockFault::OutOfMemoryAbove(2)), overlapped: seed % 2 == 1, ..paged };
        let load = draw_load(&mut ChaCha8Rng::seed_from_u64(seed), start);
        let outcome = run(tight, &load, start);
        assert!(!outcome.failed && agree(&run(paged, &load, start), &outcome), "seed {seed}");
        num_preemptions += outcome.num_preemptions;
    }
    assert!(num_preemptions > 20, "{num_preemptions} preemptions");
    // One that runs alone has nobody to give way, and the engine says so.
    let none = Config { fault: Some(MockFault::OutOfMemoryAbove(0)), ..paged };
    assert!(run(none, &draw_load(&mut ChaCha8Rng::seed_from_u64(0), start), start).failed);
}

#[test]
fn a_lost_copy_changes_answers() {
    let start = Instant::now();
    let differs = |seed| {
        let load = draw_load(&mut ChaCha8Rng::seed_from_u64(seed), start);
        let paged = Config { paged: true, continuous: true, ..Config::ROOMY };
        !agree(&run(paged, &load, start), &run(Config { lose_copies: true, ..paged }, &load, start))
    };
    assert!((0..20).any(differs), "the fault goes unseen");
}

#[test]
fn overlapped_steps_give_the_same_answers() {
    let start = Instant::now();
    let overlapped = Config { paged: true, continuous: true, overlapped: true, ..Config::ROOMY };
    let run_of = |seed, config| run(config, &draw_load(&mut ChaCha8Rng::seed_from_u64(seed), start), start);
    let mut num_overlapped = 0;
    for seed in 0..50 {
        let outcome = run_of(seed, overlapped);
        assert!(agree(&run_of(seed, Config::ROOMY), &outcome), "seed {seed}");
        num_overlapped += outcome.num_overlapped;
    }
    assert!(num_overlapped > 5000, "{num_overlapped} tokens handed on");
    let mistaken = Config { swaps_choices: true, ..overlapped };
    let differs = |seed| !agree(&run_of(seed, overlapped), &run_of(seed, mistaken));
    assert!((0..20).any(differs), "the fault goes unseen");
}
