//! The proof behind every switch that rounds: over real text, position by position, its logits stay as close to exact
//! arithmetic (f32 weights and activations in candle ops) as its row of the registry says.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use aisp_engine::optimizations::{Exactness, LogitBound};
use aisp_engine::{DeviceKind, Engine, Optimization, Request, SamplingParams, Selection};
use support::Fault;
use support::forced::{PLAIN, Run, distance};

fn rounding() -> impl Iterator<Item = Optimization> {
    let on_cpu = |o: &Optimization| o.spec().devices.include(DeviceKind::Cpu);
    Optimization::ALL.into_iter().filter(on_cpu).filter(|o| o.spec().bound.is_some())
}

#[test]
fn every_rounding_switch_keeps_its_bound_on_plain_weights() {
    let run = Run::on_cpu(PLAIN);
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
    let run = Run::on_cpu("");
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
    let run = Run::on_cpu(PLAIN);
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
    let run = Run::on_cpu(PLAIN);
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
