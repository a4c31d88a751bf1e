//! `ch05:model_loading`: a checkpoint from the page cache: one read into the heap, mapped without one, reads side by side,
//! and reads through a small buffer by a program that never needs the whole file at once.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;

use aisp_engine::ModelSource;
use aisp_kernels::MappedFile;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tempfile::NamedTempFile;

use crate::fingerprint::Fingerprint;
use crate::gate::{Outputs, Tolerance};
use crate::lab::{ArmSpec, Experiment, Lab, LabContext, LabInfo, Measured};
use crate::record::{Goal, Workload};
use crate::{LabError, machine};

/// Size of the file that stands in for a checkpoint where the model is not one file.
const STAND_IN_BYTES: usize = 96 << 20;
/// One request to the system, where a file is read in parts.
const PART_BYTES: usize = 1 << 20;

/// The lab.
#[derive(Debug, Clone, Copy)]
pub struct ModelLoadingLab;

struct ModelLoadingExperiment {
    path: PathBuf,
    len: usize,
    num_threads: usize,
    fingerprint: String,
    /// Held so that it is removed at the end.
    _stand_in: Option<NamedTempFile>,
}

impl Lab for ModelLoadingLab {
    fn info(&self) -> LabInfo {
        LabInfo {
            id: "ch05:model_loading".into(),
            summary: "a checkpoint from the page cache: one read, mapped, parallel reads, reads through a small buffer"
                .into(),
            goal: Goal::Speed,
            tags: vec!["loading".into()],
            tolerance: Tolerance::exact("a sum over every byte of the file"),
        }
    }

    fn prepare(&self, context: &LabContext) -> Result<Box<dyn Experiment>, LabError> {
        let given = match &context.model {
            ModelSource::Gguf(path) => Some(path.clone()),
            _ => None,
        };
        let stand_in = if given.is_none() { Some(stand_in(context.seed)?) } else { None };
        let path = given.or_else(|| stand_in.as_ref().map(|file| file.path().to_owned())).unwrap_or_default();
        // Read once before: the page cache holds the file for every arm.
        let bytes = fs::read(&path).map_err(LabError::io(&path))?;
        Ok(Box::new(ModelLoadingExperiment {
            fingerprint: Fingerprint::default().add(&bytes).finish(),
            len: bytes.len(),
            num_threads: machine::num_threads().max(2),
            path,
            _stand_in: stand_in,
        }))
    }
}

fn stand_in(seed: u64) -> Result<NamedTempFile, LabError> {
    let mut file = NamedTempFile::new().map_err(LabError::io("a temporary file"))?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut part = vec![0; PART_BYTES];
    for _ in 0..STAND_IN_BYTES / PART_BYTES {
        rng.fill_bytes(&mut part);
        file.write_all(&part).map_err(LabError::io(file.path().to_owned()))?;
    }
    Ok(file)
}

impl Experiment for ModelLoadingExperiment {
    fn workload(&self) -> Workload {
        Workload {
            description: format!("{} MiB from the page cache, each byte used once", self.len >> 20),
            fingerprint: self.fingerprint.clone(),
            bytes: Some(self.len as u64),
            ..Workload::default()
        }
    }

    fn arms(&self) -> Vec<ArmSpec> {
        ["read", "mapped", "parallel", "streamed"].map(ArmSpec::named).to_vec()
    }

    fn set_up(&mut self, _arm: usize) -> Result<(), LabError> {
        Ok(())
    }

    fn run(&mut self, arm: usize) -> Result<Measured, LabError> {
        let io = || LabError::io(&self.path);
        let started = Instant::now();
        let sum = match arm {
            0 => sum_of(&fs::read(&self.path).map_err(io())?),
            1 => sum_of(&MappedFile::open(&self.path).map_err(io())?),
            2 => self.parallel()?,
            _ => self.streamed()?,
        };
        let duration = started.elapsed();
        let outputs = Outputs::Tokens(vec![vec![sum as u32, (sum >> 32) as u32]]);
        Ok(Measured::new(duration, self.fingerprint.clone(), outputs))
    }
}

impl ModelLoadingExperiment {
    /// Each thread reads a stretch of the file to its place in one allocation, and uses it while it is near.
    fn parallel(&self) -> Result<u64, LabError> {
        let file = File::open(&self.path).map_err(LabError::io(&self.path))?;
        let mut bytes = vec![0; self.len];
        let stretch = self.len.div_ceil(self.num_threads).next_multiple_of(PART_BYTES);
        let sums = std::thread::scope(|scope| {
            let load = |(at, to): (usize, &mut [u8])| -> std::io::Result<u64> {
                let mut sum = 0u64;
                for (part, to) in to.chunks_mut(PART_BYTES).enumerate() {
                    file.read_exact_at(to, (at * stretch + part * PART_BYTES) as u64)?;
                    sum = sum.wrapping_add(sum_of(to));
                }
                Ok(sum)
            };
            let threads: Vec<_> =
                bytes.chunks_mut(stretch).enumerate().map(|job| scope.spawn(move || load(job))).collect();
            let lost = || std::io::Error::other("a reading thread ended early");
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(lost())))
                .collect::<Result<Vec<_>, _>>()
        });
        let sums = sums.map_err(LabError::io(&self.path))?;
        std::hint::black_box(&bytes);
        Ok(sums.into_iter().fold(0, u64::wrapping_add))
    }

    /// As a loader that repacks weights does: each part is used and forgotten.
    fn streamed(&self) -> Result<u64, LabError> {
        let file = File::open(&self.path).map_err(LabError::io(&self.path))?;
        let mut part = vec![0; PART_BYTES];
        let mut sum = 0u64;
        for start in (0..self.len).step_by(PART_BYTES) {
            let part = &mut part[..PART_BYTES.min(self.len - start)];
            file.read_exact_at(part, start as u64).map_err(LabError::io(&self.path))?;
            sum = sum.wrapping_add(sum_of(part));
        }
        Ok(sum)
    }
}

/// A sum of all bytes, eight at a time. Parts that begin at multiples of eight add up to the whole.
fn sum_of(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let tail = rest.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte));
    words.iter().fold(tail, |sum: u64, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}
