//! Ctrl-C and SIGTERM: the first asks the run to end after the iteration under way, the second ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use crate::{LabError, child};

/// Exit status of a process that was interrupted.
const INTERRUPTED: i32 = 130;

/// Whether the run was asked to end. Clones share the answer.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// One that follows Ctrl-C and SIGTERM.
    ///
    /// Errors: the system gives no thread or no signals.
    pub fn on_ctrl_c() -> Result<Self, LabError> {
        let stop = Self::default();
        let requested = stop.clone();
        let system =
            |error: std::io::Error| LabError::System { what: "waiting for Ctrl-C", message: error.to_string() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system)?;
        let mut terminate = {
            let _inside = runtime.enter();
            signal(SignalKind::terminate()).map_err(system)?
        };
        let wait = move || {
            for _ in 0..2 {
                let heard = runtime.block_on(async {
                    tokio::select! {
                        interrupt = tokio::signal::ctrl_c() => interrupt.is_ok(),
                        terminate = terminate.recv() => terminate.is_some(),
                    }
                });
                if !heard || requested.is_requested() {
                    child::kill_all();
                    std::process::exit(INTERRUPTED);
                }
                requested.request();
            }
        };
        std::thread::Builder::new().name("ctrl-c".into()).spawn(wait).map_err(system)?;
        Ok(stop)
    }

    /// Asks the run to end.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
