//! The JSON routes.

use std::path::Path;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Dashboard;
use crate::LabError;
use crate::analysis::cost::{Tariff, costs};
use crate::analysis::findings::{recommendations, trade_offs};
use crate::analysis::leaderboard::leaderboards;
use crate::analysis::pareto::frontiers;
use crate::analysis::power::{POWERCAP, Power, watch};
use crate::analysis::scaling::curves;
use crate::analysis::stacking::stacks;
use crate::analysis::whatif::{Limits, whatif};
use crate::analysis::{Group, groups};
use crate::record::{RunRecord, Verdict};

/// An error as JSON: `{"error": ".."}`.
pub struct ApiError(StatusCode, String);

impl From<LabError> for ApiError {
    fn from(error: LabError) -> Self {
        let asked_wrongly = matches!(error, LabError::Input(_));
        Self(if asked_wrongly { StatusCode::BAD_REQUEST } else { StatusCode::INTERNAL_SERVER_ERROR }, error.to_string())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(error: QueryRejection) -> Self {
        Self(StatusCode::BAD_REQUEST, error.body_text())
    }
}

impl From<serde_json::Error> for ApiError {
    fn from(error: serde_json::Error) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

type Answer = Result<Json<Value>, ApiError>;

/// `/api/benchmarks`, `/api/summary` and `/api/analysis/..`.
pub fn routes() -> Router<Dashboard> {
    type S = State<Dashboard>;
    /// A route whose answer is a function of the comparable rows.
    macro_rules! of_groups {
        ($finding:expr) => {
            get(|State(dashboard): S| async move {
                let groups = groups(&dashboard.runs().await?);
                Answer::Ok(Json(serde_json::to_value($finding(&groups))?))
            })
        };
    }
    /// A route whose answer is a function of the runs.
    macro_rules! of_runs {
        ($finding:expr) => {
            get(|State(dashboard): S| async move {
                Answer::Ok(Json(serde_json::to_value($finding(&dashboard.runs().await?))?))
            })
        };
    }
    Router::new()
        .route("/api/benchmarks", of_runs!(groups))
        .route("/api/summary", of_runs!(summary))
        .route("/api/analysis/leaderboards", of_groups!(leaderboards))
        .route("/api/analysis/pareto", of_groups!(frontiers))
        .route("/api/analysis/tradeoffs", of_groups!(trade_offs))
        .route("/api/analysis/recommendations", of_groups!(recommendations))
        .route("/api/analysis/stacking", of_runs!(stacks))
        .route("/api/analysis/scaling", of_runs!(curves))
        .route("/api/analysis/whatif", get(whatif_route))
        .route("/api/analysis/cost", get(cost_route))
        .route("/api/analysis/power", get(power_route))
}

async fn whatif_route(State(dashboard): State<Dashboard>, limits: Result<Query<Limits>, QueryRejection>) -> Answer {
    let Query(limits) = limits?;
    let groups = groups(&dashboard.runs().await?);
    Ok(Json(serde_json::to_value(whatif(&groups, &limits))?))
}

/// What `/api/analysis/cost` takes; as the flags of `aisp bench cost`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CostQuery {
    gpu: Option<String>,
    rate: Option<f64>,
    utilization: Option<f64>,
    top: Option<usize>,
}

async fn cost_route(State(dashboard): State<Dashboard>, query: Result<Query<CostQuery>, QueryRejection>) -> Answer {
    let Query(query) = query?;
    let tariff = Tariff::new(query.gpu.as_deref().unwrap_or("CPU"), query.rate, query.utilization.unwrap_or(1.0))?;
    let groups = groups(&dashboard.runs().await?);
    Ok(Json(json!({ "tariff": tariff, "rows": costs(&groups, &tariff, query.top.unwrap_or(usize::MAX)) })))
}

async fn power_route() -> Answer {
    let watched = tokio::task::spawn_blocking(|| watch(Path::new(POWERCAP), Duration::from_millis(500))).await;
    let power = watched.unwrap_or_else(|error| Power::Unavailable { reason: error.to_string() });
    Ok(Json(serde_json::to_value(power)?))
}

/// Counts for the head of a page.
pub fn summary(runs: &[RunRecord]) -> Value {
    let groups = groups(runs);
    let optimized = || groups.iter().flat_map(|group| &group.rows).filter(|row| !row.is_baseline);
    let with = |verdict| optimized().filter(|row| row.verdict == Some(verdict)).count();
    json!({
        "runs": runs.len(),
        "labs": groups.len(),
        "arms": optimized().count(),
        "faster": with(Verdict::Faster),
        "slower": with(Verdict::Slower),
        "no_difference": with(Verdict::NoDifference),
        "wrong": with(Verdict::Wrong),
        "not_engaged": optimized().filter(|row| !row.not_engaged.is_empty()).count(),
        "best": best(&groups),
        "newest": runs.first().map(|run| &run.manifest),
    })
}

fn best(groups: &[Group]) -> Value {
    let arms = groups.iter().flat_map(|group| group.rows.iter().map(move |row| (group, row)));
    let gains = arms.filter(|(_, row)| row.verdict == Some(Verdict::Faster));
    let gains = gains.filter_map(|(group, row)| Some((row.speedup?, group, row)));
    let best = gains.max_by(|(a, ..), (b, ..)| a.low.total_cmp(&b.low));
    best.map_or(Value::Null, |(speedup, group, row)| json!({ "lab": group.lab, "arm": row.arm, "speedup": speedup }))
}
