//! From logits to a token, on the host.
//!
//! Order: bias, penalties, bans, temperature, top-k, top-p, min-p, draw. Everything is a function of the logits, the
//! sequence's own tokens and its seed, so an answer never depends on the batch.

mod adjust;
mod candidates;
mod draw;

pub use candidates::CandidateSampler;
pub use draw::{Sampler, SortSampler};

use crate::sequence::Sequence;
use crate::{TokenId, TokenLogprobs};

/// A choice of one token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token.
    pub id: TokenId,
    /// Present when the request asked for it.
    pub logprobs: Option<TokenLogprobs>,
}

/// The logits were not numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotANumber;

/// Chooses the next token of a sequence; `logits [vocab_size]` are those after its last token and are scratch afterwards.
///
/// Errors: a logit that is not a number.
pub fn sample(
    logits: &mut [f32],
    sequence: &Sequence,
    eos_token_ids: &[TokenId],
    sampler: &mut dyn Sampler,
) -> Result<Sampled, NotANumber> {
    if sampler.has_nan(logits) {
        return Err(NotANumber);
    }
    // Reported probabilities are the model's own: they are taken before anything is changed.
    let report = sequence.params.logprobs.map(|count| LogprobReport::new(logits, count));
    adjust::apply(logits, sequence, eos_token_ids);
    let id = if sequence.params.temperature == 0.0 {
        sampler.argmax(logits)
    } else {
        sampler.draw(logits, &sequence.params, uniform(sequence.seed, sequence.num_generated_tokens()))
    };
    Ok(Sampled { id, logprobs: report.map(|report| report.of(id)) })
}

/// The most likely token; the lowest id among equals.
pub fn argmax(logits: &[f32]) -> TokenId {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as TokenId
}

/// Log-probabilities of one prompt token, `count` alternatives with it.
pub fn prompt_logprobs(logits: &[f32], token: TokenId, count: usize) -> TokenLogprobs {
    LogprobReport::new(logits, count).of_logit(logits[token as usize])
}

/// The draw for one position: the same for the same seed and position, whatever ran before (a counter-based stream).
pub(crate) fn uniform(seed: u64, position: usize) -> f64 {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(position as u64);
    rng.random::<f64>()
}

/// Enough of the unchanged logits to report any token's log-probability.
struct LogprobReport {
    original: Vec<f32>,
    log_sum: f64,
    top: Vec<(TokenId, f32)>,
}

impl LogprobReport {
    fn new(logits: &[f32], count: usize) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
        let log_sum = f64::from(max) + sum.ln();
        let top = draw::top(logits, count);
        let top = top.into_iter().map(|id| (id, (f64::from(logits[id as usize]) - log_sum) as f32)).collect();
        Self { original: logits.to_vec(), log_sum, top }
    }

    fn of(self, id: TokenId) -> TokenLogprobs {
        let logit = self.original[id as usize];
        self.of_logit(logit)
    }

    fn of_logit(self, logit: f32) -> TokenLogprobs {
        TokenLogprobs { logprob: (f64::from(logit) - self.log_sum) as f32, top: self.top }
    }
}

#[cfg(test)]
mod tests;
