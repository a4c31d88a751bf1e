use super::*;
use crate::{Request, RequestId, SamplingParams};

fn sequence(prompt: &[TokenId], generated: &[TokenId], params: SamplingParams) -> Sequence {
    let mut sequence = Sequence::new(RequestId(0), Request::new(prompt.to_vec(), params), 1, 4096);
    for &token in generated {
        sequence.push(token, std::time::Instant::now());
    }
    sequence
}

fn pick(logits: &[f32], params: SamplingParams) -> TokenId {
    sample(&mut logits.to_vec(), &sequence(&[0], &[], params), &[], &mut SortSampler).expect("numbers").id
}

/// Shares of each token over many seeds.
fn shares(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let draws = 20_000;
    let mut counts = vec![0.0; logits.len()];
    for seed in 0..draws {
        counts[pick(logits, SamplingParams { seed: Some(seed), ..params.clone() }) as usize] += 1.0;
    }
    counts.iter().map(|count| count / draws as f64).collect()
}

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|l| (f64::from(*l) / temperature).exp()).collect();
    weights.iter().map(|w| w / weights.iter().sum::<f64>()).collect()
}

#[test]
fn greedy_takes_the_best_and_the_lowest_id_among_equals() {
    assert_eq!(pick(&[1.0, 3.0, 3.0, 2.0], SamplingParams::greedy(1)), 1);
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [0.0, 1.0, 2.0, -1.0];
    for temperature in [0.5, 1.0, 2.0] {
        let params = SamplingParams { temperature, ..Default::default() };
        for (share, expected) in shares(&logits, &params).iter().zip(softmax(&logits, f64::from(temperature))) {
            assert!((share - expected).abs() < 0.015, "{share} is not {expected} at {temperature}");
        }
    }
}

#[test]
fn filters_keep_what_they_say() {
    let logits = [3.0, 2.0, 1.0, 0.0]; // 0.644, 0.237, 0.087, 0.032
    let kept = |params: SamplingParams| {
        let shares = shares(&logits, &params);
        shares.iter().enumerate().filter(|(_, share)| **share > 0.0).map(|(id, _)| id).collect::<Vec<_>>()
    };
    let base = SamplingParams::default();
    assert_eq!(kept(base.clone()), [0, 1, 2, 3]);
    assert_eq!(kept(SamplingParams { top_k: 2, ..base.clone() }), [0, 1]);
    assert_eq!(kept(SamplingParams { top_p: 0.6, ..base.clone() }), [0]);
    assert_eq!(kept(SamplingParams { top_p: 0.7, ..base.clone() }), [0, 1]);
    assert_eq!(kept(SamplingParams { min_p: 0.2, ..base.clone() }), [0, 1]);
    assert_eq!(kept(SamplingParams { min_p: 0.1, ..base }), [0, 1, 2]);
}

#[test]
fn the_same_seed_draws_the_same_and_positions_differ() {
    let logits = vec![0.0; 1000];
    let at = |seed, len: usize| {
        let params = SamplingParams { seed: Some(seed), ..Default::default() };
        sample(&mut logits.clone(), &sequence(&[0], &vec![1; len], params), &[], &mut SortSampler).expect("numbers").id
    };
    assert_eq!(at(7, 3), at(7, 3));
    assert_ne!(at(7, 3), at(7, 4));
    assert_ne!(at(7, 3), at(8, 3));
}

#[test]
fn penalties_and_bias_follow_their_formulas() {
    let run = |params: SamplingParams| {
        let mut logits = vec![2.0, -2.0, 2.0, 2.0];
        adjust::apply(&mut logits, &sequence(&[0, 1], &[2, 2], params), &[3]);
        logits
    };
    let base = SamplingParams::greedy(9);
    assert_eq!(run(SamplingParams { repetition_penalty: 2.0, ..base.clone() }), [1.0, -4.0, 1.0, 2.0]);
    assert_eq!(run(SamplingParams { presence_penalty: 0.5, ..base.clone() }), [2.0, -2.0, 1.5, 2.0]);
    assert_eq!(run(SamplingParams { frequency_penalty: 0.5, ..base.clone() }), [2.0, -2.0, 1.0, 2.0]);
    assert_eq!(run(SamplingParams { logit_bias: vec![(1, 5.0)], ..base.clone() }), [2.0, 3.0, 2.0, 2.0]);
    assert_eq!(run(SamplingParams { min_tokens: 3, ..base.clone() })[3], f32::NEG_INFINITY);
    assert_eq!(run(SamplingParams { min_tokens: 2, ..base })[3], 2.0);
}

#[test]
fn logprobs_are_the_models_own() {
    let params = SamplingParams { logprobs: Some(2), logit_bias: vec![(2, 50.0)], ..SamplingParams::greedy(1) };
    let sampled = sample(&mut [3.0, 2.0, 1.0], &sequence(&[0], &[], params), &[], &mut SortSampler).expect("numbers");
    let expected = softmax(&[3.0, 2.0, 1.0], 1.0);
    assert_eq!(sampled.id, 2);
    let logprobs = sampled.logprobs.expect("asked for");
    assert!((f64::from(logprobs.logprob) - expected[2].ln()).abs() < 1e-6);
    assert_eq!(logprobs.top.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1]);
    assert!((f64::from(logprobs.top[0].1) - expected[0].ln()).abs() < 1e-6);
}

#[test]
fn a_logit_that_is_no_number_is_an_error() {
    let mut logits = [0.0, f32::NAN];
    assert_eq!(
        sample(&mut logits, &sequence(&[0], &[], SamplingParams::greedy(1)), &[], &mut SortSampler),
        Err(NotANumber)
    );
}
