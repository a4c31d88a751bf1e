//! The proof behind every switch that rounds: over real text, position by position, its logits stay as close to exact
//! arithmetic (f32 weights and activations in candle ops) as its row of the registry says.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::{Arc, Mutex};

use aisp_engine::optimizations::{Exactness, LogitBound};
use aisp_engine::{Engine, Optimization, Request, SamplingParams, Selection};
use support::{Fault, LogitBits, Recorder, TEXT};

const PLAIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/story-12m");

/// Logits of each position of a text, f32.
struct Forced {
    rows: Vec<Vec<f32>>,
    /// The token that follows each position.
    targets: Vec<u32>,
}

/// One distance between two sets of logits.
#[derive(Debug, Clone, Copy)]
struct Distance {
    mean_kl: f64,
    /// KL that one position in a thousand exceeds.
    high_kl: f64,
    same_top: f64,
    /// Perplexity over the reference's, less 1.
    perplexity: f64,
}

#[derive(Clone, Copy)]
struct Run<'a> {
    model: &'a str,
    exact_weights: bool,
    fault: Fault,
}

impl Run<'_> {
    fn forced(self, selection: &Selection) -> Forced {
        let logits = Arc::new(Mutex::new(LogitBits::new()));
        let mut engine = Engine::builder()
            .model(self.model.parse().unwrap())
            .optimizations(selection.clone())
            .dequantize(self.exact_weights)
            // Decodes and parts of prompts: what a fault in the cache would change.
            .max_num_batched_tokens(64)
            .threads(Some(2))
            .build_around(|inner| Box::new(Recorder { inner, logits: logits.clone(), fault: self.fault }))
            .unwrap();
        let tokens = engine.tokenizer().unwrap().encode(TEXT, true).unwrap();
        let params = SamplingParams { prompt_logprobs: Some(0), ..SamplingParams::greedy(1) };
        engine.add_request(Request::new(tokens.clone(), params)).unwrap();
        while engine.has_unfinished() {
            engine.step().unwrap();
        }
        for status in engine.optimizations().iter().filter(|status| status.requested && status.slot != "prefill") {
            assert!(status.engaged, "{} was requested and did not run", status.name);
        }
        drop(engine);
        let logits = Arc::try_unwrap(logits).unwrap().into_inner().unwrap();
        let rows = logits.into_values().map(|row| row.into_iter().map(f32::from_bits).collect()).collect();
        Forced { rows, targets: tokens[1..].to_vec() }
    }
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let log_sum = row.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln() + max;
    row.iter().map(|&x| f64::from(x) - log_sum).collect()
}

fn distance(reference: &Forced, other: &Forced) -> Distance {
    assert_eq!(reference.rows.len(), other.rows.len());
    let top = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(id, _)| id);
    let (mut kls, mut num_same, mut loss, mut reference_loss) = (Vec::new(), 0, 0.0, 0.0);
    for (at, (a, b)) in reference.rows.iter().zip(&other.rows).enumerate() {
        let (p, q) = (log_softmax(a), log_softmax(b));
        kls.push(p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.0));
        num_same += usize::from(top(a) == top(b));
        if let Some(&target) = reference.targets.get(at) {
            reference_loss -= p[target as usize];
            loss -= q[target as usize];
        }
    }
    kls.sort_by(f64::total_cmp);
    let count = kls.len() as f64;
    Distance {
        mean_kl: kls.iter().sum::<f64>() / count,
        high_kl: kls[(kls.len() as f64 * 0.999) as usize],
        same_top: num_same as f64 / count,
        perplexity: ((loss - reference_loss) / reference.targets.len() as f64).exp() - 1.0,
    }
}

impl Distance {
    fn within(&self, bound: LogitBound) -> bool {
        self.mean_kl <= bound.mean_kl
            && self.high_kl <= bound.high_kl
            && self.same_top >= bound.same_top
            && self.perplexity.abs() <= bound.perplexity
    }
}

fn rounding() -> impl Iterator<Item = Optimization> {
    Optimization::ALL.into_iter().filter(|o| o.spec().bound.is_some())
}

#[test]
fn every_rounding_switch_keeps_its_bound_on_plain_weights() {
    let run = Run { model: PLAIN, exact_weights: false, fault: Fault::None };
    let exact = run.forced(&Selection::none());
    for optimization in rounding() {
        let measured = distance(&exact, &run.forced(&optimization.with_requirements()));
        println!("{:16} {measured:?}", optimization.name());
        let bound = optimization.spec().bound.unwrap();
        assert!(measured.within(bound), "{}: {measured:?} is beyond {bound:?}", optimization.name());
    }
}

/// Quantized weights round activations to 8 bits, in candle as in our kernels: ours may not be further from exact
/// arithmetic than the baseline is.
#[test]
fn fast_kernels_round_no_more_than_the_baseline_on_quantized_weights() {
    let run = Run { model: "", exact_weights: false, fault: Fault::None };
    let exact = Run { exact_weights: true, ..run }.forced(&Selection::none());
    let baseline = distance(&exact, &run.forced(&Selection::none()));
    println!("{:16} {baseline:?}", "baseline");
    for optimization in [Optimization::FlashAttention, Optimization::FastLinear, Optimization::FusedOps] {
        let measured = distance(&exact, &run.forced(&optimization.with_requirements()));
        println!("{:16} {measured:?}", optimization.name());
        assert!(measured.mean_kl <= 1.2 * baseline.mean_kl, "{}: {measured:?}", optimization.name());
    }
}

#[test]
fn a_wrong_block_is_beyond_every_bound() {
    let run = Run { model: PLAIN, exact_weights: false, fault: Fault::None };
    let exact = run.forced(&Selection::none());
    for optimization in rounding().filter(|o| o.with_requirements().contains(Optimization::PagedKv)) {
        let selection = Selection::closed([optimization, Optimization::ChunkedPrefill]);
        let measured = distance(&exact, &Run { fault: Fault::OffByOneBlock, ..run }.forced(&selection));
        assert!(!measured.within(optimization.spec().bound.unwrap()), "{}: {measured:?}", optimization.name());
    }
}

/// The bounds tell types apart: what one of 4 bits loses is beyond what its sibling of 8 bits may lose.
#[test]
fn fewer_bits_are_beyond_the_bounds_of_more() {
    let run = Run { model: PLAIN, exact_weights: false, fault: Fault::None };
    let exact = run.forced(&Selection::none());
    for (coarse, fine) in
        [(Optimization::WeightsInt4, Optimization::WeightsInt8), (Optimization::WeightsFp4, Optimization::WeightsFp8)]
    {
        let measured = distance(&exact, &run.forced(&coarse.with_requirements()));
        assert!(!measured.within(fine.spec().bound.unwrap()), "{}: {measured:?}", coarse.name());
    }
}

/// Converted weights take less memory; quantized ones are left alone, and that is said.
#[test]
fn only_dense_weights_are_converted() {
    let info = |model: &str, dequantize: bool, selection: &Selection| {
        let builder = Engine::builder().model(model.parse().unwrap()).optimizations(selection.clone());
        builder.dequantize(dequantize).num_kv_slots(Some(1024)).max_model_len(Some(160)).build().unwrap()
    };
    for (switch, bits) in [
        (Optimization::WeightsInt8, 8.5),
        (Optimization::WeightsInt4, 5.0),
        (Optimization::WeightsFp8, 8.0),
        (Optimization::WeightsFp4, 5.0),
    ] {
        for selection in [switch.with_requirements(), Selection::closed([switch, Optimization::FusedOps])] {
            for (model, dequantize) in [("dummy:tiny", false), ("", true)] {
                let plain = info(model, dequantize, &selection.without(switch)).model_info().clone();
                let engine = info(model, dequantize, &selection);
                let converted = engine.model_info();
                let saved = plain.weight_bytes as f64 / converted.weight_bytes as f64;
                // The embedding, and norms, stay as they are.
                assert!(saved > 1.5 && saved < 32.0 / bits, "{} on `{model}`: {saved}", switch.name());
                assert!(converted.weight_format.ends_with(switch.name()), "{}", converted.weight_format);
            }
            let mut engine = info("", false, &selection);
            assert!(!engine.model_info().weight_format.contains(switch.name()));
            engine.add_request(Request::new(vec![1], SamplingParams::greedy(2))).unwrap();
            while engine.has_unfinished() {
                engine.step().unwrap();
            }
            let status = engine.optimizations().into_iter().find(|status| status.name == switch.name()).unwrap();
            assert!(status.requested && !status.engaged, "{} has nothing to convert", switch.name());
        }
    }
}

#[test]
fn classes_and_bounds_agree() {
    for spec in Optimization::ALL.map(Optimization::spec) {
        match spec.exactness {
            Exactness::Bitwise | Exactness::SameTokens => assert_eq!(spec.bound, None, "{}", spec.name),
            Exactness::Tolerance => assert_eq!(spec.bound, Some(LogitBound::KERNEL), "{}", spec.name),
            Exactness::Lossy => assert!(spec.bound.is_some_and(|b| b != LogitBound::KERNEL), "{}", spec.name),
        }
    }
}
