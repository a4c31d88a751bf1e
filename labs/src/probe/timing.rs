//! Rounds of the same work on several threads at once, timed from the first start to the last end.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A round shorter than this would time the clock and the wake-up of threads.
const ROUND: Duration = Duration::from_millis(25);
/// Rounds of each figure.
const NUM_ROUNDS: usize = 9;

/// A rate over several rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// The best round: what the machine can do.
    pub best: f64,
    /// The middle round: far below the best, the machine was busy.
    pub median: f64,
    /// Rounds taken.
    pub rounds: usize,
}

impl Reading {
    /// Rates of rounds that each did `work` in so many seconds.
    pub fn of(work: f64, seconds: &[f64]) -> Self {
        let mut rates: Vec<f64> = seconds.iter().map(|seconds| work / seconds).collect();
        rates.sort_by(f64::total_cmp);
        let at = |index: usize| rates.get(index).copied().unwrap_or(0.0);
        Self { best: at(rates.len().saturating_sub(1)), median: at(rates.len() / 2), rounds: rates.len() }
    }
}

/// Times `pass` over the state that each thread makes for itself, so that memory lies where its thread runs.
///
/// Returns the rate of `work_per_pass` units a thread and pass, over all threads.
pub fn rate<S>(
    threads: usize,
    work_per_pass: f64,
    state: impl Fn() -> S + Sync,
    pass: impl Fn(&mut S) + Sync,
) -> Reading {
    let passes = passes_a_round(&state, &pass);
    let start_line = Barrier::new(threads);
    let run = || {
        let mut state = state();
        let mut spans = Vec::with_capacity(NUM_ROUNDS);
        for _ in 0..NUM_ROUNDS {
            start_line.wait();
            let start = Instant::now();
            for _ in 0..passes {
                pass(&mut state);
            }
            spans.push((start, Instant::now()));
        }
        spans
    };
    let spans: Vec<_> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let own = run();
        std::iter::once(own).chain(others.into_iter().filter_map(|thread| thread.join().ok())).collect()
    });
    let seconds: Vec<f64> = (0..NUM_ROUNDS).filter_map(|round| span(&spans, round)).collect();
    Reading::of(work_per_pass * passes as f64 * threads as f64, &seconds)
}

/// Seconds from the first start to the last end of a round.
fn span(spans: &[Vec<(Instant, Instant)>], round: usize) -> Option<f64> {
    let start = spans.iter().map(|rounds| rounds[round].0).min()?;
    let end = spans.iter().map(|rounds| rounds[round].1).max()?;
    Some(end.duration_since(start).as_secs_f64())
}

fn passes_a_round<S>(state: &impl Fn() -> S, pass: &impl Fn(&mut S)) -> u64 {
    let mut state = state();
    pass(&mut state);
    let mut passes = 1u64;
    loop {
        let start = Instant::now();
        for _ in 0..passes {
            pass(&mut state);
        }
        let taken = start.elapsed();
        if taken >= ROUND / 4 || passes > u64::MAX / 4 {
            let wanted = passes as f64 * ROUND.as_secs_f64() / taken.as_secs_f64();
            return (wanted.ceil() as u64).max(1);
        }
        passes *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_are_best_and_middle() {
        let reading = Reading::of(10.0, &[2.0, 1.0, 5.0]);
        assert_eq!(reading, Reading { best: 10.0, median: 5.0, rounds: 3 });
        assert_eq!(Reading::of(10.0, &[]).best, 0.0);
    }

    #[test]
    fn the_rate_of_a_known_wait_is_known() {
        let wait = Duration::from_millis(10);
        let reading = rate(2, 1.0, || (), |()| std::thread::sleep(wait));
        // Two threads, a hundred passes a second each; sleeping longer is allowed, shorter is not.
        assert!(reading.best <= 200.0 && reading.best > 100.0, "{reading:?}");
        assert_eq!(reading.rounds, NUM_ROUNDS);
    }
}
