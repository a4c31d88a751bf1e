//! Reads a request's body within its bounds.

use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use crate::error::ApiError;
use crate::limits::Limits;

/// When the head of a request arrived; the server puts it into the request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Arrival(pub Instant);

impl Arrival {
    /// When this request arrived; now, if nobody noted it.
    pub fn of(request: &Request) -> Instant {
        request.extensions().get::<Self>().map_or_else(Instant::now, |arrival| arrival.0)
    }
}

/// The body of a request that says it is JSON. Asking for the type keeps web pages of other origins from posting here
/// without a preflight.
///
/// Errors: another type, too long, too slow, or a broken connection.
pub async fn read_json(request: Request, limits: &Limits) -> Result<Bytes, ApiError> {
    if !is_json(request.headers()) {
        return Err(ApiError::NotJson);
    }
    let too_large = ApiError::BodyTooLarge { max_bytes: limits.max_body_bytes };
    let claimed = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if claimed.is_some_and(|bytes: u64| bytes > limits.max_body_bytes as u64) {
        return Err(too_large);
    }
    let body: Limited<Body> = Limited::new(request.into_body(), limits.max_body_bytes);
    match tokio::time::timeout(limits.body_timeout, body.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large),
        Ok(Err(_)) => Err(ApiError::BodyBroken),
        Err(_) => Err(ApiError::BodyTimeout { seconds: limits.body_timeout.as_secs() }),
    }
}

/// `application/json`, with or without parameters, and `application/*+json`.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_json_is_json() {
        for (value, expected) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/vnd.api+json", true),
            ("text/plain", false),
            ("application/x-www-form-urlencoded", false),
            ("text/json", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]);
            assert_eq!(is_json(&headers), expected, "{value}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
