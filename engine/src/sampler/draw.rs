//! The random choice among the tokens that the filters leave, by sorting the vocabulary: the baseline, and the rules that
//! every sampler follows.

use std::cmp::Ordering;

use crate::{SamplingParams, TokenId};

/// Picks a token; see [`super::sample`] for the order of filters. Logits are numbers.
pub trait Sampler: Send {
    /// The most likely token; the lowest id among equals.
    fn argmax(&mut self, logits: &[f32]) -> TokenId;

    /// A random one; `uniform` lies in `[0, 1)`.
    fn draw(&mut self, logits: &[f32], params: &SamplingParams, uniform: f64) -> TokenId;

    /// Whether a logit is not a number.
    fn has_nan(&self, logits: &[f32]) -> bool;

    /// Tokens that were picked the optimized way.
    fn num_engaged(&self) -> u64;
}

/// Baseline: sorts the whole vocabulary.
#[derive(Debug, Clone, Copy, Default)]
pub struct SortSampler;

impl Sampler for SortSampler {
    fn argmax(&mut self, logits: &[f32]) -> TokenId {
        super::argmax(logits)
    }

    fn has_nan(&self, logits: &[f32]) -> bool {
        logits.iter().any(|logit| logit.is_nan())
    }

    fn draw(&mut self, logits: &[f32], params: &SamplingParams, uniform: f64) -> TokenId {
        let weights = Weights::new(logits, params);
        let mut ids: Vec<TokenId> = (0..logits.len() as TokenId).collect();
        ids.sort_unstable_by(by_likelihood(logits));
        let prefix = Prefix { ids: &ids, beyond: 0.0 };
        weights.choose(prefix, params, uniform, weights.total()).unwrap_or(ids[0])
    }

    fn num_engaged(&self) -> u64 {
        0
    }
}

/// Most likely first, the lower id among equals.
pub(super) fn by_likelihood(logits: &[f32]) -> impl Fn(&TokenId, &TokenId) -> Ordering + '_ {
    |a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b))
}

/// The `count` most likely tokens, best first.
pub fn top(logits: &[f32], count: usize) -> Vec<TokenId> {
    let count = count.min(logits.len());
    if count == 0 {
        return Vec::new();
    }
    let mut ids: Vec<TokenId> = (0..logits.len() as TokenId).collect();
    ids.select_nth_unstable_by(count - 1, by_likelihood(logits));
    ids.truncate(count);
    ids.sort_unstable_by(by_likelihood(logits));
    ids
}

/// The most likely tokens in order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prefix<'a> {
    pub ids: &'a [TokenId],
    /// No token that is not among them weighs more.
    pub beyond: f64,
}

/// Unnormalised probabilities: 1 for the most likely token.
pub(super) struct Weights<'a> {
    logits: &'a [f32],
    max: f32,
    temperature: f64,
}

impl<'a> Weights<'a> {
    pub fn new(logits: &'a [f32], params: &SamplingParams) -> Self {
        Self::with_max(logits, logits.iter().copied().fold(f32::NEG_INFINITY, f32::max), params.temperature)
    }

    /// `max` is the largest logit.
    pub fn with_max(logits: &'a [f32], max: f32, temperature: f32) -> Self {
        Self { logits, max, temperature: f64::from(temperature) }
    }

    pub fn of(&self, id: TokenId) -> f64 {
        (f64::from(self.logits[id as usize] - self.max) / self.temperature).exp()
    }

    /// Of the whole vocabulary.
    pub fn total(&self) -> f64 {
        (0..self.logits.len() as TokenId).map(|id| self.of(id)).sum()
    }

    /// Draws from a prefix; `total` is the weight of the whole vocabulary, read where neither top-k nor min-p alone
    /// decides. `None` when tokens beyond the prefix could be drawn.
    pub fn choose(&self, prefix: Prefix<'_>, params: &SamplingParams, uniform: f64, total: f64) -> Option<TokenId> {
        let vocab_size = self.logits.len();
        let top_k = if params.top_k == 0 { vocab_size } else { params.top_k.min(vocab_size) };
        let is_whole = prefix.ids.len() >= top_k;
        let mut weights: Vec<f64> = prefix.ids.iter().take(top_k).map(|id| self.of(*id)).collect();
        if top_k < vocab_size && !is_whole {
            return None;
        }
        let total = if top_k < vocab_size { weights.iter().sum() } else { total };
        let mut kept = weights.len();
        let mut is_cut = is_whole || prefix.beyond < f64::from(params.min_p);
        if params.top_p < 1.0 {
            let nucleus = nucleus_len(&weights, f64::from(params.top_p) * total);
            is_cut |= nucleus.is_some();
            kept = nucleus.unwrap_or(kept);
        }
        let likely = weights[..kept].partition_point(|weight| *weight >= f64::from(params.min_p)).max(1);
        is_cut |= likely < kept;
        weights.truncate(likely);
        let is_filtered = params.top_p < 1.0 || params.min_p > 0.0;
        if is_filtered && !is_cut {
            return None;
        }
        let total: f64 = if is_filtered { weights.iter().sum() } else { total };
        let mut left = uniform * total;
        for (id, weight) in prefix.ids.iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return Some(*id);
            }
        }
        // Rounding may leave a crumb; it belongs to the last token there is.
        is_cut.then(|| prefix.ids[weights.len() - 1])
    }
}

/// Length of the shortest prefix that weighs at least `threshold`. Source: arXiv 1904.09751.
fn nucleus_len(weights: &[f64], threshold: f64) -> Option<usize> {
    let mut sum = 0.0;
    let reached = weights.iter().position(|weight| {
        sum += weight;
        sum >= threshold
    });
    reached.map(|at| at + 1)
}
