//! A pool whose threads live as long as it does, woken and joined by one atomic word each.
//!
//! A job is published by raising `generation`. Each index is claimed by compare-and-swap, normally by its own worker;
//! the caller, once its own share is done, claims whatever no worker has claimed yet. So nobody waits for a thread that
//! the system has not scheduled, only for one in the middle of its share, and after a while asleep. "Pinned" is the
//! pool, not the threads: bound to a core, they could not evade a busy one.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use super::Team;
use crate::KernelError;

/// A thread that waits polls for this long, then sleeps. Longer than the gap between two ops of a step.
const POLL: Duration = Duration::from_micros(150);
/// The same while the machine has company: polling would only use up this process's share of the cores.
const POLL_IN_COMPANY: Duration = Duration::from_micros(5);
/// Polls between two looks at the clock.
const POLLS_A_LOOK: u32 = 16;
/// Looks at the clock that lie further apart than this tell that the thread was not scheduled in between.
const DESCHEDULED: Duration = Duration::from_micros(100);
/// Waits in company mode after each sign of company.
const WAITS_IN_COMPANY: u32 = 256;

type Work<'a> = dyn Fn(usize) + Sync + 'a;

/// Persistent threads with a polling hand-over: one atomic store to start an op, one load a worker to end it.
///
/// Idle threads sleep. Dropping the pool joins them.
#[derive(Debug)]
pub struct PinnedPool {
    shared: Arc<Shared>,
    threads: Vec<Thread>,
    handles: Vec<JoinHandle<()>>,
    running: Mutex<()>,
}

#[derive(Debug)]
struct Shared {
    /// Number of the newest job; 0 before the first.
    generation: Line<AtomicU64>,
    job: Job,
    workers: Vec<Line<Worker>>,
    caller_sleeps: AtomicBool,
    caller: Mutex<Option<Thread>>,
    /// How many more waits are kept short because the machine has company.
    waits_in_company: AtomicU32,
    stopping: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A value on a cache line pair of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Line<T>(T);

#[derive(Debug)]
struct Worker {
    /// Twice the generation that was claimed last, plus one once that share is done.
    state: AtomicU64,
    sleeps: AtomicBool,
}

/// The current job: written by the caller alone, while no share is claimed.
#[derive(Debug)]
struct Job(UnsafeCell<Option<*const Work<'static>>>);

// SAFETY: the cell is written only by the caller that holds `running`, before it raises `generation` and after every
// share of the job before is done; it is read only between a successful claim and the end of that share.
unsafe impl Sync for Job {}
// SAFETY: the pointer inside refers to a `Sync` closure, which may be called from any thread.
unsafe impl Send for Job {}

const fn claimed(generation: u64) -> u64 {
    2 * generation
}

const fn done(generation: u64) -> u64 {
    2 * generation + 1
}

impl PinnedPool {
    /// A team of `num_threads` threads, the calling one included; 0 counts as 1.
    ///
    /// Errors: the system refuses a thread.
    pub fn new(num_threads: usize) -> Result<Self, KernelError> {
        let num_workers = num_threads.max(1) - 1;
        let worker = || Line(Worker { state: AtomicU64::new(done(0)), sleeps: AtomicBool::new(false) });
        let shared = Arc::new(Shared {
            generation: Line(AtomicU64::new(0)),
            job: Job(UnsafeCell::new(None)),
            workers: (0..num_workers).map(|_| worker()).collect(),
            caller_sleeps: AtomicBool::new(false),
            caller: Mutex::new(None),
            waits_in_company: AtomicU32::new(0),
            stopping: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Self { shared, threads: Vec::new(), handles: Vec::new(), running: Mutex::new(()) };
        for worker_idx in 0..num_workers {
            let shared = Arc::clone(&pool.shared);
            let thread_idx = worker_idx + 1;
            let handle = thread::Builder::new()
                .name(format!("aisp-team-{thread_idx}"))
                .spawn(move || shared.serve(worker_idx))
                .map_err(|source| KernelError::Thread { thread_idx, source })?;
            pool.threads.push(handle.thread().clone());
            pool.handles.push(handle);
        }
        Ok(pool)
    }

    /// As many threads as this process may run at once: cores, or less under an affinity mask or a cgroup quota.
    ///
    /// Errors: as [`PinnedPool::new`].
    pub fn with_available_cores() -> Result<Self, KernelError> {
        Self::new(thread::available_parallelism().map_or(1, usize::from))
    }
}

impl Team for PinnedPool {
    fn num_threads(&self) -> usize {
        self.shared.workers.len() + 1
    }

    fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        // A nested or concurrent call finds the team busy and does its work alone.
        let guard = match self.running.try_lock() {
            Ok(guard) if !self.shared.workers.is_empty() => guard,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            _ => return (0..self.num_threads()).for_each(work),
        };
        let shared = &*self.shared;
        let generation = shared.generation.0.load(Ordering::Relaxed) + 1;
        // SAFETY: only the lifetime is erased. Every share is done before `run` returns or unwinds, and no share
        // starts afterwards, since all indices are claimed by then.
        let erased = unsafe { std::mem::transmute::<*const Work<'_>, *const Work<'static>>(work) };
        // SAFETY: `running` is held and the shares of the job before are done, so nobody reads the cell now.
        unsafe { *shared.job.0.get() = Some(erased) };
        // Sequentially consistent with `sleeps`: either the worker sees the job or this thread sees it asleep.
        shared.generation.0.store(generation, Ordering::SeqCst);
        for (worker, thread) in shared.workers.iter().zip(&self.threads) {
            if worker.0.sleeps.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        shared.run_share(0, work);
        for (worker_idx, worker) in shared.workers.iter().enumerate() {
            if worker.0.claim(generation) {
                shared.run_share(worker_idx + 1, work);
                worker.0.state.store(done(generation), Ordering::Relaxed);
            }
        }
        for worker in &shared.workers {
            shared.await_done(&worker.0, generation);
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(guard);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for PinnedPool {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for handle in self.handles.drain(..) {
            handle.thread().unpark();
            // A worker catches the panics of its work, so there is nothing to pass on.
            let _ = handle.join();
        }
    }
}

impl Worker {
    /// Takes this worker's share of a job, unless somebody has.
    fn claim(&self, generation: u64) -> bool {
        let before = done(generation - 1);
        self.state.compare_exchange(before, claimed(generation), Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
}

impl Shared {
    /// Runs one index and keeps its panic for the caller.
    fn run_share(&self, thread_idx: usize, work: &Work<'_>) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(thread_idx))) {
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }

    /// A worker's life.
    fn serve(&self, worker_idx: usize) {
        let worker = &self.workers[worker_idx].0;
        let mut seen = 0;
        while let Some(generation) = self.await_job(worker, seen) {
            seen = generation;
            if !worker.claim(generation) {
                continue;
            }
            // SAFETY: the claim succeeded, so the caller waits for this share: the cell is not written and the
            // closure lives until `state` says done. The load of `generation` made the caller's write visible.
            if let Some(work) = unsafe { *self.job.0.get() } {
                // SAFETY: as above.
                self.run_share(worker_idx + 1, unsafe { &*work });
            }
            // Sequentially consistent with `caller_sleeps`, as `generation` is with `sleeps`.
            worker.state.store(done(generation), Ordering::SeqCst);
            if self.caller_sleeps.load(Ordering::SeqCst)
                && let Some(caller) = &*self.caller.lock().unwrap_or_else(PoisonError::into_inner)
            {
                caller.unpark();
            }
        }
    }

    /// The next generation after `seen`; `None` when the pool is dropped.
    fn await_job(&self, worker: &Worker, seen: u64) -> Option<u64> {
        let has_news = || self.generation.0.load(Ordering::SeqCst) != seen || self.stopping.load(Ordering::SeqCst);
        if !self.poll(has_news) {
            worker.sleeps.store(true, Ordering::SeqCst);
            while !has_news() {
                thread::park();
            }
            worker.sleeps.store(false, Ordering::SeqCst);
        }
        Some(self.generation.0.load(Ordering::SeqCst)).filter(|&generation| generation != seen)
    }

    /// Waits for a share that its worker is in the middle of.
    fn await_done(&self, worker: &Worker, generation: u64) {
        let is_done = || worker.state.load(Ordering::SeqCst) == done(generation);
        if self.poll(is_done) {
            return;
        }
        *self.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        self.caller_sleeps.store(true, Ordering::SeqCst);
        while !is_done() {
            thread::park();
        }
        self.caller_sleeps.store(false, Ordering::SeqCst);
    }

    /// Polls for a while; whether the event came.
    fn poll(&self, event: impl Fn() -> bool) -> bool {
        for _ in 0..POLLS_A_LOOK {
            if event() {
                return true;
            }
            std::hint::spin_loop();
        }
        let waits = self.waits_in_company.load(Ordering::Relaxed);
        let limit = if waits > 0 { POLL_IN_COMPANY } else { POLL };
        self.waits_in_company.store(waits.saturating_sub(1), Ordering::Relaxed);
        let start = Instant::now();
        let mut last_look = start;
        loop {
            for _ in 0..POLLS_A_LOOK {
                if event() {
                    return true;
                }
                std::hint::spin_loop();
            }
            let look = Instant::now();
            if look - last_look > DESCHEDULED {
                self.waits_in_company.store(WAITS_IN_COMPANY, Ordering::Relaxed);
                return event();
            }
            if look - start > limit {
                return false;
            }
            last_look = look;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_lives_on() {
        let pool = PinnedPool::new(3).unwrap();
        for bad_idx in 0..3 {
            let result = catch_unwind(AssertUnwindSafe(|| pool.run(&|idx| assert_ne!(idx, bad_idx))));
            assert!(result.is_err());
            let count = AtomicUsize::new(0);
            pool.run(&|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 3);
        }
    }

    #[test]
    fn nested_and_concurrent_calls_finish() {
        let pool = PinnedPool::new(2).unwrap();
        let count = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        pool.run(&|_| {
                            pool.run(&|_| {
                                count.fetch_add(1, Ordering::Relaxed);
                            })
                        });
                    }
                });
            }
        });
        assert_eq!(count.into_inner(), 3 * 100 * 2 * 2);
    }

    #[test]
    fn sleeping_workers_wake() {
        let pool = PinnedPool::new(2).unwrap();
        for _ in 0..5 {
            thread::sleep(POLL * 10);
            let count = AtomicUsize::new(0);
            pool.run(&|_| {
                count.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(2));
            });
            assert_eq!(count.into_inner(), 2);
        }
    }

    #[test]
    fn an_idle_pool_can_be_dropped() {
        drop(PinnedPool::new(4).unwrap());
        let pool = PinnedPool::with_available_cores().unwrap();
        thread::sleep(POLL * 5);
        drop(pool);
    }
}
