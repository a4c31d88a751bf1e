//! The routes. Every one is in [`ROUTES`], which a test compares with `/openapi.json`.

mod answer;
mod body;
mod chat;
mod completions;
mod models;
mod openapi;
mod operations;
mod tokenize;

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use subtle::ConstantTimeEq;
use tower_http::catch_panic::CatchPanicLayer;

pub use body::Arrival;

use crate::app::App;
use crate::error::ApiError;

type Handler = fn() -> MethodRouter<Arc<App>>;

/// Every route: method, path, handler.
const ROUTES: &[(&str, &str, Handler)] = &[
    ("post", "/v1/completions", || post(completions::create)),
    ("post", "/v1/chat/completions", || post(chat::create)),
    ("get", "/v1/models", || get(models::list)),
    ("get", "/v1/models/{*id}", || get(models::show)),
    ("post", "/tokenize", || post(tokenize::tokenize)),
    ("post", "/detokenize", || post(tokenize::detokenize)),
    ("get", "/v1/optimizations", || get(operations::optimizations)),
    ("post", "/reset_prefix_cache", || post(operations::reset_prefix_cache)),
    ("get", "/health", || get(operations::health)),
    ("get", "/ready", || get(operations::ready)),
    ("get", "/version", || get(operations::version)),
    ("get", "/metrics", || get(operations::metrics)),
    ("get", "/openapi.json", || get(openapi::document)),
];

/// Routes that need no key: probes cannot send one. Everything else, unknown paths too, is closed.
const OPEN: &[&str] = &["/health", "/ready"];

/// All routes over one app.
pub fn router(app: Arc<App>) -> Router {
    let routes = ROUTES.iter().fold(Router::new(), |router, (_, path, handler)| router.route(path, handler()));
    routes
        .fallback(async || ApiError::RouteNotFound)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(Arc::clone(&app), check_key))
        .with_state(app)
}

/// A panic in a handler costs one request. What it said stays in the log: it may quote the request.
fn panicked(_: Box<dyn Any + Send>) -> Response {
    tracing::error!("a handler panicked");
    ApiError::Internal.into_response()
}

async fn check_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let open = OPEN.contains(&request.uri().path());
    match &app.config().api_key {
        Some(key) if !open && !carries_key(&request, key) => ApiError::Unauthorized.into_response(),
        _ => next.run(request).await,
    }
}

/// The comparison takes the same time wherever the two differ; only their lengths can be told apart.
fn carries_key(request: &Request, key: &str) -> bool {
    let header = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let given = header.and_then(|value| value.split_at_checked(7));
    given.is_some_and(|(scheme, given)| {
        scheme.eq_ignore_ascii_case(b"bearer ") && bool::from(given.ct_eq(key.as_bytes()))
    })
}
