//! From tokenized prompts to a response: what `/v1/completions` and `/v1/chat/completions` share.

use std::sync::Arc;
use std::time::Instant;

use aisp_engine::{Request, SamplingParams, TokenId};
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use crate::admission::Ticket;
use crate::app::{App, LoadedModel, unix_seconds};
use crate::engine_thread::Prompt;
use crate::error::ApiError;
use crate::generation::{Choice, Generation, SseBody, collect};
use crate::metrics::RequestMetrics;
use crate::openai::{AnswerFormat, AnswerSettings, ApiKind, CommonFields, CompletionRequest, PromptRecord, TokenNames};

/// A prompt ready for the engine.
#[derive(Debug)]
pub(super) struct TokenizedPrompt {
    /// Its tokens.
    pub tokens: Vec<TokenId>,
    /// Its text; filled in when the answer begins with it.
    pub text: String,
}

/// A request that was let in and tokenized.
pub(super) struct Job {
    pub kind: ApiKind,
    pub arrival: Instant,
    /// The model's name to answer with.
    pub model_name: String,
    pub common: CommonFields,
    pub prompts: Vec<TokenizedPrompt>,
    pub echo: bool,
    pub ticket: Ticket,
}

/// Runs the job and answers, streamed or whole.
///
/// Errors: what the engine refuses; what does not fit the context.
pub(super) async fn answer(app: &Arc<App>, model: &LoadedModel, mut job: Job) -> Result<Response, ApiError> {
    let stream = job.common.stream;
    let format = format_of(app, model, &mut job);
    let (prompts, choices) = sequences(app, model, &job)?;
    let num_prompt_tokens: usize = job.prompts.iter().map(|prompt| prompt.tokens.len()).sum();
    job.ticket.set_tokens(num_prompt_tokens * job.common.num_choices);
    let submission = model.engine.submit(prompts)?;
    let generation = Generation::accepted(submission, job.ticket, choices, num_prompt_tokens).await?;
    match stream {
        Some(_) => Ok(streamed(SseBody::new(generation, format))),
        None => {
            let json = collect(generation, format).await?;
            Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response())
        }
    }
}

fn streamed(body: SseBody) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, Body::new(body)).into_response()
}

/// `n` choices for each prompt, with seeds that count up.
fn sequences(app: &App, model: &LoadedModel, job: &Job) -> Result<(Vec<Prompt>, Vec<Choice>), ApiError> {
    let mut prompts = Vec::new();
    let mut choices = Vec::new();
    for prompt in &job.prompts {
        let max_tokens = max_tokens(job, prompt.tokens.len(), model.info.max_model_len)?;
        let mut all_params = Vec::with_capacity(job.common.num_choices);
        for at in 0..job.common.num_choices {
            let params = SamplingParams {
                // The engine makes one token at least; a choice for the prompt's sake drops it.
                max_tokens: max_tokens.max(1),
                seed: job.common.params.seed.map(|seed| seed.wrapping_add(at as u64)),
                ..job.common.params.clone()
            };
            params.validate(model.info.vocab_size)?;
            let metrics = RequestMetrics::new(app.metrics.clone(), job.arrival);
            let choice = Choice::new(model.tokenizer.clone(), &params, metrics);
            choices.push(choice.prompt_only(max_tokens == 0));
            all_params.push(params);
        }
        let request = Request {
            arrival: job.arrival,
            priority: job.common.priority,
            cache_salt: job.common.cache_salt.clone(),
            ..Request::new(prompt.tokens.clone(), SamplingParams::default())
        };
        prompts.push(Prompt { request, params: all_params });
    }
    Ok((prompts, choices))
}

/// What the client asked for, or the API's default, if it fits the context.
fn max_tokens(job: &Job, prompt_tokens: usize, max_model_len: usize) -> Result<usize, ApiError> {
    let too_long = |asked| ApiError::ContextLength { max_model_len, asked };
    let Some(room) = max_model_len.checked_sub(prompt_tokens).filter(|room| *room > 0) else {
        return Err(too_long(format!("the prompt has {prompt_tokens}")));
    };
    match (job.common.max_tokens, job.kind) {
        (Some(asked), _) if asked > room => {
            Err(too_long(format!("the prompt has {prompt_tokens} and the answer may have {asked}")))
        }
        (Some(asked), _) => Ok(asked),
        (None, ApiKind::Chat) => Ok(room),
        (None, ApiKind::Completion) => Ok(CompletionRequest::DEFAULT_MAX_TOKENS.min(room)),
    }
}

fn format_of(app: &App, model: &LoadedModel, job: &mut Job) -> AnswerFormat {
    let common = &job.common;
    let prefix = match job.kind {
        ApiKind::Chat => "chatcmpl",
        ApiKind::Completion => "cmpl",
    };
    // `echo` with logprobs asks the engine for the prompt's as well; the field of their own is vLLM's.
    let echoes_logprobs = job.echo && common.params.logprobs.is_some();
    let settings = AnswerSettings {
        kind: job.kind,
        id: app.next_answer_id(prefix, common.request_id.as_deref()),
        created: unix_seconds(),
        model: job.model_name.clone(),
        num_choices: common.num_choices,
        stream: common.stream.unwrap_or_default(),
        echo: job.echo,
        logprobs: common.params.logprobs,
        prompt_logprobs: common.prompt_logprobs_field,
        return_token_ids: common.return_token_ids,
    };
    let keep_tokens = echoes_logprobs || settings.prompt_logprobs || settings.return_token_ids;
    let record = |prompt: &mut TokenizedPrompt| PromptRecord {
        num_tokens: prompt.tokens.len(),
        text: std::mem::take(&mut prompt.text),
        token_ids: if keep_tokens { prompt.tokens.clone() } else { Vec::new() },
    };
    let prompts = job.prompts.iter_mut().map(record).collect();
    AnswerFormat::new(settings, TokenNames::new(model.tokenizer.clone()), prompts)
}
