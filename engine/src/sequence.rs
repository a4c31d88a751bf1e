//! One request while the engine works on it: its tokens and how far they are computed.

use std::time::Instant;

use crate::{Request, RequestId, RequestTimings, SamplingParams, TokenId};

/// A request's state between steps.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// Its name.
    pub id: RequestId,
    /// Prompt, then what was generated.
    pub tokens: Vec<TokenId>,
    /// Tokens of the prompt.
    pub num_prompt_tokens: usize,
    /// Tokens whose keys and values are in the cache.
    pub num_computed_tokens: usize,
    /// How to choose tokens and when to end.
    pub params: SamplingParams,
    /// Feeds the draws; fixed at arrival.
    pub seed: u64,
    /// Prompt and answer together may not grow beyond this.
    pub max_total_tokens: usize,
    /// Whether prompt log-probabilities are still owed.
    pub owes_prompt_logprobs: bool,
    arrival: Instant,
    first_scheduled: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Sequence {
    /// Starts a request; `seed` is used when the request names none.
    pub fn new(id: RequestId, request: Request, seed: u64, max_model_len: usize) -> Self {
        let Request { prompt, params, arrival } = request;
        Self {
            id,
            num_prompt_tokens: prompt.len(),
            num_computed_tokens: 0,
            seed: params.seed.unwrap_or(seed),
            max_total_tokens: prompt.len().saturating_add(params.max_tokens).min(max_model_len),
            owes_prompt_logprobs: params.prompt_logprobs.is_some(),
            tokens: prompt,
            params,
            arrival,
            first_scheduled: None,
            first_token: None,
            last_token: None,
        }
    }

    /// Tokens so far, prompt and answer.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens of the answer so far.
    pub fn num_generated_tokens(&self) -> usize {
        self.tokens.len() - self.num_prompt_tokens
    }

    /// Tokens of the answer so far.
    pub fn generated(&self) -> &[TokenId] {
        &self.tokens[self.num_prompt_tokens..]
    }

    /// Tokens that a step must still compute before the next one can be sampled.
    pub fn num_uncomputed_tokens(&self) -> usize {
        self.tokens.len() - self.num_computed_tokens
    }

    /// Notes that a step began to work on it.
    pub fn mark_scheduled(&mut self, now: Instant) {
        self.first_scheduled.get_or_insert(now);
    }

    /// Appends a sampled token.
    pub fn push(&mut self, token: TokenId, now: Instant) {
        self.tokens.push(token);
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
    }

    /// Its life times so far.
    pub fn timings(&self) -> RequestTimings {
        RequestTimings {
            arrival: self.arrival,
            first_scheduled: self.first_scheduled,
            first_token: self.first_token,
            last_token: self.last_token,
            num_prompt_tokens: self.num_prompt_tokens,
            num_generated_tokens: self.num_generated_tokens(),
        }
    }
}
