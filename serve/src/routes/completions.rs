//! `POST /v1/completions`.

use std::sync::Arc;

use aisp_engine::text::Tokenizer;
use axum::extract::{Request, State};
use axum::response::Response;

use super::answer::{Job, TokenizedPrompt, answer};
use super::body::{Arrival, read_json};
use crate::app::App;
use crate::error::ApiError;
use crate::openai::{ApiKind, CompletionRequest, Prompt};

/// Continues one or more prompts.
pub(super) async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    handle(&app, request).await.inspect_err(|error| app.metrics.count_rejection(error))
}

async fn handle(app: &Arc<App>, request: Request) -> Result<Response, ApiError> {
    let arrival = Arrival::of(&request);
    let model = app.accepting_model()?;
    let body = read_json(request, app.limits()).await?;
    let CompletionRequest { common, prompts, echo } = CompletionRequest::parse(&body, app.limits())?;
    drop(body);
    let model_name = app.model_name(common.model.as_deref())?;
    let estimated: usize = prompts.iter().map(Prompt::estimated_tokens).sum();
    let ticket = app.admission.admit(prompts.len() * common.num_choices, estimated)?;
    let (tokenizer, max_model_len) = (model.tokenizer.clone(), model.info.max_model_len);
    let add_special = common.add_special_tokens.unwrap_or(true);
    let tokenized = app.text_pool.run(move || {
        let encode = |prompt| tokenized(prompt, tokenizer.as_ref(), max_model_len, add_special, echo);
        prompts.into_iter().map(encode).collect::<Result<Vec<_>, _>>()
    });
    let prompts = tokenized.await?;
    answer(app, model, Job { kind: ApiKind::Completion, arrival, model_name, common, prompts, echo, ticket }).await
}

fn tokenized(
    prompt: Prompt,
    tokenizer: Option<&Tokenizer>,
    max_model_len: usize,
    add_special: bool,
    echo: bool,
) -> Result<TokenizedPrompt, ApiError> {
    match (prompt, tokenizer) {
        (Prompt::Text(text), Some(tokenizer)) => {
            let tokens = encode(tokenizer, &text, add_special, max_model_len)?;
            Ok(TokenizedPrompt { tokens, text: if echo { text } else { String::new() } })
        }
        (Prompt::Text(_), None) => Err(ApiError::invalid("prompt", "this model has no tokenizer: send token ids")),
        (Prompt::Tokens(tokens), tokenizer) => {
            let text = tokenizer.filter(|_| echo).map(|tokenizer| tokenizer.decode(&tokens, false));
            Ok(TokenizedPrompt { tokens, text: text.unwrap_or_default() })
        }
    }
}

/// The tokens of a prompt that may fit the context; one that cannot is refused before any work is done on it.
///
/// Errors: too long, or the tokenizer fails on it.
pub(super) fn encode(
    tokenizer: &Tokenizer,
    text: &str,
    add_special: bool,
    max_model_len: usize,
) -> Result<Vec<aisp_engine::TokenId>, ApiError> {
    let least = tokenizer.min_token_count(text.len());
    if least >= max_model_len {
        let asked = format!("the prompt has at least {least}");
        return Err(ApiError::ContextLength { max_model_len, asked });
    }
    Ok(tokenizer.encode(text, add_special)?)
}
