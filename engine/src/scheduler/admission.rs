//! When a waiting sequence may join: the difference between static and continuous batching.

/// What a policy decides on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionState {
    /// No sequence ran when this step was planned.
    pub batch_was_empty: bool,
    /// Tokens that the step can still take.
    pub budget_left: usize,
}

/// Decides whether one more sequence may join now.
pub trait AdmissionPolicy: Send {
    /// Asked once for every sequence that waits, in order, until it says no.
    fn may_admit(&self, state: AdmissionState) -> bool;
}

/// Baseline: a batch is formed when the last one is done, and runs until its longest answer ends.
#[derive(Debug, Clone, Copy, Default)]
pub struct StaticBatching;

impl AdmissionPolicy for StaticBatching {
    fn may_admit(&self, state: AdmissionState) -> bool {
        state.batch_was_empty
    }
}

/// Optimized: a sequence joins at any step with room for it. Source: Orca, OSDI 2022.
#[derive(Debug, Clone, Copy, Default)]
pub struct ContinuousBatching;

impl AdmissionPolicy for ContinuousBatching {
    fn may_admit(&self, state: AdmissionState) -> bool {
        state.budget_left > 0
    }
}
