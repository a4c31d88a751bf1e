//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes.

use std::sync::Arc;

use aisp_engine::TokenId;
use aisp_engine::text::TextError;
use axum::Json;
use axum::extract::{Request, State};
use serde::Serialize;

use super::body::read_json;
use super::chat::tokenize_chat;
use crate::app::{App, LoadedModel};
use crate::error::ApiError;
use crate::fields::{Fields, Schema};
use crate::openai::{read_context, read_messages};

const TOKENIZE: Schema = Schema {
    known: &[&[
        "model",
        "prompt",
        "messages",
        "add_special_tokens",
        "return_token_strs",
        "add_generation_prompt",
        "chat_template_kwargs",
    ]],
    ignored: &[],
    unsupported: &[("continue_final_message", &["false"]), ("tools", &["[]"]), ("chat_template", &[])],
};

const DETOKENIZE: Schema = Schema { known: &[&["model", "tokens"]], ignored: &[], unsupported: &[] };

/// The tokens of a text or a chat.
#[derive(Debug, Serialize)]
pub(super) struct Tokens {
    count: usize,
    max_model_len: usize,
    tokens: Vec<TokenId>,
    token_strs: Option<Vec<String>>,
}

/// The text of tokens.
#[derive(Debug, Serialize)]
pub(super) struct Text {
    prompt: String,
}

pub(super) async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Json<Tokens>, ApiError> {
    let model = app.accepting_model()?;
    let body = read_json(request, app.limits()).await?;
    let fields = Fields::parse(&body, &TOKENIZE)?;
    app.model_name(fields.get::<String>("model")?.as_deref())?;
    let tokenizer = model.tokenizer.clone().ok_or(TextError::NoTokenizer)?;
    let add_special = fields.get("add_special_tokens")?;
    let with_strings = fields.get("return_token_strs")?.unwrap_or(false);
    let tokens = match (fields.get::<String>("prompt")?, fields.raw("messages")) {
        (Some(text), None) => {
            let tokenizer = tokenizer.clone();
            let encode = move || Ok(tokenizer.encode(&text, add_special.unwrap_or(true))?);
            app.text_pool.run(encode).await?
        }
        (None, Some(_)) => {
            let (messages, context) = (read_messages(&fields, app.limits())?, read_context(&fields, app.limits())?);
            tokenize_chat(&app, model, messages, context, add_special.unwrap_or(false)).await?
        }
        _ => return Err(ApiError::invalid("prompt", "send either `prompt`, a string, or `messages`")),
    };
    let name = |id: &TokenId| tokenizer.token_name(*id).map_or_else(|| tokenizer.token_str(*id), str::to_owned);
    let token_strs = with_strings.then(|| tokens.iter().map(name).collect());
    Ok(Json(Tokens { count: tokens.len(), max_model_len: model.info.max_model_len, tokens, token_strs }))
}

pub(super) async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Result<Json<Text>, ApiError> {
    let model = app.accepting_model()?;
    let body = read_json(request, app.limits()).await?;
    let fields = Fields::parse(&body, &DETOKENIZE)?;
    app.model_name(fields.get::<String>("model")?.as_deref())?;
    if fields.raw("tokens").is_none() {
        return Err(ApiError::invalid("tokens", "is missing"));
    }
    let tokens: Vec<TokenId> = fields.list("tokens", body.len())?;
    check_tokens(model, &tokens)?;
    let tokenizer = model.tokenizer.clone().ok_or(TextError::NoTokenizer)?;
    let prompt = app.text_pool.run(move || Ok(tokenizer.decode(&tokens, false))).await?;
    Ok(Json(Text { prompt }))
}

fn check_tokens(model: &LoadedModel, tokens: &[TokenId]) -> Result<(), ApiError> {
    let vocab_size = model.info.vocab_size;
    match tokens.iter().find(|token| **token as usize >= vocab_size) {
        Some(token) => {
            Err(ApiError::invalid("tokens", format!("token {token} is outside the vocabulary of {vocab_size}")))
        }
        None => Ok(()),
    }
}
