//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;

use crate::app::App;
use crate::error::ApiError;

/// One model, with vLLM's `max_model_len`.
#[derive(Debug, Serialize)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: String,
    parent: Option<String>,
    max_model_len: usize,
}

/// A list in OpenAI's form.
#[derive(Debug, Serialize)]
pub(super) struct List<T> {
    object: &'static str,
    data: Vec<T>,
}

impl<T> List<T> {
    /// Wraps the entries.
    pub(super) fn of(data: Vec<T>) -> Self {
        Self { object: "list", data }
    }
}

pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<List<Model>>, ApiError> {
    let names = &app.config().served_model_names;
    Ok(Json(List::of(names.iter().map(|name| model(&app, name)).collect::<Result<_, _>>()?)))
}

pub(super) async fn show(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Model>, ApiError> {
    let name = app.model_name(Some(&id))?;
    Ok(Json(model(&app, &name)?))
}

fn model(app: &App, name: &str) -> Result<Model, ApiError> {
    let info = &app.model().ok_or(ApiError::Loading)?.info;
    Ok(Model {
        id: name.to_owned(),
        object: "model",
        created: app.created(),
        owned_by: "aisp",
        root: info.name.clone(),
        parent: None,
        max_model_len: info.max_model_len,
    })
}
