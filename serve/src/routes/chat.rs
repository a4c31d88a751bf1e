//! `POST /v1/chat/completions`.

use std::sync::Arc;

use aisp_engine::TokenId;
use aisp_engine::text::{ChatContext, ChatMessage, TextError, Tokenizer};
use axum::extract::{Request, State};
use axum::response::Response;

use super::answer::{Job, TokenizedPrompt, answer};
use super::body::{Arrival, read_json};
use super::completions::encode;
use crate::app::{App, LoadedModel};
use crate::error::ApiError;
use crate::openai::{ApiKind, ChatRequest};

/// Answers a chat.
pub(super) async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    handle(&app, request).await.inspect_err(|error| app.metrics.count_rejection(error))
}

async fn handle(app: &Arc<App>, request: Request) -> Result<Response, ApiError> {
    let arrival = Arrival::of(&request);
    let model = app.accepting_model()?;
    let body = read_json(request, app.limits()).await?;
    let chat = ChatRequest::parse(&body, app.limits())?;
    drop(body);
    let model_name = app.model_name(chat.common.model.as_deref())?;
    let ticket = app.admission.admit(chat.common.num_choices, chat.estimated_tokens())?;
    let ChatRequest { common, messages, context } = chat;
    let add_special = common.add_special_tokens.unwrap_or(false);
    let tokens = tokenize_chat(app, model, messages, context, add_special).await?;
    let prompts = vec![TokenizedPrompt { tokens, text: String::new() }];
    answer(app, model, Job { kind: ApiKind::Chat, arrival, model_name, common, prompts, echo: false, ticket }).await
}

/// Renders and tokenizes a chat on the text pool.
///
/// Errors: no template, no tokenizer, a template that refuses the messages, a prompt that is too long.
pub(super) async fn tokenize_chat(
    app: &App,
    model: &LoadedModel,
    messages: Vec<ChatMessage>,
    mut context: ChatContext,
    add_special: bool,
) -> Result<Vec<TokenId>, ApiError> {
    let tokenizer = model.tokenizer.clone().ok_or(TextError::NoTokenizer)?;
    let template = model.chat_template.clone().ok_or(TextError::NoChatTemplate)?;
    let max_model_len = model.info.max_model_len;
    context.special_tokens = Tokenizer::special_tokens(&tokenizer);
    let render = move || {
        let text = template.render(&messages, &context)?;
        encode(&tokenizer, &text, add_special, max_model_len)
    };
    app.text_pool.run(render).await
}
