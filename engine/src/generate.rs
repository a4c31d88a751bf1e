//! Text in, text out, for programs that embed the engine: blocking, or as an iterator.

use crate::engine::Engine;
use crate::error::EngineError;
use crate::request::{FinishReason, GeneratedToken, Request, RequestId, SamplingParams, TokenId, TokenLogprobs};
use crate::text::{ChatContext, ChatMessage, TextDecoder, Tokenizer};

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The text, stop string removed unless asked for.
    pub text: String,
    /// Its tokens, with those of a stop string.
    pub token_ids: Vec<TokenId>,
    /// One entry a token, when asked for.
    pub logprobs: Option<Vec<TokenLogprobs>>,
    /// One entry for each prompt token but the first, when asked for.
    pub prompt_logprobs: Option<Vec<TokenLogprobs>>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens of the prompt.
    pub num_prompt_tokens: usize,
}

/// A piece of a streamed answer.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionDelta {
    /// Text that is final. Empty while it could still be part of a character or of a stop string.
    pub text: String,
    /// The token it comes from; none in the piece that flushes held text.
    pub token: Option<GeneratedToken>,
    /// Set in the last piece.
    pub finish_reason: Option<FinishReason>,
}

impl Engine {
    /// Continues a prompt and waits for the end. Other requests go on meanwhile; their outputs come with the next
    /// [`Engine::step`].
    ///
    /// Errors: a bad parameter, a model without a tokenizer, a failed step.
    pub fn generate(&mut self, prompt: &str, params: &SamplingParams) -> Result<Completion, EngineError> {
        let mut stream = self.stream(prompt, params)?;
        let mut text = String::new();
        let mut tokens = Vec::new();
        let mut finish_reason = FinishReason::Abort;
        for delta in stream.by_ref() {
            let delta = delta?;
            text.push_str(&delta.text);
            tokens.extend(delta.token);
            finish_reason = delta.finish_reason.unwrap_or(finish_reason);
        }
        let token_ids = tokens.iter().map(|token| token.id).collect();
        let logprobs: Vec<_> = tokens.into_iter().filter_map(|token| token.logprobs).collect();
        Ok(Completion {
            text,
            token_ids,
            logprobs: params.logprobs.map(|_| logprobs),
            prompt_logprobs: stream.prompt_logprobs.take(),
            finish_reason,
            num_prompt_tokens: stream.num_prompt_tokens,
        })
    }

    /// Continues a prompt piece by piece. Dropping the iterator gives the request up.
    ///
    /// Errors: a bad parameter, a model without a tokenizer.
    pub fn stream(&mut self, prompt: &str, params: &SamplingParams) -> Result<CompletionStream<'_>, EngineError> {
        let tokenizer = self.tokenizer().cloned().ok_or(EngineError::NoTokenizer)?;
        let prompt = tokenizer.encode(prompt, true)?;
        self.stream_tokens(prompt, params)
    }

    /// The prompt that a chat comes to under the model's template.
    ///
    /// Errors: a model without a template, a template that refuses the messages.
    pub fn chat_prompt(&self, messages: &[ChatMessage]) -> Result<String, EngineError> {
        let template = self.chat_template().ok_or(EngineError::NoChatTemplate)?;
        let special_tokens = self.tokenizer().map(Tokenizer::special_tokens).unwrap_or_default();
        let context = ChatContext { add_generation_prompt: true, special_tokens, ..ChatContext::default() };
        Ok(template.render(messages, &context)?)
    }

    /// Answers a chat piece by piece.
    ///
    /// Errors: those of [`Engine::chat_prompt`] and [`Engine::stream`].
    pub fn chat(
        &mut self,
        messages: &[ChatMessage],
        params: &SamplingParams,
    ) -> Result<CompletionStream<'_>, EngineError> {
        let prompt = self.chat_prompt(messages)?;
        let tokenizer = self.tokenizer().ok_or(EngineError::NoTokenizer)?;
        // The template has written the special tokens itself.
        let prompt = tokenizer.encode(&prompt, false)?;
        self.stream_tokens(prompt, params)
    }

    fn stream_tokens(
        &mut self,
        prompt: Vec<TokenId>,
        params: &SamplingParams,
    ) -> Result<CompletionStream<'_>, EngineError> {
        let tokenizer = self.tokenizer().cloned().ok_or(EngineError::NoTokenizer)?;
        let num_prompt_tokens = prompt.len();
        let id = self.add_request(Request::new(prompt, params.clone()))?;
        let decoder = TextDecoder::new(tokenizer, params);
        Ok(CompletionStream { engine: self, id, decoder, num_prompt_tokens, prompt_logprobs: None, done: false })
    }
}

/// An answer under way; see [`Engine::stream`].
pub struct CompletionStream<'a> {
    engine: &'a mut Engine,
    id: RequestId,
    decoder: TextDecoder,
    num_prompt_tokens: usize,
    prompt_logprobs: Option<Vec<TokenLogprobs>>,
    done: bool,
}

impl CompletionStream<'_> {
    fn advance(&mut self) -> Result<CompletionDelta, EngineError> {
        loop {
            let outputs = self.engine.step()?;
            let (mine, others): (Vec<_>, Vec<_>) = outputs.into_iter().partition(|output| output.id == self.id);
            self.engine.defer(others);
            let Some(output) = mine.into_iter().next() else { continue };
            if output.prompt_logprobs.is_some() {
                self.prompt_logprobs = output.prompt_logprobs;
            }
            let mut delta = CompletionDelta { text: String::new(), token: None, finish_reason: output.finish };
            // A step adds one token to a request.
            if let Some(token) = output.tokens.into_iter().next() {
                let is_end = output.finish == Some(FinishReason::Stop);
                let added = if is_end { self.decoder.push_end(token.id) } else { self.decoder.push(token.id) };
                delta.text = added.text;
                delta.token = Some(token);
                if added.stopped.is_some() {
                    self.engine.abort(self.id);
                    delta.finish_reason = Some(FinishReason::Stop);
                }
            }
            if delta.finish_reason.is_some() {
                delta.text.push_str(&self.decoder.finish());
                self.done = true;
            }
            return Ok(delta);
        }
    }
}

impl Iterator for CompletionStream<'_> {
    type Item = Result<CompletionDelta, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let delta = self.advance();
        self.done |= delta.is_err();
        Some(delta)
    }
}

impl Drop for CompletionStream<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.engine.abort(self.id);
        }
    }
}
