//! Accepts connections until told to stop, then drains: readiness goes at once, new requests get 503, answers under way
//! are finished until the deadline and get an error event after it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::app::App;
use crate::connection;
use crate::error::ApiError;
use crate::lifecycle::Phase;
use crate::routes::router;

/// Time for error events to reach the sockets after the deadline, or after the engine failed.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Pause after a failed accept, as when descriptors have run out: they come back when connections close.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

const TOO_MANY_CONNECTIONS: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n\
    connection: close\r\n\r\n";

/// Why the server stopped before it was told to, or without finishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ServeError {
    /// The engine stopped; its reason is in the log.
    #[error("the engine failed")]
    EngineFailed,
    /// A second signal came while it drained.
    #[error("stopped by a second signal before the answers under way were finished")]
    Interrupted,
}

/// Serves until `stop` has yielded once, then drains for at most `drain_timeout`. A second yield ends it at once.
///
/// Errors: the engine failed, or the drain was interrupted.
pub async fn serve<F: Future<Output = ()>>(
    listener: TcpListener,
    app: Arc<App>,
    drain_timeout: Duration,
    mut stop: impl FnMut() -> F,
) -> Result<(), ServeError> {
    let mut server = Server::new(Arc::clone(&app));
    tokio::select! {
        () = server.accept(&listener) => {}
        () = stop() => {}
        () = app.lifecycle.reached(Phase::Failed) => return server.fail(&listener).await,
    }
    app.lifecycle.advance(Phase::Draining);
    let num_under_way = app.admission.load().num_sequences;
    tracing::info!("shutting down: {num_under_way} sequences under way, {} s to finish", drain_timeout.as_secs_f64());
    tokio::select! {
        () = server.drain(&listener, drain_timeout) => Ok(()),
        () = stop() => Err(ServeError::Interrupted),
        () = app.lifecycle.reached(Phase::Failed) => Err(ServeError::EngineFailed),
    }
}

struct Server {
    app: Arc<App>,
    router: Router,
    draining: watch::Sender<bool>,
    connections: JoinSet<()>,
}

impl Server {
    fn new(app: Arc<App>) -> Self {
        let router = router(Arc::clone(&app));
        Self { app, router, draining: watch::Sender::new(false), connections: JoinSet::new() }
    }

    /// Never returns.
    async fn accept(&mut self, listener: &TcpListener) {
        let mut upkeep = tokio::time::interval(Duration::from_secs(5));
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.open(stream),
                    Err(error) => {
                        tracing::warn!("could not accept a connection: {error}");
                        sleep(ACCEPT_RETRY).await;
                    }
                },
                Some(_) = self.connections.join_next() => {}
                _ = upkeep.tick() => self.app.metrics.run_upkeep(),
            }
        }
    }

    fn open(&mut self, stream: TcpStream) {
        if self.connections.len() >= self.app.limits().max_connections {
            // A fresh socket has room for these bytes; if not, closing it says enough.
            let _ = stream.try_write(TOO_MANY_CONNECTIONS);
            return;
        }
        let (app, router, draining) = (Arc::clone(&self.app), self.router.clone(), self.draining.subscribe());
        self.connections.spawn(async move { connection::serve(stream, router, app.limits(), draining).await });
    }

    /// Finishes what is under way, or gives it an error after the deadline. Connections that come meanwhile are
    /// answered with 503 and not waited for.
    async fn drain(&mut self, listener: &TcpListener, deadline: Duration) {
        let mut under_way = std::mem::take(&mut self.connections);
        self.draining.send_replace(true);
        let app = Arc::clone(&self.app);
        let finished = async {
            while under_way.join_next().await.is_some() {}
            app.admission.idle().await;
        };
        let in_time = async {
            tokio::select! {
                result = timeout(deadline, finished) => result.is_ok(),
                () = self.accept(listener) => false,
            }
        };
        if in_time.await {
            return;
        }
        tracing::warn!("the drain deadline is over: answers under way end with an error");
        if let Some(model) = self.app.model() {
            model.engine.lose_all(&ApiError::ShuttingDown);
        }
        let _ = timeout(LAST_WORDS, async { while under_way.join_next().await.is_some() {} }).await;
    }

    /// The engine has told every request; this lets the words out.
    async fn fail(mut self, listener: &TcpListener) -> Result<(), ServeError> {
        let app = Arc::clone(&self.app);
        tokio::select! {
            () = app.admission.idle() => sleep(LAST_WORDS / 5).await,
            () = sleep(LAST_WORDS) => {}
            () = self.accept(listener) => {}
        }
        Err(ServeError::EngineFailed)
    }
}
