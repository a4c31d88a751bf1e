//! `aisp dashboard`: the stored runs as pages and JSON, on this machine only. It reads; nothing can be started or changed
//! through it. Pages are written here and embedded: no build step, no request to anywhere else.

mod api;
mod guard;
mod html;
mod live;
mod pages;
mod plots;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::middleware::from_fn;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::record::RunRecord;
use crate::{LabError, artifacts};

/// Where the runs lie; each request reads them again, so a page is never older than its runs.
#[derive(Debug, Clone)]
struct Dashboard {
    artifacts: Arc<PathBuf>,
}

impl Dashboard {
    /// All runs, read off the async threads.
    async fn runs(&self) -> Result<Vec<RunRecord>, LabError> {
        let artifacts = self.artifacts.clone();
        let read = tokio::task::spawn_blocking(move || artifacts::read_all(&artifacts)).await;
        let system =
            |error: tokio::task::JoinError| LabError::System { what: "reading runs", message: error.to_string() };
        read.map_err(system)?.map(|(runs, _)| runs)
    }
}

/// All routes over the runs in a folder.
pub fn router(artifacts: PathBuf) -> Router {
    let css = || async { ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("style.css")) };
    let script = || async { ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], include_str!("live.js")) };
    Router::new()
        .route("/style.css", get(css))
        .route("/live.js", get(script))
        .merge(pages::routes())
        .merge(api::routes())
        .merge(live::routes())
        .layer(from_fn(guard::guard))
        .with_state(Dashboard { artifacts: Arc::new(artifacts) })
}

/// Serves the dashboard on 127.0.0.1 until Ctrl-C; `started` is told the address.
///
/// Errors: a port that is taken.
pub fn serve(artifacts: PathBuf, port: u16, started: impl FnOnce(SocketAddr)) -> Result<(), LabError> {
    let system = |error: std::io::Error| LabError::System { what: "dashboard", message: error.to_string() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(system)?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| LabError::System {
            what: "dashboard",
            message: format!("port {port} of 127.0.0.1: {error}; --port takes another"),
        })?;
        started(listener.local_addr().map_err(system)?);
        // Streams of live progress never end by themselves, so Ctrl-C does not wait for them.
        tokio::select! {
            served = IntoFuture::into_future(axum::serve(listener, router(artifacts))) => served.map_err(system),
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    })
}
