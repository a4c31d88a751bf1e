//! What is known about one request after it ended, well or not.

use serde::Serialize;

use crate::timeline::TokenCounting;

/// One request of a run. Times are seconds from the start of the run; every latency counts from `intended_s`, the
/// arrival drawn before the run, and not from when the client got round to sending.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RequestRecord {
    /// Its position in the order of arrivals.
    pub request_idx: usize,
    /// When it was due.
    pub intended_s: f64,
    /// When it was free to go: as `intended_s`, or later where `--max-concurrency` held it back.
    pub released_s: f64,
    /// When the client began to send it; `None` if it never did.
    pub sent_s: Option<f64>,
    /// When its first token came.
    pub first_token_s: Option<f64>,
    /// When its stream ended, or its failure was noticed.
    pub ended_s: Option<f64>,
    /// Tokens of its prompt.
    pub prompt_tokens: u64,
    /// Whether `prompt_tokens` is the server's own count.
    pub prompt_tokens_reported: bool,
    /// Tokens generated.
    pub output_tokens: u64,
    /// Mean time per token after the first; `None` where only one event carried tokens.
    pub tpot_s: Option<f64>,
    /// The gap before each token after the first.
    pub itl_s: Vec<f64>,
    /// How its tokens were counted; `None` if none came.
    pub counting: Option<TokenCounting>,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All of its stream came, up to `[DONE]`.
    Completed,
    /// It failed.
    Failed {
        /// In which way.
        kind: FailureKind,
        /// What the server or the operating system said.
        message: String,
    },
    /// The run was stopped before it ended, or before it was sent.
    Aborted,
}

/// The ways in which a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    /// 429: the server is full. Counted apart, because it is an answer and not a defect.
    Rejected,
    /// Another status than 200.
    Status(u16),
    /// No connection could be made.
    Connect,
    /// The connection broke before the response began.
    Disconnected,
    /// The stream ended or broke without `[DONE]`.
    Truncated,
    /// The stream carried an error object.
    StreamError,
    /// The stream was not made of JSON events.
    Malformed,
    /// The stream ended well, without a token.
    NoTokens,
    /// It took longer than `--timeout`.
    Timeout,
}

impl FailureKind {
    /// A short name for tables and JSON.
    pub fn label(&self) -> String {
        match self {
            Self::Rejected => "rejected (429)".into(),
            Self::Status(status) => format!("status {status}"),
            Self::Connect => "no connection".into(),
            Self::Disconnected => "disconnected".into(),
            Self::Truncated => "truncated stream".into(),
            Self::StreamError => "error in stream".into(),
            Self::Malformed => "malformed stream".into(),
            Self::NoTokens => "no tokens".into(),
            Self::Timeout => "timeout".into(),
        }
    }
}

impl Serialize for FailureKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.label())
    }
}

impl RequestRecord {
    /// A request that was never sent.
    pub(crate) fn unsent(request_idx: usize, intended_s: f64) -> Self {
        Self {
            request_idx,
            intended_s,
            released_s: intended_s,
            sent_s: None,
            first_token_s: None,
            ended_s: None,
            prompt_tokens: 0,
            prompt_tokens_reported: false,
            output_tokens: 0,
            tpot_s: None,
            itl_s: Vec::new(),
            counting: None,
            outcome: Outcome::Aborted,
        }
    }

    /// Whether all of it came.
    pub fn is_completed(&self) -> bool {
        self.outcome == Outcome::Completed
    }

    /// Time from the intended arrival to the first token.
    pub fn ttft_s(&self) -> Option<f64> {
        self.first_token_s.map(|at_s| at_s - self.intended_s)
    }

    /// Time from the intended arrival to the end of the stream.
    pub fn e2el_s(&self) -> Option<f64> {
        self.ended_s.map(|at_s| at_s - self.intended_s)
    }

    /// The client's own error: how much later than it could it began to send. Waiting that `--max-concurrency`
    /// imposes is part of the latency and not of this.
    pub fn send_lag_s(&self) -> Option<f64> {
        self.sent_s.map(|at_s| (at_s - self.released_s).max(0.0))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A completed request with the given latencies, sent 1 ms late, with 5 prompt tokens and 3 generated.
    pub(crate) fn completed(intended_s: f64, ttft_s: f64, tpot_s: f64, e2el_s: f64) -> RequestRecord {
        RequestRecord {
            sent_s: Some(intended_s + 0.001),
            first_token_s: Some(intended_s + ttft_s),
            ended_s: Some(intended_s + e2el_s),
            prompt_tokens: 5,
            prompt_tokens_reported: true,
            output_tokens: 3,
            tpot_s: Some(tpot_s),
            itl_s: vec![tpot_s, tpot_s],
            counting: Some(TokenCounting::PerEvent),
            outcome: Outcome::Completed,
            ..RequestRecord::unsent(0, intended_s)
        }
    }

    #[test]
    fn latencies_count_from_the_intended_arrival() {
        let late = RequestRecord { released_s: 12.0, sent_s: Some(12.5), ..completed(10.0, 3.0, 0.1, 4.0) };
        assert_eq!((late.ttft_s(), late.e2el_s(), late.send_lag_s()), (Some(3.0), Some(4.0), Some(0.5)));
        assert_eq!(RequestRecord::unsent(0, 1.0).send_lag_s(), None);
    }
}
