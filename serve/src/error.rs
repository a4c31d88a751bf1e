//! Everything a client can be told went wrong, and the one place that turns it into a status and a body.

use aisp_engine::RequestError;
use aisp_engine::text::TextError;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// Seconds after which a refused client may try again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// Why a request was not answered. The messages are for clients: no paths, no addresses, no secrets.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// A field has the wrong type, a value out of range, or is missing.
    #[error("{message}")]
    Invalid {
        /// The field, if it is one.
        param: Option<&'static str>,
        /// What it takes and what it got.
        message: String,
    },
    /// A field that exists elsewhere and would change the answer, but is not implemented here.
    #[error("`{param}` is not supported by this server: leave it out{hint}")]
    Unsupported {
        /// The field.
        param: &'static str,
        /// The values that are taken, as ` or set it to ..`; may be empty.
        hint: String,
    },
    /// A field that nobody knows.
    #[error("unrecognized request argument: {name}")]
    UnknownField {
        /// The field as the client wrote it, shortened.
        name: String,
    },
    /// Prompt and answer do not fit the context.
    #[error("this model's context holds {max_model_len} tokens, but {asked}: shorten the prompt or lower max_tokens")]
    ContextLength {
        /// Tokens of prompt and answer together.
        max_model_len: usize,
        /// What the request comes to.
        asked: String,
    },
    /// No key, or not the right one.
    #[error("missing or wrong API key: send it as `Authorization: Bearer <key>`")]
    Unauthorized,
    /// Not the model that is served here.
    #[error("the model `{name}` does not exist")]
    ModelNotFound {
        /// What the client asked for, shortened.
        name: String,
    },
    /// No such route.
    #[error("no such route: GET /openapi.json lists them")]
    RouteNotFound,
    /// The route takes another method.
    #[error("this route does not take this method")]
    MethodNotAllowed,
    /// The body did not arrive in time.
    #[error("the request body did not arrive within {seconds} s")]
    BodyTimeout {
        /// The bound.
        seconds: u64,
    },
    /// The connection broke while the body was read.
    #[error("the request body could not be read")]
    BodyBroken,
    /// The body is too long.
    #[error("the request body is longer than {max_bytes} bytes")]
    BodyTooLarge {
        /// The bound.
        max_bytes: usize,
    },
    /// Not JSON by its own account.
    #[error("send `Content-Type: application/json`")]
    NotJson,
    /// As many requests wait as may.
    #[error("the server is busy: {what} reached; try again later")]
    Busy {
        /// The bound that was reached.
        what: &'static str,
    },
    /// The model is not loaded yet.
    #[error("the model is still loading")]
    Loading,
    /// The server is going down.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The engine stopped; the process is about to end.
    #[error("the engine failed")]
    EngineFailed,
    /// Something of ours broke.
    #[error("internal error")]
    Internal,
}

/// The wire form, as OpenAI's.
#[derive(Debug, Serialize)]
pub struct ErrorBody {
    error: ErrorObject,
}

#[derive(Debug, Serialize)]
struct ErrorObject {
    message: String,
    r#type: &'static str,
    param: Option<&'static str>,
    code: Option<&'static str>,
}

impl ApiError {
    /// A bad value of a field.
    pub fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { param: Some(param), message: format!("{param}: {}", message.into()) }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.class().0
    }

    /// The JSON body.
    pub fn body(&self) -> ErrorBody {
        let (_, r#type, code) = self.class();
        let param = match self {
            Self::Invalid { param, .. } => *param,
            Self::Unsupported { param, .. } => Some(*param),
            Self::ContextLength { .. } => Some("max_tokens"),
            Self::ModelNotFound { .. } => Some("model"),
            _ => None,
        };
        ErrorBody { error: ErrorObject { message: self.to_string(), r#type, param, code } }
    }

    /// Status, OpenAI's type and OpenAI's code.
    fn class(&self) -> (StatusCode, &'static str, Option<&'static str>) {
        const INVALID: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        match self {
            Self::Invalid { .. } | Self::BodyBroken => (StatusCode::BAD_REQUEST, INVALID, None),
            Self::Unsupported { .. } => (StatusCode::BAD_REQUEST, INVALID, Some("unsupported_parameter")),
            Self::UnknownField { .. } => (StatusCode::BAD_REQUEST, INVALID, Some("unknown_parameter")),
            Self::ContextLength { .. } => (StatusCode::BAD_REQUEST, INVALID, Some("context_length_exceeded")),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, INVALID, Some("invalid_api_key")),
            Self::ModelNotFound { .. } => (StatusCode::NOT_FOUND, INVALID, Some("model_not_found")),
            Self::RouteNotFound => (StatusCode::NOT_FOUND, INVALID, Some("not_found")),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, INVALID, Some("method_not_allowed")),
            Self::BodyTimeout { .. } => (StatusCode::REQUEST_TIMEOUT, INVALID, Some("timeout")),
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, INVALID, Some("request_too_large")),
            Self::NotJson => (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, Some("unsupported_media_type")),
            Self::Busy { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("rate_limit_exceeded")),
            Self::Loading => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("loading")),
            Self::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("shutting_down")),
            Self::EngineFailed => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("engine_failed")),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, Some("internal_error")),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), axum::Json(self.body())).into_response();
        match self {
            Self::Busy { .. } | Self::Loading | Self::ShuttingDown => {
                response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
            }
            Self::Unauthorized => {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let message = error.to_string();
        match error {
            RequestError::InvalidParam { field, .. } => Self::Invalid { param: Some(field), message },
            RequestError::PromptTooLong { prompt_tokens, max_model_len } => {
                Self::ContextLength { max_model_len, asked: format!("the prompt has {prompt_tokens}") }
            }
            RequestError::EmptyPrompt | RequestError::TokenOutOfRange { .. } => {
                Self::Invalid { param: Some("prompt"), message }
            }
            RequestError::ExceedsKvCache { .. } => Self::Invalid { param: Some("max_tokens"), message },
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        let param = match error {
            TextError::NoChatTemplate | TextError::TemplateRefused(_) | TextError::TemplateFailed { .. } => {
                Some("messages")
            }
            _ => None,
        };
        Self::Invalid { param, message: error.to_string() }
    }
}

/// A client's own words, cut to a length that may be repeated to it.
pub(crate) fn shorten(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    let mut short: String = text.chars().take(MAX_CHARS).filter(|c| !c.is_control()).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(error: ApiError, expected: &str) {
        let body = serde_json::to_string(&error.body()).unwrap();
        assert_eq!(format!("{} {body}", error.status().as_u16()), expected);
    }

    #[test]
    fn bodies_are_openai_s() {
        check(
            ApiError::invalid("n", "must be at least 1"),
            r#"400 {"error":{"message":"n: must be at least 1","type":"invalid_request_error","param":"n","code":null}}"#,
        );
        check(
            ApiError::ModelNotFound { name: "x".into() },
            r#"404 {"error":{"message":"the model `x` does not exist","type":"invalid_request_error","param":"model","code":"model_not_found"}}"#,
        );
        check(
            ApiError::Busy { what: "--max-num-queued-reqs" },
            r#"429 {"error":{"message":"the server is busy: --max-num-queued-reqs reached; try again later","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}}"#,
        );
    }

    #[test]
    fn refusals_say_when_to_come_back() {
        let response = ApiError::Busy { what: "x" }.into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        assert!(ApiError::Internal.into_response().headers().get(header::RETRY_AFTER).is_none());
    }

    #[test]
    fn a_client_s_words_are_cut() {
        assert_eq!(shorten("a\nb"), "ab");
        assert_eq!(shorten(&"é".repeat(100)).chars().count(), 81);
    }
}
