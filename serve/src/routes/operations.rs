//! What operators ask: alive, ready, which version, which optimizations, how much of everything.

use std::sync::Arc;

use aisp_engine::OptimizationStatus;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::models::List;
use crate::app::App;
use crate::error::ApiError;

/// A state in one word.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    status: &'static str,
}

/// The process answers. That is all: a process that loads, drains or waits for a long step is alive.
pub(super) async fn health() -> Json<Status> {
    Json(Status { status: "ok" })
}

/// The model is loaded, the engine moved in the last two seconds, and requests are taken.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.lifecycle.ready() {
        Ok(()) => Json(Status { status: "ready" }).into_response(),
        Err(status) => (StatusCode::SERVICE_UNAVAILABLE, Json(Status { status })).into_response(),
    }
}

/// The version of this server.
#[derive(Debug, Serialize)]
pub(super) struct Version {
    version: &'static str,
}

pub(super) async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION") })
}

/// What became of a reset.
#[derive(Debug, Serialize)]
pub(super) struct Reset {
    /// False while requests run: then nothing is forgotten.
    reset: bool,
}

/// Forgets every known prompt beginning.
pub(super) async fn reset_prefix_cache(State(app): State<Arc<App>>) -> Result<Json<Reset>, ApiError> {
    let model = app.model().ok_or(ApiError::Loading)?;
    Ok(Json(Reset { reset: model.engine.reset_prefix_cache().await? }))
}

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, content_type)], app.metrics.render()).into_response()
}

/// Requested and engaged, for every optimization of the registry.
pub(super) async fn optimizations(State(app): State<Arc<App>>) -> Result<Json<List<OptimizationStatus>>, ApiError> {
    let model = app.model().ok_or(ApiError::Loading)?;
    Ok(Json(List::of(model.engine.optimizations().to_vec())))
}
