//! Progress of the run under way, as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use axum::routing::get;
use futures_util::{Stream, stream};

use super::Dashboard;
use crate::live::{Live, read_live};

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(400);

/// `GET /api/live`.
pub fn routes() -> Router<Dashboard> {
    Router::new().route("/api/live", get(live))
}

async fn live(State(dashboard): State<Dashboard>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let seen: Option<Option<Live>> = None;
    let events = stream::unfold((dashboard, seen), |(dashboard, seen)| async move {
        loop {
            let artifacts = dashboard.artifacts.clone();
            let now = tokio::task::spawn_blocking(move || read_live(&artifacts)).await.ok().flatten();
            if seen.as_ref() != Some(&now) {
                return Some((Ok(event(now.as_ref())), (dashboard, Some(now))));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

/// `progress` with the JSON of a run under way, `idle` when there is none.
fn event(live: Option<&Live>) -> Event {
    let data = live.and_then(|live| serde_json::to_string(live).ok());
    match data {
        Some(data) => Event::default().event("progress").data(data),
        None => Event::default().event("idle").data("{}"),
    }
}
