//! How much may wait at once: requests and prompt tokens. A full queue is a normal answer (429), given before any
//! work is done on the prompt.

use std::sync::Arc;

use tokio::sync::watch;

use crate::error::ApiError;

/// What is under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences from admission to the end of their answer.
    pub num_sequences: usize,
    /// Prompt tokens of requests that have no token yet.
    pub num_queued_tokens: usize,
}

/// Bounds of [`Load`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Sequences that the engine runs at once.
    pub max_num_seqs: usize,
    /// Sequences that may wait beyond those.
    pub max_num_queued_reqs: usize,
    /// Prompt tokens that may wait.
    pub max_num_queued_tokens: usize,
}

impl AdmissionLimits {
    /// Sequences that may be under way, running or waiting.
    pub fn max_sequences(&self) -> usize {
        self.max_num_seqs.saturating_add(self.max_num_queued_reqs)
    }
}

/// The gate. Cheap to clone; clones share the count.
#[derive(Debug, Clone)]
pub struct Admission {
    limits: AdmissionLimits,
    load: Arc<watch::Sender<Load>>,
}

impl Admission {
    /// Nothing under way.
    pub fn new(limits: AdmissionLimits) -> Self {
        Self { limits, load: Arc::new(watch::Sender::new(Load::default())) }
    }

    /// Its bounds.
    pub fn limits(&self) -> AdmissionLimits {
        self.limits
    }

    /// What is under way.
    pub fn load(&self) -> Load {
        *self.load.borrow()
    }

    /// Lets a request in, or not. The number of tokens is an estimate until [`Ticket::set_tokens`].
    ///
    /// Errors: a bound is reached; or the request alone is beyond it.
    pub fn admit(&self, num_sequences: usize, num_tokens: usize) -> Result<Ticket, ApiError> {
        let max_sequences = self.limits.max_sequences();
        if num_sequences > max_sequences {
            let message = format!("prompts times `n` must be at most {max_sequences} on this server");
            return Err(ApiError::Invalid { param: Some("n"), message });
        }
        let mut full = None;
        self.load.send_if_modified(|load| {
            // A single prompt is never too long for an empty queue: its own bound is the context.
            let tokens_full =
                load.num_queued_tokens > 0 && load.num_queued_tokens + num_tokens > self.limits.max_num_queued_tokens;
            full = match (load.num_sequences + num_sequences > max_sequences, tokens_full) {
                (true, _) => Some("--max-num-queued-reqs"),
                (false, true) => Some("--max-num-queued-tokens"),
                (false, false) => None,
            };
            if full.is_none() {
                load.num_sequences += num_sequences;
                load.num_queued_tokens += num_tokens;
            }
            full.is_none()
        });
        match full {
            Some(what) => Err(ApiError::Busy { what }),
            None => Ok(Ticket { load: Arc::clone(&self.load), num_sequences, num_tokens }),
        }
    }

    /// Waits until nothing is under way.
    pub async fn idle(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.load.subscribe().wait_for(|load| load.num_sequences == 0).await;
    }
}

/// A request's place; dropping it gives the place back.
#[derive(Debug)]
pub struct Ticket {
    load: Arc<watch::Sender<Load>>,
    num_sequences: usize,
    num_tokens: usize,
}

impl Ticket {
    /// Corrects the estimate once the prompt is tokenized.
    pub fn set_tokens(&mut self, num_tokens: usize) {
        let before = std::mem::replace(&mut self.num_tokens, num_tokens);
        self.load.send_modify(|load| load.num_queued_tokens = load.num_queued_tokens + num_tokens - before);
    }

    /// The first token is there: the prompt no longer waits.
    pub fn leave_queue(&mut self) {
        if self.num_tokens > 0 {
            self.set_tokens(0);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.load.send_modify(|load| {
            load.num_sequences -= self.num_sequences;
            load.num_queued_tokens -= self.num_tokens;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Admission {
        Admission::new(AdmissionLimits { max_num_seqs: 1, max_num_queued_reqs: 2, max_num_queued_tokens: 100 })
    }

    #[test]
    fn requests_are_counted_by_sequence() {
        let gate = gate();
        let two = gate.admit(2, 1).unwrap();
        let _one = gate.admit(1, 1).unwrap();
        assert_eq!(gate.admit(1, 1).unwrap_err(), ApiError::Busy { what: "--max-num-queued-reqs" });
        drop(two);
        let _again = gate.admit(2, 1).unwrap();
        assert!(matches!(gate.admit(4, 1), Err(ApiError::Invalid { param: Some("n"), .. })));
    }

    #[test]
    fn tokens_leave_the_queue_with_the_first_answer() {
        let gate = gate();
        let mut first = gate.admit(1, 500).unwrap();
        assert_eq!(gate.admit(1, 1).unwrap_err(), ApiError::Busy { what: "--max-num-queued-tokens" });
        first.set_tokens(90);
        let second = gate.admit(1, 10).unwrap();
        first.leave_queue();
        assert_eq!(gate.load(), Load { num_sequences: 2, num_queued_tokens: 10 });
        drop((first, second));
        assert_eq!(gate.load(), Load::default());
    }

    #[tokio::test]
    async fn idle_is_awaited() {
        let gate = gate();
        gate.idle().await;
        let ticket = gate.admit(1, 1).unwrap();
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.idle().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(ticket);
        waiting.await.unwrap();
    }
}
