//! Records the engine's spans. A `tracing` layer: the engine says where it is, and knows nobody who listens.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// A stretch of work.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// What was done.
    pub name: &'static str,
    /// Which of several, for instance the layer.
    pub index: Option<u64>,
    /// From the start of the recording. Units: seconds.
    pub start_s: f64,
    /// How long it took.
    pub seconds: f64,
}

/// Collects spans of the engine and of the lab; clones share them.
#[derive(Debug, Clone)]
pub struct Recorder {
    started: Instant,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Recorder {
    /// Starts the clock.
    pub fn start() -> Self {
        Self { started: Instant::now(), spans: Arc::default() }
    }

    /// Seconds since the start.
    pub fn now_s(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Everything so far, by start.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone();
        spans.sort_by(|a, b| a.start_s.total_cmp(&b.start_s));
        spans
    }

    /// Adds a stretch that no span covers.
    pub fn push(&self, span: Span) {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).push(span);
    }
}

/// What a span carries while it is open.
#[derive(Default)]
struct Open {
    index: Option<u64>,
    entered_s: f64,
}

impl Visit for Open {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "index" {
            self.index = Some(value);
        }
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn std::fmt::Debug) {}
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    ["aisp_engine", "labs"].contains(&metadata.target().split("::").next().unwrap_or_default())
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>, _context: Context<'_, S>) -> bool {
        metadata.is_span() && is_ours(metadata)
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut open = Open::default();
        attributes.record(&mut open);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(open);
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(open) = span.extensions_mut().get_mut::<Open>()
        {
            open.entered_s = self.now_s();
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let now_s = self.now_s();
        if let Some(span) = context.span(id)
            && let Some(open) = span.extensions().get::<Open>()
        {
            let (start_s, seconds) = (open.entered_s, now_s - open.entered_s);
            self.push(Span { name: span.name(), index: open.index, start_s, seconds });
        }
    }
}
