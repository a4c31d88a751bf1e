//! `ch02:bandwidth*`: memory read and copied by one thread and by all, and read from a set that the last cache holds.

use std::hint::black_box;
use std::time::Instant;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::fingerprint::Fingerprint;
use crate::gate::{Outputs, Tolerance};
use crate::lab::{ArmSpec, Experiment, Lab, LabContext, LabInfo, Measured};
use crate::record::{Goal, Workload};
use crate::{LabError, machine};

/// Far more than the caches hold.
const MEMORY_BYTES: usize = 256 << 20;
/// What a core's part of a last-level cache holds even where that cache is shared.
const CACHE_BYTES: usize = 1 << 20;
const WORD: usize = size_of::<u64>();

/// What is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Memory, read.
    Read,
    /// Memory, read and written.
    Copy,
    /// A set that stays in the last cache, read as often as comes to the same bytes.
    Cache,
}

/// The lab of one link.
#[derive(Debug, Clone, Copy)]
pub struct BandwidthLab(pub Link);

struct BandwidthExperiment {
    link: Link,
    words: Vec<u64>,
    copy: Vec<u64>,
    num_passes: usize,
    num_threads: usize,
    fingerprint: String,
}

impl Lab for BandwidthLab {
    fn info(&self) -> LabInfo {
        let (name, what) = match self.0 {
            Link::Read => ("bandwidth", "memory read"),
            Link::Copy => ("bandwidth_copy", "memory copied"),
            Link::Cache => ("bandwidth_cache", "a set in the last cache read"),
        };
        LabInfo {
            id: format!("ch02:{name}"),
            summary: format!("{what} by all threads instead of one"),
            goal: Goal::Speed,
            tags: vec!["memory".into()],
            tolerance: Tolerance::exact("sums of integers and copies"),
        }
    }

    fn prepare(&self, context: &LabContext) -> Result<Box<dyn Experiment>, LabError> {
        let set_bytes = if self.0 == Link::Cache { CACHE_BYTES } else { MEMORY_BYTES };
        let mut rng = ChaCha8Rng::seed_from_u64(context.seed);
        // A stretch of random words, repeated: drawing all of them would take longer than the lab.
        let stretch: Vec<u64> = (0..1 << 12).map(|_| rng.random()).collect();
        let words: Vec<u64> = stretch.iter().copied().cycle().take(set_bytes / WORD).collect();
        let num_passes = MEMORY_BYTES / set_bytes;
        let mut hash = Fingerprint::default();
        hash.add(bytemuck::cast_slice(&stretch)).add_u32(&[words.len() as u32, num_passes as u32]);
        Ok(Box::new(BandwidthExperiment {
            link: self.0,
            copy: if self.0 == Link::Copy { vec![1; words.len()] } else { Vec::new() },
            words,
            num_passes,
            num_threads: machine::num_threads(),
            fingerprint: hash.finish(),
        }))
    }
}

impl Experiment for BandwidthExperiment {
    fn workload(&self) -> Workload {
        let moved = self.words.len() * WORD * self.num_passes;
        let written = if self.link == Link::Copy { moved } else { 0 };
        let (set, passes) = ((self.words.len() * WORD) >> 20, self.num_passes);
        Workload {
            description: format!("{set} MiB, {passes} times, {:?}", self.link).to_lowercase(),
            fingerprint: self.fingerprint.clone(),
            bytes: Some((moved + written) as u64),
            ..Workload::default()
        }
    }

    fn arms(&self) -> Vec<ArmSpec> {
        vec![ArmSpec::named("one_thread"), ArmSpec::named(&format!("all_{}_threads", self.num_threads))]
    }

    fn set_up(&mut self, _arm: usize) -> Result<(), LabError> {
        Ok(())
    }

    fn run(&mut self, arm: usize) -> Result<Measured, LabError> {
        let num_threads = if arm == 0 { 1 } else { self.num_threads };
        self.copy.fill(1);
        let part = self.words.len().div_ceil(num_threads).max(1);
        let started = Instant::now();
        let sum = match self.link {
            Link::Copy => {
                std::thread::scope(|scope| {
                    for (from, to) in self.words.chunks(part).zip(self.copy.chunks_mut(part)) {
                        scope.spawn(move || to.copy_from_slice(from));
                    }
                });
                0
            }
            Link::Read | Link::Cache => std::thread::scope(|scope| {
                let passes = self.num_passes;
                let read = |part| scope.spawn(move || (0..passes).fold(0, |all: u64, _| all.wrapping_add(sum(part))));
                let threads: Vec<_> = self.words.chunks(part).map(read).collect();
                threads.into_iter().filter_map(|t| t.join().ok()).fold(0u64, u64::wrapping_add)
            }),
        };
        let duration = started.elapsed();
        let sum = if self.link == Link::Copy { sum_of(&self.copy) } else { sum };
        let outputs = Outputs::Tokens(vec![vec![sum as u32, (sum >> 32) as u32]]);
        Ok(Measured::new(duration, self.fingerprint.clone(), outputs))
    }
}

/// A sum that the compiler may neither skip nor remember.
fn sum(words: &[u64]) -> u64 {
    sum_of(black_box(words))
}

fn sum_of(words: &[u64]) -> u64 {
    let (groups, rest) = words.as_chunks::<16>();
    let mut lanes = [0u64; 16];
    for group in groups {
        for (lane, word) in lanes.iter_mut().zip(group) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().chain(rest).fold(0, |sum, word| sum.wrapping_add(*word))
}
