//! Threads that run one piece of work together.

/// A fixed number of threads; no kernel's result depends on how many.
pub trait Team: Send + Sync {
    /// How many threads take part.
    fn num_threads(&self) -> usize;
    /// Calls `work` once on each thread with its index and returns when all are done.
    fn run(&self, work: &(dyn Fn(usize) + Sync));
}

/// The calling thread alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct SingleThread;

impl Team for SingleThread {
    fn num_threads(&self) -> usize {
        1
    }

    fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        work(0);
    }
}
