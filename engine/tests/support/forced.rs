//! Logits over a real text, position by position, and how far two sets of them are apart.

use std::sync::{Arc, Mutex};

use aisp_engine::optimizations::LogitBound;
use aisp_engine::{DeviceChoice, Engine, Products, Request, SamplingParams, Selection};
use candle_core::DType;

use super::{Fault, LogitBits, Recorder, TEXT};

/// The built-in model with plain weights.
pub const PLAIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/story-12m");

/// Switches that a single text need not engage.
const CONDITIONAL: [&str; 6] =
    ["chunked-prefill", "continuous-batching", "prefix-cache", "fast-sampler", "library-gemm", "cuda-graphs"];

/// Logits of each position of a text, f32.
pub struct Forced {
    rows: Vec<Vec<f32>>,
    /// The token that follows each position.
    targets: Vec<u32>,
}

/// One distance between two sets of logits.
#[derive(Debug, Clone, Copy)]
pub struct Distance {
    /// Nat.
    pub mean_kl: f64,
    /// KL that one position in a thousand exceeds.
    pub high_kl: f64,
    /// Share of positions with the same most likely token.
    pub same_top: f64,
    /// Perplexity over the reference's, less 1.
    pub perplexity: f64,
}

#[derive(Clone, Copy)]
pub struct Run<'a> {
    pub model: &'a str,
    pub exact_weights: bool,
    pub fault: Fault,
    pub device: DeviceChoice,
    pub dtype: Option<DType>,
    /// Decodes and parts of prompts: what a fault in the cache would change.
    pub max_num_batched_tokens: usize,
    /// Of steps of many rows on a GPU, in place of the fastest.
    pub products: Option<Products>,
}

impl<'a> Run<'a> {
    pub fn on_cpu(model: &'a str) -> Self {
        Self {
            model,
            exact_weights: false,
            fault: Fault::None,
            device: DeviceChoice::Cpu,
            dtype: None,
            max_num_batched_tokens: 64,
            products: None,
        }
    }

    pub fn forced(self, selection: &Selection) -> Forced {
        let logits = Arc::new(Mutex::new(LogitBits::new()));
        let mut engine = Engine::builder()
            .model(self.model.parse().unwrap())
            .optimizations(selection.clone())
            .dequantize(self.exact_weights)
            .device(self.device)
            .dtype(self.dtype)
            .max_num_batched_tokens(self.max_num_batched_tokens)
            .products(self.products)
            .threads(Some(2))
            .build_around(|inner| Box::new(Recorder { inner, logits: logits.clone(), fault: self.fault }))
            .unwrap();
        let tokens = engine.tokenizer().unwrap().encode(TEXT, true).unwrap();
        let params = SamplingParams { prompt_logprobs: Some(0), ..SamplingParams::greedy(1) };
        engine.add_request(Request::new(tokens.clone(), params)).unwrap();
        while engine.has_unfinished() {
            engine.step().unwrap();
        }
        for status in
            engine.optimizations().iter().filter(|status| status.requested && !CONDITIONAL.contains(&status.name))
        {
            assert!(status.engaged, "{} was requested and did not run", status.name);
        }
        drop(engine);
        let logits = Arc::try_unwrap(logits).unwrap().into_inner().unwrap();
        let rows = logits.into_values().map(|row| row.into_iter().map(f32::from_bits).collect()).collect();
        Forced { rows, targets: tokens[1..].to_vec() }
    }
}

impl Forced {
    /// The first position whose logits have other bits.
    #[allow(dead_code, reason = "not every test asks")]
    pub fn first_difference(&self, other: &Self) -> Option<usize> {
        let bits = |row: &[f32]| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        self.rows.iter().zip(&other.rows).position(|(a, b)| bits(a) != bits(b))
    }
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let log_sum = row.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln() + max;
    row.iter().map(|&x| f64::from(x) - log_sum).collect()
}

pub fn distance(reference: &Forced, other: &Forced) -> Distance {
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
    pub fn within(&self, bound: LogitBound) -> bool {
        self.mean_kl <= bound.mean_kl
            && self.high_kl <= bound.high_kl
            && self.same_top >= bound.same_top
            && self.perplexity.abs() <= bound.perplexity
    }
}
