//! One HTTP request's answer while it is made: engine outputs in, pieces of text out; streamed or collected.

mod choice;
mod collect;
mod sse;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll};

use aisp_engine::RequestTimings;
use tokio::sync::mpsc::UnboundedReceiver;

pub use choice::Choice;
pub use collect::collect;
pub use sse::SseBody;

use crate::admission::Ticket;
use crate::engine_thread::{Event, Submission};
use crate::error::ApiError;
use crate::openai::{ChoicePiece, Usage};

/// Sequences under way and what is known about them. Dropping it aborts what is not done.
#[derive(Debug)]
pub struct Generation {
    submission: Submission,
    ticket: Ticket,
    choices: Vec<Choice>,
    usage: Usage,
    num_unfinished: usize,
}

impl Generation {
    /// Waits until the engine has queued every sequence. `num_prompt_tokens` counts each prompt once.
    ///
    /// Errors: the engine refused the request or is gone.
    pub async fn accepted(
        mut submission: Submission,
        ticket: Ticket,
        choices: Vec<Choice>,
        num_prompt_tokens: usize,
    ) -> Result<Self, ApiError> {
        match submission.events.recv().await {
            Some(Event::Accepted) => {}
            Some(Event::Refused(error)) => return Err(error.into()),
            Some(Event::Lost(error)) => return Err(error),
            Some(Event::Output { .. }) | None => return Err(ApiError::EngineFailed),
        }
        let usage = Usage { prompt_tokens: num_prompt_tokens, total_tokens: num_prompt_tokens, completion_tokens: 0 };
        Ok(Self { submission, ticket, num_unfinished: choices.len(), choices, usage })
    }

    /// Tokens so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Whether every sequence has ended.
    pub fn is_done(&self) -> bool {
        self.num_unfinished == 0
    }

    /// Number of choices.
    pub fn num_choices(&self) -> usize {
        self.choices.len()
    }

    /// What an event adds; nothing when it belongs to a sequence that has ended.
    ///
    /// Errors: the engine is gone; a fault of our own in this sequence, which fails alone.
    pub fn absorb(&mut self, event: Event) -> Result<Option<ChoicePiece>, ApiError> {
        let (sequence, output) = match event {
            Event::Output { sequence, output } => (sequence, output),
            Event::Lost(error) => return Err(error),
            Event::Accepted | Event::Refused(_) => return Ok(None),
        };
        let choice = self.choices.get_mut(sequence).ok_or(ApiError::Internal)?;
        if choice.is_done() {
            return Ok(None);
        }
        self.ticket.leave_queue();
        let engine_ended = output.finish.is_some();
        let timings: RequestTimings = output.timings;
        // Decoding text is the one thing here that depends on a model's files.
        let piece =
            catch_unwind(AssertUnwindSafe(|| choice.absorb(sequence, output))).map_err(|_| ApiError::Internal)?;
        choice.record(&piece, &timings);
        self.usage.completion_tokens += piece.tokens.len();
        self.usage.total_tokens += piece.tokens.len();
        if choice.is_done() {
            self.num_unfinished -= 1;
            if !engine_ended {
                self.submission.abort(sequence);
            }
        }
        Ok(Some(piece))
    }

    /// Takes at most `limit` events that are there, or waits for one.
    fn poll_events(&mut self, context: &mut Context<'_>, events: &mut Vec<Event>, limit: usize) -> Poll<usize> {
        self.submission.events.poll_recv_many(context, events, limit)
    }

    fn events(&mut self) -> &mut UnboundedReceiver<Event> {
        &mut self.submission.events
    }
}
