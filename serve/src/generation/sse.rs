//! An answer as server-sent events. Every token step is an event of its own; what has gathered since the connection
//! last asked goes out in one write.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::Generation;
use crate::engine_thread::Event;
use crate::error::ApiError;
use crate::openai::AnswerFormat;

/// Events written at once: bounds a frame, so that one fast answer does not fill memory in front of a slow socket.
const MAX_EVENTS_PER_FRAME: usize = 64;

/// The body of a streamed answer. Dropping it, as the server does when the client leaves, aborts the sequences.
#[derive(Debug)]
pub struct SseBody {
    /// None once the last event is written.
    generation: Option<Generation>,
    format: AnswerFormat,
    events: Vec<Event>,
}

impl SseBody {
    /// Streams a generation.
    pub fn new(generation: Generation, format: AnswerFormat) -> Self {
        Self { generation: Some(generation), format, events: Vec::new() }
    }

    /// Writes the events at hand. The answer's place is given back as soon as its end is written.
    fn write(&mut self, out: &mut Vec<u8>) -> Result<(), ApiError> {
        let Some(generation) = &mut self.generation else { return Ok(()) };
        for event in self.events.drain(..) {
            let Some(piece) = generation.absorb(event)? else { continue };
            let usage = generation.usage();
            self.format.write_event(&piece, usage, out).map_err(|_| ApiError::Internal)?;
            if generation.is_done() {
                self.format.write_end(usage, out).map_err(|_| ApiError::Internal)?;
                self.generation = None;
                return Ok(());
            }
        }
        Ok(())
    }

    /// The stream ends with the error; without `[DONE]`, which says that the answer is complete.
    fn write_error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        self.generation = None;
        self.events.clear();
        out.extend_from_slice(b"data: ");
        // An error body is plain strings.
        let _ = serde_json::to_writer(&mut *out, &error.body());
        out.extend_from_slice(b"\n\n");
    }
}

impl Body for SseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let body = self.get_mut();
        let mut out = Vec::new();
        while out.is_empty() {
            let Some(generation) = &mut body.generation else { return Poll::Ready(None) };
            let written = match generation.poll_events(context, &mut body.events, MAX_EVENTS_PER_FRAME) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(0) => Err(ApiError::EngineFailed),
                Poll::Ready(_) => body.write(&mut out),
            };
            if let Err(error) = written {
                body.write_error(&error, &mut out);
            }
        }
        Poll::Ready(Some(Ok(Frame::data(out.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.generation.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
