//! The random choice: sort, cut, draw.

use std::cmp::Ordering;

use crate::{SamplingParams, TokenId};

/// Most likely first, the lower id among equals.
fn by_likelihood(logits: &[f32]) -> impl Fn(&TokenId, &TokenId) -> Ordering + '_ {
    |a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b))
}

/// The `count` most likely tokens, best first.
pub fn top(logits: &[f32], count: usize) -> Vec<TokenId> {
    let mut ids: Vec<TokenId> = (0..logits.len() as TokenId).collect();
    let count = count.min(ids.len());
    if count == 0 {
        return Vec::new();
    }
    ids.select_nth_unstable_by(count - 1, by_likelihood(logits));
    ids.truncate(count);
    ids.sort_unstable_by(by_likelihood(logits));
    ids
}

/// Draws a token with `uniform` in `[0, 1)`.
pub fn draw(logits: &[f32], params: &SamplingParams, uniform: f64) -> TokenId {
    let mut ids: Vec<TokenId> = (0..logits.len() as TokenId).collect();
    ids.sort_unstable_by(by_likelihood(logits));
    if params.top_k > 0 {
        ids.truncate(params.top_k);
    }
    let max = f64::from(logits[ids[0] as usize]);
    let temperature = f64::from(params.temperature);
    let weight = |id: &TokenId| ((f64::from(logits[*id as usize]) - max) / temperature).exp();
    let mut weights: Vec<f64> = ids.iter().map(weight).collect();
    if params.top_p < 1.0 {
        weights.truncate(nucleus_len(&weights, f64::from(params.top_p)));
    }
    // The first weight is 1, that of the most likely token.
    let kept = weights.partition_point(|w| *w >= f64::from(params.min_p)).max(1);
    weights.truncate(kept);
    let mut left = uniform * weights.iter().sum::<f64>();
    for (id, weight) in ids.iter().zip(&weights) {
        left -= weight;
        if left < 0.0 {
            return *id;
        }
    }
    ids[weights.len() - 1]
}

/// Length of the shortest prefix that holds `top_p` of the total. Source: arXiv 1904.09751.
fn nucleus_len(weights: &[f64], top_p: f64) -> usize {
    let threshold = top_p * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    for (at, weight) in weights.iter().enumerate() {
        sum += weight;
        if sum >= threshold {
            return at + 1;
        }
    }
    weights.len()
}
