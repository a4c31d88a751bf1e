//! A window into a run while it goes, and the handle that stops it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::watch;

/// Shared by a run and its observer. One [`Live`] serves one run.
#[derive(Debug)]
pub struct Live {
    pub(crate) counters: Counters,
    total: AtomicUsize,
    stop: watch::Sender<bool>,
}

/// Counts of the measured requests so far.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) sent: AtomicUsize,
    pub(crate) completed: AtomicUsize,
    pub(crate) failed: AtomicUsize,
    pub(crate) first_tokens: AtomicUsize,
    pub(crate) ttft_sum_us: AtomicU64,
    pub(crate) output_tokens: AtomicU64,
}

/// A reading of a run's counters.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Snapshot {
    /// Requests that the run measures; 0 while it is being prepared and warmed up.
    pub total: usize,
    /// Requests sent.
    pub sent: usize,
    /// Requests that completed.
    pub completed: usize,
    /// Requests that failed.
    pub failed: usize,
    /// Tokens received.
    pub output_tokens: u64,
    /// The mean time to first token of the requests that ended. Units: milliseconds.
    pub mean_ttft_ms: Option<f64>,
}

impl Default for Live {
    fn default() -> Self {
        Self { counters: Counters::default(), total: AtomicUsize::new(0), stop: watch::Sender::new(false) }
    }
}

impl Live {
    /// A window for a run that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops the run: nothing more is sent, requests in flight are aborted, and the result is marked partial.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Whether [`Live::stop`] was called.
    pub fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// Reads the counters.
    pub fn snapshot(&self) -> Snapshot {
        let counters = &self.counters;
        let first_tokens = counters.first_tokens.load(Ordering::Relaxed);
        let ttft_sum_us = counters.ttft_sum_us.load(Ordering::Relaxed) as f64;
        Snapshot {
            total: self.total.load(Ordering::Relaxed),
            sent: counters.sent.load(Ordering::Relaxed),
            completed: counters.completed.load(Ordering::Relaxed),
            failed: counters.failed.load(Ordering::Relaxed),
            output_tokens: counters.output_tokens.load(Ordering::Relaxed),
            mean_ttft_ms: (first_tokens > 0).then(|| ttft_sum_us / 1e3 / first_tokens as f64),
        }
    }

    pub(crate) fn begin(&self, total: usize) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// Returns once the run is to stop.
    pub(crate) async fn stopped(&self) {
        // The sender lives as long as `self`, so this cannot end otherwise.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }
}
