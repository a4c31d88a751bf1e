//! Teams of threads that run one op together: the plain one, rayon's pool as the baseline, and a pool of our own.

mod pinned;

pub use pinned::PinnedPool;
use rayon::prelude::*;

/// Threads that do one piece of work together.
pub trait Team: Send + Sync {
    /// How many indices [`Team::run`] hands out.
    fn num_threads(&self) -> usize;

    /// Calls `work(thread_idx)` once for each index below [`Team::num_threads`]; returns when all calls have.
    ///
    /// A thread may be given several indices, one after the other, so work must not wait for another index.
    /// A panic in `work` reaches the caller after all indices are done.
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

/// Rayon's global pool: the baseline of [`PinnedPool`].
#[derive(Debug, Clone, Copy, Default)]
pub struct RayonTeam;

impl Team for RayonTeam {
    fn num_threads(&self) -> usize {
        rayon::current_num_threads()
    }

    fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        (0..self.num_threads()).into_par_iter().with_max_len(1).for_each(work);
    }
}

/// Hands out `0..num_items` to all threads in rising order, one at a time: a thread that is slow takes fewer.
pub fn for_each_item(team: &dyn Team, num_items: usize, work: impl Fn(usize) + Sync) {
    use std::sync::atomic::{AtomicUsize, Ordering};

    if team.num_threads() == 1 || num_items <= 1 {
        (0..num_items).for_each(work);
        return;
    }
    let next = AtomicUsize::new(0);
    team.run(&|_thread_idx| {
        loop {
            let item = next.fetch_add(1, Ordering::Relaxed);
            if item >= num_items {
                break;
            }
            work(item);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn teams() -> Vec<Box<dyn Team>> {
        let mut teams: Vec<Box<dyn Team>> = vec![Box::new(SingleThread), Box::new(RayonTeam)];
        for num_threads in [1, 2, 5] {
            teams.push(Box::new(PinnedPool::new(num_threads).unwrap()));
        }
        teams
    }

    #[test]
    fn every_index_runs_once() {
        for team in teams() {
            let counts: Vec<AtomicUsize> = (0..team.num_threads()).map(|_| AtomicUsize::new(0)).collect();
            for round in 1..200 {
                team.run(&|idx| {
                    counts[idx].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == round));
            }
        }
    }

    #[test]
    fn every_item_is_taken_once() {
        for team in teams() {
            for num_items in [0, 1, 2, 77] {
                let counts: Vec<AtomicUsize> = (0..num_items).map(|_| AtomicUsize::new(0)).collect();
                for_each_item(&*team, num_items, |item| {
                    counts[item].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }
}
