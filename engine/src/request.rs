//! What a caller asks for and what comes back: requests, sampling parameters, outputs. Token ids only; text belongs to
//! [`crate::text`].

use std::sync::Arc;
use std::time::Instant;

/// A token of the model's vocabulary.
pub type TokenId = u32;

/// Names one request for its whole life; never reused within an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A prompt and how to continue it.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Token ids of the prompt, at least one.
    pub prompt: Vec<TokenId>,
    /// How to continue it.
    pub params: SamplingParams,
    /// When the caller received it: queueing time counts from here.
    pub arrival: Instant,
    /// Lower goes first; among equals the earlier one.
    pub priority: i32,
    /// Prompts share computed blocks only with those of the same salt.
    pub cache_salt: Option<Arc<str>>,
}

impl Request {
    /// A request of ordinary priority that arrives now.
    pub fn new(prompt: Vec<TokenId>, params: SamplingParams) -> Self {
        Self { prompt, params, arrival: Instant::now(), priority: 0, cache_salt: None }
    }
}

/// How tokens are chosen and when generation ends. Names and defaults follow vLLM's `SamplingParams`.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of tokens whose probability reaches `top_p`; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least `min_p` times as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of every token already generated.
    pub presence_penalty: f32,
    /// Subtracted from the logit of every generated token, once for each time it occurred.
    pub frequency_penalty: f32,
    /// The same seed gives the same tokens; `None` draws one.
    pub seed: Option<u64>,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// End-of-sequence and stop tokens cannot be chosen before this many tokens.
    pub min_tokens: usize,
    /// Generation goes on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Generation ends after any of these tokens.
    pub stop_token_ids: Vec<TokenId>,
    /// Text that ends generation. The engine itself sees only tokens: [`crate::text::TextDecoder`] applies these.
    pub stop: Vec<String>,
    /// Whether the text keeps the stop string that ended it.
    pub include_stop_str_in_output: bool,
    /// Whether special tokens are left out of the text.
    pub skip_special_tokens: bool,
    /// Report the chosen token's log-probability and this many most likely alternatives.
    pub logprobs: Option<usize>,
    /// The same for every prompt token but the first.
    pub prompt_logprobs: Option<usize>,
    /// Added to the logits of these tokens before anything else.
    pub logit_bias: Vec<(TokenId, f32)>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            max_tokens: 128,
            min_tokens: 0,
            ignore_eos: false,
            stop_token_ids: Vec::new(),
            stop: Vec::new(),
            include_stop_str_in_output: false,
            skip_special_tokens: true,
            logprobs: None,
            prompt_logprobs: None,
            logit_bias: Vec::new(),
        }
    }
}

impl SamplingParams {
    /// Always the most likely token, `max_tokens` of them at most.
    pub fn greedy(max_tokens: usize) -> Self {
        Self { temperature: 0.0, max_tokens, ..Self::default() }
    }

    /// Checks every range; the message names the field and the values it takes.
    ///
    /// Errors: the first field out of range.
    pub fn validate(&self, vocab_size: usize) -> Result<(), RequestError> {
        let invalid = |field: &'static str, message: String| Err(RequestError::InvalidParam { field, message });
        if !(self.temperature.is_finite() && (0.0..=100.0).contains(&self.temperature)) {
            return invalid("temperature", format!("must be between 0 and 100, got {}", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return invalid("top_p", format!("must be above 0 and at most 1, got {}", self.top_p));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return invalid("min_p", format!("must be between 0 and 1, got {}", self.min_p));
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty <= 100.0) {
            return invalid(
                "repetition_penalty",
                format!("must be above 0 and at most 100, got {}", self.repetition_penalty),
            );
        }
        for (field, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            if !(-2.0..=2.0).contains(&value) {
                return invalid(field, format!("must be between -2 and 2, got {value}"));
            }
        }
        if self.max_tokens == 0 {
            return invalid("max_tokens", "must be at least 1".into());
        }
        if self.min_tokens > self.max_tokens {
            return invalid(
                "min_tokens",
                format!("must be at most max_tokens ({}), got {}", self.max_tokens, self.min_tokens),
            );
        }
        for (field, count) in [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            if count.is_some_and(|count| count > MAX_LOGPROBS) {
                return invalid(field, format!("must be at most {MAX_LOGPROBS}"));
            }
        }
        if let Some(id) = self.stop_token_ids.iter().find(|id| **id as usize >= vocab_size) {
            return invalid("stop_token_ids", format!("token {id} is outside the vocabulary of {vocab_size}"));
        }
        if let Some((id, bias)) =
            self.logit_bias.iter().find(|(id, b)| *id as usize >= vocab_size || !(-100.0..=100.0).contains(b))
        {
            return invalid(
                "logit_bias",
                format!("token {id} with bias {bias}: ids are below {vocab_size}, biases between -100 and 100"),
            );
        }
        if self.stop.iter().any(String::is_empty) {
            return invalid("stop", "must not contain an empty string".into());
        }
        Ok(())
    }
}

/// Most alternatives a request may ask for at each token.
pub const MAX_LOGPROBS: usize = 20;

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// A sampling parameter is out of range.
    #[error("{field} {message}")]
    InvalidParam {
        /// The parameter's name as users write it.
        field: &'static str,
        /// What it takes and what it got.
        message: String,
    },
    /// Nothing to continue.
    #[error("the prompt is empty: send at least one token")]
    EmptyPrompt,
    /// A prompt token does not exist.
    #[error("prompt token {token} is outside the vocabulary of {vocab_size}")]
    TokenOutOfRange {
        /// The offending id.
        token: TokenId,
        /// Ids are below this.
        vocab_size: usize,
    },
    /// Prompt and answer do not fit the context.
    #[error(
        "the prompt has {prompt_tokens} tokens, the context holds {max_model_len}: shorten the prompt or raise --max-model-len"
    )]
    PromptTooLong {
        /// Tokens in the prompt.
        prompt_tokens: usize,
        /// Tokens of prompt and answer together.
        max_model_len: usize,
    },
    /// The KV cache could never hold this request, even alone.
    #[error(
        "the request needs {needed_tokens} tokens of KV cache, there are {total_tokens}: lower max_tokens or raise --kv-cache-memory-bytes"
    )]
    ExceedsKvCache {
        /// Tokens that the request may grow to.
        needed_tokens: usize,
        /// Tokens that the cache holds.
        total_tokens: usize,
    },
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An end-of-sequence token, a stop token or a stop string.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
    /// The caller gave up.
    Abort,
}

impl FinishReason {
    /// The word that the OpenAI API and the metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

/// Natural-log probabilities at one position, before temperature and filters.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Of the token that stands there.
    pub logprob: f32,
    /// The most likely tokens, best first.
    pub top: Vec<(TokenId, f32)>,
}

/// One token of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratedToken {
    /// The token.
    pub id: TokenId,
    /// Present when the request asked for log-probabilities.
    pub logprobs: Option<TokenLogprobs>,
}

/// What one engine step did for one request.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestOutput {
    /// Whose.
    pub id: RequestId,
    /// New tokens, in order. Empty only in a final output without a token (an abort).
    pub tokens: Vec<GeneratedToken>,
    /// Set once, in the first output, when asked for; entry `i` belongs to prompt token `i + 1`.
    pub prompt_logprobs: Option<Vec<TokenLogprobs>>,
    /// Set in the last output of a request.
    pub finish: Option<FinishReason>,
    /// Life times so far.
    pub timings: RequestTimings,
}

/// Monotonic points in a request's life.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RequestTimings {
    /// The caller received it.
    pub arrival: Instant,
    /// The first step that computed any of it began.
    pub first_scheduled: Option<Instant>,
    /// The step that produced its first token ended.
    pub first_token: Option<Instant>,
    /// The step that produced its latest token ended.
    pub last_token: Option<Instant>,
    /// Tokens in the prompt.
    pub num_prompt_tokens: usize,
    /// Tokens generated so far.
    pub num_generated_tokens: usize,
}
