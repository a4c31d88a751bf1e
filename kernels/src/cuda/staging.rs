//! The way of large tensors to the device: pinned memory in two halves. While one is copied over, all threads fill the
//! other, so a checkpoint in the page cache arrives as fast as the link takes it.

use std::sync::Arc;

use rayon::prelude::*;

use super::buffer::{DeviceBuffer, PinnedBuffer, Purpose};
use super::error::CudaError;
use super::gpu::{Event, Gpu};

/// Bytes of a half: long enough to hide a launch, short enough to be filled while the other one is under way.
const HALF_BYTES: usize = 32 << 20;

const STAGING: Purpose = ("the way of weights to the device", "what else the host holds");

/// Bytes that a thread copies at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Pinned memory that uploads go through.
#[derive(Debug)]
pub struct Staging {
    gpu: Arc<Gpu>,
    halves: [Half; 2],
    num_copies: usize,
}

#[derive(Debug)]
struct Half {
    bytes: PinnedBuffer<u8>,
    /// Behind the last copy out of it.
    copied: Event,
}

impl Half {
    fn new(gpu: &Arc<Gpu>) -> Result<Self, CudaError> {
        Ok(Self { bytes: PinnedBuffer::zeroed(gpu, HALF_BYTES, STAGING)?, copied: Event::new(gpu)? })
    }
}

impl Staging {
    /// Two halves of 32 MiB.
    ///
    /// Errors: the system refuses pinned memory.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Self, CudaError> {
        Ok(Self { gpu: gpu.clone(), halves: [Half::new(gpu)?, Half::new(gpu)?], num_copies: 0 })
    }

    /// Puts copies of `bytes` on the stream, from the byte `start` of the target on. The source is free when it returns.
    ///
    /// Errors: a target that is too small; a failed copy.
    pub fn upload(&mut self, target: &DeviceBuffer<u8>, start: usize, bytes: &[u8]) -> Result<(), CudaError> {
        let mut at = start;
        for part in bytes.chunks(HALF_BYTES) {
            let half = &mut self.halves[self.num_copies % 2];
            half.copied.wait()?;
            let filled = half.bytes.values_mut()[..part.len()].par_chunks_mut(PIECE_BYTES);
            filled.zip(part.par_chunks(PIECE_BYTES)).for_each(|(to, from)| to.copy_from_slice(from));
            half.bytes.copy_to(target.slice(at..at + part.len()), part.len())?;
            half.copied.record()?;
            self.num_copies += 1;
            at += part.len();
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Copies may still read the halves; a device that failed reads nothing.
        let _ = self.gpu.synchronize();
    }
}
