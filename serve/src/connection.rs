//! One HTTP/1.1 connection, with the time-outs that `axum::serve` lacks.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tower::ServiceExt;

use crate::limits::Limits;
use crate::routes::Arrival;
use crate::stall::StallGuard;

/// Bytes that a connection may have in memory in front of its socket, and of a request head.
const MAX_BUFFER_BYTES: usize = 64 << 10;

/// When the server drains, a peer that is connected but has sent no whole request head yet has this long to send it and
/// to be refused in words: its request may be in the socket already. Half-open peers delay the end by no more than this.
const HEAD_GRACE: Duration = Duration::from_millis(500);

/// Serves requests until the peer leaves, a time-out strikes, or the server drains. When it drains, an answer under
/// way is finished, and a request on its way is refused.
pub async fn serve(stream: TcpStream, router: Router, limits: &Limits, mut draining: watch::Receiver<bool>) {
    // One small write a token must not wait for the peer's acknowledgement.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(StallGuard::new(stream, limits.write_stall_timeout));
    let begun = Arc::new(Notify::new());
    let noted = Arc::clone(&begun);
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        noted.notify_one();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Arrival(Instant::now()));
        let router = router.clone();
        async move { Ok::<_, Infallible>(answer(router, request).await) }
    });
    let late = *draining.borrow();
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .max_buf_size(MAX_BUFFER_BYTES)
            .keep_alive(!late)
            .serve_connection(io, service)
    );
    if !late {
        tokio::select! {
            // Errors here are the peer's: a broken connection, a malformed head, a time-out.
            _ = connection.as_mut() => return,
            _ = draining.wait_for(|draining| *draining) => {}
        }
        tokio::select! {
            _ = connection.as_mut() => return,
            // Remembered from the first request on, so this is immediate for a peer that has sent one.
            () = begun.notified() => {}
            () = tokio::time::sleep(HEAD_GRACE) => return,
        }
        connection.as_mut().graceful_shutdown();
    }
    let _ = connection.await;
}

async fn answer(router: Router, request: hyper::Request<Body>) -> axum::response::Response {
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
