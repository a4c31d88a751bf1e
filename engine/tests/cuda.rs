//! The GPU against the CPU: the candle baseline and the own kernels over real text, and what must be equal bit for bit.
//! Every test needs an NVIDIA GPU: `make test-cuda`.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use aisp_engine::optimizations::LogitBound;
use aisp_engine::{
    DeviceChoice, DeviceKind, Engine, EngineBuilder, Optimization, Products, Request, SamplingParams, Selection,
    TokenId,
};
use candle_core::DType;
use support::forced::{Distance, PLAIN, Run, distance};
use support::{Fault, LogitBits, Recorder, SMOLLM2, TEXT};

const GPU: DeviceChoice = DeviceChoice::Cuda { index: 0 };

fn on_gpu(model: &str) -> Run<'_> {
    Run { device: GPU, ..Run::on_cpu(model) }
}

fn with(switches: &[Optimization]) -> Selection {
    Selection::closed_on(DeviceKind::Cuda, switches.iter().copied().chain([Optimization::FusedOps]))
}

/// Models with the weights that both sides compute with: exact arithmetic on the CPU is f32 on these.
fn models() -> Vec<&'static str> {
    let fetched = Path::new(SMOLLM2).exists().then_some(SMOLLM2);
    std::iter::once("").chain(fetched).collect()
}

fn report(name: &str, model: &str, measured: Distance) -> Distance {
    println!("{name:24} {:28} {measured:?}", model.rsplit('/').next().unwrap());
    measured
}

#[test]
#[ignore = "needs an NVIDIA GPU: make test-cuda"]
fn the_baseline_keeps_the_bound_of_a_kernel_in_f32() {
    for model in models() {
        let exact = Run { exact_weights: true, ..Run::on_cpu(model) }.forced(&Selection::none());
        let run = Run { exact_weights: true, dtype: Some(DType::F32), ..on_gpu(model) };
        for selection in ["none", "paged-kv"] {
            let selection = Selection::parse_on(selection, DeviceKind::Cuda).unwrap();
            let measured = report("baseline f32", model, distance(&exact, &run.forced(&selection)));
            assert!(measured.within(LogitBound::KERNEL), "{model}: {measured:?}");
        }
    }
}

/// Own kernels hold activations between ops in bf16: they may be no further from exact arithmetic than candle in bf16.
#[test]
#[ignore = "needs an NVIDIA GPU: make test-cuda"]
fn own_kernels_are_closer_to_exact_than_the_baseline_in_their_type() {
    let chunks = Optimization::ChunkedPrefill;
    for model in models() {
        let exact = Run { exact_weights: true, ..Run::on_cpu(model) }.forced(&Selection::none());
        let baseline = report("baseline bf16", model, distance(&exact, &on_gpu(model).forced(&Selection::none())));
        for (name, max_num_batched_tokens, selection) in [
            ("own, rows of 64", 64, with(&[chunks])),
            ("own, one row", 1, with(&[chunks])),
            ("own, graphs, one row", 1, with(&[chunks, Optimization::CudaGraphs])),
            ("own, wgmma", 512, with(&[chunks, Optimization::WgmmaLinear])),
            ("own, cuBLASLt", 512, with(&[chunks, Optimization::LibraryGemm])),
        ] {
            let run = Run { max_num_batched_tokens, ..on_gpu(model) };
            let measured = report(name, model, distance(&exact, &run.forced(&selection)));
            assert!(measured.mean_kl <= baseline.mean_kl / 4.0, "{name} {model}: {measured:?} against {baseline:?}");
            assert!(measured.within(LogitBound::BF16_KERNEL), "{name} {model}: {measured:?}");
        }
    }
}

/// Row by row, so that attention is that of decodes. Contexts of one block are one warp's in any case; longer ones are cut
/// otherwise.
#[test]
#[ignore = "needs an NVIDIA GPU: make test-cuda"]
fn adaptive_splits_keep_the_bound_of_a_kernel() {
    let (switch, chunks) = (Optimization::AdaptiveSplits, Optimization::ChunkedPrefill);
    for model in models() {
        let run = Run { max_num_batched_tokens: 1, ..on_gpu(model) };
        let fixed = run.forced(&with(&[chunks]));
        let adaptive = run.forced(&with(&[chunks, switch]));
        let first = fixed.first_difference(&adaptive);
        assert!(first.is_some_and(|row| (16..64).contains(&row)), "{model}: rows differ from {first:?} on");
        let measured = report(switch.name(), model, distance(&fixed, &adaptive));
        assert!(measured.within(switch.bound_on(DeviceKind::Cuda).unwrap()), "{model}: {measured:?}");
        let wrong = Run { fault: Fault::OffByOneBlock, ..run };
        let wrong = report("wrong block", model, distance(&fixed, &wrong.forced(&with(&[chunks, switch]))));
        assert!(!wrong.within(switch.bound_on(DeviceKind::Cuda).unwrap()), "{model}: {wrong:?}");
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU: make test-cuda"]
fn fewer_bits_keep_their_bounds() {
    let exact = Run::on_cpu(PLAIN).forced(&Selection::none());
    for switch in [
        Optimization::KvFp8,
        Optimization::KvFp4,
        Optimization::WeightsInt8,
        Optimization::WeightsInt4,
        Optimization::WeightsFp8,
        Optimization::WeightsFp4,
    ] {
        let bound = switch.bound_on(DeviceKind::Cuda).unwrap();
        for (max_num_batched_tokens, switches) in [(64, &[switch][..]), (512, &[switch, Optimization::WgmmaLinear])] {
            let run = Run { max_num_batched_tokens, ..on_gpu(PLAIN) };
            let measured = report(switch.name(), PLAIN, distance(&exact, &run.forced(&with(switches))));
            assert!(measured.within(bound), "{}: {measured:?} is beyond {bound:?}", switch.name());
        }
    }
}

/// All rows in one step, by either implementation: `forced` sees that it ran.
#[test]
#[ignore = "needs an NVIDIA GPU: make test-cuda"]
fn activations_in_fp8_keep_their_bound() {
    let (switch, name) = (Optimization::ActivationsFp8, Optimization::ActivationsFp8.name());
    let bound = switch.bound_on(DeviceKind::Cuda).unwrap();
    let exact = Run::on_cpu(PLAIN).forced(&Selection::none());
    let run = Run { max_num_batched_tokens: 512, ..on_gpu(PLAIN) };
    let weights = report("weights-fp8", PLAIN, distance(&exact, &run.forced(&with(&[Optimization::WeightsFp8]))));
    for products in [Products::WideFp8, Products::LibraryFp8] {
        let run = Run { products: Some(products), ..run };
        let measured = report(&format!("{name}, {products:?}"), PLAIN, distance(&exact, &run.forced(&with(&[switch]))));
        assert!(measured.within(bound), "{products:?}: {measured:?} is beyond {bound:?}");
        assert!(
            measured.mean_kl > weights.mean_kl,
            "{products:?}: {measured:?} against {weights:?}: x was not rounded"
        );
    }
    // The second part of the text reads the first from a wrong block.
    let parts = Run { fault: Fault::OffByOneBlock, max_num_batched_tokens: 256, ..run };
    let wrong = parts.forced(&with(&[switch, Optimization::ChunkedPrefill]));
    let wrong = report("wrong block", PLAIN, distance(&exact, &wrong));
    assert!(!wrong.within(bound), "{wrong:?}");
}

/// Weights that are quantized in the checkpoint are not fp8: their products stay as they are, and that is said.
#[test]
#[ignore = "needs an NVIDIA GPU: make test-cuda"]
fn activations_are_rounded_beside_fp8_weights_only() {
    let tokens = Engine::builder().build().unwrap().tokenizer().unwrap().encode(TEXT, false).unwrap();
    // A step of the whole prompt is fp8's; of the steps of one row after it none is.
    for (model, expected) in [("", 0), (PLAIN, 150)] {
        let builder = builder(&with(&[Optimization::ActivationsFp8])).model(model.parse().unwrap());
        let mut engine = builder.build().unwrap();
        engine.add_request(Request::new(tokens[..150].to_vec(), SamplingParams::greedy(4))).unwrap();
        while engine.has_unfinished() {
            engine.step().unwrap();
        }
        let status = engine.optimizations().into_iter().find(|status| status.name == "activations-fp8").unwrap();
        assert_eq!((status.requested, status.engaged, status.count), (true, expected > 0, expected), "`{model}`");
    }
}

/// The plain model with biases on Q, K and V, as Qwen2 has them.
fn biased(folder: &Path) {
    let read = |name: &str| std::fs::read(Path::new(PLAIN).join(name)).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&read("config.json")).unwrap();
    (config["architectures"], config["model_type"]) = (serde_json::json!(["Qwen2ForCausalLM"]), "qwen2".into());
    let file = read("model.safetensors");
    let (length, rest) = file.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut header: serde_json::Value = serde_json::from_slice(header).unwrap();
    let mut data = data.to_vec();
    for (layer, (part, len)) in (0..6).flat_map(|layer| [("q", 192), ("k", 64), ("v", 64)].map(|part| (layer, part))) {
        let start = data.len();
        let values = (0..len).map(|at| half::bf16::from_f32(0.06 * (at as f32 + layer as f32).sin()));
        data.extend(values.flat_map(half::bf16::to_le_bytes));
        header[format!("model.layers.{layer}.self_attn.{part}_proj.bias")] =
            serde_json::json!({ "dtype": "BF16", "shape": [len], "data_offsets": [start, data.len()] });
    }
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes();
    let written = [&length[..], header.as_bytes(), &data].concat();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), read("tokenizer.json")).unwrap();
    std::fs::write(folder.join("model.safetensors"), written).unwrap();
}

/// cuBLASLt adds no bias: such projections are own kernels' in steps that are cuBLASLt's otherwise.
#[test]
#[ignore = "needs an NVIDIA GPU: make test-cuda"]
fn biases_are_not_lost_beside_products_of_the_library() {
    let folder = tempfile::tempdir().unwrap();
    biased(folder.path());
    let model = folder.path().to_str().unwrap();
    let exact = Run::on_cpu(model).forced(&Selection::none());
    let lost = report("without biases", PLAIN, distance(&exact, &Run::on_cpu(PLAIN).forced(&Selection::none())));
    for (switch, products) in [
        (Optimization::LibraryGemm, Products::Library),
        (Optimization::ActivationsFp8, Products::LibraryFp8),
        (Optimization::ActivationsFp8, Products::WideFp8),
    ] {
        // Of the plain model the other bounds are; one position alone may be worse here.
        let bound = switch.bound_on(DeviceKind::Cuda).unwrap().mean_kl;
        assert!(lost.mean_kl > 4.0 * bound, "{lost:?}");
        let run = Run { max_num_batched_tokens: 512, products: Some(products), ..on_gpu(model) };
        let measured = report(&format!("{products:?}"), "biased", distance(&exact, &run.forced(&with(&[switch]))));
        assert!(measured.mean_kl <= bound, "{}: {measured:?} is beyond {bound}", switch.name());
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU: make test-cuda"]
fn a_wrong_block_is_beyond_the_bound() {
    let exact = Run::on_cpu(PLAIN).forced(&Selection::none());
    let run = Run { fault: Fault::OffByOneBlock, ..on_gpu(PLAIN) };
    let measured = report("wrong block", PLAIN, distance(&exact, &run.forced(&with(&[Optimization::ChunkedPrefill]))));
    assert!(!measured.within(LogitBound::BF16_KERNEL), "{measured:?}");
}

struct Served {
    answers: BTreeMap<u64, Vec<TokenId>>,
    logits: LogitBits,
    num_preemptions: u64,
}

/// Serves prompts of many lengths at once; without `fast-sampler` drawn ones bring their logits to the host.
fn serve(selection: &Selection, prompts: &[Vec<TokenId>], temperature: f32, num_kv_slots: usize) -> Served {
    let logits = Arc::new(Mutex::new(LogitBits::new()));
    let mut engine = builder(selection)
        .num_kv_slots(Some(num_kv_slots))
        .build_around(|inner| Box::new(Recorder { inner, logits: logits.clone(), fault: Fault::None }))
        .unwrap();
    for prompt in prompts {
        let params = SamplingParams { temperature, seed: Some(7), ..SamplingParams::greedy(24) };
        engine.add_request(Request::new(prompt.clone(), params)).unwrap();
    }
    let mut answers: BTreeMap<u64, Vec<TokenId>> = BTreeMap::new();
    while engine.has_unfinished() {
        for output in engine.step().unwrap() {
            answers.entry(output.id.0).or_default().extend(output.tokens.iter().map(|token| token.id));
        }
    }
    for status in engine.optimizations().iter().filter(|status| status.name == Optimization::CudaGraphs.name()) {
        assert_eq!(status.engaged, selection.contains(Optimization::CudaGraphs), "{}", status.name);
    }
    let num_preemptions = engine.stats().scheduler.num_preemptions;
    drop(engine);
    Served { answers, logits: Arc::try_unwrap(logits).unwrap().into_inner().unwrap(), num_preemptions }
}

fn builder(selection: &Selection) -> EngineBuilder {
    let builder = Engine::builder().device(GPU).optimizations(selection.clone());
    builder.max_model_len(Some(160)).max_num_seqs(32).max_num_batched_tokens(512)
}

fn prompts(count: usize) -> Vec<Vec<TokenId>> {
    let tokens = Engine::builder().build().unwrap().tokenizer().unwrap().encode(TEXT, false).unwrap();
    (0..count).map(|at| tokens[17 * at..17 * at + 2 + 7 * at % 60].to_vec()).collect()
}

#[test]
#[ignore = "needs an NVIDIA GPU: make test-cuda"]
fn recorded_steps_equal_eager_ones_bit_for_bit() {
    let join = [Optimization::ContinuousBatching, Optimization::ChunkedPrefill];
    for (count, temperature) in [(1, 1.0), (20, 1.0), (20, 0.0)] {
        let prompts = prompts(count);
        let eager = serve(&with(&join), &prompts, temperature, 4096);
        let recorded = serve(&with(&[join[0], join[1], Optimization::CudaGraphs]), &prompts, temperature, 4096);
        assert!(eager.logits == recorded.logits, "logits differ");
        assert_eq!(eager.answers, recorded.answers);
    }
}

#[test]
#[ignore = "needs an NVIDIA GPU: make test-cuda"]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    let prompts = prompts(20);
    let selection = with(&[Optimization::ContinuousBatching]);
    let together = serve(&selection, &prompts, 1.0, 4096);
    for at in [0, 3, 19] {
        let alone = serve(&selection, &prompts[at..=at], 1.0, 4096);
        assert_eq!(alone.answers[&0], together.answers[&(at as u64)]);
        for ((_, position), bits) in &alone.logits {
            assert!(together.logits[&(at as u64, *position)] == *bits, "request {at} differs at {position}");
        }
    }
}

/// Answers of one engine to prompts of which every second is drawn, each by other rules.
fn answers(engine: &mut Engine, prompts: &[Vec<TokenId>], logprobs: Option<usize>) -> BTreeMap<u64, Vec<TokenId>> {
    for (at, prompt) in prompts.iter().enumerate() {
        let params = SamplingParams {
            temperature: if at % 2 == 0 { 0.0 } else { 0.5 + 0.1 * at as f32 },
            top_k: [0, 40, 3][at % 3],
            top_p: [1.0, 0.9][at / 2 % 2],
            min_p: [0.0, 0.0, 0.05][at / 3 % 3],
            seed: Some(at as u64),
            logprobs,
            ..SamplingParams::greedy(100)
        };
        engine.add_request(Request::new(prompt.clone(), params)).unwrap();
    }
    let mut answers: BTreeMap<u64, Vec<TokenId>> = BTreeMap::new();
    while engine.has_unfinished() {
        for output in engine.step().unwrap() {
            answers.entry(output.id.0).or_default().extend(output.tokens.iter().map(|token| token.id));
        }
    }
    answers
}

#[test]
#[ignore = "needs an NVIDIA GPU: make test-cuda"]
fn the_device_picks_the_token_that_the_host_would() {
    let prompts = prompts(20);
    let selection = with(&[Optimization::ContinuousBatching, Optimization::FastSampler]);
    let mut engine = builder(&selection).build().unwrap();
    let device = answers(&mut engine, &prompts, None);
    let status = engine.optimizations().into_iter().find(|status| status.name == "fast-sampler").unwrap();
    assert!(status.count > 500, "{} tokens drawn", status.count);
    // Reported probabilities need the logits on the host.
    let host = answers(&mut builder(&selection).build().unwrap(), &prompts, Some(0));
    assert_eq!(device, host);
    let sorted = with(&[Optimization::ContinuousBatching]);
    assert_eq!(device, answers(&mut builder(&sorted).build().unwrap(), &prompts, None));
}

#[test]
#[ignore = "needs an NVIDIA GPU: make test-cuda"]
fn overlapped_steps_give_the_same_tokens() {
    let base = [
        Optimization::ContinuousBatching,
        Optimization::ChunkedPrefill,
        Optimization::FastSampler,
        Optimization::CudaGraphs,
    ];
    for count in [1, 20] {
        let prompts = prompts(count);
        let overlapped = base.into_iter().chain([Optimization::OverlappedScheduling]).collect::<Vec<_>>();
        let [plain, ahead] = [base.as_slice(), &overlapped].map(|switches| {
            let mut engine = builder(&with(switches)).build().unwrap();
            // The second time every step is recorded already.
            let first = answers(&mut engine, &prompts, None);
            let before = engine.stats().device_idle.unwrap();
            let again = answers(&mut engine, &prompts, None);
            let idle = engine.stats().device_idle.unwrap();
            assert!(first.into_values().eq(again.values().cloned()), "a seed answers twice alike");
            let gap = (idle.total - before.total) / (idle.num_gaps - before.num_gaps) as u32;
            println!("{count} sequences, {} switches: idle {gap:?} a step", switches.len());
            let status =
                engine.optimizations().into_iter().find(|status| status.name == "overlapped-scheduling").unwrap();
            assert_eq!(status.engaged, switches.len() > base.len());
            again
        });
        assert_eq!(plain, ahead);
    }
}

/// A prompt longer than a step's bound is computed in parts; the tokens that running answers wait for survive them.
#[test]
#[ignore = "needs an NVIDIA GPU: make test-cuda"]
fn a_long_prompt_beside_pending_tokens_is_no_danger() {
    let base = [Optimization::ContinuousBatching, Optimization::FastSampler];
    let prompts = prompts(6);
    let serve = |switches: &[Optimization]| {
        let mut engine = builder(&with(switches)).max_num_batched_tokens(64).build().unwrap();
        let mut answers: BTreeMap<u64, Vec<TokenId>> = BTreeMap::new();
        for at in 0..30 {
            if at == 0 || at == 9 {
                for prompt in &prompts {
                    engine.add_request(Request::new(prompt[..2].to_vec(), SamplingParams::greedy(24))).unwrap();
                }
                // It goes first, in parts, and asks for the probabilities of its own tokens.
                let params = SamplingParams { prompt_logprobs: Some(0), ..SamplingParams::greedy(4) };
                let long = prompts.iter().flatten().copied().cycle().take(130).collect();
                engine.add_request(Request { priority: -1, ..Request::new(long, params) }).unwrap();
            }
            for output in engine.step().unwrap() {
                answers.entry(output.id.0).or_default().extend(output.tokens.iter().map(|token| token.id));
            }
        }
        answers
    };
    let ahead = serve(&[base[0], base[1], Optimization::OverlappedScheduling]);
    let plain = serve(&base);
    let same = |(id, answer): (&u64, &Vec<TokenId>)| {
        let common = answer.len().min(ahead[id].len());
        assert!(common >= 8, "request {id} has {common} tokens");
        assert_eq!(answer[..common], ahead[id][..common], "request {id}");
    };
    plain.iter().filter(|(_, answer)| answer.len() > 9).for_each(same);
}

/// What was computed as answers is computed again as prompt, by another kernel: the same to rounding, so tokens agree
/// where the model is sure.
#[test]
#[ignore = "needs an NVIDIA GPU: make test-cuda"]
fn preempted_requests_come_back_with_the_same_answers() {
    let prompts = prompts(20);
    let selection = with(&[Optimization::ContinuousBatching]);
    let roomy = serve(&selection, &prompts, 0.0, 4096);
    let tight = serve(&selection, &prompts, 0.0, 320);
    assert!(tight.num_preemptions > 0 && roomy.num_preemptions == 0);
    let same = roomy.answers.iter().filter(|(id, answer)| tight.answers[id] == **answer).count();
    assert!(same >= 18, "{same} of 20 answers are the same");
}

#[test]
#[ignore = "needs an NVIDIA GPU: make test-cuda"]
fn a_cache_that_does_not_fit_says_what_to_lower() {
    let builder = Engine::builder().device(GPU).kv_cache_memory_bytes(Some(1 << 50)).max_model_len(Some(64));
    let message = builder.build().err().unwrap().to_string();
    assert!(message.contains("--kv-cache-memory-bytes") && message.lines().count() == 1, "{message}");
}
