//! The random choice among the tokens that the filters leave: by sorting the vocabulary (baseline), or by sorting only
//! the tokens that can matter. Both walk the same tokens in the same order with the same arithmetic, so they draw the
//! same token for the same seed.

use std::cmp::Ordering;

use crate::{SamplingParams, TokenId};

/// Draws a token; see [`super::sample`] for the order of filters.
pub trait Sampler: Send {
    /// `uniform` lies in `[0, 1)`.
    fn draw(&mut self, logits: &[f32], params: &SamplingParams, uniform: f64) -> TokenId;

    /// Draws that took the optimized way.
    fn num_engaged(&self) -> u64;
}

/// Baseline: sorts the whole vocabulary.
#[derive(Debug, Clone, Copy, Default)]
pub struct SortSampler;

impl Sampler for SortSampler {
    fn draw(&mut self, logits: &[f32], params: &SamplingParams, uniform: f64) -> TokenId {
        let weights = Weights::new(logits, params);
        let mut ids: Vec<TokenId> = (0..logits.len() as TokenId).collect();
        ids.sort_unstable_by(by_likelihood(logits));
        weights.choose(&ids, params, uniform).unwrap_or(ids[0])
    }

    fn num_engaged(&self) -> u64 {
        0
    }
}

/// Optimized: sorts only tokens that are not hopelessly unlikely, a few hundred as a rule, and falls back to all of
/// them when these do not decide.
#[derive(Debug, Clone, Default)]
pub struct CandidateSampler {
    candidates: Vec<TokenId>,
    num_engaged: u64,
}

/// Candidates are at least this likely relative to the most likely token: `exp(-16)`, about 1e-7.
const CANDIDATE_NAT: f32 = 16.0;

impl Sampler for CandidateSampler {
    fn draw(&mut self, logits: &[f32], params: &SamplingParams, uniform: f64) -> TokenId {
        let weights = Weights::new(logits, params);
        let floor = weights.max - CANDIDATE_NAT * params.temperature;
        self.candidates.clear();
        self.candidates.extend((0..logits.len() as TokenId).filter(|id| logits[*id as usize] >= floor));
        self.candidates.sort_unstable_by(by_likelihood(logits));
        match weights.choose(&self.candidates, params, uniform) {
            Some(id) => {
                self.num_engaged += 1;
                id
            }
            None => SortSampler.draw(logits, params, uniform),
        }
    }

    fn num_engaged(&self) -> u64 {
        self.num_engaged
    }
}

/// Most likely first, the lower id among equals.
fn by_likelihood(logits: &[f32]) -> impl Fn(&TokenId, &TokenId) -> Ordering + '_ {
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

/// Unnormalised probabilities: 1 for the most likely token.
struct Weights<'a> {
    logits: &'a [f32],
    max: f32,
    temperature: f64,
}

impl<'a> Weights<'a> {
    fn new(logits: &'a [f32], params: &SamplingParams) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Self { logits, max, temperature: f64::from(params.temperature) }
    }

    fn of(&self, id: TokenId) -> f64 {
        (f64::from(self.logits[id as usize] - self.max) / self.temperature).exp()
    }

    /// Draws from `ids`, the most likely tokens in order. `None` when tokens beyond them could be drawn.
    fn choose(&self, ids: &[TokenId], params: &SamplingParams, uniform: f64) -> Option<TokenId> {
        let vocab_size = self.logits.len();
        let top_k = if params.top_k == 0 { vocab_size } else { params.top_k.min(vocab_size) };
        let is_whole = ids.len() >= top_k;
        let mut weights: Vec<f64> = ids.iter().take(top_k).map(|id| self.of(*id)).collect();
        let total: f64 = if top_k < vocab_size {
            if !is_whole {
                return None;
            }
            weights.iter().sum()
        } else {
            (0..vocab_size as TokenId).map(|id| self.of(id)).sum()
        };
        let mut kept = weights.len();
        let mut is_cut = is_whole;
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
        for (id, weight) in ids.iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return Some(*id);
            }
        }
        // Rounding may leave a crumb; it belongs to the last token there is.
        is_cut.then(|| ids[weights.len() - 1])
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        // Peaked, flat, and with ties.
        (1f32..40.0, proptest::collection::vec(0u32..1000, 2..400))
            .prop_map(|(spread, values)| values.into_iter().map(|v| spread * v as f32 / 1000.0).collect())
    }

    fn params() -> impl Strategy<Value = SamplingParams> {
        let top_k = prop_oneof![Just(0usize), 1usize..500];
        let top_p = prop_oneof![Just(1.0f32), 0.01f32..1.0];
        let min_p = prop_oneof![Just(0.0f32), 0.0f32..1.0];
        (0.05f32..3.0, top_k, top_p, min_p).prop_map(|(temperature, top_k, top_p, min_p)| SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            ..Default::default()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn both_samplers_draw_the_same(logits in logits(), params in params(), uniform in 0.0f64..1.0) {
            let sorted = SortSampler.draw(&logits, &params, uniform);
            prop_assert_eq!(CandidateSampler::default().draw(&logits, &params, uniform), sorted);
        }
    }

    #[test]
    fn candidates_decide_for_peaked_logits() {
        let mut sampler = CandidateSampler::default();
        let logits: Vec<f32> = (0..1000).map(|i| -0.1 * i as f32).collect();
        for step in 0..100 {
            sampler.draw(&logits, &SamplingParams::default(), f64::from(step) / 100.0);
        }
        assert_eq!(sampler.num_engaged(), 100);
    }
}
