//! One HTTP/1.1 connection, with the time-outs that `axum::serve` lacks.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tower::ServiceExt;

use crate::limits::Limits;
use crate::routes::Arrival;
use crate::stall::StallGuard;

/// Bytes that a connection may have in memory in front of its socket, and of a request head.
const MAX_BUFFER_BYTES: usize = 64 << 10;

/// Serves requests until the peer leaves, a time-out strikes, or the server drains. When it drains, an answer under
/// way is finished; a peer that has not sent a whole request head yet is left.
pub async fn serve(stream: TcpStream, router: Router, limits: &Limits, mut draining: watch::Receiver<bool>) {
    // One small write a token must not wait for the peer's acknowledgement.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(StallGuard::new(stream, limits.write_stall_timeout));
    let begun = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&begun);
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        noted.store(true, Ordering::Relaxed);
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
        if !begun.load(Ordering::Relaxed) {
            return;
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
