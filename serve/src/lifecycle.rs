//! Whether the server is loading, serving, draining or broken, and whether its engine still moves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::error::ApiError;

/// An engine that has not moved for this long is not ready.
const MAX_HEARTBEAT_AGE: Duration = Duration::from_secs(2);

/// A stage of the process. Later ones are never left for earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The model is being loaded.
    Loading,
    /// Requests are answered.
    Serving,
    /// Requests under way are finished, new ones refused.
    Draining,
    /// Nobody is served any more: the engine gives back what it holds.
    Ended,
    /// The engine stopped; the process is about to end.
    Failed,
}

/// The current phase and the engine's heartbeat.
#[derive(Debug)]
pub struct Lifecycle {
    phase: watch::Sender<Phase>,
    started: Instant,
    /// Milliseconds from `started` to the latest beat.
    heartbeat_ms: AtomicU64,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self { phase: watch::Sender::new(Phase::Loading), started: Instant::now(), heartbeat_ms: AtomicU64::new(0) }
    }
}

impl Lifecycle {
    /// The current phase.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Goes on to a later phase; an earlier one is ignored.
    pub fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let later = to > *phase;
            *phase = to.max(*phase);
            later
        });
    }

    /// Waits until the phase is at least this one.
    pub async fn reached(&self, phase: Phase) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.phase.subscribe().wait_for(|now| *now >= phase).await;
    }

    /// The engine moved.
    pub fn beat(&self) {
        self.heartbeat_ms.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Whether requests are answered now; otherwise the word for why not.
    ///
    /// Errors: `loading`, `draining`, `failed`, or `stalled` when a step takes longer than two seconds.
    pub fn ready(&self) -> Result<(), &'static str> {
        match self.phase() {
            Phase::Loading => Err("loading"),
            Phase::Draining | Phase::Ended => Err("draining"),
            Phase::Failed => Err("failed"),
            Phase::Serving => {
                let beat = Duration::from_millis(self.heartbeat_ms.load(Ordering::Relaxed));
                let age = self.started.elapsed().saturating_sub(beat);
                if age <= MAX_HEARTBEAT_AGE { Ok(()) } else { Err("stalled") }
            }
        }
    }

    /// Whether a new request is taken. A long step is no reason to refuse one.
    ///
    /// Errors: the phase, as clients see it.
    pub fn accepts(&self) -> Result<(), ApiError> {
        match self.phase() {
            Phase::Loading => Err(ApiError::Loading),
            Phase::Serving => Ok(()),
            Phase::Draining | Phase::Ended => Err(ApiError::ShuttingDown),
            Phase::Failed => Err(ApiError::EngineFailed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_only_go_on() {
        let lifecycle = Lifecycle::default();
        assert_eq!(lifecycle.accepts(), Err(ApiError::Loading));
        lifecycle.advance(Phase::Draining);
        lifecycle.advance(Phase::Serving);
        assert_eq!(lifecycle.phase(), Phase::Draining);
        assert_eq!(lifecycle.ready(), Err("draining"));
        lifecycle.advance(Phase::Failed);
        assert_eq!(lifecycle.accepts(), Err(ApiError::EngineFailed));
    }

    #[test]
    fn an_old_heartbeat_is_not_ready() {
        let started = Instant::now() - Duration::from_secs(10);
        let lifecycle = Lifecycle { started, ..Lifecycle::default() };
        lifecycle.advance(Phase::Serving);
        assert_eq!(lifecycle.ready(), Err("stalled"));
        lifecycle.beat();
        assert_eq!(lifecycle.ready(), Ok(()));
    }
}
