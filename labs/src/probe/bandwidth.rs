//! Memory bandwidth: reading and copying a working set that fits a cache, or none.

use std::fmt;
use std::hint::black_box;

use pulp::{Arch, Simd, WithSimd};
use serde::{Deserialize, Serialize};

use super::caches::CacheSize;
use super::timing::{Reading, rate};
use crate::units;

/// Name of the level beyond all caches.
pub const MEMORY: &str = "memory";
/// Beyond the largest caches of one socket a core's share of this is in no cache.
const LEAST_MEMORY_SET: u64 = 256 << 20;
/// Enough to stand out of the last cache, without filling small machines.
const MOST_MEMORY_SET: u64 = 1 << 30;
/// Vectors in flight.
const IN_FLIGHT: usize = 8;
/// Sets are whole multiples of this many words: the widest vectors in flight.
const LANES: usize = 8 * IN_FLIGHT;

/// Bandwidth of one level.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BandwidthRow {
    /// `L2`, `L3` or `memory`.
    pub level: String,
    /// Threads at work.
    pub threads: usize,
    /// Bytes that all threads together go over.
    pub working_set_bytes: u64,
    /// Reading, 10^9 bytes a second over all threads.
    pub read_gbytes_per_s: Reading,
    /// Copying one half of the set to the other, bytes read plus bytes written, 10^9 a second over all threads.
    pub copy_gbytes_per_s: Reading,
}

/// One row to be measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    level: String,
    threads: usize,
    bytes_per_thread: u64,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (level, threads) = (&self.level, self.threads);
        write!(
            f,
            "{level} bandwidth, {}, {threads} thread(s)",
            units::bytes((self.bytes_per_thread * threads as u64) as f64)
        )
    }
}

/// Rows for these caches: half of each cache from the second level on, then memory; one thread and all threads.
pub fn plan(caches: &[CacheSize], cores: usize) -> Vec<Step> {
    let mut thread_counts = vec![1, cores.max(1)];
    thread_counts.dedup();
    let mut steps = Vec::new();
    for cache in caches.iter().filter(|cache| cache.level >= 2) {
        for threads in thread_counts.iter().copied() {
            let sharers = threads.min(cache.shared_by.max(1)) as u64;
            steps.push(Step {
                level: format!("L{}", cache.level),
                threads,
                bytes_per_thread: cache.bytes / 2 / sharers,
            });
        }
    }
    let last_cache = caches.iter().map(|cache| cache.bytes).max().unwrap_or(0);
    let memory_set = (last_cache * 8).clamp(LEAST_MEMORY_SET, MOST_MEMORY_SET);
    steps.extend(thread_counts.iter().map(|threads| Step {
        level: MEMORY.to_owned(),
        threads: *threads,
        bytes_per_thread: memory_set / *threads as u64,
    }));
    steps
}

/// Measures one row.
pub fn measure(step: &Step) -> BandwidthRow {
    let words = (step.bytes_per_thread / 8) as usize / (2 * LANES) * (2 * LANES);
    let bytes = (words * 8) as f64;
    let arch = Arch::new();
    // Ones, not zeros: pages of zeros that were never written may all be one page.
    let set = || vec![1u64; words.max(2 * LANES)];
    let gbytes = bytes / 1e9;
    let read = rate(step.threads, gbytes, set, |set| {
        black_box(read(arch, black_box(set)));
    });
    let copy = rate(step.threads, gbytes, set, |set| {
        let (from, to) = set.split_at_mut(words / 2);
        black_box(to).copy_from_slice(black_box(from));
    });
    BandwidthRow {
        level: step.level.clone(),
        threads: step.threads,
        working_set_bytes: step.bytes_per_thread * step.threads as u64,
        read_gbytes_per_s: read,
        copy_gbytes_per_s: copy,
    }
}

/// Combines all words with the widest vectors of this processor.
fn read(arch: Arch, set: &[u64]) -> u64 {
    arch.dispatch(Xor { set })
}

/// Exclusive or of all words, in as many independent vectors as hide the latency of a load.
struct Xor<'a> {
    set: &'a [u64],
}

impl WithSimd for Xor<'_> {
    type Output = u64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> u64 {
        let (vectors, tail) = S::as_simd_u64s(self.set);
        let mut lanes = [simd.splat_u64s(0); IN_FLIGHT];
        let (groups, rest) = vectors.as_chunks::<IN_FLIGHT>();
        for group in groups {
            for (lane, vector) in lanes.iter_mut().zip(group) {
                *lane = simd.xor_u64s(*lane, *vector);
            }
        }
        let all = lanes.iter().chain(rest).fold(simd.splat_u64s(0), |all, vector| simd.xor_u64s(all, *vector));
        let words: &[u64] = bytemuck::cast_slice(std::slice::from_ref(&all));
        words.iter().chain(tail).fold(0, |all, word| all ^ word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_measured_with_one_and_with_all_threads() {
        let caches = [
            CacheSize { level: 1, bytes: 32 << 10, shared_by: 1 },
            CacheSize { level: 2, bytes: 1 << 20, shared_by: 1 },
            CacheSize { level: 3, bytes: 32 << 20, shared_by: 2 },
        ];
        let rows: Vec<_> =
            plan(&caches, 2).into_iter().map(|step| (step.level, step.threads, step.bytes_per_thread)).collect();
        let row = |level: &str, threads, bytes: u64| (level.to_owned(), threads, bytes);
        // A private cache holds half of itself for each thread, a shared one is shared.
        let expected =
            [row("L2", 1, 512 << 10), row("L2", 2, 512 << 10), row("L3", 1, 16 << 20), row("L3", 2, 8 << 20)];
        assert_eq!(rows[..4], expected);
        assert_eq!(rows[4..], [row("memory", 1, 256 << 20), row("memory", 2, 128 << 20)]);
        assert_eq!(plan(&[], 1).len(), 1, "unknown caches leave memory");
    }

    #[test]
    fn every_word_is_read() {
        let mut set = vec![0u64; 4 * LANES + 13];
        for at in [0, 77, 4 * LANES - 1, 4 * LANES + 12] {
            set[at] = 1 << 40;
            assert_eq!(read(Arch::new(), &set), 1 << 40, "word {at}");
            set[at] = 0;
        }
    }

    #[test]
    fn a_small_set_has_a_rate() {
        let row = measure(&Step { level: "L2".into(), threads: 1, bytes_per_thread: 1 << 18 });
        assert!(row.read_gbytes_per_s.best > 0.5 && row.copy_gbytes_per_s.best > 0.5, "{row:?}");
    }
}
