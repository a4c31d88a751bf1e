//! The proof behind every switch, generated from the registry: with it and without it the same requests give the same
//! logits, bit for bit, or the same tokens, as its exactness class says. A fault in the cache must trip the gate.

#![allow(clippy::unwrap_used, clippy::unimplemented, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aisp_engine::kv_cache::KvPlacement;
use aisp_engine::loader::{LoadOptions, load};
use aisp_engine::model::Decoder;
use aisp_engine::optimizations::Exactness;
use aisp_engine::runner::{DecoderRunner, KvStore, ModelRunner, SequenceInput, StepInput};
use aisp_engine::scheduler::SchedulerConfig;
use aisp_engine::text::Tokenizer;
use aisp_engine::{
    BuildContext, Components, Engagement, Engine, EngineError, EngineParts, ModelInfo, Optimization, Request,
    SamplingParams, Selection, TokenId,
};
use candle_core::{DType, Device, Tensor};

const TEXT: &str = include_str!("data/english.txt");

/// Bits of the logits at each position of each request.
type Logits = BTreeMap<(u64, usize), Vec<u32>>;

/// Tokens of each request.
type Answers = BTreeMap<u64, Vec<TokenId>>;

/// Writes down all logits on their way to the sampler.
struct Recorder {
    inner: DecoderRunner,
    logits: Arc<Mutex<Logits>>,
}

impl ModelRunner for Recorder {
    fn execute(&mut self, input: &StepInput, engagement: &mut Engagement) -> Result<Tensor, EngineError> {
        let logits = self.inner.execute(input, engagement)?;
        let rows = logits.to_vec2::<f32>()?;
        let mut record = self.logits.lock().unwrap();
        for sequence in &input.sequences {
            for at in sequence.logits.clone() {
                let position = input.positions[input.logit_rows[at] as usize] as usize;
                let bits: Vec<u32> = rows[at].iter().map(|logit| logit.to_bits()).collect();
                // A preempted request computes positions again: they must come out the same.
                let key = (sequence.id.0, position);
                let before = record.insert(key, bits.clone());
                assert!(before.is_none_or(|before| before == bits), "{key:?} differs when computed again");
            }
        }
        Ok(logits)
    }
}

/// The fault that the gate exists for: reads of one layer take the second block of a sequence for the first.
struct OffByOneBlock(Box<dyn KvStore>);

impl KvStore for OffByOneBlock {
    fn write(&mut self, layer: usize, k: &Tensor, v: &Tensor, input: &StepInput) -> candle_core::Result<()> {
        self.0.write(layer, k, v, input)
    }

    fn read(&self, layer: usize, sequence: &SequenceInput) -> candle_core::Result<(Tensor, Tensor)> {
        let mut sequence = sequence.clone();
        if let KvPlacement::Paged { block_table } = &mut sequence.placement
            && layer == 1
            && block_table.len() > 1
        {
            block_table[0] = block_table[1];
        }
        self.0.read(layer, &sequence)
    }

    fn optimization(&self) -> Option<Optimization> {
        self.0.optimization()
    }
}

struct Workload {
    model: &'static str,
    num_requests: usize,
    max_tokens: usize,
    num_kv_slots: usize,
}

struct Outcome {
    logits: Logits,
    answers: Answers,
    num_preemptions: u64,
    engaged: Vec<&'static str>,
}

impl Workload {
    fn run(&self, selection: &Selection, wrap: fn(Box<dyn KvStore>) -> Box<dyn KvStore>) -> Outcome {
        let (device, dtype) = (Device::Cpu, DType::F32);
        let mut checkpoint = load(&self.model.parse().unwrap(), &LoadOptions::default()).unwrap();
        let config = checkpoint.config.clone();
        let context = BuildContext { config: &config, dtype, device: &device, num_kv_slots: self.num_kv_slots };
        let components = Components::build(&selection.plan(), &context).unwrap();
        let decoder = Decoder::new(&config, &mut checkpoint.weights, 512, dtype, &device).unwrap();
        let tokenizer = Tokenizer::new(checkpoint.tokenizer).unwrap();
        let logits = Arc::new(Mutex::new(Logits::new()));
        let runner = DecoderRunner::new(decoder, wrap(components.kv_store));
        let mut engine = Engine::from_parts(EngineParts {
            info: ModelInfo {
                name: checkpoint.name,
                weight_format: checkpoint.weight_format,
                num_parameters: checkpoint.num_parameters,
                weight_bytes: checkpoint.weight_bytes,
                vocab_size: config.vocab_size,
                max_model_len: 512,
                eos_token_ids: config.eos_token_ids.clone(),
                num_kv_slots: self.num_kv_slots,
                kv_cache_bytes: 0,
                device: "cpu".into(),
            },
            runner: Box::new(Recorder { inner: runner, logits: logits.clone() }),
            kv: components.kv_manager,
            admission: components.admission,
            sampler: components.sampler,
            scheduler: SchedulerConfig { max_num_seqs: 4, max_num_batched_tokens: 256 },
            selection: selection.clone(),
            tokenizer: Some(tokenizer.clone()),
            chat_template: None,
            seed: 0,
        });
        let answers = self.drive(&mut engine, &tokenizer);
        let engaged = engine.optimizations().iter().filter(|status| status.engaged).map(|status| status.name).collect();
        let num_preemptions = engine.stats().scheduler.num_preemptions;
        assert_eq!(engine.stats().kv.reserved_tokens, 0, "room is left reserved");
        drop(engine);
        let logits = Arc::try_unwrap(logits).unwrap().into_inner().unwrap();
        Outcome { logits, answers, num_preemptions, engaged }
    }

    /// Requests arrive two a step, prompts and answers of many lengths, greedy and drawn.
    fn drive(&self, engine: &mut Engine, tokenizer: &Tokenizer) -> Answers {
        let tokens = tokenizer.encode(TEXT, false).unwrap();
        let mut answers = Answers::new();
        let mut next = 0;
        while next < self.num_requests || engine.has_unfinished() {
            let arriving = next..(next + 2).min(self.num_requests);
            next = arriving.end;
            for i in arriving {
                let start = i * 29 % 400;
                let prompt = tokens[start..start + 1 + i * 37 % 90].to_vec();
                let max_tokens = 1 + i * 13 % self.max_tokens;
                let params = SamplingParams {
                    temperature: if i % 2 == 0 { 0.0 } else { 0.8 },
                    seed: Some(i as u64),
                    ignore_eos: true,
                    ..SamplingParams::greedy(max_tokens)
                };
                let id = engine.add_request(Request::new(prompt, params)).unwrap();
                answers.insert(id.0, Vec::new());
            }
            for output in engine.step().unwrap() {
                answers.get_mut(&output.id.0).unwrap().extend(output.tokens.iter().map(|token| token.id));
            }
        }
        answers
    }
}

/// Whether the outcome of an optimization passes the gate of its class.
fn passes(exactness: Exactness, baseline: &Outcome, optimized: &Outcome) -> bool {
    match exactness {
        Exactness::Bitwise => baseline.logits == optimized.logits && baseline.answers == optimized.answers,
        Exactness::SameTokens => baseline.answers == optimized.answers,
        Exactness::Tolerance | Exactness::Lossy => unimplemented!("no optimization of this class is in the registry"),
    }
}

fn check(workload: &Workload) {
    let baseline = workload.run(&Selection::none(), |store| store);
    let selections = Optimization::ALL
        .into_iter()
        .map(|o| (Selection::of(o.spec().requires.iter().copied().chain([o])).unwrap(), o.spec().exactness))
        .chain([(Selection::exact(), Exactness::SameTokens), (Selection::all(), Exactness::SameTokens)]);
    for (selection, exactness) in selections {
        let optimized = workload.run(&selection, |store| store);
        assert!(passes(exactness, &baseline, &optimized), "{}: {selection} is not {exactness}", workload.model);
        // Stronger than the class asks for: our CPU kernels are batch-invariant.
        assert!(baseline.logits == optimized.logits, "{}: {selection} changes bits", workload.model);
        let names: Vec<_> = selection.iter().map(Optimization::name).collect();
        assert_eq!(optimized.engaged, names, "requested but not engaged");
    }
}

#[test]
fn every_switch_keeps_the_built_in_models_answers() {
    check(&Workload { model: "", num_requests: 24, max_tokens: 40, num_kv_slots: 1024 });
}

#[test]
fn every_switch_keeps_plain_weights_answers() {
    check(&Workload { model: "dummy:tiny", num_requests: 24, max_tokens: 40, num_kv_slots: 1024 });
}

#[test]
fn every_switch_keeps_smollm2s_answers() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(std::path::Path::new(model).exists(), "run scripts/get-model.sh first");
    check(&Workload { model, num_requests: 8, max_tokens: 12, num_kv_slots: 1024 });
}

#[test]
fn preemption_is_invisible() {
    let roomy = Workload { model: "", num_requests: 24, max_tokens: 60, num_kv_slots: 2048 };
    let tight = Workload { num_kv_slots: 192, ..roomy };
    let unpressured = Workload { model: "", num_requests: 24, max_tokens: 60, num_kv_slots: 2048 };
    let expected = unpressured.run(&Selection::all(), |store| store);
    let preempted = tight.run(&Selection::all(), |store| store);
    assert!(preempted.num_preemptions > 0, "the cache was never full");
    assert_eq!(expected.num_preemptions, 0);
    assert!(expected.logits == preempted.logits && expected.answers == preempted.answers);
}

#[test]
fn an_off_by_one_block_trips_the_gate() {
    let workload = Workload { model: "", num_requests: 6, max_tokens: 20, num_kv_slots: 1024 };
    let paged = Selection::of([Optimization::PagedKv]).unwrap();
    let baseline = workload.run(&Selection::none(), |store| store);
    let faulty = workload.run(&paged, |store| Box::new(OffByOneBlock(store)));
    assert!(!passes(Exactness::Bitwise, &baseline, &faulty));
}
