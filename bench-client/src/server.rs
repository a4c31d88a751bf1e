//! What the client asks a server before a run: its models, and how long a text is in its tokens.

use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Error;
use crate::http::Client;

#[derive(Deserialize)]
struct ModelList {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

/// The model to measure: the wanted one if the server lists it (or has no list), else the first listed.
///
/// Errors: the server is down, wants a key, or has no such model.
pub(crate) async fn choose_model(client: &Client, wanted: Option<&str>) -> Result<String, Error> {
    let (status, body) = client.fetch(Method::GET, "/v1/models", Bytes::new()).await?;
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return Err(Error::Unauthorized { url: client.url("/v1/models"), status: status.as_u16() });
    }
    let list: Result<ModelList, String> = match status {
        StatusCode::OK => serde_json::from_slice(&body).map_err(|cause| format!("not a model list: {cause}")),
        _ => Err(format!("status {}", status.as_u16())),
    };
    let no_model = |problem: String| Error::NoModel { url: client.url("/v1/models"), problem };
    match (wanted, list) {
        (Some(wanted), Ok(list)) if list.data.iter().all(|model| model.id != wanted) => {
            let available: Vec<String> = list.data.into_iter().map(|model| model.id).collect();
            Err(Error::UnknownModel { wanted: wanted.to_owned(), available: available.join(", ") })
        }
        (Some(wanted), _) => Ok(wanted.to_owned()),
        (None, Err(problem)) => Err(no_model(problem)),
        (None, Ok(list)) => {
            list.data.into_iter().next().map(|model| model.id).ok_or_else(|| no_model("an empty list".into()))
        }
    }
}

/// Tokens of a text by the server's `/tokenize`; `None` where it has no such route.
///
/// Errors: [`Error::ServerDown`].
pub(crate) async fn count_tokens(client: &Client, model: &str, text: &str) -> Result<Option<u64>, Error> {
    let body = json!({ "model": model, "prompt": text }).to_string();
    let (status, answer) = client.fetch(Method::POST, "/tokenize", body.into()).await?;
    if status != StatusCode::OK {
        return Ok(None);
    }
    let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
    let listed = answer.get("tokens").and_then(Value::as_array).map(|tokens| tokens.len() as u64);
    Ok(answer.get("count").and_then(Value::as_u64).or(listed).filter(|count| *count > 0))
}
