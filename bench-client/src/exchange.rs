//! One measured request: sent, its stream read and time-stamped, its failure named.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hyper::Method;
use hyper::body::Bytes;
use serde_json::Value;

use crate::http::{Client, Response, SendError};
use crate::live::Counters;
use crate::record::{FailureKind, Outcome, RequestRecord};
use crate::sse::SseParser;
use crate::timeline::Timeline;
use crate::wire::Chunk;

/// How long the end of a body may take after `[DONE]` before its connection is given up.
const DRAIN: Duration = Duration::from_millis(50);
/// The most of a server's error message that is kept. Units: characters.
const MAX_MESSAGE_CHARS: usize = 300;
/// The most tokens of one request that are believed; each is a sample in memory.
const MAX_TOKENS: u64 = 1 << 22;

/// A request's body, made before the run.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) body: Bytes,
    pub(crate) estimated_tokens: u64,
}

/// When a request was due and when it was free to go. Units: seconds from the start of the run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Due {
    pub(crate) request_idx: usize,
    pub(crate) intended_s: f64,
    pub(crate) released_s: f64,
}

/// What all requests of a phase share.
pub(crate) struct Session<'a> {
    pub(crate) client: &'a Client,
    pub(crate) path: &'static str,
    pub(crate) timeout: Duration,
    pub(crate) start: Instant,
    pub(crate) counters: &'a Counters,
}

struct Failure {
    kind: FailureKind,
    message: String,
}

impl Failure {
    fn new(kind: FailureKind, message: impl AsRef<str>) -> Self {
        let line = message.as_ref().split_whitespace().collect::<Vec<_>>().join(" ");
        Self { kind, message: line.chars().take(MAX_MESSAGE_CHARS).collect() }
    }
}

impl Session<'_> {
    pub(crate) fn now_s(&self) -> f64 {
        Instant::now().saturating_duration_since(self.start).as_secs_f64()
    }

    /// Sends one request now and follows it to its end.
    pub(crate) async fn exchange(&self, due: Due, job: &Job) -> RequestRecord {
        let sent_s = self.now_s();
        self.counters.sent.fetch_add(1, Ordering::Relaxed);
        let mut timeline = Timeline::default();
        let ended = match tokio::time::timeout(self.timeout, self.stream(job, &mut timeline)).await {
            Ok(ended) => ended,
            Err(_) => Err(Failure::new(FailureKind::Timeout, format!("no end after {:?}", self.timeout))),
        };
        let record = self.record(due, job, &timeline, sent_s, ended);
        let ended = if record.is_completed() { &self.counters.completed } else { &self.counters.failed };
        ended.fetch_add(1, Ordering::Relaxed);
        if let Some(ttft_s) = record.ttft_s() {
            self.counters.first_tokens.fetch_add(1, Ordering::Relaxed);
            self.counters.ttft_sum_us.fetch_add((ttft_s * 1e6) as u64, Ordering::Relaxed);
        }
        record
    }

    fn record(
        &self,
        due: Due,
        job: &Job,
        timeline: &Timeline,
        sent_s: f64,
        ended: Result<f64, Failure>,
    ) -> RequestRecord {
        let mut record = RequestRecord {
            released_s: due.released_s,
            sent_s: Some(sent_s),
            first_token_s: timeline.first_s(),
            prompt_tokens: timeline.prompt_tokens().unwrap_or(job.estimated_tokens),
            prompt_tokens_reported: timeline.prompt_tokens().is_some(),
            ..RequestRecord::unsent(due.request_idx, due.intended_s)
        };
        let ended = match timeline.finish() {
            Some(times) => {
                record.output_tokens = times.output_tokens;
                record.tpot_s = times.tpot_s;
                record.itl_s = times.itl_s;
                record.counting = Some(times.counting);
                ended
            }
            None => ended.and(Err(Failure::new(FailureKind::NoTokens, "the stream ended without a token"))),
        };
        match ended {
            Ok(ended_s) => {
                record.ended_s = Some(ended_s);
                record.outcome = Outcome::Completed;
            }
            Err(Failure { kind, message }) => {
                record.ended_s = Some(self.now_s());
                record.outcome = Outcome::Failed { kind, message };
            }
        }
        record
    }

    /// Reads the stream into `timeline`; returns when `[DONE]` came.
    async fn stream(&self, job: &Job, timeline: &mut Timeline) -> Result<f64, Failure> {
        let sent = self.client.send(Method::POST, self.path, job.body.clone()).await;
        let mut response = sent.map_err(|error| match error {
            SendError::Connect(cause) => Failure::new(FailureKind::Connect, cause),
            SendError::Disconnected(cause) => Failure::new(FailureKind::Disconnected, cause),
        })?;
        if response.status.as_u16() != 200 {
            return Err(self.refusal(response).await);
        }
        let mut parser = SseParser::new();
        let mut done_s = None;
        let mut failure = None;
        while let Some(data) = response.next_data().await {
            let at_s = self.now_s();
            let data = data.map_err(|cause| Failure::new(FailureKind::Truncated, cause))?;
            let parsed = parser.push(&data, |event| {
                if done_s.is_some() || failure.is_some() {
                } else if event == b"[DONE]" {
                    done_s = Some(at_s);
                } else {
                    failure = self.note(event, at_s, timeline).err();
                }
            });
            if let Some(failure) = failure {
                return Err(failure);
            }
            parsed.map_err(|cause| Failure::new(FailureKind::Malformed, cause.to_string()))?;
            if let Some(done_s) = done_s {
                if tokio::time::timeout(DRAIN, drain(&mut response)).await.is_ok_and(|is_whole| is_whole) {
                    self.client.keep(response);
                }
                return Ok(done_s);
            }
        }
        Err(Failure::new(FailureKind::Truncated, "the stream ended without [DONE]"))
    }

    fn note(&self, event: &[u8], at_s: f64, timeline: &mut Timeline) -> Result<(), Failure> {
        let chunk = Chunk::parse(event).map_err(|cause| {
            let start = String::from_utf8_lossy(event.get(..event.len().min(60)).unwrap_or(event)).into_owned();
            Failure::new(FailureKind::Malformed, format!("{cause} in \"{start}\""))
        })?;
        let claimed = chunk.completion_tokens.into_iter().chain(chunk.prompt_tokens).max();
        if let Some(claimed) = claimed.filter(|claimed| *claimed > MAX_TOKENS) {
            return Err(Failure::new(FailureKind::Malformed, format!("its usage claims {claimed} tokens")));
        }
        let tokens = timeline.push(at_s, &chunk);
        self.counters.output_tokens.fetch_add(tokens, Ordering::Relaxed);
        chunk.error.map_or(Ok(()), |message| Err(Failure::new(FailureKind::StreamError, message)))
    }

    /// The failure that an answer other than 200 is.
    async fn refusal(&self, mut response: Response) -> Failure {
        let kind = match response.status.as_u16() {
            429 => FailureKind::Rejected,
            status => FailureKind::Status(status),
        };
        let mut body = Vec::new();
        let mut is_whole = true;
        while let Some(data) = response.next_data().await {
            match data {
                Ok(data) if body.len() < 1 << 16 => body.extend_from_slice(&data),
                _ => {
                    is_whole = false;
                    break;
                }
            }
        }
        if is_whole {
            self.client.keep(response);
        }
        Failure::new(kind, error_message(&body))
    }
}

/// Reads what follows `[DONE]`; whether the body ended well, so that its connection can be used again.
async fn drain(response: &mut Response) -> bool {
    while let Some(data) = response.next_data().await {
        if data.is_err() {
            return false;
        }
    }
    true
}

/// The message of an OpenAI error body (or of the variants that other servers send), else the body itself.
fn error_message(body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let places = ["/error/message", "/message", "/detail", "/error"];
    let found = places.iter().find_map(|place| value.pointer(place).and_then(Value::as_str));
    found.map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bodies() {
        let check = |body: &str, wanted: &str| assert_eq!(error_message(body.as_bytes()), wanted);
        check(r#"{"error":{"message":"queue is full","code":429}}"#, "queue is full");
        check(r#"{"object":"error","message":"too long"}"#, "too long");
        check(r#"{"detail":"Not Found"}"#, "Not Found");
        check(r#"{"error":"no"}"#, "no");
        check("<html>", "<html>");
    }

    #[test]
    fn messages_are_one_short_line() {
        let failure = Failure::new(FailureKind::Timeout, format!("a\n b{}", "é".repeat(999)));
        assert!(failure.message.starts_with("a bé") && failure.message.chars().count() == MAX_MESSAGE_CHARS);
    }
}
