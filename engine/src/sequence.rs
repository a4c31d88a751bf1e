//! One request while the engine works on it: its tokens and how far they are computed.

use std::sync::Arc;
use std::time::Instant;

use crate::runner::{Draw, TokenChoice};
use crate::sampler;
use crate::{Request, RequestId, RequestTimings, SamplingParams, TokenId, TokenLogprobs};

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
    /// Lower goes first; among equals the earlier one.
    pub priority: i32,
    /// Prompts share computed blocks only with those of the same salt.
    pub cache_salt: Option<Arc<str>>,
    /// Prompt log-probabilities so far, while they are owed.
    pub prompt_logprobs: Option<Vec<TokenLogprobs>>,
    /// Other answers to the same prompt, which go their own ways once it is computed.
    pub forks: Vec<Sequence>,
    /// Tokens that the step computes that was scheduled last.
    pub num_scheduled_tokens: usize,
    /// Tokens that steps under way choose: they follow `tokens`, and only the device knows them yet.
    pub num_pending_tokens: usize,
    /// Which of the wanted rows of the latest step chooses the last of these.
    pub pending_choice: usize,
    arrival: Instant,
    first_scheduled: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Sequence {
    /// Starts a request; `seed` is used when the request names none.
    pub fn new(id: RequestId, request: Request, seed: u64, max_model_len: usize) -> Self {
        let Request { prompt, params, arrival, priority, cache_salt } = request;
        Self {
            id,
            num_prompt_tokens: prompt.len(),
            num_computed_tokens: 0,
            seed: params.seed.unwrap_or(seed),
            max_total_tokens: prompt.len().saturating_add(params.max_tokens).min(max_model_len),
            priority,
            cache_salt,
            prompt_logprobs: params.prompt_logprobs.map(|_| Vec::new()),
            forks: Vec::new(),
            num_scheduled_tokens: 0,
            num_pending_tokens: 0,
            pending_choice: 0,
            tokens: prompt,
            params,
            arrival,
            first_scheduled: None,
            first_token: None,
            last_token: None,
        }
    }

    /// Its place among others: lower goes first.
    pub fn rank(&self) -> (i32, RequestId) {
        (self.priority, self.id)
    }

    /// Forgets what was computed, not what was generated.
    pub fn start_over(&mut self) {
        self.num_computed_tokens = 0;
        self.num_scheduled_tokens = 0;
        if let Some(logprobs) = &mut self.prompt_logprobs {
            logprobs.clear();
        }
    }

    /// Starts a fork where its leader stands: the prompt is computed, nothing is generated.
    pub fn follow(&mut self, leader: &Sequence) {
        self.num_computed_tokens = leader.num_computed_tokens;
        self.first_scheduled = leader.first_scheduled;
        if self.prompt_logprobs.is_some() {
            self.prompt_logprobs.clone_from(&leader.prompt_logprobs);
        }
    }

    /// Takes out one of its forks.
    pub fn take_fork(&mut self, id: RequestId) -> Option<Sequence> {
        let at = self.forks.iter().position(|fork| fork.id == id)?;
        Some(self.forks.remove(at))
    }

    /// Who picks the token after all that there are, with a runner that draws tokens or does not.
    pub fn choice(&self, draws: bool) -> TokenChoice {
        let params = &self.params;
        match (self.wants_token_alone(), params.temperature == 0.0) {
            (true, true) => TokenChoice::MostLikely,
            (true, false) if draws => TokenChoice::Drawn(Draw {
                temperature: params.temperature,
                top_k: params.top_k,
                top_p: params.top_p,
                min_p: params.min_p,
                uniform: sampler::uniform(self.seed, self.num_tokens() - self.num_prompt_tokens),
            }),
            _ => TokenChoice::Host,
        }
    }

    /// Whether its next token follows from the model's own logits, and only the token is reported.
    fn wants_token_alone(&self) -> bool {
        let params = &self.params;
        params.logprobs.is_none()
            && params.prompt_logprobs.is_none()
            && params.logit_bias.is_empty()
            && params.repetition_penalty == 1.0
            && params.presence_penalty == 0.0
            && params.frequency_penalty == 0.0
            && self.num_tokens() - self.num_prompt_tokens >= params.min_tokens
            && self.forks.is_empty()
    }

    /// Tokens so far, prompt and answer, those included that are not known yet.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len() + self.num_pending_tokens
    }

    /// Tokens of the answer that are known.
    pub fn num_generated_tokens(&self) -> usize {
        self.tokens.len() - self.num_prompt_tokens
    }

    /// Whether the last token that there is room for is chosen by a step under way.
    pub fn is_complete(&self) -> bool {
        self.num_pending_tokens > 0 && self.num_tokens() >= self.max_total_tokens
    }

    /// Notes that a step computes its scheduled tokens, and chooses the next one in this of its wanted rows.
    pub fn advance(&mut self, choice: Option<usize>) {
        self.num_computed_tokens += self.num_scheduled_tokens;
        if let Some(choice) = choice {
            self.num_pending_tokens += 1;
            self.pending_choice = choice;
        }
    }

    /// Tokens of the answer that are known.
    pub fn generated(&self) -> &[TokenId] {
        &self.tokens[self.num_prompt_tokens..]
    }

    /// Tokens that a step must still compute before the next one can be sampled.
    pub fn num_uncomputed_tokens(&self) -> usize {
        self.num_tokens() - self.num_computed_tokens
    }

    /// Notes that a step began to work on it.
    pub fn mark_scheduled(&mut self, now: Instant) {
        self.first_scheduled.get_or_insert(now);
    }

    /// Appends a sampled token.
    pub fn push(&mut self, token: TokenId, now: Instant) {
        self.tokens.push(token);
        self.num_pending_tokens = self.num_pending_tokens.saturating_sub(1);
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
