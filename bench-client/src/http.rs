//! A small HTTP/1.1 client over hyper: one server, plain TCP with `TCP_NODELAY`, connections kept and reused.
//!
//! A connection's state machine is polled by the task that awaits its response, not by a task of its own: an event
//! costs no hop between threads, and its time stamp is taken by whoever read it from the socket.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Mutex, PoisonError};
use std::task::Poll;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::Error;

type Driver = Pin<Box<http1::Connection<TokioIo<TcpStream>, Full<Bytes>>>>;

/// The most that is read of an answer that is not a stream.
const MAX_BODY_BYTES: usize = 64 << 20;

/// A client of one server.
pub(crate) struct Client {
    /// Where it is, as the user wrote it, without a trailing slash or `/v1`.
    base_url: String,
    path_prefix: String,
    address: SocketAddr,
    headers: HeaderMap,
    idle: Mutex<Vec<Connection>>,
}

struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: Driver,
    closed: bool,
}

/// Why no response came.
#[derive(Debug)]
pub(crate) enum SendError {
    /// No connection could be made.
    Connect(String),
    /// The connection broke before the response began.
    Disconnected(String),
}

/// A response whose body is still coming.
pub(crate) struct Response {
    pub(crate) status: StatusCode,
    body: Incoming,
    connection: Connection,
}

impl Client {
    /// Finds the server and opens a first connection to it.
    ///
    /// Errors: a bad URL, or nothing listens there.
    pub(crate) async fn connect(base_url: &str, api_key: Option<&str>) -> Result<Self, Error> {
        let trimmed = base_url.trim_end_matches('/');
        let base_url = trimmed.strip_suffix("/v1").unwrap_or(trimmed).to_owned();
        let (host, port, path_prefix) = parse_url(&base_url)?;
        let down = |cause: String| Error::ServerDown { url: base_url.clone(), cause };
        let mut stream = None;
        let mut cause = "the name has no address".to_owned();
        let addresses = tokio::net::lookup_host((host.trim_matches(['[', ']']), port)).await;
        for address in addresses.map_err(|cause| down(cause.to_string()))? {
            match TcpStream::connect(address).await {
                Ok(connected) => {
                    stream = Some((connected, address));
                    break;
                }
                Err(error) => cause = error.to_string(),
            }
        }
        let (stream, address) = stream.ok_or_else(|| down(cause))?;
        let headers = headers(&host, port, api_key)?;
        let first = Connection::open(stream).await.map_err(|error| down(error.to_string()))?;
        Ok(Self { base_url, path_prefix, address, headers, idle: Mutex::new(vec![first]) })
    }

    /// The full URL of a path, for messages.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base_url)
    }

    /// Sends a request and waits for the head of its response. A reused connection that turns out to have been closed
    /// before the request was written is replaced by a fresh one.
    pub(crate) async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response, SendError> {
        let mut request = self.request(method, path, body);
        loop {
            let (mut connection, is_reused) = match self.take_idle().await {
                Some(connection) => (connection, true),
                None => (self.open().await?, false),
            };
            let Connection { sender, driver, closed } = &mut connection;
            match drive(driver, closed, sender.try_send_request(request)).await {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    return Ok(Response { status: head.status, body, connection });
                }
                Err(mut error) => match error.take_message() {
                    Some(unwritten) if is_reused => request = unwritten,
                    _ => return Err(SendError::Disconnected(describe(error.error()))),
                },
            }
        }
    }

    /// Sends a request and reads the whole answer.
    ///
    /// Errors: [`Error::ServerDown`] when no answer comes.
    pub(crate) async fn fetch(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Vec<u8>), Error> {
        let down = |cause: String| Error::ServerDown { url: self.url(path), cause };
        let mut response = self.send(method, path, body).await.map_err(|error| match error {
            SendError::Connect(cause) | SendError::Disconnected(cause) => down(cause),
        })?;
        let mut bytes = Vec::new();
        while let Some(data) = response.next_data().await {
            bytes.extend_from_slice(&data.map_err(down)?);
            if bytes.len() > MAX_BODY_BYTES {
                return Err(down(format!("its answer is longer than {MAX_BODY_BYTES} bytes")));
            }
        }
        let status = response.status;
        self.keep(response);
        Ok((status, bytes))
    }

    /// Keeps the connection of a response that was read to its end.
    pub(crate) fn keep(&self, response: Response) {
        let connection = response.connection;
        if !connection.closed && !connection.sender.is_closed() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }

    async fn take_idle(&self) -> Option<Connection> {
        loop {
            let mut connection = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            let Connection { sender, driver, closed } = &mut connection;
            // Polled once first: that notices a server that closed the connection while it was idle.
            poll_fn(|context| {
                *closed |= driver.as_mut().poll(context).is_ready();
                Poll::Ready(())
            })
            .await;
            if !*closed && drive(driver, closed, sender.ready()).await.is_ok() {
                return Some(connection);
            }
        }
    }

    async fn open(&self) -> Result<Connection, SendError> {
        let stream = TcpStream::connect(self.address).await.map_err(|cause| SendError::Connect(cause.to_string()))?;
        Connection::open(stream).await.map_err(|cause| SendError::Connect(describe(&cause)))
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        // Both parts were checked when the client was made; the routes are constants.
        *request.uri_mut() = format!("{}{path}", self.path_prefix).parse().unwrap_or_default();
        request.headers_mut().clone_from(&self.headers);
        request
    }
}

impl Connection {
    async fn open(stream: TcpStream) -> hyper::Result<Self> {
        // Without it small requests may wait for an acknowledgement; if it cannot be set, that is still correct.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut opened = Self { sender, driver: Box::pin(connection), closed: false };
        drive(&mut opened.driver, &mut opened.closed, opened.sender.ready()).await?;
        Ok(opened)
    }
}

impl Response {
    /// The next piece of the body; `None` at its end.
    pub(crate) async fn next_data(&mut self) -> Option<Result<Bytes, String>> {
        let Connection { driver, closed, .. } = &mut self.connection;
        loop {
            match drive(driver, closed, self.body.frame()).await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
                Err(error) => return Some(Err(describe(&error))),
            }
        }
    }
}

/// Awaits `future` and keeps the connection going meanwhile.
async fn drive<F: Future>(driver: &mut Driver, closed: &mut bool, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(output);
        }
        *closed = *closed || driver.as_mut().poll(context).is_ready();
        future.as_mut().poll(context)
    })
    .await
}

fn describe(error: &hyper::Error) -> String {
    use std::error::Error as _;
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn parse_url(base_url: &str) -> Result<(String, u16, String), Error> {
    let bad = |problem: String| Error::setting("--base-url", problem, "write it like http://127.0.0.1:8000");
    let uri: Uri = base_url.parse().map_err(|cause| bad(format!("\"{base_url}\" is not a URL ({cause})")))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return Err(Error::setting(
                "--base-url",
                "https is not spoken, because encryption would be measured with the server",
                "give the server's plain http address, or put a local TLS proxy in front",
            ));
        }
        _ => return Err(bad(format!("\"{base_url}\" does not begin with http://"))),
    }
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| bad(format!("\"{base_url}\" has no host")))?;
    Ok((host.to_owned(), uri.port_u16().unwrap_or(80), uri.path().trim_end_matches('/').to_owned()))
}

fn headers(host: &str, port: u16, api_key: Option<&str>) -> Result<HeaderMap, Error> {
    let bad =
        |_| Error::setting("--base-url", "the host has characters that HTTP does not allow", "check its spelling");
    let host = HeaderValue::from_str(&format!("{host}:{port}")).map_err(bad)?;
    let mut headers = HeaderMap::from_iter([
        (header::HOST, host),
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::USER_AGENT, HeaderValue::from_static(concat!("bench-client/", env!("CARGO_PKG_VERSION")))),
    ]);
    if let Some(key) = api_key {
        let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| {
            Error::setting("--api-key", "it has characters that a header cannot carry", "check for line breaks")
        })?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        assert_eq!(parse_url("http://localhost:81/a/").unwrap(), ("localhost".into(), 81, "/a".into()));
        assert_eq!(parse_url("http://[::1]").unwrap(), ("[::1]".into(), 80, String::new()));
        let check = |url: &str, problem: &str| {
            let message = parse_url(url).unwrap_err().to_string();
            assert!(message.starts_with("--base-url") && message.contains(problem), "{message}");
        };
        check("https://api.openai.com", "https is not spoken");
        check("127.0.0.1:8000", "\"127.0.0.1:8000\"");
        check("ftp://x", "does not begin with http://");
        check("http://", "is not a URL");
    }

    #[test]
    fn a_key_that_no_header_can_carry_is_refused() {
        assert!(headers("h", 1, Some("a\nb")).unwrap_err().to_string().starts_with("--api-key"));
        assert_eq!(headers("h", 1, Some("k")).unwrap()[header::AUTHORIZATION], "Bearer k");
    }
}
