//! Sends requests when they are due (open loop), or when one before them ended (closed loop).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};

use crate::exchange::{Due, Job, Session};
use crate::http::Client;
use crate::live::{Counters, Live};
use crate::record::RequestRecord;

/// The operating system wakes a thread some 50 µs late; the rest of a wait is spent spinning.
const SPIN: Duration = Duration::from_micros(80);
/// The longest sleep, so that a stop is noticed.
const NAP: Duration = Duration::from_millis(50);

/// What every request of a phase needs. When the last clone is gone, so are its senders, and the phase is over.
#[derive(Clone)]
pub(crate) struct Fleet {
    pub(crate) client: Arc<Client>,
    pub(crate) path: &'static str,
    pub(crate) timeout: Duration,
    pub(crate) start: Instant,
    pub(crate) jobs: Arc<Vec<Job>>,
    pub(crate) live: Arc<Live>,
    pub(crate) kind: Phase,
    pub(crate) records: mpsc::UnboundedSender<RequestRecord>,
}

/// Whether requests count.
#[derive(Clone)]
pub(crate) enum Phase {
    /// They are counted apart, and forgotten.
    WarmUp(Arc<Counters>),
    /// They are shown and measured.
    Measured,
}

impl Fleet {
    fn session(&self) -> Session<'_> {
        let counters = match &self.kind {
            Phase::WarmUp(counters) => counters,
            Phase::Measured => &self.live.counters,
        };
        Session { client: &self.client, path: self.path, timeout: self.timeout, start: self.start, counters }
    }

    async fn send(&self, due: Due) {
        if let Some(job) = self.jobs.get(due.request_idx) {
            let record = self.session().exchange(due, job).await;
            // The receiver is gone only when the run was stopped.
            let _ = self.records.send(record);
        }
    }
}

/// Sends request `i` at `arrivals[i]` after the start. Blocks its thread, which must not be one of the run-time's: a
/// thread of its own sleeps with the accuracy of the operating system instead of a timer wheel's millisecond, and is
/// not held up by responses.
pub(crate) fn open_loop(fleet: Fleet, handle: &Handle, arrivals: &[Duration], max_concurrency: Option<usize>) {
    let permits = max_concurrency.map(|most| Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))));
    for (request_idx, offset) in arrivals.iter().enumerate() {
        if !sleep_until(fleet.start + *offset, &fleet.live) {
            return;
        }
        let (fleet, permits) = (fleet.clone(), permits.clone());
        let intended_s = offset.as_secs_f64();
        handle.spawn(async move {
            let mut due = Due { request_idx, intended_s, released_s: intended_s };
            // A permit that is free is taken at once; waiters are served in order of arrival.
            let _permit = match permits {
                None => None,
                Some(permits) => match Arc::clone(&permits).try_acquire_owned() {
                    Ok(permit) => Some(permit),
                    Err(_) => {
                        let permit = permits.acquire_owned().await.ok();
                        due.released_s = fleet.session().now_s();
                        permit
                    }
                },
            };
            fleet.send(due).await;
        });
    }
}

/// Keeps `concurrency` requests in flight from the start until all are sent; each is due when it is sent. Blocks its thread
/// as [`open_loop`] does, until the start.
pub(crate) fn closed_loop(fleet: Fleet, handle: &Handle, concurrency: usize) {
    if !sleep_until(fleet.start, &fleet.live) {
        return;
    }
    let next = Arc::new(AtomicUsize::new(0));
    for _ in 0..concurrency.min(fleet.jobs.len()) {
        let (fleet, next) = (fleet.clone(), Arc::clone(&next));
        handle.spawn(async move {
            loop {
                let request_idx = next.fetch_add(1, Ordering::Relaxed);
                if request_idx >= fleet.jobs.len() || fleet.live.is_stopped() {
                    return;
                }
                let now_s = fleet.session().now_s();
                fleet.send(Due { request_idx, intended_s: now_s, released_s: now_s }).await;
            }
        });
    }
}

/// Waits for a moment; `false` if the run was stopped before it.
fn sleep_until(moment: Instant, live: &Live) -> bool {
    loop {
        if live.is_stopped() {
            return false;
        }
        let left = moment.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        if left > SPIN {
            std::thread::sleep((left - SPIN).min(NAP));
        } else {
            std::hint::spin_loop();
        }
    }
}
