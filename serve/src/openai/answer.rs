//! Answers as JSON: one event a piece when streaming, one object otherwise, for both APIs.

use std::cell::Cell;

use aisp_engine::{FinishReason, GeneratedToken, TokenId, TokenLogprobs};
use serde::Serialize;

use super::logprobs::{ChatLogprobs, CompletionLogprobs, PromptLogprobs, TokenNames, prompt_logprobs};
use super::sampling::StreamOptions;

/// Which API an answer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiKind {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completion,
}

/// What an answer looks like, fixed by the request.
#[derive(Debug, Clone)]
pub struct AnswerSettings {
    /// The API.
    pub kind: ApiKind,
    /// The answer's id.
    pub id: String,
    /// Unix time of the request, in seconds.
    pub created: u64,
    /// The model's name, as the client wrote it.
    pub model: String,
    /// Choices for each prompt.
    pub num_choices: usize,
    /// Usage in the stream.
    pub stream: StreamOptions,
    /// The text begins with the prompt.
    pub echo: bool,
    /// Alternatives to each token, when log-probabilities were asked for.
    pub logprobs: Option<usize>,
    /// vLLM's `prompt_logprobs` were asked for.
    pub prompt_logprobs: bool,
    /// Token ids were asked for.
    pub return_token_ids: bool,
}

/// What an answer may need of its prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PromptRecord {
    /// Its length.
    pub num_tokens: usize,
    /// Its text, kept for `echo`.
    pub text: String,
    /// Its tokens, kept for `echo` with log-probabilities, `prompt_logprobs` and `return_token_ids`.
    pub token_ids: Vec<TokenId>,
}

/// What one step added to one choice, or everything at once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChoicePiece {
    /// Which choice.
    pub choice: usize,
    /// Text that is final.
    pub text: String,
    /// The tokens it comes from.
    pub tokens: Vec<GeneratedToken>,
    /// Set once, when asked for.
    pub prompt_logprobs: Option<Vec<TokenLogprobs>>,
    /// Set in the last piece.
    pub finish: Option<FinishReason>,
    /// The stop string or stop token that ended it.
    pub stop_reason: Option<StopCause>,
}

impl ChoicePiece {
    /// Appends the next piece of the same choice.
    pub fn append(&mut self, next: Self) {
        self.text.push_str(&next.text);
        self.tokens.extend(next.tokens);
        self.prompt_logprobs = self.prompt_logprobs.take().or(next.prompt_logprobs);
        self.finish = next.finish;
        self.stop_reason = next.stop_reason;
    }
}

/// What ended a choice, in vLLM's `stop_reason`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum StopCause {
    /// A stop string.
    Text(String),
    /// One of `stop_token_ids`.
    Token(TokenId),
}

/// Token counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Of all prompts.
    pub prompt_tokens: usize,
    /// Of both.
    pub total_tokens: usize,
    /// Of all choices.
    pub completion_tokens: usize,
}

#[derive(Serialize)]
struct Envelope<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [C],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
}

#[derive(Serialize)]
struct CompletionChoice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<&'a StopCause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<TokenId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<ChatText<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<ChatText<'a>>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<&'a StopCause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<TokenId>>,
}

#[derive(Serialize)]
struct ChatText<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    content: &'a str,
}

/// Writes one request's answer.
#[derive(Debug)]
pub struct AnswerFormat {
    settings: AnswerSettings,
    names: TokenNames,
    prompts: Vec<PromptRecord>,
    choices: Vec<ChoiceProgress>,
}

#[derive(Debug, Clone, Default)]
struct ChoiceProgress {
    begun: bool,
    /// Characters of the tokens that logprobs have shown so far.
    text_offset: Cell<usize>,
}

impl AnswerFormat {
    /// For the given prompts, each with `num_choices` choices.
    pub fn new(settings: AnswerSettings, names: TokenNames, prompts: Vec<PromptRecord>) -> Self {
        let choices = vec![ChoiceProgress::default(); prompts.len() * settings.num_choices];
        Self { settings, names, prompts, choices }
    }

    /// Appends the server-sent event of one piece. `usage` counts up to and with it.
    ///
    /// Errors: never in practice; what JSON cannot express.
    pub fn write_event(&mut self, piece: &ChoicePiece, usage: Usage, out: &mut Vec<u8>) -> serde_json::Result<()> {
        let stream = self.settings.stream;
        let usage = match stream {
            StreamOptions { continuous_usage_stats: true, .. } => Some(Some(usage)),
            StreamOptions { include_usage: true, .. } => Some(None),
            _ => None,
        };
        let first = !std::mem::replace(&mut self.choices[piece.choice].begun, true);
        match self.settings.kind {
            ApiKind::Completion => {
                let mut echoed = String::new();
                let choice = self.completion_choice(piece, first, &mut echoed);
                write_sse(out, &self.envelope("text_completion", &[choice], usage))
            }
            ApiKind::Chat => {
                // The role comes in an event of its own, as OpenAI's and vLLM's.
                if first {
                    let empty = ChoicePiece { choice: piece.choice, ..ChoicePiece::default() };
                    let mut opening = self.chat_choice(&empty, Some("assistant"), true);
                    opening.logprobs = None;
                    let mut envelope = self.envelope("chat.completion.chunk", std::slice::from_ref(&opening), usage);
                    self.add_chat_prompt(piece, &mut envelope);
                    write_sse(out, &envelope)?;
                }
                let choice = self.chat_choice(piece, None, true);
                write_sse(out, &self.envelope("chat.completion.chunk", &[choice], usage))
            }
        }
    }

    /// Appends the last events of a stream.
    ///
    /// Errors: as [`AnswerFormat::write_event`].
    pub fn write_end(&self, usage: Usage, out: &mut Vec<u8>) -> serde_json::Result<()> {
        if self.settings.stream.include_usage {
            let object = match self.settings.kind {
                ApiKind::Chat => "chat.completion.chunk",
                ApiKind::Completion => "text_completion",
            };
            write_sse(out, &self.envelope::<()>(object, &[], Some(Some(usage))))?;
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
        Ok(())
    }

    /// The whole answer as one object; one piece a choice, in order.
    ///
    /// Errors: as [`AnswerFormat::write_event`].
    pub fn whole(&mut self, pieces: &[ChoicePiece], usage: Usage) -> serde_json::Result<Vec<u8>> {
        match self.settings.kind {
            ApiKind::Completion => {
                let mut echoed = vec![String::new(); pieces.len()];
                let choices: Vec<_> = pieces
                    .iter()
                    .zip(&mut echoed)
                    .map(|(piece, echoed)| self.completion_choice(piece, true, echoed))
                    .collect();
                serde_json::to_vec(&self.envelope("text_completion", &choices, Some(Some(usage))))
            }
            ApiKind::Chat => {
                let choices: Vec<_> =
                    pieces.iter().map(|piece| self.chat_choice(piece, Some("assistant"), false)).collect();
                let mut envelope = self.envelope("chat.completion", &choices, Some(Some(usage)));
                if let Some(piece) = pieces.first() {
                    self.add_chat_prompt(piece, &mut envelope);
                }
                serde_json::to_vec(&envelope)
            }
        }
    }

    fn envelope<'a, C>(
        &'a self,
        object: &'static str,
        choices: &'a [C],
        usage: Option<Option<Usage>>,
    ) -> Envelope<'a, C> {
        let AnswerSettings { id, created, model, .. } = &self.settings;
        Envelope { id, object, created: *created, model, choices, usage, prompt_logprobs: None, prompt_token_ids: None }
    }

    /// A chat has one prompt, so what was asked about it stands beside the choices, as in vLLM.
    fn add_chat_prompt<'a, C>(&'a self, piece: &ChoicePiece, envelope: &mut Envelope<'a, C>) {
        let Some(prompt) = self.prompts.first() else { return };
        envelope.prompt_token_ids = self.settings.return_token_ids.then_some(&prompt.token_ids);
        envelope.prompt_logprobs = self.prompt_logprobs(piece, prompt);
    }

    fn prompt_logprobs(&self, piece: &ChoicePiece, prompt: &PromptRecord) -> Option<PromptLogprobs> {
        let logprobs = piece.prompt_logprobs.as_ref().filter(|_| self.settings.prompt_logprobs)?;
        Some(prompt_logprobs(&self.names, &prompt.token_ids, logprobs))
    }

    fn completion_choice<'a>(
        &'a self,
        piece: &'a ChoicePiece,
        first: bool,
        echoed: &'a mut String,
    ) -> CompletionChoice<'a> {
        let prompt = &self.prompts[piece.choice / self.settings.num_choices];
        let echo = first && self.settings.echo;
        let text = match echo {
            true => {
                echoed.push_str(&prompt.text);
                echoed.push_str(&piece.text);
                echoed.as_str()
            }
            false => piece.text.as_str(),
        };
        let logprobs = self.settings.logprobs.map(|num_top| {
            let text_offset = &self.choices[piece.choice].text_offset;
            let mut logprobs = CompletionLogprobs::new(num_top, text_offset.get());
            if let (true, Some(of_prompt)) = (echo, &piece.prompt_logprobs) {
                logprobs.add_prompt(&self.names, &prompt.token_ids, of_prompt);
            }
            logprobs.add_tokens(&self.names, &piece.tokens);
            text_offset.set(logprobs.next_offset());
            logprobs
        });
        CompletionChoice {
            index: piece.choice,
            text,
            logprobs,
            finish_reason: piece.finish.map(FinishReason::as_str),
            stop_reason: piece.stop_reason.as_ref(),
            prompt_logprobs: if first { self.prompt_logprobs(piece, prompt) } else { None },
            token_ids: self.token_ids(piece),
            prompt_token_ids: (first && self.settings.return_token_ids).then_some(&prompt.token_ids),
        }
    }

    fn chat_choice<'a>(&'a self, piece: &'a ChoicePiece, role: Option<&'static str>, stream: bool) -> ChatChoice<'a> {
        let text = ChatText { role, content: &piece.text };
        let (message, delta) = if stream { (None, Some(text)) } else { (Some(text), None) };
        ChatChoice {
            index: piece.choice,
            message,
            delta,
            logprobs: self.settings.logprobs.map(|_| ChatLogprobs::of(&self.names, &piece.tokens)),
            finish_reason: piece.finish.map(FinishReason::as_str),
            stop_reason: piece.stop_reason.as_ref(),
            token_ids: self.token_ids(piece),
        }
    }

    fn token_ids(&self, piece: &ChoicePiece) -> Option<Vec<TokenId>> {
        self.settings.return_token_ids.then(|| piece.tokens.iter().map(|token| token.id).collect())
    }
}

fn write_sse(out: &mut Vec<u8>, json: &impl Serialize) -> serde_json::Result<()> {
    out.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *out, json)?;
    out.extend_from_slice(b"\n\n");
    Ok(())
}
